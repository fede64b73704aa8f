package monitor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Device is one that is watched.
type Device struct {
	ID     string          `json:"id"`     // of a GPU its UUID; port:mlx5_0/1; disk:nvme0
	Serial string          `json:"serial"` // of the board; empty where it has none that can be read
	PCI    node.PCIAddress `json:"pci"`
	Index  int             `json:"index"`
	Name   string          `json:"name"`
}

const gpuPrefix = "GPU-"

// Named says whether a person may mean the device: by its id, and a GPU by the beginning of it, its index or its PCI address too.
func (d Device) Named(name string) bool {
	if d.ID == name || !strings.HasPrefix(d.ID, gpuPrefix) {
		return d.ID == name
	}
	return strings.HasPrefix(d.ID, name) && len(name) > len(gpuPrefix) || name == strconv.Itoa(d.Index) || name == d.PCI.String()
}

// record is what is on disk of one device.
type record struct {
	Boot   string `json:"boot"`
	Device Device `json:"device"`
	State  State  `json:"state"`
}

// position is how far the kernel log was read, so that a restart counts nothing twice.
type position struct {
	Boot string `json:"boot"`
	Seq  uint64 `json:"seq"` // of the last record that was taken in
}

// saved is a record of the store: of a device, or how far the log was read.
type saved struct {
	Device *record   `json:"device,omitempty"`
	Log    *position `json:"log,omitempty"`
}

const logKey = "kernel-log"

// stateKey names a device's record. It is of the device, not of the place where it sits.
func stateKey(d Device) string {
	clean := func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '-':
			return r
		}
		return '_'
	}
	return "device-" + strings.Map(clean, d.ID)
}

// books is the state file.
type books struct {
	store *durable.Store[saved]
	boot  string
	// corrupt are files that could not be read and were set aside: of whatever they told, nothing is known.
	corrupt []string
	devices map[string]record
	seq     uint64
}

// openBooks reads what an earlier kerfd knew.
func openBooks(dir, boot string) (*books, error) {
	store, err := durable.Open[saved](dir)
	if err != nil {
		return nil, fmt.Errorf("monitor: %w; is another kerfd running?", err)
	}
	all, corrupt, err := store.Load()
	if err != nil {
		_ = store.Close()
		return nil, fmt.Errorf("monitor: %w", err)
	}
	b := &books{store: store, boot: boot, corrupt: corrupt, devices: make(map[string]record)}
	for key, s := range all {
		switch {
		case s.Device != nil && stateKey(s.Device.Device) == key:
			b.devices[s.Device.Device.ID] = *s.Device
		case s.Log != nil && s.Log.Boot == boot:
			b.seq = s.Log.Seq
		}
	}
	return b, nil
}

// resume is a device's state as it was left. Another board in its place has none.
func (b *books) resume(d Device) State {
	r, ok := b.devices[d.ID]
	if !ok || d.Serial != "" && r.Device.Serial != "" && d.Serial != r.Device.Serial {
		return State{}.clone()
	}
	return Resume(r.State, r.Boot == b.boot)
}

// missing are GPUs that were here in this boot and are in no list now: one that is lost has no name after kerfd's restart.
func (b *books) missing(here []Device) (gone []Device) {
	for id, r := range b.devices {
		if r.Boot == b.boot && strings.HasPrefix(id, gpuPrefix) && !slices.ContainsFunc(here, func(d Device) bool { return d.ID == id }) {
			gone = append(gone, r.Device)
		}
	}
	return gone
}

func (b *books) write(d Device, s State) error {
	return b.store.Put(stateKey(d), saved{Device: &record{b.boot, d, s}})
}

func (b *books) writeSeq(seq uint64) error {
	return b.store.Put(logKey, saved{Log: &position{b.boot, seq}})
}

func (b *books) Close() error { return b.store.Close() }
