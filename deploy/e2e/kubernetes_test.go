package e2e

import (
	"testing"
	"time"
)

// stage is a configuration of Kerf, and what is shown with it.
type stage struct {
	name      string
	values    []string // of the chart, beside those of a simulated node; none: the manifest as it is kept
	cards     int      // that the node then has
	scenarios []scenario
}

// scenario is one thing that must hold.
type scenario struct {
	name string
	run  func(*scene)
}

// stages is the whole suite, in its order.
var stages = []stage{
	{"h200x8", nil, 8, []scenario{
		{"install", testInstall},
		{"slices", testSlices},
		{"share-one-gpu", testShareOneGPU},
		{"whole-gpu", testWholeGPU},
		{"extended-resource", testExtendedResource},
		{"exclusive", testExclusive},
		{"burst", testBurst},
		{"two-containers", testTwoContainers},
		{"two-pods-one-claim", testTwoPodsOneClaim},
		{"several-requests", testSeveralRequests},
		{"several-gpus", testSeveralGPUs},
		{"init-container", testInitContainer},
		{"restart-policy", testRestartPolicy},
		{"admin-access", testAdminAccess},
		{"claim-status", testClaimStatus},
		{"deleted-while-preparing", testDeletedWhilePreparing},
		{"force-delete", testForceDelete},
		{"people", testPeople},
		{"examples", testExamples},
		{"bad-config", testBadConfig},
		{"bad-amounts", testBadAmounts},
		{"bad-device", testBadDevice},
		{"bad-image", testBadImage},
		{"bad-cdi-directory", testBadCDIDirectory},
		{"bad-hook", testBadHook},
		{"bad-full-disk", testBadFullDisk},
		{"bad-taint-rule", testBadTaintRule},
		{"lost-gpu", testLostGPU},
		{"hami", testHAMi},
		{"upstream", testUpstream},
		{"rolling-update", testRollingUpdate},
		{"kubelet-restart", testKubeletRestart},
		{"containerd-restart", testContainerdRestart},
		{"crash", testCrash},
		{"reboot", testReboot},
		{"bad-second-driver", testBadSecondDriver},
	}},
	{"card-mode", nil, 8, []scenario{{"change", testModeChange}}},
	{"overcommit", []string{"cards[0].mode=overcommit", "cards[0].overcommitPercent=150"}, 8, []scenario{
		{"overcommit", testOvercommit},
	}},
	{"swap", []string{"simulate=smallx2", "cards[0].mode=overcommit", "cards[0].overcommitPercent=300"}, 2, []scenario{{"swap", testSwap}}},
	{"mig", []string{"simulate=a100x8"}, 8, []scenario{{"mig", testMIG}}},
	{"mixed", []string{"simulate=mixed"}, 4, []scenario{{"prioritized-list", testPrioritizedList}}},
	{"nics", []string{"nics.enabled=true"}, 8, []scenario{
		{"pairs", testNICPairs},
		{"talk", testNICsTalk},
		{"bad", testBadNICs},
		{"crash", testNICCrash},
	}},
	{"nics-without-nri", []string{"nics.enabled=true", "nics.nriSocket=/var/run/nri/none.sock"}, 8, []scenario{
		{"hook", testNICsTalk},
		{"crash", testNICCrash},
	}},
	{"faults", []string{"monitor.mode=evict", "controller.evictions.mode=evict", "controller.evictions.settle=1s"}, 8, []scenario{
		{"job-moves", testJobMoves},
	}},
	{"storage", []string{"storage.enabled=true", "storage.pools[0].name=scratch", "storage.pools[0].path=/var/lib/kerf/scratch", "storage.pools[0].backend=loop"}, 8, []scenario{
		{"claim", testScratchClaim},
		{"full", testScratchFull},
		{"block", testScratchBlock},
		{"inline", testScratchInline},
		{"bad", testBadScratch},
		{"crash", testScratchCrash},
		{"example", testScratchExample},
	}},
	{"device-plugin", []string{"dra.enabled=false", "devicePlugin.enabled=true"}, 0, []scenario{
		{"plugin", testDevicePlugin},
		{"plugin-kubelet-restart", testDevicePluginKubeletRestart},
	}},
	{"both-doors", []string{"devicePlugin.enabled=true"}, 8, []scenario{{"never-twice", testBothDoors}}},
}

// TestKubernetes runs the suite on one cluster. `-run TestKubernetes/mig` runs a stage.
func TestKubernetes(t *testing.T) {
	t.Cleanup(removeStandIns) // last of all: the cluster is down then
	l := newLab(t)
	t.Cleanup(func() { l.table(t) })
	for _, st := range stages {
		t.Run(st.name, func(t *testing.T) {
			l.install(t, st)
			for _, sc := range st.scenarios {
				t.Run(sc.name, func(t *testing.T) { l.play(t, st, sc) })
			}
		})
	}
}

// play runs a scenario and puts it into the table.
func (l *lab) play(t *testing.T, st stage, sc scenario) {
	s := newScene(t, l, sc.name)
	began := time.Now()
	defer func() {
		s.end()
		result, figure := "ok", s.figure
		switch {
		case t.Failed():
			result, figure = "FAILED", s.why[:min(len(s.why), 1000)]
		case t.Skipped():
			result = "skipped"
		}
		l.add(row{st.name, sc.name, result, figure, time.Since(began)})
	}()
	sc.run(s)
}
