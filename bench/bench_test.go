package bench

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files again")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); if it should, run with -update:\n%s", path, diff)
	}
}

// sample has one result of each kind: both targets, one missed, none, no baseline.
func sample() Report {
	target, p99 := 20.0, 100.0
	report := Report{
		Schema: Schema,
		Env: Env{
			Date: "2026-01-02T03:04:05Z", Machine: "amd64, 2 CPUs, 24 GiB", CPU: "AMD EPYC", Kernel: "6.1.0",
			Kerf: "v0.1.0", Driver: "580.95.05", Card: "NVIDIA H200 (simulated)", Simulated: true,
		},
		Results: []Result{
			{ID: "OH-001", Name: "kernel launch", Value: 15, Baseline: 10, P99: 40, BaselineP99: 20, Basis: Added, Target: &target, TargetP99: &p99},
			{ID: "OH-007", Name: "alloc + free, 2 MiB", Value: 31, Baseline: 10, P99: 40, BaselineP99: 20, Basis: Added, Target: &target},
			{ID: "KF-002", Name: "cuMemGetInfo", Value: 20, P99: 100, Basis: Absolute, Target: &target, TargetP99: &p99},
			{ID: "OH-004", Name: "context create + destroy", Value: 83_600_000, Baseline: 83_500_000, P99: 9e7, BaselineP99: 9e7, Basis: Added},
		},
	}
	for i := range report.Results {
		one := &report.Results[i]
		one.Scenario, one.Unit, one.N, one.Simulated = "overhead", "ns", 1000, true
		one.Judge()
	}
	return report
}

func TestFormatGolden(t *testing.T) {
	var text bytes.Buffer
	if err := sample().WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", text.Bytes())
}

func TestTableGolden(t *testing.T) {
	var text bytes.Buffer
	if err := sample().WriteTable(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", text.Bytes())
}

func TestJudge(t *testing.T) {
	bound := func(value float64) *float64 { return &value }
	for name, test := range map[string]struct {
		result Result
		ok     bool
	}{
		"no target":               {Result{Value: 1e9, Basis: Added}, true},
		"at the target":           {Result{Value: 30, Baseline: 10, Basis: Added, Target: bound(20)}, true},
		"over the target":         {Result{Value: 30.1, Baseline: 10, Basis: Added, Target: bound(20)}, false},
		"faster than native":      {Result{Value: 5, Baseline: 10, Basis: Added, Target: bound(20)}, true},
		"tail over":               {Result{Value: 10, P99: 211, BaselineP99: 100, Basis: Added, Target: bound(20), TargetP99: bound(100)}, false},
		"absolute knows no base":  {Result{Value: 101, Baseline: 100, Basis: Absolute, Target: bound(100)}, false},
		"not measured is not met": {Result{Value: math.NaN(), Basis: Absolute, Target: bound(100)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			test.result.Judge()
			if test.result.OK != test.ok {
				t.Errorf("OK = %v", test.result.OK)
			}
		})
	}
}

func TestMissed(t *testing.T) {
	var ids []string
	for _, one := range sample().Missed() {
		ids = append(ids, one.ID)
	}
	if diff := cmp.Diff([]string{"OH-007"}, ids); diff != "" {
		t.Error(diff)
	}
}

func TestCheck(t *testing.T) {
	err := sample().Check()
	want := "targets missed: OH-007 alloc + free, 2 MiB: added 21.0 ns, p99 20.0 ns; target added ≤ 20.0 ns"
	if missed, ok := errors.AsType[MissedError](err); !ok || missed.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	report := sample()
	report.Results = report.Results[:1]
	if err := report.Check(); err != nil {
		t.Errorf("all targets met, and yet: %v", err)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // 100 … 1, unsorted on purpose
	}
	for _, test := range []struct {
		samples []float64
		p, want float64
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{[]float64{7}, 99, 7},
		{[]float64{1, 2}, 50, 1},
		{[]float64{1, 2, 3}, 50, 2},
	} {
		if got := Percentile(test.samples, test.p); got != test.want {
			t.Errorf("Percentile(%d samples, %v) = %v, want %v", len(test.samples), test.p, got, test.want)
		}
	}
	if !math.IsNaN(Percentile(nil, 50)) {
		t.Error("the percentile of nothing is a number")
	}
	if hundred[0] != 100 {
		t.Error("Percentile sorted its argument")
	}
}

func TestMetricTable(t *testing.T) {
	ids, probes := map[string]bool{}, map[string]bool{}
	add := func(seen map[string]bool, word string) {
		if word == "" || seen[word] {
			t.Errorf("'%s' is empty or there twice", word)
		}
		seen[word] = true
	}
	for _, metric := range overheadMetrics {
		add(ids, metric.id)
		add(probes, metric.probe)
		if metric.batch*metric.batches > 4096 {
			t.Errorf("%s: %d calls, the probe has room for 4096", metric.id, metric.batch*metric.batches)
		}
	}
	for _, metric := range initMetrics {
		add(ids, metric.id)
	}
}

func TestAppendTimes(t *testing.T) {
	got, err := appendTimes(nil, "1.50 2 -0.25\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]float64{1.5, 2, -0.25}, got); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{"", "\n", "1 two 3"} {
		if _, err := appendTimes(nil, line); err == nil {
			t.Errorf("'%s' was taken for times", line)
		}
	}
}

func TestUnknownScenario(t *testing.T) {
	_, err := Run(t.Context(), []string{"overhed"}, Options{})
	want := "no scenario 'overhed': there is overhead, shares, memory, neighbour, priority, crash, switch, overcommit, footprint, kubernetes, kubernetes-scale, cni, storage, fault"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// Every row has an id of its own, and whatever a scenario is told to keep.
func TestRows(t *testing.T) {
	ids, names := map[string]string{}, map[string]bool{}
	for _, scenario := range Scenarios {
		if names[scenario.Name] || scenario.About == "" || (scenario.run == nil) == (scenario.visit == nil) || len(scenario.Rows) == 0 {
			t.Errorf("scenario '%s' is there twice, or lacks words, rows or the one function that runs it", scenario.Name)
		}
		names[scenario.Name] = true
		for _, row := range scenario.Rows {
			if other, there := ids[row.ID]; there {
				t.Errorf("%s is a row of %s and of %s", row.ID, other, scenario.Name)
			}
			ids[row.ID] = scenario.Name
			if row.Name == "" || row.Unit == "" || row.Basis != Absolute && row.Basis != Added {
				t.Errorf("%s: name '%s', unit '%s', basis '%s': one is missing", row.ID, row.Name, row.Unit, row.Basis)
			}
		}
	}
}

func TestRowOf(t *testing.T) {
	row := Row{"KF-999", "waits", "ns", Added, bound(2), nil}
	got, err := row.of([]float64{5, 1, 2, 3, 4, 6}, []float64{1})
	if err != nil {
		t.Fatal(err)
	}
	want := Result{ID: "KF-999", Name: "waits", Unit: "ns", Basis: Added, Target: bound(2), Value: 3, P99: 6, N: 6,
		Baseline: 1, BaselineP99: 1, Spread: []float64{1, 2, 3, 5, 6, 6}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := row.of(nil, []float64{1}); err == nil {
		t.Error("a result was made of nothing")
	}
}

// A result that no list of rows has would be in no other list either.
func TestTakeRefusesUnknownRow(t *testing.T) {
	var report Report
	err := report.take(Scenario{Name: "some", Rows: []Row{{ID: "KF-001"}}}, measured{results: []Result{{ID: "KF-002", Name: "other"}}})
	if err == nil {
		t.Error("KF-002 was taken")
	}
}

func TestGap(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	log := readings{{at(0), []float64{5, 1}}, {at(4), []float64{5, 1}}, {at(5), []float64{6, 1}}, {at(8), []float64{6, 1}}, {at(9), []float64{6, 2}}}
	if got := log.gap(); got != 5*time.Millisecond {
		t.Errorf("gap %s, want the 5 ms before the first work", got)
	}
	log = append(log, reading{at(20), []float64{6, 2}})
	if got := log.gap(); got != 11*time.Millisecond {
		t.Errorf("gap %s, want the 11 ms at the end, which nothing ended", got)
	}
}
