package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// CardConfig says how some cards are divided. Of several that match a card the first counts.
type CardConfig struct {
	Match             CardMatch  `yaml:"match"`
	Mode              share.Mode `yaml:"mode"`                        // vgpu, overcommit, mig or exclusive
	OvercommitPercent int        `yaml:"overcommitPercent,omitempty"` // of the memory, in mode overcommit: 101 to 1000
}

// CardMatch names cards; what is left out matches every one.
type CardMatch struct {
	Product string `yaml:"product,omitempty"` // a part of the product's name, in any case
	UUID    string `yaml:"uuid,omitempty"`
	Index   *int   `yaml:"index,omitempty"`
}

// maxOvercommit bounds what can only be a slip of the keyboard.
const maxOvercommit = 1000

func (c CardConfig) validate() error {
	switch {
	case !slices.Contains(share.Modes, c.Mode):
		return fmt.Errorf("config: cards: mode %q: not known; use vgpu, overcommit, mig or exclusive", c.Mode)
	case c.Mode == share.ModeOvercommit && (c.OvercommitPercent <= 100 || c.OvercommitPercent > maxOvercommit):
		return fmt.Errorf("config: cards: overcommitPercent %d: outside 101 to %d; 150 promises half as much again as the card has", c.OvercommitPercent, maxOvercommit)
	case c.Mode != share.ModeOvercommit && c.OvercommitPercent != 0:
		return fmt.Errorf("config: cards: overcommitPercent %d in mode %s: only mode overcommit has one; leave it out, or change the mode", c.OvercommitPercent, c.Mode)
	}
	return nil
}

func (m CardMatch) matches(g node.GPU) bool {
	return strings.Contains(strings.ToLower(g.ProductName), strings.ToLower(m.Product)) &&
		(m.UUID == "" || strings.EqualFold(m.UUID, g.UUID.String())) &&
		(m.Index == nil || *m.Index == g.Index)
}

// divide is a card as the policy sees it, by configuration and by what the card itself says.
func divide(cards []CardConfig, g node.GPU, grantable node.Bytes) share.GPU {
	gpu := share.GPU{UUID: g.UUID, Index: g.Index, Memory: grantable}
	i := slices.IndexFunc(cards, func(c CardConfig) bool { return c.Match.matches(g) })
	switch {
	case i >= 0:
		gpu.Mode, gpu.Overcommit = cards[i].Mode, node.Percent(cards[i].OvercommitPercent)
	case g.MIG.Enabled: // whoever switched it on wants it
		gpu.Mode = share.ModeMIG
	}
	gpu.Mode = cmp.Or(gpu.Mode, share.ModeVGPU)
	switch {
	case !g.Fault.Healthy():
		gpu.Fault = g.Fault.String()
	case g.MIG.Enabled && gpu.Mode != share.ModeMIG:
		gpu.Fault = fmt.Sprintf("in MIG mode, while mode %s is configured; switch MIG off (nvidia-smi -i %d -mig 0), or configure mode mig", gpu.Mode, g.Index)
	case !g.MIG.Enabled && gpu.Mode == share.ModeMIG:
		gpu.Fault = fmt.Sprintf("not in MIG mode, while mode mig is configured; switch MIG on (nvidia-smi -i %d -mig 1), or configure another mode", g.Index)
	}
	return gpu
}

// placements are the MIG instances on a card.
func placements(m node.MIG) (found []share.Placement) {
	for _, instance := range m.Instances {
		for _, p := range m.Profiles {
			if p.Name == instance.Profile {
				found = append(found, share.Placement{Profile: p.Name, Start: instance.Start, Size: p.Size})
			}
		}
	}
	return found
}

// foreign are those of the placements that no share holds.
func foreign(there []share.Placement, granted []share.Device) []share.Placement {
	return slices.DeleteFunc(slices.Clone(there), func(p share.Placement) bool {
		return slices.ContainsFunc(granted, func(d share.Device) bool { return d.Placement != nil && *d.Placement == p })
	})
}
