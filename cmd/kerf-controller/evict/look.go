package evict

import (
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/monitor"
)

// What people write on pods.
const (
	annotationGang  = "kerf.dev/gang"  // the gang's name in its namespace; empty: alone, whatever else says that it has one
	annotationEvict = "kerf.dev/evict" // never; allowed: also where no controller would make it again
)

// causeDomain is that of the taints by which kerfd says what a device has.
const causeDomain = "kerf.dev/"

// look makes a Cluster of the API's objects, of which it reads what trimmed leaves.
func look(slicesOf []*resourceapi.ResourceSlice, claims []*resourceapi.ResourceClaim, pods []*corev1.Pod, budgets []*policyv1.PodDisruptionBudget) Cluster {
	c := Cluster{Allowed: make(map[string]int)}
	c.Devices, c.Nodes = devices(slicesOf)
	of := make(map[string][]DeviceID) // by the pod's UID
	for _, claim := range claims {
		if claim.Status.Allocation == nil {
			continue
		}
		for _, user := range claim.Status.ReservedFor {
			for _, r := range claim.Status.Allocation.Devices.Results {
				if user.Resource == "pods" && r.Driver == dra.DriverName && (r.AdminAccess == nil || !*r.AdminAccess) {
					of[string(user.UID)] = append(of[string(user.UID)], DeviceID{r.Driver, r.Pool, r.Device})
				}
			}
		}
	}
	guards := make(map[string][]guard)
	for _, b := range budgets {
		if selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector); err == nil { // the API server has checked it
			guards[b.Namespace] = append(guards[b.Namespace], guard{b.Namespace + "/" + b.Name, selector})
			c.Allowed[b.Namespace+"/"+b.Name] = int(b.Status.DisruptionsAllowed)
		}
	}
	for _, p := range pods {
		gang := gangOf(p)
		if p.Spec.NodeName == "" || over(p) || gang == "" && len(of[string(p.UID)]) == 0 {
			continue
		}
		pod := Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, Gang: gang, Devices: of[string(p.UID)],
			Ending: p.DeletionTimestamp != nil, Fixed: fixed(p)}
		for _, g := range guards[p.Namespace] {
			if g.selector.Matches(labels.Set(p.Labels)) {
				pod.PDBs = append(pod.PDBs, g.name)
			}
		}
		c.Pods = append(c.Pods, pod)
	}
	return c
}

type guard struct {
	name     string
	selector labels.Selector
}

func over(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// devices are those that ask to be drained, and how many nodes publish any.
func devices(all []*resourceapi.ResourceSlice) (drained []Device, nodes int) {
	newest, seen := make(map[string]int64), make(map[string]bool)
	for _, s := range all {
		if s.Spec.Driver == dra.DriverName {
			newest[s.Spec.Pool.Name] = max(newest[s.Spec.Pool.Name], s.Spec.Pool.Generation)
		}
	}
	for _, s := range all {
		if s.Spec.Driver != dra.DriverName || s.Spec.Pool.Generation < newest[s.Spec.Pool.Name] {
			continue // another's, or one that goes
		}
		node := s.Spec.Pool.Name
		if s.Spec.NodeName != nil {
			node = *s.Spec.NodeName
		}
		seen[node] = true
		for _, d := range s.Spec.Devices {
			if device := (Device{DeviceID: DeviceID{s.Spec.Driver, s.Spec.Pool.Name, d.Name}, Node: node}); device.read(d.Taints) {
				drained = append(drained, device)
			}
		}
	}
	return drained, len(seen)
}

// read takes what the taints say; ok is false where none asks for anything.
func (d *Device) read(taints []resourceapi.DeviceTaint) (ok bool) {
	for _, t := range taints {
		switch {
		case t.Key == monitor.TaintDrain:
			ok, d.Level = true, t.Value
			if t.TimeAdded != nil {
				d.Since = t.TimeAdded.Time
			}
		case strings.HasPrefix(t.Key, causeDomain) && t.Effect == resourceapi.DeviceTaintEffectNoSchedule:
			d.Causes = append(d.Causes, strings.TrimSuffix(t.Key+"="+t.Value, "="))
		}
	}
	if len(d.Causes) == 0 {
		d.Causes = []string{monitor.TaintDrain + "=" + d.Level}
	}
	slices.Sort(d.Causes)
	return ok
}

// gangLabels name a pod's gang. The first that is there counts: a Job of a JobSet belongs to the set.
var gangLabels = []struct{ kind, label, within string }{
	{"jobset", "jobset.sigs.k8s.io/jobset-name", ""},
	{"leaderworkerset", "leaderworkerset.sigs.k8s.io/name", "leaderworkerset.sigs.k8s.io/group-index"},
	{"podgroup", "kueue.x-k8s.io/pod-group-name", ""},
	{"podgroup", "scheduling.x-k8s.io/pod-group", ""},
	{"podgroup", "volcano.sh/job-name", ""},
	{"training job", "training.kubeflow.org/job-name", ""},
}

// gangOf is with whom a pod moves; empty: alone.
func gangOf(p *corev1.Pod) string {
	if name, ok := p.Annotations[annotationGang]; ok {
		if name == "" {
			return ""
		}
		return "gang " + p.Namespace + "/" + name
	}
	if g := p.Spec.SchedulingGroup; g != nil && g.PodGroupName != nil {
		return "podgroup " + p.Namespace + "/" + *g.PodGroupName
	}
	for _, l := range gangLabels {
		if name := p.Labels[l.label]; name != "" {
			return strings.TrimSuffix(l.kind+" "+p.Namespace+"/"+name+"/"+p.Labels[l.within], "/")
		}
	}
	if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind == "Job" && strings.HasPrefix(owner.APIVersion, batchv1.GroupName+"/") {
		return "job " + p.Namespace + "/" + owner.Name
	}
	return ""
}

// fixed says why a pod is never moved; empty: it may be.
func fixed(p *corev1.Pod) string {
	owner, word := metav1.GetControllerOf(p), p.Annotations[annotationEvict]
	switch {
	case word == "never":
		return "its annotation " + annotationEvict + " says so"
	case p.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return "kubelet made it from a file of its node"
	case owner != nil && owner.Kind == "DaemonSet":
		return "its DaemonSet would make it on the same node again"
	case owner == nil && word != "allowed":
		return "no controller would make it again; move it by hand, or allow it by the annotation " + annotationEvict + ": allowed"
	}
	return ""
}

// trimmed leaves of an object what look reads: a cluster has many, and users may write large ones.
func trimmed(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return &corev1.Pod{ObjectMeta: trimmedMeta(o.ObjectMeta), Spec: corev1.PodSpec{NodeName: o.Spec.NodeName, SchedulingGroup: o.Spec.SchedulingGroup},
			Status: corev1.PodStatus{Phase: o.Status.Phase}}, nil
	case *resourceapi.ResourceClaim:
		c := &resourceapi.ResourceClaim{ObjectMeta: trimmedMeta(o.ObjectMeta)}
		c.Status.ReservedFor = o.Status.ReservedFor
		if a := o.Status.Allocation; a != nil {
			c.Status.Allocation = &resourceapi.AllocationResult{}
			for _, r := range a.Devices.Results {
				c.Status.Allocation.Devices.Results = append(c.Status.Allocation.Devices.Results,
					resourceapi.DeviceRequestAllocationResult{Driver: r.Driver, Pool: r.Pool, Device: r.Device, AdminAccess: r.AdminAccess})
			}
		}
		return c, nil
	case *resourceapi.ResourceSlice:
		s := &resourceapi.ResourceSlice{ObjectMeta: trimmedMeta(o.ObjectMeta),
			Spec: resourceapi.ResourceSliceSpec{Driver: o.Spec.Driver, Pool: o.Spec.Pool, NodeName: o.Spec.NodeName}}
		for _, d := range o.Spec.Devices {
			s.Spec.Devices = append(s.Spec.Devices, resourceapi.Device{Name: d.Name, Taints: d.Taints})
		}
		return s, nil
	case *policyv1.PodDisruptionBudget:
		return &policyv1.PodDisruptionBudget{ObjectMeta: trimmedMeta(o.ObjectMeta), Spec: policyv1.PodDisruptionBudgetSpec{Selector: o.Spec.Selector},
			Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: o.Status.DisruptionsAllowed}}, nil
	}
	return object, nil
}

func trimmedMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	t := metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, DeletionTimestamp: m.DeletionTimestamp, Labels: m.Labels}
	for _, key := range []string{annotationGang, annotationEvict, corev1.MirrorPodAnnotationKey} {
		if value, ok := m.Annotations[key]; ok {
			t.Annotations = orEmpty(t.Annotations)
			t.Annotations[key] = value
		}
	}
	for _, o := range m.OwnerReferences {
		if o.Controller != nil && *o.Controller {
			t.OwnerReferences = []metav1.OwnerReference{o}
		}
	}
	return t
}

// ruleName is the name of the rule about a device. A pool is a node's name and may have dots, a device's name has none: the last one parts them.
func ruleName(d DeviceID) string {
	return "kerf-drain-" + strings.Map(nameable, d.Pool+"."+d.Name)
}

func nameable(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
		return r
	}
	return '-'
}
