package dra

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	resourceapi "k8s.io/api/resource/v1"
)

// BenchmarkPrepare is the driver's own time for one claim, without kubelet, the library's look at the API server, and what kerfd does
// to make a share. 32 claims are prepared at once, as when a node's pods start together. With the ledger in memory it is the
// driver's; with the ledger on disk, what the disk takes is in it.
func BenchmarkPrepare(b *testing.B) {
	for _, atOnce := range []int{1, 32} {
		for where, dir := range map[string]string{"in memory": "/dev/shm", "on disk": ""} {
			b.Run(fmt.Sprintf("%d at once, ledger %s", atOnce, where), func(b *testing.B) {
				benchmarkPrepare(b, atOnce, dir)
			})
		}
	}
}

func benchmarkPrepare(b *testing.B, atOnce int, ledgerDir string) {
	k := newKubelet(b)
	if dir, err := os.MkdirTemp(ledgerDir, "ledger"); err == nil {
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		k.shares = newShares(b, dir)
	}
	d, err := New(k.config())
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		took = append(took, round(b, d, atOnce)...)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/p99")
}

// round prepares n claims at once, and gives them back.
func round(b *testing.B, d *Driver, n int) []time.Duration {
	b.Helper()
	took := make([]time.Duration, n)
	var wait sync.WaitGroup
	for i := range n {
		claim := simple(fmt.Sprint("u", i), "s", "1Gi")
		wait.Go(func() {
			start := time.Now()
			results, err := d.PrepareResourceClaims(context.Background(), []*resourceapi.ResourceClaim{claim})
			took[i] = time.Since(start)
			if err != nil || results[claim.UID].Err != nil {
				b.Error(err, results[claim.UID].Err)
			}
		})
	}
	wait.Wait()
	for i := range n {
		if err := d.unprepare(context.Background(), fmt.Sprint("u", i)); err != nil {
			b.Error(err)
		}
	}
	return took
}

// BenchmarkCall is a whole call of kubelet, over its socket and with a claim fetched from an API server that takes no time: what the
// library costs, and what its files for the workload cost.
func BenchmarkCall(b *testing.B) {
	for _, metadata := range []bool{false, true} {
		b.Run(fmt.Sprintf("metadata %v", metadata), func(b *testing.B) {
			k := newKubelet(b)
			if dir, err := os.MkdirTemp("/dev/shm", "ledger"); err == nil {
				b.Cleanup(func() { _ = os.RemoveAll(dir) })
				k.shares = newShares(b, dir)
			}
			config := k.config()
			if metadata {
				config.CDIDir = b.TempDir()
			}
			k.start(config)
			claim := k.allocate(simple("u1", "s", "1Gi"))
			for b.Loop() {
				if _, problem := k.prepared(claim); problem != "" {
					b.Fatal(problem)
				}
			}
		})
	}
}

// BenchmarkSlices is what one look at the cards costs.
func BenchmarkSlices(b *testing.B) {
	cards := simulated(b, "h200x8")
	for b.Loop() {
		Slices("node", cards, Options{})
	}
}

// BenchmarkAllocator is the scheduler's work for one slice on a node of eight cards.
func BenchmarkAllocator(b *testing.B) {
	share := oracleClaim{Class: "gpu"}
	classes := classLister{{Spec: resourceapi.DeviceClassSpec{}}}
	classes[0].Name = "gpu"
	for b.Loop() {
		b.StopTimer()
		o := newOracle(b, "h200x8", classes)
		b.StartTimer()
		if got := o.allocate(b, share.claim(0)); len(got) != 1 {
			b.Fatal(got)
		}
	}
}
