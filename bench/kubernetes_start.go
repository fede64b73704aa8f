package bench

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// step is a part of a pod's start that is reported.
type step struct {
	id, name string
	from, to moment
	claims   bool // only pods with a claim have it
}

// startSteps follow each other; the first is all of them.
var startSteps = []step{
	{"KF-201", "a pod: POST to Running", posted, running, false},
	{"KF-202", "  POST to scheduled", posted, scheduled, false},
	{"KF-203", "  scheduled to sandbox made", scheduled, sandbox, false},
	{"KF-204", "    of it, until its share is made", scheduled, prepared, true},
	{"KF-205", "  sandbox to container made", sandbox, created, false},
	{"KF-206", "  container made to started (hooks)", created, started, false},
	{"KF-207", "  started to Running at the API server", started, running, false},
}

// startPods is how many pods start on the node at once. Each has 1 % of a card's time and about as much of its memory.
const startPods = 200

// startIdle is how long the slowest step may take while nothing else happens.
const startIdle = 2 * time.Minute

// runKubernetes starts pods with and without a slice on one node, and asks the driver for many at once.
func runKubernetes(ctx context.Context, options Options) (measured, error) {
	c, err := connect(options)
	if err != nil {
		return measured{}, err
	}
	m, err := c.card(ctx)
	if err != nil {
		return m, err
	}
	if err := c.prepare(ctx, slice("gpu-shared", "1Gi", "1")); err != nil {
		return m, err
	}
	n := startPods
	if options.Quick {
		n /= 10
	}
	var prepares []Result
	if c.root == "" {
		options.progress("the node is not on this machine: what it alone knows is left out")
	} else if prepares, err = c.prepareMany(ctx, options); err != nil { // first: afterwards containerd still removes pods
		return m, err
	}
	plain, err := c.start(ctx, n, unclaimed, options)
	if err != nil {
		return m, fmt.Errorf("pods without claims: %w", err)
	}
	sliced, err := c.start(ctx, n, fromTemplate(), options)
	if err != nil {
		return m, fmt.Errorf("pods with a slice each: %w", err)
	}
	m.results = append(m.results, Result{
		ID: "KF-200", Name: fmt.Sprintf("%d pods on one node: first POST to all Running", n), Unit: "ns", Basis: Absolute,
		Value: span(sliced), P99: span(sliced), Baseline: span(plain), BaselineP99: span(plain), N: n,
	})
	for _, s := range startSteps {
		m.results = append(m.results, s.result(plain, sliced))
	}
	m.results = append(m.results, prepares...)
	return m, nil
}

// start makes n pods as fast as it can, waits until all run, and removes them.
func (c *clusterUnderTest) start(ctx context.Context, n int, with func(*corev1.PodSpec), options Options) (map[string]times, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	all, err := c.follow(watching)
	if err != nil {
		return nil, err
	}
	options.progress("starting %d pods", n)
	for i := range n {
		name := fmt.Sprintf("bench-%03d", i)
		all.note(name, posted, time.Now())
		if _, err := c.client.CoreV1().Pods(benchNamespace).Create(ctx, pod(name, with), metav1.CreateOptions{}); err != nil {
			return nil, fmt.Errorf("create pod %s: %w", name, err)
		}
	}
	if err := all.wait(ctx, n, running, startIdle); err != nil {
		return nil, err
	}
	stop()
	if err := c.complete(ctx, all.pods); err != nil {
		return nil, err
	}
	options.progress("removing %d pods", n)
	return all.pods, c.clear(ctx)
}

// span is from the first POST until the last pod ran, in ns.
func span(pods map[string]times) float64 {
	var first, last time.Time
	for _, t := range pods {
		if first.IsZero() || t[posted].Before(first) {
			first = t[posted]
		}
		if t[running].After(last) {
			last = t[running]
		}
	}
	return float64(last.Sub(first))
}

// samples of the step, in ns, of the pods of which both ends are known.
func (s step) samples(pods map[string]times) (took []float64) {
	for _, t := range pods {
		if !t[s.from].IsZero() && !t[s.to].IsZero() {
			took = append(took, float64(t[s.to].Sub(t[s.from])))
		}
	}
	return took
}

func (s step) result(plain, sliced map[string]times) Result {
	got, base := s.samples(sliced), s.samples(plain)
	r := Result{ID: s.id, Name: s.name, Unit: "ns", Basis: Added, N: len(got)}
	if len(got) > 0 {
		r.Value, r.P99 = Median(got), Percentile(got, 99)
	}
	if len(base) > 0 && !s.claims {
		r.Baseline, r.BaselineP99 = Median(base), Percentile(base, 99)
	}
	return r
}
