package evict

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// toldWhys are the waits that a pod's owner can do something about; the others end by themselves, or concern everybody.
var toldWhys = map[Why]bool{WhyFixed: true, WhyGang: true, WhyPDB: true}

// tellWaits says at the pods of a gang, once, what it waits for.
func (c *Controller) tellWaits(ctx context.Context, decisions []Decision) {
	told := make(map[string]Why)
	for _, d := range decisions {
		if d.Verb != Wait || !toldWhys[d.Why] || len(d.Pods) == 0 {
			continue
		}
		told[d.Gang] = d.Why
		if c.told[d.Gang] != d.Why && d.Again.IsZero() { // a refusal was told when it came
			c.tell(ctx, podReference(d.Pods[0]), corev1.EventTypeWarning, "NotMovedYet", d.Reason)
		}
	}
	c.told = told
}

func (c *Controller) tellBreaker(ctx context.Context, h History) {
	b := h.Breaker
	c.config.Log.Error("evictions: the breaker has opened; nothing is moved until it is reset", "cause", b.Cause, "nodes", len(b.Nodes), "moved", len(b.Undo))
	c.tell(ctx, c.bookReference(), corev1.EventTypeWarning, "BreakerOpen",
		fmt.Sprintf("%s came to %d nodes at once (%s); nothing is moved until somebody resets the breaker; %d pods were moved for it, see the key %s",
			b.Cause, len(b.Nodes), strings.Join(b.Nodes[:min(len(b.Nodes), 10)], " "), len(b.Undo), keyUndo))
}

func (c *Controller) tellReset(ctx context.Context, word string) {
	c.config.Log.Warn("evictions: the breaker was reset", "word", word)
	c.tell(ctx, c.bookReference(), corev1.EventTypeNormal, "BreakerReset", "reset: "+word)
}

func podReference(p Pod) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}
}

func (c *Controller) bookReference() corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: c.config.Namespace, Name: BookName, UID: c.book.object.UID}
}

// tell writes an Event. That it cannot is logged: an Event is for people, and holds nothing up.
func (c *Controller) tell(ctx context.Context, about corev1.ObjectReference, kind, reason, message string) {
	now := metav1.NewTime(c.config.Now())
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "kerf-evictions-", Namespace: about.Namespace},
		InvolvedObject: about, Reason: reason, Message: short(message), Type: kind, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: "kerf-controller"}, ReportingController: "kerf.dev/kerf-controller", ReportingInstance: c.config.Identity,
	}
	if _, err := c.config.Client.CoreV1().Events(about.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil {
		c.config.Log.Warn("evictions: write an Event", "about", about.Namespace+"/"+about.Name, "reason", reason, "err", err)
	}
}
