// The cluster program, in a module of its own: it builds and runs binaries, and needs only the standard library.
module github.com/kerf-gpu/kerf/deploy/cluster

go 1.26.0
