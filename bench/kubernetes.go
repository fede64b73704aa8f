package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// kubeconfigs are tried in this order: of `make cluster`, and of the end-to-end suite.
var kubeconfigs = []string{"/run/kerf-cluster/kubeconfig", "/run/kerf-e2e/kubeconfig"}

// Names of what the scenarios make in a cluster, and remove again.
const (
	benchNamespace = "kerf-bench"
	benchName      = "kerf-bench"
	benchImage     = "kerf.dev/kerf-tenants:local" // of make image
)

// clusterUnderTest is a Kubernetes that runs already, with Kerf on it.
type clusterUnderTest struct {
	client *kubernetes.Clientset
	root   string // the node's files, where the cluster is on this machine; "": it is not
}

// connect reads the kubeconfig that was named, or the first that is there.
func connect(options Options) (*clusterUnderTest, error) {
	path := options.Kubeconfig
	for _, candidate := range kubeconfigs {
		if _, err := os.Stat(candidate); path == "" && err == nil {
			path = candidate
		}
	}
	if path == "" {
		return nil, fmt.Errorf("no cluster: none of %v is there; start one with make cluster and install Kerf on it, or name a --kubeconfig", kubeconfigs)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	config.QPS, config.Burst = 5000, 10000 // the client must not be what is measured
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect by %s: %w", path, err)
	}
	c := &clusterUnderTest{client: client}
	if root := filepath.Join(filepath.Dir(path), "root"); exists(root) {
		c.root = root
	}
	return c, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// card is what the cluster's first GPU says of itself.
func (c *clusterUnderTest) card(ctx context.Context) (m measured, err error) {
	list, err := c.client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{FieldSelector: "spec.driver=" + dra.DriverName})
	if err != nil {
		return m, fmt.Errorf("list the GPUs: %w", err)
	}
	for _, slice := range list.Items {
		if len(slice.Spec.Devices) == 0 {
			continue
		}
		d := slice.Spec.Devices[0]
		m.card, m.driver = text(d, "productName"), text(d, "driverVersion")
		if a, found := d.Attributes["simulated"]; found && a.BoolValue != nil {
			m.simulated = *a.BoolValue
		}
		return m, nil
	}
	return m, errors.New("no GPU is published in this cluster: install Kerf on it (deploy/README.md)")
}

func text(d resourceapi.Device, name resourceapi.QualifiedName) string {
	switch a := d.Attributes[name]; {
	case a.StringValue != nil:
		return *a.StringValue
	case a.VersionValue != nil:
		return *a.VersionValue
	}
	return "unknown"
}

// prepare makes an empty namespace, with one claim template in it.
func (c *clusterUnderTest) prepare(ctx context.Context, spec resourceapi.ResourceClaimSpec) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: benchNamespace}}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", benchNamespace, err)
	}
	if err := c.clear(ctx); err != nil { // of a bench that was killed
		return err
	}
	template := &resourceapi.ResourceClaimTemplate{ObjectMeta: metav1.ObjectMeta{Name: benchName}, Spec: resourceapi.ResourceClaimTemplateSpec{Spec: spec}}
	templates := c.client.ResourceV1().ResourceClaimTemplates(benchNamespace)
	if err := templates.Delete(ctx, benchName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove an old claim template: %w", err)
	}
	if _, err := templates.Create(ctx, template, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make a claim template: %w", err)
	}
	return nil
}

// slice asks for a part of a card.
func slice(class, memory, cores string) (spec resourceapi.ResourceClaimSpec) {
	spec.Devices.Requests = []resourceapi.DeviceRequest{{Name: "gpu", Exactly: &resourceapi.ExactDeviceRequest{
		DeviceClassName: class,
		Capacity: &resourceapi.CapacityRequirements{Requests: map[resourceapi.QualifiedName]resource.Quantity{
			"memory": resource.MustParse(memory), "cores": resource.MustParse(cores),
		}},
	}}}
	return spec
}

// pod is one that only waits; with says what else it has.
func pod(name string, with func(*corev1.PodSpec)) *corev1.Pod {
	second := int64(1)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: benchNamespace}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &second, RestartPolicy: corev1.RestartPolicyNever,
		Containers: []corev1.Container{{Name: "main", Image: benchImage, ImagePullPolicy: corev1.PullNever, Command: []string{"/bin/sh", "-c", "sleep 100000"}}},
	}}
	with(&p.Spec)
	return p
}

func claimed(claim corev1.PodResourceClaim) func(*corev1.PodSpec) {
	return func(spec *corev1.PodSpec) {
		claim.Name = "gpu"
		spec.ResourceClaims = []corev1.PodResourceClaim{claim}
		spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "gpu"}}
	}
}

func fromTemplate() func(*corev1.PodSpec) {
	name := benchName
	return claimed(corev1.PodResourceClaim{ResourceClaimTemplateName: &name})
}

func unclaimed(*corev1.PodSpec) {}

// times of a pod, as this process saw or read them. Zero: not known.
type times map[moment]time.Time

// moment is a step in a pod's start.
type moment int

const (
	posted    moment = iota // the API server has it
	scheduled               // it has a node
	prepared                // the CDI spec of its share is written: the driver has answered
	sandbox                 // containerd has made its sandbox
	created                 // containerd has made its container
	started                 // the container's program runs
	running                 // the API server says so
)

// watched follows the pods of the namespace.
type watched struct {
	mu   sync.Mutex
	pods map[string]times
	news chan struct{}
}

// follow watches until the context ends. The time of a step is when its news came. An API server under load ends watches: then what
// is there is read, and watched from there on, so that no step is lost, though the times of some are late by as much.
func (c *clusterUnderTest) follow(ctx context.Context) (*watched, error) {
	all := &watched{pods: map[string]times{}, news: make(chan struct{}, 1)}
	version, err := c.look(ctx, all)
	if err != nil {
		return nil, err
	}
	go func() {
		for ctx.Err() == nil {
			c.stream(ctx, version, all)
			if next, err := c.look(ctx, all); err == nil {
				version = next
			}
		}
	}()
	return all, nil
}

// look reads all pods, and says of which version they are.
func (c *clusterUnderTest) look(ctx context.Context, into *watched) (version string, err error) {
	list, err := c.client.CoreV1().Pods(benchNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("list the bench's pods: %w", err)
	}
	for i := range list.Items {
		into.see(&list.Items[i], time.Now())
	}
	return list.ResourceVersion, nil
}

// stream follows one watch to its end.
func (c *clusterUnderTest) stream(ctx context.Context, version string, into *watched) {
	w, err := c.client.CoreV1().Pods(benchNamespace).Watch(ctx, metav1.ListOptions{ResourceVersion: version})
	if err != nil {
		return
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if p, ok := event.Object.(*corev1.Pod); ok && event.Type != watch.Deleted {
			into.see(p, time.Now())
		}
	}
}

func (w *watched) see(p *corev1.Pod, now time.Time) {
	if p.Spec.NodeName != "" {
		w.note(p.Name, scheduled, now)
	}
	if p.Status.Phase == corev1.PodRunning {
		w.note(p.Name, running, now)
	}
}

func (w *watched) note(name string, m moment, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pods[name] == nil {
		w.pods[name] = times{}
	}
	if _, known := w.pods[name][m]; !known {
		w.pods[name][m] = now
	}
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *watched) count(m moment) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.pods {
		if !t[m].IsZero() {
			n++
		}
	}
	return n
}

// wait until n pods have come that far. limit bounds the time in which nothing happens.
func (w *watched) wait(ctx context.Context, n int, m moment, limit time.Duration) error {
	idle := time.NewTimer(limit)
	defer idle.Stop()
	for last := 0; ; {
		got := w.count(m)
		if got >= n {
			return nil
		}
		if got > last {
			last = got
			idle.Reset(limit)
		}
		select {
		case <-w.news:
		case <-idle.C:
			return fmt.Errorf("%d of %d pods came that far, and for %s no further one; see kubectl -n %s describe pods", got, n, limit, benchNamespace)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// clear deletes all pods and claims of the namespace, and waits until they are gone.
func (c *clusterUnderTest) clear(ctx context.Context) error {
	pods, claims := c.client.CoreV1().Pods(benchNamespace), c.client.ResourceV1().ResourceClaims(benchNamespace)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("delete the bench's pods: %w", err)
	}
	if err := claims.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("delete the bench's claims: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the bench's pods and claims are not gone after ten minutes"))
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		one := metav1.ListOptions{Limit: 1}
		p, err := pods.List(ctx, one)
		if err != nil {
			return fmt.Errorf("list the bench's pods: %w", err)
		}
		r, err := claims.List(ctx, one)
		if err != nil {
			return fmt.Errorf("list the bench's claims: %w", err)
		}
		if len(p.Items)+len(r.Items) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
