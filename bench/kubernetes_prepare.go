package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	kubelet "k8s.io/kubelet/pkg/apis/dra/v1"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// prepareAtOnce is how many claims the driver is asked for at once, as when a node's pods start together.
const prepareAtOnce = 32

// prepareRounds is how often; quick is a tenth.
const prepareRounds = 20

// prepareMany plays kubelet: it asks the running driver over its socket for many claims at once, each in a call of its own, and
// gives them back. The scheduler is played too, since it would be slower than what is measured.
func (c *clusterUnderTest) prepareMany(ctx context.Context, options Options) (results []Result, err error) {
	sockets, err := filepath.Glob(filepath.Join(c.root, "kubelet/plugins", dra.DriverName, "dra*.sock"))
	if err != nil || len(sockets) == 0 {
		return nil, fmt.Errorf("the driver's socket is not below %s (%w): is Kerf installed with DRA?", c.root, errors.Join(err))
	}
	claims, err := c.allocated(ctx, prepareAtOnce)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.clear(context.WithoutCancel(ctx))) }()
	path, err := filepath.Rel(c.root, sockets[len(sockets)-1])
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	driver := kubelet.NewDRAPluginClient(conn)
	rounds := prepareRounds
	if options.Quick {
		rounds /= 10
	}
	options.progress("asking the driver for %d claims at once, %d times", prepareAtOnce, rounds)
	before, err := c.histogram(ctx)
	if err != nil {
		return nil, err
	}
	var calls []float64
	for range rounds {
		took, err := prepareRound(ctx, driver, claims)
		if err != nil {
			return nil, err
		}
		calls = append(calls, took...)
	}
	after, err := c.histogram(ctx)
	if err != nil {
		return nil, err
	}
	inside := after.minus(before)
	asked, err := prepareRows[1].of(calls, nil)
	return []Result{prepareRows[0].result(inside.bound(50), inside.bound(99), int(inside.count())), asked}, err
}

// allocated makes claims and allocates them by turns on the node's cards, as the scheduler writes it.
func (c *clusterUnderTest) allocated(ctx context.Context, n int) ([]resourceapi.ResourceClaim, error) {
	list, err := c.client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{FieldSelector: "spec.driver=" + dra.DriverName})
	if err != nil {
		return nil, fmt.Errorf("list the GPUs: %w", err)
	}
	var devices []resourceapi.DeviceRequestAllocationResult
	for _, s := range list.Items {
		for _, d := range s.Spec.Devices {
			if d.AllowMultipleAllocations != nil && *d.AllowMultipleAllocations {
				devices = append(devices, resourceapi.DeviceRequestAllocationResult{Request: "gpu", Driver: dra.DriverName, Pool: s.Spec.Pool.Name, Device: d.Name})
			}
		}
	}
	if len(devices) == 0 {
		return nil, errors.New("no GPU of this cluster can be shared; install Kerf with cards in mode vgpu")
	}
	var claims []resourceapi.ResourceClaim
	for i := range n {
		claim, err := c.allocate(ctx, fmt.Sprintf("prepare-%02d", i), devices[i%len(devices)])
		if err != nil {
			return nil, err
		}
		claims = append(claims, *claim)
	}
	return claims, nil
}

func (c *clusterUnderTest) allocate(ctx context.Context, name string, result resourceapi.DeviceRequestAllocationResult) (*resourceapi.ResourceClaim, error) {
	api := c.client.ResourceV1().ResourceClaims(benchNamespace)
	claim, err := api.Create(ctx, &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: slice("gpu-shared", "1Gi", "1")}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("make claim %s: %w", name, err)
	}
	share := uuid.NewUUID()
	result.ShareID = &share
	result.ConsumedCapacity = map[resourceapi.QualifiedName]resource.Quantity{
		"memory": resource.MustParse("1Gi"), "cores": resource.MustParse("1"), "tenants": resource.MustParse("1"),
	}
	claim.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{result}}}
	if claim, err = api.UpdateStatus(ctx, claim, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("allocate claim %s: %w", name, err)
	}
	return claim, nil
}

// prepareRound prepares all claims at once and times each call, in ns; then it gives all back.
func prepareRound(ctx context.Context, driver kubelet.DRAPluginClient, claims []resourceapi.ResourceClaim) ([]float64, error) {
	took := make([]float64, len(claims))
	errs := make([]error, len(claims))
	var all sync.WaitGroup
	for i, claim := range claims {
		one := &kubelet.Claim{Namespace: claim.Namespace, Uid: string(claim.UID), Name: claim.Name}
		all.Go(func() {
			began := time.Now()
			answer, err := driver.NodePrepareResources(ctx, &kubelet.NodePrepareResourcesRequest{Claims: []*kubelet.Claim{one}})
			took[i] = float64(time.Since(began))
			if err == nil && answer.Claims[one.Uid].GetError() != "" {
				err = errors.New(answer.Claims[one.Uid].GetError())
			}
			errs[i] = err
		})
	}
	all.Wait()
	for _, claim := range claims {
		one := &kubelet.Claim{Namespace: claim.Namespace, Uid: string(claim.UID), Name: claim.Name}
		answer, err := driver.NodeUnprepareResources(ctx, &kubelet.NodeUnprepareResourcesRequest{Claims: []*kubelet.Claim{one}})
		if err == nil && answer.Claims[one.Uid].GetError() != "" {
			err = errors.New(answer.Claims[one.Uid].GetError())
		}
		errs = append(errs, err)
	}
	return took, errors.Join(errs...)
}

// bucket of a histogram: how many calls took at most so many seconds.
type bucket struct{ seconds, calls float64 }

// histogram is kerfd's own of the time inside the driver.
type histogram []bucket

const (
	prepareMetric = "kerf_dra_prepare_seconds_bucket"
	gpuDriver     = "gpu.kerf.dev" // of the drivers of a node, which have the same metrics
)

// histogram asks the node's kerfd.
func (c *clusterUnderTest) histogram(ctx context.Context) (h histogram, err error) {
	socket := filepath.Join(c.root, "run/kerf/kerfd.sock")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kerfd/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask kerfd for its metrics: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	return readHistogram(answer.Body)
}

// readHistogram reads the buckets from Prometheus' text, which has them in order.
func readHistogram(r io.Reader) (h histogram, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, ours := strings.CutPrefix(lines.Text(), prepareMetric+`{driver="`+gpuDriver+`",le="`)
		bound, count, whole := strings.Cut(rest, `"} `)
		if !ours || !whole {
			continue
		}
		var b bucket
		if b.seconds, err = strconv.ParseFloat(bound, 64); err == nil { // +Inf too
			b.calls, err = strconv.ParseFloat(count, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("read kerfd's metrics: %q: %w", lines.Text(), err)
		}
		h = append(h, b)
	}
	if len(h) == 0 && lines.Err() == nil {
		return nil, fmt.Errorf("read kerfd's metrics: no %s; is DRA off?", prepareMetric)
	}
	return h, lines.Err()
}

// minus is what came between two readings.
func (h histogram) minus(before histogram) histogram {
	between := make(histogram, len(h))
	for i := range h {
		between[i] = bucket{h[i].seconds, h[i].calls}
		if i < len(before) {
			between[i].calls -= before[i].calls
		}
	}
	return between
}

func (h histogram) count() float64 {
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].calls
}

// bound is the smallest bound of a bucket that the percentile is below, in ns: what is known of it.
func (h histogram) bound(percentile float64) float64 {
	for _, b := range h {
		if b.calls >= percentile/100*h.count() {
			return b.seconds * float64(time.Second)
		}
	}
	return math.Inf(1)
}
