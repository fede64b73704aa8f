// Package doctor is what `kerf doctor` knows: the checks of a node, as one table of pure judgements over facts that somebody else has
// gathered, and the forms in which their findings are told.
//
// Vocabulary: a section is a set of facts that is gathered together, and under one deadline. A check needs some sections and judges
// them. A finding is PASS, INFO, WARN, CRIT, UNKNOWN or SKIP: UNKNOWN is no pass, and SKIP says why nothing was looked at. A level says
// how far gathering may go: quick and full only read; active runs work on a GPU and must be asked for.
//
// Traps
//
//   - A fact that could not be gathered (a call that hangs, no permission) is UNKNOWN, never a sickness.
//   - Text for people may change; the JSON is kerf.doctor/v1, to which fields are only added.
package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is the outcome of a check.
type Status string

// The statuses.
const (
	Pass    Status = "PASS"
	Info    Status = "INFO"
	Skip    Status = "SKIP"
	Warn    Status = "WARN"
	Crit    Status = "CRIT"
	Unknown Status = "UNKNOWN"
)

var weight = map[Status]int{Pass: 0, Info: 0, Skip: 0, Warn: 1, Unknown: 2, Crit: 3}

// exits are the exit codes; what is not here is 0.
var exits = map[Status]int{Warn: 1, Crit: 2, Unknown: 3}

// Worse is the worse of two.
func Worse(a, b Status) Status {
	if weight[b] > weight[a] {
		return b
	}
	return a
}

// Level is how far a look goes.
type Level int

// The levels.
const (
	Quick  Level = iota // under two seconds, reads only
	Full                // under a minute, reads only
	Active              // runs work on a GPU
)

var levelNames = []string{"quick", "full", "active"}

func (l Level) String() string { return levelNames[l] }

// ParseLevel reads a level's name.
func ParseLevel(name string) (Level, error) {
	if i := slices.Index(levelNames, name); i >= 0 {
		return Level(i), nil
	}
	return 0, fmt.Errorf("level %q: not known; use %s", name, strings.Join(levelNames, ", "))
}

// Finding is what a check found, in a line that a person reads, and what to do if it is not well.
type Finding struct {
	ID       string  `json:"id"`
	Group    string  `json:"group"`
	Status   Status  `json:"status"`
	Found    string  `json:"found"`
	Fix      string  `json:"fix,omitempty"`
	Duration float64 `json:"duration"` // seconds, of gathering its facts
	Probes   []Probe `json:"probes,omitempty"`
}

// Report is an examination. Schema is kerf.doctor/v1.
type Report struct {
	Schema    string    `json:"schema"`
	Tool      string    `json:"tool"`
	Node      string    `json:"node"`
	BootID    string    `json:"bootID,omitempty"`
	Started   time.Time `json:"started"`
	Duration  float64   `json:"duration"` // seconds
	Level     string    `json:"level"`
	Simulated bool      `json:"simulated"`
	Worst     Status    `json:"worst"`
	Checks    []Finding `json:"checks"`
}

// Exit is the exit code for a report: 0 nothing above INFO, 1 WARN, 2 CRIT, 3 UNKNOWN and nothing worse.
func (r Report) Exit() int { return exits[r.Worst] }

// Selection is which checks are wanted: by id, or by group.
type Selection struct {
	Only, Skip []string
	Level      Level
}

// Check is one row of the table.
type Check struct {
	ID    string
	Level Level
	Needs []Section // gathered before; what could not be gathered is the finding
	Judge func(*Facts) Finding
}

// Group is the part of an id before the dot.
func (c Check) Group() string {
	group, _, _ := strings.Cut(c.ID, ".")
	return group
}

func (c Check) named(names []string) bool {
	return slices.Contains(names, c.ID) || slices.Contains(names, c.Group())
}

// Select is the checks that are wanted. A name that fits none is an error: a check that is misspelt must not be taken for passed.
func (s Selection) Select() (wanted []Check, err error) {
	for _, name := range slices.Concat(s.Only, s.Skip) {
		if !slices.ContainsFunc(Checks, func(c Check) bool { return c.named([]string{name}) }) {
			return nil, fmt.Errorf("check %q: not known; the checks are %s", name, strings.Join(ids(), ", "))
		}
	}
	for _, c := range Checks {
		if (len(s.Only) == 0 || c.named(s.Only)) && !c.named(s.Skip) {
			wanted = append(wanted, c)
		}
	}
	return wanted, nil
}

func ids() (all []string) {
	for _, c := range Checks {
		all = append(all, c.ID)
	}
	return all
}

// Sections is what must be gathered for the checks at a level.
func Sections(checks []Check, level Level) (all []Section) {
	for _, c := range checks {
		for _, s := range c.Needs {
			if c.Level <= level && !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// Examine judges gathered facts.
func Examine(checks []Check, level Level, f *Facts) (findings []Finding, worst Status) {
	worst = Pass
	for _, c := range checks {
		finding := c.examine(level, f)
		finding.ID, finding.Group = c.ID, c.Group()
		for _, s := range c.Needs {
			finding.Duration += f.Took[s].Seconds()
		}
		findings = append(findings, finding)
		worst = Worse(worst, finding.Status)
	}
	return findings, worst
}

func (c Check) examine(level Level, f *Facts) Finding {
	if c.Level > level {
		return found(Skip, "", "only at level %s: kerf doctor --level %s", c.Level, c.Level)
	}
	for _, s := range c.Needs {
		failed, ok := f.Failed[s]
		switch {
		case !ok:
		case s == Daemon && c.ID != daemonCheck:
			return found(Skip, "", "needs kerfd")
		case c.ID != daemonCheck:
			return found(Unknown, "", "%s", failed)
		}
	}
	return c.Judge(f)
}

func pass(format string, a ...any) Finding {
	return Finding{Status: Pass, Found: fmt.Sprintf(format, a...)}
}

func found(s Status, fix, format string, a ...any) Finding {
	return Finding{Status: s, Found: fmt.Sprintf(format, a...), Fix: fix}
}
