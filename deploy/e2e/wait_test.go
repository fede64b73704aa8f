package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

func (l *lab) listWatch(gvr schema.GroupVersionResource, ns, selector string) cache.ListerWatcher {
	of := l.objects.Resource(gvr).Namespace(ns)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return of.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return of.Watch(ctx, o)
		},
	}
}

// await watches one object until holds returns "", and fails the test with its last answer where it never does. The object is nil
// while there is none of that name.
func await[T any](s *scene, gvr schema.GroupVersionResource, ns, name string, limit time.Duration, what string, holds func(*T) string) *T {
	s.Helper()
	object, why := try(s, gvr, ns, name, limit, holds)
	if why != "" {
		s.Fatalf("%s %s/%s: waited %s for %s: %s", gvr.Resource, ns, name, limit, what, why)
	}
	return object
}

// try is await for those who can go on without.
func try[T any](s *scene, gvr schema.GroupVersionResource, ns, name string, limit time.Duration, holds func(*T) string) (object *T, why string) {
	ctx, cancel := context.WithTimeout(s.Context(), limit)
	defer cancel()
	why = "nothing was seen of it"
	see := func(u *unstructured.Unstructured) (bool, error) {
		object = nil
		if u != nil {
			object = new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, object); err != nil {
				return false, err
			}
		}
		why = holds(object)
		return why == "", nil
	}
	_, err := watchtools.UntilWithSync(ctx, s.listWatch(gvr, ns, "metadata.name="+name), &unstructured.Unstructured{},
		func(store cache.Store) (bool, error) {
			if len(store.List()) > 0 {
				return false, nil // its event comes
			}
			return see(nil)
		},
		func(event watch.Event) (bool, error) {
			u, ok := event.Object.(*unstructured.Unstructured)
			if !ok || event.Type == watch.Deleted {
				u = nil
			}
			return see(u)
		})
	if err != nil && why == "" {
		why = err.Error()
	}
	return object, why
}

// awaitNone waits until the namespace has none of a kind.
func (s *scene) awaitNone(gvr schema.GroupVersionResource) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	there := map[string]bool{}
	_, err := watchtools.UntilWithSync(ctx, s.listWatch(gvr, s.ns, ""), &unstructured.Unstructured{},
		func(store cache.Store) (bool, error) { return len(store.List()) == 0, nil },
		func(event watch.Event) (bool, error) {
			if o, err := meta.Accessor(event.Object); err == nil {
				there[o.GetName()] = true
				if event.Type == watch.Deleted {
					delete(there, o.GetName())
				}
			}
			return len(there) == 0, nil
		})
	if err != nil {
		s.Errorf("%s of %s are still there after %s: %v", gvr.Resource, s.ns, late, there)
	}
}

// eventually waits until a container's tenant has said a line of that kind. Logs are followed, not asked for again.
func (s *scene) eventually(pod, container, kind string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), soon)
	defer cancel()
	stream, err := s.client.CoreV1().Pods(s.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
	if err != nil {
		s.Fatalf("follow the log of %s: %v", pod, err)
	}
	defer stream.Close()
	for lines := bufio.NewScanner(stream); lines.Scan(); {
		var one said
		if json.Unmarshal(lines.Bytes(), &one) == nil && one.Event == kind {
			return
		}
	}
	s.Fatalf("pod %s, container %s: no line of kind %q within %s", pod, container, kind, soon)
}
