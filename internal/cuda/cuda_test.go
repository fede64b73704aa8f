package cuda

import (
	"strings"
	"testing"
)

func table(t *testing.T) Table {
	t.Helper()
	tab, err := Entrypoints()
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestLookup(t *testing.T) {
	tab := table(t)
	for _, c := range []struct {
		name          string
		asked, driver int
		stream        Stream
		want          string
	}{
		{"cuMemAlloc", 3010, 12040, LegacyStream, "cuMemAlloc"},
		{"cuMemAlloc", 12040, 12040, ThreadStream, "cuMemAlloc_v2"},
		{"cuMemAllocAsync", 11000, 12040, LegacyStream, ""},
		{"cuMemAllocAsync", 11020, 12040, ThreadStream, "cuMemAllocAsync_ptsz"},
		{"cuMemcpyHtoD", 12000, 12040, ThreadStream, "cuMemcpyHtoD_v2_ptds"},
		{"cuCtxCreate", 11000, 12040, LegacyStream, "cuCtxCreate_v2"},
		{"cuCtxCreate", 13000, 12040, LegacyStream, "cuCtxCreate_v3"},
		{"cuCtxCreate", 13000, 13000, LegacyStream, "cuCtxCreate_v4"},
		{"cuLaunchHostFunc", 13040, 13040, ThreadStream, "cuLaunchHostFunc_v2_ptsz"},
		{"cuMemAlloc_v2", 12040, 12040, LegacyStream, ""},
		{"cuNoSuchCall", 12040, 12040, LegacyStream, ""},
	} {
		if got := tab.Lookup(c.name, c.asked, c.driver, c.stream); got != c.want {
			t.Errorf("Lookup(%s, %d, %d, %s) = %q, want %q", c.name, c.asked, c.driver, c.stream, got, c.want)
		}
	}
}

// TestRowsFollowEachOther proves that for each name and stream at most one row answers a version.
func TestRowsFollowEachOther(t *testing.T) {
	type key struct {
		name   string
		stream Stream
	}
	last := map[key]Entry{}
	for _, e := range table(t) {
		for _, s := range []Stream{LegacyStream, ThreadStream} {
			if e.Stream != AnyStream && e.Stream != s {
				continue
			}
			k := key{e.Name, s}
			if p, ok := last[k]; ok && p.Until != e.Since {
				t.Errorf("%s: %s ends at %d, but %s begins at %d", e.Name, p.Symbol, p.Until, e.Symbol, e.Since)
			}
			last[k] = e
		}
	}
	for k, e := range last {
		if e.Until != 0 {
			t.Errorf("%s %s: %s ends at %d and nothing follows", k.name, k.stream, e.Symbol, e.Until)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"cuInit\tcuInit\t2000\t", "4 columns"},
		{"cuInit\tcuExit\t2000\t\tany", `symbol "cuExit"`},
		{"cuInit\tcuInit\tx\t\tany", "since"},
		{"cuInit\tcuInit\t2000\t2000\tany", "until 2000 is not after"},
		{"cuInit\tcuInit\t2000\t\tboth", `flags "both"`},
	} {
		if _, err := parse(c.line); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("parse(%q) = %v, want an error with %q", c.line, err, c.want)
		}
	}
}
