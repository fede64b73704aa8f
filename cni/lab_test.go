package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/call"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/cni/link/linktest"
)

// The tests named TestLab… run in the machine of deploy/lab: real igb VFs on a real kernel.

// victim is one call of an engine, in a process of its own that is killed before one of the calls that it makes.
type victim struct {
	Dir, Netns string
	Spec       cni.Spec
	Detach     bool
	At         int
}

const victimEnv = "KERF_CNI_TEST_VICTIM"

// TestMain is the victim when a test runs this binary as one.
func TestMain(m *testing.M) {
	text := os.Getenv(victimEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var v victim
	err := json.Unmarshal([]byte(text), &v)
	if err == nil {
		err = v.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (v victim) run() (err error) {
	e := cni.New(v.Dir)
	stop := linktest.Stopper{At: v.At, Die: func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // it comes at once
	}}
	stop.Wrap(e)
	if v.Detach {
		return e.Detach(context.Background(), v.Spec.Owner.Key, v.Netns)
	}
	_, err = e.Attach(context.Background(), v.Netns, v.Spec)
	return err
}

// kill runs it, and says whether it died of the signal.
func (v victim) kill(t *testing.T) bool {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("before call %d: %v: %s", v.At, err, out)
	}
	return true
}

// lab is the machine's VFs.
type lab struct {
	t    *testing.T
	e    *cni.Engine
	host cni.Net
	pfs  []link.Device
	vfs  []string
	dir  string
	pods int
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("needs igb VFs: run it by make lab")
	}
	l := &lab{t: t, e: cni.New(t.TempDir()), dir: t.TempDir()}
	host, err := l.e.Kernel.Open("")
	if err != nil {
		t.Fatal(err)
	}
	l.host = host
	t.Cleanup(func() { _ = host.Close() })
	dirs, _ := filepath.Glob("/sys/bus/pci/drivers/igb/0*")
	for _, dir := range dirs {
		pf, err := l.e.Kernel.Device(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		if pf.NumVFs == 0 {
			if err := (link.Host{}).SetNumVFs(pf.PCI, 7); err != nil {
				t.Fatal(err)
			}
		}
		vfs, err := l.e.Kernel.VFs(pf.PCI.String())
		if err != nil {
			t.Fatal(err)
		}
		found, err := host.Link(link.Query{Name: pf.Name})
		if err == nil && !found.Up {
			err = host.Change(found.Index, link.Change{Up: new(true)})
		}
		if err != nil {
			t.Fatal(err)
		}
		l.pfs, l.vfs = append(l.pfs, pf), append(l.vfs, vfs...)
	}
	if len(l.vfs) != 14 {
		t.Fatalf("%d VFs of %d igb PFs, want 14 of 2", len(l.vfs), len(l.pfs))
	}
	return l
}

func (l *lab) pod() string {
	l.t.Helper()
	l.pods++
	path, err := call.NewNetns(l.dir, fmt.Sprint("pod", l.pods))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = call.EndNetns(path) })
	return path
}

// state is every VF, as it is on the host and as its PF tells.
func (l *lab) state() []string {
	l.t.Helper()
	var lines []string
	for _, id := range l.vfs {
		d, err := l.e.Kernel.Device(id)
		if err != nil {
			l.t.Fatal(err)
		}
		pf, err := l.host.Link(link.Query{Name: d.PFName})
		if err != nil {
			l.t.Fatal(err)
		}
		vf, err := l.host.VF(pf.Index, d.VF)
		if err != nil {
			l.t.Fatal(err)
		}
		at, err := l.host.Link(link.Query{Name: d.Name})
		if d.Name == "" || err != nil {
			lines = append(lines, fmt.Sprintf("%s is not on the host (%v), PF: %+v", id, err, vf))
			continue
		}
		at.Index, at.PermMAC = 0, "" // another after it was bound again; igbvf tells here what it has
		if vf.MAC == at.MAC || vf.MAC == link.NoMAC {
			vf.MAC = "its own" // the PF tells it or not, as it was reset or not
		}
		lines = append(lines, fmt.Sprintf("%s: %+v, PF: %+v", id, at, vf))
	}
	return lines
}

func (l *lab) mustBe(was []string) {
	l.t.Helper()
	if diff := cmp.Diff(was, l.state()); diff != "" {
		l.t.Errorf("not as it was (-was +is): %s", diff)
	}
	if records, damaged, err := l.e.List(); err != nil || len(records)+len(damaged) > 0 {
		l.t.Errorf("records left: %+v, %v, %v", records, damaged, err)
	}
}

// all is every attribute that igb has.
func all(i int) cni.Spec {
	return cni.Spec{MAC: fmt.Sprintf("02:00:00:00:01:%02x", i), MTU: 1400, IP: link.IP{Addresses: []string{fmt.Sprintf("10.9.%d.2/24", i)}}, VF: cni.Asked{
		VLAN: new(100 + i), QoS: new(3), Proto: link.Q, SpoofCheck: new(false), Trust: new(true), MaxRate: new(100),
	}}
}

func (l *lab) spec(i int) cni.Spec {
	s := all(i)
	s.Device, s.Owner = l.vfs[i], owner(fmt.Sprint("c", i))
	return s
}

func TestLabEveryVF(t *testing.T) {
	l := newLab(t)
	was := l.state()
	var pods []string
	for i := range l.vfs {
		pod := l.pod()
		made, err := l.e.Attach(t.Context(), pod, l.spec(i))
		if err != nil {
			t.Fatalf("%s: %v", l.vfs[i], err)
		}
		if made.Link.Name != "net1" || made.Link.MAC != l.spec(i).MAC || made.Link.MTU != 1400 || made.VF.VLAN != 100+i {
			t.Errorf("%s: %+v, VF %+v", l.vfs[i], made.Link, made.VF)
		}
		if err := l.e.Check(t.Context(), l.spec(i).Owner.Key); err != nil {
			t.Error(err)
		}
		pods = append(pods, pod)
	}
	for i := range l.vfs {
		if err := l.e.Detach(t.Context(), l.spec(i).Owner.Key, pods[i]); err != nil {
			t.Error(err)
		}
	}
	l.mustBe(was)
}

// TestLabKilled kills a process before each call that it makes of the kernel and of the journal, in attaching and in detaching a VF.
func TestLabKilled(t *testing.T) {
	l := newLab(t)
	was := l.state()
	for _, detach := range []bool{false, true} {
		deaths := 0
		for at := 0; ; at++ {
			v := victim{l.e.Dir, l.pod(), l.spec(at % 14), detach, at}
			if detach {
				if _, err := l.e.Attach(t.Context(), v.Netns, v.Spec); err != nil {
					t.Fatal(err)
				}
			}
			dead := v.kill(t)
			key, netns := v.Spec.Owner.Key, v.Netns
			switch at % 3 { // one of the three: the kernel in memory has every sequel for every call
			case 1:
				netns = ""
			case 2:
				if err := call.EndNetns(netns); err != nil {
					t.Fatal(err)
				}
				awaitHost(t, l, v.Spec.Device)
			}
			if err := l.e.Detach(t.Context(), key, netns); err != nil {
				t.Errorf("killed before call %d: %v", at, err)
			}
			if l.mustBe(was); t.Failed() {
				t.Fatalf("killed before call %d, detaching %v", at, detach)
			}
			if !dead {
				break
			}
			deaths++
		}
		t.Logf("detaching %v: %d deaths", detach, deaths)
		if deaths < 10 {
			t.Errorf("only %d deaths: the calls are not counted", deaths)
		}
	}
}

// awaitHost waits until the kernel has brought a VF back from a namespace that ended: it does so in its own time.
func awaitHost(t *testing.T, l *lab, id string) {
	t.Helper()
	for range 1 << 16 {
		if d, err := l.e.Kernel.Device(id); err == nil && d.Name != "" {
			return
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	t.Fatalf("%s did not come back", id)
}

// TestLabNamespaceGone is upstream's B2, B3 and B5: no namespace, one that ended, and no record that can be read.
func TestLabNamespaceGone(t *testing.T) {
	l := newLab(t)
	was := l.state()
	for name, spoil := range map[string]func(pod, record string) (netns string, err error){
		"B2 DEL without namespace": func(string, string) (string, error) { return "", nil },
		"B3 namespace ended": func(pod, _ string) (string, error) {
			err := call.EndNetns(pod)
			awaitHost(t, l, l.vfs[0])
			return pod, err
		},
		"B5 record truncated": func(pod, record string) (string, error) { return pod, os.Truncate(record, 0) },
	} {
		pod, s := l.pod(), l.spec(0)
		if name[:2] == "B5" {
			s.MTU, s.MAC = 0, "" // what only the record knows
		}
		if _, err := l.e.Attach(t.Context(), pod, s); err != nil {
			t.Fatal(name, err)
		}
		netns, err := spoil(pod, filepath.Join(l.e.Dir, s.Device+".json"))
		if err == nil {
			err = l.e.Detach(t.Context(), s.Owner.Key, netns)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		l.mustBe(was)
	}
}

// TestLabNameTaken is upstream's B8.
func TestLabNameTaken(t *testing.T) {
	l := newLab(t)
	was := l.state()
	made, err := l.e.Attach(t.Context(), l.pod(), l.spec(0))
	if err != nil {
		t.Fatal(err)
	}
	pf, err := l.host.Link(link.Query{Name: l.pfs[1].Name})
	if err == nil {
		err = l.host.Change(pf.Index, link.Change{Up: new(false)})
	}
	if err == nil {
		err = l.host.Change(pf.Index, link.Change{Name: made.Of.Name, Up: new(true)})
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.e.Detach(t.Context(), l.spec(0).Owner.Key, ""); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(l.host.Change(pf.Index, link.Change{Up: new(false)}), l.host.Change(pf.Index, link.Change{Name: pf.Name, Up: new(true)})); err != nil {
		t.Fatal(err)
	}
	if _, err := l.e.Reconcile(t.Context(), nil); err != nil {
		t.Error(err)
	}
	l.mustBe(was)
}

// TestLabRefused: what igb does not do is refused by name, and all before it is taken back (upstream's B1).
func TestLabRefused(t *testing.T) {
	l := newLab(t)
	was := l.state()
	for field, ask := range map[string]func(*cni.Asked){
		"link_state":  func(a *cni.Asked) { a.State = new(link.Enable) },
		"min_tx_rate": func(a *cni.Asked) { a.MinRate = new(10) },
		"vlanProto":   func(a *cni.Asked) { a.Proto = link.AD },
	} {
		s := l.spec(3)
		ask(&s.VF)
		_, err := l.e.Attach(t.Context(), l.pod(), s)
		if cni.CodeOf(err) != cni.CodeRefused || err == nil || !strings.Contains(err.Error(), field+": ") || !strings.Contains(err.Error(), "driver igb") {
			t.Errorf("%s: %v", field, err)
		}
		l.mustBe(was)
	}
}

// TestLabPool: 14 that choose at once from 14 VFs.
func TestLabPool(t *testing.T) {
	l := newLab(t)
	was := l.state()
	type done struct {
		key cni.Key
		pod string
		on  string
		err error
	}
	results := make(chan done)
	for i := range l.vfs {
		pod := l.pod()
		go func() {
			s := all(i)
			s.Owner, s.VF = owner(fmt.Sprint("c", i)), cni.Asked{VLAN: new(10)}
			made, err := l.e.AttachAny(t.Context(), pod, s, l.vfs)
			results <- done{s.Owner.Key, pod, made.Device, err}
		}()
	}
	var got []string
	var all []done
	for range l.vfs {
		d := <-results
		if d.err != nil {
			t.Error(d.err)
		}
		got, all = append(got, d.on), append(all, d)
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != len(l.vfs) {
		t.Errorf("given: %v", got)
	}
	for _, d := range all {
		if err := l.e.Detach(t.Context(), d.key, d.pod); err != nil {
			t.Error(err)
		}
	}
	l.mustBe(was)
}
