package monitor

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Report is everything that the monitor knows, for people.
type Report struct {
	Profile string         `json:"profile"`
	Mode    Mode           `json:"mode"`
	Devices []DeviceReport `json:"devices"`
	Sources []SourceReport `json:"sources"`
	Corrupt []string       `json:"corrupt,omitempty"` // state files that were set aside
	Orphans map[int]uint64 `json:"orphans,omitempty"` // Xids of cards that NVML does not show, by code
}

// DeviceReport is one device.
type DeviceReport struct {
	Device
	Verdict
	Xids     map[int]int    `json:"xids,omitempty"`     // over its life
	Lifetime map[string]int `json:"lifetime,omitempty"` // conditions that asked for a reset or more
	Answered time.Time      `json:"answered,omitzero"`
	Vitals   *node.Vitals   `json:"vitals,omitempty"` // of a GPU that answered
}

// SourceReport is one source.
type SourceReport struct {
	Name string    `json:"name"`
	Up   bool      `json:"up"`
	Why  string    `json:"why,omitempty"` // it is not
	Last time.Time `json:"last,omitzero"`
	Lost uint64    `json:"lost"`
}

// Report is what is known now. It asks no device.
func (m *Monitor) Report() Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Report{Profile: m.config.Profile.Name, Mode: m.config.Mode, Devices: []DeviceReport{}, Sources: []SourceReport{},
		Corrupt: m.books.corrupt, Orphans: maps.Clone(m.orphans)}
	for _, w := range m.devices {
		d := DeviceReport{Device: w.Device, Verdict: w.verdict, Xids: maps.Clone(w.state.Xids), Lifetime: maps.Clone(w.state.Lifetime), Answered: w.answer}
		if w.last.ok {
			v := w.last.vitals
			d.Vitals = &v
		}
		r.Devices = append(r.Devices, d)
	}
	slices.SortFunc(r.Devices, func(a, b DeviceReport) int {
		return cmp.Or(cmp.Compare(number(a.Index < 0), number(b.Index < 0)), cmp.Compare(a.Index, b.Index), cmp.Compare(a.ID, b.ID))
	})
	for _, name := range slices.Sorted(maps.Keys(m.sources)) {
		s := m.sources[name]
		r.Sources = append(r.Sources, SourceReport{name, s.up, s.why, s.last, s.lost})
	}
	return r
}
