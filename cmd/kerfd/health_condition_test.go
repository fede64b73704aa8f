package main

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kerf-gpu/kerf/monitor"
)

func reportOf(devices ...monitor.DeviceReport) monitor.Report {
	return monitor.Report{Devices: devices}
}

func deviceReport(index int, health monitor.Health, reason string) monitor.DeviceReport {
	return monitor.DeviceReport{Device: monitor.Device{ID: "GPU-1", Index: index}, Verdict: monitor.Verdict{Health: health, Reason: reason, Clears: "a reboot"}}
}

func TestConditionOf(t *testing.T) {
	good, bad, unknown := deviceReport(0, monitor.HealthGood, ""), deviceReport(3, monitor.HealthBad, "Xid 79"), deviceReport(4, monitor.HealthUnknown, "no answer")
	for _, tt := range []struct {
		name    string
		report  monitor.Report
		status  corev1.ConditionStatus
		message string
	}{
		{"all well", reportOf(good), corev1.ConditionTrue, "no GPU has a fault"},
		{"a fault", reportOf(good, bad), corev1.ConditionFalse, "GPU 3 (GPU-1): Xid 79; clears with: a reboot"},
		{"nobody can tell: never unhealthy", reportOf(good, unknown), corev1.ConditionUnknown, "GPU 4 (GPU-1): no answer"},
		{"a fault beside one that is not known", reportOf(unknown, bad), corev1.ConditionFalse, "GPU 3 (GPU-1): Xid 79; clears with: a reboot"},
		{"a port is no GPU", reportOf(deviceReport(-1, monitor.HealthBad, "down")), corev1.ConditionTrue, "no GPU has a fault"},
	} {
		if c := conditionOf(tt.report, time.Time{}); c.Status != tt.status || c.Message != tt.message || c.Reason == "" {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
}

// TestConditionThatNeverCleared: a monitor elsewhere set the condition, and only a restart of it took it away. Here it clears with the fault,
// also where another kerfd had set it, and keeps when it last changed.
func TestConditionThatNeverCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: conditionType, Status: corev1.ConditionFalse, Message: "an earlier kerfd's"}}}})
		var mu sync.Mutex
		now := reportOf(deviceReport(0, monitor.HealthGood, ""))
		changed := make(chan struct{}, 1)
		n := &nodeCondition{node: "n1", client: client, changed: changed, failed: func(err error) { t.Error(err) }, report: func() monitor.Report {
			mu.Lock()
			defer mu.Unlock()
			return now
		}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = n.Run(ctx) }() // it ends with the context, without an error
		condition := func() (c corev1.NodeCondition) {
			time.Sleep(3 * time.Second)
			object, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
			if err != nil || len(object.Status.Conditions) != 2 {
				t.Fatalf("%v: %+v", err, object)
			}
			return object.Status.Conditions[1]
		}
		set := func(health monitor.Health) {
			mu.Lock()
			now = reportOf(deviceReport(0, health, "Xid 79"))
			mu.Unlock()
			changed <- struct{}{}
		}
		if c := condition(); c.Status != corev1.ConditionTrue {
			t.Errorf("after the start: %+v", c)
		}
		set(monitor.HealthBad)
		bad := condition()
		if bad.Status != corev1.ConditionFalse {
			t.Errorf("with a fault: %+v", bad)
		}
		set(monitor.HealthGood)
		if c := condition(); c.Status != corev1.ConditionTrue {
			t.Errorf("after the fault: %+v", c)
		}
		before := condition()
		time.Sleep(beatEvery)
		if after := condition(); !after.LastHeartbeatTime.After(before.LastHeartbeatTime.Time) || !after.LastTransitionTime.Equal(&before.LastTransitionTime) {
			t.Errorf("five minutes later: %+v, before %+v", after, before)
		}
	})
}
