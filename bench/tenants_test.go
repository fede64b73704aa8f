package bench_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/bench"
	"github.com/kerf-gpu/kerf/bench/rig"
)

// binaries is the directory of the built commands; the programs under test are C and cannot be built by go test.
func binaries(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs("../build/bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, needed := range []string{"kerf", "kerfd", "../libexec/kerf/hog", "../lib/kerf/libcuda.so.1"} {
		if _, err := os.Stat(filepath.Join(bin, needed)); err != nil {
			t.Skipf("not built: %v; run 'make build'", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("not root: kerf run needs a mount namespace")
	}
	return bin
}

// simulated is a rig on a simulated node, also where there is a GPU.
func simulated(t *testing.T) *rig.Rig {
	t.Helper()
	on, err := rig.Start(t.Context(), rig.Options{Bin: binaries(t), Profile: rig.DefaultProfile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := on.Close(); err != nil {
			t.Error(err)
		}
	})
	return on
}

// output runs a command to its end, or for a minute at most: a tenant that hangs must fail its own test only.
func output(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() {
		t.Error("not ended after a minute: killed")
		_ = cmd.Process.Kill()
	})
	defer late.Stop()
	cmd.WaitDelay = 5 * time.Second // its children may hold the pipe
	text, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", strings.Join(cmd.Args, " "), text)
	return string(text), err
}

func TestTenants(t *testing.T) {
	on := simulated(t)
	programs := map[string][]string{
		"train":    {"--seconds", "0.3", "--memory", "300Mi"},
		"serve":    {"--seconds", "0.3", "--memory", "300Mi"},
		"notebook": {"--seconds", "0.3", "--memory", "300Mi", "--idle", "0.1"},
		"forkbomb": {"--processes", "12", "--parallel", "3"},
		"look":     {"--seconds", "0.3"},
		"spin":     {"--seconds", "0.3", "--graph", "4"},
		"routes":   {"--settle", "0.1"},
	}
	ways := map[string]func(ctx context.Context, program string, args ...string) *exec.Cmd{
		"native": on.Native,
		"sliced": func(ctx context.Context, program string, args ...string) *exec.Cmd {
			return on.Sliced(ctx, rig.Slice{Memory: "4Gi"}, program, args...)
		},
	}
	for way, command := range ways {
		for program, args := range programs {
			t.Run(way+"/"+program, func(t *testing.T) {
				text, err := output(t, command(t.Context(), on.Tenant(program), args...))
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(text, "simulated") {
					t.Error("the output does not say that the GPU is simulated")
				}
			})
		}
	}
}

// Every class is refused at the limit and nowhere else.
func TestHog(t *testing.T) {
	on := simulated(t)
	for _, limit := range []string{"1Gi", "4Gi"} {
		t.Run(limit, func(t *testing.T) {
			cmd := on.Sliced(t.Context(), rig.Slice{Memory: limit}, on.Tenant("hog"), "--limit", limit)
			if _, err := output(t, cmd); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestHogNoticesAMissingLimit(t *testing.T) {
	on := simulated(t)
	text, err := output(t, on.Native(t.Context(), on.Tenant("hog"), "--limit", "1Gi"))
	if err == nil || !strings.Contains(text, "not the slice that was asked for") {
		t.Errorf("hog took the whole card for a slice of 1Gi (%v)", err)
	}
}

// A tenant dies holding memory; the slice is whole for the next.
func TestCrasher(t *testing.T) {
	on := simulated(t)
	for _, how := range []string{"kill", "segfault", "abort", "exit", "_exit"} {
		t.Run(how, func(t *testing.T) {
			_, err := output(t, on.Native(t.Context(), on.Tenant("crasher"), "--how", how, "--after", "0.02"))
			var exit *exec.ExitError
			if died := errors.As(err, &exit) && !exit.Exited(); died == strings.HasSuffix(how, "exit") {
				t.Errorf("ended with %v", err)
			}
		})
	}
	if _, err := output(t, on.Native(t.Context(), on.Tenant("train"), "--seconds", "0.1", "--memory", "64Mi")); err != nil {
		t.Error(err)
	}
}

func TestBadArguments(t *testing.T) {
	on := simulated(t)
	for _, args := range [][]string{
		{"train", "--memory", "12x", "give a size"},
		{"train", "--memory", "-1", "give a size"},
		{"train", "--seconds", "soon", "not negative"},
		{"train", "--speed", "9", "unknown argument '--speed'"},
		{"train", "--memory", "give a value"},
		{"hog", "--class", "linear,quadratic", "the classes are linear"},
		{"hog", "--chunk", "1Ki", "at least 2Mi"},
		{"crasher", "--how", "gently", "the ways are kill"},
		{"forkbomb", "--parallel", "0", "at least 1"},
	} {
		want := args[len(args)-1]
		t.Run(strings.Join(args[:len(args)-1], " "), func(t *testing.T) {
			text, err := output(t, on.Native(t.Context(), on.Tenant(args[0]), args[1:len(args)-1]...))
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(text, want) {
				t.Errorf("ended with %v, want exit 2 and '%s'", err, want)
			}
		})
	}
}

// Two tenants that fill their slices see neither each other's bytes nor each other's memory.
func TestTenantsTogether(t *testing.T) {
	on := simulated(t)
	var tenants []*rig.Tenant
	for _, name := range []string{"train", "serve", "notebook"} {
		cmd := on.Sliced(t.Context(), rig.Slice{Memory: "2Gi", GPU: "0"}, on.Tenant(name), "--json", "--seconds", "0")
		tenant, err := rig.StartTenant(name, cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tenant.Kill)
		tenants = append(tenants, tenant)
		if event, err := tenant.Await("holding"); err != nil || event.Limit != 2<<30 {
			t.Fatalf("%s sees %d bytes (%v), want 2 GiB", name, event.Limit, err)
		}
	}
	for _, tenant := range tenants {
		tenant.Stop()
		event, err := tenant.Await("report")
		if err != nil {
			t.Fatal(err)
		}
		if event.Verified == 0 || event.Wrong != 0 {
			t.Errorf("%s: %d regions verified, %d wrong", tenant.Name, event.Verified, event.Wrong)
		}
		if err := tenant.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestOverheadQuick(t *testing.T) {
	report, err := bench.Run(t.Context(), []string{"overhead"}, bench.Options{Bin: binaries(t), Profile: rig.DefaultProfile, Quick: true})
	if err != nil {
		t.Fatal(err)
	}
	if !report.Env.Simulated {
		t.Error("the report does not say that the GPU is simulated")
	}
	for _, one := range report.Results {
		if one.N == 0 || one.Value <= 0 || one.Baseline <= 0 || !one.Simulated {
			t.Errorf("%s %s: value %v, baseline %v, n %d", one.ID, one.Name, one.Value, one.Baseline, one.N)
		}
	}
	var text strings.Builder
	if err := report.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	if !json.Valid([]byte(text.String())) {
		t.Error("the report is no JSON")
	}
	t.Log(text.String())
}

// Each scenario on a simulated node, short: every row that it lists is measured, and what does not depend on time holds.
func TestScenariosQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	exact := map[string]bool{"KF-411": true, "KF-704": true, "KF-1203": true} // data
	for i := range 10 {
		exact[fmt.Sprintf("KF-%d", 400+i)] = true // where each class is refused
		exact[fmt.Sprintf("KF-%d", 420+i)] = true // and by each way
	}
	for _, name := range []string{"memory", "neighbour", "priority", "crash", "switch", "fault", "footprint"} {
		t.Run(name, func(t *testing.T) {
			report, err := bench.Run(t.Context(), []string{name}, bench.Options{Bin: binaries(t), Profile: rig.DefaultProfile, Quick: true})
			if err != nil {
				t.Fatal(err)
			}
			scenario, err := bench.Find(name)
			if err != nil {
				t.Fatal(err)
			}
			measured := map[string]bool{}
			for _, one := range report.Results {
				measured[one.ID] = true
				if one.N == 0 || !one.Simulated || exact[one.ID] && !one.OK {
					t.Errorf("%s %s: %v, n %d, simulated %t, ok %t", one.ID, one.Name, one.Value, one.N, one.Simulated, one.OK)
				}
			}
			for _, row := range scenario.Rows {
				if !measured[row.ID] {
					t.Errorf("%s %s: not measured", row.ID, row.Name)
				}
			}
			var text strings.Builder
			if err := report.WriteJSON(&text); err != nil {
				t.Fatal(err)
			}
			if _, err := bench.Read(strings.NewReader(text.String())); err != nil {
				t.Errorf("what was written cannot be read: %v", err)
			}
		})
	}
}

// A kerfd that was killed is followed by another, on the same node.
func TestRigRevives(t *testing.T) {
	on := simulated(t)
	before := on.Pid()
	on.KillKerfd()
	if err := on.Revive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on.Pid() == before {
		t.Error("no new kerfd")
	}
	if _, err := on.Top(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestGPUCheckWithoutGPU(t *testing.T) {
	if rig.HasGPU() {
		t.Skip("this machine has a GPU")
	}
	if _, err := os.Lstat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has NVIDIA's libraries, and so /dev/nvidiactl")
	}
	text, err := output(t, exec.Command("gpu/check.sh"))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "no NVIDIA GPU here") {
		t.Errorf("ended with %v, want exit 2 and one line that says why", err)
	}
	if _, err := os.Lstat("/dev/nvidiactl"); err == nil {
		t.Error("looking for a GPU made /dev/nvidiactl, which all others would take for one")
	}
}

// The GPU suite's own machinery, on a simulated node.
func TestGPUCheckSimulated(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	bin := binaries(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "gpu/check.sh", "--simulated", "--out", t.TempDir(), filepath.Dir(bin))
	all, err := cmd.CombinedOutput()
	text := string(all)
	t.Log(text)
	if err != nil {
		t.Error(err)
	}
	if !strings.Contains(text, "SIMULATED") {
		t.Error("the table does not say that the GPU is simulated")
	}
}
