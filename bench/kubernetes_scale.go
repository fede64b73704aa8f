package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-gpu/kerf/bench/rig"
	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/internal/sim"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// simulatedNode is the label and the taint of kwok's nodes.
const simulatedNode = "kwok.x-k8s.io/node"

// scalePods is how many pods are scheduled in each way; writers is how many make objects at once.
const (
	scalePods = 1000
	writers   = 16
)

// runScale gives simulated nodes the slices that kerfd would publish for a profile, and schedules pods on them.
func runScale(ctx context.Context, options Options) (m measured, err error) {
	c, err := connect(options)
	if err != nil {
		return m, err
	}
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: simulatedNode})
	if err != nil {
		return m, fmt.Errorf("list the nodes: %w", err)
	}
	if len(nodes.Items) == 0 {
		return m, errors.New("no simulated nodes in this cluster; start one with build/bin/cluster up --simulated-nodes 1000")
	}
	cards, version, err := simulatedCards(options)
	if err != nil {
		return m, err
	}
	m.card, m.driver, m.simulated = cards[0].ProductName, version, true
	defer func() { err = errors.Join(err, c.unpublish(context.WithoutCancel(ctx))) }()
	published, err := c.publish(ctx, nodes.Items, cards, options)
	if err != nil {
		return m, err
	}
	m.results = append(m.results, published...)
	if err := c.prepare(ctx, slice(benchName, "10Gi", "10")); err != nil {
		return m, err
	}
	n := scalePods
	if options.Quick {
		n /= 10
	}
	scheduled, err := c.throughput(ctx, n, len(nodes.Items)*len(cards), options)
	m.results = append(m.results, scheduled...)
	return m, err
}

// simulatedCards are the cards of a profile as kerfd reads them: through NVML, from a simulated node.
func simulatedCards(options Options) (cards []dra.Card, version string, err error) {
	bin := options.Bin
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, "", fmt.Errorf("find the simulated driver: %w", err)
		}
		bin = filepath.Dir(self)
	}
	name := options.Profile
	if name == "" {
		name = rig.DefaultProfile
	}
	profile, err := sim.LoadProfile(name)
	if err != nil {
		return nil, "", err
	}
	dir, err := os.MkdirTemp("", "kerf-bench-")
	if err != nil {
		return nil, "", fmt.Errorf("make a simulated node: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	simulated, err := sim.Create(filepath.Join(dir, "sim"), profile, filepath.Join(bin, "../lib/kerf/sim"))
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, simulated.Remove(true)) }()
	lib, err := nvml.Open(filepath.Join(dir, "sim"))
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, lib.Close()) }()
	gpus, err := lib.GPUs()
	for _, g := range gpus {
		cards = append(cards, dra.Card{GPU: g, Share: share.GPU{UUID: g.UUID, Index: g.Index, Memory: g.Memory, Mode: share.ModeVGPU}})
		version = g.DriverVersion
	}
	if err == nil && len(cards) == 0 {
		err = fmt.Errorf("profile %s has no GPU; name another", name)
	}
	return cards, version, err
}

// of a node: the same cards, with UUIDs of its own.
func cardsOf(nodeName string, cards []dra.Card) []dra.Card {
	cards = slices.Clone(cards)
	for i := range cards {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", nodeName, i))
		cards[i].UUID = node.UUID(sum[:len(node.UUID{})])
		cards[i].Share.UUID = cards[i].UUID
	}
	return cards
}

// publish writes the slices of all nodes, owned by these, and the class by which they are asked for.
func (c *clusterUnderTest) publish(ctx context.Context, nodes []corev1.Node, cards []dra.Card, options Options) ([]Result, error) {
	if err := c.unpublish(ctx); err != nil { // of a bench that was killed
		return nil, err
	}
	class := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: benchName}, Spec: resourceapi.DeviceClassSpec{
		Selectors: []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: scaleExpression}}},
	}}
	if _, err := c.client.ResourceV1().DeviceClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
		return nil, fmt.Errorf("make DeviceClass %s: %w", benchName, err)
	}
	options.progress("publishing %d GPUs of %d nodes", len(nodes)*len(cards), len(nodes))
	sizes := make([]float64, len(nodes))
	began := time.Now()
	err := each(len(nodes), func(i int) error {
		for at, s := range dra.Slices(nodes[i].Name, cardsOf(nodes[i].Name, cards), dra.Options{}).Pools[nodes[i].Name].Slices {
			object := &resourceapi.ResourceSlice{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%d-%s-%s", at, dra.DriverName, nodes[i].Name), Labels: map[string]string{benchName: "true"},
					OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: nodes[i].Name, UID: nodes[i].UID}}},
				Spec: resourceapi.ResourceSliceSpec{
					Driver: dra.DriverName, Pool: resourceapi.ResourcePool{Name: nodes[i].Name, Generation: 1, ResourceSliceCount: 1},
					NodeName: &nodes[i].Name, Devices: s.Devices, SharedCounters: s.SharedCounters,
				},
			}
			made, err := c.client.ResourceV1().ResourceSlices().Create(ctx, object, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("publish the GPUs of %s: %w", nodes[i].Name, err)
			}
			sizes[i] += float64(made.Size() + storedEnvelope)
		}
		return nil
	})
	took := float64(time.Since(began))
	total := 0.0
	for _, size := range sizes {
		total += size
	}
	return []Result{
		{ID: "KF-300", Name: fmt.Sprintf("publish %d nodes × %d GPUs", len(nodes), len(cards)), Unit: "ns", Basis: Absolute, Value: took, P99: took, N: 1},
		{ID: "KF-301", Name: fmt.Sprintf("a node's slices in etcd, %d GPUs", len(cards)), Unit: "B", Basis: Absolute, Value: Median(sizes), P99: Percentile(sizes, 99), N: len(sizes)},
		{ID: "KF-302", Name: fmt.Sprintf("all slices in etcd, %d GPUs", len(nodes)*len(cards)), Unit: "B", Basis: Absolute, Value: total, P99: total, N: 1},
	}, err
}

// storedEnvelope is what etcd has around an object: four bytes that say protobuf, and its version and kind.
const storedEnvelope = 4 + 2 + 2 + len("resource.k8s.io/v1") + 2 + len("ResourceSlice") + 4

// scaleExpression is that of the class gpu-shared.
const scaleExpression = `device.driver == "` + dra.DriverName + `" && device.attributes["` + dra.DriverName + `"].?type.orValue("") == "gpu" && ` +
	`device.attributes["` + dra.DriverName + `"].?mode.orValue("") == "vgpu"`

// unpublish removes what publish made.
func (c *clusterUnderTest) unpublish(ctx context.Context) error {
	if err := c.client.ResourceV1().ResourceSlices().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: benchName}); err != nil {
		return fmt.Errorf("remove the bench's slices: %w", err)
	}
	if err := c.client.ResourceV1().DeviceClasses().Delete(ctx, benchName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove the bench's class: %w", err)
	}
	return nil
}

// each calls do for 0 to n-1, several at once, and stops at the first error.
func each(n int, do func(i int) error) error {
	var (
		all  sync.WaitGroup
		work = make(chan int)
		errs = make(chan error, writers)
	)
	for range writers {
		all.Go(func() {
			for i := range work {
				if err := do(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	err := func() error {
		defer close(work)
		for i := range n {
			select {
			case work <- i:
			case err := <-errs:
				return err
			}
		}
		return nil
	}()
	all.Wait()
	close(errs)
	for other := range errs {
		err = errors.Join(err, other)
	}
	return err
}

// onSimulated lets a pod go to kwok's nodes only.
func onSimulated(with func(*corev1.PodSpec)) func(*corev1.PodSpec) {
	return func(spec *corev1.PodSpec) {
		with(spec)
		spec.Tolerations = []corev1.Toleration{{Key: simulatedNode, Operator: corev1.TolerationOpExists}}
		spec.NodeSelector = map[string]string{simulatedNode: "simulated"}
	}
}

// throughput schedules pods without claims, with claims that are there already, and with claims that are made from a template.
func (c *clusterUnderTest) throughput(ctx context.Context, n, gpus int, options Options) ([]Result, error) {
	named := func(i int) func(*corev1.PodSpec) {
		name := fmt.Sprintf("bench-%04d", i)
		return claimed(corev1.PodResourceClaim{ResourceClaimName: &name})
	}
	ways := []struct {
		what string
		with func(i int) func(*corev1.PodSpec)
	}{
		{"without claims", func(int) func(*corev1.PodSpec) { return unclaimed }},
		{"with a slice each, claims there", named},
		{"with a slice each, from a template", func(int) func(*corev1.PodSpec) { return fromTemplate() }},
	}
	var rates []float64
	var latencies [][]float64
	for i, way := range ways {
		if i == 1 {
			if err := c.claims(ctx, n); err != nil {
				return nil, err
			}
		}
		options.progress("scheduling %d pods %s", n, way.what)
		rate, took, err := c.schedule(ctx, n, way.with)
		if err != nil {
			return nil, fmt.Errorf("%d pods %s: %w", n, way.what, err)
		}
		rates, latencies = append(rates, rate), append(latencies, took)
	}
	var results []Result
	for i, way := range ways[1:] {
		results = append(results,
			Result{ID: fmt.Sprintf("KF-31%d", 2*i), Name: fmt.Sprintf("pods scheduled a second, %s, %d GPUs", way.what, gpus), Unit: "pods/s", Basis: Absolute,
				Value: rates[i+1], P99: rates[i+1], Baseline: rates[0], BaselineP99: rates[0], N: n, MoreIsBetter: true},
			Result{ID: fmt.Sprintf("KF-31%d", 2*i+1), Name: "  POST to scheduled, " + way.what, Unit: "ns", Basis: Added,
				Value: Median(latencies[i+1]), P99: Percentile(latencies[i+1], 99), Baseline: Median(latencies[0]), BaselineP99: Percentile(latencies[0], 99), N: n})
	}
	return results, nil
}

// claims makes n claims that pods name.
func (c *clusterUnderTest) claims(ctx context.Context, n int) error {
	return each(n, func(i int) error {
		claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%04d", i)}, Spec: slice(benchName, "10Gi", "10")}
		if _, err := c.client.ResourceV1().ResourceClaims(benchNamespace).Create(ctx, claim, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("make claim %s: %w", claim.Name, err)
		}
		return nil
	})
}

// schedule makes n pods at once, and tells how many were scheduled a second and how long each waited, in ns.
func (c *clusterUnderTest) schedule(ctx context.Context, n int, with func(i int) func(*corev1.PodSpec)) (rate float64, took []float64, err error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	all, err := c.follow(watching)
	if err != nil {
		return 0, nil, err
	}
	began := time.Now()
	if err := each(n, func(i int) error {
		name := fmt.Sprintf("bench-%04d", i)
		all.note(name, posted, time.Now())
		_, err := c.client.CoreV1().Pods(benchNamespace).Create(ctx, pod(name, onSimulated(with(i))), metav1.CreateOptions{})
		return err
	}); err != nil {
		return 0, nil, fmt.Errorf("create pods: %w", err)
	}
	if err := all.wait(ctx, n, scheduled, startIdle); err != nil {
		return 0, nil, err
	}
	stop()
	last := began
	all.mu.Lock()
	for _, t := range all.pods {
		took = append(took, float64(t[scheduled].Sub(t[posted])))
		if t[scheduled].After(last) {
			last = t[scheduled]
		}
	}
	all.mu.Unlock()
	return float64(n) / last.Sub(began).Seconds(), took, c.clear(ctx)
}
