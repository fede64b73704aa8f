package nvml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// ErrInUse is wrapped where a MIG instance, or a card whose mode should change,
// has processes in it.
var ErrInUse = errors.New("in use by a process")

// CreateMIG cuts an instance of the profile (1g.18gb) from memory slice start
// on out of a card in MIG mode: a GPU instance with one compute instance of its
// whole size, which is a MIG device. It ends what an earlier call began: an
// instance that is there is returned, one without its compute instance is
// completed. What another instance takes, or the profile cannot take, is refused.
func (l *Library) CreateMIG(gpu node.UUID, profile string, start int) (node.MIGInstance, error) {
	in, err := l.createMIG(gpu, profile, start)
	if err != nil {
		return in, fmt.Errorf("create MIG instance %s at slice %d of %s: %w", profile, start, gpu, err)
	}
	return in, nil
}

func (l *Library) createMIG(gpu node.UUID, profile string, start int) (node.MIGInstance, error) {
	c, err := l.cutter(gpu, profile)
	if err != nil {
		return node.MIGInstance{}, err
	}
	gi, err := c.find(start)
	made := false
	if err == nil && gi == nil {
		gi, err = c.create(start)
		made = err == nil
	}
	if err != nil {
		return node.MIGInstance{}, err
	}
	if err := completeMIG(gi, c.info.SliceCount); err != nil {
		if made {
			err = errors.Join(err, migCheck(gi.Destroy(), "take the GPU instance back"))
		}
		return node.MIGInstance{}, err
	}
	return c.device(gi)
}

// DestroyMIG ends the instance of the profile at slice start; nil where there is
// none. It wraps ErrInUse, and changes nothing, while processes are in it.
func (l *Library) DestroyMIG(gpu node.UUID, profile string, start int) error {
	if err := l.destroyMIG(gpu, profile, start); err != nil {
		return fmt.Errorf("destroy MIG instance %s at slice %d of %s: %w", profile, start, gpu, err)
	}
	return nil
}

func (l *Library) destroyMIG(gpu node.UUID, profile string, start int) error {
	c, err := l.cutter(gpu, profile)
	if errors.Is(err, errNoMIGMode) {
		return nil // there are no instances without it
	}
	if err != nil {
		return err
	}
	gi, err := c.find(start)
	if err != nil || gi == nil {
		return err
	}
	for slot := range gonvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(slot, gonvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret != gonvml.SUCCESS {
			continue // not a profile of this instance
		}
		cis, ret := gi.GetComputeInstances(&info)
		if err := migCheck(ret, "list compute instances"); err != nil {
			return err
		}
		for _, ci := range cis {
			if err := migCheck(ci.Destroy(), "destroy compute instance"); err != nil {
				return err
			}
		}
	}
	return migCheck(gi.Destroy(), "destroy GPU instance")
}

// SetMIGMode puts a card into MIG mode, or takes it out. It wraps ErrInUse, and
// the mode is then pending or as it was, while processes use the card or
// instances are on it. Cards before Hopper are reset by it.
func (l *Library) SetMIGMode(gpu node.UUID, on bool) error {
	mode := gonvml.DEVICE_MIG_DISABLE
	if on {
		mode = gonvml.DEVICE_MIG_ENABLE
	}
	dev, err := l.device(gpu)
	if err != nil {
		return err
	}
	activation, ret := dev.SetMigMode(mode)
	if err := migCheck(ret, "set"); err != nil {
		return fmt.Errorf("MIG mode of %s: %w", gpu, err)
	}
	if err := migCheck(activation, "activate"); err != nil {
		return fmt.Errorf("MIG mode of %s: %w", gpu, err)
	}
	return nil
}

var errNoMIGMode = errors.New("the card is not in MIG mode; switch it with nvidia-smi -mig 1, or set the card's mode")

// migCheck is check with the words of MIG.
func migCheck(ret gonvml.Return, what string) error {
	switch ret {
	case gonvml.ERROR_IN_USE:
		return fmt.Errorf("%s: %w; end it first (nvidia-smi lists it)", what, ErrInUse)
	case gonvml.ERROR_INSUFFICIENT_RESOURCES:
		return fmt.Errorf("%s: another instance is in that place, or the profile has no more; see nvidia-smi mig -lgi", what)
	case gonvml.ERROR_NO_PERMISSION:
		return fmt.Errorf("%s: no permission; only root may divide a card, with the capability mig/config", what)
	}
	return check(ret, "%s", what)
}

// cutter is one profile of one card.
type cutter struct {
	dev     gonvml.Device
	profile string
	info    gonvml.GpuInstanceProfileInfo
	size    uint32 // memory slices
	starts  []int
}

func (l *Library) cutter(gpu node.UUID, profile string) (cutter, error) {
	c := cutter{profile: profile}
	var err error
	if c.dev, err = l.device(gpu); err != nil {
		return c, err
	}
	current, _, ret := c.dev.GetMigMode()
	if ret == gonvml.ERROR_NOT_SUPPORTED || ret == gonvml.SUCCESS && current != gonvml.DEVICE_MIG_ENABLE {
		return c, errNoMIGMode
	}
	if err := check(ret, "read MIG mode"); err != nil {
		return c, err
	}
	r := &reader{}
	var names []string
	for slot := range gonvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := c.dev.GetGpuInstanceProfileInfoV(slot).V2()
		if !r.optional("MIG profile", ret) {
			continue
		}
		name := profileText(info)
		names = append(names, name)
		if name == profile {
			c.info = gonvml.GpuInstanceProfileInfo{Id: info.Id, SliceCount: info.SliceCount, InstanceCount: info.InstanceCount}
			return c, c.places()
		}
	}
	if r.err != nil {
		return c, r.err
	}
	return c, fmt.Errorf("the card has no such profile; it has %s", strings.Join(names, ", "))
}

func (c *cutter) places() error {
	places, ret := c.dev.GetGpuInstancePossiblePlacements(&c.info)
	for _, p := range places {
		c.size, c.starts = p.Size, append(c.starts, int(p.Start))
	}
	return check(ret, "list placements")
}

// find is the GPU instance that starts there, nil for none.
func (c *cutter) find(start int) (gonvml.GpuInstance, error) {
	instances, ret := c.dev.GetGpuInstances(&c.info)
	if err := check(ret, "list GPU instances"); err != nil {
		return nil, err
	}
	for _, gi := range instances {
		info, ret := gi.GetInfo()
		if err := check(ret, "read GPU instance"); err != nil {
			return nil, err
		}
		if int(info.Placement.Start) == start {
			return gi, nil
		}
	}
	return nil, nil //nolint:nilnil // absence is an answer here
}

func (c *cutter) create(start int) (gonvml.GpuInstance, error) {
	gi, ret := c.dev.CreateGpuInstanceWithPlacement(&c.info, &gonvml.GpuInstancePlacement{Start: uint32(start), Size: c.size})
	if ret == gonvml.ERROR_INVALID_ARGUMENT {
		return nil, fmt.Errorf("the profile cannot start there; it can at %v", c.starts)
	}
	return gi, migCheck(ret, "create GPU instance")
}

// completeMIG gives the GPU instance a compute instance of all its slices, if it
// has none.
func completeMIG(gi gonvml.GpuInstance, slices uint32) error {
	for slot := range gonvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(slot, gonvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret != gonvml.SUCCESS || info.SliceCount != slices {
			continue
		}
		cis, ret := gi.GetComputeInstances(&info)
		if err := migCheck(ret, "list compute instances"); err != nil || len(cis) > 0 {
			return err
		}
		_, ret = gi.CreateComputeInstance(&info)
		return migCheck(ret, "create compute instance")
	}
	return fmt.Errorf("create compute instance: the driver offers none of all %d slices; is this a card that Kerf does not know yet?", slices)
}

// device is the MIG device of a GPU instance.
func (c *cutter) device(gi gonvml.GpuInstance) (node.MIGInstance, error) {
	info, ret := gi.GetInfo()
	if err := check(ret, "read GPU instance"); err != nil {
		return node.MIGInstance{}, err
	}
	r := &reader{}
	profile := []node.MIGProfile{{ID: int(c.info.Id), Name: c.profile}}
	for _, in := range migInstances(r, c.dev, profile) {
		if in.GPUInstance == int(info.Id) {
			return in, r.err
		}
	}
	if r.err != nil {
		return node.MIGInstance{}, r.err
	}
	return node.MIGInstance{}, fmt.Errorf("GPU instance %d was made, and shows no MIG device; the capability files below /dev/nvidia-caps may be missing", info.Id)
}

// InstanceMemory reads the memory of one MIG device.
func (l *Library) InstanceMemory(mig node.MIGUUID) (MemoryInfo, error) {
	return l.memory(mig.String())
}

// InstanceNodes are the device nodes, without the root, that a program needs for
// one MIG instance beside its card's own (node.GPU.DeviceNode) and the control
// nodes: those of the GPU instance's and the compute instance's capability, as
// the kernel module under root numbers them.
func InstanceNodes(root string, gpu node.GPU, in node.MIGInstance) ([]string, error) {
	dir := filepath.Join(root, "proc/driver/nvidia/capabilities", fmt.Sprintf("gpu%d/mig/gi%d", gpu.Minor, in.GPUInstance))
	var nodes []string
	for _, file := range []string{filepath.Join(dir, "access"), filepath.Join(dir, fmt.Sprintf("ci%d", in.ComputeInstance), "access")} {
		minor, err := capabilityMinor(file)
		if err != nil {
			return nil, fmt.Errorf("find the device nodes of %s: %w", in.UUID, err)
		}
		nodes = append(nodes, fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor))
	}
	return nodes, nil
}

func capabilityMinor(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("%w; is the instance gone, or the kernel module older than 450?", err)
	}
	for line := range strings.Lines(string(text)) {
		value, ok := strings.CutPrefix(line, "DeviceFileMinor:")
		if !ok {
			continue
		}
		if minor, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && minor >= 0 {
			return minor, nil
		}
	}
	return 0, fmt.Errorf("%s: no DeviceFileMinor in %q; is this a driver that Kerf does not know yet?", file, string(text))
}
