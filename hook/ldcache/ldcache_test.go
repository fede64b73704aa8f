package ldcache

import (
	"errors"
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

// Each of these says more than its bytes are: many entries or levels that share one long text.
func TestTooLarge(t *testing.T) {
	words := func(data []byte, at int, words ...uint32) []byte {
		for i, w := range words {
			order.PutUint32(data[at+4*i:], w)
		}
		return data
	}
	empty := func(size int) []byte {
		data := make([]byte, size)
		copy(data, magic)
		return data
	}
	long := func(data []byte, at int) []byte {
		copy(data[at:len(data)-1], strings.Repeat("x", len(data)))
		return data
	}
	extended := func(size, sections int, tag, at, length uint32) []byte {
		data := words(empty(size), 32, headerBytes)
		words(data, headerBytes, extensionMagic, uint32(sections))
		for i := range sections {
			words(data, headerBytes+8+16*i, tag, 0, at, length)
		}
		return data
	}
	for _, tt := range []struct {
		name string
		data []byte
		want error
	}{
		{"a large file", empty(MaxBytes + 1), ErrTooLarge},
		{"an empty one that is just not too large", empty(MaxBytes), nil},
		{"entries", words(empty(headerBytes+(maxEntries+1)*entryBytes), 20, maxEntries+1), ErrTooLarge},
		{"entries, just not too many", words(empty(headerBytes+maxEntries*entryBytes), 20, maxEntries), nil},
		{"levels", extended(1<<20, 1, tagLevels, 1<<19, 4*(maxLevels+1)), ErrTooLarge},
		{"levels, just not too many", extended(1<<20, 1, tagLevels, 1<<19, 4*maxLevels), nil},
		{"levels in several sections", extended(1<<20, 2, tagLevels, 1<<19, 4*maxLevels), ErrTooLarge},
		{"sections", extended(1<<20, maxSections+1, tagLevels, 0, 0), ErrTooLarge},
		{"generators that overlap", extended(1<<20, maxSections, tagGenerator, 0, 1<<20), ErrTooLarge},
	} {
		if _, err := Parse(tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	shared := long(words(empty(1<<20), 20, 16), headerBytes+16*entryBytes)
	for i := range 16 {
		words(shared, headerBytes+i*entryBytes+4, headerBytes+16*entryBytes, headerBytes+16*entryBytes)
	}
	if _, err := Parse(shared); !errors.Is(err, ErrTooLarge) {
		t.Errorf("entries that share a long name: %v", err)
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
		if _, err := Parse(c.With(map[string]string{"libcuda.so.1": "/x"}).Bytes()); err != nil && !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}
