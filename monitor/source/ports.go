package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Port is one port of an RDMA device: InfiniBand or RoCE.
type Port struct {
	Device    string            `json:"device"` // mlx5_0
	Number    int               `json:"number"`
	State     string            `json:"state"`     // ACTIVE, INIT, DOWN, …
	Physical  string            `json:"physical"`  // LinkUp, Disabled, Polling, …
	Rate      string            `json:"rate"`      // "400 Gb/sec (4X NDR)"
	LinkLayer string            `json:"linkLayer"` // InfiniBand, Ethernet
	Counters  map[string]uint64 `json:"counters,omitempty"`
}

// Name is the port's, as people write it.
func (p Port) Name() string { return fmt.Sprintf("%s/%d", p.Device, p.Number) }

// portCounters is what counts towards a sick link, as rates; traffic does not.
var portCounters = []string{"link_downed", "link_error_recovery", "symbol_error", "port_rcv_errors", "excessive_buffer_overrun_errors", "local_link_integrity_errors"}

// Ports reads the ports below root/sys. A machine without RDMA has none.
func Ports(root string) (ports []Port, err error) {
	base := filepath.Join(root, "sys/class/infiniband")
	devices, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list RDMA devices: %w", err)
	}
	for _, d := range devices {
		numbers, err := os.ReadDir(filepath.Join(base, d.Name(), "ports"))
		if err != nil {
			continue // it went while we looked
		}
		for _, n := range numbers {
			number, err := strconv.Atoi(n.Name())
			if err != nil {
				continue
			}
			ports = append(ports, readPort(filepath.Join(base, d.Name(), "ports", n.Name()), d.Name(), number))
		}
	}
	return ports, nil
}

func readPort(dir, device string, number int) Port {
	p := Port{Device: device, Number: number, State: word(attribute(dir, "state")), Physical: word(attribute(dir, "phys_state")),
		Rate: attribute(dir, "rate"), LinkLayer: attribute(dir, "link_layer")}
	for _, name := range portCounters {
		if n, err := strconv.ParseUint(attribute(dir, "counters", name), 10, 64); err == nil {
			if p.Counters == nil {
				p.Counters = make(map[string]uint64)
			}
			p.Counters[name] = n
		}
	}
	return p
}

// word is what the kernel writes after a number: "4: ACTIVE".
func word(text string) string {
	if _, after, found := strings.Cut(text, ": "); found {
		return after
	}
	return text
}

func attribute(dir string, name ...string) string {
	text, err := os.ReadFile(filepath.Join(append([]string{dir}, name...)...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Disk is a disk that can say how it is.
type Disk struct {
	Name  string `json:"name"`  // nvme0
	State string `json:"state"` // live, dead, resetting, …
}

// Disks reads the state of the NVMe controllers below root/sys.
func Disks(root string) (disks []Disk, err error) {
	base := filepath.Join(root, "sys/class/nvme")
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	for _, e := range entries {
		if state := attribute(filepath.Join(base, e.Name()), "state"); state != "" {
			disks = append(disks, Disk{e.Name(), state})
		}
	}
	return disks, nil
}
