package xid

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Every row of a table comes out of the program as it went in.
func TestTablesRoundTrip(t *testing.T) {
	for file, lines := range map[string][]string{"catalogue.tsv": written(All(), Entry.line), "nvlink.tsv": written(Rows(), Row.line)} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), func(l string) bool { return strings.HasPrefix(l, "#") })
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
	if len(All()) != 172 || len(Rows()) != 95 {
		t.Errorf("%d codes and %d rows, want 172 and 95", len(All()), len(Rows()))
	}
}

func written[T any](rows []T, line func(T) string) (lines []string) {
	for _, r := range rows {
		lines = append(lines, line(r))
	}
	return lines
}

// line is the entry as it stands in the file.
func (e Entry) line() string {
	used := "no"
	if e.Used {
		used = "yes"
	}
	return columns(strconv.Itoa(e.Code), e.Name, e.Families, string(e.Action), e.Investigate, e.Linked, used)
}

func columns(fields ...string) string {
	for i, f := range fields {
		if f == "" {
			fields[i] = "-"
		}
	}
	return strings.Join(fields, "\t")
}

func (r Row) line() string {
	return columns(strconv.Itoa(r.Code), r.Unit, r.Old.String(), r.New.String(), r.Status.String(), string(r.Action), r.Investigate, r.Severity, r.Origin)
}

func TestCatalogue(t *testing.T) {
	for i, e := range All() {
		if e.Code != i+1 {
			t.Fatalf("entry %d has code %d: Lookup needs them without a gap", i, e.Code)
		}
		if !slices.Contains(Actions, e.Action) {
			t.Errorf("code %d: action %q is not in the list of actions", e.Code, e.Action)
		}
		if got, ok := Lookup(e.Code); !ok || got != e {
			t.Errorf("Lookup(%d) = %+v, %v", e.Code, got, ok)
		}
		text := fmt.Sprintf("NVRM: Xid (PCI:0000:b3:00): %d, pid=77, name=train, Ch 00000001", e.Code)
		if r, ok := new(Parser).Parse([]byte(text)); !ok || r.Code != e.Code || r.PID != 77 {
			t.Errorf("%s: %+v, %v", text, r, ok)
		}
	}
	for _, code := range []int{-1, 0, 173, 999} {
		if _, ok := Lookup(code); ok {
			t.Errorf("Lookup(%d) found something", code)
		}
	}
}

// Every row of the table is what Decode finds for registers that fit it, or one that fits as well and is at least as bad.
func TestDecodeEveryRow(t *testing.T) {
	for i, r := range Rows() {
		if !slices.Contains(Actions, r.Action) {
			t.Errorf("row %d: action %q", i, r.Action)
		}
		status := uint32(0)
		if len(r.Status) > 0 {
			status = r.Status[0]
		}
		for branch, mask := range map[int]Mask{570: r.Old, 580: r.New} {
			got, ok := Decode(r.Code, branch, r.Unit, mask.want, status)
			if !ok || got.line() != r.line() && severity[got.Severity] < severity[r.Severity] {
				t.Errorf("row %d, branch %d: decoded as %s, want %s", i, branch, got.line(), r.line())
			}
		}
	}
}

func TestDecode(t *testing.T) {
	for _, tt := range []struct {
		name         string
		code, branch int
		intr, status uint32
		unit, action string
	}{
		{"link down, old layout", 149, 570, 0x004505c6, 0, "NETIR_LINK_EVT/NETIR_LINK_DOWN", "RESET_GPU"},
		{"link down, branch not known", 149, 0, 0x004505c6, 0, "NETIR_LINK_EVT/NETIR_LINK_DOWN", "RESET_GPU"},
		{"two bits: the worse one", 144, 580, 0x1, 0x3, "SAW_MVB", "RESET_GPU"},
		{"remap, left to Xid 154", 145, 580, 0x4, 0x1, "RLW_REMAP", "XID_154_EVAL"},
		{"no row", 144, 580, 0xff, 0x1, "", ""},
		{"not an NVLink code", 79, 580, 0, 0, "", ""},
	} {
		r, _ := Decode(tt.code, tt.branch, "", tt.intr, tt.status)
		if r.Unit != tt.unit || string(r.Action) != tt.action {
			t.Errorf("%s: %s, %s; want %s, %s", tt.name, r.Unit, r.Action, tt.unit, tt.action)
		}
	}
}

// parsed is the outcome of a line of the corpus, as it stands beside it.
func parsed(r Report) string {
	var parts []string
	add := func(format string, a ...any) { parts = append(parts, fmt.Sprintf(format, a...)) }
	add("%s %d %s", r.Kind, r.Code, r.PCI)
	if r.PID != 0 {
		add("pid %d", r.PID)
	}
	if r.Process != "" {
		add("name %s", r.Process)
	}
	if r.SM != "" {
		add("at %s", r.SM)
	}
	if r.Link >= 0 {
		add("link %d", r.Link)
	}
	if r.Unit != "" {
		add("unit %s", r.Unit)
	}
	if len(r.Registers) > 0 {
		add("%d registers", len(r.Registers))
	}
	if r.Recovery != node.RecoveryNone {
		add("asks for %s", r.Recovery)
	}
	if r.Fatal {
		add("fatal")
	}
	return strings.Join(parts, ", ")
}

// The corpus is lines in the forms that drivers write, each followed by what is read from it.
func TestCorpus(t *testing.T) {
	text, err := os.ReadFile("testdata/corpus.txt")
	if err != nil {
		t.Fatal(err)
	}
	var p Parser
	got, lines := "", 0
	for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		switch want, isWant := strings.CutPrefix(line, "  → "); {
		case strings.HasPrefix(line, "#") || line == "":
		case isWant:
			if got != want {
				t.Errorf("line %q: got %q, want %q", lineBefore(string(text), line), got, want)
			}
		default:
			lines++
			got = "nothing"
			if r, ok := p.Parse([]byte(line)); ok {
				got = parsed(r)
			}
		}
	}
	if lines < 30 {
		t.Errorf("only %d lines", lines)
	}
}

func lineBefore(text, line string) string {
	before, _, _ := strings.Cut(text, line)
	before = strings.TrimSuffix(before, "\n")
	return before[strings.LastIndexByte(before, '\n')+1:]
}

// Whatever stands in the log, the parser answers, and what it answers is in its ranges.
func FuzzParse(f *testing.F) {
	text, err := os.ReadFile("testdata/corpus.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var p Parser
		for range 2 {
			r, ok := p.Parse(line)
			if !ok {
				continue
			}
			if r.Code < 0 || r.PID < 0 || r.Link < -1 || r.Recovery < 0 || r.PCI.IsZero() && r.Kind == KindLost {
				t.Errorf("%q: %+v", line, r)
			}
			_, _ = r.Decoded(0)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for name, line := range map[string]string{
		"other": "usb 1-1: new high-speed USB device number 5 using xhci_hcd",
		"xid":   "NVRM: Xid (PCI:0000:b3:00): 31, pid=4711, name=python3, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0",
	} {
		b.Run(name, func(b *testing.B) {
			var p Parser
			text := []byte(line)
			b.ReportAllocs()
			for b.Loop() {
				p.Parse(text)
			}
		})
	}
}
