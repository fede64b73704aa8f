package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/deviceplugin"
	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/dra-driver/nic"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// kubernetes is the cluster's side of kerfd: the doors for pods. It is nil on a machine that is no node, and then ready.
type kubernetes struct {
	config  KubernetesConfig
	grants  *grants
	log     *slog.Logger
	in      installation
	client  clientset.Interface
	driver  *dra.Driver          // nil where dra is off
	plugin  *deviceplugin.Plugin // nil where it is off
	nics    *nics                // nil where NICs are off
	wires   *dra.Driver          // of NICs, likewise
	volumes *storage             // nil where there are none

	up atomic.Bool // its GPUs were published once

	mu    sync.Mutex
	names []string  // the devices in the node's ResourceSlices
	asked time.Time // when the API server said so
}

// newKubernetes prepares what needs no other part of kerfd: what containers are started with, the way to the API server.
func newKubernetes(c Config, log *slog.Logger) (k *kubernetes, err error) {
	if !c.Kubernetes.Enabled {
		return nil, nil //nolint:nilnil // a machine that is no node
	}
	k = &kubernetes{config: c.Kubernetes, log: log}
	if k.in, err = install(c.LibDir, c.Kubernetes.HostDir); err != nil {
		return nil, err
	}
	if *c.Kubernetes.DRA || c.Storage.Enabled {
		k.client, err = k.connect()
	}
	return k, err
}

// serve puts the shares of pods in force again, which a reboot or an update has taken from the container runtime's sight, and builds
// the doors.
func (k *kubernetes) serve(g *grants, metrics prometheus.Registerer) (err error) {
	if k == nil {
		return nil
	}
	c := k.config
	k.grants = g
	if g.containers, err = newContainers(g.config, g.hardware, k.in); err != nil {
		return err
	}
	if c.NICs.Enabled { // before the old versions of the hook are removed, which its CDI specs may name
		if k.nics, err = newNICs(g.containers, k.log); err != nil {
			return err
		}
		if k.wires, err = dra.NewOf(nic.DriverName, nic.New(c.NodeName, k.nics), k.node(nic.DriverName)); err != nil {
			return err
		}
		metrics.MustRegister(k.wires.Collectors()...)
	}
	if k.volumes, err = k.newStorage(g.config, metrics); err != nil {
		return err
	}
	k.takeUp()
	if *c.DRA {
		config := dra.Config{Node: k.node("dra"), Shares: door{ledger.DoorDRA, g}, Cards: g.cards, Options: k.options()}
		if g.monitor != nil {
			config.Judge = judge{g.monitor}
		}
		k.driver, err = dra.New(config)
		if err != nil {
			return err
		}
		metrics.MustRegister(k.driver.Collectors()...)
	}
	if c.DevicePlugin.Enabled {
		k.plugin, err = deviceplugin.New(deviceplugin.Options{
			Resource: c.DevicePlugin.Resource, Size: deviceplugin.Size{Memory: c.DevicePlugin.Memory, Cores: c.DevicePlugin.Cores},
			KubeletDir: c.KubeletDir, Shares: door{ledger.DoorPlugin, g}, GPUs: g.gpus, Changed: g.changed.listen(), Report: k.report("device plugin"),
		})
	}
	return err
}

// A connection that died without a word is noticed after these two together, in seconds. client-go's own 30 and 15 are just the 45 s that
// kubelet waits for a claim.
const (
	idleSeconds = "5" // without a byte, before a ping is sent
	pingSeconds = "3" // for its answer
)

// connect is the way to the API server; nothing is sent yet.
func (k *kubernetes) connect() (clientset.Interface, error) {
	for name, seconds := range map[string]string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": idleSeconds, "HTTP2_PING_TIMEOUT_SECONDS": pingSeconds} {
		if os.Getenv(name) == "" { // client-go reads it from there, and from nowhere else
			if err := os.Setenv(name, seconds); err != nil {
				return nil, fmt.Errorf("reach the API server: %w", err)
			}
		}
	}
	config, err := rest.InClusterConfig()
	if k.config.Kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", k.config.Kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w; kerfd outside of a pod needs kubernetes.kubeconfig", err)
	}
	config.UserAgent = "kerfd/" + version.Version
	config.QPS, config.Burst = 50, 100 // a claim's status is one write
	klog.SetSlogLogger(k.log)          // the libraries' own log
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return client, nil
}

// core are the parts of it that only one kerfd of a node can have: the records of NICs are one process's.
func (k *kubernetes) core() []part {
	if k == nil {
		return nil
	}
	volumes := k.volumes.parts()
	if k.nics == nil {
		return volumes
	}
	runtime := nic.NewRuntime(k.config.NICs.NRISocket, k.nics, k.report("nri"))
	parts := []part{{"nic driver", k.wires.Run}, {"nri", runtime.Run}, {"nics", k.nics.Run}}
	if k.config.NICs.StandIn {
		parts = append(parts, part{"stand-ins", k.nics.keepStandIns})
	}
	return append(parts, volumes...)
}

func (k *kubernetes) close() error {
	if k == nil {
		return nil
	}
	err := k.volumes.close()
	if k.nics != nil {
		err = errors.Join(err, k.nics.close())
	}
	return err
}

// node is what a driver needs of this one.
func (k *kubernetes) node(part string) dra.Node {
	return dra.Node{NodeName: k.config.NodeName, PodUID: k.config.PodUID, Client: k.client, KubeletDir: k.config.KubeletDir, CDIDir: k.config.CDIDir,
		Changed: k.grants.changed.listen(), Report: k.report(part)}
}

// options are how the cards are published.
func (k *kubernetes) options() dra.Options {
	if k.grants.hardware.limitsMemory() {
		return dra.Options{Backend: string(share.BackendNative)} // and the shim
	}
	return dra.Options{Backend: string(share.BackendShim)}
}

// takeUp makes anew what containers need of the shares in force. One that cannot be made is tried again when kubelet asks.
func (k *kubernetes) takeUp() {
	g := k.grants
	entries := g.ledger.Entries()
	report := k.report("take up shares")
	for _, entry := range entries {
		if entry.Holder.Door == ledger.DoorRun {
			continue
		}
		if _, err := g.enforce(entry); err != nil {
			report(fmt.Errorf("share %s of %s: %w", entry.ID, entry.Holder.Owner, err))
		}
	}
	if err := errors.Join(g.containers.sweep(entries), g.containers.in.removeOthers(k.config.CDIDir)); err != nil {
		report(err)
	}
}

// report is where an adapter says what goes wrong in the background.
func (k *kubernetes) report(part string) func(error) {
	return func(err error) {
		if err != nil {
			k.log.Warn(part, "error", err)
		}
	}
}

// parts are what runs of it.
func (k *kubernetes) parts() (parts []part) {
	if k == nil {
		return nil
	}
	if k.driver != nil {
		parts = append(parts, part{"dra driver", k.driver.Run})
	}
	if k.plugin != nil {
		parts = append(parts, part{"device plugin", k.plugin.Run})
	}
	return parts
}

// ready says why pods cannot get slices yet; nil if they can, or if there are no pods here. That the GPUs are published is looked
// at until they once were: an API server that is away later takes no slices from anybody.
func (k *kubernetes) ready(ctx context.Context) error {
	if k == nil {
		return nil
	}
	var errs []error
	if k.driver != nil {
		errs = append(errs, k.driverReady(ctx))
	}
	if k.plugin != nil {
		errs = append(errs, k.plugin.Ready())
	}
	if k.wires != nil && !k.wires.Registered() {
		errs = append(errs, errors.New("kubelet has not registered the driver of NICs"))
	}
	return errors.Join(append(errs, k.volumes.ready())...)
}

func (k *kubernetes) driverReady(ctx context.Context) error {
	if !k.driver.Registered() {
		return fmt.Errorf("kubelet has not registered the DRA driver; is kubernetes.kubeletDir (%s) kubelet's directory?", k.config.KubeletDir)
	}
	if k.up.Load() {
		return nil
	}
	published, err := k.published(ctx, 0)
	if err != nil {
		return err
	}
	if expected := k.expected(); !equalSets(expected, published) {
		return fmt.Errorf("%d devices are published, and this node has %d others; kerfd publishes them in a moment, or its log says why not", len(published), len(expected))
	}
	k.up.Store(true)
	return nil
}

func equalSets(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// state is what kerf doctor asks for; nil on a machine that is no node.
func (k *kubernetes) state(ctx context.Context) *control.Kubernetes {
	if k == nil {
		return nil
	}
	s := &control.Kubernetes{NodeName: k.config.NodeName, CDIDir: k.config.CDIDir, Published: []string{}, Expected: []string{}}
	s.Specs, s.Missing = k.grants.containers.missing(k.grants.ledger.Entries())
	if err := k.ready(ctx); err != nil {
		s.NotReady = err.Error()
	}
	if k.driver == nil {
		return s
	}
	s.Expected = append(s.Expected, k.expected()...)
	var err error
	if s.Published, err = k.published(ctx, publishedFor); err != nil {
		s.NotReady = cmp.Or(s.NotReady, err.Error())
	}
	return s
}

// expected are the devices that the inventory makes.
func (k *kubernetes) expected() (names []string) {
	for _, pool := range dra.Slices(k.config.NodeName, k.grants.cards(), k.options()).Pools {
		for _, slice := range pool.Slices {
			for _, device := range slice.Devices {
				names = append(names, device.Name)
			}
		}
	}
	return names
}

// publishedFor is how long an answer of the API server is good enough for people who ask kerfd often.
const publishedFor = 5 * time.Second

// published are the devices in the node's ResourceSlices, as the API server has them or had them a short time ago.
func (k *kubernetes) published(ctx context.Context, old time.Duration) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.asked) < old {
		return k.names, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	names := []string{}
	list, err := k.client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{resourceapi.ResourceSliceSelectorDriver: dra.DriverName, resourceapi.ResourceSliceSelectorNodeName: k.config.NodeName}.String(),
	})
	if err != nil {
		return names, fmt.Errorf("read the node's ResourceSlices: %w", err)
	}
	for _, slice := range list.Items {
		for _, device := range slice.Spec.Devices {
			names = append(names, device.Name)
		}
	}
	k.names, k.asked = names, time.Now()
	return names, nil
}

// cards are the GPUs as the DRA driver publishes them. A card whose mode was changed keeps the one that its shares have until the
// last of them ends.
func (g *grants) cards() []dra.Card {
	known := g.hardware.Node().GPUs
	var cards []dra.Card
	for _, gpu := range g.gpus() {
		i := slices.IndexFunc(known, func(k node.GPU) bool { return k.UUID == gpu.UUID })
		if i < 0 {
			continue // it went between two looks
		}
		card := dra.Card{GPU: known[i], Share: gpu}
		if g.monitor != nil && g.hardware.isSilent(gpu) { // what cannot be read is unknown, and no fault that keeps claims away
			card.Share.Fault = ""
		}
		if held := gpu.HeldMode(); held != gpu.Mode {
			card.Share.Mode, card.Pending = held, gpu.Mode
		}
		cards = append(cards, card)
	}
	return cards
}
