package csi

import (
	"context"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/kerf-gpu/kerf/internal/node"
)

func claimOn(name, nodeName, size string) *corev1.PersistentVolumeClaim {
	class := "scratch"
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name),
			Annotations: map[string]string{selectedNode: nodeName, "volume.kubernetes.io/storage-provisioner": DriverName}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}},
	}
}

func className() *storagev1.StorageClass {
	wait, policy := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "scratch"}, Provisioner: DriverName, VolumeBindingMode: &wait, ReclaimPolicy: &policy}
}

// TestClaims: a claim of this node gets a volume, one of another none; what is free is published; a claim that asks for more gets it.
func TestClaims(t *testing.T) {
	dir := t.TempDir()
	d := openDriver(t, dir, Pool{Name: "fake", Kind: "fake", Backend: newFakePool(filepath.Join(dir, "pool"))})
	client := fake.NewClientset(className(), claimOn("theirs", "node-2", "64Mi"), claimOn("ours", "node-1", "64Mi"),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: "n1"}})
	created, err := client.CoreV1().PersistentVolumes().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	published, err := client.StorageV1().CSIStorageCapacities("kerf-system").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	run(t, NewClaims(d, client, "kerf-system", func(err error) { t.Error(err) }))
	volume := (<-created.ResultChan()).Object.(*corev1.PersistentVolume)
	if volume.Name != "pvc-uid-ours" || onNode(volume) != "node-1" || volume.Spec.CSI.Driver != DriverName || volume.Spec.Capacity.Storage().String() != "64Mi" {
		t.Errorf("volume %+v", volume)
	}
	if _, ok := d.books.get(volume.Spec.CSI.VolumeHandle); !ok {
		t.Errorf("the driver knows no volume %s", volume.Spec.CSI.VolumeHandle)
	}
	capacity := (<-published.ResultChan()).Object.(*storagev1.CSIStorageCapacity)
	if capacity.StorageClassName != "scratch" || capacity.NodeTopology.MatchLabels[TopologyKey] != "node-1" || capacity.OwnerReferences[0].UID != "n1" || capacity.Capacity.IsZero() {
		t.Errorf("capacity %+v", capacity)
	}

	claim := claimOn("ours", "node-1", "128Mi")
	claim.Spec.VolumeName, claim.Status.Phase = volume.Name, corev1.ClaimBound
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}
	changed, err := client.CoreV1().PersistentVolumeClaims("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().PersistentVolumeClaims("default").Update(t.Context(), claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for event := range changed.ResultChan() {
		if c := event.Object.(*corev1.PersistentVolumeClaim); event.Type == watch.Modified && c.Status.Capacity.Storage().String() == "128Mi" {
			break
		}
	}
	v, _ := d.books.get(volume.Spec.CSI.VolumeHandle)
	if v.Spec.Size != 128*node.MiB {
		t.Errorf("the volume has %s", v.Spec.Size)
	}
	now, err := client.CoreV1().PersistentVolumes().Get(t.Context(), volume.Name, metav1.GetOptions{})
	if err != nil || now.Spec.Capacity.Storage().String() != "128Mi" {
		t.Errorf("the volume's object says %v (%v)", now.Spec.Capacity, err)
	}
	if all := d.List(); len(all) != 1 {
		t.Errorf("volumes: %+v", all)
	}
}

func run(t *testing.T, c *Claims) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestRequest: what a claim may ask, and what is said where it may not.
func TestRequest(t *testing.T) {
	many := claimOn("x", "node-1", "1Gi")
	many.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	_, err := requestOf(controller.ProvisionOptions{StorageClass: className(), PVC: many, PVName: "x"})
	wantError(t, err, codes.InvalidArgument, "ReadWriteMany", "ReadWriteOncePod")

	block, class := corev1.PersistentVolumeBlock, className()
	class.Parameters = map[string]string{"pool": "fast", fsTypeParam: "xfs"}
	claim := claimOn("x", "node-1", "1Gi")
	claim.Spec.VolumeMode = &block
	r, err := requestOf(controller.ProvisionOptions{StorageClass: class, PVC: claim, PVName: "pv"})
	if err != nil || r.GetName() != "pv" || r.GetVolumeCapabilities()[0].GetBlock() == nil || len(r.GetParameters()) != 1 || r.GetParameters()["pool"] != "fast" {
		t.Errorf("%v %v", r, err)
	}
	claim.Spec.VolumeMode = nil
	if r, err = requestOf(controller.ProvisionOptions{StorageClass: class, PVC: claim, PVName: "pv"}); err != nil || r.GetVolumeCapabilities()[0].GetMount().GetFsType() != "xfs" {
		t.Errorf("%v %v", r, err)
	}
}
