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
)

// unusedFor is how long no pod with a template was admitted before it is looked at. It must be well above useEvery: a pod that is
// admitted now may find a last use that old, and will be there soon.
const unusedFor = time.Hour

// pageSize bounds one answer of the API server's.
const pageSize = 500

// collect removes the templates that were not used for an hour and that no pod names, and says how many.
func collect(ctx context.Context, client kubernetes.Interface, now time.Time) (removed int, err error) {
	var errs []error
	used := map[string]map[string]bool{} // namespace → templates that its pods name
	err = eachTemplate(ctx, client, func(t resourceapi.ResourceClaimTemplate) {
		if now.Sub(lastUse(&t)) < unusedFor || t.DeletionTimestamp != nil {
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
		err := client.ResourceV1().ResourceClaimTemplates(t.Namespace).Delete(ctx, t.Name, metav1.DeleteOptions{
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

func eachTemplate(ctx context.Context, client kubernetes.Interface, f func(resourceapi.ResourceClaimTemplate)) error {
	options := metav1.ListOptions{LabelSelector: labelGenerated + "=" + labelGeneratedAs, Limit: pageSize}
	for {
		page, err := client.ResourceV1().ResourceClaimTemplates(metav1.NamespaceAll).List(ctx, options)
		if err != nil {
			return fmt.Errorf("list templates: %w", err)
		}
		for _, t := range page.Items {
			f(t)
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
