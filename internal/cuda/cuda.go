// Package cuda knows the CUDA driver's entry points: which exported symbol the driver's own resolver gives
// for a name, a CUDA version and a stream flag.
//
// The vocabulary is cuGetProcAddress's. A *name* is what a program asks for (cuMemAlloc); a *symbol* is what
// the library exports (cuMemAlloc_v2), and the two differ since a name keeps its meaning while its ABI gets
// new versions. A symbol ending in _ptsz or _ptds is the same call on the per-thread default stream.
//
// The trap: a driver knows only its own rows. Asked for a version later than itself it answers with its
// newest row, so "until" ends a row only for drivers that have the next one. Lookup takes both versions.
package cuda

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
)

//go:embed entrypoints.tsv
var entrypoints string

// Stream says for which stream flag of cuGetProcAddress a symbol is the answer.
type Stream string

const (
	AnyStream    Stream = "any"
	LegacyStream Stream = "legacy" // flags 0 (default) and 1 (legacy)
	ThreadStream Stream = "ptsz"   // flag 2 (per-thread default stream)
)

// Entry is one symbol of the driver.
type Entry struct {
	Name, Symbol string
	Since        int // CUDA version, as 12040
	Until        int // first version that answers with another symbol; 0: none yet
	Stream       Stream
}

// Table is all entries, in the order of the file: by name, then stream, then version.
type Table []Entry

// Entrypoints returns the table of this build.
func Entrypoints() (Table, error) { return parse(entrypoints) }

func parse(text string) (Table, error) {
	var t Table
	for i, line := range strings.Split(text, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := parseEntry(line)
		if err != nil {
			return nil, fmt.Errorf("parse entrypoints.tsv line %d: %w", i+1, err)
		}
		t = append(t, e)
	}
	return t, nil
}

func parseEntry(line string) (Entry, error) {
	f := strings.Split(line, "\t")
	if len(f) != 5 {
		return Entry{}, fmt.Errorf("%d columns, want name, symbol, since, until, flags", len(f))
	}
	e := Entry{Name: f[0], Symbol: f[1], Stream: Stream(f[4])}
	if !strings.HasPrefix(e.Name, "cu") || !strings.HasPrefix(e.Symbol, e.Name) {
		return Entry{}, fmt.Errorf("symbol %q of name %q: a symbol is its name and a suffix", e.Symbol, e.Name)
	}
	switch e.Stream {
	case AnyStream, LegacyStream, ThreadStream:
	default:
		return Entry{}, fmt.Errorf("flags %q: want any, legacy or ptsz", e.Stream)
	}
	var err error
	if e.Since, err = strconv.Atoi(f[2]); err != nil {
		return Entry{}, fmt.Errorf("since: %w", err)
	}
	if f[3] == "" {
		return e, nil
	}
	if e.Until, err = strconv.Atoi(f[3]); err != nil {
		return Entry{}, fmt.Errorf("until: %w", err)
	}
	if e.Until <= e.Since {
		return Entry{}, fmt.Errorf("until %d is not after since %d", e.Until, e.Since)
	}
	return e, nil
}

// Lookup answers as cuGetProcAddress of a driver of version driver, asked for name at version asked, for
// LegacyStream or ThreadStream. It returns "" where the driver has no such entry.
func (t Table) Lookup(name string, asked, driver int, stream Stream) string {
	var best Entry
	for _, e := range t {
		if e.Name == name && (e.Stream == AnyStream || e.Stream == stream) &&
			e.Since <= asked && e.Since <= driver && e.Since >= best.Since {
			best = e
		}
	}
	return best.Symbol
}
