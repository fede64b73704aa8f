package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/cmd/internal/control"
)

const binaries = "../../build/bin"

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func end(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v; run make build first", err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func startRig(t *testing.T) *rig.Rig {
	t.Helper()
	r, err := rig.Start(t.Context(), rig.Options{Bin: binaries, Profile: "h200x8"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// oneLine checks that an error is one line that begins with the program's name and holds the words.
func oneLine(t *testing.T, what string, got result, code int, words ...string) {
	t.Helper()
	if got.code != code {
		t.Errorf("%s: exit %d, want %d (%s)", what, got.code, code, got.stderr)
	}
	if strings.Count(got.stderr, "\n") != 1 || !strings.HasPrefix(got.stderr, "kerf") {
		t.Errorf("%s: not one line of kerf's: %q", what, got.stderr)
	}
	for _, word := range words {
		if !strings.Contains(got.stderr, word) {
			t.Errorf("%s: %q does not say %q", what, got.stderr, word)
		}
	}
}

func TestBadInput(t *testing.T) {
	r := startRig(t)
	notExecutable := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(notExecutable, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args  []string
		code  int
		words []string
	}{
		{[]string{"run", "--memory", "0", "--", "true"}, 64, []string{"memory 0", "at least 2Mi"}},
		{[]string{"run", "--memory", "-1Gi", "--", "true"}, 64, []string{`"-1Gi"`, "negative", "write it as"}},
		{[]string{"run", "--memory", "200Gi", "--", "true"}, 125, []string{"200Gi", "the largest GPU here has 139.9Gi", "ask for less"}},
		{[]string{"run", "--memory", "5Q", "--", "true"}, 64, []string{`unknown unit "Q"`, "Ki Mi Gi Ti"}},
		{[]string{"run", "--memory", "4Gi", "--cores", "-1", "--", "true"}, 64, []string{"-1", "0 to 100"}},
		{[]string{"run", "--memory", "4Gi", "--cores", "101", "--", "true"}, 64, []string{"101", "0 to 100"}},
		{[]string{"run", "--memory", "4Gi", "--gpu", "99", "--", "true"}, 125, []string{`GPU "99"`, "not on this node", "kerf topo"}},
		{[]string{"run", "--memory", "4Gi", "--gpu", "GPU-none", "--", "true"}, 125, []string{`GPU "GPU-none"`, "not on this node"}},
		{[]string{"run", "--memory", "4Gi", "--gpus", "9", "--", "true"}, 125, []string{"gpus 9", "this node has 8"}},
		{[]string{"run", "--memory", "4Gi", "--class", "gold", "--", "true"}, 64, []string{`class "gold"`, "guaranteed"}},
		{[]string{"run", "--memory", "4Gi"}, 64, []string{"no command"}},
		{[]string{"run", "--", "true"}, 64, []string{"no --memory"}},
		{[]string{"run", "--memory", "4Gi", "--gpu", "", "--", "true"}, 64, []string{"--gpu", "empty"}},
		{[]string{"run", "--memory", "4Gi", "--gpus", "0", "--", "true"}, 64, []string{"--gpus 0", "1 to 16"}},
		{[]string{"run", "--memory", "4Gi", "--bogus", "--", "true"}, 64, []string{"--bogus"}},
		{[]string{"run", "--memory", "4Gi", "--", "no-such-command"}, 127, []string{`"no-such-command"`, "not found"}},
		{[]string{"run", "--memory", "4Gi", "--", notExecutable}, 126, []string{"cannot be executed"}},
		{[]string{"nope"}, 64, []string{`unknown command "nope"`}},
	} {
		oneLine(t, strings.Join(tt.args, " "), end(t, r.Kerf(t.Context(), tt.args...)), tt.code, tt.words...)
	}
	state, err := control.Dial(r.Socket()).State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(state.Shares) != 0 {
		t.Errorf("bad input left %d shares behind", len(state.Shares))
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	_ = listener.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for socket, words := range map[string][]string{
		filepath.Join(dir, "none"): {"no kerfd at", "nothing is there", "start one"},
		stale:                      {"no kerfd at", "stale", "start kerfd again"},
		file:                       {"no kerfd at", file, "not a socket"},
		strings.Repeat("x", 140):   {"no kerfd at", "107"},
	} {
		cmd := exec.Command(filepath.Join(binaries, "kerf"), "--socket", socket, "run", "--memory", "1Gi", "--", "true")
		oneLine(t, socket, end(t, cmd), 125, words...)
	}
}

func TestDaemonRefusesToStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unreadable := write("unreadable.yaml", "")
	if err := os.Remove(unreadable); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(unreadable, 0o755); err != nil { // root reads any file, but no directory
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args  []string
		code  int
		words []string
	}{
		{[]string{"--config", filepath.Join(dir, "missing.yaml")}, 2, []string{"missing.yaml", "no such file"}},
		{[]string{"--config", unreadable}, 2, []string{"unreadable.yaml", "cannot be read"}},
		{[]string{"--config", write("key.yaml", "memmory: 3\n")}, 2, []string{"key.yaml", "memmory", "config print"}},
		{[]string{"--simulate", "no-such-profile"}, 1, []string{"no-such-profile", "h200x8"}},
		{[]string{"--simulate", write("twice.yaml", overlapping)}, 1, []string{"0000:01:00.0"}},
		{[]string{"--simulate", "h200x8", "--config", write("lib.yaml", "libDir: "+dir+"/nolib\n")}, 1, []string{"nolib"}},
	} {
		run := filepath.Join(dir, "run")
		got := end(t, exec.Command(filepath.Join(binaries, "kerfd"), append(tt.args, "--run-dir", run)...))
		oneLine(t, strings.Join(tt.args, " "), got, tt.code, tt.words...)
		if _, err := os.Stat(run); err == nil {
			left, _ := filepath.Glob(run + "/*")
			t.Errorf("%v: left behind %v", tt.args, left)
		}
	}
}

// Another user sees that there is a share, and neither its id nor what could break the terminal.
func TestOtherUsersShare(t *testing.T) {
	r := startRig(t)
	if err := os.Chmod(filepath.Dir(r.Socket()), 0o755); err != nil {
		t.Fatal(err)
	}
	got := end(t, r.Sliced(t.Context(), rig.Slice{Memory: "1Gi"}, "sh", "-c", `
		setpriv --reuid 65534 --regid 65534 --clear-groups "$0" --socket "$1" top --once | grep "$(printf "\033")" && echo an escape
		setpriv --reuid 65534 --regid 65534 --clear-groups "$0" --socket "$1" top --once | grep -c "other user"
		setpriv --reuid 65534 --regid 65534 --clear-groups ls "$(dirname "$1")"/shares/*/s 2>/dev/null || echo closed`,
		filepath.Join(binaries, "kerf"), r.Socket(), "\x1b[31mred\nline"))
	if got.stdout != "1\nclosed\n" {
		t.Errorf("%+v", got)
	}
}

// After an upgrade of the driver without a reboot, its library and the kernel's module are of different versions.
func TestDriverMismatch(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	kerf := filepath.Join(binaries, "kerf")
	if got := end(t, exec.Command(kerf, "sim", "start", "h200x8", "--root", root)); got.code != 0 {
		t.Fatal(got.stderr)
	}
	version := filepath.Join(root, "proc/driver/nvidia/version")
	text, err := os.ReadFile(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(version, bytes.Replace(text, []byte("580.95.05"), []byte("535.261.03"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("root: "+root+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(t.TempDir(), "run")
	got := end(t, exec.Command(filepath.Join(binaries, "kerfd"), "--config", config, "--run-dir", run))
	oneLine(t, "mismatch", got, 1, "535.261.03", "another version than the kernel module", "reboot")
	if _, err := os.Stat(run); err == nil {
		t.Error("the run directory was left behind")
	}
}

func TestSecondDaemon(t *testing.T) {
	r := startRig(t)
	run := filepath.Dir(r.Socket())
	elsewhere := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(elsewhere, []byte("stateDir: "+t.TempDir()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"--config", elsewhere}} {
		got := end(t, exec.Command(filepath.Join(binaries, "kerfd"), append(args, "--simulate", "h200x8", "--run-dir", run)...))
		oneLine(t, "second kerfd", got, 1, run, "another kerfd serves it", "--run-dir")
	}
	if got := end(t, r.Kerf(t.Context(), "top", "--once")); got.code != 0 {
		t.Errorf("the first kerfd no longer answers: %s", got.stderr)
	}
}

func TestExitCodesAndStreams(t *testing.T) {
	r := startRig(t)
	sh := func(script string) result {
		return end(t, r.Sliced(t.Context(), rig.Slice{Memory: "1Gi"}, "sh", "-c", script))
	}
	for script, want := range map[string]result{
		"exit 7":              {7, "", ""},
		"kill -9 $$":          {137, "", ""},
		"echo out; echo e>&2": {0, "out\n", "e\n"},
		"env | grep -c -e ^KERF -e ^LD_ -e ^CUDA": {1, "0\n", ""}, // nothing of Kerf is in the environment
		"id -u": {0, fmt.Sprintln(os.Getuid()), ""},
	} {
		if got := sh(script); got != want {
			t.Errorf("%s: %+v, want %+v", script, got, want)
		}
	}
}

// When kerf run has ended, what it had is free: the next one, which needs the same memory, is not refused.
func TestOneAfterTheOther(t *testing.T) {
	r := startRig(t)
	for range 4 {
		got := end(t, r.Sliced(t.Context(), rig.Slice{Memory: "100Gi", GPU: "0"}, "sh", "-c",
			`"$0" --how kill --after 0.3 >/dev/null 2>&1 & exec "$0" --how kill --after 0.1`, r.Tenant("crasher"))) // one outlives the other by a moment
		if got.code != 137 {
			t.Fatalf("exit %d, want 137: %s", got.code, got.stderr)
		}
		state, err := control.Dial(r.Socket()).State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(state.Shares) != 0 {
			t.Fatal("kerf run has ended, and its share is there still")
		}
	}
}

// A tenant sees its own share and its GPU's device file only, and cannot write its policy.
func TestTenantsView(t *testing.T) {
	r := startRig(t)
	got := end(t, r.Sliced(t.Context(), rig.Slice{Memory: "1Gi", GPU: "3"}, "sh", "-c",
		"ls /run/kerf/shares | wc -l; ls /run/kerf/sim/dev; echo x 2>/dev/null >/run/kerf/shares/*/policy || echo read-only"))
	if want := "1\nnvidia-uvm\nnvidia3\nnvidiactl\nread-only\n"; got.stdout != want {
		t.Errorf("the tenant sees %q (%s), want %q", got.stdout, got.stderr, want)
	}
}

// On a kerfd that has never seen a context here, the first program's context counts before its first allocation.
func TestFirstContextCounts(t *testing.T) {
	r := startRig(t)
	for range 2 { // first measured, then charged by the price that was learned
		got := end(t, r.Sliced(t.Context(), rig.Slice{Memory: "1Gi"}, r.Tenant("hog"), "--limit", "1Gi", "--class", "linear", "--settle", "0"))
		if got.code != 0 || !strings.Contains(got.stdout, "510.0 MiB in") { // 1Gi less a context of 512Mi, and 2Mi of the hog's own
			t.Errorf("%+v", got)
		}
	}
	got := end(t, r.Sliced(t.Context(), rig.Slice{Memory: "256Mi", GPU: "1"}, r.Tenant("hog"), "--limit", "256Mi"))
	if got.code == 0 || !strings.Contains(got.stderr, "cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY") {
		t.Errorf("a slice smaller than a context: %+v", got)
	}
}

func TestRootless(t *testing.T) {
	r := startRig(t)
	if os.Getuid() != 0 {
		t.Skip("the other tests run rootless already")
	}
	socketDir := filepath.Dir(r.Socket())
	if err := os.Chmod(socketDir, 0o755); err != nil {
		t.Fatal(err)
	}
	probe := exec.Command("unshare", "-U", "true")
	probe.SysProcAttr = asNobody()
	if err := probe.Run(); err != nil {
		t.Skipf("user namespaces are not allowed here: %v", err)
	}
	cmd := r.Sliced(t.Context(), rig.Slice{Memory: "2Gi"}, r.Tenant("hog"), "--limit", "2Gi", "--class", "linear")
	cmd.SysProcAttr = asNobody()
	if got := end(t, cmd); got.code != 0 || !strings.Contains(got.stdout, "CUDA_ERROR_OUT_OF_MEMORY") {
		t.Errorf("as nobody: %+v", got)
	}
	// Who could write in a share's directory could put a link in the place of a page, and root's kerfd would write through it.
	cmd = r.Sliced(t.Context(), rig.Slice{Memory: "2Gi"}, "sh", "-c",
		`cd "$0"/shares/"$(ls /run/kerf/shares)"/s && { touch x || rm policy || mv policy y || cd .. && touch x; } 2>/dev/null || echo refused`, socketDir)
	cmd.SysProcAttr = asNobody()
	if got := end(t, cmd); got.stdout != "refused\n" {
		t.Errorf("a tenant in its share's directory: %+v", got)
	}
}

func asNobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// overlapping is a profile with two devices at one PCI address.
const overlapping = `name: twice
description: two disks in one place
numa:
  - {id: 0, cpus: "0-15", memory: 64Gi}
pcie:
  - root: pci0000:00
    numa: 0
    below:
      - {at: "0000:00:01.0", is: bridge, below: [{at: "0000:01:00.0", is: nvme, size: 960G}]}
      - {at: "0000:00:02.0", is: bridge, below: [{at: "0000:01:00.0", is: nvme, size: 960G}]}
`
