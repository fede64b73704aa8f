package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/tenant"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/internal/sim"
	"github.com/kerf-gpu/kerf/internal/sysfs"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// refreshEvery is how often faults are looked for. What GPUs there are does not change while kerfd runs.
const refreshEvery = 5 * time.Second

// askWithin bounds a question to NVML that somebody waits for.
const askWithin = 2 * time.Second

// hardware is the node that kerfd serves, real or simulated: the same code, under another root.
type hardware struct {
	root string
	sim  *sim.Node     // nil on real hardware
	lib  *nvml.Library // nil where there is no driver
	host sysfs.Host
	log  *slog.Logger

	cards    []CardConfig
	pool     node.Bytes // of host memory, for what over-committed cards swap out
	verdicts verdicts   // of the monitor; nil: nobody watches
	changed  notice     // what the GPUs say of themselves, or what is granted of them

	mu       sync.Mutex
	node     node.Node
	capacity map[node.UUID]node.Bytes // that can be granted
	silent   map[int]string           // why a GPU's reading is an old one, where it is
	turns    map[string]chan struct{}
}

// openHardware makes the simulated node if one is asked for, and reads what is there. A machine without a driver is no error. held
// says whether somebody has a share of what was there before.
func openHardware(c Config, held bool, log *slog.Logger) (*hardware, error) {
	h := &hardware{root: c.Root, log: log, cards: c.Cards, capacity: make(map[node.UUID]node.Bytes), silent: make(map[int]string), turns: make(map[string]chan struct{})}
	if c.Simulate.Profile != "" {
		simulated, err := openSim(c, held)
		if err != nil {
			return nil, err
		}
		h.sim, h.root = simulated, simulated.Root
	}
	var err error
	if h.pool, err = swapPool(c.Swap); err != nil {
		return nil, errors.Join(usageError{err}, h.close(false))
	}
	h.host = sysfs.New(h.root)
	lib, err := nvml.Open(h.root)
	switch {
	case errors.Is(err, nvml.ErrNoDriver):
		log.Warn("no NVIDIA driver, so no GPU can be granted", "root", h.root, "reason", err)
	case err != nil:
		return nil, errors.Join(err, h.close(false))
	default:
		h.lib = lib
	}
	if err := h.read(); err != nil {
		return nil, errors.Join(err, h.close(false))
	}
	h.warnOvercommit()
	return h, nil
}

// openSim takes over the simulated node of an earlier kerfd, so that its tenants live on, or makes a new one. One that cannot be
// taken over, of another profile or another version of Kerf, stands in the way only while somebody holds a share of it.
func openSim(c Config, held bool) (*sim.Node, error) {
	profile, err := sim.LoadProfile(c.Simulate.Profile)
	if err != nil {
		return nil, err
	}
	simulated, err := takeOverSim(c.simRoot(), profile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if held {
			return nil, err
		}
		if err := os.RemoveAll(c.simRoot()); err != nil {
			return nil, fmt.Errorf("make the simulated node anew: %w", err)
		}
	}
	if err != nil {
		if simulated, err = sim.Create(c.simRoot(), profile, filepath.Join(c.LibDir, "sim")); err != nil {
			return nil, err
		}
	}
	simulated.SetZeroCost(c.Simulate.ZeroCost)
	return simulated, nil
}

func takeOverSim(root string, profile *sim.Profile) (*sim.Node, error) {
	if _, err := os.Stat(root); err != nil {
		return nil, err
	}
	simulated, err := sim.Open(root)
	if err != nil {
		return nil, err
	}
	if !simulated.MadeFrom(profile) {
		return nil, errors.Join(fmt.Errorf("simulate %s: %s holds a node of another profile, of which somebody has a share (kerf top, with the kerfd that served it); "+
			"serve that one, or end its shares first", profile.Name, root), simulated.Close())
	}
	return simulated, nil
}

// close ends the use of the hardware; the simulated node goes too if it is no longer needed.
func (h *hardware) close(removeSim bool) error {
	var errs []error
	if h.lib != nil {
		errs = append(errs, h.lib.Close())
	}
	if h.sim != nil {
		if removeSim {
			errs = append(errs, h.sim.Remove(true))
		} else {
			errs = append(errs, h.sim.Close())
		}
	}
	return errors.Join(errs...)
}

// Run looks for faults until the context ends.
func (h *hardware) Run(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := h.read(); err != nil {
			h.log.Warn("cannot read the node", "error", err)
		}
	}
}

// read looks at everything. A GPU that does not answer keeps its last reading and is marked; it holds up nobody for long.
func (h *hardware) read() error {
	n := node.Node{Simulated: h.sim != nil}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	var gpus []reading
	if h.lib != nil {
		var err error
		n.Driver, err = h.lib.Driver()
		note(err)
		count, err := h.lib.Count()
		note(err)
		n.Simulated = h.lib.Simulated()
		gpus = h.readGPUs(count)
	}
	var err error
	n.NICs, err = h.host.NICs()
	note(err)
	n.Disks, err = h.host.Disks()
	note(err)
	n.NUMA, err = h.host.NUMA()
	note(err)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("read node: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n.GPUs = h.node.GPUs
	h.node = n
	h.update(gpus)
	return nil
}

// reading is what one GPU said.
type reading struct {
	gpu      node.GPU
	capacity node.Bytes // 0: it did not say
	err      error      // it did not answer
}

// readGPUs asks all GPUs at once, so that several that hang cost no more time than one.
func (h *hardware) readGPUs(count int) []reading {
	readings := make([]reading, count)
	var wait sync.WaitGroup
	for i := range readings {
		wait.Go(func() { readings[i] = h.readGPU(i) })
	}
	wait.Wait()
	return readings
}

func (h *hardware) readGPU(index int) (r reading) {
	r.gpu.Index = index
	answer, err := bounded(h, fmt.Sprint("index ", index), func() (reading, error) {
		gpu, err := h.lib.GPU(index)
		if err != nil {
			return reading{}, err
		}
		one := []node.GPU{gpu}
		h.host.Locate(one)
		memory, err := h.lib.Memory(gpu.UUID)
		if err != nil { // lost: it keeps what it had, so that the grants on it still add up
			memory.Total, memory.Reserved = 0, 0
		}
		return reading{gpu: one[0], capacity: memory.Total - memory.Reserved}, nil
	})
	if err != nil {
		r.err = err
		return r
	}
	return answer
}

// update takes readings over. The caller has the lock.
func (h *hardware) update(readings []reading) {
	gpus := slices.Clone(h.node.GPUs)
	silent := maps.Clone(h.silent)
	for _, r := range readings {
		i := r.gpu.Index
		for len(gpus) <= i {
			gpus = append(gpus, node.GPU{Index: len(gpus), NUMA: node.UnknownNUMA, Fault: node.Fault{Lost: true}})
		}
		if r.err != nil {
			if silent[i] == "" {
				h.log.Warn("a GPU does not answer", "gpu", i, "error", r.err)
			}
			silent[i] = r.err.Error()
			continue
		}
		delete(silent, i)
		gpus[i] = r.gpu
		if r.capacity > 0 {
			h.capacity[r.gpu.UUID] = r.capacity
		}
	}
	if !reflect.DeepEqual(h.node.GPUs, gpus) || !maps.Equal(h.silent, silent) {
		h.changed.tell()
	}
	h.node.GPUs, h.silent = gpus, silent
}

// refresh reads one GPU anew, after it was divided.
func (h *hardware) refresh(gpu node.UUID) {
	for _, known := range h.Node().GPUs {
		if known.UUID == gpu {
			r := h.readGPU(known.Index)
			h.mu.Lock()
			h.update([]reading{r})
			h.mu.Unlock()
		}
	}
}

// Node is the last reading.
func (h *hardware) Node() node.Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node
}

// shareGPUs are the GPUs as the policy sees them. Foreign holds every MIG instance there is: which of them are Kerf's, the ledger
// knows.
func (h *hardware) shareGPUs() []share.GPU {
	h.mu.Lock()
	defer h.mu.Unlock()
	gpus := make([]share.GPU, 0, len(h.node.GPUs))
	noMPS := h.noMPS()
	for _, g := range h.node.GPUs {
		if g.UUID.IsZero() { // lost since before kerfd started: it has no name to be granted by
			continue
		}
		g, refuse := h.judged(g)
		gpu := divide(h.cards, g, h.capacity[g.UUID])
		gpu.Fault = cmp.Or(refuse, gpu.Fault)
		if why := h.silent[g.Index]; why != "" {
			gpu.Fault = cmp.Or(gpu.Fault, why)
		}
		gpu.Foreign, gpu.NoMPS = placements(g.MIG), noMPSOn(g, noMPS)
		gpus = append(gpus, gpu)
	}
	if h.sim == nil { // a simulated card's memory is this machine's own, and most of it is never touched
		limitOvercommit(gpus, h.pool)
	}
	return gpus
}

// cardMemory is what of a card's memory can be granted.
func (h *hardware) cardMemory(gpu node.UUID) node.Bytes {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.capacity[gpu]
}

// createMIG makes a placement's instance, or finds it.
func (h *hardware) createMIG(d share.Device) (node.MIGUUID, error) {
	if h.lib == nil {
		return node.MIGUUID{}, nvml.ErrNoDriver
	}
	instance, err := ask(h, d.UUID, func(gpu node.UUID) (node.MIGInstance, error) {
		return h.lib.CreateMIG(gpu, d.Placement.Profile, d.Placement.Start)
	})
	h.refresh(d.UUID)
	return instance.UUID, err
}

// destroyMIG takes a placement's instance away; it is no error that there is none.
func (h *hardware) destroyMIG(d share.Device) error {
	if h.lib == nil {
		return nvml.ErrNoDriver
	}
	_, err := ask(h, d.UUID, func(gpu node.UUID) (struct{}, error) {
		return struct{}{}, h.lib.DestroyMIG(gpu, d.Placement.Profile, d.Placement.Start)
	})
	h.refresh(d.UUID)
	return err
}

// ProcessMemory says how many bytes each process has on a GPU, for the arbiter.
func (h *hardware) ProcessMemory(gpu node.UUID) (map[int]node.Bytes, error) {
	if h.lib == nil { // tenants of a driver that is being replaced
		return nil, nvml.ErrNoDriver
	}
	processes, err := ask(h, gpu, h.lib.Processes)
	if err != nil {
		return nil, err
	}
	used := make(map[int]node.Bytes)
	for _, p := range processes {
		if p.Unknown { // 0 bytes would make contexts free
			used[p.PID] = arbiter.UnknownBytes
		} else if used[p.PID] != arbiter.UnknownBytes {
			used[p.PID] += p.Bytes
		}
	}
	return used, nil
}

// utilization is NVML's: percent of the last moment in which any kernel ran.
func (h *hardware) utilization(gpu node.UUID) (nvml.Utilization, error) {
	if h.lib == nil {
		return nvml.Utilization{}, nvml.ErrNoDriver
	}
	return ask(h, gpu, h.lib.Utilization)
}

// ask asks NVML about a GPU, and does not wait for long.
func ask[T any](h *hardware, gpu node.UUID, question func(node.UUID) (T, error)) (T, error) {
	return bounded(h, gpu.String(), func() (T, error) { return question(gpu) })
}

// bounded does not wait for long: a call into a hung GPU cannot be ended. The goroutine stays with it, and nobody else asks under that
// key before it comes back, so there is at most one a key.
func bounded[T any](h *hardware, key string, question func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	late := time.After(askWithin)
	hung := fmt.Errorf("NVML has not answered for %s; the GPU hangs", askWithin)
	turn := h.turn(key)
	select {
	case turn <- struct{}{}:
	case <-late:
		return *new(T), hung
	}
	answers := make(chan answer, 1)
	go func() {
		value, err := question()
		<-turn
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-late:
		return *new(T), hung
	}
}

// turn holds whoever asks under a key.
func (h *hardware) turn(key string) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turns[key] == nil {
		h.turns[key] = make(chan struct{}, 1)
	}
	return h.turns[key]
}

// driver is where the files of the driver are, and the device nodes of a grant and those of others, as kerfd sees them.
func (h *hardware) driver(grant share.Grant) (d control.Driver, err error) {
	if d.CUDA, err = h.library("libcuda.so.1"); err != nil {
		return d, err
	}
	if d.NVML, err = h.library("libnvidia-ml.so.1"); err != nil {
		return d, err
	}
	granted := make(map[node.UUID]bool)
	for _, gpu := range h.Node().GPUs {
		path := filepath.Join(h.root, gpu.DeviceNode)
		i := slices.IndexFunc(grant.Devices, func(d share.Device) bool { return d.UUID == gpu.UUID })
		if i < 0 {
			d.Others = append(d.Others, path)
			continue
		}
		capabilities, err := h.capabilities(gpu, grant.Devices[i])
		if err != nil {
			return d, err
		}
		granted[gpu.UUID] = true
		d.Granted = append(append(d.Granted, path), capabilities...)
	}
	if len(granted) < len(grant.Devices) {
		return d, errors.New("a granted GPU is not on this node any more (lost, or taken out); kerf doctor says which is. Delete the pod, so that its claim is given back")
	}
	for _, name := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"} {
		if path := filepath.Join(h.root, "dev", name); exists(path) {
			d.Control = append(d.Control, path)
		}
	}
	return d, nil
}

// capabilities are the device nodes by which a process may use a MIG instance; none for a card that is not so divided.
func (h *hardware) capabilities(gpu node.GPU, d share.Device) (paths []string, err error) {
	if d.Placement == nil {
		return nil, nil
	}
	i := slices.IndexFunc(gpu.MIG.Instances, func(in node.MIGInstance) bool { return in.UUID == d.MIG })
	if i < 0 {
		return nil, fmt.Errorf("MIG instance %s (%s) is not on GPU %d any more; delete the pod, so that its claim is given back", d.MIG, d.Placement, gpu.Index)
	}
	names, err := nvml.InstanceNodes(h.root, gpu, gpu.MIG.Instances[i])
	for _, name := range names {
		paths = append(paths, filepath.Join(h.root, name))
	}
	return paths, err
}

// limitsMemory says whether the driver can limit memory by cgroup itself.
func (h *hardware) limitsMemory() bool { return h.lib != nil && h.lib.MemoryLimitsSupported() }

// limitMemory sets the driver's own limit for all processes of a cgroup together.
func (h *hardware) limitMemory(d share.Device, cgroup string) error {
	_, err := ask(h, d.UUID, func(gpu node.UUID) (struct{}, error) {
		return struct{}{}, h.lib.LimitMemory(gpu, filepath.Join("/sys/fs/cgroup", cgroup), d.Memory, d.HardLimit())
	})
	return err
}

// library is the real driver's file, which a tenant's shim stands in front of.
func (h *hardware) library(name string) (string, error) {
	path, err := nvml.FindLibrary(h.root, name)
	if err != nil {
		return "", err
	}
	if filepath.IsAbs(path) {
		return path, nil
	}
	if found := tenant.FindLibrary(name); found != "" {
		return found, nil
	}
	return "", fmt.Errorf("%s: not under %s nor in the loader's cache; install the NVIDIA driver's libraries, or set root in kerfd's configuration", name, h.root)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
