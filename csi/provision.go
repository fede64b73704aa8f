package csi

import (
	"context"
	"maps"
	"slices"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// The annotations of a claim, of Kubernetes' own.
const (
	selectedNode = "volume.kubernetes.io/selected-node"
	fsTypeParam  = contextPrefix + "fstype"
)

// Claims makes volumes for the claims that the scheduler gave to this node, grows and deletes them, and publishes what is free: what external
// sidecars would do, in process and for this node alone.
type Claims struct {
	driver    *Driver
	client    kubernetes.Interface
	namespace string // of CSIStorageCapacity objects
	report    func(error)

	factory informers.SharedInformerFactory
	claims  cache.SharedIndexInformer
	volumes cache.SharedIndexInformer
	classes cache.SharedIndexInformer
	resizes workqueue.TypedRateLimitingInterface[string]
	events  record.EventRecorder
}

// retries are short at first: a pod waits for its volume.
func retries() workqueue.TypedRateLimiter[string] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[string](500*time.Millisecond, time.Minute)
}

// NewClaims prepares it; nothing is sent yet.
func NewClaims(d *Driver, client kubernetes.Interface, namespace string, report func(error)) *Claims {
	factory := informers.NewSharedInformerFactory(client, 15*time.Minute)
	return &Claims{
		driver: d, client: client, namespace: namespace, report: report, factory: factory,
		claims:  factory.Core().V1().PersistentVolumeClaims().Informer(),
		volumes: factory.Core().V1().PersistentVolumes().Informer(),
		classes: factory.Storage().V1().StorageClasses().Informer(),
		resizes: workqueue.NewTypedRateLimitingQueue(retries()),
	}
}

// Run works until the context ends.
func (c *Claims) Run(ctx context.Context) error {
	provisioner := controller.NewProvisionController(ctx, c.client, DriverName, provisioner{c},
		controller.LeaderElection(false), // each node has claims of its own
		controller.AddFinalizer(true),
		controller.RateLimiter(retries()),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0), // for ever
		controller.ClaimsInformer(c.claims), controller.VolumesInformer(c.volumes), controller.ClassesInformer(c.classes),
		controller.MetricsPort(0))
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	c.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: DriverName, Host: c.driver.config.NodeName})
	if err := c.watchSizes(); err != nil {
		return err
	}
	c.factory.Start(ctx.Done())
	defer c.factory.Shutdown()
	defer c.resizes.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), c.claims.HasSynced, c.volumes.HasSynced, c.classes.HasSynced) {
		return nil // the end
	}
	go c.resize(ctx)
	go c.publishCapacity(ctx)
	provisioner.Run(ctx)
	return nil
}

// provisioner is what the library asks.
type provisioner struct{ *Claims }

// ShouldProvision implements controller.Qualifier.
func (p provisioner) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	return claim.Annotations[selectedNode] == p.driver.config.NodeName
}

// ShouldDelete implements controller.DeletionGuard.
func (p provisioner) ShouldDelete(_ context.Context, volume *corev1.PersistentVolume) bool {
	return volume.Spec.CSI != nil && volume.Spec.CSI.Driver == DriverName && onNode(volume) == p.driver.config.NodeName
}

// SupportsBlock implements controller.BlockProvisioner.
func (provisioner) SupportsBlock(context.Context) bool { return true }

// onNode is the node that a volume of ours is on.
func onNode(volume *corev1.PersistentVolume) string {
	if volume.Spec.NodeAffinity == nil || volume.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range volume.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == TopologyKey && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}

// Provision implements controller.Provisioner.
func (p provisioner) Provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	request, err := requestOf(o)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if request.VolumeContentSource, err = p.contentSource(o.PVC); err != nil {
		return nil, stateAfter(err), err
	}
	response, err := p.driver.CreateVolume(ctx, request)
	if err != nil {
		return nil, stateAfter(err), err
	}
	return volumeOf(o, response.GetVolume().GetVolumeId(), response.GetVolume().GetCapacityBytes(), p.driver.config.NodeName), controller.ProvisioningFinished, nil
}

// stateAfter says whether another node may do better.
func stateAfter(err error) controller.ProvisioningState {
	switch status.Code(err) {
	case codes.ResourceExhausted, codes.OutOfRange, codes.NotFound:
		return controller.ProvisioningReschedule
	}
	return controller.ProvisioningFinished
}

// requestOf is a claim in CSI's words.
func requestOf(o controller.ProvisionOptions) (*spec.CreateVolumeRequest, error) {
	mode, err := accessMode(o.PVC.Spec.AccessModes)
	if err != nil {
		return nil, err
	}
	c := &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode}}
	if isBlock(o.PVC) {
		c.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{
			FsType: o.StorageClass.Parameters[fsTypeParam], MountFlags: o.StorageClass.MountOptions}}
	}
	parameters := maps.Clone(o.StorageClass.Parameters)
	delete(parameters, fsTypeParam)
	asked := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	return &spec.CreateVolumeRequest{Name: o.PVName, CapacityRange: &spec.CapacityRange{RequiredBytes: asked.Value()},
		VolumeCapabilities: []*spec.VolumeCapability{c}, Parameters: parameters}, nil
}

func isBlock(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

func accessMode(asked []corev1.PersistentVolumeAccessMode) (spec.VolumeCapability_AccessMode_Mode, error) {
	switch {
	case len(asked) == 1 && asked[0] == corev1.ReadWriteOnce:
		return spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, nil
	case len(asked) == 1 && asked[0] == corev1.ReadWriteOncePod:
		return spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, nil
	}
	return 0, invalid("access modes %v: a scratch volume is on one node; use ReadWriteOnce or ReadWriteOncePod", asked)
}

// contentSource is what a claim is to be a copy of. Its claim is in the same namespace, and its volume must be on this node.
func (c *Claims) contentSource(claim *corev1.PersistentVolumeClaim) (*spec.VolumeContentSource, error) {
	from := claim.Spec.DataSource
	if from == nil {
		if ref := claim.Spec.DataSourceRef; ref != nil {
			return nil, invalid("dataSourceRef %s/%s: only claims can be copied, by dataSource", ref.Kind, ref.Name)
		}
		return nil, nil //nolint:nilnil // made from nothing
	}
	if from.Kind != "PersistentVolumeClaim" || from.APIGroup != nil && *from.APIGroup != "" {
		return nil, invalid("dataSource %s/%s: only claims can be copied here; for snapshots set storage.provisioner to external and install the external sidecars", from.Kind, from.Name)
	}
	object, ok, err := c.claims.GetStore().GetByKey(claim.Namespace + "/" + from.Name)
	if err != nil || !ok {
		return nil, status.Errorf(codes.FailedPrecondition, "dataSource: there is no claim %s/%s", claim.Namespace, from.Name)
	}
	name := object.(*corev1.PersistentVolumeClaim).Spec.VolumeName
	object, ok, err = c.volumes.GetStore().GetByKey(name)
	if err != nil || !ok || object.(*corev1.PersistentVolume).Spec.CSI == nil || object.(*corev1.PersistentVolume).Spec.CSI.Driver != DriverName {
		return nil, status.Errorf(codes.FailedPrecondition, "dataSource: claim %s/%s is not bound to a volume of %s", claim.Namespace, from.Name, DriverName)
	}
	volume := object.(*corev1.PersistentVolume)
	if on := onNode(volume); on != c.driver.config.NodeName {
		return nil, status.Errorf(codes.NotFound, "dataSource: the volume of claim %s/%s is on node %s, and a copy must be there too; this is node %s",
			claim.Namespace, from.Name, on, c.driver.config.NodeName)
	}
	return &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: volume.Spec.CSI.VolumeHandle}}}, nil
}

// volumeOf is the PersistentVolume of a volume.
func volumeOf(o controller.ProvisionOptions, id string, size int64, nodeName string) *corev1.PersistentVolume {
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:  o.PVC.Spec.AccessModes,
			MountOptions: o.StorageClass.MountOptions,
			VolumeMode:   o.PVC.Spec.VolumeMode,
			Capacity:     corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(size, resource.BinarySI)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: DriverName, VolumeHandle: id, FSType: o.StorageClass.Parameters[fsTypeParam]}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{nodeName}}}}}}},
		},
	}
	if o.StorageClass.ReclaimPolicy != nil {
		volume.Spec.PersistentVolumeReclaimPolicy = *o.StorageClass.ReclaimPolicy
	}
	return volume
}

// Delete implements controller.Provisioner.
func (p provisioner) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	_, err := p.driver.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: volume.Spec.CSI.VolumeHandle})
	if status.Code(err) == codes.FailedPrecondition {
		return &controller.VolumeInUseError{Reason: status.Convert(err).Message()}
	}
	return err
}

// classesOfOurs are the storage classes that name this driver, by name, and their parameters.
func (c *Claims) classesOfOurs() (names []string, parameters map[string]map[string]string) {
	parameters = make(map[string]map[string]string)
	for _, object := range c.classes.GetStore().List() {
		if class, ok := object.(*storagev1.StorageClass); ok && class.Provisioner == DriverName {
			p := maps.Clone(class.Parameters)
			delete(p, fsTypeParam)
			parameters[class.Name] = p
		}
	}
	return slices.Sorted(maps.Keys(parameters)), parameters
}
