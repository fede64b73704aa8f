package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDataset(t *testing.T) {
	content := bytes.Repeat([]byte("weights "), 1<<18)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "model.bin", time.Unix(1, 0), bytes.NewReader(content))
	}))
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "datasets")
	kerf := func(args ...string) (string, error) {
		cmd := datasetCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs(append(args, "--dir", dir))
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := kerf(args...)
		if err != nil {
			t.Fatalf("kerf dataset %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	added := strings.Fields(must("add", server.URL+"/model.bin"))
	digest := added[len(added)-1]
	if list := must("list"); !strings.Contains(list, digest) || !strings.Contains(list, "2Mi") {
		t.Errorf("list says\n%s", list)
	}
	must("verify", digest)
	must("pin", digest)
	if _, err := kerf("rm", digest); err == nil || !strings.Contains(err.Error(), "unpin it first") {
		t.Errorf("removing a pinned dataset: %v", err)
	}
	must("unpin", digest)
	if os.Getuid() == 0 {
		target := filepath.Join(t.TempDir(), "mnt")
		must("mount", digest, target)
		t.Cleanup(func() { _, _ = kerf("umount", target) })
		if got, err := os.ReadFile(filepath.Join(target, "model.bin")); err != nil || !bytes.Equal(got, content) {
			t.Errorf("the mount has other bytes (%v)", err)
		}
		if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); err == nil {
			t.Error("the mount is writable")
		}
		if _, err := kerf("rm", digest); err == nil || !strings.Contains(err.Error(), "unmount it first") {
			t.Errorf("removing a mounted dataset: %v", err)
		}
		must("umount", target)
	}
	must("rm", digest)
	if list := must("list"); strings.Contains(list, digest) {
		t.Errorf("list still says\n%s", list)
	}
}
