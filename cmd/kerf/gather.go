package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/monitor/doctor"
)

// patient is what facts are gathered from.
type patient struct {
	client  *control.Client
	socket  string
	timeout time.Duration // for each section; 0: its own
	node    control.Node
}

// gatherer gathers one section. It gets a copy of what is known so far and returns what it adds: one that hangs is left behind, and
// must not write then.
type gatherer struct {
	section doctor.Section
	within  time.Duration
	gather  func(ctx context.Context, p patient) (add func(*doctor.Facts), err error)
}

// gatherers are all, the daemon first: the others use what it says.
var gatherers = []gatherer{
	{doctor.Daemon, 5 * time.Second, gatherDaemon},
	{doctor.State, 5 * time.Second, gatherState},
	{doctor.Health, 5 * time.Second, gatherHealth},
	{doctor.Files, 2 * time.Second, gatherFiles},
	{doctor.Devices, 2 * time.Second, gatherDevices},
	{doctor.MPS, 5 * time.Second, gatherMPS},
	{doctor.Kubernetes, 2 * time.Second, gatherKubernetes},
	{doctor.Storage, 5 * time.Second, gatherStorage},
	{doctor.Kernel, 2 * time.Second, gatherKernel},
	{doctor.SelfTest, 60 * time.Second, gatherSelfTest},
}

// gather gathers sections side by side, each under its own deadline.
func (p *patient) gather(ctx context.Context, sections []doctor.Section) *doctor.Facts {
	f := &doctor.Facts{Failed: make(map[doctor.Section]string), Took: make(map[doctor.Section]time.Duration), Own: version.Version, Socket: p.socket, Root: "/"}
	wanted := make(map[doctor.Section]bool)
	for _, s := range sections {
		wanted[s] = true
	}
	p.run(ctx, gatherers[0], f, new(sync.Mutex)) // alone: the rest goes by it
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, g := range gatherers[1:] {
		if wanted[g.section] {
			all.Go(func() { p.run(ctx, g, f, &mu) })
		}
	}
	all.Wait()
	return f
}

func (p *patient) run(ctx context.Context, g gatherer, f *doctor.Facts, mu *sync.Mutex) {
	type answer struct {
		add func(*doctor.Facts)
		err error
	}
	within := g.within
	if p.timeout > 0 {
		within = p.timeout
	}
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	answers := make(chan answer, 1)
	copied := *p
	go func() {
		add, err := g.gather(bounded, copied)
		answers <- answer{add, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-bounded.Done():
		a.err = fmt.Errorf("no answer within %s", within)
	}
	mu.Lock()
	defer mu.Unlock()
	f.Took[g.section] = time.Since(began)
	if a.err != nil {
		f.Failed[g.section] = a.err.Error()
		return
	}
	a.add(f)
	if g.section == doctor.Daemon {
		p.node.Root, p.node.Simulated = f.Root, f.Simulated
	}
}
