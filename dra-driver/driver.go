package dra

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

// Node is what any driver needs of the daemon around it.
type Node struct {
	NodeName   string
	Client     kubernetes.Interface
	KubeletDir string // empty: /var/lib/kubelet. The same path on the host and here
	CDIDir     string // where the files that tell a workload of its share are announced; empty: no such files
	// PodUID, where set, lets two pods of a DaemonSet overlap while it is updated; it needs a kubelet from 1.33 on.
	PodUID string

	Changed <-chan struct{} // look at the devices again
	Report  func(error)     // errors in the background, which nobody else hears of
}

// Config is what the driver of GPUs needs.
type Config struct {
	Node

	Options Options
	Shares  Shares
	Cards   func() []Card // what there is now; it must not block
	Judge   Judge         // of their health; nil: each card's own word counts
}

// apiTimeout is for one call to the API server.
const apiTimeout = 10 * time.Second

func (n Node) report(err error) {
	if n.Report != nil {
		n.Report(err)
	}
}

func (n Node) registryDir() string { return filepath.Join(n.KubeletDir, "plugins_registry") }

// Driver is one node's DRA driver of one kind of devices.
type Driver struct {
	name       string // gpu.kerf.dev, say
	config     Node
	kind       Kind
	metrics    metrics
	status     *statuses
	changed    broadcast
	registered atomic.Bool
	seen       seen
	fatal      chan error // an error after which the driver is of no use
}

// New is the driver of GPUs. It checks the configuration, and starts nothing.
func New(config Config) (*Driver, error) {
	switch {
	case config.Shares == nil || config.Cards == nil:
		return nil, errors.New("DRA driver: Shares and Cards are needed")
	case config.Options.Order != "" && config.Options.Order != Binpack && config.Options.Order != Spread:
		return nil, fmt.Errorf("DRA driver: order %q: not known; write binpack or spread", config.Options.Order)
	}
	return NewOf(DriverName, &gpuDevices{config}, config.Node)
}

// NewOf is a driver of any kind of devices. It checks the configuration, and starts nothing.
func NewOf(name string, kind Kind, config Node) (*Driver, error) {
	if config.KubeletDir == "" {
		config.KubeletDir = "/var/lib/kubelet"
	}
	switch {
	case config.NodeName == "":
		return nil, errors.New("DRA driver: no node name; set kubernetes.nodeName, or NODE_NAME from the field spec.nodeName of the pod")
	case config.Client == nil:
		return nil, errors.New("DRA driver: a Client is needed")
	}
	d := &Driver{name: name, config: config, kind: kind, status: newStatuses(name), fatal: make(chan error, 1)}
	d.metrics = newMetrics(name, kind)
	return d, nil
}

func (d *Driver) dataDir() string { return filepath.Join(d.config.KubeletDir, "plugins", d.name) }

// Run serves kubelet until ctx ends. The API server may be away: what kubelet asks is answered as far as it can be, and what there
// is to publish waits.
func (d *Driver) Run(ctx context.Context) error {
	if err := d.makeDirs(); err != nil {
		return err
	}
	if err := d.refuseSecond(ctx); err != nil {
		return err
	}
	// Before kubelet is served, and by a kerfd that has the ledger: so who is no owner now has no files.
	d.reportFailed("sweep", errors.Join(d.sweepMetadata(d.kind.Owners()), d.sweepTemporary(time.Now())))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	helper, err := kubeletplugin.Start(ctx, d, d.options()...)
	if err != nil {
		return fmt.Errorf("start DRA driver: %w", err)
	}
	defer helper.Stop()
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel() // before the wait
	for _, part := range []func(context.Context){
		d.relayChanges,
		func(ctx context.Context) { d.publish(ctx, helper) },
		d.writeStatuses,
		d.sweepOrphans,
	} {
		parts.Go(func() { part(ctx) })
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-d.fatal:
		return err
	}
}

func (d *Driver) options() []kubeletplugin.Option {
	options := []kubeletplugin.Option{
		kubeletplugin.DriverName(d.name),
		kubeletplugin.NodeName(d.config.NodeName),
		kubeletplugin.KubeClient(d.config.Client),
		kubeletplugin.RegistrarDirectoryPath(d.config.registryDir()),
		kubeletplugin.PluginDataDirectoryPath(d.dataDir()),
		kubeletplugin.Serialize(false), // the kind has locks of its own
		kubeletplugin.GRPCInterceptor(d.watchRegistration),
		kubeletplugin.GRPCInterceptor(d.recoverCall),
		kubeletplugin.RollingUpdate(types.UID(d.config.PodUID)),
	}
	if d.config.CDIDir != "" {
		options = append(options, metadataOptions(d.config.CDIDir)...)
	}
	return options
}

func (d *Driver) makeDirs() error {
	if _, err := os.Stat(d.config.KubeletDir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("DRA driver: kubelet's directory %s is not here; mount it from the host, or set kubernetes.kubeletDir to kubelet's --root-dir", d.config.KubeletDir)
	}
	for _, dir := range []string{d.config.registryDir(), d.dataDir()} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("DRA driver: %w; kerfd must be able to write there", err)
		}
	}
	return nil
}

// HandleError implements kubeletplugin.DRAPlugin: errors of the library's background work.
func (d *Driver) HandleError(_ context.Context, err error, msg string) {
	var dropped *resourceslice.DroppedFieldsError
	kind, said := "publish", fmt.Errorf("%s: %w", msg, err)
	switch {
	case errors.As(err, &dropped):
		kind = "dropped"
		said = fmt.Errorf("publish slices: %w; enable these feature gates in the API server and the scheduler. Without DRAConsumableCapacity "+
			"a card goes to one claim whole; without DRAPartitionableDevices MIG placements may overlap, and are refused here", dropped)
	case apierrors.IsForbidden(err):
		said = fmt.Errorf("publish slices: %w; the service account of kerfd lacks a rule, see the ClusterRole kerfd of the chart", err)
	case apierrors.IsInvalid(err):
		said = fmt.Errorf("publish slices: the API server refuses them (%w); this is a mistake in Kerf, please report it", err)
	}
	d.config.report(d.failed(kind, said))
	if !errors.Is(err, kubeletplugin.ErrRecoverable) {
		select {
		case d.fatal <- said:
		default: // one is enough
		}
	}
}

// Registered reports whether kubelet has taken the driver in: it is ready then.
func (d *Driver) Registered() bool { return d.registered.Load() }

// broadcast tells any number of goroutines that something changed.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait is closed at the next change.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// relayChanges gives the daemon's one signal to all who look at the devices.
func (d *Driver) relayChanges(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-d.config.Changed:
			if !open {
				return
			}
			d.changed.fire()
		}
	}
}
