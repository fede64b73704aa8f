package evict

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of a pod that was to be moved.
const (
	outcomeEvicted = "evicted"
	outcomeWould   = "would"   // dry run
	outcomeRefused = "refused" // by a PodDisruptionBudget
	outcomeForced  = "forced"
	outcomeGone    = "gone" // before it was asked
	outcomeFailed  = "failed"
)

var outcomes = []string{outcomeEvicted, outcomeWould, outcomeRefused, outcomeForced, outcomeGone, outcomeFailed}

type metrics struct {
	leads, breaker  prometheus.Gauge
	trips, failures prometheus.Counter
	pods            *prometheus.CounterVec
	waiting, budget *prometheus.GaugeVec
	took            prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		leads:    gauge("kerf_evictions_leader", "1 on the replica that leads; the other metrics are its."),
		breaker:  gauge("kerf_evictions_breaker_open", "1 while the breaker is open: nothing is moved."),
		trips:    counter("kerf_evictions_breaker_trips_total", "How often the breaker has opened."),
		failures: counter("kerf_evictions_failures_total", "Rounds that failed and were tried again."),
		pods:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kerf_evictions_pods_total", Help: "Pods that were to be moved, by outcome."}, []string{"outcome"}),
		waiting:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kerf_evictions_waiting_gangs", Help: "Gangs that are to be moved, by what they wait for."}, []string{"why"}),
		budget:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kerf_evictions_budget_used", Help: "What of a budget is used up now: pods, nodes."}, []string{"budget"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kerf_evictions_seconds", Help: "From a device's taint, to the second, to the eviction of its pod.",
			Buckets: []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600}}),
	}
	for _, outcome := range outcomes {
		m.pods.WithLabelValues(outcome)
	}
	registry.MustRegister(m.leads, m.breaker, m.trips, m.failures, m.pods, m.waiting, m.budget, m.took)
	return m
}

func (m *metrics) set(p Policy, h History, decisions []Decision, now time.Time) {
	m.breaker.Set(float64(number(h.Breaker != nil)))
	count := make(map[Why]int)
	for _, d := range decisions {
		if d.Verb == Wait {
			count[d.Why]++
		}
	}
	for _, why := range Whys {
		m.waiting.WithLabelValues(string(why)).Set(float64(count[why]))
	}
	spent := h.spent(p, now)
	m.budget.WithLabelValues("pods").Set(float64(spent.Pods))
	m.budget.WithLabelValues("nodes").Set(float64(len(spent.Nodes)))
}
