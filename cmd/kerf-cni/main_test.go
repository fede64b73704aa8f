package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/call"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/cni/link/linktest"
)

// killBefore makes this test binary, run as the plugin, kill itself before a call that its engine makes. The plugin that is installed
// has nothing of the kind.
const killBefore = "KERF_CNI_TEST_KILL_BEFORE"

// TestMain is the plugin when a test runs this binary as one.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") == "" {
		os.Exit(m.Run())
	}
	failed := run(context.Background(), func(dir string) *cni.Engine {
		e := cni.New(dir)
		if at, err := strconv.Atoi(os.Getenv(killBefore)); err == nil {
			stop := &linktest.Stopper{At: at, Die: func() {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // it comes at once
			}}
			stop.Wrap(e)
		}
		return e
	})
	if failed != nil {
		_ = failed.Print()
		os.Exit(1)
	}
	os.Exit(0)
}

// stage is a namespace that stands for a node's, a pod's, and a directory.
type stage struct {
	t         *testing.T
	dir, host string
	made      int
}

func newStage(t *testing.T) *stage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: network namespaces cannot be made")
	}
	s := &stage{t: t, dir: t.TempDir()}
	s.host = s.netns("host")
	return s
}

func (s *stage) netns(name string) string {
	s.t.Helper()
	path, err := call.NewNetns(s.dir, name)
	if errors.Is(err, unix.EPERM) {
		s.t.Skip("network namespaces cannot be made here:", err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = call.EndNetns(path) })
	return path
}

func (s *stage) pod() string { s.made++; return s.netns(fmt.Sprint("pod", s.made)) }

// add makes a link of the host.
func (s *stage) add(l netlink.Link) {
	s.t.Helper()
	if err := call.Inside(s.host, func() error { return netlink.LinkAdd(l) }); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) veth(name string) {
	s.add(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"})
}

func (s *stage) conf(text string) []byte {
	return []byte(strings.Replace(text, "{", `{"cniVersion":"1.1.0","name":"net","type":"kerf-cni","runDir":"`+s.dir+`/run",`, 1))
}

func (s *stage) call(command, container, pod string, conf []byte, env ...string) call.Answer {
	s.t.Helper()
	a, err := call.Run(s.t.Context(), os.Args[0], s.host, call.Call{
		Command: command, Container: container, IfName: "net1", Netns: pod, Path: s.dir, Stdin: conf, Env: env,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// links are those of a namespace, without what differs from one to the next.
func (s *stage) links(path string) string {
	s.t.Helper()
	n, err := link.Host{}.Open(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	all, err := n.Links()
	if err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	for _, l := range all {
		l.Index = 0
		lines = append(lines, fmt.Sprintf("%+v", l))
	}
	return strings.Join(lines, "\n")
}

func (s *stage) records() []string {
	found, _ := filepath.Glob(s.dir + "/run/nic/*.json*")
	return found
}

const vethConf = `{"deviceID":"dev0","mtu":1400,"mac":"02:00:00:00:00:01"}`

// TestKilled kills the real plugin by SIGKILL before each call that it makes, in ADD and in DEL, on the real kernel.
func TestKilled(t *testing.T) {
	for _, kind := range []string{"veth", "macvlan"} {
		for _, command := range []string{"ADD", "DEL"} {
			t.Run(kind+"/"+command, func(t *testing.T) {
				deaths := 0
				sequels := []string{"DEL", "DEL without netns", "GC", "ADD and DEL"}
				if kind == "macvlan" { // a move is a move: one sequel is enough
					sequels = sequels[1:2]
				}
				for _, after := range sequels {
					for at := 0; ; at++ {
						if !killOnce(t, kind, command, after, at) {
							break
						}
						deaths++
					}
				}
				t.Logf("%d deaths", deaths)
				if deaths < 10 {
					t.Errorf("only %d deaths: the calls are not counted", deaths)
				}
			})
		}
	}
}

func killOnce(t *testing.T, kind, command, after string, at int) (died bool) {
	t.Helper()
	ok := t.Run(fmt.Sprintf("%s/%d", after, at), func(t *testing.T) {
		s := newStage(t)
		s.veth("up0")
		if s.veth("dev0"); kind == "macvlan" {
			conf := link.Query{Name: "up0"}
			n, err := link.Host{}.Open(s.host)
			if err != nil {
				t.Fatal(err)
			}
			parent, _ := n.Link(conf)
			_ = n.Close()
			s.add(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: parent.Index}, Mode: netlink.MACVLAN_MODE_BRIDGE})
		}
		pod, conf, before := s.pod(), s.conf(vethConf), s.links(s.host)
		if kind == "macvlan" {
			conf = s.conf(`{"deviceID":"mac0"}`)
		}
		if command == "DEL" {
			if a := s.call("ADD", "c1", pod, conf); a.Code != 0 {
				t.Fatal(a)
			}
		}
		a := s.call(command, "c1", pod, conf, killBefore+"="+strconv.Itoa(at))
		died = a.Code == -1
		if !died && a.Code != 0 {
			t.Fatal("not killed, and failed:", a)
		}
		for _, next := range map[string][][2]string{
			"DEL": {{"DEL", pod}}, "DEL without netns": {{"DEL", ""}}, "GC": {{"GC", ""}}, "ADD and DEL": {{"ADD", pod}, {"DEL", pod}},
		}[after] {
			c := conf
			if next[0] == "GC" {
				c = append([]byte(`{"cni.dev/valid-attachments":[],`), conf[1:]...)
			}
			a := s.call(next[0], "c1", next[1], c)
			stands := next[0] == "ADD" && (!died && command == "ADD" || a.Err() != nil && a.Err().Code == 4) // it was complete: ADD twice is refused
			if a.Code != 0 && !stands {
				t.Error(next[0], a)
			}
		}
		if now := s.links(s.host); now != before {
			t.Errorf("links were\n%s\nare\n%s", before, now)
		}
		if left := s.records(); len(left) > 0 {
			t.Errorf("records left: %v", left)
		}
	})
	if !ok {
		t.FailNow()
	}
	return died
}

// TestBadInput holds every wrong field against its code, and what a person reads.
func TestBadInput(t *testing.T) {
	for name, tt := range map[string]struct {
		conf  string
		code  uint
		words []string
	}{
		"mac":                  {`{"deviceID":"dev0","mac":"02:00"}`, 7, []string{"mac: 02:00"}},
		"mac of a group":       {`{"deviceID":"dev0","mac":"01:00:5e:00:00:01"}`, 7, []string{"mac: 01:00:5e"}},
		"vlan":                 {`{"deviceID":"dev0","vlan":4095}`, 7, []string{"vlan: 4095", "0 to 4094"}},
		"vlan, a word":         {`{"deviceID":"dev0","vlan":"x"}`, 7, []string{"vlan", "string"}},
		"vlanQoS":              {`{"deviceID":"dev0","vlan":1,"vlanQoS":8}`, 7, []string{"vlanQoS: 8"}},
		"vlanQoS without vlan": {`{"deviceID":"dev0","vlanQoS":3}`, 7, []string{"vlanQoS: 3", "set vlan"}},
		"vlanProto":            {`{"deviceID":"dev0","vlan":1,"vlanProto":"802.1x"}`, 7, []string{"vlanProto: 802.1x", "802.1ad"}},
		"proto without vlan":   {`{"deviceID":"dev0","vlanProto":"802.1ad"}`, 7, []string{"vlanProto"}},
		"spoofchk":             {`{"deviceID":"dev0","spoofchk":"yes"}`, 7, []string{"spoofchk: yes", "on or off"}},
		"trust":                {`{"deviceID":"dev0","trust":"maybe"}`, 7, []string{"trust: maybe"}},
		"link_state":           {`{"deviceID":"dev0","link_state":"up"}`, 7, []string{"link_state: up", "enable"}},
		"min_tx_rate":          {`{"deviceID":"dev0","min_tx_rate":-1}`, 7, []string{"min_tx_rate: -1"}},
		"rates":                {`{"deviceID":"dev0","min_tx_rate":9,"max_tx_rate":5}`, 7, []string{"min_tx_rate: 9", "max_tx_rate 5"}},
		"mtu":                  {`{"deviceID":"dev0","mtu":10}`, 7, []string{"mtu: 10"}},
		"rdma":                 {`{"deviceID":"dev0","rdma":"yes"}`, 7, []string{"rdma: yes", "require"}},
		"rdma without any":     {`{"deviceID":"dev0","rdma":"require"}`, 7, []string{"rdma: require", "no RDMA device"}},
		"guid":                 {`{"deviceID":"dev0","guid":"12"}`, 7, []string{"guid: 12"}},
		"guid of a veth":       {`{"deviceID":"dev0","guid":"02:00:00:00:00:00:00:01"}`, 7, []string{"guid", "not a VF"}},
		"no device":            {`{"vlan":0}`, 7, []string{"deviceID: missing"}},
		"no such device":       {`{"deviceID":"0000:ff:1f.7"}`, 7, []string{"0000:ff:1f.7"}},
		"no such link":         {`{"deviceID":"nothing0"}`, 7, []string{"nothing0"}},
		"not a device":         {`{"deviceID":"a/b"}`, 7, []string{"a/b"}},
		"VF fields of a veth":  {`{"deviceID":"dev0","trust":"on","vlan":3}`, 7, []string{"vlan", "not a VF"}},
		"deviceID and pool":    {`{"deviceID":"dev0","pool":{"pf":["x"]}}`, 7, []string{"pool", "deviceID dev0"}},
		"empty pool":           {`{"pool":{}}`, 7, []string{"pool", "pf"}},
		"pool misspelt":        {`{"pool":{"pfs":["x"]}}`, 7, []string{"pool.pfs", `"pf"`}},
		"topology misspelt":    {`{"deviceID":"dev0","topology":{"atleast":"PIX"}}`, 7, []string{"topology.atleast", `"atLeast"`}},
		"topology class":       {`{"deviceID":"dev0","topology":{"atLeast":"NEAR"}}`, 7, []string{"topology.atLeast: NEAR", "PXB"}},
		"topology gpu":         {`{"deviceID":"dev0","topology":{"gpu":"0"}}`, 7, []string{"topology.gpu: 0", "UUID"}},
		"auto without pod":     {`{"deviceID":"dev0","topology":{"gpu":"auto"}}`, 4, []string{"K8S_POD_UID"}},
		"kerfd away":           {`{"deviceID":"dev0","kerfd":"/nonexistent","topology":{"gpu":"GPU-01234567-89ab-cdef-0123-456789abcdef"}}`, 11, []string{"kerfd", "/nonexistent"}},
		"baseline misspelt":    {`{"deviceID":"dev0","baseline":{"MTU2":1}}`, 7, []string{"baseline.MTU2", `"mtu"`}},
		"prevResult":           {`{"deviceID":"dev0","prevResult":{"cniVersion":"1.1.0","ips":3}}`, 6, []string{"prevResult"}},
		"IPAM not there":       {`{"deviceID":"dev0","ipam":{"type":"none"}}`, 999, []string{"ipam none"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.veth("dev0")
			before := s.links(s.host)
			a := s.call("ADD", "c1", s.pod(), s.conf(tt.conf))
			var printed struct {
				Code uint   `json:"code"`
				Msg  string `json:"msg"`
			}
			if err := json.Unmarshal(a.Stdout, &printed); err != nil || a.Code == 0 || printed.Code != tt.code || strings.Contains(printed.Msg, "\n") {
				t.Fatalf("%s (%v), want an error in one line with code %d", a, err, tt.code)
			}
			for _, word := range tt.words {
				if !strings.Contains(printed.Msg, word) {
					t.Errorf("%q has no %q", printed.Msg, word)
				}
			}
			if now := s.links(s.host); now != before || len(s.records()) > 0 {
				t.Errorf("half done: records %v, links\n%s\nwere\n%s", s.records(), now, before)
			}
		})
	}
}

func TestUnknownFieldIsWarnedOf(t *testing.T) {
	s := newStage(t)
	s.veth("dev0")
	a := s.call("ADD", "c1", s.pod(), s.conf(`{"deviceID":"dev0","vlann":3,"logLevel":"debug","cni.dev/x":1}`))
	if a.Code != 0 || strings.Count(a.Stderr, "no such field") != 1 || !strings.Contains(a.Stderr, "vlann") {
		t.Errorf("%s, want a warning of vlann and of nothing else", a)
	}
}

// The address comes from the runtime, else from CNI_ARGS, else from the configuration.
func TestWhichMAC(t *testing.T) {
	for want, tt := range map[string][2]string{
		"02:00:00:00:00:01": {`{"deviceID":"dev0","mac":"02:00:00:00:00:01"}`, ""},
		"02:00:00:00:00:02": {`{"deviceID":"dev0","mac":"02:00:00:00:00:01"}`, "MAC=02:00:00:00:00:02"},
		"02:00:00:00:00:03": {`{"deviceID":"dev0","mac":"02:00:00:00:00:01","runtimeConfig":{"mac":"02:00:00:00:00:03"}}`, "IgnoreUnknown=1;MAC=02:00:00:00:00:02"},
	} {
		s := newStage(t)
		s.veth("dev0")
		a := s.call("ADD", "c1", s.pod(), s.conf(tt[0]), "CNI_ARGS="+tt[1])
		if !strings.Contains(string(a.Stdout), want) {
			t.Errorf("%s, want %s", a, want)
		}
	}
}

// The default route of a node stays.
func TestUplinkIsRefused(t *testing.T) {
	s := newStage(t)
	s.veth("dev0")
	n, err := link.Host{}.Open(s.host)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	for _, name := range []string{"dev0p", "dev0"} {
		l, err := n.Link(link.Query{Name: name})
		if err == nil {
			err = n.Change(l.Index, link.Change{Up: new(true)})
		}
		if err == nil && name == "dev0" {
			err = n.Configure(l.Index, link.IP{Addresses: []string{"10.3.3.2/24"}, Routes: []link.Route{{To: "0.0.0.0/0", Via: "10.3.3.1"}}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if a := s.call("ADD", "c1", s.pod(), s.conf(`{"deviceID":"dev0"}`)); a.Err() == nil || a.Err().Code != 7 || !strings.Contains(a.Err().Msg, "default route") {
		t.Error(a)
	}
}
