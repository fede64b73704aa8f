package shimtest

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/kerf-gpu/kerf/vgpu/region"
)

const mib = 1 << 20

// node is one tenant's /run/kerf, made by a stand-in for kerfd.
type tenantNode struct {
	dir    string // becomes /run/kerf
	sim    string
	gpus   []int
	caps   []int
	shares []*share
}

// share is one share's pages and its socket.
type share struct {
	t        testing.TB
	dir      string
	policy   *region.File[region.Policy]
	usage    *region.File[region.Usage]
	listener *net.UnixListener

	mu     sync.Mutex
	answer func(*region.Welcome) // changes an answer before it goes; nil: none
	hellos []region.Hello
}

// grant is one GPU of a share.
type grant struct {
	uuid    [16]byte
	limit   uint64
	context uint64
	flags   uint32
}

// newTenant makes an empty /run/kerf with the shims in lib and the real libraries in driver.
func newTenant(t testing.TB, shims, realCuda, realNVML string) *tenantNode {
	t.Helper()
	dir, err := os.MkdirTemp("", "kerf-tenant-") // short: sockets live below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &tenantNode{dir: dir}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"lib", "driver", "shares", "sim/dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, filepath.Join(shims, "libcuda.so.1"), filepath.Join(dir, "lib/libcuda.so.1"))
	copyFile(t, filepath.Join(shims, "libnvidia-ml.so.1"), filepath.Join(dir, "lib/libnvidia-ml.so.1"))
	copyFile(t, realCuda, filepath.Join(dir, "driver/libkerfreal-cuda.so.1"))
	copyFile(t, realNVML, filepath.Join(dir, "driver/libkerfreal-nvidia-ml.so.1"))
	return n
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// share adds a share and serves its socket until the test ends.
func (n *tenantNode) share(t testing.TB, id string, grants ...grant) *share {
	t.Helper()
	s := &share{t: t, dir: filepath.Join(n.dir, "shares", id)}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.policy, err = region.Create[region.Policy](filepath.Join(s.dir, "policy"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s.usage, err = region.Create[region.Usage](filepath.Join(s.dir, "usage"), 0o666); err != nil {
		t.Fatal(err)
	}
	p := s.policy.Page
	copy(p.Share[:], id)
	p.DeviceCount = uint32(len(grants))
	for i, g := range grants {
		p.Device[i] = region.PolicyDevice{UUID: g.uuid, Limit: g.limit, Guaranteed: g.limit, ContextBytes: g.context, Flags: g.flags}
	}
	addr := &net.UnixAddr{Name: filepath.Join(s.dir, "socket"), Net: "unixpacket"}
	if s.listener, err = net.ListenUnix("unixpacket", addr); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(addr.Name, 0o666); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve()
	}()
	t.Cleanup(func() {
		s.listener.Close()
		<-done
		s.policy.Close()
		s.usage.Close()
	})
	n.shares = append(n.shares, s)
	return s
}

func (s *share) serve() {
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.greet(conn)
			conn.Close()
		}
	}
}

func (s *share) greet(conn *net.UnixConn) {
	buf := make([]byte, 4096)
	k, err := conn.Read(buf)
	if err != nil {
		return
	}
	hello, ok := region.ParseHello(buf[:k])
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hellos = append(s.hellos, hello)
	w := s.attach(peerPID(conn))
	if s.answer != nil {
		s.answer(w)
	}
	conn.Write(w.Bytes())
}

// attach gives the process a slot; those of dead processes are folded first, as kerfd does by pidfd.
func (s *share) attach(pid int) *region.Welcome {
	s.fold()
	for i := range s.usage.Page.Slot {
		slot := &s.usage.Page.Slot[i]
		if atomic.LoadUint32(&slot.Generation) == 0 {
			generation := uint32(len(s.hellos))
			slot.Claim(generation)
			atomic.StoreInt32(&s.policy.Page.HostPID[i], int32(pid))
			return &region.Welcome{Slot: uint32(i), Generation: generation}
		}
	}
	w := &region.Welcome{Status: region.WelcomeFull}
	w.SetReason("all slots are taken")
	return w
}

// fold takes back what dead processes had charged.
func (s *share) fold() {
	u := s.usage.Page
	for i := range u.Slot {
		pid := atomic.LoadInt32(&s.policy.Page.HostPID[i])
		if pid == 0 || alive(int(pid)) {
			continue
		}
		atomic.StoreInt32(&s.policy.Page.HostPID[i], 0)
		u.Slot[i].Release()
	}
	for d := 0; d < int(s.policy.Page.DeviceCount); d++ {
		var sum uint64
		for i := range u.Slot {
			sum += u.Slot[i].Read().Charged[d]
		}
		atomic.StoreUint64(&u.Sum[d].Charged, sum)
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

func peerPID(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if c, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(c.Pid)
		}
	})
	return pid
}

// charged is the sum on the share's device, in bytes.
func (s *share) charged(device int) uint64 { return s.usage.Page.Charged(device) }

// session is what the one attached process's slot holds.
func (s *share) session(slot int) region.Snapshot { return s.usage.Page.Slot[slot].Read() }

func (n *tenantNode) view(argv ...string) view {
	return view{Kerf: n.dir, Sim: n.sim, Nodes: n.gpus, Caps: n.caps, Argv: argv}
}

// reset empties the share between tests: no process uses it.
func (s *share) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.usage.Page.Slot {
		atomic.StoreInt32(&s.policy.Page.HostPID[i], 0)
		s.usage.Page.Slot[i].Release()
	}
	u := s.usage.Page
	u.Magic, u.Version, u.Size = region.Magic, region.Version, uint32(unsafe.Sizeof(*u))
	s.fold()
}
