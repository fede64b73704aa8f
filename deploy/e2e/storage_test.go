package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// scratchDriver makes volumes on the node's disk.
const scratchDriver = "scratch.csi.kerf.dev"

// least is the size of most volumes here: xfs, which a pool of loop devices prefers, wants 300Mi.
const least = "320Mi"

var (
	volumeClaims = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumes      = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
)

// claimVolume asks for a volume of a class.
func (s *scene) claimVolume(name, class, size string, change ...func(*corev1.PersistentVolumeClaim)) {
	s.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse(size)}}}}
	for _, c := range change {
		c(claim)
	}
	if _, err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Create(s.Context(), claim, metav1.CreateOptions{}); err != nil {
		s.Fatalf("create claim %s: %v", name, err)
	}
}

// mounts gives the first container a volume at /NAME.
func mounts(name string, source corev1.VolumeSource) podOption {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name})
	}
}

func ofClaim(name string) corev1.VolumeSource {
	return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
}

func inline(attributes map[string]string) corev1.VolumeSource {
	ext4 := "ext4" // the others have a least size that is more than is wanted here
	return corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: scratchDriver, FSType: &ext4, VolumeAttributes: attributes}}
}

func stays() []string { return []string{"/bin/sh", "-c", "sleep 100000"} }

// bound waits until a claim has a volume.
func (s *scene) bound(name string) *corev1.PersistentVolumeClaim {
	s.Helper()
	return await(s, volumeClaims, s.ns, name, soon, "its volume", func(c *corev1.PersistentVolumeClaim) string {
		if c == nil || c.Status.Phase != corev1.ClaimBound {
			return fmt.Sprintf("claim %+v", c)
		}
		return ""
	})
}

// released deletes a claim and waits until its volume is gone too.
func (s *scene) released(name string) {
	s.Helper()
	claim, err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Get(s.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	if err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Delete(s.Context(), name, metav1.DeleteOptions{}); err != nil {
		s.Fatal(err)
	}
	await(s, volumes, "", claim.Spec.VolumeName, soon, "its end", func(v *corev1.PersistentVolume) string {
		if v == nil {
			return ""
		}
		return fmt.Sprintf("it is still there: %+v", v.Status)
	})
}

// noVolumes wants the node to have none: no record, nothing in the pool, no mount.
func (s *scene) noVolumes() {
	s.Helper()
	var left []string
	if !poll(soon, func() bool { left = s.node.volumes(); return len(left) == 0 }) {
		s.Errorf("left of volumes on the node: %s", strings.Join(left, ", "))
	}
}

func (n node) volumes() (left []string) {
	for _, dir := range []string{"/var/lib/kerf/csi/volumes", "/run/kerf/csi/targets", "/var/lib/kerf/scratch/volumes", "/var/lib/kerf/scratch/gone", "/var/lib/kerf/scratch/new",
		"/var/lib/kerf/scratch/mnt"} {
		for _, name := range names(n.path(dir)) {
			if name != ".lock" {
				left = append(left, filepath.Join(dir, name))
			}
		}
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.kerfd()))
	if err != nil {
		return append(left, err.Error())
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, "kubernetes.io~csi") || strings.Contains(line, "kubernetes.io/csi/volumeDevices") || strings.Contains(line, "/scratch/mnt/") {
			left = append(left, "mount "+strings.Fields(line)[4])
		}
	}
	return left
}

// testScratchClaim: a claim gets a volume where its pod goes, keeps its data from pod to pod, grows while it is used, and leaves nothing.
func testScratchClaim(s *scene) {
	began := time.Now()
	s.claimVolume("data", "scratch", least)
	s.create(newPod("first", stays(), mounts("data", ofClaim("data"))))
	s.bound("data")
	bound := time.Since(began)
	s.running("first")
	if out, err := s.inPod("first", "echo kept >/data/file && cat /data/file"); err != nil || out != "kept" {
		s.Errorf("write: %q, %v", out, err)
	}
	patch := []byte(`{"spec":{"resources":{"requests":{"storage":"400Mi"}}}}`)
	began = time.Now()
	if _, err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Patch(s.Context(), "data", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		s.Fatalf("grow the claim: %v", err)
	}
	wanted := apiresource.MustParse("400Mi")
	await(s, volumeClaims, s.ns, "data", soon, "400Mi", func(c *corev1.PersistentVolumeClaim) string {
		if has := c.Status.Capacity[corev1.ResourceStorage]; has.Cmp(wanted) != 0 {
			return "it has " + has.String()
		}
		return ""
	})
	if time.Since(began) > 3*time.Second {
		s.Logf("that took long; kerfd's log: %s", s.kerfdLog())
	}
	s.measured("claim to bound %.2f s, grown in %.2f s", bound.Seconds(), time.Since(began).Seconds())
	s.delete("first")
	s.gone("first")
	s.create(newPod("second", []string{"/bin/sh", "-c", "cat /data/file"}, mounts("data", ofClaim("data"))))
	s.ended("second")
	if out := strings.TrimSpace(s.log("second", "")); out != "kept" {
		s.Errorf("the second pod read %q, want what the first wrote", out)
	}
	s.delete("second")
	s.gone("second")
	s.released("data")
	s.noVolumes()
}

// testScratchFull: a volume is held to its size, and its neighbour does not feel that.
func testScratchFull(s *scene) {
	for _, name := range []string{"full", "beside"} {
		s.claimVolume(name, "scratch", least)
		s.create(newPod(name, stays(), mounts("data", ofClaim(name))))
	}
	for _, name := range []string{"full", "beside"} {
		s.running(name)
	}
	out, err := s.inPod("full", "dd if=/dev/zero of=/data/big bs=1M count=400 2>&1; stat -c %s /data/big")
	if err != nil || !strings.Contains(out, "No space left on device") {
		s.Errorf("400 MiB into "+least+": %q, %v; want no space left", out, err)
	}
	lines := strings.Fields(out)
	s.measured(least+" took %s bytes", lines[len(lines)-1])
	if out, err := s.inPod("beside", "dd if=/dev/zero of=/data/some bs=1M count=32 2>&1 && sync /data/some"); err != nil {
		s.Errorf("32 MiB into its neighbour: %q, %v", out, err)
	}
	for _, name := range []string{"full", "beside"} {
		s.delete(name)
		s.gone(name)
		s.released(name)
	}
	s.noVolumes()
}

// testScratchBlock: a pod has a device of its own.
func testScratchBlock(s *scene) {
	block := corev1.PersistentVolumeBlock
	s.claimVolume("device", "scratch", "32Mi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block })
	s.create(newPod("device", stays(), func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "device", VolumeSource: ofClaim("device")})
		p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "device", DevicePath: "/dev/scratch"}}
	}))
	s.running("device")
	out, err := s.inPod("device", "printf written | dd of=/dev/scratch conv=fsync 2>/dev/null; dd if=/dev/scratch bs=7 count=1 2>/dev/null; echo; dd if=/dev/zero of=/dev/scratch bs=1M 2>&1 | grep -c 'No space left'; dd if=/dev/scratch of=/dev/null bs=1M 2>&1 | grep '^32'")
	if err != nil || !strings.HasPrefix(out, "written\n1\n32+0 records") {
		s.Errorf("the device: %q, %v; want what was written, and 32 MiB", out, err)
	}
	s.delete("device")
	s.gone("device")
	s.released("device")
	s.noVolumes()
}

// testScratchInline: a volume of a pod's own, which is its group's, and goes with it.
func testScratchInline(s *scene) {
	group := int64(4711)
	own := func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group} }
	s.create(newPod("inline", stays(), mounts("cache", inline(map[string]string{"size": "32Mi"})), own))
	s.running("inline")
	out, err := s.inPod("inline", "echo x >/cache/file && stat -c %g /cache /cache/file && grep ' /cache ' /proc/self/mountinfo")
	if err != nil || !strings.HasPrefix(out, "4711\n4711") || !strings.Contains(out, "nosuid") || !strings.Contains(out, "nodev") {
		s.Errorf("in the pod: %q, %v; want group 4711, nosuid and nodev", out, err)
	}
	s.delete("inline")
	s.gone("inline")
	s.noVolumes()
}

// testBadScratch: what a person gets wrong is said in the pod's events.
func testBadScratch(s *scene) {
	s.create(newPod("wrong", stays(), mounts("cache", inline(map[string]string{"sise": "32Mi"}))))
	s.measured("%s", s.event("wrong", "sise", "not known", "pool, guaranteed, size"))
	s.delete("wrong")
	s.gone("wrong")
	s.claimVolume("many", "scratch", least, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	s.create(newPod("many", stays(), mounts("data", ofClaim("many"))))
	s.event("many", "ReadWriteMany", "ReadWriteOnce")
	s.delete("many")
	s.gone("many")
	if err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Delete(s.Context(), "many", metav1.DeleteOptions{}); err != nil {
		s.Error(err)
	}
	s.noVolumes()
}

// testScratchCrash kills kerfd while volumes are made, mounted and deleted.
func testScratchCrash(s *scene) {
	const rounds = 4
	for i := range rounds {
		name := fmt.Sprintf("p%d", i)
		s.claimVolume(name, "scratch", least)
		s.create(newPod(name, []string{"/bin/sh", "-c", "echo x >/data/file && cat /data/file"}, mounts("data", ofClaim(name)), mounts("cache", inline(nil))))
		pause(s.Context(), time.Duration(i)*400*time.Millisecond)
		s.crashKerfd()
		await(s, pods, s.ns, name, late, "its end", func(p *corev1.Pod) string {
			if p == nil || p.Status.Phase != corev1.PodSucceeded {
				return state(p)
			}
			return ""
		})
		s.delete(name)
		if i%2 == 1 {
			s.crashKerfd()
		}
		s.gone(name)
		s.released(name)
	}
	s.noVolumes()
	s.measured("%d kills -9 of kerfd", rounds+rounds/2)
}

// testScratchExample runs deploy/examples/scratch.yaml, and removes what it made.
func testScratchExample(s *scene) {
	made := s.apply(s.example("scratch.yaml"))
	s.ended(made[0])
	if out := s.log(made[0], ""); !strings.HasPrefix(out, "kept\n") {
		s.Errorf("the pod said %q", out)
	}
	s.delete(made[0])
	s.gone(made[0])
	s.released("scratch")
	s.noVolumes()
}
