package shimtest

import (
	"fmt"
	"testing"
)

// BenchmarkNullDriver times calls through the shim over a driver that does nothing, and the same calls without it.
func BenchmarkNullDriver(b *testing.B) {
	for _, shimmed := range []bool{false, true} {
		b.Run(map[bool]string{false: "direct", true: "shim"}[shimmed], func(b *testing.B) {
			driver := program(b, "nulldriver.so", "nulldriver.c", "-shared", "-fPIC")
			n := newTenant(b, libraries(b, plain, "shim"), driver, driver)
			n.share(b, "bench", grant{uuid: [16]byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, limit: 1 << 30})
			if !shimmed {
				n = n.direct(b)
			}
			view := n.view(program(b, "overhead", "overhead.c", "-O2"))
			for b.Loop() {
				var init, launch, alloc, info float64
				out := view.run(b, "").ok(b).out
				if _, err := fmt.Sscan(out, &init, &launch, &alloc, &info); err != nil {
					b.Fatal(out, err)
				}
				b.ReportMetric(init, "ns/init")
				b.ReportMetric(launch, "ns/launch")
				b.ReportMetric(alloc, "ns/alloc+free")
				b.ReportMetric(info, "ns/info")
			}
		})
	}
}
