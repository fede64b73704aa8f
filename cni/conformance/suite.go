package conformance

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/kerf-gpu/kerf/cni/call"
	"github.com/kerf-gpu/kerf/cni/link"
)

// Case is one thing that the specification wants.
type Case struct {
	Name string
	Says string // the specification, in short
	run  func(t *testing.T, n *node)
}

// Cases are all that a plugin is held against.
var Cases = []Case{
	{"version", "VERSION lists the supported versions, 1.1.0 among them", version},
	{"add", "ADD makes the interface and tells of it: name, address, MTU, namespace", add},
	{"add/older", "the result is of the configuration's version", addOlder},
	{"add/name taken", "an interface of that name: an error, and it stays as it is", addTaken},
	{"add/chained", "what plugins before have made stays in the result", addChained},
	{"add/ipam", "addresses are asked of the IPAM plugin and set", addIPAM},
	{"add/ipam fails", "after a failure nothing is left", addIPAMFails},
	{"errors/netns", "CNI_NETNS that leads to nothing: an error with a code", func(t *testing.T, n *node) { refused(t, n, 0, call.Call{Netns: "/nonexistent"}, nil) }},
	{"errors/no netns", "CNI_NETNS missing: code 4", func(t *testing.T, n *node) { refused(t, n, 4, call.Call{Netns: "-"}, nil) }},
	{"errors/no container", "CNI_CONTAINERID missing: code 4", func(t *testing.T, n *node) { refused(t, n, 4, call.Call{Container: "-"}, nil) }},
	{"errors/no name", "CNI_IFNAME missing: code 4", func(t *testing.T, n *node) { refused(t, n, 4, call.Call{IfName: "-"}, nil) }},
	{"errors/version", "a version that is not supported: code 1", func(t *testing.T, n *node) { refused(t, n, 1, call.Call{}, map[string]any{"cniVersion": "9.9.9"}) }},
	{"errors/decode", "a configuration that is no JSON: code 6", func(t *testing.T, n *node) { refused(t, n, 6, call.Call{Stdin: []byte("{")}, nil) }},
	{"check", "CHECK succeeds on what is as it was made", check},
	{"check/prevResult", "CHECK needs prevResult", checkNeeds},
	{"check/gone", "CHECK fails when the interface is gone", func(t *testing.T, n *node) { checkAfter(t, n, link.Change{Name: "other"}) }},
	{"check/address", "CHECK fails when its hardware address is another", func(t *testing.T, n *node) { checkAfter(t, n, link.Change{MAC: "02:00:00:00:00:99"}) }},
	{"check/ipam", "CHECK asks the IPAM plugin", checkIPAM},
	{"del", "DEL takes the interface away, and brings back what was moved", del},
	{"del/twice", "DEL of what is gone is a success", delTwice},
	{"del/no netns", "DEL without CNI_NETNS frees what it can", func(t *testing.T, n *node) { delWithout(t, n, false) }},
	{"del/netns gone", "DEL after the namespace's end is a success", func(t *testing.T, n *node) { delWithout(t, n, true) }},
	{"del/unknown", "DEL of a container that never was is a success", delUnknown},
	{"del/ipam", "DEL gives the address back, even without a namespace", delIPAM},
	{"gc", "GC removes attachments that are not listed", func(t *testing.T, n *node) { gc(t, n, false) }},
	{"gc/valid", "GC keeps those that are", func(t *testing.T, n *node) { gc(t, n, true) }},
	{"gc/ipam", "GC is passed on to the IPAM plugin", gcIPAM},
	{"status", "STATUS succeeds where ADD would", status},
	{"status/not ready", "STATUS says 50 or 51 where ADD would fail", statusNotReady},
	{"status/ipam", "STATUS asks the IPAM plugin, and fails with it", statusIPAM},
}

// Hold runs every case against a plugin, each on a node of its own.
func Hold(t *testing.T, p Plugin) {
	for _, c := range Cases {
		t.Run(c.Name, func(t *testing.T) { c.run(t, newNode(t, p)) })
	}
}

func withTimeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// must fails the test unless a call succeeded.
func must(t *testing.T, a call.Answer) call.Answer {
	t.Helper()
	if a.Code != 0 {
		t.Fatalf("failed: %s", a)
	}
	return a
}

// result reads what ADD printed, of version 1.
func result(t *testing.T, a call.Answer) *current.Result {
	t.Helper()
	r := new(current.Result)
	if err := json.Unmarshal(must(t, a).Stdout, r); err != nil {
		t.Fatalf("no result: %v: %s", err, a)
	}
	return r
}

func version(t *testing.T, n *node) {
	var got struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}
	a := must(t, n.call(call.Call{Command: "VERSION", Stdin: []byte(`{"cniVersion":"1.1.0"}`)}))
	if err := json.Unmarshal(a.Stdout, &got); err != nil || got.CNIVersion == "" || !slices.Contains(got.SupportedVersions, "1.1.0") {
		t.Errorf("%s (%v)", a, err)
	}
}

func add(t *testing.T, n *node) {
	n.device("dev0")
	pod := n.pod()
	r := result(t, n.run("ADD", "c1", pod, n.conf("dev0", nil)))
	l, there := n.look(pod, "net1")
	i := slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == "net1" && i.Sandbox == pod })
	switch {
	case r.CNIVersion != "1.1.0":
		t.Errorf("result of version %q", r.CNIVersion)
	case !there:
		t.Error("there is no net1 in the pod")
	case i < 0:
		t.Errorf("no interface net1 in %s among %+v", pod, r.Interfaces)
	case r.Interfaces[i].Mac != l.MAC:
		t.Errorf("told address %s, it is %s", r.Interfaces[i].Mac, l.MAC)
	case r.Interfaces[i].Mtu != 0 && r.Interfaces[i].Mtu != l.MTU: // it may be left out
		t.Errorf("told MTU %d, it is %d", r.Interfaces[i].Mtu, l.MTU)
	case !l.Up:
		t.Error("net1 is down")
	}
}

func addOlder(t *testing.T, n *node) {
	for i, v := range []string{"0.4.0", "1.0.0"} {
		device := []string{"dev0", "dev1"}[i]
		n.device(device)
		if r := result(t, n.run("ADD", "c"+v, n.pod(), n.conf(device, map[string]any{"cniVersion": v}))); r.CNIVersion != v {
			t.Errorf("configuration of version %s, result of %s", v, r.CNIVersion)
		}
	}
}

func addTaken(t *testing.T, n *node) {
	n.device("dev0")
	n.device("dev1")
	pod := n.pod()
	must(t, n.run("ADD", "c1", pod, n.conf("dev0", nil)))
	before, _ := n.look(pod, "net1")
	if a := n.run("ADD", "c1", pod, n.conf("dev1", nil)); a.Code == 0 {
		t.Errorf("a second net1 was made: %s", a)
	}
	if after, there := n.look(pod, "net1"); !there || after != before {
		t.Errorf("net1 was %+v, is %+v", before, after)
	}
	if _, there := n.look(n.host, "dev1"); !there {
		t.Error("dev1 is not on the host after a failed ADD")
	}
}

func addChained(t *testing.T, n *node) {
	n.device("dev0")
	previous := map[string]any{"cniVersion": "1.1.0", "interfaces": []any{map[string]any{"name": "eth0", "mac": "02:00:00:00:00:42", "sandbox": "/x"}}, "ips": []any{map[string]any{"address": "10.5.5.5/24", "interface": 0}}}
	r := result(t, n.run("ADD", "c1", n.pod(), n.conf("dev0", map[string]any{"prevResult": previous})))
	if !slices.ContainsFunc(r.Interfaces, func(i *current.Interface) bool { return i.Name == "eth0" && i.Mac == "02:00:00:00:00:42" }) {
		t.Errorf("eth0 of prevResult is not in %+v", r.Interfaces)
	}
	if !slices.ContainsFunc(r.IPs, func(i *current.IPConfig) bool {
		return i.Address.String() == "10.5.5.5/24" && i.Interface != nil && r.Interfaces[*i.Interface].Name == "eth0"
	}) {
		t.Errorf("the address of prevResult is not in %+v", r.IPs)
	}
}

func addIPAM(t *testing.T, n *node) {
	n.device("dev0")
	pod := n.pod()
	r := result(t, n.run("ADD", "c1", pod, n.conf("dev0", ipam())))
	if len(r.IPs) != 1 || r.IPs[0].Address.String() != "10.77.0.2/24" || r.IPs[0].Interface == nil || r.Interfaces[*r.IPs[0].Interface].Name != "net1" {
		t.Fatalf("addresses %+v, want 10.77.0.2/24 on net1", r.IPs)
	}
	space, err := link.Host{}.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = space.Close() }()
	l, _ := n.look(pod, "net1")
	ip, err := space.Configured(l.Index)
	route := link.Route{To: "10.78.0.0/16", Via: "10.77.0.1"}
	if err != nil || !slices.Contains(ip.Addresses, "10.77.0.2/24") || !slices.ContainsFunc(ip.Routes, func(r link.Route) bool { return r.To == route.To && r.Via == route.Via }) {
		t.Errorf("in the pod: %+v, %v", ip, err)
	}
}

func addIPAMFails(t *testing.T, n *node) {
	n.device("dev0")
	pod := n.pod()
	before, _ := n.look(n.host, "dev0")
	if err := os.WriteFile(filepath.Join(n.dir, "ipam.fails"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a := n.run("ADD", "c1", pod, n.conf("dev0", ipam())); a.Code == 0 || a.Err().Code == 0 {
		t.Errorf("%s, want an error with a code", a)
	}
	if l, there := n.look(pod, "net1"); there {
		t.Errorf("left in the pod: %+v", l)
	}
	if after, there := n.look(n.host, "dev0"); !there || after.Name != before.Name || after.MAC != before.MAC || after.Alias != before.Alias {
		t.Errorf("on the host: %+v, was %+v", after, before)
	}
}

// refused is an ADD that has to fail, with that code unless it is 0, and to leave the device. "-" in the call leaves the variable out.
func refused(t *testing.T, n *node, code uint, c call.Call, more map[string]any) {
	n.device("dev0")
	full := call.Call{Command: "ADD", Container: "c1", IfName: "net1", Netns: n.pod(), Stdin: n.conf("dev0", more)}
	for _, field := range []struct{ to, from *string }{{&full.Container, &c.Container}, {&full.IfName, &c.IfName}, {&full.Netns, &c.Netns}} {
		switch *field.from {
		case "":
		case "-":
			*field.to = ""
		default:
			*field.to = *field.from
		}
	}
	if c.Stdin != nil {
		full.Stdin = c.Stdin
	}
	a := n.call(full)
	switch {
	case a.Code == 0:
		t.Errorf("succeeded: %s", a)
	case a.Err().Code == 0 || a.Err().Msg == "" || code != 0 && a.Err().Code != code:
		t.Errorf("%s, want an error object with code %d", a, code)
	}
	if _, there := n.look(n.host, "dev0"); !there {
		t.Error("the device is not on the host any more")
	}
}

// added is a pod with net1, and the configuration for CHECK.
func added(t *testing.T, n *node, more map[string]any) (pod string, conf []byte) {
	n.device("dev0")
	pod = n.pod()
	var previous map[string]any
	if err := json.Unmarshal(must(t, n.run("ADD", "c1", pod, n.conf("dev0", more))).Stdout, &previous); err != nil {
		t.Fatal(err)
	}
	with := map[string]any{"prevResult": previous}
	for key, value := range more {
		with[key] = value
	}
	return pod, n.conf("dev0", with)
}

func check(t *testing.T, n *node) {
	pod, conf := added(t, n, nil)
	must(t, n.run("CHECK", "c1", pod, conf))
}

func checkNeeds(t *testing.T, n *node) {
	pod, _ := added(t, n, nil)
	if a := n.run("CHECK", "c1", pod, n.conf("dev0", nil)); a.Code == 0 {
		t.Errorf("succeeded: %s", a)
	}
}

func checkAfter(t *testing.T, n *node, c link.Change) {
	pod, conf := added(t, n, nil)
	n.change(pod, "net1", link.Change{Up: new(false)}) // a name changes only while the link is down, on older kernels
	c.Up = new(true)
	n.change(pod, "net1", c)
	if a := n.run("CHECK", "c1", pod, conf); a.Code == 0 {
		t.Errorf("succeeded: %s", a)
	}
}

func checkIPAM(t *testing.T, n *node) {
	pod, conf := added(t, n, ipam())
	must(t, n.run("CHECK", "c1", pod, conf))
	if got := n.asked(); got != "ADD CHECK" {
		t.Errorf("the IPAM plugin got %s, want ADD CHECK", got)
	}
}

// back looks whether all is as before.
func back(t *testing.T, n *node, pod string) {
	t.Helper()
	if pod != "" {
		if l, there := n.look(pod, "net1"); there {
			t.Errorf("still in the pod: %+v", l)
		}
	}
	if _, there := n.look(n.host, "dev0"); n.plugin.Moves && !there {
		t.Error("dev0 is not back on the host")
	}
}

func del(t *testing.T, n *node) {
	pod, conf := added(t, n, nil)
	must(t, n.run("DEL", "c1", pod, conf))
	back(t, n, pod)
}

func delTwice(t *testing.T, n *node) {
	pod, conf := added(t, n, nil)
	for range 2 {
		must(t, n.run("DEL", "c1", pod, conf))
	}
	back(t, n, pod)
}

func delWithout(t *testing.T, n *node, gone bool) {
	pod, conf := added(t, n, nil)
	path := ""
	if gone {
		path = pod
		if err := call.EndNetns(pod); err != nil {
			t.Fatal(err)
		}
	}
	must(t, n.run("DEL", "c1", path, conf))
	if !gone && n.plugin.Moves {
		back(t, n, "")
	}
}

func delUnknown(t *testing.T, n *node) {
	n.device("dev0")
	must(t, n.run("DEL", "never", n.pod(), n.conf("dev0", nil)))
	back(t, n, "")
}

func delIPAM(t *testing.T, n *node) {
	_, conf := added(t, n, ipam())
	must(t, n.run("DEL", "c1", "", conf))
	if got := n.asked(); got != "ADD DEL" {
		t.Errorf("the IPAM plugin got %s, want ADD DEL", got)
	}
}

func gc(t *testing.T, n *node, valid bool) {
	pod, _ := added(t, n, nil)
	list := []any{}
	if valid {
		list = append(list, map[string]any{"containerID": "c1", "ifname": "net1"})
	}
	must(t, n.call(call.Call{Command: "GC", Stdin: n.conf("dev0", map[string]any{"cni.dev/valid-attachments": list, "cni.dev/attachments": list})}))
	if _, there := n.look(pod, "net1"); there != valid {
		t.Errorf("net1 in the pod: %v, listed as valid: %v", there, valid)
	}
	if !valid {
		back(t, n, pod)
	}
}

func gcIPAM(t *testing.T, n *node) {
	conf := ipam()
	conf["cni.dev/valid-attachments"] = []any{}
	n.device("dev0")
	must(t, n.call(call.Call{Command: "GC", Stdin: n.conf("dev0", conf)}))
	if got := n.asked(); got != "GC" {
		t.Errorf("the IPAM plugin got %q, want GC", got)
	}
}

func status(t *testing.T, n *node) {
	n.device("dev0")
	must(t, n.call(call.Call{Command: "STATUS", Stdin: n.conf("dev0", nil)}))
}

func statusNotReady(t *testing.T, n *node) {
	if n.plugin.Absent == "" {
		t.Skip("no configuration is known under which this plugin is not ready")
	}
	n.plugin.Conf = n.plugin.Absent
	if a := n.call(call.Call{Command: "STATUS", Stdin: n.conf("dev0", nil)}); a.Code == 0 || a.Err().Code != 50 && a.Err().Code != 51 {
		t.Errorf("%s, want code 50 or 51", a)
	}
}

func statusIPAM(t *testing.T, n *node) {
	n.device("dev0")
	must(t, n.call(call.Call{Command: "STATUS", Stdin: n.conf("dev0", ipam())}))
	if err := os.WriteFile(filepath.Join(n.dir, "ipam.fails"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a := n.call(call.Call{Command: "STATUS", Stdin: n.conf("dev0", ipam())}); a.Code == 0 || n.asked() != "STATUS STATUS" {
		t.Errorf("%s; the IPAM plugin got %s", a, n.asked())
	}
}
