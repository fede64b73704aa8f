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

	"github.com/kerf-gpu/kerf/cni/link"
)

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
	path, err := NewNetns(n.dir, name)
	if errors.Is(err, unix.EPERM) {
		n.t.Skip("network namespaces cannot be made here:", err)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := EndNetns(path); err != nil {
			n.t.Error(err)
		}
	})
	return path
}

func (n *node) pod() string { n.pods++; return n.namespace(fmt.Sprint("pod", n.pods)) }

// device makes a link of the host that a plugin may take.
func (n *node) device(name string) {
	n.t.Helper()
	err := Inside(n.host, func() error {
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

func (n *node) run(command, container, pod string, stdin []byte) Answer {
	n.t.Helper()
	return n.call(Call{Command: command, Container: container, IfName: "net1", Netns: pod, Stdin: stdin})
}

func (n *node) call(c Call) Answer {
	n.t.Helper()
	c.Path = n.dir + ":" + filepath.Dir(n.plugin.Path)
	deadline, stop := withTimeout(n.t, 20*time.Second)
	defer stop()
	a, err := Run(deadline, n.plugin.Path, n.host, c)
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
