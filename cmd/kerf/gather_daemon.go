package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/doctor"
	"github.com/kerf-gpu/kerf/vgpu/mps"
)

func gatherDaemon(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	n, err := p.client.Node(ctx)
	if err != nil {
		return nil, err
	}
	return func(f *doctor.Facts) {
		f.Simulated, f.Version, f.Root, f.LibDir, f.Driver, f.GPUs, f.NUMA, f.MemoryLimits = n.Simulated, n.Version, n.Root, n.LibDir, n.Driver, n.GPUs, len(n.NUMA), n.MemoryLimits
	}, nil
}

func gatherState(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	state, err := p.client.State(ctx)
	if err != nil {
		return nil, err
	}
	return func(f *doctor.Facts) {
		for _, s := range state.Shares {
			if s.Tampered != "" {
				f.Bad = append(f.Bad, fmt.Sprintf("share %s: tampered with (%s)", s.ID, s.Tampered))
			}
			for _, d := range s.Devices {
				f.Books = append(f.Books, doctor.Book{GPU: d.UUID, Held: d.Used()})
				if d.Used() > d.Limit {
					f.Bad = append(f.Bad, fmt.Sprintf("share %s holds %s, limit %s", s.ID, d.Used(), d.Limit))
				}
			}
		}
		for _, g := range state.GPUs {
			f.Cards = append(f.Cards, doctor.Card{Index: g.Index, UUID: g.UUID, Used: g.Used, Outside: g.Outside, Fault: g.Fault, Error: g.Error})
		}
	}, nil
}

func gatherHealth(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	h, err := p.client.Health(ctx)
	if err != nil {
		return nil, err
	}
	return func(f *doctor.Facts) {
		f.MonitorOff, f.SetAside, f.OrphanXids = h.Off, h.Corrupt, h.Orphans
		for _, d := range h.Devices {
			v := doctor.Verdict{Name: d.ID, Status: doctor.Pass, Text: fmt.Sprintf("%s, %s", d.Level, d.Reason), Clears: d.Clears}
			if d.Index >= 0 {
				v.Name = fmt.Sprintf("GPU %d", d.Index)
			}
			switch {
			case d.Level >= monitor.Hold:
				v.Status = doctor.Crit
			case d.Health == monitor.HealthUnknown:
				v.Status, v.Text = doctor.Unknown, d.Reason
			case d.Level >= monitor.Degraded:
				v.Status = doctor.Warn
			}
			f.Verdicts = append(f.Verdicts, v)
			if d.Vitals != nil && d.Index >= 0 && !d.Vitals.Lost {
				f.Links = append(f.Links, doctor.Link{Index: d.Index, Link: d.Vitals.Link, NVLinks: d.Vitals.NVLinks, Up: d.Vitals.NVLinksUp})
			}
		}
		for _, p := range h.Probes {
			f.Probes = append(f.Probes, doctor.Probe{Name: p.Name, Needs: p.Needs, On: p.On, Reason: p.Reason, Hits: p.Hits, Lost: p.Lost, PerRun: p.PerRun.Seconds(), Cost: p.Cost})
		}
		for _, s := range h.Sources {
			f.Sources = append(f.Sources, doctor.Source{Name: s.Name, Why: s.Why, Up: s.Up, Lost: s.Lost})
		}
	}, nil
}

func gatherMPS(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	n, err := p.client.Node(ctx)
	if err != nil {
		return nil, err
	}
	program, missing := mps.Find(n.Root)
	state, err := p.client.State(ctx)
	if err != nil {
		return nil, err
	}
	return func(f *doctor.Facts) {
		f.MPSProgram = program
		if missing != nil {
			f.NoMPS = missing.Error()
		}
		for _, g := range state.GPUs {
			switch {
			case g.MPS != nil && g.MPS.Trouble != "":
				f.MPSTrouble = cmp.Or(f.MPSTrouble, fmt.Sprintf("GPU %d: %s", g.Index, g.MPS.Trouble))
			case g.MPS != nil:
				f.MPSDaemons++
			}
		}
	}, nil
}

func gatherKubernetes(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	n, err := p.client.Node(ctx)
	if err != nil {
		return nil, err
	}
	k := n.Kubernetes
	if k == nil {
		return func(f *doctor.Facts) { f.OffCluster = true }, nil
	}
	_, unread := os.ReadDir(k.CDIDir)
	return func(f *doctor.Facts) {
		f.NodeName, f.NotReady, f.CDIDir, f.Specs, f.MissingSpecs, f.Published, f.Expected = k.NodeName, k.NotReady, k.CDIDir, len(k.Specs), k.Missing, k.Published, k.Expected
		if unread != nil {
			f.CDIError = unread.Error()
		}
	}, nil
}

// selfTestMemory is the slice of the self-test: room for a context on every card.
const selfTestMemory = 2 * node.GiB

// gatherSelfTest runs the hog in a small slice: it asks for one chunk too many and must be refused there.
func gatherSelfTest(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	n, err := p.client.Node(ctx)
	if err != nil {
		return nil, err
	}
	skipped := func(format string, a ...any) (func(*doctor.Facts), error) {
		return func(f *doctor.Facts) { f.TestSkipped = fmt.Sprintf(format, a...) }, nil
	}
	if len(n.GPUs) == 0 {
		return skipped("no GPU on this node")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	hog := filepath.Join(n.LibDir, "..", "..", "libexec", "kerf", "hog")
	if _, err := os.Stat(hog); err != nil {
		return skipped("%s is not installed", hog)
	}
	out, err := exec.CommandContext(ctx, self, "--socket", p.socket, "run", "--memory", selfTestMemory.Exact(), "--", hog, "--limit", selfTestMemory.Exact(), "--class", "linear").CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := lines[len(lines)-1]
	var exit *exec.ExitError
	switch {
	case err == nil:
		return func(f *doctor.Facts) { f.TestSlice = selfTestMemory }, nil
	case errors.As(err, &exit) && exit.ExitCode() == exitRun && strings.Contains(last, "ask for less"):
		return skipped("no %s are free for the test", selfTestMemory)
	}
	return func(f *doctor.Facts) { f.TestFailed = last }, nil
}
