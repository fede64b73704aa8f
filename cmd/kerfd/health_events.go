package main

import (
	"context"
	"fmt"
	"regexp"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"

	"github.com/kerf-gpu/kerf/monitor"
)

// healthEvents writes Events: about the node's devices at the node, about a tenant's own fault at its pod. It is nil on a machine that is
// no node. What cannot be written is dropped and said: an Event is for people, and kerfd's log has the same.
type healthEvents struct {
	node   string
	client clientset.Interface
	queue  chan *corev1.Event
	report func(error)
}

// eventQueue is more than a node's devices tell in one bad second.
const eventQueue = 64

func newHealthEvents(k *kubernetes) *healthEvents {
	if k == nil || k.client == nil {
		return nil
	}
	return &healthEvents{node: k.config.NodeName, client: k.client, queue: make(chan *corev1.Event, eventQueue), report: k.report("events")}
}

// tell queues what people of the cluster should see; it does not block.
func (h *healthEvents) tell(d monitor.Device, n monitor.Notice) {
	if h == nil {
		return
	}
	event := healthEvent(h.node, d, n, time.Now())
	if event == nil {
		return
	}
	select {
	case h.queue <- event:
	default:
		h.report(fmt.Errorf("an Event about %s was dropped: the API server does not keep up", d.ID))
	}
}

// reasons are the Events' words for machines; a kind that is not here makes none.
var reasons = map[monitor.NoticeKind]string{
	monitor.NoticeRaised: "DeviceFault", monitor.NoticeCleared: "DeviceFaultCleared", monitor.NoticeReleased: "DeviceReleased",
	monitor.NoticeTenant: "GPUFaultOfPod", monitor.NoticeOOM: "GPUProcessOOMKilled", monitor.NoticeCrash: "GPUProcessCrashed", monitor.NoticeUnknown: "UnknownXid",
}

var podTenant = regexp.MustCompile(`^pod ([^/]+)/(\S+) \(`)

// healthEvent is the Event for a notice; nil where it makes none.
func healthEvent(node string, d monitor.Device, n monitor.Notice, now time.Time) *corev1.Event {
	reason := reasons[n.Kind]
	pod := podTenant.FindStringSubmatch(n.Tenant)
	ofPod := n.Kind == monitor.NoticeTenant || n.Kind == monitor.NoticeOOM || n.Kind == monitor.NoticeCrash
	if reason == "" || ofPod && pod == nil {
		return nil
	}
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)} // kubelet gives its Events this UID, and kubectl describe looks for it
	namespace := metav1.NamespaceDefault                                                              // where Events of nodes are
	message := fmt.Sprintf("GPU %d (%s): %s", d.Index, d.ID, n.Text)
	if d.Index < 0 {
		message = fmt.Sprintf("%s: %s", d.ID, n.Text)
	}
	if ofPod {
		about = corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod[1], Name: pod[2]}
		namespace = pod[1]
		message = fmt.Sprintf("process %d: %s", n.PID, n.Text)
	}
	if n.Kind == monitor.NoticeTenant {
		message = fmt.Sprintf("Xid %d by process %d on GPU %d: %s; this is the program's own fault, and the card stays in service", n.Code, n.PID, d.Index, n.Text)
	}
	kind := corev1.EventTypeWarning
	if n.Kind == monitor.NoticeCleared || n.Kind == monitor.NoticeReleased {
		kind = corev1.EventTypeNormal
	}
	const most = 1024 // that the API server takes
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "kerf-health-", Namespace: namespace},
		InvolvedObject: about, Reason: reason, Message: message[:min(len(message), most)], Type: kind,
		Source: corev1.EventSource{Component: "kerfd", Host: node}, FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
		ReportingController: "kerf.dev/kerfd", ReportingInstance: node,
	}
}

// Run writes what is queued until the context ends.
func (h *healthEvents) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-h.queue:
			bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
			if _, err := h.client.CoreV1().Events(event.Namespace).Create(bounded, event, metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
				h.report(fmt.Errorf("write the Event %s: %w", event.Reason, err))
			}
			cancel()
		}
	}
}
