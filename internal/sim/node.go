package sim

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Node is an open simulated node.
type Node struct {
	Root string

	ctlFile *os.File // stays open: see the package comment
	ctl     *simCtl
	gpus    []*simGpu
	maps    [][]byte
}

// Open opens the simulated node at root.
func Open(root string) (*Node, error) {
	n := &Node{Root: root}
	if err := n.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open simulated node: %w", err), n.Close())
	}
	return n, nil
}

func (n *Node) open() error {
	if _, err := os.Stat(filepath.Join(n.Root, markFile)); err != nil {
		return fmt.Errorf("%s: no simulated node is there; start one with: kerf sim start h200x8 --root %s", n.Root, n.Root)
	}
	ctl := filepath.Join(n.Root, "dev/nvidiactl")
	f, err := os.OpenFile(ctl, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a machine without a driver
	}
	if err != nil {
		return err
	}
	n.ctlFile = f
	if n.ctl, err = mapped[simCtl](n, f); err != nil {
		return err
	}
	if n.ctl.Magic != ctlMagic || n.ctl.Version != stateVersion {
		return fmt.Errorf("%s: of another version of Kerf (%d, not %d); stop that node and start it again", ctl, n.ctl.Version, stateVersion)
	}
	for i := range int(min(n.ctl.GpuCount, maxGPUs)) {
		if err := n.openGPU(i); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) openGPU(i int) error {
	f, err := os.OpenFile(filepath.Join(n.Root, "dev", fmt.Sprintf("nvidia%d", i)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() // the mapping stays
	g, err := mapped[simGpu](n, f)
	if err != nil {
		return err
	}
	n.gpus = append(n.gpus, g)
	return nil
}

func mapped[T simCtl | simGpu](n *Node, f *os.File) (*T, error) {
	size := int(unsafe.Sizeof(*new(T)))
	if info, err := f.Stat(); err != nil || info.Size() < int64(size) {
		return nil, fmt.Errorf("%s: shorter than %d bytes; stop that node and start it again", f.Name(), size)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	n.maps = append(n.maps, b)
	return (*T)(unsafe.Pointer(unsafe.SliceData(b))), nil
}

// Close lets go of the node, which stays.
func (n *Node) Close() error {
	var errs []error
	for _, b := range n.maps {
		errs = append(errs, syscall.Munmap(b))
	}
	if n.ctlFile != nil {
		errs = append(errs, n.ctlFile.Close())
	}
	n.ctlFile, n.ctl, n.gpus, n.maps = nil, nil, nil, nil
	return errors.Join(errs...)
}

// Remove deletes the node and closes n. Where processes still use it, it
// refuses unless forced: they would go on with memory of a node that is gone.
func (n *Node) Remove(force bool) error {
	if pids := n.users(); len(pids) > 0 && !force {
		return fmt.Errorf("remove simulated node %s: processes %v use it; end them first, or use --force", n.Root, pids)
	}
	root := n.Root
	if err := n.Close(); err != nil {
		return fmt.Errorf("remove simulated node: %w", err)
	}
	// The mark goes last, so that what is left of an interrupted removal can
	// still be removed.
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("remove simulated node: %w", err)
	}
	for _, e := range entries {
		if e.Name() == markFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return fmt.Errorf("remove simulated node: %w", err)
		}
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("remove simulated node: %w", err)
	}
	return nil
}

// SetZeroCost turns the simulated driver into a null driver, which checks work
// but does none and never waits, or back. Processes started later see it.
func (n *Node) SetZeroCost(on bool) {
	if n.ctl == nil {
		return
	}
	if on {
		n.ctl.Flags |= flagZeroCost
	} else {
		n.ctl.Flags &^= flagZeroCost
	}
}

// users is the pids of the processes that hold a slot.
func (n *Node) users() []int {
	var pids []int
	for slot := range maxProcs {
		if pid := n.owner(slot); pid != 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// ofdGetlk is F_OFD_GETLK, which unlike F_GETLK also sees this process's locks.
const ofdGetlk = 36

// owner is the pid, in our pid namespace, of the living owner of a slot; 0 for
// none.
func (n *Node) owner(slot int) int {
	if n.ctl == nil || n.ctl.Proc[slot].Pid == 0 {
		return 0
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: slotLockBase + int64(slot), Len: 1}
	if err := syscall.FcntlFlock(n.ctlFile.Fd(), ofdGetlk, &lock); err != nil || lock.Type == syscall.F_UNLCK {
		return 0
	}
	return int(lock.Pid)
}

// MadeFrom reports whether the node was made from this very profile.
func (n *Node) MadeFrom(p *Profile) bool {
	text, err := os.ReadFile(filepath.Join(n.Root, "profile.yaml"))
	return err == nil && string(text) == string(p.text)
}

// Status is the state of a simulated node, for people and scripts.
type Status struct {
	Schema    string      `json:"schema"` // kerf.sim/v1
	Simulated bool        `json:"simulated"`
	Root      string      `json:"root"`
	Driver    string      `json:"driver,omitempty"`
	ZeroCost  bool        `json:"zeroCost,omitempty"`
	GPUs      []GPUStatus `json:"gpus"`
}

// GPUStatus is the state of one simulated GPU.
type GPUStatus struct {
	Index     int             `json:"index"`
	UUID      node.UUID       `json:"uuid"`
	Name      string          `json:"name"`
	Memory    node.Bytes      `json:"memory"`
	Used      node.Bytes      `json:"used"` // by living processes
	Lost      bool            `json:"lost,omitempty"`
	Hung      bool            `json:"hung,omitempty"`
	Recovery  string          `json:"recovery,omitempty"`
	Events    uint64          `json:"events"`        // injected or raised since the start
	MIG       []node.MIGUUID  `json:"mig,omitempty"` // devices that it is cut into
	Processes []ProcessStatus `json:"processes,omitempty"`
}

// ProcessStatus is one living process on a GPU.
type ProcessStatus struct {
	PID    int        `json:"pid"`
	Name   string     `json:"name"`
	Used   node.Bytes `json:"used"`
	BusyMS uint64     `json:"busyMs"` // of the compute engine
}

// Status reads the node's state.
func (n *Node) Status() Status {
	s := Status{Schema: "kerf.sim/v1", Simulated: true, Root: n.Root, GPUs: []GPUStatus{}}
	if n.ctl == nil {
		return s
	}
	s.Driver = cString(n.ctl.DriverVersion[:])
	s.ZeroCost = n.ctl.Flags&flagZeroCost != 0
	owners := make([]int, maxProcs)
	for slot := range owners {
		owners[slot] = n.owner(slot)
	}
	for i, g := range n.gpus {
		s.GPUs = append(s.GPUs, n.gpuStatus(i, g, owners))
	}
	return s
}

func (n *Node) gpuStatus(i int, g *simGpu, owners []int) GPUStatus {
	st := GPUStatus{
		Index: i, UUID: g.Facts.Uuid, Name: cString(g.Facts.Name[:]), Memory: node.Bytes(g.Facts.MemoryTotal),
		Lost: load32(&g.Health.Faults)&faultLost != 0, Hung: load32(&g.Health.Faults)&faultHang != 0,
		Events: load64(&g.EventSeq),
	}
	if r := node.RecoveryAction(load32(&g.Health.RecoveryAction)); r != node.RecoveryNone {
		st.Recovery = r.String()
	}
	for j := range g.Mig {
		if in := &g.Mig[j]; load32(&in.Used) != 0 && load32(&in.Compute) != 0 {
			st.MIG = append(st.MIG, in.Uuid)
		}
	}
	for slot, pid := range owners {
		use := &g.Use[slot]
		if pid == 0 || load32(&use.Generation) != load32(&n.ctl.Proc[slot].Generation) || load64(&use.Used) == 0 && use.Contexts == 0 {
			continue // free, a dead owner's numbers, or a process without a context here
		}
		st.Used += node.Bytes(load64(&use.Used))
		st.Processes = append(st.Processes, ProcessStatus{
			PID: pid, Name: cString(n.ctl.Proc[slot].Comm[:]), Used: node.Bytes(load64(&use.Used)), BusyMS: load64(&use.BusyComputeNs) / 1e6,
		})
	}
	return st
}

// Run is a kernel on an engine, or the piece of one that was done in one go.
type Run struct {
	PID   int           `json:"pid"`   // of a process that lives still; 0: it does not
	Start time.Duration `json:"start"` // in engine time, ns
	End   time.Duration `json:"end"`
	Rate  float64       `json:"rate"` // of the engine's speed
}

// Runs is the log of a GPU's engines: the last kernels that have ended, of all its processes. Where two overlap, they ran at once.
func (n *Node) Runs(gpu int) (runs []Run) {
	g := n.gpus[gpu]
	for i := range g.Run {
		r := &g.Run[i]
		seq := load64(&r.Seq)
		run := Run{PID: n.owner(int(r.Slot % maxProcs)), Start: time.Duration(load64(&r.Start)), End: time.Duration(load64(&r.End)), Rate: float64(load32(&r.Rate)) / 1000}
		if seq != 0 && load64(&r.Seq) == seq { // else it is being written
			runs = append(runs, run)
		}
	}
	slices.SortFunc(runs, func(a, b Run) int { return cmp.Compare(a.Start, b.Start) })
	return runs
}

// Overlap is for how long, of the time that the log covers, kernels of both processes ran at once.
func Overlap(runs []Run, a, b int) (both time.Duration) {
	for _, x := range runs {
		for _, y := range runs {
			if x.PID == a && y.PID == b && x.Start < y.End && y.Start < x.End {
				both += min(x.End, y.End) - max(x.Start, y.Start)
			}
		}
	}
	return both
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
