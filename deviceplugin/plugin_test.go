package deviceplugin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// running is a plugin that serves a fake kubelet, two cards of 40 GiB cut by 10.
type running struct {
	*kubelet
	*shares
	plugin  *Plugin
	changed chan struct{}
	errs    chan error
	stop    func()
}

func run(t *testing.T) *running { return runOn(t, startKubelet(t), t.TempDir()) }

func runOn(t *testing.T, k *kubelet, state string) *running {
	s := newShares(t, state, card(1, 40*gi), card(2, 40*gi))
	r := &running{kubelet: k, shares: s, changed: make(chan struct{}, 1), errs: make(chan error, 1000)}
	p, err := New(Options{
		Resource: "kerf.dev/gpu-slice", Size: Size{Memory: 10 * gi, Cores: 10}, KubeletDir: k.dir, Shares: s, GPUs: s.GPUs, Changed: r.changed,
		Report: func(err error) { r.errs <- err },
		Pace:   Pace{Devices: time.Hour, Kubelet: 20 * time.Millisecond, InUse: 10 * time.Millisecond, UnseenFor: time.Hour, Drop: 300 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.plugin = p
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if cancel(); !stopped {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		stopped = true
	}
	t.Cleanup(r.stop)
	return r
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		resource string
		size     Size
		want     string
	}{
		{"kerf.dev/gpu-slice", Size{Memory: gi}, ""},
		{"gpu-slice", Size{Memory: gi}, `devicePlugin.resource "gpu-slice": not a name in a domain`},
		{"a/b/c", Size{Memory: gi}, "not a name in a domain"},
		{"", Size{Memory: gi}, "not a name in a domain"},
		{"kerf.dev/gpu-slice", Size{}, "devicePlugin.memory 0"},
	} {
		_, err := New(Options{Resource: tt.resource, Size: tt.size})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.resource, err, tt.want)
		}
	}
}

func TestAllocate(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	one := must[[]string](t)(r.allocate("11111111-01", "11111111-00"))
	two := must[[]string](t)(r.allocate("11111111-02", "22222222-00", "22222222-01"))
	var got []string
	for _, cdi := range append(one, two...) {
		if !strings.HasPrefix(cdi, "kerf.dev/share=") {
			t.Errorf("CDI device %q", cdi)
		}
		got = append(got, r.memory(cdi))
	}
	if diff := cmp.Diff([]string{"GPU 0 20Gi", "GPU 0 10Gi", "GPU 1 20Gi"}, renumber(got)); diff != "" {
		t.Error(diff)
	}
	if got := must[[]string](t)(r.allocate()); len(got) != 0 {
		t.Errorf("no slices, but shares %v", got)
	}
	for _, tt := range []struct{ ids, want string }{
		{"11111111-09", `slice "11111111-09": not one of the 8 of this node`},
		{"11111111-03 11111111-03", "asked for twice"},
	} {
		if _, err := r.allocate(strings.Fields(tt.ids)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.ids, err, tt.want)
		}
	}
}

// renumber makes GPU numbers of the tests' cards count from 0.
func renumber(texts []string) []string {
	for i, s := range texts {
		texts[i] = strings.NewReplacer("GPU 1", "GPU 0", "GPU 2", "GPU 1").Replace(s)
	}
	return texts
}

func TestPreferred(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	options := must[*pluginapi.DevicePluginOptions](t)(r.client.GetDevicePluginOptions(t.Context(), &pluginapi.Empty{}))
	if !options.GetPreferredAllocationAvailable || options.PreStartRequired {
		t.Errorf("options %v", options)
	}
	response := must[*pluginapi.PreferredAllocationResponse](t)(r.client.GetPreferredAllocation(t.Context(), &pluginapi.PreferredAllocationRequest{
		ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{{
			AvailableDeviceIDs: []string{"11111111-00", "11111111-01", "11111111-02", "22222222-00", "22222222-02"}, AllocationSize: 2,
		}},
	}))
	if diff := cmp.Diff([]string{"22222222-00", "22222222-02"}, response.ContainerResponses[0].DeviceIDs); diff != "" {
		t.Error(diff)
	}
	if _, err := r.client.PreStartContainer(t.Context(), &pluginapi.PreStartContainerRequest{}); err != nil {
		t.Error(err)
	}
}

// Another door takes bytes: slices turn unhealthy, those allocated here do not, and an Allocate that comes too late is refused.
func TestOtherDoor(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	cdi := must[[]string](t)(r.allocate("11111111-03"))
	entry, err := r.ledger.Grant(r.cards, share.Request{Memory: 25 * gi, GPU: []string{"1"}}, ledger.Holder{Door: "dra"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.changed <- struct{}{}
	r.healthy(5, 8) // of the first card only the one that is allocated
	if _, err := r.allocate("11111111-00", "22222222-00"); err == nil || !strings.Contains(err.Error(), "slices 11111111-00: memory 10Gi") || !strings.Contains(err.Error(), "kerf top") {
		t.Errorf("what another door holds: %v", err)
	}
	if _, err := r.allocate("22222222-00", "11111111-00"); err == nil {
		t.Error("what another door holds was given out beside what is free")
	}
	if diff := cmp.Diff([]string{"11111111-03"}, r.held()); diff != "" {
		t.Errorf("half of a refused container is held: %s", diff)
	}
	if got := r.memory(cdi[0]); got != "GPU 1 10Gi" {
		t.Errorf("the share that was there: %s", got)
	}
	if err := r.ledger.Release(entry.ID); err != nil {
		t.Fatal(err)
	}
	r.changed <- struct{}{}
	r.healthy(8, 8)
}

func TestLostCard(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	r.shares.mu.Lock()
	r.cards[0].Fault = "it fell off the bus"
	r.shares.mu.Unlock()
	r.changed <- struct{}{}
	r.healthy(4, 8)
	if _, err := r.allocate("11111111-00"); err == nil || !strings.Contains(err.Error(), "it fell off the bus") {
		t.Errorf("a slice of a lost card: %v", err)
	}
	r.shares.mu.Lock()
	r.cards[0].Fault = ""
	r.shares.mu.Unlock()
	r.changed <- struct{}{}
	r.healthy(8, 8)
}

// The slices of an init container are allocated again for a container of its pod, before the first has started.
func TestInitContainer(t *testing.T) {
	for _, tt := range []struct {
		name, init, main string
		want             string // what the init container finds under its CDI devices
	}{
		{"the same", "11111111-00", "11111111-00", "GPU 1 10Gi"},
		{"more", "11111111-01", "11111111-01 11111111-00", "GPU 1 20Gi"},
		{"fewer", "11111111-01 11111111-00", "11111111-00", "GPU 1 10Gi"},
		{"on two GPUs, one of them", "11111111-00 22222222-00 22222222-01", "11111111-00", "GPU 1 10Gi, GPU 2 20Gi"},
		{"another GPU too", "11111111-00", "11111111-00 22222222-00", "GPU 1 10Gi"},
		{"none of them", "11111111-00", "22222222-00", "GPU 1 10Gi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := run(t)
			r.healthy(8, 8)
			first := must[[]string](t)(r.allocate(strings.Fields(tt.init)...))
			second := must[[]string](t)(r.allocate(strings.Fields(tt.main)...))
			var got []string
			for _, cdi := range first {
				got = append(got, r.memory(cdi))
			}
			if text := strings.Join(got, ", "); text != tt.want {
				t.Errorf("the init container has %s, want %s", text, tt.want)
			}
			for _, cdi := range second {
				if r.memory(cdi) == "not there" {
					t.Errorf("the container's share %s is not there", cdi)
				}
			}
		})
	}
}

// kubelet gives slices to a new container while the last processes of the old one go.
func TestGivenAgain(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	must[[]string](t)(r.allocate("11111111-00", "11111111-01"))
	r.setBusy(1)
	must[[]string](t)(r.allocate("11111111-01"))
	if diff := cmp.Diff([]string{"11111111-01"}, r.held()); diff != "" {
		t.Error(diff)
	}
	r.setBusy(1 << 20)
	if _, err := r.allocate("11111111-01"); err == nil || !strings.Contains(err.Error(), "a process is still in it; end its processes") {
		t.Errorf("a container that does not go: %v", err)
	}
	r.setBusy(0)
	must[[]string](t)(r.allocate("11111111-01"))
}

func TestEnd(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	must[[]string](t)(r.allocate("11111111-00"))
	must[[]string](t)(r.allocate("22222222-00"))
	r.uses(map[string][]string{"kerfd": nil, "train": {"11111111-00"}})
	r.isAsked(6)
	if diff := cmp.Diff([]string{"11111111-00", "22222222-00"}, r.held()); diff != "" {
		t.Errorf("somebody was dropped who is in use, or was never seen: %s", diff)
	}
	r.uses(nil) // as a kubelet does that has just started
	r.isAsked(6)
	if diff := cmp.Diff([]string{"11111111-00", "22222222-00"}, r.held()); diff != "" {
		t.Errorf("dropped on an empty list: %s", diff)
	}
	r.setBusy(3)
	r.uses(map[string][]string{"kerfd": nil})
	r.isAsked(10)
	if diff := cmp.Diff([]string{"22222222-00"}, r.held()); diff != "" {
		t.Errorf("who has ended is still there: %s", diff)
	}
}

func TestKubeletRestarts(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	cdi := must[[]string](t)(r.allocate("11111111-00"))
	for range 3 {
		r.server.Stop()
		r.start()
		r.healthy(8, 8)
	}
	if got := r.memory(cdi[0]); got != "GPU 1 10Gi" {
		t.Errorf("after kubelet's restart the share is %s", got)
	}
	must[[]string](t)(r.allocate("11111111-01"))
	if err := os.Remove(filepath.Join(r.dir, "device-plugins", r.plugin.Endpoint())); err != nil {
		t.Fatal(err)
	}
	r.healthy(8, 8)
	last := r.registrations()[len(r.registrations())-1]
	if last.Version != "v1beta1" || last.Endpoint != "kerf.dev-gpu-slice.sock" || last.ResourceName != "kerf.dev/gpu-slice" || !last.Options.GetPreferredAllocationAvailable {
		t.Errorf("registration %v", last)
	}
}

// kerfd starts again, after a kill or a reboot: what was given is in force again under the same name, before kubelet asks anything.
func TestRestart(t *testing.T) {
	k, state := startKubelet(t), t.TempDir()
	r := runOn(t, k, state)
	r.healthy(8, 8)
	cdi := must[[]string](t)(r.allocate("11111111-00", "11111111-02"))
	r.stop()
	_ = r.ledger.Close()
	again := runOn(t, k, state)
	again.healthy(8, 8)
	if got := again.memory(cdi[0]); got != "GPU 1 20Gi" {
		t.Errorf("the share is %s", got)
	}
}

func TestKubeletIsLate(t *testing.T) {
	k := startKubelet(t)
	k.server.Stop()
	if err := os.RemoveAll(filepath.Join(k.dir, "device-plugins")); err != nil {
		t.Fatal(err)
	}
	r := runOn(t, k, t.TempDir())
	if err := <-r.errs; !strings.Contains(err.Error(), "kubernetes.kubeletDir") {
		t.Errorf("no directory: %v", err)
	}
	if err := os.Mkdir(filepath.Join(k.dir, "device-plugins"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := <-r.errs; !strings.Contains(err.Error(), "kubelet is not there") {
		t.Errorf("no kubelet: %v", err)
	}
	k.start()
	r.healthy(8, 8)
}

func TestPanic(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	r.shares.mu.Lock()
	r.specs = nil // Hold writes to it
	r.shares.mu.Unlock()
	if _, err := r.allocate("11111111-00"); err == nil || !strings.Contains(err.Error(), "a fault of kerfd's") {
		t.Errorf("a panic in Allocate: %v", err)
	}
}

// An update of the DaemonSet: two plugins for a moment. The newer one serves, and the older one stands by until it is gone.
func TestSuccession(t *testing.T) {
	k := startKubelet(t)
	older := runOn(t, k, t.TempDir())
	older.healthy(8, 8)
	newer := runOn(t, k, t.TempDir())
	newer.healthy(8, 8)
	for range 3 {
		must[[]string](t)(newer.allocate("11111111-00"))
	}
	if len(newer.Owners()) != 1 || len(older.Owners()) != 0 {
		t.Errorf("the newer one has %d owners and the older one %d", len(newer.Owners()), len(older.Owners()))
	}
	registered := len(k.registrations())
	newer.stop()
	older.healthy(8, 8)
	must[[]string](t)(older.allocate("22222222-00"))
	if len(older.Owners()) != 1 {
		t.Error("the older one does not serve after the newer one has gone")
	}
	if n := len(k.registrations()); registered != 2 || n != 3 {
		t.Errorf("%d registrations, then %d: they took the path from each other", registered, n)
	}
}

// Something behind the ledger fails: nothing is held.
// Between a successor's listening and the older plugin's seeing it, kubelet still calls the older one.
func TestTakenOver(t *testing.T) {
	dir := t.TempDir()
	s := newShares(t, t.TempDir(), card(1, 40*gi))
	p, err := New(Options{Resource: "kerf.dev/gpu-slice", Size: Size{Memory: 10 * gi}, KubeletDir: dir, Shares: s, GPUs: s.GPUs})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "plugin.sock")
	listen := func() {
		t.Helper()
		_ = os.Remove(path)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listen()
	own := must[os.FileInfo](t)(os.Stat(path))
	kubelets := service{plugin: p, takenOver: func() bool { return takenOver(own, path) }}
	allocate := func() error {
		_, err := kubelets.Allocate(t.Context(), &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: []string{"11111111-00"}}}})
		return err
	}
	if err := allocate(); err != nil {
		t.Error(err)
	}
	before := s.Owners()
	listen()
	if err := os.Chtimes(path, time.Time{}, own.ModTime().Add(time.Second)); err != nil { // it may have the same inode
		t.Fatal(err)
	}
	if err := allocate(); err == nil || !strings.Contains(err.Error(), "another kerfd has just taken over") {
		t.Error(err)
	}
	if diff := cmp.Diff(before, s.Owners()); diff != "" {
		t.Error(diff)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if takenOver(own, path) {
		t.Error("by nobody")
	}
}

func TestHalfHeld(t *testing.T) {
	r := run(t)
	r.healthy(8, 8)
	r.shares.mu.Lock()
	r.shares.broken = errors.New("no space left on device")
	r.shares.mu.Unlock()
	if _, err := r.allocate("11111111-00"); err == nil || !strings.Contains(err.Error(), "slices 11111111-00: no space left on device") {
		t.Errorf("a full disk: %v", err)
	}
	if held := r.held(); len(held) != 0 {
		t.Errorf("%v is held, and nobody has it", held)
	}
}
