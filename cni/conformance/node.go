// Package conformance holds any CNI plugin against the specification, version 1.1, from outside: it runs the program with an
// environment and a standard input, as a runtime does, and looks at its answer and at the kernel. It knows nothing of how a plugin works.
// Each case has a network namespace that stands for a node's, so nothing of the machine's own network is touched. It needs root.
package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/call"
	"github.com/kerf-gpu/kerf/cni/link"
)

// Plugin is a program to hold against the specification.
type Plugin struct {
	Path   string // the program
	Conf   string // its configuration without cniVersion, name and ipam; DEVICE stands for the name of a link that it may take
	Moves  bool   // it moves DEVICE into the pod, so it has to bring it back
	Absent string // a configuration for a node that cannot serve it; "": STATUS is not held against one
}

// node is a namespace that stands for a node's, with a plugin and an IPAM plugin that keeps a log.
type node struct {
	t      *testing.T
	plugin Plugin
	dir    string // of its files
	host   string // its namespace
	pods   int
}

func newNode(t *testing.T, p Plugin) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: network namespaces cannot be made")
	}
	n := &node{t: t, plugin: p, dir: t.TempDir()}
	n.host = n.namespace("host")
	ipam := "#!/bin/sh\necho $CNI_COMMAND >> " + n.dir + "/ipam.log\ncat >/dev/null\n[ -e " + n.dir + "/ipam.fails ] && { echo '{\"code\": 103, \"msg\": \"no address\"}'; exit 1; }\n" +
		"[ $CNI_COMMAND = ADD ] && cat " + n.dir + "/ipam.json\nexit 0\n"
	for name, text := range map[string]string{"recorder": ipam, "ipam.json": `{"cniVersion":"1.0.0","ips":[{"address":"10.77.0.2/24","gateway":"10.77.0.1"}],"routes":[{"dst":"10.78.0.0/16"}]}`} {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// namespace makes one that ends with the test.
func (n *node) namespace(name string) string {
	n.t.Helper()
	path, err := call.NewNetns(n.dir, name)
	if errors.Is(err, unix.EPERM) {
		n.t.Skip("network namespaces cannot be made here:", err)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := call.EndNetns(path); err != nil {
			n.t.Error(err)
		}
	})
	return path
}

func (n *node) pod() string { n.pods++; return n.namespace(fmt.Sprint("pod", n.pods)) }

// device makes a link of the host that a plugin may take.
func (n *node) device(name string) {
	n.t.Helper()
	err := call.Inside(n.host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// conf is a configuration; more is added to or put in place of what it has, nil takes away.
func (n *node) conf(device string, more map[string]any) []byte {
	n.t.Helper()
	c := map[string]any{}
	if err := json.Unmarshal([]byte(strings.ReplaceAll(n.plugin.Conf, "DEVICE", device)), &c); err != nil {
		n.t.Fatal(err)
	}
	c["cniVersion"], c["name"] = "1.1.0", "conformance"
	if c["type"] == nil {
		c["type"] = filepath.Base(n.plugin.Path)
	}
	for key, value := range more {
		if c[key] = value; value == nil {
			delete(c, key)
		}
	}
	text, err := json.Marshal(c)
	if err != nil {
		n.t.Fatal(err)
	}
	return text
}

// ipam is the part of a configuration for the IPAM plugin that keeps a log.
func ipam() map[string]any { return map[string]any{"ipam": map[string]any{"type": "recorder"}} }

func (n *node) run(command, container, pod string, stdin []byte) call.Answer {
	n.t.Helper()
	return n.call(call.Call{Command: command, Container: container, IfName: "net1", Netns: pod, Stdin: stdin})
}

func (n *node) call(c call.Call) call.Answer {
	n.t.Helper()
	c.Path = n.dir + ":" + filepath.Dir(n.plugin.Path)
	deadline, stop := withTimeout(n.t, 20*time.Second)
	defer stop()
	a, err := call.Run(deadline, n.plugin.Path, n.host, c)
	if err != nil {
		n.t.Fatal(err)
	}
	return a
}

// asked is which commands the IPAM plugin got.
func (n *node) asked() string {
	text, _ := os.ReadFile(filepath.Join(n.dir, "ipam.log")) // none: it was not called
	return strings.Join(strings.Fields(string(text)), " ")
}

// look finds a link in a namespace.
func (n *node) look(path, name string) (link.Link, bool) {
	n.t.Helper()
	space, err := link.Host{}.Open(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = space.Close() }()
	l, err := space.Link(link.Query{Name: name})
	return l, err == nil
}

// change changes a link in a namespace.
func (n *node) change(path, name string, c link.Change) {
	n.t.Helper()
	space, err := link.Host{}.Open(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = space.Close() }()
	l, err := space.Link(link.Query{Name: name})
	if err == nil {
		err = space.Change(l.Index, c)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}
