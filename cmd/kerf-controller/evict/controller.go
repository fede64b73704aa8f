package evict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	resourcelisters "k8s.io/client-go/listers/resource/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// Times of the loop.
const (
	gather     = 200 * time.Millisecond // changes come in numbers
	idle       = 30 * time.Second       // a look without any change
	leaseFor   = 15 * time.Second
	renewUntil = 10 * time.Second
	renewEvery = 2 * time.Second
)

// Config is what a Controller needs.
type Config struct {
	Client    kubernetes.Interface
	Namespace string // of the Lease and the ConfigMap
	Identity  string // of this process among its like
	Policy    Policy
	Log       *slog.Logger
	Now       func() time.Time
}

// Controller moves pods off devices that are to be drained, while it leads.
type Controller struct {
	config  Config
	metrics *metrics
	book    book
	look    func() (Cluster, error)
	told    map[string]Why // what a gang's pods were told it waits for
	known   bool           // whether rules of an earlier leader were looked for
}

// New builds one; it does nothing yet.
func New(c Config, registry prometheus.Registerer) (*Controller, error) {
	if err := c.Policy.Validate(); err != nil {
		return nil, err
	}
	return &Controller{config: c, metrics: newMetrics(registry), book: book{client: c.Client, namespace: c.Namespace}, told: make(map[string]Why)}, nil
}

// Run leads or waits for its turn until the context ends.
func (c *Controller) Run(ctx context.Context) error {
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: c.config.Namespace, Name: BookName}, Client: c.config.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: c.config.Identity}}
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: leaseFor, RenewDeadline: renewUntil, RetryPeriod: renewEvery, ReleaseOnCancel: true, Name: BookName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					c.metrics.leads.Set(1)
					defer c.metrics.leads.Set(0)
					c.config.Log.Info("evictions: this replica leads", "mode", c.config.Policy.Mode)
					c.lead(ctx)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("evictions: %w", err)
		}
		elector.Run(ctx) // ends when the lead is lost, too
	}
	return nil
}

// lead watches the cluster and goes round until it no longer leads.
func (c *Controller) lead(ctx context.Context) {
	changes := make(chan struct{}, 1)
	c.book.object, c.known = nil, false
	stop, err := c.watch(ctx, changes)
	if err != nil {
		c.config.Log.Error("evictions: watch the cluster", "err", err)
		return
	}
	defer stop()
	for {
		again := c.attempt(ctx)
		wait := time.NewTimer(again)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-changes:
		case <-wait.C:
		}
		wait.Stop()
		select { // what else comes now is in the same round
		case <-ctx.Done():
			return
		case <-time.After(gather):
		}
	}
}

// attempt is one round, and says when the next is due at the latest.
func (c *Controller) attempt(ctx context.Context) time.Duration {
	again, err := c.round(ctx)
	if err != nil && ctx.Err() == nil {
		c.metrics.failures.Inc()
		c.config.Log.Error("evictions: a round failed; it is tried again", "err", err)
		return 2 * time.Second
	}
	return again
}

// watch fills the caches, tells of every change, and sets how the cluster is looked at.
func (c *Controller) watch(ctx context.Context, changes chan<- struct{}) (stop func(), err error) {
	all := informers.NewSharedInformerFactoryWithOptions(c.config.Client, 0, informers.WithTransform(trimmed))
	slicesOnly := informers.NewSharedInformerFactoryWithOptions(c.config.Client, 0, informers.WithTransform(trimmed), informers.WithTweakListOptions(
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.driver", dra.DriverName).String()
		}))
	mine := informers.NewSharedInformerFactoryWithOptions(c.config.Client, 0, informers.WithNamespace(c.config.Namespace), informers.WithTweakListOptions(
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", BookName).String()
		}))
	resources := all.Resource().V1()
	pods, claims, budgets := all.Core().V1().Pods(), resources.ResourceClaims(), all.Policy().V1().PodDisruptionBudgets()
	devices, book := slicesOnly.Resource().V1().ResourceSlices(), mine.Core().V1().ConfigMaps()
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), claims.Informer(), budgets.Informer(), devices.Informer(), book.Informer()} {
		if _, err := informer.AddEventHandler(teller(changes)); err != nil {
			return nil, err
		}
	}
	lists := listers{devices.Lister(), claims.Lister(), pods.Lister(), budgets.Lister()}
	held := book.Lister().ConfigMaps(c.config.Namespace)
	c.look = func() (Cluster, error) {
		if object, err := held.Get(BookName); err == nil && c.book.object != nil && object.Annotations[ResetAnnotation] != c.book.object.Annotations[ResetAnnotation] {
			c.book.object = nil // a person's word
		}
		return lists.look()
	}
	factories := []informers.SharedInformerFactory{all, slicesOnly, mine}
	for _, f := range factories {
		f.Start(ctx.Done())
	}
	for _, f := range factories {
		for kind, ok := range f.WaitForCacheSync(ctx.Done()) {
			if !ok {
				return nil, fmt.Errorf("no list of %s", kind)
			}
		}
	}
	return func() {
		for _, f := range factories {
			f.Shutdown()
		}
	}, nil
}

// teller tells of what differs in what is read; a heartbeat of a pod's status does not.
func teller(changes chan<- struct{}) cache.ResourceEventHandler {
	tell := func() {
		select {
		case changes <- struct{}{}:
		default: // a round is due already
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() },
		UpdateFunc: func(before, after any) {
			if !equality.Semantic.DeepEqual(bare(before), bare(after)) {
				tell()
			}
		},
		DeleteFunc: func(any) { tell() },
	}
}

// bare is an object without its version.
func bare(object any) any {
	if p, ok := object.(*corev1.Pod); ok {
		p = p.DeepCopy()
		p.ResourceVersion = ""
		return p
	}
	return object
}

type listers struct {
	devices resourcelisters.ResourceSliceLister
	claims  resourcelisters.ResourceClaimLister
	pods    corelisters.PodLister
	budgets policylisters.PodDisruptionBudgetLister
}

func (l listers) look() (Cluster, error) {
	everything := labels.Everything()
	devices, err1 := l.devices.List(everything)
	claims, err2 := l.claims.List(everything)
	pods, err3 := l.pods.List(everything)
	budgets, err4 := l.budgets.List(everything)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Cluster{}, err
	}
	return look(devices, claims, pods, budgets), nil
}

// round looks, plans, puts the plan on record, and only then acts.
func (c *Controller) round(ctx context.Context) (again time.Duration, err error) {
	cluster, err := c.look()
	if err != nil {
		return 0, err
	}
	before, err := c.book.read(ctx)
	if err != nil {
		return 0, err
	}
	word, resets := c.book.object.Annotations[ResetAnnotation]
	if resets {
		before = before.Reset()
	}
	now := c.config.Now()
	h, decisions := Plan(cluster, c.config.Policy, before, now)
	write := func(without ...string) error {
		return c.book.write(ctx, h, statusText(c.config.Policy, h, cluster, decisions, now), undoText(h), without...)
	}
	if err := write(ResetAnnotation); err != nil {
		return 0, err
	}
	if resets {
		c.tellReset(ctx, word)
	}
	if h.Breaker != nil && before.Breaker == nil {
		c.metrics.trips.Inc()
		c.tellBreaker(ctx, h)
	}
	c.metrics.set(c.config.Policy, h, decisions, now)
	acted := c.act(ctx, &h, decisions)
	c.tellWaits(ctx, decisions)
	err = c.rules(ctx, cluster)
	if acted {
		err = errors.Join(err, write())
	}
	return next(decisions, now), err
}

// next is how long nothing changes by time alone.
func next(decisions []Decision, now time.Time) time.Duration {
	wait := idle
	for _, d := range decisions {
		if !d.Again.IsZero() {
			wait = min(wait, max(d.Again.Sub(now), gather))
		}
	}
	return wait
}

// short is a message that an Event takes.
func short(text string) string {
	const most = 1000
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}
