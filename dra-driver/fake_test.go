package dra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"
	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
	drav1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// fakeShares is a node without containers: the real ledger, on its own cards.
type fakeShares struct {
	ledger *ledger.Ledger
	mu     sync.Mutex
	cards  []Card
	busy   map[string]bool // owners with processes in a share
	panics string          // the name of a claim at which Hold panics
	holds  int
}

func newShares(t testing.TB, dir string) *fakeShares {
	t.Helper()
	l, corrupt, err := ledger.Open(dir)
	if err != nil || len(corrupt) > 0 {
		t.Fatal(corrupt, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &fakeShares{ledger: l, cards: testCards(), busy: make(map[string]bool)}
}

func (s *fakeShares) Cards() []Card {
	s.mu.Lock()
	defer s.mu.Unlock()
	cards := slices.Clone(s.cards)
	for i, g := range s.ledger.Fill(gpus(cards)) {
		cards[i].Share = g
	}
	return cards
}

// change changes a card.
func (s *fakeShares) change(i int, how func(*Card)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	how(&s.cards[i])
}

func gpus(cards []Card) (gpus []share.GPU) {
	for _, c := range cards {
		gpus = append(gpus, c.Share)
	}
	return gpus
}

func (s *fakeShares) Hold(ctx context.Context, owner ledger.Owner, asks []ledger.Ask) (held []ledger.Held, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds++
	if s.panics != "" && s.panics == owner.Name {
		panic("a claim that nobody thought of")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := s.ledger.Hold(gpus(s.cards), ledger.DoorDRA, owner, asks, time.Unix(1, 0))
	for _, e := range entries {
		held = append(held, ledger.Held{Entry: e, CDI: "kerf.dev/share=" + e.Holder.Key})
	}
	return held, err
}

func (s *fakeShares) Drop(_ context.Context, uid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[uid] {
		return errors.New("2 processes are still in it; try again when they have ended")
	}
	for _, e := range s.ledger.Owned(ledger.DoorDRA, uid) {
		if err := s.ledger.Release(e.ID); err != nil {
			return err
		}
	}
	return nil
}

func (s *fakeShares) Owners() (owners []ledger.Owner) {
	for _, e := range s.ledger.Entries() {
		if !slices.Contains(owners, e.Holder.Owner) {
			owners = append(owners, e.Holder.Owner)
		}
	}
	return owners
}

// kubelet is what kubelet is to a driver: it finds a socket, asks who is there, and calls.
type kubelet struct {
	t          testing.TB
	dir        string
	client     *fake.Clientset
	shares     *fakeShares
	driver     *Driver
	changed    chan struct{}
	mu         sync.Mutex
	reports    []error
	stop       func() error
	connection *grpc.ClientConn
	info       *registration.PluginInfo
}

// newKubelet is a node without a driver yet. Its directory is short: a socket's path has 108 bytes.
func newKubelet(t testing.TB) *kubelet {
	t.Helper()
	k := &kubelet{t: t, dir: t.TempDir(), changed: make(chan struct{}, 1), shares: newShares(t, t.TempDir())}
	k.client = fake.NewClientset(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: testNode, UID: "node-uid"}})
	k.client.PrependReactor("create", "resourceslices", nameSlices())
	k.client.PrependReactor("patch", "resourceclaims", k.noStatusOfNothing)
	return k
}

// noStatusOfNothing: the status of a claim that has gone is not found, and that of its replacement is another's. The fake client would make
// the old claim of either.
func (k *kubelet) noStatusOfNothing(action clienttesting.Action) (bool, runtime.Object, error) {
	patch := action.(clienttesting.PatchAction)
	there, err := k.client.Tracker().Get(patch.GetResource(), patch.GetNamespace(), patch.GetName())
	var said metav1.PartialObjectMetadata
	if err == nil && json.Unmarshal(patch.GetPatch(), &said) == nil && said.UID != "" && said.UID != there.(*resourceapi.ResourceClaim).UID {
		err = apierrors.NewConflict(patch.GetResource().GroupResource(), patch.GetName(), errors.New("the UID is another"))
	}
	return err != nil, nil, err
}

// nameSlices does what the API server does with generateName, and the fake client does not.
func nameSlices() clienttesting.ReactionFunc {
	var count atomic.Int64
	return func(action clienttesting.Action) (bool, runtime.Object, error) {
		object := action.(clienttesting.CreateAction).GetObject().(*resourceapi.ResourceSlice)
		object.Name = fmt.Sprint(object.GenerateName, count.Add(1))
		return false, nil, nil
	}
}

func (k *kubelet) config() Config {
	node := Node{NodeName: testNode, Client: k.client, KubeletDir: k.dir, Changed: k.changed, Report: func(err error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.reports = append(k.reports, err)
	}}
	return Config{Node: node, Shares: k.shares, Cards: k.shares.Cards}
}

func (k *kubelet) reported() []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.reports)
}

// start runs a driver and registers it.
func (k *kubelet) start(config Config) {
	k.t.Helper()
	driver, err := New(config)
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- driver.Run(ctx) }()
	stopped := sync.OnceValue(func() error { cancel(); return <-done })
	k.driver, k.stop = driver, stopped
	k.t.Cleanup(func() { _ = stopped() })
	k.register(done)
}

func (k *kubelet) register(done <-chan error) {
	k.t.Helper()
	socket := k.dir + "/plugins_registry/gpu.kerf.dev-reg.sock"
	k.eventually("the driver answers", func() bool {
		select {
		case err := <-done:
			k.t.Fatalf("the driver ended: %v", err)
		default:
		}
		k.info = askInfo(context.Background(), socket)
		return k.info != nil
	})
	k.notify(socket, &registration.RegistrationStatus{PluginRegistered: true})
	k.connection = k.dial(k.info.Endpoint)
}

func (k *kubelet) notify(socket string, status *registration.RegistrationStatus) {
	_, _ = registration.NewRegistrationClient(k.dial(socket)).NotifyRegistrationStatus(context.Background(), status)
}

func (k *kubelet) dial(socket string) *grpc.ClientConn {
	k.t.Helper()
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = connection.Close() })
	return connection
}

func (k *kubelet) eventually(what string, is func() bool) {
	k.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("never: %s; reported: %v", what, k.reported())
		}
	}
}

// allocate is the scheduler's part: the claim is there, and allocated.
func (k *kubelet) allocate(claim *resourceapi.ResourceClaim) *resourceapi.ResourceClaim {
	k.t.Helper()
	created, err := k.client.ResourceV1().ResourceClaims(claim.Namespace).Create(context.Background(), claim, metav1.CreateOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	return created
}

func (k *kubelet) remove(claim *resourceapi.ResourceClaim) {
	k.t.Helper()
	if err := k.client.ResourceV1().ResourceClaims(claim.Namespace).Delete(context.Background(), claim.Name, metav1.DeleteOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

func named1(claims []*resourceapi.ResourceClaim) (list []*drav1.Claim) {
	for _, c := range claims {
		list = append(list, &drav1.Claim{Namespace: c.Namespace, Name: c.Name, Uid: string(c.UID)})
	}
	return list
}

// prepare is a call as kubelet makes it for a pod.
func (k *kubelet) prepare(claims ...*resourceapi.ResourceClaim) (map[string]*drav1.NodePrepareResourceResponse, error) {
	answer, err := drav1.NewDRAPluginClient(k.connection).NodePrepareResources(context.Background(), &drav1.NodePrepareResourcesRequest{Claims: named1(claims)})
	return answer.GetClaims(), err
}

// prepared is the CDI devices of one claim, or the error that kubelet shows.
func (k *kubelet) prepared(claim *resourceapi.ResourceClaim) (cdi []string, problem string) {
	k.t.Helper()
	answers, err := k.prepare(claim)
	if err != nil {
		return nil, err.Error()
	}
	for _, d := range answers[string(claim.UID)].GetDevices() {
		cdi = append(cdi, d.CdiDeviceIds...)
	}
	return cdi, answers[string(claim.UID)].GetError()
}

// unprepared is the error of giving a claim back.
func (k *kubelet) unprepared(claim *resourceapi.ResourceClaim) string {
	k.t.Helper()
	answer, err := drav1.NewDRAPluginClient(k.connection).NodeUnprepareResources(context.Background(), &drav1.NodeUnprepareResourcesRequest{Claims: named1([]*resourceapi.ResourceClaim{claim})})
	if err != nil {
		return err.Error()
	}
	one, ok := answer.Claims[string(claim.UID)]
	if !ok {
		return "no answer for the claim"
	}
	return one.Error
}

func (k *kubelet) beta() drav1beta1.DRAPluginClient {
	return drav1beta1.NewDRAPluginClient(k.connection)
}

// health opens the health stream.
func (k *kubelet) health(ctx context.Context) healthv1.DRAResourceHealth_NodeWatchResourcesClient {
	k.t.Helper()
	stream, err := healthv1.NewDRAResourceHealthClient(k.connection).NodeWatchResources(ctx, &healthv1.NodeWatchResourcesRequest{})
	if err != nil {
		k.t.Fatal(err)
	}
	return stream
}

func simple(uid, shareID, memory string) *resourceapi.ResourceClaim {
	return claimOf(uid, result(vgpu, shareID, "memory="+memory, "cores=1"))
}

func cdiOf(uid, shareID string) string { return fmt.Sprintf("kerf.dev/share=%s-%s", uid, shareID) }
