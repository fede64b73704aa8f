package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

// heard is a sink that remembers.
type heard struct {
	mu       sync.Mutex
	records  []Record
	lost     uint64
	replayed int
	ups      []string
	told     chan struct{} // gets one after each call
}

func newHeard() *heard { return &heard{told: make(chan struct{}, 1<<20)} }

func (h *heard) change(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do()
	h.told <- struct{}{}
}

func (h *heard) Record(r Record) { h.change(func() { h.records = append(h.records, r) }) }
func (h *heard) Lost(n uint64)   { h.change(func() { h.lost += n }) }
func (h *heard) Replayed()       { h.change(func() { h.replayed++ }) }
func (h *heard) Up(err error) {
	h.change(func() {
		text := "up"
		if err != nil {
			text = err.Error()
		}
		h.ups = append(h.ups, text)
	})
}

// until waits for something to be heard.
func (h *heard) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		h.mu.Lock()
		ok := done()
		h.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-h.told:
		case <-late:
			t.Fatalf("not heard: %s; heard %d records, %d lost, %q", what, len(h.records), h.lost, h.ups)
		}
	}
}

func follow(t *testing.T, k Kmsg) *heard {
	t.Helper()
	h := newHeard()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h
}

const lostText = "NVRM: Xid (PCI:0000:b3:00): 79, GPU has fallen off the bus."

// Records of user space, of other subsystems, and what is no record are passed over; gaps are counted to the record.
func TestKmsgFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kmsg")
	write := func(text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	write("6,10,5000000,-;usb 1-1: new device\n SUBSYSTEM=usb\n DEVICE=c189:1\n" +
		"4,11,6000000,-;" + lostText + "\n" +
		"12,12,6500000,-;" + lostText + "\n" + // facility 1: a program wrote it
		"nonsense\n;\n4;x\n4,99999999999999999999999999,1,-;x\n")
	h := follow(t, Kmsg{Path: path})
	h.until(t, "the replay", func() bool { return h.replayed == 1 })
	write("4,20,7000000,-;NVRM: Xid (PCI:0000:b3:00): 31, pid=5, na")
	write("me=x, text\n4,21,7000001,c;" + lostText + "\n")
	h.until(t, "three records", func() bool { return len(h.records) == 3 })
	if h.lost != 7 || h.records[0].Seq != 11 || h.records[0].At != 6*time.Second || h.records[1].PID != 5 || h.records[1].Process != "x" {
		t.Errorf("lost %d, %+v", h.lost, h.records)
	}
}

// A log that is not there is said with what to do, and read once it is.
func TestKmsgAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := told{newHeard(), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		path := filepath.Join(t.TempDir(), "kmsg")
		go func() { defer close(done); _ = Kmsg{Path: path}.Run(ctx, h) }()
		synctest.Wait()
		if len(h.ups) != 1 || !strings.Contains(h.ups[0], "not there; mount") {
			t.Errorf("%q", h.ups)
		}
		if err := os.WriteFile(path, []byte("4,1,1,-;"+lostText+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		<-h.record // after retryEvery; then it waits for the kernel, so that no clock runs any more
		if len(h.records) != 1 || h.ups[1] != "up" {
			t.Errorf("%q, %d records", h.ups, len(h.records))
		}
		cancel()
		<-done
	})
}

// told says when a record has come.
type told struct {
	*heard
	record chan struct{}
}

func (t told) Record(r Record) { t.heard.Record(r); t.record <- struct{}{} }

func TestKmsgErrors(t *testing.T) {
	for want, err := range map[string]error{
		"CAP_SYSLOG": &os.PathError{Op: "open", Path: "x", Err: syscall.EPERM}, "mount": os.ErrNotExist, "closed": nil, "broken": errors.New("broken"),
	} {
		if got := explain("/dev/kmsg", err); got == nil || !strings.Contains(got.Error(), want) || !strings.Contains(got.Error(), "/dev/kmsg") {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// The kernel's own device: what is written to it is read, by number, at once, and once only. User space is facility 1 there.
func TestKmsgDevice(t *testing.T) {
	device, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs to write to /dev/kmsg: ", err)
	}
	defer device.Close()
	h := follow(t, Kmsg{Path: "/dev/kmsg", facility: 1})
	h.until(t, "the replay", func() bool { return h.replayed == 1 })
	pid := os.Getpid()
	if _, err := fmt.Fprintf(device, "<12>NVRM: Xid (PCI:0000:b3:00): 31, pid=%d, name=test, written by a test\n", pid); err != nil {
		t.Skip("the kernel takes no messages: ", err)
	}
	mine := func(r Record) bool { return r.PID == pid && r.Code == 31 }
	h.until(t, "the line", func() bool { return slices.ContainsFunc(h.records, mine) })
	if kernel := follow(t, Kmsg{Path: "/dev/kmsg"}); true {
		kernel.until(t, "the replay", func() bool { return kernel.replayed == 1 })
		if slices.ContainsFunc(kernel.records, mine) {
			t.Error("a line of user space was taken for the kernel's")
		}
	}
}

// stuckProber is a GPU whose calls block until they are freed.
type stuckProber struct {
	free  chan struct{}
	calls chan struct{}
}

func (p stuckProber) Vitals(node.UUID) (node.Vitals, error) {
	p.calls <- struct{}{}
	<-p.free
	return node.Vitals{Temperature: 40}, nil
}

// A call that hangs is unanswered after the deadline, no second one is sent after it, and once it returns the GPU is read as before.
func TestPollHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := stuckProber{make(chan struct{}), make(chan struct{}, 100)}
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			Poll{15 * time.Second, time.Second, 5 * time.Second}.Run(ctx, node.UUID{1}, p, nil, func(r Reading) bool {
				got = append(got, fmt.Sprint(r.Err != nil))
				return false
			})
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(p.calls) != 1 || !slices.Equal(got, []string{"true"}) {
			t.Errorf("in an hour of hanging: %d calls, told %v", len(p.calls), got)
		}
		close(p.free)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if len(p.calls) != 2 || !slices.Equal(got, []string{"true", "false", "false"}) {
			t.Errorf("afterwards: %d calls, told %v", len(p.calls), got)
		}
		cancel()
		<-done
	})
}

func TestPollPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		free := make(chan struct{})
		close(free)
		p := stuckProber{free, make(chan struct{}, 100)}
		wake := make(chan struct{}, 1)
		soon := false
		done := make(chan struct{})
		go func() {
			defer close(done)
			Poll{15 * time.Second, time.Second, 5 * time.Second}.Run(ctx, node.UUID{1}, p, wake, func(Reading) bool { return soon })
		}()
		count := func(want int) {
			t.Helper()
			synctest.Wait()
			if len(p.calls) != want {
				t.Errorf("%d calls, want %d", len(p.calls), want)
			}
		}
		count(1)
		time.Sleep(14 * time.Second)
		count(1)
		soon = true
		wake <- struct{}{}
		count(2)
		time.Sleep(2*time.Second + time.Millisecond)
		count(4)
		cancel()
		<-done
	})
}

// waits is a watch that does as it is told, one answer a call.
type waits struct {
	answers []any // an Event, an error, or nil for a wait in vain
	closed  *int
}

func (w *waits) Close() error { *w.closed++; return nil }

func (w *waits) Wait(timeout time.Duration) (Event, bool, error) {
	if len(w.answers) == 0 {
		time.Sleep(timeout)
		return Event{}, false, nil
	}
	a := w.answers[0]
	w.answers = w.answers[1:]
	switch a := a.(type) {
	case Event:
		return a, true, nil
	case error:
		return Event{}, false, a
	}
	return Event{}, false, nil
}

// An error of the wait is the source's: it is told, and tried again after pauses that grow.
func TestEventsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		opened, closed := 0, 0
		var events []Event
		var ups []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			Events(ctx, func() (Waiter, error) {
				opened++
				if opened == 4 {
					return &waits{slices.Repeat([]any{nil}, 1000), &closed}, nil // returns at once, over and over
				}
				return &waits{[]any{Event{Kind: EventXid, Code: 31}, errors.New("unknown error")}, &closed}, nil
			}, func(e Event) { events = append(events, e) }, func(err error) { ups = append(ups, fmt.Sprint(err)) })
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if opened != 4 || closed != 4 || len(events) != 3 {
			t.Errorf("in 10 s: opened %d times, closed %d, %d events", opened, closed, len(events))
		}
		if want := []string{"<nil>", "unknown error", "<nil>", "unknown error", "<nil>", "unknown error", "<nil>", errNoEvents.Error()}; !slices.Equal(ups, want) {
			t.Errorf("told %q", ups)
		}
		time.Sleep(time.Hour)
		if synctest.Wait(); opened > 70 {
			t.Errorf("opened %d times in an hour", opened)
		}
		cancel()
		<-done
	})
}

func TestPortsAndDisks(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n", "infiniband/mlx5_0/ports/1/phys_state": "5: LinkUp\n", "infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)\n",
		"infiniband/mlx5_0/ports/1/link_layer": "InfiniBand\n", "infiniband/mlx5_0/ports/1/counters/link_downed": "3\n", "infiniband/mlx5_0/ports/1/counters/symbol_error": "no number\n",
		"infiniband/mlx5_1/ports/1/state": "1: DOWN\n", "infiniband/mlx5_1/ports/x/state": "1: DOWN\n",
		"nvme/nvme0/state": "live\n", "nvme/nvme1/model": "without a state\n",
	} {
		file := filepath.Join(root, "sys/class", path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ports, err := Ports(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []Port{
		{Device: "mlx5_0", Number: 1, State: "ACTIVE", Physical: "LinkUp", Rate: "400 Gb/sec (4X NDR)", LinkLayer: "InfiniBand", Counters: map[string]uint64{"link_downed": 3}},
		{Device: "mlx5_1", Number: 1, State: "DOWN"},
	}
	if d := cmp.Diff(want, ports); d != "" {
		t.Error(d)
	}
	if disks, err := Disks(root); err != nil || !slices.Equal(disks, []Disk{{"nvme0", "live"}}) {
		t.Errorf("%v, %v", disks, err)
	}
	if ports, err := Ports(t.TempDir()); err != nil || len(ports) != 0 {
		t.Errorf("a machine without RDMA: %v, %v", ports, err)
	}
}

// What a line costs, whatever it is about: at 10,000 a second it must be below a twentieth of a core, which is 5 µs.
func BenchmarkKmsg(b *testing.B) {
	for name, text := range map[string]string{"other": "usb 1-1: new high-speed USB device number 5 using xhci_hcd", "xid": lostText} {
		b.Run(name, func(b *testing.B) {
			r := &reader{to: discard{}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r.record(fmt.Appendf(nil, "4,%d,1000,-;%s", i+1, text))
			}
		})
	}
}

type discard struct{}

func (discard) Record(Record) {}
func (discard) Lost(uint64)   {}
func (discard) Replayed()     {}
func (discard) Up(error)      {}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("4,1,2,-;" + lostText + "\n SUBSYSTEM=pci"))
	f.Add([]byte("4,,2,-;x"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := &reader{to: discard{}}
		r.record(raw)
		r.record(raw)
		if r.begun && r.next == 0 {
			t.Error("a record without a number")
		}
	})
}
