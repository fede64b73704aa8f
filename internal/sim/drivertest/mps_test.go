package drivertest

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/sim"
)

// mpsNode is a simulated node, and perhaps a control daemon for its GPU 0.
type mpsNode struct {
	t           *testing.T
	built, root string
	env         []string
	control     *exec.Cmd
}

func TestMPS(t *testing.T) {
	built := build(t, "gcc", "")
	run(t, "make", "-s", "-C", repo, built+"/libexec/kerf/spin", built+"/libexec/kerf/train", "B="+built)
	for name, test := range map[string]func(*testing.T, *mpsNode){
		"overlap": overlap, "contended": contended, "memory": memoryLimit, "users": users,
		"death of the server": func(t *testing.T, m *mpsNode) { death(t, m, "server") },
		"death of the daemon": func(t *testing.T, m *mpsNode) { death(t, m, "daemon") },
	} {
		t.Run(name, func(t *testing.T) { test(t, newMPSNode(t, built)) })
	}
}

func newMPSNode(t *testing.T, built string) *mpsNode {
	m := &mpsNode{t: t, built: built, root: simulate(t, built)}
	pipe := t.TempDir()
	m.env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(m.root, "usr/lib", triplet()), "CUDA_VISIBLE_DEVICES=0",
		"CUDA_MPS_PIPE_DIRECTORY="+pipe, "CUDA_MPS_LOG_DIRECTORY="+pipe)
	return m
}

func (m *mpsNode) program() string { return filepath.Join(m.root, "usr/bin/nvidia-cuda-mps-control") }

func (m *mpsNode) startControl() {
	m.t.Helper()
	m.control = exec.Command(m.program(), "-f")
	m.control.Env, m.control.Stderr = m.env, os.Stderr
	if err := m.control.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = m.control.Process.Kill(); _ = m.control.Wait() })
	for late := time.Now().Add(10 * time.Second); m.try("get_server_list") != nil; {
		if time.Now().After(late) {
			m.t.Fatal("the simulated control daemon does not answer")
		}
	}
}

func (m *mpsNode) command(line string) *exec.Cmd {
	cmd := exec.Command(m.program())
	cmd.Env, cmd.Stdin = m.env, strings.NewReader(line+"\n")
	return cmd
}

func (m *mpsNode) try(line string) error { return m.command(line).Run() }

func (m *mpsNode) ask(line string) string {
	m.t.Helper()
	out, err := m.command(line).Output()
	if err != nil {
		m.t.Fatalf("%s: %v", line, err)
	}
	return strings.TrimSpace(string(out))
}

// busy starts a program that always has kernels of 3 ms queued, and waits for it.
func (m *mpsNode) busy(env ...string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command(filepath.Join(m.built, "libexec/kerf/spin"), "--kernel", "3000", "--seconds", "0")
	cmd.Env = append(m.env[:len(m.env):len(m.env)], env...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		m.t.Fatalf("%q: %v", line, err)
	}
	m.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// watch is the engine's log after both have worked for a while.
func (m *mpsNode) watch(a, b *exec.Cmd) []sim.Run {
	m.t.Helper()
	n, err := sim.Open(m.root)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	for late := time.Now().Add(20 * time.Second); time.Now().Before(late); <-time.After(20 * time.Millisecond) {
		count := make(map[int]int)
		for _, p := range n.Status().GPUs[0].Processes {
			count[p.PID] = int(p.BusyMS)
		}
		if count[a.Process.Pid] > 300 && count[b.Process.Pid] > 300 {
			return n.Runs(0)
		}
	}
	m.t.Fatal("both did not get 300 ms of the simulated engine within 20 s")
	return nil
}

func rates(runs []sim.Run, pid int) (mean float64) {
	n := 0
	for _, r := range runs {
		if r.PID == pid {
			mean += r.Rate
			n++
		}
	}
	return mean / float64(n)
}

// Kernels of two clients of one server run at once, each at its own rate; those of two programs without one take turns.
func overlap(t *testing.T, m *mpsNode) {
	a, b := m.busy(), m.busy()
	runs := m.watch(a, b)
	if both := sim.Overlap(runs, a.Process.Pid, b.Process.Pid); both != 0 {
		t.Errorf("time slices (simulated): kernels of both ran at once for %s", both)
	}
	_ = a.Process.Kill()
	_ = b.Process.Kill()

	m.startControl()
	m.ask("set_default_active_thread_percentage 60")
	a, b = m.busy("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=40"), m.busy("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=100") // above what the server allows
	runs = m.watch(a, b)
	both := sim.Overlap(runs, a.Process.Pid, b.Process.Pid)
	t.Logf("MPS (simulated): kernels of both ran at once for %s; rates %.2f and %.2f", both, rates(runs, a.Process.Pid), rates(runs, b.Process.Pid))
	if both < 100*time.Millisecond {
		t.Errorf("kernels of both ran at once for %s only", both)
	}
	for cmd, want := range map[*exec.Cmd]float64{a: 0.4, b: 0.6} {
		if got := rates(runs, cmd.Process.Pid); math.Abs(got-want) > 0.01 {
			t.Errorf("a client ran at %.2f of the engine's speed, want %.2f", got, want)
		}
	}
	if got := strings.Fields(m.ask("get_client_list " + m.ask("get_server_list"))); len(got) != 2 {
		t.Errorf("clients %v", got)
	}
}

// Programs that want more than one engine share it, and a program of no server has its turns beside them.
func contended(t *testing.T, m *mpsNode) {
	m.startControl()
	a, b := m.busy(), m.busy()
	other := m.busy("CUDA_MPS_PIPE_DIRECTORY=/nowhere")
	m.watch(a, b)
	runs := m.watch(a, other)
	if got := rates(runs, a.Process.Pid); got > 0.75 {
		t.Errorf("two who want all of it: one ran at %.2f of the engine's speed", got)
	}
	for _, cmd := range []*exec.Cmd{a, b} {
		if both := sim.Overlap(runs, cmd.Process.Pid, other.Process.Pid); both != 0 {
			t.Errorf("a client and a program of no server ran at once for %s", both)
		}
	}
	if both := sim.Overlap(runs, a.Process.Pid, b.Process.Pid); both == 0 {
		t.Error("the clients did not run at once")
	}
}

// The server's limit of memory holds, whatever the program says.
func memoryLimit(t *testing.T, m *mpsNode) {
	m.startControl()
	m.ask("set_default_device_pinned_mem_limit 0 2048M")
	for memory, fits := range map[string]bool{"1Gi": true, "2Gi": false} { // beside a context
		cmd := exec.Command(filepath.Join(m.built, "libexec/kerf/train"), "--memory", memory, "--seconds", "0.2")
		cmd.Env = m.env
		out, err := cmd.CombinedOutput()
		if (err == nil) != fits || !fits && !strings.Contains(string(out), "CUDA_ERROR_OUT_OF_MEMORY") {
			t.Errorf("%s of 2048M: %v: %s", memory, err, out)
		}
	}
}

// One user's programs at a time: another's wait in cuInit until there is room for a server of theirs.
func users(t *testing.T, m *mpsNode) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be two users")
	}
	for _, path := range []string{m.built, m.root, strings.TrimPrefix(m.env[len(m.env)-1], "CUDA_MPS_LOG_DIRECTORY=")} {
		for dir := path; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.startControl()
	first := m.busy()
	server := m.ask("get_server_list")
	second := exec.Command(filepath.Join(m.built, "libexec/kerf/spin"), "--seconds", "0.1")
	second.Env, second.SysProcAttr = m.env, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	ended := make(chan error, 1)
	go func() { ended <- second.Run() }()
	select {
	case err := <-ended:
		t.Fatalf("beside another user's program: %v", err)
	case <-time.After(500 * time.Millisecond): // five times what it takes where it may
	}
	_ = first.Process.Kill()
	_ = first.Wait()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after the other user's program: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for nobody")
	}
	if now := m.ask("get_server_list"); now == server {
		t.Errorf("the server of the first user, pid %s, serves the second", now)
	}
}

// With the server go the contexts of its clients; the next client finds a new one. Without the daemon programs run as ever.
func death(t *testing.T, m *mpsNode, victim string) {
	m.startControl()
	client := m.busy()
	var pid int
	if _, err := fmt.Sscan(m.ask("get_server_list"), &pid); err != nil {
		t.Fatal(err)
	}
	if victim == "daemon" {
		pid = m.control.Process.Pid
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := client.Wait(); err == nil {
		t.Error("the client ended well")
	}
	if err := m.try("get_server_list"); (err == nil) != (victim == "server") {
		t.Errorf("after the death of the %s it says %v", victim, err)
	}
	m.busy()
}
