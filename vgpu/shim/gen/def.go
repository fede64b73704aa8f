package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/cuda"
)

// call is one line of a .def file.
type call struct {
	class   string
	symbol  string
	twin    string // "ptsz", "ptds" or ""
	since   int
	params  []param
	handler string
}

type param struct{ decl, name string }

var (
	cudaClasses = []string{"init", "resolve", "alloc", "free", "query", "launch", "submit", "mark", "unknown", "call"}
	nvmlClasses = []string{"hook", "call"}
	needHandler = []string{"init", "resolve", "alloc", "free", "query", "hook"}
	lineForm    = regexp.MustCompile(`^(\w+)\s+(\w+?)(?:\+(ptsz|ptds))?\s+(\d+)\s+\(([^)]*)\)\s*(\w*)$`)
	paramForm   = regexp.MustCompile(`^(.*[\s*])(\w+)$`)
)

func readDef(path string, classes []string) ([]call, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var calls []call
	seen := map[string]bool{}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		c, err := parseCall(line, classes)
		if err == nil && seen[c.symbol] {
			err = fmt.Errorf("symbol %s: a second line for it; one is enough", c.symbol)
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
		seen[c.symbol] = true
		calls = append(calls, c)
	}
	return calls, nil
}

func parseCall(line string, classes []string) (call, error) {
	m := lineForm.FindStringSubmatch(line)
	if m == nil {
		return call{}, fmt.Errorf("%q: want class symbol[+twin] since (parameters) [handler]", line)
	}
	c := call{class: m[1], symbol: m[2], twin: m[3], handler: m[6]}
	if !slices.Contains(classes, c.class) {
		return call{}, fmt.Errorf("class %q: want one of %s", c.class, strings.Join(classes, ", "))
	}
	if c.handler == "" && slices.Contains(needHandler, c.class) {
		return call{}, fmt.Errorf("symbol %s: class %s needs a handler", c.symbol, c.class)
	}
	c.since, _ = strconv.Atoi(m[4])
	if m[5] == "void" {
		return c, nil
	}
	for _, p := range strings.Split(m[5], ",") {
		pm := paramForm.FindStringSubmatch(strings.TrimSpace(p))
		if pm == nil {
			return call{}, fmt.Errorf("symbol %s: parameter %q: want a type and a name", c.symbol, p)
		}
		c.params = append(c.params, param{decl: pm[0], name: pm[2]})
	}
	return c, nil
}

func (c call) symbols() []string {
	if c.twin == "" {
		return []string{c.symbol}
	}
	return []string{c.symbol, c.symbol + "_" + c.twin}
}

func (c call) paramList() string {
	if len(c.params) == 0 {
		return "void"
	}
	var d []string
	for _, p := range c.params {
		d = append(d, p.decl)
	}
	return strings.Join(d, ", ")
}

func (c call) args(first ...string) string {
	a := first
	for _, p := range c.params {
		a = append(a, p.name)
	}
	return strings.Join(a, ", ")
}

// checkSince holds api.def against the table of entry points: a wrong version there would hide a wrong symbol.
func checkSince(calls []call, table cuda.Table) error {
	for _, c := range calls {
		for i, s := range c.symbols() {
			e, ok := entry(table, s)
			switch {
			case !ok:
				return fmt.Errorf("api.def: %s is no symbol of entrypoints.tsv; add its row there first", s)
			case i == 0 && e.Since != c.since:
				return fmt.Errorf("api.def: %s since %d, but entrypoints.tsv says %d", s, c.since, e.Since)
			}
		}
	}
	return nil
}

func entry(table cuda.Table, symbol string) (cuda.Entry, bool) {
	i := slices.IndexFunc(table, func(e cuda.Entry) bool { return e.Symbol == symbol })
	if i < 0 {
		return cuda.Entry{}, false
	}
	return table[i], true
}
