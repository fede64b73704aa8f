package durable

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type record struct {
	Name string
	Size int
}

func open(t *testing.T, dir string) *Store[record] {
	t.Helper()
	s, err := Open[record](dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestPutLoadDelete(t *testing.T) {
	s := open(t, t.TempDir())
	want := map[string]record{"a": {"a", 1}, "b-2": {"new\nline", 2}}
	for key, r := range want {
		if err := s.Put(key, r); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want map[string]record) {
		t.Helper()
		got, corrupt, err := s.Load()
		if err != nil || len(corrupt) != 0 {
			t.Fatal(corrupt, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	check(want)
	for range 2 { // the second time there is none
		if err := s.Delete("a"); err != nil {
			t.Fatal(err)
		}
	}
	delete(want, "a")
	check(want)
}

func TestKeysDoNotBecomePaths(t *testing.T) {
	s := open(t, t.TempDir())
	for _, key := range []string{"", "../x", "a/b", ".hidden", strings.Repeat("x", 200)} {
		if err := s.Put(key, record{}); err == nil {
			t.Errorf("key %q was taken", key)
		}
	}
}

func TestOneOwner(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := Open[record](dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v, want ErrLocked", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

// A crash leaves a prefix of the temporary file, or a damaged record: every prefix is either ignored or set aside, and
// never read as a record.
func TestEveryPrefixIsWholeOrAbsent(t *testing.T) {
	whole := encode([]byte(`{"Name":"x","Size":3}`))
	for n := range whole {
		dir := t.TempDir()
		for name, content := range map[string][]byte{".x.new": whole[:n], "y.json": whole[:n], "z.json": whole} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, corrupt, err := open(t, dir).Load()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]record{"z": {"x", 3}}, got); diff != "" {
			t.Fatalf("prefix of %d bytes: %s", n, diff)
		}
		if diff := cmp.Diff([]string{filepath.Join(dir, "y.json.corrupt")}, corrupt); diff != "" {
			t.Fatalf("prefix of %d bytes: %s", n, diff)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode([]byte("{}")))
	f.Add([]byte("x\ny"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if body, ok := decode(content); ok && string(encode(append([]byte(nil), body...))) != string(content) {
			t.Error("decoded what encode does not write")
		}
	})
}
