package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html
var pageText string

var page = template.Must(template.New("report").Parse(pageText))

// pageFile is a report as the page shows it.
type pageFile struct {
	Anchor, Kind       string
	File               File
	Met, Missed, Plain int // rows: targets met, missed, none set
	Targets            []pageRow
	Scenarios          []pageScenario
}

type pageScenario struct {
	Anchor, Name, About string
	Figures             []Figure
	Rows                []pageRow
}

// pageRow is a result in words.
type pageRow struct {
	Scenario, ID, Name                      string
	Native, NativeP99, Kerf, KerfP99, Ratio string
	Bounded, Targets, Verdict               string
	N                                       int
}

// WriteHTML writes one page of reports: it needs nothing from elsewhere, and no script.
func WriteHTML(w io.Writer, files []File) error {
	if len(files) == 0 {
		return errNoFiles
	}
	var all []pageFile
	simulated, real := false, false
	for i, file := range files {
		all = append(all, pageOf(fmt.Sprintf("f%d", i+1), file))
		simulated, real = simulated || file.Env.Simulated, real || !file.Env.Simulated
	}
	kind := all[0].Kind
	if simulated && real {
		kind = "SIMULATED AND REAL GPUs"
	}
	return page.Execute(w, struct {
		Kind             string
		Simulated, Mixed bool
		Files            []pageFile
	}{kind, simulated, simulated && real, all})
}

func pageOf(anchor string, file File) pageFile {
	p := pageFile{Anchor: anchor, File: file, Kind: "REAL GPU"}
	if file.Env.Simulated {
		p.Kind = "SIMULATED GPU"
	}
	var met, missed []pageRow
	for i, name := range file.scenarios() {
		scenario := pageScenario{Anchor: fmt.Sprintf("%s-%d", anchor, i+1), Name: name}
		if known, err := Find(name); err == nil {
			scenario.About = known.About
		}
		var results []Result
		for _, one := range file.Results {
			if one.Scenario != name {
				continue
			}
			row := pageRowOf(one)
			results, scenario.Rows = append(results, one), append(scenario.Rows, row)
			switch row.Verdict {
			case "-":
				p.Plain++
			case "MISSED":
				missed = append(missed, row)
			default:
				met = append(met, row)
			}
		}
		scenario.Figures = figures(name, results)
		p.Scenarios = append(p.Scenarios, scenario)
	}
	p.Met, p.Missed = len(met), len(missed)
	p.Targets = append(missed, met...) // nobody should have to look for what was missed
	return p
}

func pageRowOf(one Result) pageRow {
	row := pageRow{Scenario: one.Scenario, ID: one.ID, Name: strings.TrimSpace(one.Name), Native: "–", NativeP99: "–", Ratio: ratio(one.Ratio),
		Kerf: quantity(one.Value, one.Unit), KerfP99: quantity(one.P99, one.Unit), Targets: one.targets(), Verdict: verdict(one), N: one.N}
	if one.measuredNatively() {
		row.Native, row.NativeP99 = quantity(one.Baseline, one.Unit), quantity(one.BaselineP99, one.Unit)
	}
	row.Bounded = quantity(one.Bounded(), one.Unit)
	switch p99 := "p99 " + quantity(one.BoundedP99(), one.Unit); {
	case one.TargetP99 == nil:
	case one.Target == nil:
		row.Bounded = p99
	default:
		row.Bounded += ", " + p99
	}
	return row
}

func (r Result) measuredNatively() bool { return r.Baseline != 0 || r.BaselineP99 != 0 }

// figures of a scenario: shares of each case, then times, then whatever is in other units.
func figures(scenario string, results []Result) (all []Figure) {
	var units []string
	by := map[string][]Result{}
	for _, one := range results {
		if len(one.Shares) > 0 {
			all = append(all, sharesFigure(one))
		}
		if by[one.Unit] == nil {
			units = append(units, one.Unit)
		}
		by[one.Unit] = append(by[one.Unit], one)
	}
	for _, unit := range units {
		if unit == "ns" {
			all = append(all, timesFigure(scenario, by[unit]))
		} else {
			all = append(all, valuesFigure(scenario, unit, by[unit]))
		}
	}
	return all
}

// sharesFigure is what each tenant had of the GPU's time beside what it was due.
func sharesFigure(one Result) Figure {
	values := []float64{0}
	var about []string
	for _, share := range one.Shares {
		values = append(values, share.Due, share.Got)
		about = append(about, fmt.Sprintf("tenant %s was due %.1f percent and got %.1f", share.Tenant, share.Due, share.Got))
	}
	name, _, _ := strings.Cut(one.Name, ": ")
	title := "GPU time, got and due: " + name
	c := newCanvas(linear(values, "%"), len(one.Shares), title, strings.Join(about, "; "))
	c.legend(legendDue, legendGot)
	for _, share := range one.Shares {
		c.next(share.Tenant, fmt.Sprintf("due %.1f %%, got %.1f %%", share.Due, share.Got))
		c.bar("n", share.Due, -8, 9)
		c.bar("k", share.Got, 3, 9)
	}
	return c.figure(title + " (" + one.ID + ")")
}

// timesFigure is how long things take, native and through Kerf, on a logarithmic axis.
func timesFigure(scenario string, results []Result) Figure {
	var values []float64
	var about []string
	for _, one := range results {
		values = append(values, one.Value, one.P99, one.Baseline, one.BaselineP99)
		about = append(about, fmt.Sprintf("%s: %s, p99 %s", strings.TrimSpace(one.Name), quantity(one.Value, one.Unit), quantity(one.P99, one.Unit)))
	}
	title := "Times of " + scenario
	c := newCanvas(decades(values, "ns"), len(results), title, strings.Join(about, "; "))
	c.legend(legendNative, legendKerf, legendBox, legendTarget)
	for _, one := range results {
		c.next(one.Name, quantity(one.Value, one.Unit)+", p99 "+quantity(one.P99, one.Unit))
		if one.measuredNatively() {
			c.box("n", one.BaselineSpread, -3)
			c.span("n", one.Baseline, one.BaselineP99, -3)
			c.dot("n", one.Baseline, -3)
		}
		c.box("k", one.Spread, 8)
		c.span("k", one.Value, one.P99, 8)
		c.dot("k", one.Value, 8)
		for _, limit := range one.limits() {
			c.target(limit)
		}
	}
	return c.figure(title + ", logarithmic: the lower the better")
}

// limits are the targets as values: what is added is added to the baseline.
func (r Result) limits() (at []float64) {
	median, p99 := 0.0, 0.0
	if r.Basis == Added {
		median, p99 = r.Baseline, r.BaselineP99
	}
	if r.Target != nil {
		at = append(at, median+*r.Target)
	}
	if r.TargetP99 != nil && (r.Target == nil || r.Basis == Added || *r.Target != *r.TargetP99) {
		at = append(at, p99+*r.TargetP99)
	}
	return at
}

// valuesFigure is figures of one unit as bars, with their targets.
func valuesFigure(scenario, unit string, results []Result) Figure {
	values := []float64{0}
	var about []string
	for _, one := range results {
		values = append(append(values, one.Value), one.limits()...)
		about = append(about, strings.TrimSpace(one.Name)+": "+quantity(one.Value, unit))
	}
	title := fmt.Sprintf("Figures of %s in %s", scenario, unit)
	c := newCanvas(linear(values, unit), len(results), title, strings.Join(about, "; "))
	c.legend(legendValue, legendTarget)
	better := "the lower the better"
	if results[0].MoreIsBetter {
		better = "the higher the better"
	}
	for _, one := range results {
		c.next(one.Name, quantity(one.Value, unit))
		c.bar("k", one.Value, -2, 10)
		for _, limit := range one.limits() {
			c.target(limit)
		}
	}
	return c.figure(title + ": " + better)
}

// SummarySchema names the format of `kerf bench report --json`.
const SummarySchema = "kerf.bench.report/v1"

// Summary is what a page says of its files, in short.
type Summary struct {
	Schema string        `json:"schema"`
	Page   string        `json:"page"`
	Files  []FileSummary `json:"files"`
}

// FileSummary counts a file's rows: of targets that were met and missed, and those without.
type FileSummary struct {
	Path    string `json:"path"`
	Kind    string `json:"kind"` // simulated or real
	Env     Env    `json:"env"`
	Met     int    `json:"met"`
	Missed  int    `json:"missed"`
	Without int    `json:"without"`
}

// Summarize is the summary of a page that was written.
func Summarize(path string, files []File) Summary {
	all := Summary{Schema: SummarySchema, Page: path}
	for _, file := range files {
		p := pageOf("", file)
		all.Files = append(all.Files, FileSummary{file.Path, kindOf(file.Env.Simulated), file.Env, p.Met, p.Missed, p.Plain})
	}
	return all
}
