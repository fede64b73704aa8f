package shimtest

import (
	"fmt"
	"testing"

	"github.com/kerf-gpu/kerf/vgpu/region"
)

// TestUnknownCalls: a call that no table knows may allocate. It is counted, and under strict it does not exist.
func TestUnknownCalls(t *testing.T) {
	driver := program(t, "newdriver.so", "newdriver.c", "-shared", "-fPIC")
	bin := program(t, "strict", "strict.c")
	for _, c := range []struct {
		name    string
		flags   uint32
		found   string
		unknown uint64
	}{
		{"default", 0, "0 found 0", 2},
		{"strict", region.FlagStrict, "0 none 1", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newTenant(t, libraries(t, plain, "shim"), driver, driver)
			sh := n.share(t, "unknown", grant{uuid: [16]byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, limit: 1 << 30})
			sh.policy.Page.Flags = c.flags
			want := fmt.Sprintf("cuMemAllocFuture %s\ninit 0\ncuMemAllocFuture %s\ncuInit 0 found 0\ncuNeverWas 0 none 1\nmissing 801\n", c.found, c.found)
			if got := n.view(bin).run(t, "").ok(t).out; got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			if got := sh.session(0).Unknown; got != c.unknown {
				t.Errorf("%d unknown calls are counted, want %d", got, c.unknown)
			}
		})
	}
}
