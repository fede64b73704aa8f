package sysfs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// place of a function by its resolved directory. The NUMA node is that of the
// nearest directory above which has one: under VMD and Hyper-V that may be of
// a device above the root complex.
func place(dir string) node.Place {
	p := node.Place{Path: node.ParsePCIePath(dir), NUMA: node.UnknownNUMA}
	if p.Path.Root == "" {
		return p
	}
	var hops []node.Hop // from the device up
	known, inTree := false, true
	for up := dir; strings.Contains(up, "/devices/"); up = filepath.Dir(up) {
		name := filepath.Base(up)
		inTree = inTree && name != p.Path.Root
		if _, err := node.ParsePCIAddress(name); err == nil && inTree {
			hop := node.Hop{Link: link(up)}
			hops, known = append(hops, hop), known || hop != (node.Hop{})
		}
		if n, err := strconv.Atoi(text(up, "numa_node")); err == nil && n >= 0 && p.NUMA < 0 {
			p.NUMA = n
		}
	}
	if slices.Reverse(hops); known && len(hops) == len(p.Path.Chain) {
		p.Path.Hops = hops
	}
	return p
}

func link(dir string) node.PCIeLink {
	l := node.PCIeLink{
		Gen: generation(text(dir, "current_link_speed")), Width: number(dir, "current_link_width"),
		MaxGen: generation(text(dir, "max_link_speed")), MaxWidth: number(dir, "max_link_width"),
	}
	if l.MaxWidth == 255 || l.Width < 0 || l.MaxWidth < 0 || l.Width > 32 || l.MaxWidth > 32 { // 255 is printed for a function without a link
		return node.PCIeLink{}
	}
	return l
}

// generation of the kernel's "16.0 GT/s PCIe"; 0 for "Unknown".
func generation(speed string) int {
	gts, _, _ := strings.Cut(speed, " ")
	return 1 + slices.Index([]string{"2.5", "5.0", "8.0", "16.0", "32.0", "64.0"}, gts)
}

// Of PCI's extended configuration space. See PCI_EXT_CAP_* in the kernel's
// pci_regs.h.
const (
	configSpace  = 4096
	extendedCaps = 0x100
	capACS       = 0x000d
	acsControl   = 6
	acsRequests  = 1 << 2 // P2P request redirect
	acsReplies   = 1 << 3 // P2P completion redirect
)

// Inspect adds to a node's paths what takes reading configuration space: ACS of
// bridges. That wakes a sleeping bridge and takes a millisecond each, so it is
// for people who ask, not for what runs every second.
func (h Host) Inspect(n *node.Node) {
	known := map[node.PCIAddress]node.ACS{}
	inspect := func(p *node.PCIePath) {
		for i, at := range p.Chain {
			state, ok := known[at]
			if dir, err := h.device(at); !ok && err == nil {
				state = acs(dir)
				known[at] = state
			}
			if state == node.ACSUnknown {
				continue
			}
			if p.Hops == nil {
				p.Hops = make([]node.Hop, len(p.Chain))
			}
			p.Hops[i].ACS = state
		}
	}
	for i := range n.GPUs {
		inspect(&n.GPUs[i].Path)
	}
	for i := range n.NICs {
		inspect(&n.NICs[i].Path)
		if second := n.NICs[i].DataDirect; second != nil {
			inspect(&second.Path)
		}
	}
}

// acs of a bridge; a device's own says nothing of traffic between devices.
func acs(dir string) node.ACS {
	if number(dir, "class")>>16 != classBridge {
		return node.ACSUnknown
	}
	config, err := os.ReadFile(filepath.Join(dir, "config"))
	if err != nil {
		return node.ACSUnknown
	}
	return parseACS(config)
}

// parseACS walks the list of extended capabilities. A configuration space that
// is cut off, as it is for all but root, or whose list is broken, tells nothing.
func parseACS(config []byte) node.ACS {
	if len(config) < configSpace {
		return node.ACSUnknown
	}
	at := extendedCaps
	for range (configSpace - extendedCaps) / 4 { // a loop in the list ends too
		header := binary.LittleEndian.Uint32(config[at:])
		if header&0xffff == capACS && at+acsControl+2 <= configSpace {
			if binary.LittleEndian.Uint16(config[at+acsControl:])&(acsRequests|acsReplies) != 0 {
				return node.ACSRedirect
			}
			return node.ACSDirect
		}
		next := int(header>>20) &^ 3
		switch {
		case header == 0 && at == extendedCaps, next == 0:
			return node.ACSDirect
		case header == 0xffffffff, next < extendedCaps: // the device does not answer, or the list is broken
			return node.ACSUnknown
		}
		at = next
	}
	return node.ACSUnknown
}
