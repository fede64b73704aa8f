package main

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/node"
)

// NICConfig is how many VFs a PF is to have. A PF that is taken out of the configuration gets back the number that it had before.
type NICConfig struct {
	PF     node.PCIAddress `yaml:"pf"` // 0000:24:00.0
	NumVFs int             `yaml:"numVFs"`
}

func validateNICs(nics []NICConfig) error {
	seen := make(map[node.PCIAddress]bool)
	for _, n := range nics {
		switch {
		case n.PF.IsZero():
			return fmt.Errorf("config: nics: pf is missing beside numVFs %d; name the PF by its PCI address, 0000:24:00.0", n.NumVFs)
		case n.NumVFs < 0:
			return fmt.Errorf("config: nics: %s: numVFs %d: less than none", n.PF, n.NumVFs)
		case seen[n.PF]:
			return fmt.Errorf("config: nics: %s is listed twice; one number is enough", n.PF)
		}
		seen[n.PF] = true
	}
	return nil
}

// makeVFs gives PFs the VFs that the configuration wants, once, at the start. What cannot be is logged: GPUs are served without it.
func makeVFs(c Config, host link.Host, log *slog.Logger) {
	want := make(map[node.PCIAddress]int, len(c.NICs))
	for _, n := range c.NICs {
		want[n.PF] = n.NumVFs
	}
	journal := cni.New(filepath.Join(c.RunDir, "nic"))
	vfs := cni.VFs{Dir: filepath.Join(journal.Dir, "vfs"), Host: host}
	records, _, err := journal.List()
	if err != nil {
		log.Error("VFs are left as they are: it cannot be told which are in use", "error", err)
		return
	}
	pfs, err := vfs.Look(want, records)
	if err != nil {
		log.Error("VFs are left as they are", "error", err)
		return
	}
	changes, refused := cni.PlanVFs(want, pfs)
	for _, err := range refused {
		log.Error("VFs are left as they are", "error", err)
	}
	for _, change := range changes {
		if err := vfs.Apply(change); err != nil {
			log.Error("VFs could not be made", "error", err)
			continue
		}
		log.Info("VFs made or removed", "pf", change.PF, "from", change.From, "to", change.To)
	}
}

// linkHost is where NICs are seen: in a simulated node's directory, or on this machine.
func linkHost(h *hardware) link.Host {
	if h.sim == nil {
		return link.Host{}
	}
	return link.Host{Sys: filepath.Join(h.root, "sys")}
}
