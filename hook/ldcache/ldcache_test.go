package ldcache

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hostCache is one that ldconfig has written.
func hostCache(t testing.TB) []byte {
	data, err := os.ReadFile(Path)
	if err != nil {
		t.Skip("this machine has no loader cache: ", err)
	}
	return data
}

func TestRoundTrip(t *testing.T) {
	c, err := Parse(hostCache(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Entries) < 10 || len(c.Find("libc.so.6")) == 0 {
		t.Fatalf("%d entries, libc.so.6 in %v", len(c.Entries), c.Find("libc.so.6"))
	}
	again, err := Parse(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, again); diff != "" {
		t.Error(diff)
	}
	if !slices.IsSortedFunc(c.Entries, func(a, b Entry) int { return compare(b.Name, a.Name) }) {
		t.Error("ldconfig's order is not ours")
	}
}

// What ldconfig reads back is what the loader reads: they share the code.
func TestLdconfigReadsIt(t *testing.T) {
	ldconfig, err := exec.LookPath("ldconfig")
	if err != nil {
		ldconfig = "/sbin/ldconfig"
	}
	c, err := Parse(hostCache(t))
	if err != nil {
		t.Fatal(err)
	}
	before := len(c.Entries)
	c = c.With(map[string]string{"libcuda.so.1": "/run/kerf/lib/libcuda.so.1", "libcuda.so": "/run/kerf/lib/libcuda.so", "libzz.so.10": "/zz"})
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, c.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(ldconfig, "-C", file, "-p").CombinedOutput()
	if err != nil {
		t.Skipf("%v: %s", err, out)
	}
	for _, want := range []string{"\tlibcuda.so.1 (libc6,", "=> /run/kerf/lib/libcuda.so.1\n", "=> /zz\n", "libc.so.6"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if got := strings.Count(string(out), " => "); got < before {
		t.Errorf("%d of %d entries", got, before)
	}
}

func TestEmpty(t *testing.T) {
	c := new(Cache).With(map[string]string{"liba.so.1": "/a", "libb.so.1": "/b"})
	again, err := Parse(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"libb.so.1", "liba.so.1"}, []string{again.Entries[0].Name, again.Entries[1].Name}); diff != "" {
		t.Error(diff)
	}
	if replaced := again.With(map[string]string{"liba.so.1": "/c"}); len(replaced.Entries) != 2 || replaced.Find("liba.so.1")[0] != "/c" {
		t.Error(replaced.Entries)
	}
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"liba.so", "liba.so", 0}, {"liba.so.2", "liba.so.10", -1}, {"liba.so.1", "liba.so", 1}, {"liba1", "libaa", 1}, {"lib007", "lib7", 0}, {"b", "a", 1},
	} {
		sign := func(n int) int { return max(-1, min(1, n)) }
		if got := sign(compare(tt.a, tt.b)); got != tt.want {
			t.Errorf("%s, %s: %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := sign(compare(tt.b, tt.a)); got != -tt.want {
			t.Errorf("%s, %s: %d, want %d", tt.b, tt.a, got, -tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add((&Cache{Levels: []string{"x86-64-v3"}, Generator: "ldconfig"}).With(map[string]string{"libcuda.so.1": "/x"}).Bytes())
	f.Add([]byte(oldMagic + "\x00\x00\x00\x00\x00" + magic))
	f.Add([]byte(magic + strings.Repeat("\xff", 64)))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		if _, err := Parse(c.With(map[string]string{"libcuda.so.1": "/x"}).Bytes()); err != nil {
			t.Error(err)
		}
	})
}
