package bench

import (
	"encoding/json"
	"fmt"
	"io"
)

// Schema names the result format. A field may be added under the same name; a field that changes its
// meaning or goes away needs a new one.
const Schema = "kerf.bench/v1"

// Report is what one run of the bench leaves: where it ran, and one Result for each metric.
type Report struct {
	Schema  string   `json:"schema"`
	Env     Env      `json:"env"`
	Results []Result `json:"results"`
}

// Env says where the numbers come from. Compare refuses those of another card or kind; what else differs it notes.
type Env struct {
	Date      string `json:"date"`    // RFC 3339, UTC
	Machine   string `json:"machine"` // architecture, CPUs, memory
	CPU       string `json:"cpu"`     // model name
	Kernel    string `json:"kernel"`  // release
	Kerf      string `json:"kerf"`    // version of the build
	Driver    string `json:"driver"`  // NVIDIA driver, or the simulated driver's number
	Card      string `json:"card"`
	Simulated bool   `json:"simulated"`
}

// Basis says which number a target bounds.
type Basis string

const (
	// Absolute bounds Value itself.
	Absolute Basis = "absolute"
	// Added bounds Value − Baseline: what Kerf costs on top of the driver.
	Added Basis = "added"
)

// Result is one metric. Value and P99 are measured through the shim; Baseline and BaselineP99 are the same
// calls into the driver directly, measured in alternation with them in the same run.
type Result struct {
	Scenario    string   `json:"scenario"`
	ID          string   `json:"id"` // GPU-Virt-Bench's id where it has the metric, else KF-…
	Name        string   `json:"name"`
	Unit        string   `json:"unit"`
	Value       float64  `json:"value"` // median
	P99         float64  `json:"p99"`
	Baseline    float64  `json:"baseline"`
	BaselineP99 float64  `json:"baseline_p99"`
	Ratio       float64  `json:"ratio"`      // Value / Baseline; 0 where there is no baseline
	Basis       Basis    `json:"basis"`      // what the targets bound
	Target      *float64 `json:"target"`     // for the median; null: none is set
	TargetP99   *float64 `json:"target_p99"` // for the 99th percentile; null: none is set
	OK          bool     `json:"ok"`         // no target is missed
	N           int      `json:"n"`          // samples through the shim
	Simulated   bool     `json:"simulated"`

	Spread         []float64 `json:"spread,omitempty"` // the percentiles SpreadAt of the samples, where they were kept
	BaselineSpread []float64 `json:"baseline_spread,omitempty"`
	Shares         []Share   `json:"shares,omitempty"` // of GPU time, where the metric is about them
	MoreIsBetter   bool      `json:"more_is_better,omitempty"`
}

// Share is what one tenant had of the GPU's time, and what it was due, in percent.
type Share struct {
	Tenant string  `json:"tenant"`
	Due    float64 `json:"due"`
	Got    float64 `json:"got"`
}

// Judge fills Ratio and OK from the other fields.
func (r *Result) Judge() {
	r.Ratio = 0
	if r.Baseline > 0 {
		r.Ratio = r.Value / r.Baseline
	}
	r.OK = within(r.Bounded(), r.Target) && within(r.BoundedP99(), r.TargetP99)
}

func within(got float64, target *float64) bool { return target == nil || got <= *target }

// Bounded is the median as the target sees it: the value, or what it is above the baseline.
func (r Result) Bounded() float64 {
	if r.Basis == Added {
		return r.Value - r.Baseline
	}
	return r.Value
}

// BoundedP99 is Bounded for the 99th percentile. Added, it is the difference of the two percentiles, which
// is what a caller sees of the tail; the percentile of differences cannot be had from separate processes.
func (r Result) BoundedP99() float64 {
	if r.Basis == Added {
		return r.P99 - r.BaselineP99
	}
	return r.P99
}

// Missed lists the results whose targets were missed.
func (r Report) Missed() []Result {
	var missed []Result
	for _, one := range r.Results {
		if !one.OK {
			missed = append(missed, one)
		}
	}
	return missed
}

// WriteJSON is the one writer of the format.
func (r Report) WriteJSON(w io.Writer) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	_, err = w.Write(append(text, '\n'))
	return err
}
