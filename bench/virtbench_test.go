package bench

import (
	"fmt"
	"testing"
)

// TestVirtBench holds the map against that suite's numbering, and each row against our own lists.
func TestVirtBench(t *testing.T) {
	groups := []struct {
		name  string
		count int
	}{
		{"OH", 10}, {"IS", 10}, {"LLM", 10}, {"BW", 4}, {"CACHE", 4}, {"PCIE", 4}, {"NCCL", 4}, {"SCHED", 4}, {"FRAG", 3}, {"ERR", 3},
	}
	wanted := map[string]bool{}
	for _, group := range groups {
		for i := range group.count {
			wanted[fmt.Sprintf("%s-%03d", group.name, i+1)] = true
		}
	}
	if len(wanted) != 56 {
		t.Fatalf("%d ids in the groups, want 56", len(wanted))
	}
	for _, metric := range VirtBench {
		if !wanted[metric.ID] {
			t.Errorf("%s: not an id of that suite, or there twice", metric.ID)
		}
		delete(wanted, metric.ID)
		if metric.Name == "" || metric.Unit == "" || metric.Note == "" {
			t.Errorf("%s: name '%s', unit '%s', note '%s': one is missing", metric.ID, metric.Name, metric.Unit, metric.Note)
		}
		if metric.Scenario == "" && metric.Row == "" {
			continue
		}
		if scenario, err := Find(metric.Scenario); err != nil {
			t.Errorf("%s: %v", metric.ID, err)
		} else if !scenario.has(metric.Row) {
			t.Errorf("%s: scenario %s has no row %s", metric.ID, metric.Scenario, metric.Row)
		}
	}
	for id := range wanted {
		t.Errorf("%s: not in the map", id)
	}
}

// An id of that suite among our rows must be measured by that row, or it would pass for what it is not.
func TestVirtBenchIDs(t *testing.T) {
	by := map[string]VirtMetric{}
	for _, metric := range VirtBench {
		by[metric.ID] = metric
	}
	for _, scenario := range Scenarios {
		for _, row := range scenario.Rows {
			if metric, there := by[row.ID]; there && (metric.Row != row.ID || metric.Scenario != scenario.Name) {
				t.Errorf("%s is a row of %s, but the map has %s of %s for it", row.ID, scenario.Name, metric.Row, metric.Scenario)
			}
		}
	}
}
