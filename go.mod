module github.com/kerf-gpu/kerf

go 1.26
