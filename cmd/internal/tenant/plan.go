// Package tenant makes the view that a program under `kerf run` has of the machine: a private mount namespace in which Kerf's
// shim is what the loader finds as libcuda.so.1, and only the granted GPUs are there.
//
// Plan is pure: what was granted and what the host has give a list of steps. Enter takes the steps, in a process that
// is already in a mount namespace of its own, and then becomes the program.
//
// The view, under /run/kerf, a read-only tmpfs that only this program and its children see:
//
//	lib/libcuda.so.1, lib/libnvidia-ml.so.1        the shims
//	driver/libkerfreal-{cuda,nvidia-ml}.so.1       the real driver, under names that only the shims know
//	shares/ID/{policy,usage,socket}                the share; the policy read-only
//	mps/                                           the pipes of the card's MPS daemon, under tier mps
//	sim/dev/…                                      simulated device nodes
//
// Traps. /run/kerf on the host is kerfd's own directory, and is covered by the view, so every source is opened before the first
// step. The real libraries are covered too, wherever the loader could find them: the driver's file is bound under
// its private name first.
package tenant

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
)

// Root is where a tenant has its view. The shims are compiled with it.
const Root = "/run/kerf"

// LoaderCache is the file in which the loader looks a library up.
const LoaderCache = "/etc/ld.so.cache"

// Host is what the plan needs to know of the machine.
type Host struct {
	// Libraries are the files (symlinks followed) that the loader could find as libcuda.so.1 or libnvidia-ml.so.1.
	CUDA, NVML []string
	// InCache: the loader finds libcuda.so.1 by its cache, so covering the files is enough.
	InCache bool
	// HasRoot: the directory Root exists, so the view can be mounted there.
	HasRoot bool
}

// Verb is what a step does.
type Verb string

// The verbs. Paths that a step makes lie in a tmpfs that an earlier step made.
const (
	Tmpfs    Verb = "tmpfs"    // mount an empty tmpfs on Target
	Rebuild  Verb = "rebuild"  // mount a tmpfs on Target with everything that was there but Without, and an empty directory With
	Bind     Verb = "bind"     // bind Source on Target, which is made if it is not there
	BindRO   Verb = "bind-ro"  // likewise, read-only
	Link     Verb = "link"     // make the symlink Target → Source
	Cache    Verb = "cache"    // write a loader cache with the directory Source first, and bind it over LoaderCache
	ReadOnly Verb = "readonly" // remount Target read-only
)

// Step is one change of the mount namespace.
type Step struct {
	Verb    Verb     `json:"verb"`
	Source  string   `json:"source,omitempty"`
	Target  string   `json:"target"`
	Without []string `json:"without,omitempty"`
	With    string   `json:"with,omitempty"`
}

// Plan is the steps to a tenant's view.
func Plan(g control.Granted, host Host) (steps []Step) {
	add := func(s ...Step) { steps = append(steps, s...) }
	lib, driver, share := Root+"/lib", Root+"/driver", Root+"/shares/"+g.ID
	shimCUDA, shimNVML := filepath.Join(g.LibDir, "libcuda.so.1"), filepath.Join(g.LibDir, "libnvidia-ml.so.1")

	if !host.HasRoot {
		add(Step{Verb: Rebuild, Target: filepath.Dir(Root), With: Root})
	}
	add(Step{Verb: Tmpfs, Target: Root},
		Step{Verb: BindRO, Source: shimCUDA, Target: lib + "/libcuda.so.1"},
		Step{Verb: BindRO, Source: shimNVML, Target: lib + "/libnvidia-ml.so.1"},
		Step{Verb: Link, Source: "libcuda.so.1", Target: lib + "/libcuda.so"},
		Step{Verb: Link, Source: "libnvidia-ml.so.1", Target: lib + "/libnvidia-ml.so"},
		Step{Verb: BindRO, Source: g.Driver.CUDA, Target: driver + "/libkerfreal-cuda.so.1"},
		Step{Verb: BindRO, Source: g.Driver.NVML, Target: driver + "/libkerfreal-nvidia-ml.so.1"},
		Step{Verb: BindRO, Source: g.ShareDir, Target: share},
		Step{Verb: Bind, Source: filepath.Join(g.ShareDir, "usage"), Target: share + "/usage"})
	add(devices(g)...)
	if g.MPS.Pipe != "" { // writable, as NVIDIA's own tools mount it
		add(Step{Verb: Bind, Source: g.MPS.Pipe, Target: Root + "/mps"})
	}
	if g.MPS.Memory != "" { // after /dev may have been made anew
		add(Step{Verb: Bind, Source: g.MPS.Memory, Target: "/dev/shm"})
	}
	if !host.InCache {
		add(Step{Verb: Cache, Source: lib, Target: LoaderCache})
	}
	for _, file := range host.CUDA {
		add(Step{Verb: BindRO, Source: shimCUDA, Target: file})
	}
	for _, file := range host.NVML {
		add(Step{Verb: BindRO, Source: shimNVML, Target: file})
	}
	add(Step{Verb: ReadOnly, Target: Root})
	return steps
}

// devices shows the granted GPUs and hides the others. A simulated node's device files are bound to the one place where the
// simulated driver looks; real ones are where they are, and the others go by making /dev anew without them.
func devices(g control.Granted) (steps []Step) {
	if g.Simulated {
		for _, node := range slices.Concat(g.Driver.Control, g.Driver.Granted) {
			steps = append(steps, Step{Verb: Bind, Source: node, Target: Root + "/sim" + node[strings.LastIndex(node, "/dev/"):]})
		}
		return steps
	}
	if len(g.Driver.Others) == 0 {
		return nil
	}
	return []Step{{Verb: Rebuild, Target: "/dev", Without: g.Driver.Others}}
}
