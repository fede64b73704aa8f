package sim

//go:generate go run ./nvml/gen
