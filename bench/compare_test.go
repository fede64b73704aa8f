package bench

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// changed is the sample with something else in it.
func changed(path string, change func(*Report)) File {
	report := sample()
	if change != nil {
		change(&report)
	}
	return File{path, report}
}

func TestCompareGolden(t *testing.T) {
	files := []File{
		changed("a.json", nil),
		changed("b.json", func(r *Report) {
			r.Env.Kerf, r.Env.Driver = "v0.2.0", "590.1.1"
			r.Results[0].Value = 80       // worse
			r.Results[1].Value = 10       // better
			r.Results[2].Value += 8       // 40 %, and less than a clock's step
			r.Results = r.Results[:3]     // one is missing
			r.Results = append(r.Results, // two are new, one of them of another scenario
				Result{Scenario: "overhead", ID: "KF-001", Name: "graph launch", Unit: "ns", Basis: Added, Value: 1, P99: 2, Simulated: true},
				Result{Scenario: "shares", ID: "KF-160", Name: "lost", Unit: "%", Basis: Absolute, Simulated: true})
		}),
	}
	got, err := Compare(files, 10)
	if err != nil {
		t.Fatal(err)
	}
	var text, asJSON bytes.Buffer
	if err := errors.Join(got.WriteTable(&text), got.WriteJSON(&asJSON)); err != nil {
		t.Fatal(err)
	}
	golden(t, "compare.txt", text.Bytes())
	golden(t, "compare.json", asJSON.Bytes())
	missed, ok := errors.AsType[RegressionError](got.Check())
	want := []string{"OH-001 kernel launch: 15.0 ns in a.json, 80.0 ns in b.json", "OH-004 context create + destroy: not measured in b.json"}
	if diff := cmp.Diff(want, missed.Rows); !ok || diff != "" {
		t.Error(diff)
	}
}

func TestCompareJudge(t *testing.T) {
	for name, test := range map[string]struct {
		unit      string
		more      bool
		a, b      float64
		tolerance float64
		want      Verdict
	}{
		"less":                 {"ns", false, 1000, 800, 10, Better},
		"more":                 {"ns", false, 1000, 1200, 10, Worse},
		"at the tolerance":     {"ns", false, 1000, 1100, 10, Same},
		"below a clock's step": {"ns", false, 10, 20, 10, Same},
		"from nothing":         {"%", false, 0, 3, 10, Worse},
		"to nothing":           {"%", false, 3, 0, 10, Better},
		"bytes have no floor":  {"B", false, 0, 1, 10, Worse},
		"more is better":       {"pods/s", true, 10, 20, 10, Better},
		"less is worse":        {"pods/s", true, 20, 10, 10, Worse},
		"no tolerance":         {"ns", false, 1000, 1011, 0, Worse},
		"below nothing":        {"ns", false, -100, -200, 10, Better},
		"nothing and nothing":  {"ns", false, 0, 0, 0, Same},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := Result{Unit: test.unit, MoreIsBetter: test.more, Value: test.a}, Result{Unit: test.unit, MoreIsBetter: test.more, Value: test.b}
			if got := judge(a, b, test.tolerance); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

func TestCompareRefuses(t *testing.T) {
	real := changed("b.json", func(r *Report) {
		r.Env.Simulated = false
		for i := range r.Results {
			r.Results[i].Simulated = false
		}
	})
	for name, test := range map[string]struct {
		files     []File
		tolerance float64
		want      string
	}{
		"one file":           {[]File{changed("a.json", nil)}, 10, "1 file to compare; name two or more"},
		"simulated and real": {[]File{changed("a.json", nil), real}, 10, "a.json is of a simulated GPU, b.json of a real one"},
		"other card": {[]File{changed("a.json", nil), changed("b.json", func(r *Report) { r.Env.Card = "NVIDIA L40S (simulated)" })}, 10,
			"a.json is of an NVIDIA H200 (simulated), b.json of an NVIDIA L40S (simulated): compare runs of one card"},
		"other scenario": {[]File{changed("a.json", nil), changed("b.json", func(r *Report) {
			for i := range r.Results {
				r.Results[i].Scenario = "shares"
			}
		})}, 10, "a.json has the scenarios overhead, b.json has shares: none is in both"},
		"other unit": {[]File{changed("a.json", nil), changed("b.json", func(r *Report) { r.Results[0].Unit = "µs" })}, 10, "OH-001 of overhead is in ns in a.json and in µs in b.json"},
		"tolerance":  {[]File{changed("a.json", nil), changed("b.json", nil)}, -1, "tolerance -1 %: less than nothing"},
		"no number":  {[]File{changed("a.json", nil), changed("b.json", nil)}, math.NaN(), "tolerance NaN %: less than nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compare(test.files, test.tolerance)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line with '%s'", err, test.want)
			}
		})
	}
}

// Whatever is no report is refused in one line that says what to do.
func TestReadRefuses(t *testing.T) {
	whole := func(change func(*Report)) string {
		var text bytes.Buffer
		if err := changed("", change).WriteJSON(&text); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	for name, test := range map[string]struct{ text, want string }{
		"empty":         {"", "not JSON of kerf.bench/v1"},
		"malformed":     {`{"schema": "kerf.bench/v1", `, "not JSON of kerf.bench/v1"},
		"a list":        {"[]", "not JSON of kerf.bench/v1"},
		"newer":         {`{"schema": "kerf.bench/v2"}`, "schema 'kerf.bench/v2': this kerf reads kerf.bench/v1; use the kerf that wrote it, or a newer one"},
		"another's":     {`{"schema": "kerf.top/v1"}`, "schema 'kerf.top/v1': not kerf.bench/v1"},
		"none":          {"{}", "schema '': not kerf.bench/v1"},
		"wrong type":    {`{"schema": "kerf.bench/v1", "results": [{"value": "fast"}]}`, "not as kerf.bench/v1 has it"},
		"nothing in it": {whole(func(r *Report) { r.Results = nil }), "a report without results"},
		"no id":         {whole(func(r *Report) { r.Results[1].ID = "" }), "result 2 (overhead ) has no scenario, id, name or unit"},
		"basis":         {whole(func(r *Report) { r.Results[1].Basis = "relative" }), "has the basis 'relative'"},
		"spread":        {whole(func(r *Report) { r.Results[0].Spread = []float64{1} }), "has a spread that is not of 6 percentiles"},
		"twice":         {whole(func(r *Report) { r.Results[1].ID = "OH-001" }), "result 2 (overhead OH-001) is there twice"},
		"two minds":     {whole(func(r *Report) { r.Results[0].Simulated = false }), "says simulated: false, the report says true"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "report.json")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ReadFile(path)
			if err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line of the file and '%s'", err, test.want)
			}
		})
	}
	for name, path := range map[string]string{"not there": filepath.Join(t.TempDir(), "none.json"), "a directory": t.TempDir()} {
		if _, err := ReadFile(path); err == nil || strings.Count(err.Error(), path) != 1 || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// What is written is read again, and the results that are kept can be.
func TestRead(t *testing.T) {
	var text bytes.Buffer
	if err := sample().WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Error(diff)
	}
	kept, err := filepath.Glob("results/*.json")
	if err != nil || len(kept) == 0 {
		t.Fatalf("no kept results (%v)", err)
	}
	for _, path := range kept {
		if _, err := ReadFile(path); err != nil {
			t.Error(err)
		}
	}
}

func FuzzRead(f *testing.F) {
	var text bytes.Buffer
	if err := sample().WriteJSON(&text); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add([]byte(`{"schema": "kerf.bench/v1", "results": [null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		report, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		all, err := Compare([]File{{"a", report}, {"b", report}}, 10)
		if err != nil {
			t.Fatalf("a report cannot be compared with itself: %v", err)
		}
		if err := all.Check(); err != nil {
			t.Errorf("a report is worse than itself: %v", err)
		}
		if err := all.WriteTable(&bytes.Buffer{}); err != nil {
			t.Error(err)
		}
		if err := WriteHTML(&bytes.Buffer{}, []File{{"a", report}}); err != nil {
			t.Error(err)
		}
	})
}
