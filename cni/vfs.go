package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// PF is a PF as far as the number of its VFs goes.
type PF struct {
	Device link.Device
	Max    int  // VFs that it can have
	Uplink bool // the node's default route goes over it
	InUse  int  // of its VFs, those that pods have
	Was    *int // VFs that it had before Kerf changed that; nil: Kerf did not
}

// VFChange is another number of VFs for a PF.
type VFChange struct {
	PF       node.PCIAddress
	From, To int
	Last     bool // it is as it was before Kerf then, and nothing is to be remembered
}

// PlanVFs says how PFs get the VFs that are wanted, by their PCI addresses, and how those that are not wanted any more become what they
// were. refused is why not, a line each. It is pure.
func PlanVFs(want map[node.PCIAddress]int, pfs []PF) (changes []VFChange, refused []error) {
	for _, pf := range pfs {
		n, wanted := want[pf.Device.PCI]
		if !wanted && pf.Was == nil {
			continue
		}
		c := VFChange{PF: pf.Device.PCI, From: pf.Device.NumVFs, To: n}
		if !wanted {
			c.To = *pf.Was
		}
		c.Last = !wanted
		if c.From == c.To && !c.Last {
			continue
		}
		if err := refuseVFs(pf, c, wanted); err != nil {
			refused = append(refused, err)
			continue
		}
		changes = append(changes, c)
	}
	for pci := range want {
		if !slices.ContainsFunc(pfs, func(pf PF) bool { return pf.Device.PCI == pci }) {
			refused = append(refused, fmt.Errorf("nics: %s: there is no such PCI device; lspci -D lists them", pci))
		}
	}
	slices.SortFunc(refused, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return changes, refused
}

func refuseVFs(pf PF, c VFChange, wanted bool) error {
	d := pf.Device
	switch {
	case c.From == c.To: // only to be forgotten
		return nil
	case d.IsVF():
		return fmt.Errorf("nics: %s: numVFs %d: it is a VF itself, of %s; name that", d.PCI, c.To, d.PF)
	case c.To > pf.Max:
		return fmt.Errorf("nics: %s: numVFs %d: it can have %d; more may need a setting of its firmware", d.PCI, c.To, pf.Max)
	case pf.Uplink:
		return fmt.Errorf("nics: %s (%s): numVFs %d: the node's default route goes over it, and changing its VFs may cut the node off; use another, or make them by hand before kerfd starts", d.PCI, d.Name, c.To)
	case pf.InUse > 0:
		return fmt.Errorf("nics: %s: numVFs %d: pods have %d of its %d VFs, and all would be removed; it is tried again when kerfd starts without them", d.PCI, c.To, pf.InUse, c.From)
	case c.From != 0 && pf.Was == nil && wanted:
		return fmt.Errorf("nics: %s: numVFs %d: it has %d VFs that Kerf did not make, and the kernel changes the number by way of none only; ask for %d, or remove them: echo 0 > /sys/bus/pci/devices/%s/sriov_numvfs", d.PCI, c.To, c.From, c.From, d.PCI)
	}
	return nil
}

// vfRecord is what the journal keeps of a PF from before its number of VFs is changed until it is as it was.
type vfRecord struct {
	Was int `json:"was"`
}

// VFs changes numbers of VFs. Its directory is on a tmpfs, since VFs do not outlive a reboot.
type VFs struct {
	Dir  string
	Host link.Host
}

func (v VFs) path(pci node.PCIAddress) string { return filepath.Join(v.Dir, pci.String()+".json") }

// Was is how many VFs a PF had before Kerf changed that; nil where it did not, or where that cannot be read: then what it has is left.
func (v VFs) Was(pci node.PCIAddress) *int {
	r, err := durable.GetFile[vfRecord](v.path(pci))
	if err != nil {
		return nil
	}
	return &r.Was
}

// Apply makes one change. What was is written down before it, so whoever dies here is followed by one who knows.
func (v VFs) Apply(c VFChange) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("nics: %s: from %d to %d VFs: %w", c.PF, c.From, c.To, err)
		}
	}()
	if err = os.MkdirAll(v.Dir, 0o700); err != nil {
		return err
	}
	if v.Was(c.PF) == nil {
		if err = durable.PutFile(v.path(c.PF), vfRecord{c.From}); err != nil {
			return err
		}
	}
	if c.From != 0 && c.From != c.To { // the kernel's rule
		if err = v.Host.SetNumVFs(c.PF, 0); err != nil {
			return err
		}
	}
	if c.To != 0 && c.From != c.To {
		if err = v.Host.SetNumVFs(c.PF, c.To); err != nil {
			return err
		}
	}
	if !c.Last {
		return nil
	}
	if err = os.Remove(v.path(c.PF)); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// Look is the PFs that matter: those that are wanted and those that Kerf has changed. records are of the engine.
func (v VFs) Look(want map[node.PCIAddress]int, records []Record) (pfs []PF, err error) {
	ids := make(map[node.PCIAddress]bool)
	for pci := range want {
		ids[pci] = true
	}
	files, _ := filepath.Glob(filepath.Join(v.Dir, "*.json")) // a constant pattern
	for _, file := range files {
		if pci, err := node.ParsePCIAddress(strings.TrimSuffix(filepath.Base(file), ".json")); err == nil {
			ids[pci] = true
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	host, err := v.Host.Open("")
	if err != nil {
		return nil, fmt.Errorf("look at the host's links: %w", err)
	}
	defer func() { _ = host.Close() }()
	uplinks, err := host.Uplinks()
	if err != nil {
		return nil, err
	}
	for pci := range ids {
		d, err := v.Host.Device(pci.String())
		if err != nil {
			continue // PlanVFs says so
		}
		pf := PF{Device: d, Max: v.Host.MaxVFs(pci), Was: v.Was(pci)}
		for _, r := range records {
			if r.Device.PF == pci || r.Device.PCI == pci { // who has the PF would administer the others' VFs
				pf.InUse++
			}
		}
		if l, err := host.Link(link.Query{Name: d.Name}); err == nil {
			pf.Uplink = slices.Contains(uplinks, l.Index)
		}
		pfs = append(pfs, pf)
	}
	slices.SortFunc(pfs, func(a, b PF) int { return a.Device.PCI.Compare(b.Device.PCI) })
	return pfs, nil
}
