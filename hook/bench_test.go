package hook_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/hook/ldcache"
)

// BenchmarkHook is the run time of both hooks as runc starts them, each with its process: what a share adds to the start of a
// container. The figure of merit is the median of the two together; 15 ms is the aim.
func BenchmarkHook(b *testing.B) {
	if _, err := exec.LookPath("bash"); err != nil {
		b.Skip("times with bash: ", err)
	}
	for _, image := range []struct {
		name string
		make func(*bundle)
	}{{"small image", nil}, {"large image", large}} {
		b.Run(image.name, func(b *testing.B) {
			m := newMachine(b)
			times := filepath.Join(m.dir, "times")
			device := m.share(idA, 0, func(tenant *cdi.Tenant) { tenant.Hook = timed(b, m.dir, tenant.Hook, times) })
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				container := m.bundle(image.make, device)
				container.spec.Process.Args = []string{"/none"} // the program is not what is measured
				b.StartTimer()
				_, _ = container.run()
			}
			b.StopTimer()
			report(b, times)
		})
	}
}

// large is an image with three thousand libraries, and a loader cache that knows them.
func large(b *bundle) {
	b.mkdir("/etc/ld.so.conf.d")
	paths := make(map[string]string)
	for i := range 3000 {
		name := fmt.Sprintf("libnumber%d.so.1", i)
		b.file("/usr/lib/x86_64-linux-gnu/"+name, "")
		paths[name] = "/usr/lib/x86_64-linux-gnu/" + name
	}
	b.file(ldcache.Path, string(new(ldcache.Cache).With(paths).Bytes()))
}

// timed is a program that runs the hook and writes down how long it took, in microseconds.
func timed(b *testing.B, dir, program, times string) string {
	b.Helper()
	script := fmt.Sprintf(`#!/bin/bash
start=${EPOCHREALTIME/./}
%s "$@" || exit
end=${EPOCHREALTIME/./}
echo "$1 $((end-start))" >> %s
`, program, times)
	file := filepath.Join(dir, "timed")
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		b.Fatal(err)
	}
	return file
}

func report(b *testing.B, times string) {
	b.Helper()
	text, err := os.ReadFile(times)
	if err != nil {
		b.Fatal(err)
	}
	took := make(map[string][]int)
	for line := range strings.Lines(string(text)) {
		verb, micros, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(micros)
		if err != nil {
			b.Fatal(err)
		}
		took[verb] = append(took[verb], n)
	}
	sum := 0.0
	for verb, all := range took {
		slices.Sort(all)
		p50, p99 := float64(all[len(all)/2])/1000, float64(all[len(all)*99/100])/1000
		b.ReportMetric(p50, verb+"-p50-ms")
		b.ReportMetric(p99, verb+"-p99-ms")
		sum += p50
	}
	b.ReportMetric(sum, "both-p50-ms")
	b.ReportMetric(0, "ns/op") // runc's own start, which is not ours
}
