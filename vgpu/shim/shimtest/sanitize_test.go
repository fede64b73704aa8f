package shimtest

import (
	"strings"
	"testing"
)

// sanitized is the shim compiled with sanitizers, for test programs compiled with the same. The thread sanitizer is
// left to TestUnit: it and the simulated driver want the same addresses.
var sanitized = variant{"address", "gcc", "-fsanitize=address,undefined -fno-sanitize-recover=all"}

// TestSanitized runs tenants whose shim watches itself.
func TestSanitized(t *testing.T) {
	s := simNode(t, "h200x8")
	n := tenantOn(t, s, sanitized, 1)
	sh := n.share(t, "sanitized", gpuGrants(s, 1, 2<<30)...)
	flags := strings.Fields(sanitized.flags)
	behave := program(t, "behave-sanitized", "behave.c", flags...)
	mem := program(t, "mem-sanitized", "mem.c", flags...)
	run := func(name string, argv ...string) {
		t.Run(name, func(t *testing.T) {
			sh.reset()
			// The simulated driver leaves its threads and maps at exit, as the real one does: leaks are not looked for.
			n.view(argv...).run(t, "", "ASAN_OPTIONS=detect_leaks=0").ok(t)
		})
	}
	for _, scenario := range []string{"threads", "init-race", "fork-after", "contexts", "host", "reimport", "ipc"} {
		run(scenario, behave, scenario)
	}
	for _, class := range classes {
		run(class, mem, "dlopen", class)
	}
}
