package cni_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/cni/link/linktest"
)

const (
	pod    = "/run/netns/pod"
	theVF  = "0000:24:10.0"
	thePF  = "0000:24:00.0"
	theKey = "c1"
)

func machine() *linktest.Kernel {
	k := linktest.New()
	k.AddPF(thePF, "pf0", "igb", 7)
	k.AddLink("veth0", "veth")
	k.AddSpace(pod)
	k.AddSpace("/run/netns/other")
	return k
}

func engine(t *testing.T, k *linktest.Kernel) *cni.Engine {
	t.Helper()
	return &cni.Engine{Dir: t.TempDir(), Kernel: k, LockWait: time.Second}
}

func owner(id string) cni.Owner {
	return cni.Owner{Key: cni.Key{ContainerID: id, IfName: "net1"}, Network: "n"}
}

func ip() link.IP {
	return link.IP{Addresses: []string{"10.1.1.2/24"}, Routes: []link.Route{{To: "10.2.0.0/16", Via: "10.1.1.1"}}}
}

// cases are attachments of every kind: what is asked, and the machine for it.
var cases = map[string]struct {
	spec    cni.Spec
	prepare func(*linktest.Kernel)
}{
	"VF": {spec: cni.Spec{Device: theVF, MAC: "02:00:00:00:00:01", MTU: 9000, IP: ip(), VF: cni.Asked{
		VLAN: new(100), QoS: new(3), Proto: link.AD, SpoofCheck: new(false), Trust: new(true), MinRate: new(10), MaxRate: new(100), State: new(link.Enable),
	}}},
	"VF, bound again for its address": {
		spec:    cni.Spec{Device: theVF, MAC: "02:00:00:00:00:01"},
		prepare: func(k *linktest.Kernel) { k.NoAdopt = true },
	},
	"veth": {spec: cni.Spec{Device: "veth0", MAC: "02:00:00:00:00:02", MTU: 1400, IP: ip()}},
	"RoCE": {
		spec:    cni.Spec{Device: theVF, RDMA: cni.RDMARequire, VF: cni.Asked{VLAN: new(5)}},
		prepare: func(k *linktest.Kernel) { k.AddRDMA(theVF, "mlx5_2", link.Exclusive, true, false) },
	},
	"InfiniBand with a GUID": {
		spec:    cni.Spec{Device: theVF, RDMA: cni.RDMARequire, GUID: "02:00:00:00:00:00:00:07"},
		prepare: func(k *linktest.Kernel) { k.AddRDMA(theVF, "mlx5_2", link.Exclusive, true, true) },
	},
	"RDMA shared": {
		spec:    cni.Spec{Device: theVF, RDMA: cni.RDMAAuto},
		prepare: func(k *linktest.Kernel) { k.AddRDMA(theVF, "mlx5_2", link.Shared, true, false) },
	},
}

func build(name string) (*linktest.Kernel, cni.Spec) {
	k, c := machine(), cases[name]
	if c.prepare != nil {
		c.prepare(k)
	}
	s := c.spec
	s.Owner = owner(theKey)
	return k, s
}

// mustBe compares a machine with what it was, and the journal with empty.
func mustBe(t *testing.T, k *linktest.Kernel, e *cni.Engine, was string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(was, "\n"), strings.Split(k.State(), "\n")); diff != "" {
		t.Errorf("not as it was (-was +is): %s", diff)
	}
	records, damaged, err := e.List()
	if err != nil || len(records)+len(damaged) > 0 {
		t.Errorf("records left: %+v, damaged %v, %v", records, damaged, err)
	}
}

func TestAttachAndDetach(t *testing.T) {
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			k, s := build(name)
			e, was := engine(t, k), k.State()
			made, err := e.Attach(t.Context(), pod, s)
			if err != nil {
				t.Fatal(err)
			}
			if k.Moves != 1 {
				t.Errorf("%d moves, want one", k.Moves)
			}
			if err := e.Check(t.Context(), s.Owner.Key); err != nil {
				t.Errorf("check: %v", err)
			}
			again, err := e.Attach(t.Context(), pod, s)
			if diff := cmp.Diff(made, again); err != nil || diff != "" || k.Moves != 1 {
				t.Errorf("attach again: %v, %d moves, %s", err, k.Moves, diff)
			}
			if err := e.Detach(t.Context(), s.Owner.Key, pod); err != nil {
				t.Fatal(err)
			}
			mustBe(t, k, e, was)
			if want := 2; k.Moves != want && !strings.HasPrefix(name, "Infini") { // the kernel makes IPoIB links anew by itself
				t.Errorf("%d moves there and back, want %d", k.Moves, want)
			}
			if err := e.Detach(t.Context(), s.Owner.Key, pod); err != nil {
				t.Errorf("detach twice: %v", err)
			}
			if err := e.Detach(t.Context(), cni.Key{ContainerID: "unknown", IfName: "net1"}, ""); err != nil {
				t.Errorf("detach of an unknown container: %v", err)
			}
		})
	}
}

// died runs something that a Stopper may end, and says whether it did.
func died(t *testing.T, do func() error) (dead bool) {
	t.Helper()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case linktest.Died:
			dead = true
		default:
			panic(r)
		}
	}()
	if err := do(); err != nil {
		t.Errorf("not stopped, and failed: %v", err)
	}
	return false
}

// follow is what may happen after a death. Each has to end in the baseline, without an error.
var follow = map[string]func(ctx context.Context, e *cni.Engine, k *linktest.Kernel, s cni.Spec) error{
	"DEL": func(ctx context.Context, e *cni.Engine, _ *linktest.Kernel, s cni.Spec) error {
		return e.Detach(ctx, s.Owner.Key, pod)
	},
	"DEL without namespace": func(ctx context.Context, e *cni.Engine, _ *linktest.Kernel, s cni.Spec) error {
		return e.Detach(ctx, s.Owner.Key, "")
	},
	"namespace gone, DEL": func(ctx context.Context, e *cni.Engine, k *linktest.Kernel, s cni.Spec) error {
		k.EndSpace(pod)
		return e.Detach(ctx, s.Owner.Key, pod)
	},
	"GC": func(ctx context.Context, e *cni.Engine, _ *linktest.Kernel, _ cni.Spec) error {
		report, err := e.Reconcile(ctx, func(cni.Owner) bool { return false })
		if len(report.Failed) > 0 {
			err = errors.Join(err, errors.New(strings.Join(report.Failed, "; ")))
		}
		return err
	},
	"namespace gone, ADD of another": func(ctx context.Context, e *cni.Engine, k *linktest.Kernel, s cni.Spec) error {
		k.EndSpace(pod)
		s.Owner = owner("c2")
		if _, err := e.Attach(ctx, "/run/netns/other", s); err != nil {
			return err
		}
		return e.Detach(ctx, s.Owner.Key, "/run/netns/other")
	},
	"ADD again, DEL": func(ctx context.Context, e *cni.Engine, _ *linktest.Kernel, s cni.Spec) error {
		if _, err := e.Attach(ctx, pod, s); err != nil {
			return err
		}
		return e.Detach(ctx, s.Owner.Key, pod)
	},
}

// kills runs act with a death before each call that it makes, and then what follows.
func kills(t *testing.T, name string, attached bool, act func(ctx context.Context, e *cni.Engine, s cni.Spec) error) {
	total := 0
	for after, do := range follow {
		for at := 0; ; at++ {
			k, s := build(name)
			e := engine(t, k)
			was := k.State()
			if attached {
				if _, err := e.Attach(t.Context(), pod, s); err != nil {
					t.Fatal(err)
				}
			}
			mortal := *e
			stop := &linktest.Stopper{At: at}
			stop.Wrap(&mortal)
			dead := died(t, func() error { return act(t.Context(), &mortal, s) })
			if strings.HasPrefix(after, "namespace gone") && s.Device == "veth0" {
				if !dead {
					break
				}
				continue // a veth dies with its namespace: there is nothing to give back, which TestVethDiesWithItsPod shows
			}
			if err := do(t.Context(), e, k, s); err != nil {
				t.Errorf("killed before call %d, %s: %v", at, after, err)
			}
			mustBe(t, k, e, was)
			if t.Failed() {
				t.Fatalf("killed before call %d, then %s", at, after)
			}
			if !dead {
				break
			}
			total++
		}
	}
	t.Logf("%d deaths", total)
}

func TestKillAtEveryCall(t *testing.T) {
	for name := range cases {
		t.Run(name+"/attach", func(t *testing.T) {
			kills(t, name, false, func(ctx context.Context, e *cni.Engine, s cni.Spec) error {
				_, err := e.Attach(ctx, pod, s)
				return err
			})
		})
		t.Run(name+"/detach", func(t *testing.T) {
			kills(t, name, true, func(ctx context.Context, e *cni.Engine, s cni.Spec) error { return e.Detach(ctx, s.Owner.Key, pod) })
		})
	}
}

// spoilers are what may happen to a record.
var spoilers = map[string]func(path string) error{
	"missing":         os.Remove,
	"empty":           func(path string) error { return os.Truncate(path, 0) },
	"truncated":       func(path string) error { return os.Truncate(path, 100) },
	"not readable":    func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	"foreign version": func(path string) error { return os.WriteFile(path, []byte(`{"version":9}`+"\n"), 0o600) },
}

func TestSpoiltRecord(t *testing.T) {
	for how, spoil := range spoilers {
		for _, name := range []string{"VF", "veth", "RDMA shared"} {
			for _, after := range []string{"DEL", "DEL without namespace", "GC", "namespace gone, DEL"} {
				if name == "veth" && strings.HasPrefix(after, "namespace gone") || how == "missing" && (after == "DEL without namespace" || after == "GC") {
					continue // a veth is destroyed; without record and namespace there is nothing to go by, until that ends
				}
				t.Run(how+"/"+name+"/"+after, func(t *testing.T) {
					k, s := build(name)
					s.MAC, s.MTU = "", 0 // what only the record knows
					e, was := engine(t, k), k.State()
					if _, err := e.Attach(t.Context(), pod, s); err != nil {
						t.Fatal(err)
					}
					if err := spoil(filepath.Join(e.Dir, s.Device+".json")); err != nil {
						t.Fatal(err)
					}
					if err := follow[after](t.Context(), e, k, s); err != nil {
						t.Error(err)
					}
					mustBe(t, k, e, was)
				})
			}
		}
	}
}

func TestVethDiesWithItsPod(t *testing.T) {
	k, s := build("veth")
	e := engine(t, k)
	if _, err := e.Attach(t.Context(), pod, s); err != nil {
		t.Fatal(err)
	}
	k.EndSpace(pod)
	was := k.State()
	if err := e.Detach(t.Context(), s.Owner.Key, pod); err != nil {
		t.Error(err)
	}
	mustBe(t, k, e, was)
}

func TestNameTakenAtHome(t *testing.T) {
	for _, name := range []string{"VF", "veth"} {
		k, s := build(name)
		e, was := engine(t, k), k.State()
		made, err := e.Attach(t.Context(), pod, s)
		if err != nil {
			t.Fatal(err)
		}
		taken := made.Of.Name
		k.AddLink(taken, "veth")
		if err := e.Detach(t.Context(), s.Owner.Key, pod); err != nil {
			t.Fatalf("%s: a name that is taken must not keep it: %v", name, err)
		}
		records, _, _ := e.List()
		if len(records) != 1 || records[0].Phase != cni.Dirty || !strings.Contains(records[0].Note, taken) {
			t.Errorf("%s: records %+v, want one that is dirty and says %s", name, records, taken)
		}
		k.RemoveLink(taken)
		if _, err := e.Reconcile(t.Context(), nil); err != nil {
			t.Error(err)
		}
		mustBe(t, k, e, was)
	}
}

func TestEachAttributeRefused(t *testing.T) {
	fields := map[link.Attr]string{link.AttrVLAN: "vlanProto: 802.1ad", link.AttrMAC: "mac: 02:00:00:00:00:01", link.AttrRate: "min_tx_rate: 10",
		link.AttrSpoof: "spoofchk: off", link.AttrTrust: "trust: on", link.AttrState: "link_state: enable"}
	for _, attr := range link.Attrs {
		k, s := build("VF")
		k.Refuse[attr] = unix.EOPNOTSUPP
		e, was := engine(t, k), k.State()
		_, err := e.Attach(t.Context(), pod, s)
		if cni.CodeOf(err) != cni.CodeRefused || !strings.Contains(fmt.Sprint(err), fields[attr]) || strings.Contains(fmt.Sprint(err), "\n") || !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("%s: %v; want one line with %q, and what the kernel said", attr, err, fields[attr])
		}
		mustBe(t, k, e, was)
	}
}

func TestPFThatDoesNotTakeBack(t *testing.T) {
	k, s := build("VF")
	e := engine(t, k)
	if _, err := e.Attach(t.Context(), pod, s); err != nil {
		t.Fatal(err)
	}
	k.Keep[link.AttrTrust] = unix.EIO
	if err := e.Detach(t.Context(), s.Owner.Key, pod); err != nil {
		t.Fatalf("the pod must end: %v", err)
	}
	records, _, _ := e.List()
	if len(records) != 1 || records[0].Phase != cni.Dirty || !strings.Contains(records[0].Note, "trust") {
		t.Errorf("records %+v, want a dirty one that names trust", records)
	}
	delete(k.Keep, link.AttrTrust)
	report, err := e.Reconcile(t.Context(), nil)
	if err != nil || len(report.Returned) != 1 {
		t.Errorf("reconcile: %+v, %v", report, err)
	}
}

func TestCheckAfterTampering(t *testing.T) {
	k, s := build("VF")
	e := engine(t, k)
	if _, err := e.Attach(t.Context(), pod, s); err != nil {
		t.Fatal(err)
	}
	n, _ := k.Open(pod)
	host, _ := k.Open("")
	l, _ := n.Link(link.Query{Name: "net1"})
	pf, _ := host.Link(link.Query{Name: "pf0"})
	vf, _ := host.VF(pf.Index, 0)
	vf.VLAN = 7
	for word, tamper := range map[string]func() error{
		"up":   func() error { return n.Change(l.Index, link.Change{Up: new(false)}) },
		"name": func() error { return n.Change(l.Index, link.Change{Name: "net9"}) },
		"mtu":  func() error { return n.Change(l.Index, link.Change{MTU: 1300}) },
		"vlan": func() error { return host.SetVF(pf.Index, 0, link.AttrVLAN, vf) },
	} {
		if err := tamper(); err != nil {
			t.Fatal(err)
		}
		if err := e.Check(t.Context(), s.Owner.Key); cni.CodeOf(err) != cni.CodeDiffers || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", word, err)
		}
	}
	if err := e.Check(t.Context(), cni.Key{ContainerID: "none", IfName: "net1"}); cni.CodeOf(err) != cni.CodeUnknown {
		t.Errorf("unknown container: %v", err)
	}
}

func TestReconcileKeepsTheValid(t *testing.T) {
	k := machine()
	e := engine(t, k)
	var keys []cni.Key
	for i := range 4 {
		s := cni.Spec{Device: fmt.Sprintf("0000:24:10.%d", i), Owner: owner(fmt.Sprint("c", i))}
		s.Owner.IfName = fmt.Sprint("net", i)
		if _, err := e.Attach(t.Context(), pod, s); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, s.Owner.Key)
	}
	report, err := e.Reconcile(t.Context(), func(o cni.Owner) bool { return o.Key == keys[1] || o.Key == keys[2] })
	if err != nil || len(report.Kept) != 2 || len(report.Returned) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	if report, err = e.Reconcile(t.Context(), nil); err != nil || len(report.Kept) != 2 {
		t.Errorf("a second time: %+v, %v", report, err)
	}
	k.EndSpace(pod)
	if report, err = e.Reconcile(t.Context(), nil); err != nil || len(report.Returned) != 2 {
		t.Errorf("after the namespace's end: %+v, %v", report, err)
	}
	if left, _, _ := e.List(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// An attachment that gets its addresses later, or again, stands for Reconcile as before.
func TestReconcileKeepsTheConfigured(t *testing.T) {
	k := machine()
	e := engine(t, k)
	s := cni.Spec{Device: "0000:24:10.0", Owner: owner("c0")}
	ip := link.IP{Addresses: []string{"10.1.0.1/24"}}
	again := func() error { _, err := e.Attach(t.Context(), pod, s); return err }
	for name, do := range map[string]func() error{
		"configured":                    func() error { return errors.Join(again(), e.Configure(t.Context(), s.Owner.Key, ip)) },
		"attached again with addresses": func() error { s.IP = ip; return errors.Join(again(), again()) },
	} {
		if err := do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if report, err := e.Reconcile(t.Context(), func(cni.Owner) bool { return true }); err != nil || len(report.Kept) != 1 || len(report.Returned) != 0 {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
	}
}

// Of 32 that choose at once among 14, none gets what another has, and who finds none free is told to try again.
func TestManyChoose(t *testing.T) {
	k := linktest.New()
	k.AddPF(thePF, "pf0", "igb", 7)
	k.AddPF("0000:84:00.0", "pf1", "igb", 7)
	e, was := engine(t, k), k.State()
	e.LockWait = 10 * time.Second
	var pool []string
	for _, pf := range []string{"pf0", "pf1"} {
		vfs, err := k.VFs(pf)
		if err != nil {
			t.Fatal(err)
		}
		pool = append(pool, vfs...)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	has := make(map[string]string)
	attached := 0
	for i := range 32 {
		path := fmt.Sprint("/run/netns/p", i)
		k.AddSpace(path)
		all.Go(func() {
			s := cni.Spec{Owner: owner(fmt.Sprint("c", i)), VF: cni.Asked{VLAN: new(i + 1)}}
			for try := 0; ; try++ {
				made, err := e.AttachAny(t.Context(), path, s, pool)
				if cni.CodeOf(err) == cni.CodeBusy && err != nil && try < 10000 {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other := has[made.Device]; other != "" {
					t.Errorf("%s was given to %s and to %s", made.Device, other, path)
				}
				has[made.Device] = path
				attached++
				mu.Unlock()
				mu.Lock()
				delete(has, made.Device)
				mu.Unlock()
				if err := e.Detach(t.Context(), s.Owner.Key, path); err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	all.Wait()
	if attached != 32 || k.Moves != 64 {
		t.Errorf("%d attached with %d moves, want 32 with 64", attached, k.Moves)
	}
	for i := range 32 {
		k.EndSpace(fmt.Sprint("/run/netns/p", i))
	}
	mustBe(t, k, e, was)
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		spec    cni.Spec
		prepare func(*linktest.Kernel, *cni.Engine)
		netns   string
		code    cni.Code
		words   []string
	}{
		"no such device":     {spec: cni.Spec{Device: "0000:99:00.0"}, code: cni.CodeConfig, words: []string{"0000:99:00.0"}},
		"a PF with VFs":      {spec: cni.Spec{Device: thePF}, code: cni.CodeConfig, words: []string{"a PF with 7 VFs", "virtfn"}},
		"VF fields of a NIC": {spec: cni.Spec{Device: "veth0", VF: cni.Asked{Trust: new(true)}}, code: cni.CodeConfig, words: []string{"trust", "not a VF"}},
		"bound to vfio": {spec: cni.Spec{Device: theVF}, code: cni.CodeConfig, words: []string{"vfio-pci", "no network interface"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.Edit(theVF, "vfio-pci", "") }},
		"no driver": {spec: cni.Spec{Device: theVF}, code: cni.CodeConfig, words: []string{"no driver"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.Edit(theVF, "", "") }},
		"switchdev": {spec: cni.Spec{Device: theVF}, code: cni.CodeConfig, words: []string{"switchdev", "mode legacy"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.Edit(thePF, "mlx5_core", "switchdev") }},
		"PF in a bond": {spec: cni.Spec{Device: theVF}, code: cni.CodeConfig, words: []string{"its PF pf0 is in a bond", "use a PF that is not"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.AddLink("bond0", "bond"); k.Enslave("pf0", "bond0") }},
		"a member of a bridge": {spec: cni.Spec{Device: "veth0"}, code: cni.CodeBusy, words: []string{"veth0", "nomaster"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.AddLink("br0", "bridge"); k.Enslave("veth0", "br0") }},
		"in use": {spec: cni.Spec{Device: theVF}, code: cni.CodeBusy, words: []string{"in use by other/net1", "delete that pod"},
			prepare: func(_ *linktest.Kernel, e *cni.Engine) {
				if _, err := e.Attach(context.Background(), "/run/netns/other", cni.Spec{Device: theVF, Owner: owner("other")}); err != nil {
					panic(err)
				}
			}},
		"netns missing":    {spec: cni.Spec{Device: theVF}, netns: "/run/netns/none", code: cni.CodeEnv, words: []string{"CNI_NETNS", "/run/netns/none"}},
		"RDMA without any": {spec: cni.Spec{Device: theVF, RDMA: cni.RDMARequire}, code: cni.CodeConfig, words: []string{"rdma: require", "no RDMA device"}},
		"exclusive, shared": {spec: cni.Spec{Device: theVF, RDMA: cni.RDMARequire}, code: cni.CodeConfig, words: []string{"netns_mode=0", "reboot"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.AddRDMA(theVF, "mlx5_2", link.Shared, true, false) }},
		"RDMA that cannot move": {spec: cni.Spec{Device: theVF, RDMA: cni.RDMARequire, VF: cni.Asked{VLAN: new(3)}}, code: cni.CodeRefused, words: []string{"rdma", "mlx5_2", "Rolled back", "vlan"},
			prepare: func(k *linktest.Kernel, _ *cni.Engine) { k.AddRDMA(theVF, "mlx5_2", link.Exclusive, false, false) }},
		"MTU too large": {spec: cni.Spec{Device: theVF, MTU: 9999}, code: cni.CodeRefused, words: []string{"mtu: 9999"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := machine()
			e := engine(t, k)
			if tt.prepare != nil {
				tt.prepare(k, e)
			}
			was := k.State()
			path := pod
			if tt.netns != "" {
				path = tt.netns
			}
			tt.spec.Owner = owner(theKey)
			_, err := e.Attach(t.Context(), path, tt.spec)
			if cni.CodeOf(err) != tt.code || err == nil {
				t.Fatalf("code %d (%v), want %d", cni.CodeOf(err), err, tt.code)
			}
			for _, word := range tt.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q has no %q", err, word)
				}
			}
			if diff := cmp.Diff(was, k.State()); diff != "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("changed, or not one line: %s", diff)
			}
		})
	}
}

func TestModeNeedsOneNamespace(t *testing.T) {
	k := machine()
	if err := k.SetMode(link.Exclusive); !errors.Is(err, unix.EBUSY) {
		t.Errorf("%v, want EBUSY while other namespaces exist", err)
	}
}
