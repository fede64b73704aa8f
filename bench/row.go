package bench

import "fmt"

// Row is a metric that a scenario measures: what its results are called, in which unit, and what is promised. The
// rows of a scenario are known without running it, so that other lists can name them.
type Row struct {
	ID        string   `json:"id"` // GPU-Virt-Bench's where it has the metric, else KF-…
	Name      string   `json:"name"`
	Unit      string   `json:"unit"`
	Basis     Basis    `json:"basis"` // what the targets bound
	Target    *float64 `json:"target"`
	TargetP99 *float64 `json:"target_p99"`
}

func bound(target float64) *float64 { return &target }

// of makes the row's result of what was measured through Kerf, and of the same without it or undisturbed; the latter
// may be empty where there is no such thing.
func (r Row) of(got, baseline []float64) (Result, error) {
	if len(got) == 0 {
		return Result{}, fmt.Errorf("%s %s: nothing was measured", r.ID, r.Name)
	}
	result := r.result(Median(got), Percentile(got, 99), len(got))
	result.Spread = spread(got)
	if len(baseline) > 0 {
		result.Baseline, result.BaselineP99, result.BaselineSpread = Median(baseline), Percentile(baseline, 99), spread(baseline)
	}
	return result, nil
}

// result is for what is measured in one figure.
func (r Row) result(value, p99 float64, n int) Result {
	return Result{ID: r.ID, Name: r.Name, Unit: r.Unit, Basis: r.Basis, Target: r.Target, TargetP99: r.TargetP99, Value: value, P99: p99, N: n}
}

// Targets is what is promised of the row, in words.
func (r Row) Targets() string { return r.result(0, 0, 0).targets() }

// SpreadAt are the percentiles of a result's spread.
var SpreadAt = []float64{0, 25, 50, 75, 95, 100}

// spread is how samples lie; nil where they are too few to say.
func spread(samples []float64) []float64 {
	if len(samples) < len(SpreadAt) {
		return nil
	}
	at := make([]float64, len(SpreadAt))
	for i, p := range SpreadAt {
		at[i] = Percentile(samples, p)
	}
	return at
}

// taken is what was measured for a row.
type taken struct {
	row           Row
	got, baseline []float64
}

func resultsOf(all []taken) ([]Result, error) {
	var results []Result
	for _, one := range all {
		result, err := one.row.of(one.got, one.baseline)
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	return results, nil
}
