package doctor

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

var update = flag.Bool("update", false, "write the golden files")

// well is a node on which nothing is wrong.
func well() *Facts {
	gpu := node.GPU{Index: 0, UUID: node.UUID{1}, NUMA: 0}
	return &Facts{
		Failed: map[Section]string{}, Took: map[Section]time.Duration{}, Socket: "/run/kerf/kerfd.sock", Version: "v1", Own: "v1", Root: "/", LibDir: "/usr/lib/kerf",
		Driver: node.Driver{Version: "580.95.05", CUDAVersion: 13000}, GPUs: []node.GPU{gpu}, NUMA: 2, MemoryLimits: true,
		Cards: []Card{{Index: 0, UUID: gpu.UUID}}, Verdicts: []Verdict{{Name: "GPU 0", Status: Pass}}, Sources: []Source{{Name: "kmsg", Up: true}}, Probes: []Probe{{Name: "oom", On: true}},
		Links: []Link{{Link: node.PCIeLink{Width: 16, MaxWidth: 16}, NVLinks: 4, Up: 4}}, Module: "580.95.05", Nodes: 2, MPSProgram: "mps",
		Pools:     []Pool{{Name: "fast", Kind: "dir", Total: 100 * node.GiB, Free: 60 * node.GiB, Volumes: 2}},
		TestSlice: 2 * node.GiB, NodeName: "n1", CDIDir: "/var/run/cdi", Published: []string{"gpu-1"}, Expected: []string{"gpu-1"}, PCIGPUs: 1,
	}
}

func examine(f *Facts, level Level) (map[string]Finding, Status) {
	findings, worst := Examine(Checks, level, f)
	by := make(map[string]Finding)
	for _, finding := range findings {
		by[finding.ID] = finding
	}
	return by, worst
}

func TestWorstDecides(t *testing.T) {
	for _, tt := range []struct{ a, b, want Status }{
		{Pass, Info, Pass},
		{Pass, Warn, Warn},
		{Warn, Unknown, Unknown},
		{Crit, Unknown, Crit},
		{Unknown, Crit, Crit},
	} {
		if got := Worse(tt.a, tt.b); got != tt.want {
			t.Errorf("Worse(%s, %s) = %s, want %s", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestWell(t *testing.T) {
	found, worst := examine(well(), Active)
	for id, f := range found {
		if f.Status != Pass && id != "driver.limits" {
			t.Errorf("%s: %s %s", id, f.Status, f.Found)
		}
	}
	if worst != Pass || len(found) != len(Checks) {
		t.Errorf("%s, %d findings of %d checks: is an id there twice?", worst, len(found), len(Checks))
	}
}

// Every check says what is wrong, with what was found, and what to do.
func TestJudgements(t *testing.T) {
	type row struct {
		check  string
		status Status
		words  string
		change func(*Facts)
	}
	rows := []row{
		{"daemon", Crit, "nothing is there", func(f *Facts) { f.Failed[Daemon] = "no kerfd: nothing is there" }},
		{"daemon", Warn, "kerfd is v0", func(f *Facts) { f.Version = "v0" }},
		{"driver.library", Crit, "libcuda", func(f *Facts) { f.MissingLibrary = "libcuda.so.1: nowhere" }},
		{"driver.library", Info, "kerfd would tell", func(f *Facts) { f.Driver.Version = "" }},
		{"driver.module", Crit, "kernel module 535.1", func(f *Facts) { f.Module = "535.1" }},
		{"driver.module", Crit, "not loaded", func(f *Facts) { f.NoModule = "no file" }},
		{"driver.module", Unknown, "garbage", func(f *Facts) { f.ModuleError = "garbage" }},
		{"driver.nodes", Crit, "missing", func(f *Facts) { f.NoNode, f.Absent = "/dev/nvidia0 is missing", true }},
		{"driver.nodes", Warn, "by user 5", func(f *Facts) { f.NoNode, f.Denied = "cannot be opened by user 5", true }},
		{"driver.nodes", Crit, "I/O", func(f *Facts) { f.NoNode = "I/O error" }},
		{"driver.nodes", Info, "no GPU", func(f *Facts) { f.GPUs = nil }},
		{"driver.limits", Info, "shim alone", func(f *Facts) { f.MemoryLimits = false }},
		{"mps.control", Info, "no program", func(f *Facts) { f.NoMPS = "no program" }},
		{"mps.control", Warn, "died", func(f *Facts) { f.MPSTrouble = "GPU 0: died" }},
		{"gpu.count", Crit, "the PCI bus has 2 GPUs, NVML shows 1", func(f *Facts) { f.PCIGPUs = 2 }},
		{"gpu.count", Skip, "no PCI bus", func(f *Facts) { f.PCIGPUs = -1 }},
		{"gpu.count", Warn, "Xids of a card", func(f *Facts) { f.OrphanXids = map[int]uint64{79: 1} }},
		{"gpu.faults", Crit, "GPU 0: lost", func(f *Facts) { f.Cards[0].Fault = "lost" }},
		{"gpu.health", Crit, "GPU 0: reboot", func(f *Facts) { f.Verdicts[0] = Verdict{"GPU 0", Crit, "reboot, Xid 79", "a reboot"} }},
		{"gpu.health", Unknown, "no answer", func(f *Facts) { f.Verdicts[0] = Verdict{"GPU 0", Unknown, "no answer", "an answer"} }},
		{"gpu.health", Skip, "monitor.enabled", func(f *Facts) { f.MonitorOff = true }},
		{"gpu.links", Warn, "x8 of x16", func(f *Facts) { f.Links[0].Link.Width = 8 }},
		{"gpu.links", Warn, "3 of 4 NVLinks", func(f *Facts) { f.Links[0].Up = 3 }},
		{"topology.numa", Warn, "2 NUMA nodes", func(f *Facts) { f.GPUs[0].NUMA = node.UnknownNUMA }},
		{"topology.numa", Info, "one NUMA node", func(f *Facts) { f.GPUs[0].NUMA, f.NUMA = node.UnknownNUMA, 1 }},
		{"monitor.sources", Warn, "kmsg: no permission", func(f *Facts) { f.Sources[0] = Source{Name: "kmsg", Why: "no permission"} }},
		{"monitor.sources", Info, "7 records", func(f *Facts) { f.Sources[0].Lost = 7 }},
		{"monitor.sources", Warn, "x.corrupt", func(f *Facts) { f.SetAside = []string{"x.corrupt"} }},
		{"monitor.probes", Info, "off: oom: tracefs is not mounted", func(f *Facts) { f.Probes[0] = Probe{Name: "oom", Reason: "tracefs is not mounted"} }},
		{"monitor.probes", Warn, "oom lost 3 of 5", func(f *Facts) { f.Probes[0].Lost, f.Probes[0].Hits = 3, 5 }},
		{"monitor.probes", Skip, "monitor.enabled", func(f *Facts) { f.MonitorOff = true }},
		{"kernel.features", Info, "no BTF", func(f *Facts) { f.Lacking = []string{"no BTF"} }},
		{"shim.file", Crit, "not Kerf's", func(f *Facts) { f.BadShim = "x is not Kerf's shim" }},
		{"shim.limit", Crit, "too much", func(f *Facts) { f.TestFailed = "too much" }},
		{"shim.limit", Skip, "no 2Gi", func(f *Facts) { f.TestSkipped = "no 2Gi are free" }},
		{"ledger.memory", Crit, "tampered", func(f *Facts) { f.Bad = []string{"share 1: tampered with"} }},
		{"ledger.memory", Crit, "NVML sees 1Gi", func(f *Facts) { f.Cards[0].Used = node.GiB }},
		{"ledger.memory", Warn, "outside of shares", func(f *Facts) { f.Cards[0].Used, f.Cards[0].Outside = node.GiB, node.GiB }},
		{"ledger.memory", Unknown, "hangs", func(f *Facts) { f.Cards[0].Error = "it hangs" }},
		{"kubernetes.ready", Crit, "not registered", func(f *Facts) { f.NotReady = "not registered" }},
		{"kubernetes.ready", Skip, "no pods", func(f *Facts) { f.OffCluster = true }},
		{"kubernetes.cdi", Crit, "no such", func(f *Facts) { f.CDIError = "no such directory" }},
		{"kubernetes.cdi", Crit, "no spec for a", func(f *Facts) { f.MissingSpecs = []string{"a"} }},
		{"kubernetes.slices", Warn, "not published: gpu-2", func(f *Facts) { f.Expected = append(f.Expected, "gpu-2") }},
		{"storage.pools", Skip, "no volumes", func(f *Facts) { f.StorageOff, f.Pools = true, nil }},
		{"storage.pools", Crit, "pool fast (dir): gone", func(f *Facts) { f.Pools[0].Error = "gone" }},
		{"storage.pools", Warn, "1Gi of 100Gi are free", func(f *Facts) { f.Pools[0].Free = node.GiB }},
		{"storage.pools", Crit, "not registered", func(f *Facts) { f.StorageUnknown = true }},
		{"storage.pools", Warn, "on no record: fast/x", func(f *Facts) { f.Strangers = []string{"fast/x"} }},
		{"kubernetes.slices", Warn, "not on this node: gpu-2", func(f *Facts) { f.Published = append(f.Published, "gpu-2") }},
		{"gpu.faults", Skip, "needs kerfd", func(f *Facts) { f.Failed[Daemon] = "no kerfd" }},
		{"gpu.health", Unknown, "no answer within 5s", func(f *Facts) { f.Failed[Health] = "no answer within 5s" }},
	}
	judged := make(map[string]bool)
	for _, r := range rows {
		f := well()
		r.change(f)
		found, worst := examine(f, Active)
		got := found[r.check]
		judged[r.check] = true
		if got.Status != r.status || !strings.Contains(got.Found, r.words) {
			t.Errorf("%s: %s %q, want %s with %q", r.check, got.Status, got.Found, r.status, r.words)
		}
		if (got.Status == Warn || got.Status == Crit) && got.Fix == "" {
			t.Errorf("%s: %q without what to do", r.check, got.Found)
		}
		if weight[worst] < weight[r.status] {
			t.Errorf("%s: the worst is %s", r.check, worst)
		}
	}
	for _, c := range Checks {
		if !judged[c.ID] {
			t.Errorf("%s: no row of this test makes it find anything", c.ID)
		}
	}
}

func TestLevels(t *testing.T) {
	found, _ := examine(well(), Quick)
	if f := found["shim.limit"]; f.Status != Skip || !strings.Contains(f.Found, "--level active") {
		t.Errorf("%+v", f)
	}
	if slices.Contains(Sections(Checks, Full), SelfTest) || !slices.Contains(Sections(Checks, Active), SelfTest) {
		t.Error("work is to be run at level active, and at no other")
	}
	if _, err := ParseLevel("deep"); err == nil {
		t.Error("level deep was taken")
	}
}

func TestSelection(t *testing.T) {
	checks, err := Selection{Only: []string{"gpu", "driver.module"}, Skip: []string{"gpu.links"}}.Select()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range checks {
		got = append(got, c.ID)
	}
	if d := cmp.Diff([]string{"driver.module", "gpu.count", "gpu.faults", "gpu.health"}, got); d != "" {
		t.Error(d)
	}
	if _, err := (Selection{Skip: []string{"gpu.helth"}}).Select(); err == nil || !strings.Contains(err.Error(), `"gpu.helth"`) {
		t.Error(err)
	}
}

func TestExit(t *testing.T) {
	for worst, want := range map[Status]int{Pass: 0, Info: 0, Skip: 0, Warn: 1, Crit: 2, Unknown: 3} {
		if got := (Report{Worst: worst}).Exit(); got != want {
			t.Errorf("%s: exit %d, want %d", worst, got, want)
		}
	}
	for _, tt := range []struct{ a, b, want Status }{{Pass, Info, Pass}, {Pass, Warn, Warn}, {Warn, Unknown, Unknown}, {Crit, Unknown, Crit}, {Unknown, Crit, Crit}} {
		if got := Worse(tt.a, tt.b); got != tt.want {
			t.Errorf("Worse(%s, %s) = %s, want %s", tt.a, tt.b, got, tt.want)
		}
	}
}

// What machines read does not change by accident.
func TestFormats(t *testing.T) {
	f := well()
	f.Verdicts[0] = Verdict{"GPU 0", Crit, "reboot, <Xid 79>", "a reboot"}
	f.Cards[0].Error = "it hangs"
	f.OffCluster = true
	r := Report{Schema: "kerf.doctor/v1", Tool: "kerf v1", Node: "n1", BootID: "b", Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Duration: 0.25, Level: "quick"}
	r.Checks, r.Worst = Examine(Checks, Quick, f)
	for _, format := range Formats {
		var out bytes.Buffer
		if err := r.Write(&out, format); err != nil {
			t.Fatal(err)
		}
		golden := "testdata/report." + format
		if *update {
			if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), out.String()); d != "" {
			t.Errorf("%s: %s", format, d)
		}
		var into any = &Report{}
		parse := json.Unmarshal
		if format == "junit" {
			into, parse = &junitSuite{}, xml.Unmarshal
		}
		if err := parse(out.Bytes(), into); format != "text" && err != nil {
			t.Errorf("%s cannot be read back: %v", format, err)
		}
	}
}

func TestRedact(t *testing.T) {
	for text, gone := range map[string]string{
		`password: hunter22`:                                                  "hunter22",
		`{"api_key": "abc123def"}`:                                            "abc123def",
		`Authorization: Bearer abcdef.ghi`:                                    "abcdef.ghi",
		`AKIAABCDEFGHIJKLMNOP in a line`:                                      "AKIAABCDEFGHIJKLMNOP",
		`hf_abcdefghijklmnopqrstuv`:                                           "hf_abcdefghijklmnopqrstuv",
		`https://user:s3cr3t@example.org/x`:                                   "s3cr3t",
		`pid=7, name=train --key x, Ch 1`:                                     "train",
		`eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3.abc`:                       "eyJzdWIi",
		"-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----": "MII",
	} {
		if got := string(Redact([]byte(text))); strings.Contains(got, gone) || !strings.Contains(got, "REDACTED") {
			t.Errorf("%q became %q", text, got)
		}
	}
	for _, text := range []string{"NVRM: Xid (PCI:0000:b3:00): 79, GPU has fallen off the bus.", `"uuid": "GPU-01363a56-fa3a-53ca-a982-6b4a04cd0062"`} {
		if got := string(Redact([]byte(text))); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}
