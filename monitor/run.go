package monitor

import (
	"context"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/source"
)

// lineFirst is how long NVML's word of an Xid waits for the kernel's line, which names the process.
const lineFirst = 250 * time.Millisecond

const (
	flushEvery = 5 * time.Second
	sysfsEvery = 15 * time.Second
)

// Run watches until the context ends. First comes who listens, then the state, then what the kernel log still has of this boot: so no
// fault falls between.
func (m *Monitor) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	if m.config.Events != nil {
		parts.Go(func() {
			take := func(e source.Event) {
				now := m.config.Now()
				if e.Kind != source.EventXid || !m.isUp(sourceKmsg) {
					m.event(e, now)
					return
				}
				parts.Go(func() { // the kernel's line says more of the same, and comes first if it comes at all
					select {
					case <-ctx.Done():
					case <-time.After(lineFirst):
					}
					m.event(e, now)
				})
			}
			source.Events(ctx, m.config.Events, take, func(err error) { m.up(sourceEvents, err) })
		})
	}
	if m.config.Prober != nil {
		for _, d := range m.config.GPUs {
			uuid, err := node.ParseUUID(d.ID)
			if err != nil {
				return err
			}
			parts.Go(func() { m.config.Poll.Run(ctx, uuid, m.config.Prober, m.wake[d.ID], m.polled) })
		}
	}
	if m.config.Kmsg != "" {
		parts.Go(func() { _ = source.Kmsg{Path: m.config.Kmsg}.Run(ctx, m) }) // its errors are told to Up
	}
	if m.config.Root != "" {
		parts.Go(func() { every(ctx, sysfsEvery, m.lookAtSysfs) })
	}
	parts.Go(func() { every(ctx, flushEvery, func() { m.calm(); m.report(m.flush()) }) })
	parts.Wait()
	return nil
}

func every(ctx context.Context, period time.Duration, do func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		do()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// polled keeps how the poll as a source does: it is up while any GPU answers.
func (m *Monitor) polled(r source.Reading) bool {
	if r.Err == nil {
		m.up(sourcePoll, nil)
	} else if m.allSilent(r.GPU) {
		m.up(sourcePoll, r.Err)
	}
	return m.reading(r)
}

// allSilent reports whether no other GPU answered lately.
func (m *Monitor) allSilent(but node.UUID) bool {
	for _, w := range m.gpus() {
		m.mu.Lock()
		silent := w.state.silent != "" || !w.state.sampled
		m.mu.Unlock()
		if w.ID != but.String() && !silent {
			return false
		}
	}
	return true
}

// lookAtSysfs reads ports and disks.
func (m *Monitor) lookAtSysfs() {
	ports, err := source.Ports(m.config.Root)
	if err == nil {
		for _, p := range ports {
			m.lookAtPort(p)
		}
		var disks []source.Disk
		if disks, err = source.Disks(m.config.Root); err == nil {
			for _, d := range disks {
				w := m.other("disk:"+d.Name, d.Name)
				m.take(w, Fact{Kind: KindSample, Signals: diskReadings(d)}, m.config.Now())
			}
		}
	}
	m.up(sourceSysfs, err)
}

func (m *Monitor) lookAtPort(p source.Port) {
	now := m.config.Now()
	w := m.other("port:"+p.Name(), p.Name())
	m.mu.Lock()
	w.wasUp = w.wasUp || p.State == portActive
	signals := portReadings(p, w.port, now.Boot-w.last.at, w.wasUp, m.config.Thresholds)
	w.port, w.last.at, w.answer = p, now.Boot, now.Wall
	m.mu.Unlock()
	m.take(w, Fact{Kind: KindSample, Signals: signals}, now)
}

// other is a device that is no GPU, watched from when it is first seen.
func (m *Monitor) other(id, name string) *watched {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w, ok := m.devices[id]; ok {
		return w
	}
	return m.add(Device{ID: id, Index: -1, Name: name})
}
