package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// DefaultTracefs is where a machine has it.
const DefaultTracefs = "/sys/kernel/tracing"

// kernelBTF is where a kernel that has BTF shows it.
const kernelBTF = "/sys/kernel/btf/vmlinux"

// Config says which probes are to be on.
type Config struct {
	Tracefs string   // empty: DefaultTracefs
	Probes  []string // by name
}

// Row is one probe, and how it does.
type Row struct {
	Name   string
	Tells  string
	Needs  string
	On     bool
	Reason string // it is off
	Hits   uint64
	Lost   uint64        // events that had no room
	Runs   uint64        // of the program, while it was measured
	PerRun time.Duration // 0: not measured yet
	Cost   float64       // of one CPU
}

// Set is the probes of one machine.
type Set struct {
	maps   probesMaps
	loaded map[string]*loaded

	mu       sync.Mutex
	rows     []Row // without what is counted
	measured time.Duration
}

// loaded is a probe that is on.
type loaded struct {
	program *ebpf.Program
	event   int // descriptor
}

// Open switches probes on. It does not fail: a probe that cannot be on says why in its row. The caller closes.
func Open(c Config) *Set {
	if c.Tracefs == "" {
		c.Tracefs = DefaultTracefs
	}
	s := &Set{loaded: make(map[string]*loaded)}
	err := s.prepare(len(c.Probes) > 0)
	for _, p := range table {
		row := Row{Name: p.name, Tells: p.tells, Needs: needs(p)}
		switch on, off := slices.Contains(c.Probes, p.name), err; {
		case !on:
			row.Reason = "switched off"
		case off == nil:
			off = s.load(p, c.Tracefs)
			fallthrough
		default:
			row.On, row.Reason = off == nil, why(off)
		}
		s.rows = append(s.rows, row)
	}
	return s
}

// prepare makes the maps that all probes share.
func (s *Set) prepare(wanted bool) error {
	if !wanted {
		return nil
	}
	_ = rlimit.RemoveMemlock() // for kernels before 5.11; where it is not allowed and needed, the maps say so
	spec, err := loadProbes()
	if err != nil {
		return err
	}
	spec.Programs, spec.Variables = nil, nil
	if err := spec.LoadAndAssign(&s.maps, nil); err != nil {
		return fmt.Errorf("make maps: %w", err)
	}
	return nil
}

// load loads one probe's program, and attaches it.
func (s *Set) load(p probe, tracefs string) error {
	point, err := find(tracefs, p.points)
	if err != nil {
		return err
	}
	at, err := locate(point, p.fields)
	if err != nil {
		return err
	}
	spec, err := loadProbes()
	if err != nil {
		return err
	}
	for variable, offset := range at {
		if err := spec.Variables[variable].Set(offset); err != nil {
			return err
		}
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{p.program: spec.Programs[p.program]}
	shared := map[string]*ebpf.Map{probesMapDisks: s.maps.Disks, probesMapEvents: s.maps.Events, probesMapStats: s.maps.Stats, probesMapWatched: s.maps.Watched}
	all, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		err = fmt.Errorf("load: %w", err)
		if _, missing := os.Stat(kernelBTF); p.btf && missing != nil {
			err = fmt.Errorf("%w: %w", errNoBTF, err)
		}
		return err
	}
	defer all.Close()
	program := all.DetachProgram(p.program)
	event, err := attach(point.id, program.FD())
	if err != nil {
		return errors.Join(err, program.Close())
	}
	s.loaded[p.name] = &loaded{program, event}
	return nil
}

// Close switches all probes off.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range s.loaded {
		errs = append(errs, unix.Close(l.event), l.program.Close())
	}
	clear(s.loaded)
	if s.maps.Events != nil {
		errs = append(errs, s.maps.Close())
		s.maps = probesMaps{}
	}
	return errors.Join(errs...)
}

// On reports whether any probe is.
func (s *Set) On() bool { return len(s.loaded) > 0 }

// Watch says that a process has a GPU: how it ends is told. A crash of one that was not watched before it happened is not.
func (s *Set) Watch(pid int) error {
	if s.maps.Watched == nil {
		return nil
	}
	return s.maps.Watched.Put(uint32(pid), uint8(1)) //nolint:gosec // G115: a pid
}

// Forget ends that.
func (s *Set) Forget(pid int) error {
	if s.maps.Watched == nil {
		return nil
	}
	if err := s.maps.Watched.Delete(uint32(pid)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { //nolint:gosec // G115: a pid
		return err
	}
	return nil
}

// How often, and for how long, cost is measured.
const (
	measureEvery = time.Minute
	measureFor   = time.Second
)

// Run hands on events until the context ends, from one goroutine. Without a probe it only waits.
func (s *Set) Run(ctx context.Context, to func(Event), report func(error)) error {
	if !s.On() {
		<-ctx.Done()
		return nil
	}
	reader, err := ringbuf.NewReader(s.maps.Events)
	if err != nil {
		return fmt.Errorf("probes: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = reader.Close() })
	defer stop()
	var measuring sync.WaitGroup
	measuring.Go(func() { s.measureOften(ctx, report) })
	defer measuring.Wait()
	var record ringbuf.Record
	for {
		err := reader.ReadInto(&record)
		switch {
		case errors.Is(err, os.ErrClosed) && ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("probes: %w", err)
		}
		e, ok, err := parse(record.RawSample)
		if err != nil {
			report(err)
		} else if ok {
			to(e)
		}
	}
}

func (s *Set) measureOften(ctx context.Context, report func(error)) {
	for {
		end, err := s.measure()
		if err != nil { // CAP_SYS_ADMIN, or a kernel before 5.8; rows say that nothing is measured
			report(fmt.Errorf("what probes cost cannot be measured: %w", err))
			return
		}
		alive := pause(ctx, measureFor)
		end()
		if !alive || !pause(ctx, measureEvery-measureFor) {
			return
		}
	}
}

// pause waits; it is false once the context has ended.
func pause(ctx context.Context, for_ time.Duration) bool {
	timer := time.NewTimer(for_)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// measure has the kernel measure what programs cost, until end.
func (s *Set) measure() (end func(), err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	return func() {
		_ = stats.Close()
		s.mu.Lock()
		s.measured += time.Since(begun)
		s.mu.Unlock()
	}, nil
}

// Rows is the table with what was counted up to now.
func (s *Set) Rows() []Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := slices.Clone(s.rows)
	for i := range rows {
		l := s.loaded[rows[i].Name]
		if l == nil {
			continue
		}
		var counted []probesStat // by CPU
		if err := s.maps.Stats.Lookup(uint32(table[i].kind), &counted); err == nil {
			for _, c := range counted {
				rows[i].Hits += c.Hits
				rows[i].Lost += c.Lost
			}
		}
		if stats, err := l.program.Stats(); err == nil && stats.RunCount > 0 && s.measured > 0 {
			rows[i].Runs, rows[i].PerRun = stats.RunCount, stats.Runtime/time.Duration(stats.RunCount) //nolint:gosec // G115: a count
			rows[i].Cost = stats.Runtime.Seconds() / s.measured.Seconds()
		}
	}
	return rows
}
