package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/monitor/doctor"
)

// diagnosis is what kerf doctor prints.
type diagnosis struct{ doctor.Report }

func examine(t *testing.T, r *rig.Rig, flags ...string) (diagnosis, int) {
	t.Helper()
	got := end(t, r.Kerf(t.Context(), append([]string{"doctor", "--json"}, flags...)...))
	var d diagnosis
	if err := json.Unmarshal([]byte(got.stdout), &d); err != nil {
		t.Fatalf("%v: %s%s", err, got.stdout, got.stderr)
	}
	return d, got.code
}

func (d diagnosis) check(id string) doctor.Finding {
	for _, f := range d.Checks {
		if f.ID == id {
			return f
		}
	}
	return doctor.Finding{}
}

func TestDoctor(t *testing.T) {
	r := startRig(t)
	d, code := examine(t, r, "--level", "active")
	if code != 0 || d.Worst != doctor.Pass || d.Schema != control.DoctorSchema || !d.Simulated {
		t.Errorf("a healthy simulated node: exit %d, %+v", code, d)
	}
	if len(d.Checks) != len(doctor.Checks) {
		t.Errorf("%d findings of %d checks", len(d.Checks), len(doctor.Checks))
	}

	version := filepath.Join(r.Root(), "proc/driver/nvidia/version")
	text, err := os.ReadFile(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(version, []byte(strings.Replace(string(text), r.DriverVersion(), "535.261.03", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	d, code = examine(t, r)
	if f := d.check("driver.module"); code != 2 || f.Status != doctor.Crit || !strings.Contains(f.Found, "kernel module 535.261.03") || !strings.Contains(f.Fix, "reboot") {
		t.Errorf("a module of another version: exit %d, %+v", code, f)
	}
}

// A driver library that is gone is one line for the one who runs a program, and critical for the doctor.
func TestMissingLibrary(t *testing.T) {
	r := startRig(t)
	if err := os.Remove(filepath.Join(r.Root(), "usr/lib/x86_64-linux-gnu/libcuda.so.1")); err != nil {
		t.Fatal(err)
	}
	got := end(t, r.Sliced(t.Context(), rig.Slice{Memory: "1Gi"}, "true"))
	oneLine(t, "kerf run", got, 125, "libcuda.so.1", "install")
	if d, code := examine(t, r); code != 2 || d.check("driver.library").Status != doctor.Crit {
		t.Errorf("doctor: exit %d, %+v", code, d.check("driver.library"))
	}
	state, err := control.Dial(r.Socket()).State(t.Context())
	if err != nil || len(state.Shares) != 0 {
		t.Errorf("shares left behind: %+v (%v)", state.Shares, err)
	}
}

// A GPU that hangs is unknown, and hides nothing about the others.
func TestHungGPU(t *testing.T) {
	r := startRig(t)
	if got := end(t, exec.Command(filepath.Join(binaries, "kerf"), "sim", "inject", "hang", "--gpu", "2", "--root", r.Root(), "--for", "20s")); got.code != 0 {
		t.Fatal(got.stderr)
	}
	state, err := control.Dial(r.Socket()).State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range state.GPUs {
		if hung := strings.Contains(g.Error, "NVML has not answered"); hung != (g.Index == 2) {
			t.Errorf("GPU %d: error %q", g.Index, g.Error)
		}
	}
	if d, code := examine(t, r); code != 3 || d.check("ledger.memory").Status != doctor.Unknown {
		t.Errorf("doctor: exit %d, %+v", code, d.check("ledger.memory"))
	}
	if got := end(t, exec.Command(filepath.Join(binaries, "kerf"), "sim", "inject", "clear", "--gpu", "2", "--root", r.Root())); got.code != 0 {
		t.Fatal(got.stderr)
	}
}
