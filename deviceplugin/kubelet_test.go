package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// patience is how long a test waits for what must come; it is never waited for in full where all is well.
const patience = 20 * time.Second

// kubelet is a fake one that obeys the protocol's rules: it removes all sockets when it starts, calls a plugin back
// before it answers its registration, and keeps a stream of devices open.
type kubelet struct {
	pluginapi.UnimplementedRegistrationServer
	podresources.UnimplementedPodResourcesListerServer
	t   *testing.T
	dir string

	server, pods *grpc.Server
	lists        chan []*pluginapi.Device // every list of every stream

	mu       sync.Mutex
	requests []*pluginapi.RegisterRequest
	client   pluginapi.DevicePluginClient
	inUse    map[string][]string // pod → its devices
	asked    chan struct{}       // one for each List
}

func startKubelet(t *testing.T) *kubelet {
	k := &kubelet{t: t, dir: t.TempDir(), lists: make(chan []*pluginapi.Device, 1000), inUse: map[string][]string{"kerfd": nil}, asked: make(chan struct{}, 1000)}
	for _, d := range []string{"device-plugins", "pod-resources"} {
		if err := os.Mkdir(filepath.Join(k.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k.start()
	k.pods = grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(k.pods, k)
	k.listen(k.pods, "pod-resources")
	t.Cleanup(func() { k.server.Stop(); k.pods.Stop() })
	return k
}

func (k *kubelet) start() {
	plugins, err := filepath.Glob(filepath.Join(k.dir, "device-plugins", "*"))
	if err != nil {
		k.t.Fatal(err)
	}
	for _, path := range plugins {
		_ = os.Remove(path)
	}
	k.server = grpc.NewServer()
	pluginapi.RegisterRegistrationServer(k.server, k)
	k.listen(k.server, "device-plugins")
}

func (k *kubelet) listen(server *grpc.Server, dir string) {
	listener, err := net.Listen("unix", filepath.Join(k.dir, dir, "kubelet.sock"))
	if err != nil {
		k.t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
}

func (k *kubelet) Register(_ context.Context, r *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	conn, err := grpc.NewClient("unix:"+filepath.Join(k.dir, "device-plugins", r.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	client := pluginapi.NewDevicePluginClient(conn)
	stream, err := client.ListAndWatch(context.Background(), &pluginapi.Empty{})
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, fmt.Errorf("the plugin registers before it serves: %w", err)
	}
	k.mu.Lock()
	k.requests, k.client = append(k.requests, r), client
	k.mu.Unlock()
	go func() {
		defer conn.Close()
		for list := first; err == nil; list, err = stream.Recv() {
			k.lists <- list.Devices
		}
	}()
	return &pluginapi.Empty{}, nil
}

func (k *kubelet) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	response := &podresources.ListPodResourcesResponse{}
	for pod, ids := range k.inUse {
		response.PodResources = append(response.PodResources, &podresources.PodResources{Name: pod, Containers: []*podresources.ContainerResources{{
			Name: "main", Devices: []*podresources.ContainerDevices{{ResourceName: "kerf.dev/gpu-slice", DeviceIds: ids}, {ResourceName: "example.com/nic", DeviceIds: []string{"11111111-00"}}},
		}}})
	}
	select {
	case k.asked <- struct{}{}:
	default:
	}
	return response, nil
}

func (k *kubelet) registrations() []*pluginapi.RegisterRequest {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.requests)
}

// uses says which pods there are, and what they have. It returns when lists from before are no more on their way.
func (k *kubelet) uses(pods map[string][]string) {
	k.mu.Lock()
	k.inUse = pods
	for len(k.asked) > 0 {
		<-k.asked
	}
	k.mu.Unlock()
}

// isAsked waits for n lists.
func (k *kubelet) isAsked(n int) {
	k.t.Helper()
	for range n {
		select {
		case <-k.asked:
		case <-time.After(patience):
			k.t.Fatal("kubelet was not asked who uses what")
		}
	}
}

// healthy waits for a list with so many healthy slices of so many.
func (k *kubelet) healthy(healthy, all int) {
	k.t.Helper()
	late := time.After(patience)
	last := "no list came"
	for {
		select {
		case list := <-k.lists:
			good := 0
			for _, d := range list {
				if d.Health == pluginapi.Healthy {
					good++
				}
			}
			if good == healthy && len(list) == all {
				return
			}
			last = fmt.Sprintf("%d of %d", good, len(list))
		case <-late:
			k.t.Fatalf("healthy slices: %s, want %d of %d", last, healthy, all)
		}
	}
}

func (k *kubelet) allocate(ids ...string) ([]string, error) {
	k.mu.Lock()
	client := k.client
	k.mu.Unlock()
	response, err := client.Allocate(context.Background(), &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return nil, err
	}
	c := response.ContainerResponses[0]
	if len(response.ContainerResponses) != 1 || len(c.Envs)+len(c.Mounts)+len(c.Devices)+len(c.Annotations) != 0 {
		k.t.Errorf("more than CDI devices came back: %v", response)
	}
	var cdi []string
	for _, d := range c.CdiDevices {
		cdi = append(cdi, d.Name)
	}
	return cdi, nil
}

// shares is kerfd's side on a real ledger, without the world behind it: specs are names in a map.
type shares struct {
	ledger *ledger.Ledger
	cards  []share.GPU

	mu     sync.Mutex
	specs  map[string]ledger.Entry // CDI device → its share
	busy   int                     // so many Drops find processes
	broken error                   // why nothing can be put in force
	drops  []string
}

var errBusy = errors.New("a process is still in it")

func newShares(t *testing.T, dir string, cards ...share.GPU) *shares {
	l, _, err := ledger.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &shares{ledger: l, cards: cards, specs: map[string]ledger.Entry{}}
}

func (s *shares) Hold(_ context.Context, owner ledger.Owner, asks []ledger.Ask) (held []ledger.Held, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := s.ledger.Hold(s.cards, "plugin", owner, asks, time.Now())
	if err == nil && s.broken != nil {
		return nil, s.broken
	}
	for _, e := range entries {
		h := ledger.Held{Entry: e, CDI: "kerf.dev/share=" + e.Holder.Key}
		s.specs[h.CDI] = e
		held = append(held, h)
	}
	return held, err
}

func (s *shares) Drop(_ context.Context, uid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy > 0 {
		s.busy--
		return errBusy
	}
	for _, e := range s.ledger.Owned("plugin", uid) {
		delete(s.specs, "kerf.dev/share="+e.Holder.Key)
		if err := s.ledger.Release(e.ID); err != nil {
			return err
		}
		s.drops = append(s.drops, e.Holder.Owner.Name)
	}
	return nil
}

func (s *shares) Owners() (owners []ledger.Owner) {
	for _, e := range s.ledger.Entries() {
		if e.Holder.Door == "plugin" {
			owners = append(owners, e.Holder.Owner)
		}
	}
	return owners
}

func (s *shares) GPUs() []share.GPU {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.Fill(s.cards)
}

// memory is what each share in force has, by CDI device.
func (s *shares) memory(cdi string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.specs[cdi]
	if !ok {
		return "not there"
	}
	return fmt.Sprintf("GPU %d %s", e.Grant.Devices[0].Index, e.Grant.Devices[0].Memory)
}

func (s *shares) held() (names []string) {
	for _, o := range s.Owners() {
		names = append(names, o.Name)
	}
	slices.Sort(names)
	return names
}

func (s *shares) setBusy(n int) {
	s.mu.Lock()
	s.busy = n
	s.mu.Unlock()
}
