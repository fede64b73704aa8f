package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// golden holds what a description comes to to the committed file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (run with -update if it is right; -want +got):\n%s", name, diff)
	}
}

// TestPlan: QEMU's arguments, and where the devices will be.
func TestPlan(t *testing.T) {
	for _, m := range hardware() {
		p := m.plan("/dir")
		var text strings.Builder
		for i := 0; i+1 < len(p.args); i += 2 {
			text.WriteString(p.args[i] + " " + p.args[i+1] + "\n")
		}
		for _, d := range p.places {
			text.WriteString(strings.Join([]string{"#", d.Name, d.Address, d.Path, strings.Join(d.VFs, " ")}, " ") + "\n")
		}
		golden(t, m.Name+".args", text.String())
	}
}

// TestMachines: names are unique, and classes are of devices that are there.
func TestMachines(t *testing.T) {
	for _, m := range hardware() {
		seen := map[string]bool{}
		for _, d := range m.described().Devices {
			if seen[d.Name] || seen[d.Address] {
				t.Errorf("machine %s: %s (%s) is there twice", m.Name, d.Name, d.Address)
			}
			seen[d.Name], seen[d.Address] = true, true
		}
		for _, p := range m.Classes {
			if !seen[p.A] || !seen[p.B] {
				t.Errorf("machine %s: a class of %s and %s, which are not both there", m.Name, p.A, p.B)
			}
		}
		if got, err := machine(m.Name); err != nil || got.Name != m.Name {
			t.Errorf("machine %s is not found by its name: %v", m.Name, err)
		}
	}
	if _, err := machine("pdp11"); err == nil || !strings.Contains(err.Error(), "cni, storage") {
		t.Errorf("an unknown machine gives %v, want a list of those there are", err)
	}
}

// TestSuites: each is of a machine, under a name of its own.
func TestSuites(t *testing.T) {
	names := map[string]bool{}
	for _, s := range suites() {
		if _, err := machine(s.hardware); err != nil {
			t.Errorf("suite %s: %v", s.name, err)
		}
		if names[s.name] {
			t.Errorf("two suites are called %s", s.name)
		}
		names[s.name] = true
	}
}

// TestCpio: what is written is what cpio(1), or busybox's, reads.
func TestCpio(t *testing.T) {
	im := &image{map[string]node{}}
	im.file("/a/b/odd", []byte("12345"), 0o755)
	im.file("/a/empty", nil, 0o600)
	im.link("/a/link", "b/odd")
	var archive bytes.Buffer
	if err := im.write(&archive); err != nil {
		t.Fatal(err)
	}
	program := []string{"cpio"}
	if _, err := exec.LookPath("cpio"); err != nil {
		program = []string{"busybox", "cpio"}
	}
	if _, err := exec.LookPath(program[0]); err != nil {
		t.Skip("neither cpio nor busybox is installed")
	}
	dir := t.TempDir()
	cmd := exec.Command(program[0], append(program[1:], "-i", "-d")...)
	cmd.Dir, cmd.Stdin = dir, &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"a/b/odd": "12345", "a/empty": "", "a/link": "12345"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "a/b/odd")); err != nil || info.Mode() != 0o755 {
		t.Errorf("a/b/odd has mode %v, %v", info.Mode(), err)
	}
}

// TestCpioError: the first write that fails is reported.
func TestCpioError(t *testing.T) {
	full := errors.New("disk is full")
	im := newImage()
	r, w := io.Pipe()
	r.CloseWithError(full)
	if err := im.write(w); !errors.Is(err, full) {
		t.Errorf("writing to a full disk gives %v", err)
	}
}

// TestCanonical: programs that packages have at the top are below /usr, whatever they are called by.
func TestCanonical(t *testing.T) {
	for from, want := range map[string]string{"/bin/ip": "/usr/bin/ip", "/lib64/ld.so": "/usr/lib64/ld.so", "/usr/bin/x/../y": "/usr/bin/y", "/lib": "/lib", "/library/a": "/library/a"} {
		if got := canonical(from); got != want {
			t.Errorf("%s is at %s, want %s", from, got, want)
		}
	}
}

func TestModinfo(t *testing.T) {
	info := []byte("license=GPL\x00depends=dca,i2c-algo-bit\x00name=igb\x00")
	if got := modinfo(info, "depends"); !slices.Equal(got, []string{"dca", "i2c-algo-bit"}) {
		t.Errorf("depends is %q", got)
	}
	if got := modinfo([]byte("depends=\x00"), "depends"); len(got) != 0 {
		t.Errorf("depends on nothing is %q", got)
	}
}

// TestModules: each comes after what it needs, once. It needs the packages in the cache.
func TestModules(t *testing.T) {
	r := cached(t)
	release, err := r.kernel()
	if err != nil {
		t.Fatal(err)
	}
	got, err := modules(t.Context(), filepath.Join(r.dir, "lib/modules", release), []string{"igb", "rdma-rxe", "igbvf"})
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, m := range got {
		if _, twice := at[m.name]; twice {
			t.Errorf("%s is there twice", m.name)
		}
		at[m.name] = i
	}
	for _, p := range [][2]string{{"dca", "igb"}, {"i2c_algo_bit", "igb"}, {"ib_core", "ib_uverbs"}, {"ib_uverbs", "rdma_rxe"}} {
		first, ok1 := at[p[0]]
		then, ok2 := at[p[1]]
		if !ok1 || !ok2 || first > then {
			t.Errorf("%s (at %d, %v) does not come before %s (at %d, %v)", p[0], first, ok1, p[1], then, ok2)
		}
	}
	_, err = modules(t.Context(), filepath.Join(r.dir, "lib/modules", release), []string{"nonesuch"})
	if err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("an unknown module gives %v", err)
	}
}

// cached is the root, where this machine has fetched it before.
func cached(t *testing.T) root {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache directory: ", err)
	}
	r := root{filepath.Join(cache, "kerf/lab", key())}
	if _, err := os.Stat(r.dir); err != nil {
		t.Skip("the packages are not in the cache; `lab fetch` puts them there")
	}
	return r
}

// TestWire: frames of any size arrive whole, and a stream cut short or by something else is an error.
func TestWire(t *testing.T) {
	var wire bytes.Buffer
	p := &port{w: &wire}
	big := bytes.Repeat([]byte("x"), 3*frameMax+17)
	if n, err := (stream{p, frameStdout}).Write(big); n != len(big) || err != nil {
		t.Fatal(n, err)
	}
	if err := p.sendJSON(frameEnded, ended{Signal: 9}); err != nil {
		t.Fatal(err)
	}
	sent := bytes.Clone(wire.Bytes())
	var got []byte
	for {
		kind, data, err := receive(&wire)
		if err != nil {
			t.Fatal(err)
		}
		if kind == frameStdout {
			got = append(got, data...)
			continue
		}
		var e ended
		if err := json.Unmarshal(data, &e); err != nil || kind != frameEnded || e.Signal != 9 {
			t.Errorf("kind %q, %+v, %v", kind, e, err)
		}
		break
	}
	if !bytes.Equal(got, big) {
		t.Errorf("%d bytes arrived of %d", len(got), len(big))
	}
	if _, _, err := receive(bytes.NewReader(sent[:100])); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("half a frame gives %v", err)
	}
	if _, _, err := receive(strings.NewReader("o\xff\xff\xff\xffboo")); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("what is no frame gives %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	for want, e := range map[int]ended{0: {}, 7: {Code: 7}, 137: {Signal: 9}, exitTimeout: {Signal: 9, Timeout: true}, exitFailure: {Error: "no such program"}} {
		if got := e.exit(); got != want {
			t.Errorf("%+v has exit code %d, want %d", e, got, want)
		}
	}
}

// TestJob runs jobs as the guest does.
func TestJob(t *testing.T) {
	discard := &port{w: io.Discard}
	for _, tt := range []struct {
		name string
		job  job
		want ended
	}{
		{"exit", job{Args: []string{"sh", "-c", "exit 7"}, Timeout: time.Minute}, ended{Code: 7}},
		{"signal", job{Args: []string{"sh", "-c", "kill -9 $$"}, Timeout: time.Minute}, ended{Signal: 9}},
		{"timeout, with a child that holds the output", job{Args: []string{"sh", "-c", "sleep 1000 & wait"}, Timeout: 10 * time.Millisecond}, ended{Signal: 9, Timeout: true}},
		{"no program", job{Args: []string{"/nonesuch"}, Timeout: time.Minute}, ended{Error: "start /nonesuch: the machine has no such program; give it with --file HOST:GUEST"}},
	} {
		if got := tt.job.run(discard); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestVerdict: a skip is a failure, and a known failure that is none is one too.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fails  []string
		output string
		end    ended
		passed int
		wrong  []string
	}{
		{"good", nil, "--- PASS: TestLabA (0.00s)\n    --- PASS: TestLabA/x (0.00s)\nPASS\n", ended{}, 1, nil},
		{"skip", nil, "--- PASS: TestLabA (0.00s)\n    --- SKIP: TestLabA/x (0.00s)\n--- SKIP: TestLabB (0.00s)\n", ended{}, 1, []string{"skipped: TestLabA/x", "skipped: TestLabB"}},
		{"fail", nil, "--- FAIL: TestLabA (0.00s)\n", ended{Code: 1}, 0, []string{"failed: TestLabA"}},
		{"shown failing", []string{"TestLabA"}, "--- FAIL: TestLabA (0.00s)\n", ended{Code: 1}, 0, nil},
		{"no more failing", []string{"TestLabA"}, "--- PASS: TestLabA (0.00s)\n", ended{}, 1,
			[]string{"TestLabA is listed as failing with this plugin, and did not: correct the list in suites.go"}},
		{"panic", []string{"TestLabA"}, "--- FAIL: TestLabA (0.00s)\npanic: x\n", ended{Code: 2}, 0, []string{"exit code 2"}},
		{"no word", nil, "", ended{Code: 1}, 0, []string{"exit code 1"}},
		{"timeout", nil, "", ended{Signal: 9, Timeout: true}, 0, []string{"it ran past its time and was killed"}},
	} {
		passed, wrong := suite{fails: tt.fails}.verdict(tt.output, tt.end)
		if passed != tt.passed || !slices.Equal(wrong, tt.wrong) {
			t.Errorf("%s: %d passed, wrong %q; want %d, %q", tt.name, passed, wrong, tt.passed, tt.wrong)
		}
	}
}

// TestUsage: a wrong command line is told from a failure, before anything is fetched or booted.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"nonesuch"}, {"run"}, {"run", "--hardware", "pdp11", "--", "ls"}, {"run", "--file", "here", "--", "ls"}, {"shell", "x"}, {"test", "x"}, {"fetch", "x"}} {
		if err := run(context.Background(), args); !errors.As(err, &usageError{}) {
			t.Errorf("lab %s gives %v, want an error of usage", strings.Join(args, " "), err)
		}
	}
}

// TestTail: the reason of a panic comes first, however much follows.
func TestTail(t *testing.T) {
	console := &tail{}
	if !strings.Contains(console.String(), "empty") {
		t.Error(console.String())
	}
	_, _ = io.WriteString(console, "Kernel panic - not syncing: Attempted to kill init!\r\n"+strings.Repeat("frame\r\n", 40))
	if got := console.String(); !strings.HasPrefix(got, ": Kernel panic - not syncing") || strings.Count(got, "\n") > tailLines+1 {
		t.Error(got)
	}
}
