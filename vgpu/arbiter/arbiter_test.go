package arbiter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/region"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

const testShare = "0123456789abcdef"

var testGPU = node.UUID{7}

// fakeNVML keeps what each process has on the one GPU.
type fakeNVML struct {
	mu   sync.Mutex
	used map[int]node.Bytes
	err  error
}

func (f *fakeNVML) set(pid int, bytes node.Bytes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used[pid] = bytes
}

func (f *fakeNVML) ProcessMemory(node.UUID) (map[int]node.Bytes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[int]node.Bytes)
	for pid, bytes := range f.used {
		out[pid] = bytes
	}
	return out, f.err
}

// rig is a server on a directory, which can be restarted.
type rig struct {
	t      *testing.T
	dir    string
	nvml   *fakeNVML
	server *Server
	stop   func()
	events chan Event
	leases bool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "kerf") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, nvml: &fakeNVML{used: make(map[int]node.Bytes)}, events: make(chan Event, 1000)}
	r.start(nil)
	if err := r.server.Add(spec()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stop() })
	return r
}

func spec() Spec {
	return Spec{ID: testShare, GID: os.Getgid(), Simulated: true, Grant: share.Grant{Devices: []share.Device{{UUID: testGPU, Memory: node.GiB}}}}
}

func (r *rig) start(restore []Spec) {
	r.t.Helper()
	server, err := New(Config{Shares: filepath.Join(r.dir, "shares"), Sessions: filepath.Join(r.dir, "sessions"), Memory: r.nvml, Pool: 8 * node.GiB, Card: func(node.UUID) node.Bytes { return node.GiB }, Now: time.Now, Leases: r.leases,
		Notify: func(e Event) { r.events <- e }})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := server.Restore(restore); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	r.server = server
	r.stop = func() { cancel(); <-done }
}

// device waits until the share's memory is as wanted: sessions end and NVML is read in their own time.
func (r *rig) wait(what string, ok func(ShareState) bool) ShareState {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		state := r.server.State()[0]
		if ok(state) {
			return state
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 10 s; last state %+v", what, state)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func charged(want node.Bytes) func(ShareState) bool {
	return func(s ShareState) bool { return s.Devices[0].Charged == want }
}

// tenant is a process that speaks the shim's part; see tenantMain.
type tenant struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (r *rig) tenant() *tenant {
	r.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "KERF_TEST_TENANT="+Directory(filepath.Join(r.dir, "shares"), testShare))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() })
	return &tenant{r.t, cmd, in, bufio.NewScanner(out)}
}

func (c *tenant) do(command string) string {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		c.t.Fatal(err)
	}
	if !c.out.Scan() {
		c.t.Fatalf("%s: the tenant has died", command)
	}
	return c.out.Text()
}

func (c *tenant) kill() {
	_ = c.cmd.Process.Kill()
	_, _ = c.cmd.Process.Wait()
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("KERF_TEST_TENANT"); dir != "" {
		tenantMain(dir)
		return
	}
	os.Exit(m.Run())
}

// tenantMain attaches and changes its pages as told on stdin.
func tenantMain(dir string) {
	var usage *region.File[region.Usage]
	var slot *region.Slot
	scanner := bufio.NewScanner(os.Stdin)
	for scanner.Scan() {
		var verb string
		var n int64
		_, _ = fmt.Sscan(scanner.Text(), &verb, &n)
		answer := "ok"
		switch verb {
		case "attach", "attach-version":
			var err error
			if usage, err = region.Open[region.Usage](filepath.Join(dir, usageFile)); err != nil {
				answer = err.Error()
				break
			}
			w := hello(dir, uint32(n), uintptr(unsafe.Pointer(usage.Page)))
			answer = fmt.Sprintf("%d %s", w.Status, text(w.Reason[:]))
			slot = &usage.Page.Slot[w.Slot]
		case "charge":
			atomic.AddUint64(&slot.Enter, 1)
			atomic.AddUint64(&slot.Charged[0], uint64(n))
			usage.Page.Add(0, n)
			atomic.AddUint64(&slot.Leave, 1)
		case "half": // what a process leaves behind that is killed between the two words
			atomic.AddUint64(&slot.Enter, 1)
			atomic.AddUint64(&slot.Charged[0], uint64(n))
		case "sum": // scribble
			atomic.StoreUint64(&usage.Page.Sum[0].Charged, uint64(n))
		case "truncate":
			_ = os.Truncate(filepath.Join(dir, usageFile), 0)
		case "exec":
			if err := syscall.Exec("/bin/cat", []string{"cat"}, nil); err != nil {
				answer = err.Error()
			}
		}
		fmt.Println(answer)
	}
}

func hello(dir string, version uint32, usage uintptr) region.Welcome {
	conn, err := net.Dial("unixpacket", filepath.Join(dir, socketFile))
	if err != nil {
		return *refuse(99, err.Error())
	}
	defer func() { _ = conn.Close() }()
	h := region.Hello{Magic: region.Magic, Version: max(version, region.Version), Kind: region.HelloAttach, Usage: uint64(usage)}
	copy(h.Comm[:], "ten\nant")
	_, _ = conn.Write(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h)))
	var w region.Welcome
	_, _ = io.ReadFull(conn, unsafe.Slice((*byte)(unsafe.Pointer(&w)), unsafe.Sizeof(w)))
	return w
}

func attached(t *testing.T, r *rig) *tenant {
	t.Helper()
	c := r.tenant()
	if got := c.do("attach"); got != "0 " {
		t.Fatalf("attach answered %q", got)
	}
	return c
}

func TestDeathGivesBack(t *testing.T) {
	r := newRig(t)
	a, b := attached(t, r), attached(t, r)
	a.do("charge 1000")
	b.do("charge 500")
	r.wait("both charged", charged(1500))
	a.kill()
	state := r.wait("one dead", charged(500))
	if len(state.Sessions) != 1 || state.Sessions[0].PID != b.cmd.Process.Pid || state.Sessions[0].Command != "ten?ant" {
		t.Errorf("sessions %+v, want the one of %d", state.Sessions, b.cmd.Process.Pid)
	}
	b.kill()
	r.wait("both dead", charged(0))
}

// A process that is killed between its slot and the sum leaves them apart by its last change.
func TestDeathInTheMiddleOfAChange(t *testing.T) {
	r := newRig(t)
	a, b := attached(t, r), attached(t, r)
	b.do("charge 500")
	a.do("charge 100")
	a.do("half 1000")
	a.kill()
	state := r.wait("settled", charged(500))
	if state.Tampered != "" {
		t.Errorf("flagged: %s", state.Tampered)
	}
}

func TestExecEndsTheSession(t *testing.T) {
	r := newRig(t)
	a := attached(t, r)
	a.do("charge 1000")
	if _, err := fmt.Fprintln(a.in, "exec"); err != nil {
		t.Fatal(err)
	}
	state := r.wait("exec'd", charged(0))
	if len(state.Sessions) != 0 {
		t.Errorf("sessions %+v, want none", state.Sessions)
	}
	if err := a.cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process itself should live: %v", err)
	}
}

func TestScribbledSumIsFlagged(t *testing.T) {
	r := newRig(t)
	a := attached(t, r)
	a.do("charge 1000")
	a.do("sum 0")
	state := r.wait("flagged", func(s ShareState) bool { return s.Tampered != "" })
	if state.Devices[0].Charged != 1000 {
		t.Errorf("the sum is %d, want it set right to 1000", state.Devices[0].Charged)
	}
	policy, err := region.Open[region.Policy](filepath.Join(Directory(filepath.Join(r.dir, "shares"), testShare), policyFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = policy.Close() }()
	if policy.Page.Flags&region.FlagTampered == 0 {
		t.Error("the policy does not tell the shim")
	}
	a.kill()
	r.wait("unflagged once nobody is left", func(s ShareState) bool { return s.Tampered == "" && s.Devices[0].Charged == 0 })
}

func TestTruncatedPageIsFlagged(t *testing.T) {
	r := newRig(t)
	a := attached(t, r)
	a.do("truncate")
	r.wait("flagged", func(s ShareState) bool { return strings.Contains(s.Tampered, "truncated") })
}

func TestRestartLosesNothing(t *testing.T) {
	r := newRig(t)
	a, b := attached(t, r), attached(t, r)
	a.do("charge 1000")
	b.do("charge 500")
	r.stop()
	b.kill()            // while kerfd is away
	a.do("charge 3000") // likewise
	r.start([]Spec{spec()})
	state := r.wait("taken up again", charged(4000))
	if len(state.Sessions) != 1 || state.Tampered != "" {
		t.Errorf("state %+v, want one session and no flag", state)
	}
	c := attached(t, r)
	c.do("charge 7")
	a.kill()
	r.wait("the old session ends", charged(7))
}

func TestRestoreRemovesWhatNobodyHolds(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.start(nil)
	if entries, _ := os.ReadDir(filepath.Join(r.dir, "shares")); len(entries) != 0 {
		t.Errorf("left over: %v", entries)
	}
}

func TestImplicitBytes(t *testing.T) {
	r := newRig(t)
	a := r.tenant()
	r.nvml.set(a.cmd.Process.Pid, 512*node.MiB) // its context
	a.do("attach")
	implicit := func(want node.Bytes) func(ShareState) bool {
		return func(s ShareState) bool { return s.Devices[0].Implicit == want }
	}
	r.wait("context seen", implicit(512*node.MiB))
	policy, err := region.Open[region.Policy](filepath.Join(Directory(filepath.Join(r.dir, "shares"), testShare), policyFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = policy.Close() }()
	r.wait("its price is known", func(ShareState) bool { return atomic.LoadUint64(&policy.Page.Device[0].ContextBytes) == 512<<20 })
	a.do("charge 1048576")
	r.nvml.set(a.cmd.Process.Pid, 513*node.MiB)
	r.wait("a charge is not implicit", func(s ShareState) bool { return s.Devices[0].Used() == 513*node.MiB })
	r.nvml.set(a.cmd.Process.Pid, UnknownBytes)
	r.server.reconcileGPU(testGPU)
	if got := r.server.State()[0].Devices[0].Used(); got != 513*node.MiB {
		t.Errorf("the driver no longer tells: %s count, want what was known", got)
	}
	a.kill()
	r.wait("nothing left", func(s ShareState) bool { return s.Devices[0].Used() == 0 })
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	c := r.tenant()
	if got := c.do("attach-version 9"); !strings.HasPrefix(got, "1 the shim has region version 9, kerfd has "+fmt.Sprint(region.Version)+"; install both") {
		t.Errorf("another version: %q", got)
	}
	conn, err := net.Dial("unixpacket", filepath.Join(Directory(filepath.Join(r.dir, "shares"), testShare), socketFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = conn.Write([]byte("GET / HTTP/1.1"))
	answer := make([]byte, 512)
	n, _ := conn.Read(answer)
	if !strings.Contains(string(answer[:n]), "not a hello") {
		t.Errorf("another protocol: %q", answer[:n])
	}
	c.kill()
	r.wait("nobody is attached", func(s ShareState) bool { return len(s.Sessions) == 0 })
	if ended, err := r.server.RemoveIdle(testShare); err != nil || !ended {
		t.Fatal(ended, err)
	}
	c = r.tenant()
	if got := c.do("attach"); !strings.Contains(got, "no such file") {
		t.Errorf("after the share's end: %q", got)
	}
}

func TestLongPathIsRefusedInWords(t *testing.T) {
	r := newRig(t)
	long := spec()
	long.ID = strings.Repeat("x", 120)
	if err := r.server.Add(long); err == nil || !strings.Contains(err.Error(), "shorter run directory") {
		t.Errorf("error %v", err)
	}
}

// A dead session in a lower slot than a living one: the living one's sum must never be too low, not even for a moment.
func TestRestartFoldsTheDeadLast(t *testing.T) {
	r := newRig(t)
	dead, alive := attached(t, r), attached(t, r)
	dead.do("charge 500")
	alive.do("charge 1000")
	r.stop()
	dead.kill()
	r.start([]Spec{spec()})
	if got := r.server.State()[0]; got.Devices[0].Charged != 1000 || got.Tampered != "" {
		t.Errorf("right after the restart: %+v", got)
	}
}

func TestMangledPageStopsNothing(t *testing.T) {
	r := newRig(t)
	a := attached(t, r)
	a.do("charge 1000")
	r.stop()
	usage := filepath.Join(Directory(filepath.Join(r.dir, "shares"), testShare), usageFile)
	if err := os.WriteFile(usage, make([]byte, 8), 0o666); err != nil { // shorter, and without its magic
		t.Fatal(err)
	}
	r.start([]Spec{spec()})
	if got := r.server.State()[0]; got.Tampered == "" {
		t.Errorf("not flagged: %+v", got)
	}
	a.kill()
	r.wait("whole again", func(s ShareState) bool { return s.Tampered == "" && s.Devices[0].Charged == 0 })
}

func TestAddedTwiceIsOneShare(t *testing.T) {
	r := newRig(t)
	a := attached(t, r)
	a.do("charge 1000")
	if err := r.server.Add(spec()); err != nil { // a claim that is prepared again
		t.Fatal(err)
	}
	if state := r.wait("the books as they were", charged(1000)); len(state.Sessions) != 1 {
		t.Errorf("sessions %+v, want the one", state.Sessions)
	}
	b := attached(t, r)
	b.do("charge 500")
	r.wait("and open to new sessions", charged(1500))
}

func TestLimitAboveTheGuarantee(t *testing.T) {
	r := newRig(t)
	burst := spec()
	burst.ID = "fedcba9876543210"
	burst.Grant.Devices = []share.Device{{UUID: testGPU, Memory: node.GiB, Limit: 3 * node.GiB, Mode: share.ModeOvercommit}}
	if err := r.server.Add(burst); err != nil {
		t.Fatal(err)
	}
	policy, err := region.Open[region.Policy](filepath.Join(Directory(filepath.Join(r.dir, "shares"), burst.ID), policyFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = policy.Close() }()
	if d := policy.Page.Device[0]; node.Bytes(d.Limit) != 3*node.GiB || node.Bytes(d.Guaranteed) != node.GiB {
		t.Errorf("limit %d, guaranteed %d", d.Limit, d.Guaranteed)
	}
}

// The page names the MIG device, which is what CUDA calls it, and the accounts stay those of the card.
func TestMIGDeviceInThePolicy(t *testing.T) {
	r := newRig(t)
	mig := spec()
	mig.ID = "fedcba9876543210"
	mig.Grant.Devices = []share.Device{{UUID: testGPU, Memory: node.GiB, Mode: share.ModeMIG, MIG: node.MIGUUID{7, 7}}}
	if err := r.server.Add(mig); err != nil {
		t.Fatal(err)
	}
	policy, err := region.Open[region.Policy](filepath.Join(Directory(filepath.Join(r.dir, "shares"), mig.ID), policyFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = policy.Close() }()
	if d := policy.Page.Device[0]; d.UUID != [16]byte(mig.Grant.Devices[0].MIG) || d.Flags != region.DeviceMIG {
		t.Errorf("device %x, flags %#x", d.UUID, d.Flags)
	}
	for _, state := range r.server.State() {
		if state.ID == mig.ID && state.Devices[0].UUID != testGPU {
			t.Errorf("the state names %s", state.Devices[0].UUID)
		}
	}
}
