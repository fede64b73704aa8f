package upstream

import (
	"flag"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	_ "k8s.io/kubernetes/test/e2e/dra" // the tests
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
)

// kubeconfig is of the cluster under test; the suite beside this one sets it.
const kubeconfig = "KERF_E2E_KUBECONFIG"

// focus names the tests: the conformance tests of the API group. All others of that suite start pods with images of a registry.
const focus = `\[DRA\] CRUD Tests.*\[Conformance\]`

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	os.Exit(m.Run())
}

// TestDRA runs them.
func TestDRA(t *testing.T) {
	path := os.Getenv(kubeconfig)
	if path == "" {
		t.Skipf("%s is not set: it names the kubeconfig of a cluster with Kerf; make e2e sets it", kubeconfig)
	}
	framework.TestContext.KubeConfig = path
	framework.TestContext.Provider = "skeleton"
	framework.AfterReadingAllFlags(&framework.TestContext)
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	suite.FocusStrings = []string{focus}
	reporter.Succinct = true
	ginkgo.RunSpecs(t, "Kubernetes' conformance tests of resource.k8s.io", suite, reporter)
}
