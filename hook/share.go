package hook

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Program is the hook's name: its file's, and the first of its arguments.
const Program = "kerf-hook"

// The subcommands.
const (
	CreateRuntimeVerb   = "create-runtime"
	CreateContainerVerb = "create-container"
)

// Root is where a container has its view of Kerf. The shims are compiled with it.
const Root = "/run/kerf"

// LibDir is where a container has the shims and the driver's other libraries, each by the name that a loader asks for.
const LibDir = Root + "/lib"

// driverDir is where the shims have the real driver. Not in LibDir: an ldconfig run in the container would find the driver's own
// name in the file and give it that.
const driverDir = Root + "/driver"

// Share is what a container is given of one share. Paths are the host's unless they say otherwise.
type Share struct {
	ID        string   // "" with Admin
	Pages     string   // the directory with the share's policy, usage and socket; bindings are beside it
	Lib       string   // the directory of the shims
	CUDA      string   // the real driver's libcuda; "" with Admin
	NVML      string   // the real driver's libnvidia-ml
	GPUs      []string // device nodes of the granted GPUs, MIG's too
	Control   []string // device nodes that every tenant has: nvidiactl, nvidia-uvm
	Simulated bool
	Admin     bool   // monitoring: nodes and NVML, no share
	MPS       string // the pipe directory of the card's MPS daemon; "" with another tier
	MPSMemory string // what is /dev/shm to the daemon and to the container; "": the host's own
	Kerfd     string // kerfd's socket for hooks, where the driver is to limit the container itself; "" where the shim alone does
}

// flags is the one list of what the arguments carry.
func (s *Share) flags() *flag.FlagSet {
	set := flag.NewFlagSet(Program, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for name, text := range map[string]*string{"share": &s.ID, "pages": &s.Pages, "lib": &s.Lib, "cuda": &s.CUDA, "nvml": &s.NVML, "mps": &s.MPS, "mps-memory": &s.MPSMemory, "kerfd": &s.Kerfd} {
		set.StringVar(text, name, *text, "")
	}
	for name, texts := range map[string]*[]string{"gpu": &s.GPUs, "control": &s.Control} {
		set.Var((*list)(texts), name, "")
	}
	set.BoolVar(&s.Simulated, "simulated", s.Simulated, "")
	set.BoolVar(&s.Admin, "admin", s.Admin, "")
	return set
}

// list is a flag that is given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

// Args are the arguments of a hook, the program's name first.
func (s Share) Args(verb string) []string {
	args := []string{Program, verb}
	s.flags().VisitAll(func(f *flag.Flag) {
		switch values, several := f.Value.(*list); {
		case several:
			for _, v := range *values {
				args = append(args, "--"+f.Name+"="+v)
			}
		case f.Value.String() == "true":
			args = append(args, "--"+f.Name)
		case f.Value.String() != "" && f.Value.String() != "false":
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	return args
}

// ParseArgs is the reverse of Args.
func ParseArgs(args []string) (verb string, s Share, err error) {
	if len(args) < 2 {
		return "", s, fmt.Errorf("no subcommand; a container runtime calls this as %s %s or %s, from a CDI spec of kerfd", Program, CreateRuntimeVerb, CreateContainerVerb)
	}
	set := s.flags()
	if err := set.Parse(args[2:]); err != nil {
		return "", s, fmt.Errorf("arguments: %w; the CDI spec is of another version of Kerf than this program", err)
	}
	return args[1], s, s.validate()
}

func (s Share) validate() error {
	switch {
	case s.Lib == "" || s.NVML == "":
		return errors.New("arguments: --lib or --nvml is missing; the CDI spec is damaged, kerfd writes it anew when it prepares the claim again")
	case !s.Admin && (s.ID == "" || s.Pages == "" || s.CUDA == ""):
		return errors.New("arguments: --share, --pages or --cuda is missing; the CDI spec is damaged, kerfd writes it anew when it prepares the claim again")
	}
	return nil
}

// Shares are all that a container holds, as the hooks of its configuration say. Users cannot add hooks.
func Shares(spec *specs.Spec) (shares []Share, err error) {
	if spec.Hooks == nil {
		return nil, nil
	}
	for _, h := range spec.Hooks.CreateRuntime {
		if len(h.Args) < 2 || h.Args[0] != Program || h.Args[1] != CreateRuntimeVerb {
			continue
		}
		_, s, err := ParseArgs(h.Args)
		if err != nil {
			return nil, err
		}
		shares = append(shares, s)
	}
	return shares, nil
}

// Mount is one file or directory of the host in the container.
type Mount struct {
	Source, Target string
	Writable       bool
}

// Mounts are what a share brings into a container. Those of the shims and the driver are the same for all shares.
func (s Share) Mounts() (mounts []Mount) {
	add := func(source, target string) { mounts = append(mounts, Mount{Source: source, Target: target}) }
	if s.Admin {
		add(s.NVML, LibDir+"/libnvidia-ml.so.1")
		add(s.NVML, LibDir+"/libnvidia-ml.so")
	} else {
		for _, name := range []string{"libcuda.so", "libnvidia-ml.so"} {
			add(filepath.Join(s.Lib, name+".1"), LibDir+"/"+name+".1")
			add(filepath.Join(s.Lib, name+".1"), LibDir+"/"+name)
		}
		add(s.CUDA, driverDir+"/libkerfreal-cuda.so.1")
		add(s.NVML, driverDir+"/libkerfreal-nvidia-ml.so.1")
		pages := Root + "/shares/" + s.ID
		add(s.Pages, pages)
		mounts = append(mounts, Mount{Source: filepath.Join(s.Pages, "usage"), Target: pages + "/usage", Writable: true})
	}
	if s.MPS != "" { // writable, as NVIDIA's own tools mount it
		mounts = append(mounts, Mount{Source: s.MPS, Target: Root + "/mps", Writable: true})
	}
	if s.MPSMemory != "" {
		mounts = append(mounts, Mount{Source: s.MPSMemory, Target: "/dev/shm", Writable: true})
	}
	if s.Simulated {
		for _, node := range slices.Concat(s.Control, s.GPUs) {
			mounts = append(mounts, Mount{Source: node, Target: s.NodeIn(node), Writable: true})
		}
	}
	return mounts
}

// NodeIn is where a device node of the host is in the container. A driver container has its nodes under a root of its own; a
// simulated node's files are where the simulated driver looks.
func (s Share) NodeIn(host string) string {
	at := host[max(0, strings.LastIndex(host, "/dev/")):]
	if s.Simulated {
		return Root + "/sim" + at
	}
	return at
}
