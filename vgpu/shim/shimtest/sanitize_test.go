package shimtest

import (
	"strings"
	"testing"
)

// sanitized are the shim compiled with a sanitizer, for test programs compiled with the same.
var sanitized = []variant{
	{"address", "gcc", "-fsanitize=address,undefined -fno-sanitize-recover=all"},
	{"thread", "gcc", "-fsanitize=thread"},
}

// TestSanitized runs tenants whose shim watches itself.
func TestSanitized(t *testing.T) {
	s := simNode(t, "h200x8")
	for _, v := range sanitized {
		t.Run(v.name, func(t *testing.T) {
			n := tenantOn(t, s, v, 1)
			sh := n.share(t, "sanitized", gpuGrants(s, 1, 1<<30)...)
			flags := strings.Fields(v.flags)
			behave := program(t, "behave-"+v.name, "behave.c", flags...)
			mem := program(t, "mem-"+v.name, "mem.c", flags...)
			run := func(name string, argv ...string) {
				t.Run(name, func(t *testing.T) {
					sh.reset()
					// The simulated driver leaves its threads and maps at exit, as the real one does: leaks are not looked for.
					n.view(argv...).run(t, "", "ASAN_OPTIONS=detect_leaks=0", "TSAN_OPTIONS=halt_on_error=1").ok(t)
				})
			}
			for _, scenario := range []string{"threads", "init-race", "fork-after", "contexts", "host"} {
				run(scenario, behave, scenario)
			}
			for _, class := range classes {
				run(class, mem, "dlopen", class)
			}
		})
	}
}
