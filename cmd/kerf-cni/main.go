// Command kerf-cni is the CNI plugin: it translates the environment and the standard input of a call into one call of package cni's
// engine, and delegates addresses to an IPAM plugin. It starts once for each call, so it must start fast.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	spec "github.com/containernetworking/cni/pkg/version"

	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/cni"
)

func main() {
	debug.SetGCPercent(-1) // the program ends before there is anything worth collecting
	debug.SetMemoryLimit(64 << 20)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) // a runtime that gives up gets the device back
	failed := run(ctx, cni.New)
	stop()
	if failed != nil {
		_ = failed.Print() // on the standard output, as the specification wants it
		os.Exit(1)
	}
}

// run answers one call. build makes an engine on a directory.
func run(ctx context.Context, build func(dir string) *cni.Engine) *types.Error {
	p := plugin{ctx: ctx, build: build}
	return skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: coded(p.add), Del: coded(p.del), Check: coded(p.check), GC: coded(p.gc), Status: coded(p.status),
	}, spec.All, "CNI plugin kerf-cni "+version.Version)
}

// coded gives errors of the engine their CNI codes.
func coded(verb func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		err := verb(args)
		if e := new(types.Error); err == nil || asError(err, &e) {
			return err
		}
		return types.NewError(uint(cni.CodeOf(err)), err.Error(), "")
	}
}

// plugin is one call.
type plugin struct {
	ctx   context.Context
	build func(dir string) *cni.Engine
}

// engine is on the directory of a configuration.
func (p plugin) engine(runDir string) *cni.Engine {
	if runDir == "" {
		runDir = "/run/kerf"
	}
	return p.build(filepath.Join(runDir, "nic"))
}

// warn tells what is strange and does not matter: runtimes keep the standard error in their log.
func warn(format string, args ...any) { fmt.Fprintf(os.Stderr, "kerf-cni: "+format+"\n", args...) }
