package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// CallsConfig is for the probes on functions of libraries. They are hit at every launch, so they are only for those who ask.
type CallsConfig struct {
	CUDA   string  // the driver's libcuda: the file that containers have too; empty: not watched
	NCCL   string  // likewise libnccl
	Budget float64 // of one CPU, all calls together, above which the probes come off
}

// hook is one row of calls: functions of a library that tell of one thing. A library may lack some.
type hook struct {
	name, tells string
	library     string
	index       uint32 // of the program's counts
	symbols     []string
	enter, exit string // programs
}

const (
	libCUDA = "libcuda"
	libNCCL = "libnccl"
)

// hooks is every row of calls. A runtime may get a function by cuGetProcAddress; it is the exported one, or this probe does not see it.
var hooks = []hook{
	{"cuda-launch", "launches of kernels and graphs", libCUDA, 0, []string{"cuLaunchKernel", "cuLaunchKernel_ptsz", "cuLaunchKernelEx", "cuLaunchKernelEx_ptsz",
		"cuGraphLaunch", "cuGraphLaunch_ptsz"}, "launch", ""},
	{"cuda-sync", "waits for a GPU", libCUDA, 1, []string{"cuCtxSynchronize", "cuStreamSynchronize", "cuStreamSynchronize_ptsz", "cuEventSynchronize"}, "sync_begin", "sync_end"},
	{"nccl-collective", "collective operations", libNCCL, 2, []string{"ncclAllReduce", "ncclAllGather", "ncclReduceScatter", "ncclBroadcast", "ncclReduce"}, "collective", ""},
}

// Calls is probes on functions of libraries.
type Calls struct {
	config  CallsConfig
	objects callsObjects

	mu      sync.Mutex
	rows    []Row
	links   [][]link.Link         // by hook
	perCall map[int]time.Duration // by hook
	seen    []uint64              // hits at the last check, by hook
}

// OpenCalls switches them on. Like Open it does not fail. The caller closes.
func OpenCalls(c CallsConfig) *Calls {
	s := &Calls{config: c, links: make([][]link.Link, len(hooks)), perCall: make(map[int]time.Duration), seen: make([]uint64, len(hooks))}
	var err error
	if c.CUDA != "" || c.NCCL != "" {
		_ = rlimit.RemoveMemlock() // as in prepare
		if err = loadCallsObjects(&s.objects, nil); err != nil {
			err = fmt.Errorf("load: %w", err)
		}
	}
	for i, h := range hooks {
		path := map[string]string{libCUDA: c.CUDA, libNCCL: c.NCCL}[h.library]
		row := Row{Name: h.name, Tells: h.tells, Needs: "CAP_BPF, CAP_PERFMON, uprobes, " + h.library}
		if path == "" {
			row.Reason = "switched off"
		} else {
			off := err
			if off == nil {
				off = s.attach(i, path)
			}
			row.On, row.Reason, row.PerRun = off == nil, why(off), s.perCall[i]
		}
		s.rows = append(s.rows, row)
	}
	return s
}

// attach hooks the functions that the library has.
func (s *Calls) attach(i int, path string) error {
	h := hooks[i]
	programs := map[string]*ebpf.Program{"launch": s.objects.Launch, "sync_begin": s.objects.SyncBegin, "sync_end": s.objects.SyncEnd, "collective": s.objects.Collective}
	first, err := firstBytes(path, h.symbols)
	if err != nil {
		return err
	}
	library, err := link.OpenExecutable(path)
	if err != nil {
		return err
	}
	for _, symbol := range h.symbols {
		code, has := first[symbol]
		if !has {
			continue
		}
		s.perCall[i] = max(s.perCall[i], perCall(code))
		l, err := library.Uprobe(symbol, programs[h.enter], nil)
		if err != nil {
			return errors.Join(fmt.Errorf("hook %s: %w", symbol, err), s.detach(i))
		}
		s.links[i] = append(s.links[i], l)
		if h.exit == "" {
			continue
		}
		if l, err = library.Uretprobe(symbol, programs[h.exit], nil); err != nil {
			return errors.Join(fmt.Errorf("hook the end of %s: %w", symbol, err), s.detach(i))
		}
		s.links[i] = append(s.links[i], l)
	}
	if len(s.links[i]) == 0 {
		return fmt.Errorf("%s has none of the functions %v: %w", path, h.symbols, os.ErrNotExist)
	}
	return nil
}

func (s *Calls) detach(i int) error {
	var errs []error
	for _, l := range s.links[i] {
		errs = append(errs, l.Close())
	}
	s.links[i] = nil
	return errors.Join(errs...)
}

// Close takes all probes off.
func (s *Calls) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i := range s.links {
		errs = append(errs, s.detach(i))
	}
	if s.objects.Calls != nil {
		errs = append(errs, s.objects.Close())
		s.objects = callsObjects{}
	}
	return errors.Join(errs...)
}

// On reports whether any probe is.
func (s *Calls) On() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.links, func(l []link.Link) bool { return len(l) > 0 })
}

// costs is what so many calls took of one CPU.
func costs(calls uint64, perCall, during time.Duration) float64 {
	if during <= 0 {
		return 0
	}
	return float64(calls) * perCall.Seconds() / during.Seconds()
}

// Check holds the probes to their budget: above it all come off, and stay off until kerfd starts again. It is called every so often.
func (s *Calls) Check(since time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cost := 0.0
	for i := range hooks {
		hits := s.hits(i)
		s.rows[i].Cost = costs(hits-s.seen[i], s.perCall[i], since)
		s.seen[i] = hits
		cost += s.rows[i].Cost
	}
	if cost <= s.config.Budget {
		return nil
	}
	var errs []error
	for i := range s.rows {
		if s.rows[i].On {
			errs = append(errs, s.detach(i))
			s.rows[i].On, s.rows[i].Cost = false, 0
			s.rows[i].Reason = fmt.Sprintf("it took %.2g %% of a CPU, more than its budget of %.2g %%, and was taken off; raise monitor.probes.budget and restart kerfd", 100*cost, 100*s.config.Budget)
		}
	}
	return errors.Join(errs...)
}

// hits is how often a row's functions were called.
func (s *Calls) hits(i int) (sum uint64) {
	var counted []uint64 // by CPU
	if s.objects.Calls == nil || s.objects.callsMaps.Calls.Lookup(hooks[i].index, &counted) != nil {
		return 0
	}
	for _, n := range counted {
		sum += n
	}
	return sum
}

// Rows is the table.
func (s *Calls) Rows() []Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := slices.Clone(s.rows)
	for i := range rows {
		rows[i].Hits = s.hits(i)
	}
	return rows
}

// Waits is how long synchronizations took.
type Waits struct {
	Below []uint64      // how many took less than 2^index µs, and no less than half of that
	Sum   time.Duration // of all
}

// Waits reads them; zero where nobody looks.
func (s *Calls) Waits() (w Waits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects.callsMaps.Waits == nil {
		return w
	}
	all := make([]uint64, s.objects.callsMaps.Waits.MaxEntries())
	for i := range all {
		var counted []uint64
		if s.objects.callsMaps.Waits.Lookup(uint32(i), &counted) == nil { //nolint:gosec // G115: an index
			for _, n := range counted {
				all[i] += n
			}
		}
	}
	last := len(all) - 1
	return Waits{all[:last], time.Duration(all[last]) * time.Microsecond} //nolint:gosec // G115: a sum of waits
}

// Stalls is how long each process has waited for a GPU without launching anything, by pid, as of a moment since boot.
func (s *Calls) Stalls(now time.Duration) map[int]time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	stalls := make(map[int]time.Duration)
	if s.objects.callsMaps.Waiting == nil {
		return stalls
	}
	var thread, begun uint64
	for all := s.objects.callsMaps.Waiting.Iterate(); all.Next(&thread, &begun); {
		var last uint64
		pid := uint32(thread >> 32)
		_ = s.objects.callsMaps.Launched.Lookup(pid, &last)                           // 0: never
		if since := now - time.Duration(max(begun, last)); since > stalls[int(pid)] { //nolint:gosec // G115: the kernel's clock
			stalls[int(pid)] = since
		}
	}
	return stalls
}
