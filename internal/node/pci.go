package node

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// PCIAddress is domain:bus:device.function. The zero value is no device
// (0000:00:00.0 is a host bridge, never something that Kerf handles).
type PCIAddress struct {
	Domain                uint32
	Bus, Device, Function uint8
}

var pciRE = regexp.MustCompile(`^(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])$`)

// ParsePCIAddress reads the kernel's form (0000:b3:00.0), NVML's
// (00000000:B3:00.0) and the short one without a domain (b3:00.0).
func ParsePCIAddress(s string) (PCIAddress, error) {
	m := pciRE.FindStringSubmatch(s)
	if m == nil {
		return PCIAddress{}, fmt.Errorf("PCI address %q: not domain:bus:device.function; write it as 0000:b3:00.0", s)
	}
	var field [4]uint64
	for i, text := range m[1:] {
		field[i], _ = strconv.ParseUint(text, 16, 32) // the expression admits only hexadecimal digits; no domain is 0
	}
	if field[2] > 31 {
		return PCIAddress{}, fmt.Errorf("PCI address %q: device %s is above 1f; check the address with lspci -D", s, m[3])
	}
	return PCIAddress{Domain: uint32(field[0]), Bus: uint8(field[1]), Device: uint8(field[2]), Function: uint8(field[3])}, nil
}

// String is the kernel's form, as in /sys/bus/pci/devices.
func (a PCIAddress) String() string {
	return fmt.Sprintf("%04x:%02x:%02x.%x", a.Domain, a.Bus, a.Device, a.Function)
}

// IsZero reports whether a names no device.
func (a PCIAddress) IsZero() bool { return a == PCIAddress{} }

// Compare orders addresses as lspci does.
func (a PCIAddress) Compare(b PCIAddress) int {
	return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Bus, b.Bus),
		cmp.Compare(a.Device, b.Device), cmp.Compare(a.Function, b.Function))
}

// MarshalText writes the kernel's form; the zero address is empty text.
func (a PCIAddress) MarshalText() ([]byte, error) {
	if a.IsZero() {
		return nil, nil
	}
	return []byte(a.String()), nil
}

// UnmarshalText reads what ParsePCIAddress reads, and empty text as zero.
func (a *PCIAddress) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*a = PCIAddress{}
		return nil
	}
	*a, err = ParsePCIAddress(string(text))
	return err
}

// PCIePath is the way from the root complex to a device.
type PCIePath struct {
	// Root is the root complex as sysfs names it: pci0000:20.
	Root string `json:"root,omitempty"`
	// Chain is every PCI function below Root: root port first, the device last.
	Chain []PCIAddress `json:"chain,omitempty"`
	// Hops is what is known of each function of Chain, in its order; nil where
	// nothing is.
	Hops []Hop `json:"hops,omitempty"`
}

// Hop is one function that a path passes.
type Hop struct {
	Link PCIeLink `json:"link"` // the one that the function's own registers describe: up from a device or upstream port, down from the others
	ACS  ACS      `json:"acs,omitempty"`
}

// ACS is what a bridge's access control services do with requests from one
// device below it to another.
type ACS string

// The states of ACS. It is read from extended configuration space, which the
// kernel shows to root alone.
const (
	ACSUnknown  ACS = ""
	ACSDirect   ACS = "direct"   // no such capability, or it lets them pass
	ACSRedirect ACS = "redirect" // they go up to the root complex, however near the two devices are
)

var rootRE = regexp.MustCompile(`^pci[0-9a-f]{4,8}:[0-9a-f]{2}$`)

// ParsePCIePath reads a resolved sysfs path,
// /sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0. The last root in it wins:
// under VMD and Hyper-V a root complex hangs below other devices. Parts that
// are no PCI functions are skipped; a path without a root gives the zero value.
func ParsePCIePath(sysfs string) PCIePath {
	var p PCIePath
	for part := range strings.SplitSeq(sysfs, "/") {
		if rootRE.MatchString(part) {
			p = PCIePath{Root: part}
			continue
		}
		if a, err := ParsePCIAddress(part); err == nil && p.Root != "" {
			p.Chain = append(p.Chain, a)
		}
	}
	return p
}

// RootPort is the first function below the root complex; zero where the device
// sits on the root complex itself, as all do in a VM with a flat tree. Two
// devices with the same root port can do peer DMA without the CPU.
func (p PCIePath) RootPort() PCIAddress {
	if len(p.Chain) < 2 {
		return PCIAddress{}
	}
	return p.Chain[0]
}

// Device is the function at the path's end.
func (p PCIePath) Device() PCIAddress {
	if len(p.Chain) == 0 {
		return PCIAddress{}
	}
	return p.Chain[len(p.Chain)-1]
}

// String is the path below /sys/devices.
func (p PCIePath) String() string {
	parts := []string{p.Root}
	for _, a := range p.Chain {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, "/")
}

// PCIeLink is the state of a device's link to its parent. Zero is unknown.
type PCIeLink struct {
	Gen      int `json:"gen,omitempty"`
	Width    int `json:"width,omitempty"`
	MaxGen   int `json:"maxGen,omitempty"`
	MaxWidth int `json:"maxWidth,omitempty"`
}

// Narrow reports a link that trained with fewer lanes than it has. Speed is
// left out on purpose: it drops whenever the device idles.
func (l PCIeLink) Narrow() bool { return l.Width != 0 && l.Width < l.MaxWidth }

// laneRate is bytes a second and lane by generation, after line coding. From
// the sixth on, what forward error correction takes is off too.
var laneRate = [...]float64{0, 2.5e9 / 10, 5e9 / 10, 8e9 / 8 * 128 / 130, 16e9 / 8 * 128 / 130, 32e9 / 8 * 128 / 130, 64e9 / 8 * 242 / 256}

// Rate is what the link carries each way in a second as it is trained now, less
// line coding and before packet headers; 0 where that is not known.
func (l PCIeLink) Rate() Bytes { return rate(l.Gen, l.Width) }

// MaxRate is Rate of the link at its best.
func (l PCIeLink) MaxRate() Bytes { return rate(l.MaxGen, l.MaxWidth) }

func rate(gen, width int) Bytes {
	if gen <= 0 || gen >= len(laneRate) || width <= 0 {
		return 0
	}
	return Bytes(laneRate[gen] * float64(width))
}

func (l PCIeLink) String() string {
	if l.Gen == 0 {
		return "unknown"
	}
	return fmt.Sprintf("gen%d x%d (max gen%d x%d)", l.Gen, l.Width, l.MaxGen, l.MaxWidth)
}
