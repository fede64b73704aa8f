package csi

import (
	"context"
	"encoding/json"
	"fmt"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// watchSizes queues claims that ask for more than they have.
func (c *Claims) watchSizes() error {
	see := func(object any) {
		if claim, ok := object.(*corev1.PersistentVolumeClaim); ok && wantsMore(claim) {
			c.resizes.Add(claim.Namespace + "/" + claim.Name)
		}
	}
	_, err := c.claims.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, object any) { see(object) }})
	if err != nil {
		return fmt.Errorf("watch claims: %w", err)
	}
	return nil
}

func wantsMore(claim *corev1.PersistentVolumeClaim) bool {
	asked, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	return claim.Status.Phase == corev1.ClaimBound && claim.Spec.VolumeName != "" && asked.Cmp(has) > 0
}

// resize grows volumes until the queue is shut down.
func (c *Claims) resize(ctx context.Context) {
	for {
		key, end := c.resizes.Get()
		if end {
			return
		}
		if err := c.grow(ctx, key); err != nil {
			c.report(fmt.Errorf("grow the volume of claim %s: %w", key, err))
			c.complain(key, err)
			c.resizes.AddRateLimited(key)
		} else {
			c.resizes.Forget(key)
		}
		c.resizes.Done(key)
	}
}

// complain tells the claim's owner why it does not grow.
func (c *Claims) complain(key string, err error) {
	if object, ok, _ := c.claims.GetStore().GetByKey(key); ok {
		c.events.Event(object.(*corev1.PersistentVolumeClaim), corev1.EventTypeWarning, "VolumeResizeFailed", status.Convert(err).Message())
	}
}

// grow makes a claim's volume as large as is asked, and says so: of the volume first, then of the claim. Each step is repeated after
// a kill, as the claim still wants more.
func (c *Claims) grow(ctx context.Context, key string) error {
	object, ok, err := c.claims.GetStore().GetByKey(key)
	if err != nil || !ok {
		return err
	}
	claim := object.(*corev1.PersistentVolumeClaim)
	object, ok, err = c.volumes.GetStore().GetByKey(claim.Spec.VolumeName)
	if err != nil || !ok {
		return err
	}
	volume := object.(*corev1.PersistentVolume)
	ours := volume.Spec.CSI != nil && volume.Spec.CSI.Driver == DriverName && onNode(volume) == c.driver.config.NodeName
	if !ours || !wantsMore(claim) {
		return nil
	}
	asked := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	response, err := c.driver.ControllerExpandVolume(ctx, &spec.ControllerExpandVolumeRequest{
		VolumeId: volume.Spec.CSI.VolumeHandle, CapacityRange: &spec.CapacityRange{RequiredBytes: asked.Value()}})
	if err != nil {
		return err
	}
	size := resource.NewQuantity(response.GetCapacityBytes(), resource.BinarySI)
	if has := volume.Spec.Capacity[corev1.ResourceStorage]; has.Cmp(*size) < 0 {
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"capacity": corev1.ResourceList{corev1.ResourceStorage: *size}}})
		if err != nil {
			return err
		}
		if _, err := c.client.CoreV1().PersistentVolumes().Patch(ctx, volume.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"capacity": corev1.ResourceList{corev1.ResourceStorage: *size}}})
	if err != nil {
		return err
	}
	_, err = c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
