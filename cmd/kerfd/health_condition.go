package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"

	"github.com/kerf-gpu/kerf/monitor"
)

// conditionType is the node's condition: True while every GPU can be used, False where one cannot, Unknown where nobody can tell.
const conditionType corev1.NodeConditionType = "KerfGPUsHealthy"

// beatEvery is how often the condition is written though nothing has changed: one that is older than a few of these is of a kerfd that is away.
const beatEvery = 5 * time.Minute

// nodeCondition keeps the condition on the node. It is reckoned from what the monitor knows now, and from nothing that was written before: so it
// clears when the fault does, over restarts too.
type nodeCondition struct {
	node    string
	client  clientset.Interface
	report  func() monitor.Report
	changed <-chan struct{}
	failed  func(error)
}

// conditionOf is what a report comes to.
func conditionOf(r monitor.Report, now time.Time) corev1.NodeCondition {
	var bad, unknown []string
	for _, d := range r.Devices {
		if d.Index < 0 {
			continue // a port or a disk
		}
		text := fmt.Sprintf("GPU %d (%s): %s", d.Index, d.ID, d.Reason)
		switch {
		case d.Health == monitor.HealthBad:
			if d.Clears != "" {
				text += "; clears with: " + d.Clears
			}
			bad = append(bad, text)
		case d.Health == monitor.HealthUnknown:
			unknown = append(unknown, text)
		}
	}
	c := corev1.NodeCondition{Type: conditionType, Status: corev1.ConditionTrue, Reason: "AllHealthy", Message: "no GPU has a fault",
		LastHeartbeatTime: metav1.NewTime(now), LastTransitionTime: metav1.NewTime(now)}
	switch {
	case len(bad) > 0:
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "DeviceFault", strings.Join(bad, "; ")
	case len(unknown) > 0:
		c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NotMonitored", strings.Join(unknown, "; ")
	}
	const most = 1024 // for people; the whole is in kerf doctor
	c.Message = strings.ToValidUTF8(c.Message[:min(len(c.Message), most)], "")
	return c
}

// Run writes the condition at first, when it changes, once a second at most, and now and then, until the context ends.
func (n *nodeCondition) Run(ctx context.Context) error {
	var last corev1.NodeCondition
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for due := true; ; {
		next := conditionOf(n.report(), time.Now())
		if due || next.Status != last.Status || next.Message != last.Message {
			if next.Status == last.Status {
				next.LastTransitionTime = last.LastTransitionTime
			}
			if err := n.write(ctx, next); err != nil {
				n.failed(err)
			} else {
				last = next
			}
		}
		due = false
		pause := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		again := make(<-chan time.Time)
		if last.Status == "" { // it could not be written
			again = time.After(10 * time.Second)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
		case <-again:
			due = true
		case <-beat.C:
			due = true
		}
	}
}

func (n *nodeCondition) write(ctx context.Context, c corev1.NodeCondition) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{c}}})
	if err != nil {
		return err
	}
	if _, err := n.client.CoreV1().Nodes().Patch(ctx, n.node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("write the node's condition %s: %w", conditionType, err)
	}
	return nil
}
