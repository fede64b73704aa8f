package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/doctor"
)

func inject(t *testing.T, r *rig.Rig, args ...string) {
	t.Helper()
	if got := end(t, exec.Command(filepath.Join(binaries, "kerf"), append([]string{"sim", "inject", "--root", r.Root()}, args...)...)); got.code != 0 {
		t.Fatal(got.stderr)
	}
}

// untilHealth asks kerfd until a GPU is as it should be.
func untilHealth(t *testing.T, r *rig.Rig, gpu int, what string, as func(monitor.DeviceReport) bool) monitor.DeviceReport {
	t.Helper()
	late := time.Now().Add(90 * time.Second)
	for {
		h, err := control.Dial(r.Socket()).Health(t.Context())
		if err == nil && gpu < len(h.Devices) && as(h.Devices[gpu]) {
			return h.Devices[gpu]
		}
		if time.Now().After(late) {
			t.Fatalf("GPU %d is not %s: %+v, %v", gpu, what, h.Devices[gpu], err)
		}
		time.Sleep(20 * time.Millisecond) // between two questions; nothing is judged by how long it takes
	}
}

// From the kernel's line to what people see, over a kill of kerfd, and back to health.
func TestXidToDoctor(t *testing.T) {
	r := startRig(t)
	inject(t, r, "xid", "79", "--gpu", "3")
	d := untilHealth(t, r, 3, "to be rebooted", func(d monitor.DeviceReport) bool { return d.Level == monitor.Reboot && d.Refuse != "" })
	if !slices.ContainsFunc(d.Taints, func(t monitor.Taint) bool {
		return t == monitor.Taint{Key: monitor.TaintXid, Value: "79", Effect: monitor.EffectNone}
	}) {
		t.Errorf("taints %v: the default mode says and does not hold", d.Taints)
	}
	report, code := examine(t, r, "--only", "gpu")
	if f := report.check("gpu.health"); code != 2 || f.Status != doctor.Crit || !strings.Contains(f.Found, "GPU 3") || len(report.Checks) != 4 {
		t.Errorf("exit %d, %+v", code, report.Checks)
	}
	got := end(t, r.Kerf(t.Context(), "explain", "3"))
	for _, words := range []string{"is unhealthy", "Xid 79", "evidence", "clears", "Nothing new is granted"} {
		if !strings.Contains(got.stdout, words) {
			t.Errorf("explain lacks %q:\n%s%s", words, got.stdout, got.stderr)
		}
	}
	r.KillKerfd()
	if err := r.Revive(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = untilHealth(t, r, 3, "held after a kill", func(d monitor.DeviceReport) bool { return d.Level == monitor.Reboot })
	if d.Xids[79] != 1 {
		t.Errorf("the replay counted %v", d.Xids)
	}
	inject(t, r, "clear", "--gpu", "3")
	untilHealth(t, r, 3, "well again", func(d monitor.DeviceReport) bool { return d.Level == monitor.Healthy && d.Health == monitor.HealthGood })
}

func TestReleaseAndHang(t *testing.T) {
	r := startRig(t)
	inject(t, r, "remap", "2", "--gpu", "1")
	untilHealth(t, r, 1, "for replacement", func(d monitor.DeviceReport) bool { return d.Level == monitor.Replace })
	if got := end(t, r.Kerf(t.Context(), "release", "1", "--why", "tested")); got.code != 0 {
		t.Fatal(got.stderr)
	}
	untilHealth(t, r, 1, "released", func(d monitor.DeviceReport) bool { return d.Level == monitor.Healthy })
	oneLine(t, "release of nothing", end(t, r.Kerf(t.Context(), "release", "77")), 1, `"77"`, "kerf doctor")

	inject(t, r, "hang", "--gpu", "2", "--for", "60s")
	inject(t, r, "xid", "31", "--gpu", "2") // so that it is read now
	d := untilHealth(t, r, 2, "unknown", func(d monitor.DeviceReport) bool { return d.Health == monitor.HealthUnknown })
	if d.Level != monitor.Healthy || d.Refuse != "" || len(d.Taints) != 1 || d.Taints[0].Key != monitor.TaintUnmonitored {
		t.Errorf("a card that hangs: %+v", d)
	}
	inject(t, r, "clear", "--gpu", "2")
}

func TestXidVerb(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		code  int
		words []string
	}{
		{[]string{"79"}, 0, []string{"FALLEN_OFF_THE_BUS", "RESTART_BM", "profile conservative  reboot", "profile nvidia", "R565"}},
		{[]string{"63", "--profile", "conservative"}, 0, []string{"conservative  reset", "IGNORE", "!profile nvidia"}},
		{[]string{"109", "--profile", "shared"}, 0, []string{"pinned on the pod"}},
		{[]string{"149"}, 0, []string{"NETIR_LINK_DOWN", "RESET_GPU"}},
		{[]string{"999"}, 0, []string{"not in the catalogue"}},
		{[]string{"x"}, 64, []string{`"x"`}},
		{nil, 64, []string{"wants one code"}},
		{[]string{"79", "--profile", "lenient"}, 64, []string{`"lenient"`}},
	} {
		got := end(t, exec.Command(filepath.Join(binaries, "kerf"), append([]string{"xid"}, tt.args...)...))
		for _, w := range tt.words {
			word, not := strings.CutPrefix(w, "!")
			if got.code != tt.code || strings.Contains(got.stdout+got.stderr, word) == not {
				t.Errorf("kerf xid %v: exit %d, %q in %q", tt.args, got.code, w, got.stdout+got.stderr)
			}
		}
	}
}

func TestDoctorFlags(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		words string
	}{
		{[]string{"--level", "deep"}, `"deep"`}, {[]string{"-o", "yaml"}, `"yaml"`}, {[]string{"--only", "gpus"}, `"gpus"`},
		{[]string{"--timeout", "-1s"}, "below 0"}, {[]string{"--profile", "x"}, `"x"`}, {[]string{"extra"}, `"extra"`}, {[]string{"--nonsense"}, "nonsense"},
	} {
		got := end(t, exec.Command(filepath.Join(binaries, "kerf"), append([]string{"doctor", "--socket", "/nonexistent"}, tt.args...)...))
		oneLine(t, strings.Join(tt.args, " "), got, 64, tt.words)
	}
}

// A bundle has what somebody elsewhere needs, and no names of tenants' programs.
func TestBundle(t *testing.T) {
	r := startRig(t)
	inject(t, r, "xid", "31", "--gpu", "0", "--pid", "4242")
	untilHealth(t, r, 0, "counted", func(d monitor.DeviceReport) bool { return d.Xids[31] == 1 })
	path := filepath.Join(t.TempDir(), "b.tar.gz")
	if got := end(t, r.Kerf(t.Context(), "doctor", "--bundle", path)); got.code != 0 {
		t.Fatalf("exit %d: %s%s", got.code, got.stdout, got.stderr)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for archive := tar.NewReader(zipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(header.Name)] = string(text)
		if strings.HasSuffix(header.Name, ".json") && !json.Valid(text) {
			t.Errorf("%s is no JSON", header.Name)
		}
	}
	if log := files["kernel.log"]; !strings.Contains(log, "Xid (PCI:") || strings.Contains(log, "name=simulated") || !strings.Contains(log, "name=REDACTED") {
		t.Errorf("kernel.log: %q", log)
	}
	for _, name := range []string{"report.json", "health.json", "node.json", "gpus.json"} {
		if files[name] == "" {
			t.Errorf("no %s", name)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
