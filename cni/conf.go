package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
)

// Conf is the plugin's configuration: the fields of sriov-cni and rdma-cni by their names, and Kerf's own.
type Conf struct {
	types.PluginConf
	DeviceID   string          `json:"deviceID"` // PCI address of a VF or NIC, or the name of a link of the host
	Device     string          `json:"device"`   // the latter, as host-device calls it
	Pool       *PoolConf       `json:"pool"`     // choose one, instead of deviceID
	Topology   *TopologyConf   `json:"topology"`
	MAC        string          `json:"mac"`
	MTU        int             `json:"mtu"`
	VLAN       *int            `json:"vlan"`
	QoS        *int            `json:"vlanQoS"`
	Proto      string          `json:"vlanProto"`
	SpoofCheck string          `json:"spoofchk"`
	Trust      string          `json:"trust"`
	State      string          `json:"link_state"`
	MinRate    *int            `json:"min_tx_rate"`
	MaxRate    *int            `json:"max_tx_rate"`
	RDMA       string          `json:"rdma"`
	GUID       string          `json:"guid"`
	Baseline   *Override       `json:"baseline"`
	Kerfd      string          `json:"kerfd"`  // control socket; default /run/kerf/kerfd.sock
	RunDir     string          `json:"runDir"` // default /run/kerf
	Runtime    RuntimeConf     `json:"runtimeConfig"`
	Old        []Valid         `json:"cni.dev/attachments"` // what libcni called valid-attachments before
	LogLevel   string          `json:"logLevel"`            // of sriov-cni: taken, and not used
	LogFile    string          `json:"logFile"`             // likewise
	Args       json.RawMessage `json:"args"`
}

// Valid is an attachment that a runtime still knows.
type Valid = types.GCAttachment

// RuntimeConf is what a runtime fills in by capability.
type RuntimeConf struct {
	MAC      string `json:"mac"`
	DeviceID string `json:"deviceID"`
	GUID     string `json:"infinibandGUID"`
}

// PoolConf is where a free VF may be taken from.
type PoolConf struct {
	PF      []string `json:"pf"`      // all VFs of these, by name or PCI address
	Devices []string `json:"devices"` // and these
}

// TopologyConf is how near to a GPU the NIC has to be.
type TopologyConf struct {
	GPU     string `json:"gpu"`     // auto (the pod's), or a UUID
	AtLeast string `json:"atLeast"` // PIX, PXB, PHB, NODE, SYS
}

// nested are the fields of our own objects, in which an unknown one is an error: a limit that is misspelt must not be lost. At the top
// level runtimes and Multus add keys of theirs.
var nested = map[string][]string{
	"pool":     {"pf", "devices"},
	"topology": {"gpu", "atLeast"},
	"baseline": {"mac", "mtu", "trust", "spoofchk"},
}

// ParseConf reads a configuration and checks every value of it. args is CNI_ARGS.
func ParseConf(stdin []byte, args string) (c Conf, err error) {
	if err = checkNested(stdin); err != nil {
		return c, err
	}
	if err = json.Unmarshal(stdin, &c); err != nil {
		return c, decodeError(err)
	}
	fromArgs := parseArgs(args)
	c.MAC = cmp.Or(c.Runtime.MAC, fromArgs["MAC"], c.MAC)
	c.DeviceID = cmp.Or(c.Runtime.DeviceID, c.DeviceID, c.Device)
	c.GUID = cmp.Or(c.Runtime.GUID, c.GUID)
	if err = c.check(); err != nil {
		return c, err
	}
	if c.MAC != "" {
		mac, _ := net.ParseMAC(c.MAC) // check has
		c.MAC = mac.String()
	}
	return c, nil
}

func parseArgs(args string) map[string]string {
	values := make(map[string]string)
	for pair := range strings.SplitSeq(args, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			values[key] = value
		}
	}
	return values
}

func decodeError(err error) error {
	if e := new(json.UnmarshalTypeError); errors.As(err, &e) && e.Field != "" {
		return failf(CodeConfig, nil, "%s: a %s was given, where a %s belongs", e.Field, e.Value, e.Type)
	}
	return failf(CodeDecode, err, "read the configuration")
}

func checkNested(stdin []byte) error {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &top); err != nil {
		return failf(CodeDecode, err, "read the configuration")
	}
	for object, known := range nested {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(top[object], &fields); err != nil {
			continue // not an object: decoding says so
		}
		for field := range fields {
			if !slices.Contains(known, field) {
				return failf(CodeConfig, nil, "%s.%s: no such field; did you mean %q? There is %s", object, field, nearest(field, known), strings.Join(known, ", "))
			}
		}
	}
	return nil
}

// Unknown are the top-level fields that nobody reads.
func Unknown(stdin []byte) (unknown []string) {
	decoder := json.NewDecoder(bytes.NewReader(stdin))
	var top map[string]json.RawMessage
	if decoder.Decode(&top) != nil {
		return nil
	}
	for field, value := range top {
		one, err := json.Marshal(map[string]json.RawMessage{field: value})
		if err != nil || strings.HasPrefix(field, "cni.dev/") || slices.Contains([]string{"prevResult", "args", "runtimeConfig", "capabilities", "ipam", "dns"}, field) {
			continue
		}
		strict := json.NewDecoder(bytes.NewReader(one))
		strict.DisallowUnknownFields()
		if err := strict.Decode(new(Conf)); err != nil && strings.Contains(err.Error(), "unknown field") {
			unknown = append(unknown, field)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// nearest is the word with the fewest edits to a misspelt one.
func nearest(word string, of []string) string {
	return slices.MinFunc(of, func(a, b string) int { return distance(word, a) - distance(word, b) })
}

// distance is Levenshtein's, of lower case.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

var guidRE = regexp.MustCompile(`^([0-9a-fA-F]{2}:){7}[0-9a-fA-F]{2}$`)

func (c Conf) check() error {
	wrong := func(field string, value any, why string) error {
		return failf(CodeConfig, nil, "%s: %v: %s", field, value, why)
	}
	outside := func(v *int, low, high int) bool { return v != nil && (*v < low || *v > high) }
	isNot := func(value string, of ...string) bool { return value != "" && !slices.Contains(of, value) }
	vlan := 0
	set(&vlan, c.VLAN)
	switch mac, err := net.ParseMAC(c.MAC); {
	case c.MAC != "" && (err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == link.NoMAC):
		return wrong("mac", c.MAC, "not the address of one interface; write it as 02:00:00:12:34:56")
	case outside(c.VLAN, 0, 4094):
		return wrong("vlan", *c.VLAN, "outside 0 to 4094")
	case outside(c.QoS, 0, 7):
		return wrong("vlanQoS", *c.QoS, "outside 0 to 7")
	case c.QoS != nil && *c.QoS != 0 && vlan == 0:
		return wrong("vlanQoS", *c.QoS, "a priority needs a VLAN to be in; set vlan, or leave vlanQoS out")
	case c.Proto != "" && vlan == 0:
		return wrong("vlanProto", c.Proto, "a protocol needs a VLAN; set vlan, or leave vlanProto out")
	case isNot(strings.ToLower(c.Proto), link.Q, link.AD):
		return wrong("vlanProto", c.Proto, "not known; use 802.1q or 802.1ad")
	case isNot(c.SpoofCheck, "on", "off"):
		return wrong("spoofchk", c.SpoofCheck, "use on or off")
	case isNot(c.Trust, "on", "off"):
		return wrong("trust", c.Trust, "use on or off")
	case isNot(c.State, "auto", "enable", "disable"):
		return wrong("link_state", c.State, "use auto, enable or disable")
	case isNot(c.RDMA, "auto", "require", "off"):
		return wrong("rdma", c.RDMA, "use auto, require or off")
	case outside(c.MinRate, 0, 1<<30):
		return wrong("min_tx_rate", *c.MinRate, "not a rate in Mbit/s; 0 is none")
	case outside(c.MaxRate, 0, 1<<30):
		return wrong("max_tx_rate", *c.MaxRate, "not a rate in Mbit/s; 0 is no limit")
	case c.MinRate != nil && c.MaxRate != nil && *c.MaxRate != 0 && *c.MinRate > *c.MaxRate:
		return wrong("min_tx_rate", *c.MinRate, fmt.Sprintf("more than max_tx_rate %d", *c.MaxRate))
	case c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535):
		return wrong("mtu", c.MTU, "outside 68 to 65535")
	case c.GUID != "" && !guidRE.MatchString(c.GUID):
		return wrong("guid", c.GUID, "not eight bytes; write it as 02:00:00:00:00:12:34:56")
	case c.DeviceID != "" && c.Pool != nil:
		return wrong("pool", fmt.Sprintf("beside deviceID %s", c.DeviceID), "the device is chosen already; leave one out")
	case c.Pool != nil && len(c.Pool.PF)+len(c.Pool.Devices) == 0:
		return wrong("pool", "{}", "names nothing to choose from; set pf or devices")
	case c.Topology != nil:
		return c.checkTopology(wrong)
	}
	return nil
}

func (c Conf) checkTopology(wrong func(string, any, string) error) error {
	t := c.Topology
	if _, known := topo.ParseClass(t.AtLeast); t.AtLeast != "" && !known {
		return wrong("topology.atLeast", t.AtLeast, "not a class; use PIX, PXB, PHB, NODE or SYS")
	}
	if t.GPU == "" || t.GPU == "auto" {
		return nil
	}
	if _, err := node.ParseUUID(t.GPU); err != nil {
		return wrong("topology.gpu", t.GPU, "neither auto nor the UUID of a GPU (nvidia-smi -L)")
	}
	return nil
}

// Spec is the attachment that a configuration asks for. Its device may still have to be chosen.
func (c Conf) Spec(k Key, args string) Spec {
	values := parseArgs(args)
	s := Spec{
		Device: c.DeviceID, MAC: c.MAC, MTU: c.MTU, RDMA: RDMAUse(cmp.Or(c.RDMA, string(RDMAAuto))), GUID: strings.ToLower(c.GUID), Baseline: c.Baseline,
		Owner: Owner{Key: k, Network: c.Name, PodUID: values["K8S_POD_UID"]},
		VF:    Asked{VLAN: c.VLAN, QoS: c.QoS, Proto: strings.ToLower(c.Proto), MinRate: c.MinRate, MaxRate: c.MaxRate},
	}
	if name := values["K8S_POD_NAME"]; name != "" {
		s.Owner.Pod = values["K8S_POD_NAMESPACE"] + "/" + name
	}
	if c.SpoofCheck != "" {
		s.VF.SpoofCheck = new(c.SpoofCheck == "on")
	}
	if c.Trust != "" {
		s.VF.Trust = new(c.Trust == "on")
	}
	if c.State != "" {
		s.VF.State = new(link.State(c.State))
	}
	if s.VF.VLAN != nil && *s.VF.VLAN != 0 && s.VF.Proto == "" {
		s.VF.Proto = link.Q
	}
	return s
}
