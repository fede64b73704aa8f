package shimtest

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/sim"
)

func behaveTenant(t *testing.T) (*tenantNode, *share, *sim.Node, string) {
	t.Helper()
	n, s := simTenant(t, plain, "h200x8", 1)
	return n, n.share(t, "behave", gpuGrants(s, 1, 2<<30)...), s, program(t, "behave", "behave.c")
}

func TestProcess(t *testing.T) {
	n, sh, s, bin := behaveTenant(t)
	for _, scenario := range [][]string{
		{"fork-before"}, {"fork-after"}, {"threads"}, {"init-race"}, {"exec"}, {"setuid"},
		{"scribble", "sum"}, {"scribble", "slot"}, {"scribble", "all"}, {"scribble", "ones"},
		{"contexts"}, {"host"}, {"reimport"}, {"ipc"}, {"pool-kept"}, {"pool-waits"}, {"graph-again"}, {"graph-refused"},
	} {
		t.Run(strings.Join(scenario, "-"), func(t *testing.T) {
			sh.reset()
			r := n.view(append([]string{bin}, scenario...)...).run(t, "").ok(t)
			if !strings.HasSuffix(r.out, "ok\n") {
				t.Errorf("%s%s", r.out, r.errs)
			}
		})
	}
	cardIsEmpty(t, s)
}

// TestGate shuts the gate under a running tenant: its next work waits, and goes on when the gate opens.
func TestGate(t *testing.T) {
	n, sh, _, bin := behaveTenant(t)
	gate := &sh.policy.Page.Gate
	cmd := n.view(bin, "gate").command(t)
	in, out := pipes(t, cmd)
	expectLine(t, out, "shut?")
	atomic.StoreUint32(gate, 1)
	fmt.Fprintln(in, "go")
	expectLine(t, out, "wait")
	line := make(chan string, 1)
	go func() {
		s, _ := out.ReadString('\n')
		line <- s
	}()
	waitUntilAsleep(t, cmd.Process.Pid)
	select {
	case s := <-line:
		t.Fatalf("the tenant went on through a shut gate: %q", s)
	default:
	}
	atomic.StoreUint32(gate, 0)
	syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(gate)), 1, 1<<30, 0, 0, 0)
	if s := <-line; s != "ok\n" {
		t.Errorf("after the gate opened: %q", s)
	}
	cmd.Wait()
}

// waitUntilAsleep returns when the process waits on a futex.
func waitUntilAsleep(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if out, err := exec.Command("cat", fmt.Sprintf("/proc/%d/wchan", pid)).Output(); err == nil && strings.Contains(string(out), "futex") {
			return
		}
	}
	t.Log("the kernel does not show what the process waits for")
}

func pipes(t *testing.T, cmd *exec.Cmd) (io.Writer, *bufio.Reader) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return in, bufio.NewReader(out)
}

func expectLine(t *testing.T, out *bufio.Reader, want string) {
	t.Helper()
	if got, err := out.ReadString('\n'); err != nil || strings.TrimSpace(got) != want {
		t.Fatalf("the tenant says %q (%v), want %q", got, err, want)
	}
}

// TestVisibleDevices: two of eight GPUs are granted, and the tenant's own choice is read within those two.
func TestVisibleDevices(t *testing.T) {
	n, s := simTenant(t, plain, "h200x8", 8)
	gpus := s.Status().GPUs
	n.share(t, "a", grant{uuid: gpus[5].UUID, limit: 1 << 30})
	n.share(t, "b", grant{uuid: gpus[2].UUID, limit: 3 << 30})
	first := hex.EncodeToString(gpus[5].UUID[:]) + " 1073741824\n"
	second := hex.EncodeToString(gpus[2].UUID[:]) + " 3221225472\n"
	bin := program(t, "behave", "behave.c")
	for _, c := range []struct{ env, want string }{
		{"", first + second},
		{"CUDA_VISIBLE_DEVICES=1", second},
		{"CUDA_VISIBLE_DEVICES=1,0", second + first},
		{"CUDA_VISIBLE_DEVICES=0,7,1", first},
		{"CUDA_VISIBLE_DEVICES=" + gpus[2].UUID.String(), second},
		{"CUDA_VISIBLE_DEVICES=" + gpus[2].UUID.String()[:12], second},
		{"CUDA_VISIBLE_DEVICES=-1", "FAIL cuInit: 100\n"},
		{"CUDA_VISIBLE_DEVICES=", "FAIL cuInit: 100\n"},
		{"CUDA_VISIBLE_DEVICES=" + gpus[0].UUID.String(), "FAIL cuInit: 100\n"},
	} {
		t.Run(c.env, func(t *testing.T) {
			var env []string
			want := c.want
			if c.env != "" {
				env = []string{c.env}
			}
			if !strings.HasPrefix(want, "FAIL") {
				value := "-"
				if _, v, ok := strings.Cut(c.env, "="); ok {
					value = v
				}
				want += "env " + value + "\nok\n"
			}
			if got := n.view(bin, "devices").run(t, "", env...).out; got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// TestKilled kills tenants with SIGKILL in the midst of allocating: after the stand-in has folded them nothing is
// charged and nothing is held, and the next tenant has the whole slice.
func TestKilled(t *testing.T) {
	n, s := simTenant(t, plain, "h200x8", 1)
	sh := n.share(t, "killed", gpuGrants(s, 1, 16<<30)...)
	bin := program(t, "behave", "behave.c")
	rounds := 12
	for range rounds {
		var cmds []*exec.Cmd
		for range 4 {
			cmd := n.view(bin, "storm").command(t)
			_, out := pipes(t, cmd)
			expectLine(t, out, "started")
			cmds = append(cmds, cmd)
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // the moment of the kill, not a wait for something
		for _, cmd := range cmds {
			cmd.Process.Kill()
			cmd.Wait()
		}
		sh.mu.Lock()
		sh.fold()
		sh.mu.Unlock()
		if left := sh.charged(0); left != 0 {
			t.Fatalf("%d bytes are charged after all tenants were killed", left)
		}
	}
	n.view(bin, "threads").run(t, "").ok(t)
	cardIsEmpty(t, s)
}
