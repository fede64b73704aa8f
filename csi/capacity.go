package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/kerf-gpu/kerf/internal/node"
)

// nodeLabel is by which a node finds its own CSIStorageCapacity objects.
const nodeLabel = "storage.kerf.dev/node"

// capacityEvery is how old what is published gets: others write to the disk, too.
const capacityEvery = time.Minute

// publishCapacity keeps one CSIStorageCapacity for each of our classes until the context ends. The objects are the node's, and go with it.
func (c *Claims) publishCapacity(ctx context.Context) {
	wake := make(chan struct{}, 1)
	tell := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	_, err := c.classes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() }})
	if err != nil {
		c.report(fmt.Errorf("watch storage classes: %w", err))
	}
	every := time.NewTicker(capacityEvery)
	defer every.Stop()
	for {
		if err := c.syncCapacity(ctx); err != nil && ctx.Err() == nil {
			c.report(fmt.Errorf("publish what pools have: %w", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-c.driver.Changed():
		case <-every.C:
		}
	}
}

// capacityName is the name of the object that says what a class has on a node.
func capacityName(class, nodeName string) string {
	sum := sha256.Sum256([]byte(class + "/" + nodeName))
	return "kerf-" + hex.EncodeToString(sum[:10])
}

// wanted is what is to be published of a class.
func (c *Claims) wanted(ctx context.Context, class string, parameters map[string]string, owner metav1.OwnerReference) *storagev1.CSIStorageCapacity {
	a, err := parseParameters(parameters, false)
	var all, one node.Bytes
	if err == nil {
		all, one, err = c.driver.free(ctx, a.pool)
	}
	if err != nil { // no pod is to wait for this node
		all, one = 0, 0
	}
	return &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{Name: capacityName(class, c.driver.config.NodeName), Namespace: c.namespace,
			Labels: map[string]string{nodeLabel: c.driver.config.NodeName}, OwnerReferences: []metav1.OwnerReference{owner}},
		NodeTopology:     &metav1.LabelSelector{MatchLabels: map[string]string{TopologyKey: c.driver.config.NodeName}},
		StorageClassName: class, Capacity: resource.NewQuantity(int64(all), resource.BinarySI), MaximumVolumeSize: resource.NewQuantity(int64(one), resource.BinarySI),
	}
}

func (c *Claims) syncCapacity(ctx context.Context) error {
	me, err := c.client.CoreV1().Nodes().Get(ctx, c.driver.config.NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	owner := metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: me.Name, UID: me.UID}
	api := c.client.StorageV1().CSIStorageCapacities(c.namespace)
	list, err := api.List(ctx, metav1.ListOptions{LabelSelector: nodeLabel + "=" + c.driver.config.NodeName})
	if err != nil {
		return err
	}
	have := make(map[string]storagev1.CSIStorageCapacity)
	for _, object := range list.Items {
		have[object.Name] = object
	}
	classes, parameters := c.classesOfOurs()
	for _, class := range classes {
		want := c.wanted(ctx, class, parameters[class], owner)
		before, there := have[want.Name]
		delete(have, want.Name)
		switch {
		case !there:
			_, err = api.Create(ctx, want, metav1.CreateOptions{})
		case !equality.Semantic.DeepEqual(before.Capacity, want.Capacity) || !equality.Semantic.DeepEqual(before.MaximumVolumeSize, want.MaximumVolumeSize):
			want.ResourceVersion = before.ResourceVersion
			_, err = api.Update(ctx, want, metav1.UpdateOptions{})
		}
		if err != nil {
			return err
		}
	}
	for name := range have { // of classes that are gone
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}
