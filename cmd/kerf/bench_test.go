package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/bench"
)

// ran runs the command in this process.
func ran(args ...string) (output string, code int, err error) {
	var out bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err = cmd.Execute()
	if exit, ok := errors.AsType[exitError](err); ok {
		code = exit.code
	} else if err != nil {
		code = exitFailure
	}
	return out.String(), code, err
}

// keptResult is a report in a file.
func keptResult(t *testing.T, change func(*bench.Report)) string {
	t.Helper()
	report := bench.Report{Schema: bench.Schema, Env: bench.Env{Card: "NVIDIA H200 (simulated)", Simulated: true}, Results: []bench.Result{
		{Scenario: "overhead", ID: "OH-001", Name: "kernel launch", Unit: "ns", Value: 100, P99: 200, Basis: bench.Added, OK: true, Simulated: true},
	}}
	if change != nil {
		change(&report)
	}
	path := filepath.Join(t.TempDir(), "report.json")
	var text bytes.Buffer
	if err := report.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBenchList(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"scenarios":  {nil, []string{"overhead", "neighbour", "switch"}},
		"rows":       {[]string{"--rows"}, []string{"KF-700", "IS-002", "absolute ≤ 3.0 %"}},
		"virt-bench": {[]string{"--virt-bench"}, []string{"OH-001", "ERR-003", "not measurable here"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := ran(append([]string{"bench", "list"}, test.args...)...)
			if err != nil || code != 0 {
				t.Fatalf("exit %d: %v", code, err)
			}
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("no '%s' in\n%s", want, out)
				}
			}
		})
	}
	for _, args := range [][]string{{"--json"}, {"--json", "--virt-bench"}, {"--json", "--rows"}} {
		out, _, err := ran(append([]string{"bench", "list"}, args...)...)
		if err != nil || !json.Valid([]byte(out)) || !strings.Contains(out, `"schema": "kerf.bench.`) {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

func TestBenchCompare(t *testing.T) {
	a := keptResult(t, nil)
	worse := keptResult(t, func(r *bench.Report) { r.Results[0].Value = 150 })
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"same":               {[]string{a, a, "--check"}, 0, "same"},
		"worse":              {[]string{a, worse}, 0, "worse"},
		"worse, checked":     {[]string{a, worse, "--check"}, exitMissed, "SIMULATED"},
		"worse, tolerated":   {[]string{a, worse, "--check", "--tolerance", "60"}, 0, "same"},
		"as JSON":            {[]string{a, worse, "--json"}, 0, `"simulated": true`},
		"three":              {[]string{a, a, worse}, 0, "C: "},
		"better, and checks": {[]string{worse, a, "--check"}, 0, "better"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := ran(append([]string{"bench", "compare"}, test.args...)...)
			if code != test.code || !strings.Contains(out, test.want) {
				t.Errorf("exit %d (%v), want %d and '%s' in\n%s", code, err, test.code, test.want, out)
			}
		})
	}
}

// Bad input is one line, and the same exit code everywhere.
func TestBenchMisuse(t *testing.T) {
	a := keptResult(t, nil)
	newer := filepath.Join(t.TempDir(), "newer.json")
	if err := os.WriteFile(newer, []byte(`{"schema": "kerf.bench/v9"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"scenario":        {[]string{"run", "overhed"}, "no scenario 'overhed': there is overhead, "},
		"scenario twice":  {[]string{"run", "switch", "switch"}, "scenario 'switch' is named twice; once is enough"},
		"no scenario":     {[]string{"run"}, "no scenario named"},
		"two lists":       {[]string{"list", "--rows", "--virt-bench"}, "ask for one"},
		"one file":        {[]string{"compare", a}, "compare wants two files or more"},
		"no such file":    {[]string{"compare", a, "/nowhere.json"}, "/nowhere.json: cannot be read (no such file or directory); name a file"},
		"newer":           {[]string{"compare", a, newer}, "schema 'kerf.bench/v9': this kerf reads kerf.bench/v1"},
		"no output":       {[]string{"report", a}, "report wants --output FILE"},
		"empty output":    {[]string{"report", a, "--output", ""}, "report wants --output FILE"},
		"no report":       {[]string{"report", "--output", "page.html"}, "no file named; name files"},
		"over a report":   {[]string{"report", a, "--output", a}, "is one of the reports"},
		"tolerance":       {[]string{"compare", a, a, "--tolerance", "-5"}, "tolerance -5 %: less than nothing; use 0 or more"},
		"tolerance, word": {[]string{"compare", a, a, "--tolerance", "some"}, "some"},
	} {
		t.Run(name, func(t *testing.T) {
			_, code, err := ran(append([]string{"bench"}, test.args...)...)
			if code != exitUsage || err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("exit %d (%v), want %d and one line with '%s'", code, err, exitUsage, test.want)
			}
		})
	}
}

// Shells are told the scenarios, and that the others take files.
func TestBenchCompletion(t *testing.T) {
	out, _, err := ran("__complete", "bench", "run", "")
	if err != nil || !strings.Contains(out, "overhead\n") || !strings.Contains(out, "switch\n") {
		t.Errorf("run: %v: %s", err, out)
	}
	for _, verb := range []string{"compare", "report"} {
		if out, _, err := ran("__complete", "bench", verb, ""); err != nil || !strings.HasPrefix(out, "json\n") {
			t.Errorf("%s: %v: %s", verb, err, out)
		}
	}
}

func TestBenchReport(t *testing.T) {
	a, page := keptResult(t, nil), filepath.Join(t.TempDir(), "page.html")
	for _, args := range [][]string{{}, {"--json"}} {
		out, code, err := ran(append([]string{"bench", "report", a, "--output", page}, args...)...)
		if err != nil || code != 0 || !strings.Contains(out, page) || !strings.Contains(out, "simulated") {
			t.Errorf("%v: exit %d (%v): %s", args, code, err, out)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(text, []byte("SIMULATED GPU")) {
		t.Errorf("%v: %s", err, text)
	}
	if _, code, err := ran("bench", "report", a, "--output", "/nowhere/page.html"); code != exitFailure || strings.Contains(err.Error(), "\n") {
		t.Errorf("exit %d (%v), want %d and one line", code, err, exitFailure)
	}
}
