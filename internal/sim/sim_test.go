package sim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

// fakeLibraries is a library directory whose files nobody loads.
func fakeLibraries(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	names := []string{mpsControl}
	for _, name := range libraries {
		names = append(names, name+".so.1")
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("ELF, in spirit"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func newNode(t *testing.T, profile string) *Node {
	t.Helper()
	p, err := LoadProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := Create(filepath.Join(t.TempDir(), "node"), p, fakeLibraries(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func TestBuiltInProfiles(t *testing.T) {
	want := map[string]int{"a100x8": 8, "h200x8": 8, "l40sx4": 4, "mixed": 4, "none": 0, "smallx2": 2}
	got := map[string]int{}
	for _, name := range Profiles() {
		p, err := LoadProfile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if p.Name != name {
			t.Errorf("profiles/%s.yaml calls itself %q", name, p.Name)
		}
		got[name] = len(p.of("gpu"))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("GPUs by profile (-want +got):\n%s", d)
	}
}

func TestCreate(t *testing.T) {
	for _, profile := range Profiles() {
		t.Run(profile, func(t *testing.T) {
			n := newNode(t, profile)
			st := n.Status()
			if len(st.GPUs) != len(n.gpus) || !st.Simulated {
				t.Errorf("status: %+v", st)
			}
			for _, g := range st.GPUs {
				if !strings.HasSuffix(g.Name, "(simulated)") || g.UUID.IsZero() || g.Memory == 0 || g.Used != 0 {
					t.Errorf("GPU %+v", g)
				}
			}
			danglingLinks(t, n.Root)
			if err := n.Remove(false); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(n.Root); !os.IsNotExist(err) {
				t.Errorf("after Remove: %v", err)
			}
		})
	}
}

func danglingLinks(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if target, err := filepath.EvalSymlinks(path); err != nil || !strings.HasPrefix(target, root) {
			t.Errorf("%s leads to %q, %v", path, target, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCreateRefuses(t *testing.T) {
	p, err := LoadProfile("l40sx4")
	if err != nil {
		t.Fatal(err)
	}
	libs := fakeLibraries(t)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken := newNode(t, "none").Root
	for name, tc := range map[string]struct{ root, libs, want string }{
		"a directory in use": {full, libs, "not empty; choose another root"},
		"a node there":       {taken, libs, "is there already; stop it first"},
		"no libraries":       {filepath.Join(t.TempDir(), "node"), t.TempDir(), "make build"},
	} {
		_, err := Create(tc.root, p, tc.libs)
		wantError(t, name, err, tc.want)
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(tc.root), ".*making*"))
		if len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	_, err = Open(full)
	wantError(t, "open", err, "no simulated node is there")
}

func wantError(t *testing.T, name string, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: error %v; want one line with %q", name, err, part)
	}
}

// valid is a small profile that the rows below spoil.
const valid = `
name: small
driver: {version: 580.95.05, cuda: "13.0"}
models:
  m:
    {name: Model, brand: nvidia, architecture: hopper, compute_capability: "9.0", pci_id: "10de:2335", memory: 1Gi, sms: 4, pcie: {gen: 5, width: 16},
     mig: {capable: true, profiles: [{name: 1g, id: 19, slot: 0, memory: 128Mi, sms: 1, slices: 1, max: 7, size: 1, placements: [0, 1]}]}}
nics:
  n: {pci_id: "15b3:1021", driver: mlx5_core, speed: 1000, max_vfs: 2, link: ethernet, pcie: {gen: 5, width: 16}}
numa: [{id: 0, cpus: 0-3, memory: 8Gi}]
mig: []
nvlink: []
faults: []
pcie:
  - root: pci0000:00
    numa: 0
    below:
      - {at: "0000:00:01.0", is: bridge, below: [{at: "0000:01:00.0", is: gpu, model: m}]}
      - {at: "0000:00:02.0", is: bridge, below: [{at: "0000:02:00.0", is: gpu, model: m}]}
      - {at: "0000:00:03.0", is: bridge, below: [{at: "0000:03:00.0", is: nic, model: n, netdev: eth0}]}
`

func TestParseProfileRefuses(t *testing.T) {
	if _, err := ParseProfile([]byte(valid)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ old, new, want string }{
		"unknown key":        {"name: small", "name: small\ncolour: red", `key "colour" is unknown`},
		"unknown key, deep":  {"sms: 4", "smz: 4", `key "smz" is unknown`},
		"key twice":          {"name: small", "name: small\nname: tall", "already defined"},
		"no YAML":            {"name: small", "name: [small", "correct the YAML"},
		"two documents":      {"name: small", "name: small\n---\nname: tall", "more than one YAML document"},
		"name":               {"name: small", "name: Small Machine", "not a short name"},
		"driver version":     {"580.95.05", "latest", "not a driver version"},
		"CUDA version":       {`"13.0"`, `"11.8"`, "from 12.0 on"},
		"no driver":          {`driver: {version: 580.95.05, cuda: "13.0"}`, "", "driver: missing"},
		"memory unit":        {"memory: 1Gi, sms", "memory: 1Gb, sms", `unknown unit "Gb"`},
		"memory zero":        {"memory: 1Gi, sms", "memory: 0, sms", "memory 0"},
		"memory negative":    {"memory: 1Gi, sms", "memory: -1Gi, sms", "cannot be negative"},
		"no SMs":             {"sms: 4", "sms: 0", "sms 0"},
		"architecture":       {"hopper", "voodoo", `architecture "voodoo": unknown`},
		"link":               {"gen: 5, width: 16},\n", "gen: 9, width: 16},\n", "no such link"},
		"reserved":           {"sms: 4", "reserved: 2Gi, sms: 4", "they fill the memory"},
		"PCI address twice":  {"0000:02:00.0", "0000:01:00.0", "PCI address 0000:01:00.0: two functions have it"},
		"PCI bus twice":      {"0000:02:00.0", "0000:01:01.0", "bus 0000:01 is below 0000:00:01.0 already"},
		"PCI address":        {"0000:02:00.0", "02:00", "not domain:bus:device.function"},
		"other domain":       {"0000:02:00.0", "0001:02:00.0", "not in the domain"},
		"not on root's bus":  {`at: "0000:00:02.0"`, `at: "0000:0a:02.0"`, "must be on the root's own bus"},
		"root":               {"pci0000:00", "0000:00", "not a root complex"},
		"NUMA of root":       {"numa: 0\n", "numa: 3\n", "numa 3 is not among"},
		"no NUMA":            {"numa: [{id: 0, cpus: 0-3, memory: 8Gi}]", "", "numa: missing"},
		"model":              {`"0000:02:00.0", is: gpu, model: m`, `"0000:02:00.0", is: gpu, model: x`, `model "x" is not among models`},
		"kind":               {"is: nic", "is: toaster", `unknown kind "toaster"`},
		"NIC without name":   {", netdev: eth0", "", "has no netdev"},
		"NIC name":           {"netdev: eth0", "netdev: a/b", "not a device name"},
		"VFs":                {"max_vfs: 2", "max_vfs: 2, vfs: 3", "vfs 3 of max_vfs 2"},
		"bridge of three":    {"nvlink: []", "nvlink: [{gpus: [0, 1, 1], links: 4, version: 3, through: bridge}]", "a bridge joins two GPUs"},
		"no switch":          {"nvlink: []", "nvlink: [{gpus: [0, 1], links: 4, version: 3, through: switch}]", "has no nvswitch"},
		"NVLink to nowhere":  {"nvlink: []", "nvlink: [{gpus: [0, 9], links: 4, version: 3, through: bridge}]", "GPU 9 does not exist"},
		"too many links":     {"nvlink: []", "nvlink: [{gpus: [0, 1], links: 99, version: 3, through: bridge}]", "99 links"},
		"MIG of no GPU":      {"mig: []", "mig: [{gpu: 7}]", "GPU 7 does not exist"},
		"MIG profile":        {"mig: []", "mig: [{gpu: 0, instances: [{profile: 9g}]}]", `profile "9g"`},
		"MIG placement":      {"mig: []", "mig: [{gpu: 0, instances: [{profile: 1g, start: 5}]}]", "cannot start at 5"},
		"MIG overlap":        {"mig: []", "mig: [{gpu: 0, instances: [{profile: 1g, start: 1}, {profile: 1g, start: 1}]}]", "overlaps another"},
		"fault of no GPU":    {"faults: []", "faults: [{gpu: 4, kind: lost}]", "GPU 4 does not exist"},
		"fault of no kind":   {"faults: []", "faults: [{gpu: 0, kind: rust}]", `injection "rust": unknown`},
		"fault without Xid":  {"faults: []", "faults: [{gpu: 0, kind: xid}]", "xid 0: outside"},
		"function below GPU": {"is: gpu, model: m}]}\n      - {at: \"0000:00:03.0\"", "is: gpu, model: m, below: [{at: \"0000:09:00.0\", is: bridge}]}]}\n      - {at: \"0000:00:03.0\"", "only a bridge may"},
	} {
		if !strings.Contains(valid, tc.old) {
			t.Errorf("%s: the row spoils nothing", name)
		}
		_, err := ParseProfile([]byte(strings.Replace(valid, tc.old, tc.new, 1)))
		wantError(t, name, err, tc.want)
	}
	_, err := ParseProfile(nil)
	wantError(t, "empty", err, "empty")
	_, err = LoadProfile("h100x8")
	wantError(t, "no such profile", err, "take one of a100x8, h200x8")
	_, err = LoadProfile("/nowhere/x.yaml")
	wantError(t, "no such file", err, "check the path")
}

func FuzzParseProfile(f *testing.F) {
	f.Add(valid)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseProfile([]byte(text))
		if err != nil {
			return
		}
		p.sysfs()
		for i := range p.of("gpu") {
			p.gpu(i)
		}
	})
}

func TestInject(t *testing.T) {
	n := newNode(t, "l40sx4")
	for _, in := range []Injection{{Kind: "xid", Value: 31, PID: 7}, {Kind: "xid", Value: 79}, {Kind: "ecc", Value: 2}, {Kind: "remap", Value: 1}, {Kind: "temperature", Value: 95}} {
		if err := n.Inject(2, in); err != nil {
			t.Fatal(err)
		}
	}
	g := n.gpus[2]
	st := n.Status().GPUs[2]
	if !st.Lost || st.Recovery != "node reboot" || st.Events != 4 || g.Health.EccVolatileUncorrected != 2 || g.Health.TemperatureC != 95 {
		t.Errorf("%+v, %+v", st, g.Health)
	}
	if e := g.Event[1]; e.Seq != 1 || e.Xid != 31 || e.Pid != 7 || e.Type != eventXid {
		t.Errorf("first event %+v", e)
	}
	if err := n.Inject(2, Injection{Kind: "clear"}); err != nil {
		t.Fatal(err)
	}
	if st := n.Status().GPUs[2]; st.Lost || st.Recovery != "" {
		t.Errorf("after clear: %+v", st)
	}
	if g.Health.EccAggregateUncorrected != 2 {
		t.Error("clear took away the aggregate ECC count, which outlasts a reboot")
	}
	wantError(t, "GPU", n.Inject(9, Injection{Kind: "lost"}), "the simulated node has 4 GPUs")
	wantError(t, "kind", n.Inject(0, Injection{Kind: "moth"}), `injection "moth": unknown`)
	wantError(t, "xid", n.Inject(0, Injection{Kind: "xid", Value: 1000}), "outside 1 to 999")
	wantError(t, "value", n.Inject(0, Injection{Kind: "lost", Value: 3}), "takes no value")
}

func TestUUIDIsStable(t *testing.T) {
	p, err := LoadProfile("h200x8")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[node.UUID]bool{}
	for i := range 8 {
		seen[p.uuid("GPU", i)] = true
	}
	if len(seen) != 8 || p.uuid("GPU", 0) == p.uuid("MIG", 0) {
		t.Errorf("UUIDs are not distinct: %v", seen)
	}
	if got := p.uuid("GPU", 0).String(); got != "GPU-63acef76-8e30-5eac-a212-29868e4b160d" {
		t.Errorf("GPU 0 is now %s: scripts and goldens that name it break", got)
	}
}
