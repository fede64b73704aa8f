package csi

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/internal/node"
)

// PoolState is how a pool is.
type PoolState struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind"` // of the back end
	Total    node.Bytes `json:"total"`
	Free     node.Bytes `json:"free"`     // on the disk
	Promised node.Bytes `json:"promised"` // to volumes, together
	Largest  node.Bytes `json:"largest"`  // the largest volume that could be made now
	Volumes  int        `json:"volumes"`  // and snapshots
	Error    string     `json:"error,omitempty"`
}

// States are the pools' states, in the order of the configuration.
func (d *Driver) States(ctx context.Context) []PoolState {
	states := []PoolState{}
	for _, p := range d.config.Pools {
		s := PoolState{Name: p.Name, Kind: p.Kind, Promised: d.books.promisedOf(p.Name)}
		for _, v := range d.books.all() {
			if v.Pool == p.Name {
				s.Volumes++
			}
		}
		if c, err := p.capacity(ctx); err != nil {
			s.Error = status.Convert(err).Message()
		} else {
			s.Total, s.Free, s.Largest = c.Total, c.Free, roomOf(c, p.Watermark, s.Promised).largest
		}
		states = append(states, s)
	}
	return states
}

var (
	poolBytes   = prometheus.NewDesc("kerf_csi_pool_bytes", "What a pool has (total), what its disk has free (free), and what volumes were promised (promised).", []string{"pool", "backend", "of"}, nil)
	poolVolumes = prometheus.NewDesc("kerf_csi_pool_volumes", "Volumes and snapshots of a pool.", []string{"pool", "backend"}, nil)
)

// Collector is the pools' metrics.
func (d *Driver) Collector() prometheus.Collector { return poolCollector{d} }

type poolCollector struct{ driver *Driver }

// Describe implements prometheus.Collector.
func (poolCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- poolBytes
	descs <- poolVolumes
}

// Collect implements prometheus.Collector. A pool that does not answer has no bytes.
func (c poolCollector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, s := range c.driver.States(ctx) {
		gauge(poolVolumes, float64(s.Volumes), s.Name, s.Kind)
		if s.Error == "" {
			gauge(poolBytes, float64(s.Total), s.Name, s.Kind, "total")
			gauge(poolBytes, float64(s.Free), s.Name, s.Kind, "free")
			gauge(poolBytes, float64(s.Promised), s.Name, s.Kind, "promised")
		}
	}
}
