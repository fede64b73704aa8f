package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// CompareSchema names the format of `kerf bench compare --json`.
const CompareSchema = "kerf.bench.compare/v1"

// Verdict is how a row of a later file is against the same row of the first.
type Verdict string

const (
	Better  Verdict = "better"
	Worse   Verdict = "worse"
	Same    Verdict = "same"    // within the tolerance, or too little to tell
	Missing Verdict = "missing" // the first file has it, this one not
	New     Verdict = "new"     // this one has it, the first file not
)

// Comparison lays reports of the same thing beside the first of them.
type Comparison struct {
	Schema    string          `json:"schema"`
	Simulated bool            `json:"simulated"`
	Tolerance float64         `json:"tolerance"` // percent; what is within is the same
	Files     []ComparedFile  `json:"files"`
	Notes     []string        `json:"notes"` // what else differs
	Rows      []ComparisonRow `json:"rows"`
}

// ComparedFile is where a column's numbers come from.
type ComparedFile struct {
	Path string `json:"path"`
	Env  Env    `json:"env"`
}

// ComparisonRow is one metric in every file, the first file's first.
type ComparisonRow struct {
	Scenario     string           `json:"scenario"`
	ID           string           `json:"id"`
	Name         string           `json:"name"`
	Unit         string           `json:"unit"`
	MoreIsBetter bool             `json:"more_is_better"`
	Cells        []ComparisonCell `json:"cells"`
}

// ComparisonCell is one file's. Ratios are to the first file; null where that has 0 or nothing.
type ComparisonCell struct {
	Value    *float64 `json:"value"` // null: not in this file
	P99      *float64 `json:"p99"`
	Ratio    *float64 `json:"ratio"`
	RatioP99 *float64 `json:"ratio_p99"`
	Verdict  Verdict  `json:"verdict,omitempty"` // none in the first file
}

// floors are differences that are too small to mean anything, whatever the ratio: a clock's step, a rounding.
var floors = map[string]float64{"ns": 10, "%": 0.5, "B": 0, "pods/s": 0}

// Compare lays files beside the first of them. It refuses what cannot be compared.
func Compare(files []File, tolerance float64) (Comparison, error) {
	if len(files) < 2 {
		return Comparison{}, fmt.Errorf("%d file to compare; name two or more", len(files))
	}
	if !(tolerance >= 0) { // NaN too
		return Comparison{}, fmt.Errorf("tolerance %g %%: less than nothing; use 0 or more", tolerance)
	}
	all := Comparison{Schema: CompareSchema, Simulated: files[0].Env.Simulated, Tolerance: tolerance, Notes: []string{}}
	for _, file := range files {
		all.Files = append(all.Files, ComparedFile{file.Path, file.Env})
	}
	for _, file := range files[1:] {
		if err := alike(files[0], file); err != nil {
			return Comparison{}, err
		}
		all.Notes = append(all.Notes, differences(files[0], file)...)
	}
	all.Rows = comparisonRows(files, tolerance)
	return all, nil
}

func kindOf(simulated bool) string {
	if simulated {
		return "simulated"
	}
	return "real"
}

// alike is nil where the numbers of both are of the same thing.
func alike(a, b File) error {
	if a.Env.Simulated != b.Env.Simulated {
		return fmt.Errorf("%s is of a %s GPU, %s of a %s one: their numbers have nothing in common; compare runs of one kind",
			a.Path, kindOf(a.Env.Simulated), b.Path, kindOf(b.Env.Simulated))
	}
	if a.Env.Card != b.Env.Card {
		return fmt.Errorf("%s is of an %s, %s of an %s: compare runs of one card", a.Path, a.Env.Card, b.Path, b.Env.Card)
	}
	common := false
	for _, name := range b.scenarios() {
		common = common || slices.Contains(a.scenarios(), name)
	}
	if !common {
		return fmt.Errorf("%s has the scenarios %s, %s has %s: none is in both; compare runs of one scenario", a.Path,
			strings.Join(a.scenarios(), ", "), b.Path, strings.Join(b.scenarios(), ", "))
	}
	for _, one := range a.Results {
		if other, there := b.find(one.Scenario, one.ID); there && (one.Unit != other.Unit || one.MoreIsBetter != other.MoreIsBetter) {
			return fmt.Errorf("%s of %s is in %s in %s and in %s in %s, or better the other way: it is not the same metric; compare runs of one version",
				one.ID, one.Scenario, one.Unit, a.Path, other.Unit, b.Path)
		}
	}
	return nil
}

// scenarios of the report, in its order.
func (r Report) scenarios() (names []string) {
	for _, one := range r.Results {
		if !slices.Contains(names, one.Scenario) {
			names = append(names, one.Scenario)
		}
	}
	return names
}

func (r Report) find(scenario, id string) (Result, bool) {
	for _, one := range r.Results {
		if one.Scenario == scenario && one.ID == id {
			return one, true
		}
	}
	return Result{}, false
}

// differences that a reader must know of: they change numbers, and may be what is compared.
func differences(a, b File) (notes []string) {
	for _, field := range []struct{ name, a, b string }{
		{"driver", a.Env.Driver, b.Env.Driver}, {"CPU", a.Env.CPU, b.Env.CPU}, {"machine", a.Env.Machine, b.Env.Machine},
		{"kernel", a.Env.Kernel, b.Env.Kernel}, {"kerf", a.Env.Kerf, b.Env.Kerf},
	} {
		if field.a != field.b {
			notes = append(notes, fmt.Sprintf("%s: %s in %s, %s in %s", field.name, field.a, a.Path, field.b, b.Path))
		}
	}
	for _, name := range a.scenarios() {
		if !slices.Contains(b.scenarios(), name) {
			notes = append(notes, fmt.Sprintf("scenario %s: only in %s, left out", name, a.Path))
		}
	}
	for _, name := range b.scenarios() {
		if !slices.Contains(a.scenarios(), name) {
			notes = append(notes, fmt.Sprintf("scenario %s: only in %s, left out", name, b.Path))
		}
	}
	return notes
}

// comparisonRows are the rows of the scenarios that the first file shares with another, and what others have there besides.
func comparisonRows(files []File, tolerance float64) (rows []ComparisonRow) {
	for _, name := range files[0].scenarios() {
		var ids []string
		shared := false
		for i, file := range files {
			for _, one := range file.Results {
				if one.Scenario != name {
					continue
				}
				shared = shared || i > 0
				if !slices.Contains(ids, one.ID) {
					ids = append(ids, one.ID)
				}
			}
		}
		if !shared {
			continue
		}
		for _, id := range ids {
			rows = append(rows, comparisonRow(files, name, id, tolerance))
		}
	}
	return rows
}

func comparisonRow(files []File, scenario, id string, tolerance float64) ComparisonRow {
	row := ComparisonRow{Scenario: scenario, ID: id}
	base, has := files[0].find(scenario, id)
	for i, file := range files {
		one, there := file.find(scenario, id)
		if there && row.Name == "" {
			row.Name, row.Unit, row.MoreIsBetter = one.Name, one.Unit, one.MoreIsBetter
		}
		var cell ComparisonCell
		if there {
			cell.Value, cell.P99 = &one.Value, &one.P99
		}
		switch {
		case i == 0 || !there && !slices.Contains(file.scenarios(), scenario): // nothing to say of a scenario that did not run
		case !there && has:
			cell.Verdict = Missing
		case there && !has:
			cell.Verdict = New
		case there:
			cell.Ratio, cell.RatioP99 = quotient(one.Value, base.Value), quotient(one.P99, base.P99)
			cell.Verdict = judge(base, one, tolerance)
		}
		row.Cells = append(row.Cells, cell)
	}
	return row
}

func quotient(value, base float64) *float64 {
	if base == 0 {
		return nil
	}
	ratio := value / base
	return &ratio
}

// judge compares the values, not the tails: a p99 of a busy machine says more about the machine.
func judge(base, one Result, tolerance float64) Verdict {
	change := one.Value - base.Value
	if size := max(change, -change); size <= floors[base.Unit] || size <= tolerance/100*max(base.Value, -base.Value) {
		return Same
	}
	if (change < 0) == one.MoreIsBetter {
		return Worse
	}
	return Better
}

// RegressionError says which rows are worse than the first file's, or gone.
type RegressionError struct {
	Tolerance float64
	Rows      []string
}

func (e RegressionError) Error() string {
	return fmt.Sprintf("beyond %g %%: %s", e.Tolerance, strings.Join(e.Rows, "; "))
}

// Check is nil where no row is worse or missing, else a RegressionError.
func (c Comparison) Check() error {
	var rows []string
	for _, row := range c.Rows {
		for i, cell := range row.Cells {
			switch cell.Verdict {
			case Worse:
				rows = append(rows, fmt.Sprintf("%s %s: %s in %s, %s in %s", row.ID, row.Name, quantity(*row.Cells[0].Value, row.Unit), c.Files[0].Path,
					quantity(*cell.Value, row.Unit), c.Files[i].Path))
			case Missing:
				rows = append(rows, fmt.Sprintf("%s %s: not measured in %s", row.ID, row.Name, c.Files[i].Path))
			}
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return RegressionError{c.Tolerance, rows}
}

// WriteJSON prints the comparison for programs.
func (c Comparison) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(c)
}

// WriteTable prints the comparison for people.
func (c Comparison) WriteTable(w io.Writer) error {
	kind := "real GPU"
	if c.Simulated {
		kind = "SIMULATED GPU"
	}
	fmt.Fprintf(w, "%s: %s\n", kind, c.Files[0].Env.Card)
	for i, file := range c.Files {
		fmt.Fprintf(w, "%s: %s, %s, kerf %s\n", letter(i), file.Path, file.Env.Date, file.Env.Kerf)
	}
	for _, note := range c.Notes {
		fmt.Fprintln(w, "note:", note)
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "scenario\tid\tmetric\tA")
	for i := range c.Files[1:] {
		fmt.Fprintf(table, "\t%s\tratio\tp99 ratio\t", letter(i+1))
	}
	fmt.Fprintln(table)
	for _, row := range c.Rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s", row.Scenario, row.ID, strings.TrimSpace(row.Name), optionally(row.Cells[0].Value, row.Unit))
		for _, cell := range row.Cells[1:] {
			fmt.Fprintf(table, "\t%s\t%s\t%s\t%s", optionally(cell.Value, row.Unit), ratioText(cell.Ratio), ratioText(cell.RatioP99), cell.Verdict)
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

func letter(i int) string {
	if i < 26 {
		return string(rune('A' + i))
	}
	return fmt.Sprint(i + 1)
}

func optionally(value *float64, unit string) string {
	if value == nil {
		return "-"
	}
	return quantity(*value, unit)
}

func ratioText(ratio *float64) string {
	if ratio == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *ratio)
}

// errNoFiles is for verbs that read files and were given none.
var errNoFiles = errors.New("no file named; name files that `kerf bench run --out` wrote")

// ReadFiles reads them all, and stops at the first that cannot be.
func ReadFiles(paths []string) (files []File, err error) {
	if len(paths) == 0 {
		return nil, errNoFiles
	}
	for _, path := range paths {
		file, err := ReadFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}
