package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nicDriver is that of NICs. On a simulated node they are veth pairs, and their links on the node are called ks-….
const (
	nicDriver = "nic.kerf.dev"
	standIns  = 11 // of the profile h200x8
)

// nicWith asks for any NIC, with a NicConfig of these fields.
func nicWith(fields string) want {
	w := want{class: "nic", driver: nicDriver}
	if fields != "" {
		w.config = `{"apiVersion":"nic.kerf.dev/v1alpha1","kind":"NicConfig",` + fields + `}`
	}
	return w
}

// nodeLinks are the stand-ins that are in the node's own network: in no pod.
func nodeLinks() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		if strings.HasPrefix(i.Name, "ks-") {
			names = append(names, i.Name)
		}
	}
	return names
}

// removeStandIns takes away what a kerfd that was ended with its cluster could not: its veth pairs and their bridge.
func removeStandIns() {
	all, _ := net.Interfaces()
	for _, i := range all {
		if strings.HasPrefix(i.Name, "kw-") || i.Name == "kerf-wire" {
			_ = exec.Command("ip", "link", "delete", i.Name).Run() // gone meanwhile is as good
		}
	}
}

// allBack waits until no pod has a NIC.
func (s *scene) allBack() {
	s.Helper()
	if !poll(soon, func() bool { return len(nodeLinks()) == standIns }) {
		s.Errorf("%d of %d NICs are back on the node after %s: %v", len(nodeLinks()), standIns, soon, nodeLinks())
	}
}

// inPod runs a shell command in a pod.
func (s *scene) inPod(pod, command string) (string, error) {
	return s.kubectl(s.Context(), nil, "exec", "-n", s.ns, pod, "--", "/bin/sh", "-c", command)
}

// rootPorts are the attribute kerf.dev/pcieRootPort of every device, by driver and name.
func (s *scene) rootPorts() map[string]string {
	s.Helper()
	list, err := s.client.ResourceV1().ResourceSlices().List(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	ports := make(map[string]string)
	for _, slice := range list.Items {
		for _, d := range slice.Spec.Devices {
			if port := d.Attributes["kerf.dev/pcieRootPort"].StringValue; port != nil {
				ports[slice.Spec.Driver+"/"+d.Name] = *port
			}
		}
	}
	return ports
}

// testNICPairs: what kerf claim gpu-nic writes gives each GPU the NIC beside it, and the interfaces are in the pod.
func testNICPairs(s *scene) {
	text, err := exec.CommandContext(s.Context(), filepath.Join(s.repo, "build/bin/kerf"), "claim", "gpu-nic", "--pairs", "2", "--template", "--name", "pairs", "--memory", "8Gi").CombinedOutput()
	if err != nil {
		s.Fatalf("kerf claim gpu-nic: %v: %s", err, text)
	}
	if out, err := s.kubectl(s.Context(), text, "apply", "-n", s.ns, "-f", "-"); err != nil {
		s.Fatalf("kubectl apply: %v: %s", err, out)
	}
	s.create(newPod("pairs", lookAndStay(), fromTemplate("pairs")))
	s.running("pairs")
	ports, groups := s.rootPorts(), map[string][]string{}
	for _, r := range s.allocation("pairs") {
		port := ports[r.Driver+"/"+r.Device]
		groups[port] = append(groups[port], r.Device)
	}
	if len(groups) != 2 || groups[""] != nil {
		s.Errorf("devices by root port: %v, want two ports with a GPU and a NIC each", groups)
	}
	for port, devices := range groups {
		if len(devices) != 2 || strings.HasPrefix(devices[0], "gpu-") == strings.HasPrefix(devices[1], "gpu-") {
			s.Errorf("below %s are %v, want a GPU and a NIC", port, devices)
		}
	}
	devices, err := s.inPod("pairs", "cat /proc/net/dev")
	if err != nil || !strings.Contains(devices, "nic-0:") || !strings.Contains(devices, "nic-1:") {
		s.Errorf("interfaces of the pod: %s (%v), want nic-0 and nic-1", devices, err)
	}
	if n := len(nodeLinks()); n != standIns-2 {
		s.Errorf("%d NICs are on the node, want %d", n, standIns-2)
	}
	s.networkData("pairs", 2)
	s.measured("pairs by root port: %v", groups)
	s.delete("pairs")
	s.gone("pairs")
	s.allBack()
}

// networkData looks for what the claim's status says of its NICs.
func (s *scene) networkData(pod string, want int) {
	s.Helper()
	found := 0
	ok := poll(soon, func() bool {
		found = 0
		list, err := s.client.ResourceV1().ResourceClaims(s.ns).List(s.Context(), metav1.ListOptions{})
		if err != nil {
			return false
		}
		for _, c := range list.Items {
			for _, d := range c.Status.Devices {
				if d.Driver == nicDriver && d.NetworkData != nil && d.NetworkData.InterfaceName != "" && d.NetworkData.HardwareAddress != "" {
					found++
				}
			}
		}
		return found == want
	})
	if !ok {
		s.Errorf("pod %s: status.devices tells of %d NICs, want %d", pod, found, want)
	}
}

// talker is a pod with a NIC of this address.
func (s *scene) talker(name, address string) {
	s.Helper()
	if err := s.template(name, nicWith(fmt.Sprintf(`"interface":"net1","addresses":[%q],"mtu":1400`, address))); err != nil {
		s.Fatal(err)
	}
	s.create(newPod(name, []string{"/bin/sh", "-c", "sleep 100000"}, fromTemplate(name)))
}

// testNICsTalk: two pods reach each other by their NICs, with the addresses and the MTU of their claims.
func testNICsTalk(s *scene) {
	s.talker("left", "10.77.0.1/24")
	s.talker("right", "10.77.0.2/24")
	s.running("left")
	s.running("right")
	if out, err := s.inPod("left", "ping -c 1 -W 5 -I net1 10.77.0.2"); err != nil {
		s.Errorf("left does not reach right: %v: %s", err, out)
	}
	if out, err := s.inPod("right", "cat /sys/class/net/net1/mtu"); err != nil || strings.TrimSpace(out) != "1400" {
		s.Errorf("the MTU of right is %q (%v), want 1400", out, err)
	}
	s.delete("left")
	s.delete("right")
	s.gone("left")
	s.gone("right")
	s.allBack()
}

// badNICs are configurations with a mistake, and words of the event that tells it.
var badNICs = []struct {
	name, fields string
	words        []string
}{
	{"vlan", `"vlan":100`, []string{"vlan 100", "only a DeviceClass can say it"}},
	{"field", `"mtus":9000`, []string{"mtus", "no such field", "mtu"}},
	{"address", `"addresses":["10.0.0.300/24"]`, []string{"addresses", "10.0.0.300"}},
	{"rdma", `"rdma":"require"`, []string{"rdma: require", "has no RDMA device"}},
	{"taken", `"interface":"eth0"`, []string{"eth0", "has one of this name already"}},
}

// testBadNICs: each mistake is told in an event of the pod, and the pod does not run without its NIC.
func testBadNICs(s *scene) {
	for _, bad := range badNICs {
		if err := s.template(bad.name, nicWith(bad.fields)); err != nil {
			s.Fatal(err)
		}
		s.create(newPod(bad.name, []string{"/bin/sh", "-c", "sleep 100000"}, fromTemplate(bad.name)))
	}
	for _, bad := range badNICs {
		s.event(bad.name, bad.words...)
		s.delete(bad.name)
	}
	s.claim("one", nicWith(""))
	s.create(newPod("first", []string{"/bin/sh", "-c", "sleep 100000"}, fromClaim("one")))
	s.running("first")
	s.create(newPod("second", []string{"/bin/sh", "-c", "sleep 100000"}, fromClaim("one")))
	s.event("second", "another pod")
	for _, name := range []string{"first", "second"} {
		s.delete(name)
		s.gone(name)
	}
	s.allBack()
}

// testNICCrash: kerfd is killed while pods with NICs come and go; no NIC is lost, and none is in two places.
func testNICCrash(s *scene) {
	s.talker("steady", "10.77.0.1/24")
	s.running("steady")
	for round := range 4 {
		for i := range 3 {
			name := fmt.Sprintf("churn-%d-%d", round, i)
			s.talker(name, fmt.Sprintf("10.77.%d.%d/16", 1+round, 1+i))
		}
		time.Sleep(time.Duration(150*round) * time.Millisecond) // another moment of their making each time
		if err := s.node.kill(); err != nil {
			s.Fatal(err)
		}
		for i := range 3 {
			name := fmt.Sprintf("churn-%d-%d", round, i)
			s.runningAtLast(name)
			if out, err := s.inPod(name, "cat /sys/class/net/net1/mtu"); err != nil {
				s.Errorf("pod %s runs without its NIC: %v: %s", name, err, out)
			}
		}
		for i := range 3 {
			s.delete(fmt.Sprintf("churn-%d-%d", round, i))
		}
		if round == 2 {
			if err := s.node.kill(); err != nil {
				s.Fatal(err)
			}
		}
		for i := range 3 {
			s.gone(fmt.Sprintf("churn-%d-%d", round, i))
		}
		if out, err := s.inPod("steady", "cat /sys/class/net/net1/operstate"); err != nil {
			s.Errorf("the steady pod has lost its NIC: %v: %s", err, out)
		}
	}
	s.delete("steady")
	s.gone("steady")
	s.allBack()
}

// runningAtLast is running with the time that kubelet needs to try again what a kill interrupted.
func (s *scene) runningAtLast(name string) {
	s.Helper()
	await(s, pods, s.ns, name, 4*soon, "running", func(p *corev1.Pod) string {
		if p == nil || p.Status.Phase != corev1.PodRunning {
			return state(p)
		}
		return ""
	})
}
