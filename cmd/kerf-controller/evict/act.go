package evict

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-gpu/kerf/monitor"
)

// ruleLabel is on the DeviceTaintRules that are made here.
const ruleLabel, ruleLabelled = "kerf.dev/generated", "drain"

// act carries decisions out, and notes in the history what became of each.
func (c *Controller) act(ctx context.Context, h *History, decisions []Decision) (acted bool) {
	ctx, cancel := context.WithTimeout(ctx, actWithin)
	defer cancel()
	for _, d := range decisions {
		switch d.Verb {
		case Evict:
			acted = true
			for _, p := range d.Pods {
				if ctx.Err() != nil {
					return acted // what is on record and was not asked is seen in the next round
				}
				c.evict(ctx, h, d, p)
			}
		case Force:
			acted = true
			c.force(ctx, h, d)
		}
	}
	return acted
}

// evict asks for one pod.
func (c *Controller) evict(ctx context.Context, h *History, d Decision, p Pod) {
	uid := types.UID(p.UID)
	request := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}} // never its successor
	dry := c.config.Policy.Mode == ModeDryRun
	if dry {
		request.DeleteOptions.DryRun = []string{metav1.DryRunAll}
	}
	err := c.config.Client.CoreV1().Pods(p.Namespace).EvictV1(ctx, request)
	log := c.config.Log.With("pod", p.String(), "gang", d.Gang, "node", p.Node, "reason", d.Reason)
	switch {
	case err == nil && dry:
		h.done(p.UID)
		c.metrics.pods.WithLabelValues(outcomeWould).Inc()
		log.Info("evictions: dry run, the pod would be moved")
		c.tell(ctx, podReference(p), corev1.EventTypeNormal, "WouldBeMoved", "dry run, nothing was done: the pod would be evicted: "+d.Reason)
	case err == nil:
		h.done(p.UID)
		c.metrics.pods.WithLabelValues(outcomeEvicted).Inc()
		if since := d.since(); !since.IsZero() {
			c.metrics.took.Observe(c.config.Now().Sub(since).Seconds())
		}
		log.Warn("evictions: pod evicted")
		c.tell(ctx, podReference(p), corev1.EventTypeWarning, "MovedOffDevice", "evicted: "+d.Reason)
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it went by itself, or is another by now
		h.done(p.UID)
		c.metrics.pods.WithLabelValues(outcomeGone).Inc()
	case apierrors.IsTooManyRequests(err):
		h.refuse(p.UID, c.config.Now().Add(c.config.Policy.RetryAfter))
		c.metrics.pods.WithLabelValues(outcomeRefused).Inc()
		c.tell(ctx, podReference(p), corev1.EventTypeWarning, "NotMovedYet", fmt.Sprintf("%s; the API server refuses the eviction: %s; it is asked again in %s", d.Reason, err, c.config.Policy.RetryAfter))
	default: // it may have gone: the next round sees
		h.refuse(p.UID, c.config.Now().Add(c.config.Policy.RetryAfter))
		c.metrics.pods.WithLabelValues(outcomeFailed).Inc()
		log.Error("evictions: the API server did not take it; it is asked again", "err", err)
	}
}

// force gives a device the effect NoExecute: Kubernetes then deletes its pods, and asks no PodDisruptionBudget.
func (c *Controller) force(ctx context.Context, h *History, d Decision) {
	var errs []error
	for _, device := range d.Devices {
		rule := &resourceapi.DeviceTaintRule{
			ObjectMeta: metav1.ObjectMeta{Name: ruleName(device.DeviceID), Labels: map[string]string{ruleLabel: ruleLabelled}},
			Spec: resourceapi.DeviceTaintRuleSpec{
				DeviceSelector: &resourceapi.DeviceTaintSelector{Driver: &device.Driver, Pool: &device.Pool, Device: &device.Name},
				Taint:          resourceapi.DeviceTaint{Key: monitor.TaintDrain, Value: device.Level, Effect: resourceapi.DeviceTaintEffectNoExecute},
			},
		}
		options := metav1.CreateOptions{}
		if c.config.Policy.Mode == ModeDryRun {
			options.DryRun = []string{metav1.DryRunAll}
		}
		if _, err := c.config.Client.ResourceV1().DeviceTaintRules().Create(ctx, rule, options); err != nil && !apierrors.IsAlreadyExists(err) {
			errs = append(errs, err)
		}
	}
	c.known = false // look at the rules again
	err := errors.Join(errs...)
	for _, p := range d.Pods {
		if err != nil {
			h.refuse(p.UID, c.config.Now().Add(c.config.Policy.RetryAfter))
			continue
		}
		h.done(p.UID)
		c.metrics.pods.WithLabelValues(outcomeForced).Inc()
		c.tell(ctx, podReference(p), corev1.EventTypeWarning, "ForcedOffDevice",
			fmt.Sprintf("refused by PodDisruptionBudgets for more than %s, and policy says then: the device gets the effect NoExecute: %s", c.config.Policy.ForceAfter, d.Reason))
	}
	if err != nil {
		c.config.Log.Error("evictions: make the DeviceTaintRule; pods stay", "gang", d.Gang, "err", err)
	}
}

// rules removes those whose device no longer asks for anything.
func (c *Controller) rules(ctx context.Context, cluster Cluster) error {
	if c.config.Policy.ForceAfter == 0 || c.known {
		return nil
	}
	api := c.config.Client.ResourceV1().DeviceTaintRules()
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: ruleLabel + "=" + ruleLabelled})
	if err != nil {
		return fmt.Errorf("list DeviceTaintRules: %w", err)
	}
	wanted := make(map[string]bool)
	for _, d := range cluster.Devices {
		wanted[ruleName(d.DeviceID)] = true
	}
	c.known = true
	for _, rule := range list.Items {
		if wanted[rule.Name] {
			c.known = false // until it is gone
			continue
		}
		if err := api.Delete(ctx, rule.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove DeviceTaintRule %s: %w", rule.Name, err)
		}
	}
	return nil
}
