package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
)

// unusedFor is how long no pod with a template was admitted before it is looked at. It must be well above useEvery: a pod that is
// admitted now may find a last use that old, and will be there soon.
const unusedFor = time.Hour

// pageSize bounds one answer of the API server's. Any user may write objects of 1.5 MiB that are looked at here, and this program's memory is
// that of some dozens of them.
const pageSize = 20

var templatesResource = resourceapi.SchemeGroupVersion.WithResource("resourceclaimtemplates")

// collect removes the templates that were not used for an hour and that no pod names, and says how many.
func collect(ctx context.Context, client kubernetes.Interface, meta metadata.Interface, now time.Time) (removed int, err error) {
	var errs []error
	used := map[string]map[string]bool{} // namespace → templates that its pods name
	err = eachTemplate(ctx, meta, func(t metav1.ObjectMeta) {
		if now.Sub(lastUse(t)) < unusedFor || t.DeletionTimestamp != nil {
			return
		}
		names, known := used[t.Namespace]
		if !known {
			var err error
			if names, err = templatesUsed(ctx, client, t.Namespace); err != nil {
				errs = append(errs, err)
				return
			}
			used[t.Namespace] = names
		}
		if names[t.Name] {
			return
		}
		// If a pod was admitted since, the last use has changed, and so has the resourceVersion.
		err := meta.Resource(templatesResource).Namespace(t.Namespace).Delete(ctx, t.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &t.UID, ResourceVersion: &t.ResourceVersion},
		})
		switch {
		case err == nil:
			removed++
		case !apierrors.IsConflict(err) && !apierrors.IsNotFound(err):
			errs = append(errs, fmt.Errorf("remove template %s/%s: %w", t.Namespace, t.Name, err))
		}
	})
	return removed, errors.Join(append(errs, err)...)
}

// eachTemplate looks at metadata only: what a template asks for does not matter here.
func eachTemplate(ctx context.Context, meta metadata.Interface, f func(metav1.ObjectMeta)) error {
	options := metav1.ListOptions{LabelSelector: labelGenerated + "=" + labelGeneratedAs, Limit: pageSize}
	for {
		page, err := meta.Resource(templatesResource).List(ctx, options)
		if err != nil {
			return fmt.Errorf("list templates: %w", err)
		}
		for _, t := range page.Items {
			f(t.ObjectMeta)
		}
		if options.Continue = page.Continue; options.Continue == "" {
			return nil
		}
	}
}

// templatesUsed are those that pods of a namespace name. Pods that have ended count: a Job's next pod asks for the same, and its
// template is remade at admission if it must be.
func templatesUsed(ctx context.Context, client kubernetes.Interface, namespace string) (map[string]bool, error) {
	used := map[string]bool{}
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := client.CoreV1().Pods(namespace).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("list pods of %s: %w", namespace, err)
		}
		for _, pod := range page.Items {
			noteTemplates(used, pod)
		}
		if options.Continue = page.Continue; options.Continue == "" {
			return used, nil
		}
	}
}

func noteTemplates(used map[string]bool, pod corev1.Pod) {
	for _, claim := range pod.Spec.ResourceClaims {
		if claim.ResourceClaimTemplateName != nil {
			used[*claim.ResourceClaimTemplateName] = true
		}
	}
}
