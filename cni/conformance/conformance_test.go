package conformance

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var (
	plugin = flag.String("plugin", "", "hold this program against the specification, instead of kerf-cni")
	conf   = flag.String("conf", `{"device": "DEVICE"}`, "its configuration; DEVICE stands for a link that it may take")
	moves  = flag.Bool("moves", true, "it moves DEVICE into the pod")
)

// TestConformance holds kerf-cni, or what -plugin names, against the specification.
func TestConformance(t *testing.T) {
	if *plugin != "" {
		path, err := filepath.Abs(*plugin)
		if err != nil {
			t.Fatal(err)
		}
		Hold(t, Plugin{Path: path, Conf: *conf, Moves: *moves})
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "kerf-cni")
	build := exec.Command("go", "build", "-o", path, "github.com/kerf-gpu/kerf/cmd/kerf-cni")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kerf-cni: %v: %s", err, out)
	}
	Hold(t, Plugin{
		Path: path, Moves: true, Conf: `{"deviceID": "DEVICE", "runDir": "` + dir + `/run"}`,
		Absent: `{"deviceID": "0000:ff:1f.7", "runDir": "` + dir + `/run"}`,
	})
}
