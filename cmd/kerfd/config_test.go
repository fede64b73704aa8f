package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfig(t *testing.T) {
	for _, tt := range []struct{ name, text, err string }{
		{"empty", "", ""},
		{"whole", "runDir: /tmp/k\nstateDir: /tmp/s\nroot: /\nsocketMode: \"0660\"\nstrict: true\nlogLevel: debug\n", ""},
		{"unknown key", "memorylimit: 3\n", "field memorylimit not found in type main.Config; `kerfd config print` shows every key"},
		{"not YAML", "a: [", "did not find expected node content"},
		{"two documents", "runDir: /tmp/a\n---\nstrict: true\n", "a second document begins"},
		{"long path", "runDir: /tmp/" + strings.Repeat("x", 90) + "\n", "use a shorter one"},
		{"mode", "socketMode: rw\n", `socketMode "rw": not an octal file mode; write it as "0660"`},
		{"level", "logLevel: loud\n", `logLevel "loud": not known; use debug, info, warn or error`},
		{"drain timeout", "drainTimeout: 10ms\n", "drainTimeout 10ms: outside 50ms to 1m"},
		{"root and simulate", "root: /x\nsimulate: {profile: h200x8}\n", "a simulated node has a root of its own"},
		{"cards", "cards: [{match: {product: a100, index: 3}, mode: mig}, {mode: overcommit, overcommitPercent: 150}]\n", ""},
		{"unknown mode", "cards: [{mode: half}]\n", `cards: mode "half": not known; use vgpu, overcommit, mig or exclusive`},
		{"over-commit by nothing", "cards: [{mode: overcommit}]\n", "overcommitPercent 0: outside 101 to 1000"},
		{"over-commit in another mode", "cards: [{mode: vgpu, overcommitPercent: 150}]\n", "overcommitPercent 150 in mode vgpu"},
		{"kubernetes", "kubernetes: {enabled: true, nodeName: n1, devicePlugin: {enabled: true, memory: 4Gi, cores: 10}}\n", ""},
		{"no node name", "kubernetes: {enabled: true}\n", "kubernetes.nodeName: not set"},
		{"no door", "kubernetes: {enabled: true, nodeName: n1, dra: false}\n", "neither dra nor devicePlugin is on"},
		{"crumbs", "kubernetes: {enabled: true, nodeName: n1, devicePlugin: {enabled: true, memory: 1Ki}}\n", "devicePlugin.memory 1Ki: less than 2Mi"},
		{"too many cores", "kubernetes: {enabled: true, nodeName: n1, devicePlugin: {enabled: true, cores: 101}}\n", "devicePlugin.cores: percent 101"},
		{"a host directory with the state in it", "stateDir: /var/lib/kerf\nkubernetes: {enabled: true, nodeName: n1, hostDir: /var/lib}\n", "kubernetes.hostDir /var/lib: /var/lib/kerf is there"},
		{"free hardware", "simulate: {zeroCost: true}\n", "real hardware cannot be free"},
		{"monitor", "monitor: {profile: shared, mode: hold, interval: 30s, thresholds: {pcieReplaysPerMinute: 5}}\n", ""},
		{"unknown profile", "monitor: {profile: lenient}\n", `monitor.profile "lenient": not known; use conservative, nvidia, shared`},
		{"unknown monitor mode", "monitor: {mode: drain}\n", `monitor.mode "drain": not known; use observe, hold or evict`},
		{"a busy monitor", "monitor: {interval: 10ms}\n", "monitor.interval 10ms: outside 1s to 5m"},
		{"probes", "monitor: {probes: {tracepoints: false, calls: true, budget: 0.01}}\n", ""},
		{"a budget in percent", "monitor: {probes: {calls: true, budget: 5}}\n", "monitor.probes.budget 5: outside 0 to 1"},
		{"collectives alone", "monitor: {probes: {nccl: /x}}\n", "monitor.probes.nccl without calls"},
		{"page", "page: {listen: \"[::1]:8080\"}\n", ""},
		{"no page", "page: {listen: \"off\"}\n", ""},
		{"a page for everybody", "page: {listen: \"0.0.0.0:9475\"}\n", "not an address of the loopback"},
		{"a page without a port", "page: {listen: localhost}\n", "no address and port"},
		{"threshold", "monitor: {thresholds: {busyPercent: 120}}\n", "monitor.thresholds.busyPercent 120: outside 1 to 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "kerfd.yaml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := flags{config: path}.load()
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line with %q", err, tt.err)
			}
		})
	}
}

func TestConfigFileMissing(t *testing.T) {
	_, err := flags{config: "/nonexistent/kerfd.yaml"}.load()
	if err == nil || !strings.Contains(err.Error(), "config /nonexistent/kerfd.yaml: no such file") {
		t.Error(err)
	}
}

func TestFlagsOverrideTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kerfd.yaml")
	if err := os.WriteFile(path, []byte("runDir: /tmp/a\nsimulate: {profile: a100x8}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := flags{config: path, simulate: "h200x8", runDir: "/tmp/b"}.load()
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.RunDir, c.StateDir, c.Simulate.Profile, c.ledgerDir()}
	if diff := cmp.Diff([]string{"/tmp/b", "/tmp/b/state", "h200x8", "/tmp/b/state/ledger"}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("runDir: /x\n"))
	f.Add([]byte("simulate: {profile: [}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "c")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = flags{config: path}.load()
	})
}
