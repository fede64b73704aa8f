// Package sim makes a simulated node: a directory that looks to everything else
// like the root of a machine with an NVIDIA driver. It has a driver root with C
// stand-ins for libcuda.so.1 and libnvidia-ml.so.1, files in the place of the
// device nodes, /proc/driver/nvidia and a /sys. The code that reads it is the
// code that reads a real machine.
//
// Vocabulary
//
//   - A profile (profiles/*.yaml) describes the machine: models, PCIe tree, NUMA
//     nodes, NVLinks, MIG, driver version.
//   - The root R is the directory. R/SIMULATED marks it, and is what Remove asks
//     for before it deletes anything.
//   - The device files R/dev/nvidiactl and R/dev/nvidiaN hold facts and live
//     state, shared by every process that maps them: driver/state.h.
//   - A card in MIG mode is divided by NVML's calls, as a real one is; a profile
//     says into what it is divided at the start. Capability files under
//     R/dev/nvidia-caps say who may use an instance, as device nodes do.
//   - A profile with driver.mps has NVIDIA's MPS: a program of ours in the place of
//     nvidia-cuda-mps-control (mps/), and kernels of its clients that run at once.
//   - The engines' log (Runs) has when a kernel ran and at what speed.
//   - An injection is a fault that a person or a test puts in.
//
// Traps
//
//   - The simulator must never be mistaken for hardware: product names end with
//     "(simulated)", and node.GPU.Simulated is set.
//   - Closing any descriptor of nvidiactl drops the record locks by which a
//     process shows that it lives. A Node keeps its own open until Close; do not
//     Open a node in a process that also uses its libcuda.
//   - Numbers in a slot whose owner is dead stand until a C library reaps them,
//     under a lock that Go cannot take. Status leaves them out instead.
package sim
