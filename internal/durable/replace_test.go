package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spec.json")
	for _, text := range []string{"one", "two"} {
		if err := Replace(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("read %q, %v; want %q", got, err, text)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Error(info, err)
	}
	if err := Replace(filepath.Join(path, "below"), nil, 0o600); err == nil {
		t.Error("a file below a file was written")
	}
	if err := Replace(filepath.Join(filepath.Dir(path), "none", "x"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
	if err := os.Mkdir(path+".d", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path+".d", nil, 0o600); err == nil { // the rename fails
		t.Error("a directory was replaced by a file")
	}
	left, _ := filepath.Glob(Temporary(filepath.Join(filepath.Dir(path), "*")))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
