package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// File is a report that was kept.
type File struct {
	Path string
	Report
}

// mostBytes bounds a report: a run of all scenarios is a hundredth of it.
const mostBytes = 64 << 20

// ReadFile reads a report that `kerf bench run --out` wrote. Its errors name the file, and what to do.
func ReadFile(path string) (File, error) {
	file, err := os.Open(path)
	if err != nil {
		return File{}, fmt.Errorf("%s: cannot be read (%w); name a file that `kerf bench run --out` wrote", path, bare(err))
	}
	defer file.Close()
	report, err := Read(file)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return File{path, report}, nil
}

// bare is a path error without the path, which has been said.
func bare(err error) error {
	if inner, ok := errors.AsType[*os.PathError](err); ok {
		return inner.Err
	}
	return err
}

// Read reads a report of this schema; fields that were added since are passed over.
func Read(from io.Reader) (Report, error) {
	text, err := io.ReadAll(io.LimitReader(from, mostBytes+1))
	if err != nil {
		return Report{}, fmt.Errorf("cannot be read (%w); name a file that `kerf bench run --out` wrote", bare(err))
	}
	if len(text) > mostBytes {
		return Report{}, fmt.Errorf("larger than %d MiB, so it is no report; name a file that `kerf bench run --out` wrote", mostBytes>>20)
	}
	var head struct {
		Schema string `json:"schema"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return Report{}, fmt.Errorf("not JSON of %s (%w); name a file that `kerf bench run --out` wrote", Schema, err)
	}
	switch {
	case head.Schema == Schema:
	case strings.HasPrefix(head.Schema, "kerf.bench/v"):
		return Report{}, fmt.Errorf("schema '%s': this kerf reads %s; use the kerf that wrote it, or a newer one", head.Schema, Schema)
	default:
		return Report{}, fmt.Errorf("schema '%s': not %s; name a file that `kerf bench run --out` wrote", head.Schema, Schema)
	}
	var report Report
	if err := json.Unmarshal(text, &report); err != nil {
		return Report{}, fmt.Errorf("not as %s has it (%w); write it again by `kerf bench run --out`", Schema, err)
	}
	return report, report.valid()
}

// valid tells whether a report is one: what reads it later relies on this.
func (r Report) valid() error {
	if len(r.Results) == 0 {
		return errors.New("a report without results; write it again by `kerf bench run --out`")
	}
	seen := map[string]bool{}
	for i, one := range r.Results {
		name := one.Scenario + " " + one.ID
		var wrong string
		switch {
		case one.Scenario == "" || one.ID == "" || one.Name == "" || one.Unit == "":
			wrong = "has no scenario, id, name or unit"
		case one.Basis != Absolute && one.Basis != Added:
			wrong = fmt.Sprintf("has the basis '%s', which is neither %s nor %s", one.Basis, Absolute, Added)
		case len(one.Spread) != 0 && len(one.Spread) != len(SpreadAt) || len(one.BaselineSpread) != 0 && len(one.BaselineSpread) != len(SpreadAt):
			wrong = fmt.Sprintf("has a spread that is not of %d percentiles", len(SpreadAt))
		case seen[name]:
			wrong = "is there twice"
		case one.Simulated != r.Env.Simulated:
			wrong = fmt.Sprintf("says simulated: %t, the report says %t", one.Simulated, r.Env.Simulated)
		}
		if wrong != "" {
			return fmt.Errorf("result %d (%s) %s; write it again by `kerf bench run --out`", i+1, name, wrong)
		}
		seen[name] = true
	}
	return nil
}
