package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"
)

// upstreamWithin bounds the build of Kubernetes' tests, which takes most of it the first time.
const upstreamWithin = 30 * time.Minute

// testUpstream runs those of Kubernetes' own tests that need no image: package upstream says which.
func testUpstream(s *scene) {
	if os.Getenv("KERF_E2E_UPSTREAM") == "" && os.Getenv("KERF_SOAK") == "" {
		s.Skip("KERF_E2E_UPSTREAM is not set: to build Kubernetes' tests takes ten minutes the first time")
	}
	cmd := exec.Command("go", "test", "-count=1", "-timeout=10m", "-v", ".")
	cmd.Dir = filepath.Join(s.repo, "deploy/e2e/upstream")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "KERF_E2E_KUBECONFIG="+filepath.Join(s.dir, "kubeconfig"))
	out, err := finish(s.Context(), cmd, upstreamWithin)
	s.keep("upstream.txt", out)
	if err != nil {
		s.Fatalf("Kubernetes' tests: %v: %s", err, tail(out, 4000))
	}
	ran := regexp.MustCompile(`Ran ([1-9]\d*) of \d+ Specs`).FindStringSubmatch(out)
	if ran == nil {
		s.Fatalf("Kubernetes' tests do not say how many ran: %s", tail(out, 1000))
	}
	s.measured("%s conformance tests of resource.k8s.io passed beside our policies and webhooks", ran[1])
}
