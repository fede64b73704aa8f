package main

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/fields"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
)

// taintTimes measures what the cluster waits for: from a fault to its taint as the API server has it, seen by a watch of the node's own slices.
type taintTimes struct {
	node     string
	client   clientset.Interface
	verdicts verdicts
	now      func() time.Time
	took     prometheus.Histogram
	seen     map[string]bool // device, key and value
}

func newTaintTimes(k *kubernetes, v verdicts) *taintTimes {
	return &taintTimes{node: k.config.NodeName, client: k.client, verdicts: v, now: time.Now, seen: make(map[string]bool),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kerf_monitor_taint_seconds",
			Help:    "From a fault's first evidence to its taint in the API server. What was there when kerfd started is not in it.",
			Buckets: []float64{.05, .1, .25, .5, 1, 1.5, 2, 3, 5, 10, 30, 60}})} // the promise is 2 s for 99 of 100
}

// Run watches until the context ends.
func (t *taintTimes) Run(ctx context.Context) error {
	selector := fields.Set{resourceapi.ResourceSliceSelectorDriver: dra.DriverName, resourceapi.ResourceSliceSelectorNodeName: t.node}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(t.client.ResourceV1().RESTClient(), "resourceslices", "", selector.AsSelector()),
		ObjectType:    &resourceapi.ResourceSlice{},
		Handler: cache.ResourceEventHandlerDetailedFuncs{
			AddFunc:    func(o any, first bool) { t.note(o, first) },
			UpdateFunc: func(_, o any) { t.note(o, false) },
		},
	})
	informer.RunWithContext(ctx)
	return nil
}

// note looks for taints that were not there before.
func (t *taintTimes) note(object any, first bool) {
	slice, ok := object.(*resourceapi.ResourceSlice)
	if !ok {
		return
	}
	for _, d := range slice.Spec.Devices {
		there := make(map[string]bool)
		for _, taint := range d.Taints {
			if !strings.HasPrefix(taint.Key, "kerf.dev/") || taint.Key == monitor.TaintUnmonitored {
				continue
			}
			name := strings.Join([]string{d.Name, taint.Key, taint.Value, string(taint.Effect)}, " ")
			there[name] = true
			if since := t.since(d); !t.seen[name] && !first && !since.IsZero() {
				t.took.Observe(max(0, t.now().Sub(since).Seconds()))
			}
		}
		for name := range t.seen {
			if strings.HasPrefix(name, d.Name+" ") {
				delete(t.seen, name)
			}
		}
		for name := range there {
			t.seen[name] = true
		}
	}
}

// since is when the device's latest condition began: what made its newest taint.
func (t *taintTimes) since(d resourceapi.Device) (latest time.Time) {
	a, ok := d.Attributes["uuid"]
	if !ok || a.StringValue == nil {
		return latest
	}
	id, err := node.ParseUUID(*a.StringValue)
	if err != nil {
		return latest
	}
	v, _ := t.verdicts.Verdict(id)
	for _, c := range v.Conditions {
		if c.Since.After(latest) {
			latest = c.Since
		}
	}
	return latest
}
