package nic

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

// Names that clusters depend on.
const (
	DriverName       = "nic.kerf.dev"
	ConfigAPIVersion = "nic.kerf.dev/v1alpha1"
	ConfigKind       = "NicConfig"
)

// RDMA is whether a claim wants an RDMA device with its interface.
type RDMA string

// The choices.
const (
	RDMAAuto    RDMA = "auto"    // where the NIC has one; the default
	RDMARequire RDMA = "require" // or the pod does not start
	RDMAOff     RDMA = "off"
)

// Route is one route by way of a NIC.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"`
}

// Config is what a claim, or the administrator in a DeviceClass, says of a NIC. A nil field was left out, and nothing is changed then.
type Config struct {
	Interface *string         `json:"interface,omitempty"` // in the pod; default: the request's name
	MTU       *int            `json:"mtu,omitempty"`
	MAC       *string         `json:"mac,omitempty"`
	Addresses *[]netip.Prefix `json:"addresses,omitempty"`
	Routes    *[]Route        `json:"routes,omitempty"`
	RDMA      *RDMA           `json:"rdma,omitempty"`
	MaxTxRate *int            `json:"maxTxRate,omitempty"` // Mbit/s; 0: no limit

	// Of a DeviceClass only.
	MinTxRate *int    `json:"minTxRate,omitempty"` // Mbit/s
	VLAN      *int    `json:"vlan,omitempty"`
	VLANQoS   *int    `json:"vlanQoS,omitempty"`
	VLANProto *string `json:"vlanProto,omitempty"`
	SpoofChk  *bool   `json:"spoofchk,omitempty"`
	Trust     *bool   `json:"trust,omitempty"`
	LinkState *string `json:"linkState,omitempty"`
	GUID      *string `json:"guid,omitempty"` // of an InfiniBand VF
}

// field is one line of the table of fields.
type field struct {
	name      string
	classOnly bool   // it reaches beyond the pod: other pods' traffic, or the switch's
	write     string // an example
	take      func(raw []byte, c *Config) error
}

// fields is every field of a Config.
var fields = []field{
	{"interface", false, `"net1"`, take(func(c *Config) **string { return &c.Interface }, interfaceName)},
	{"mtu", false, "9000", take(func(c *Config) **int { return &c.MTU }, between(68, 65535))},
	{"mac", false, `"02:00:00:00:00:01"`, take(func(c *Config) **string { return &c.MAC }, unicastMAC)},
	{"addresses", false, `["10.0.0.2/24"]`, take(func(c *Config) **[]netip.Prefix { return &c.Addresses }, hosts)},
	{"routes", false, `[{"to": "10.1.0.0/16", "via": "10.0.0.1"}]`, take(func(c *Config) **[]Route { return &c.Routes }, ways)},
	{"rdma", false, "auto, require or off", take(func(c *Config) **RDMA { return &c.RDMA }, word(RDMAAuto, RDMARequire, RDMAOff))},
	{"maxTxRate", false, "10000 (Mbit/s)", take(func(c *Config) **int { return &c.MaxTxRate }, between(0, 1<<31-1))},
	{"minTxRate", true, "1000 (Mbit/s)", take(func(c *Config) **int { return &c.MinTxRate }, between(0, 1<<31-1))},
	{"vlan", true, "100", take(func(c *Config) **int { return &c.VLAN }, between(0, 4094))},
	{"vlanQoS", true, "3", take(func(c *Config) **int { return &c.VLANQoS }, between(0, 7))},
	{"vlanProto", true, "802.1q or 802.1ad", take(func(c *Config) **string { return &c.VLANProto }, word("802.1q", "802.1ad"))},
	{"spoofchk", true, "true or false", take(func(c *Config) **bool { return &c.SpoofChk }, anything[bool])},
	{"trust", true, "true or false", take(func(c *Config) **bool { return &c.Trust }, anything[bool])},
	{"linkState", true, "auto, enable or disable", take(func(c *Config) **string { return &c.LinkState }, word("auto", "enable", "disable"))},
	{"guid", true, `"02:00:00:00:00:00:00:01"`, take(func(c *Config) **string { return &c.GUID }, guid)},
}

func take[T any](at func(*Config) **T, check func(T) string) func([]byte, *Config) error {
	return func(raw []byte, c *Config) error {
		value := new(T)
		if err := strict(raw, value); err != nil || string(raw) == "null" {
			return errors.New("not a value of this field")
		}
		if problem := check(*value); problem != "" {
			return errors.New(problem)
		}
		*at(c) = value
		return nil
	}
}

// strict refuses members that are not known, in lists too.
func strict(raw []byte, into any) error {
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// ifnameRE is what the kernel takes, without what people mistype: it forbids only slashes, colons and spaces.
var ifnameRE = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)

func interfaceName(name string) string {
	switch {
	case !ifnameRE.MatchString(name):
		return "not an interface's name: a letter, then up to 14 letters, digits, _ . and -"
	case name == "eth0" || name == "lo":
		return "the pod has one of this name already"
	case name == "all" || name == "default":
		return "the kernel's settings have this name for every interface"
	}
	return ""
}

func unicastMAC(text string) string {
	mac, err := net.ParseMAC(text)
	switch {
	case err != nil || len(mac) != 6:
		return "not six bytes in hexadecimal"
	case mac[0]&1 != 0:
		return "a multicast address, which no interface can have"
	}
	return ""
}

func guid(text string) string {
	if id, err := net.ParseMAC(text); err != nil || len(id) != 8 {
		return "not eight bytes in hexadecimal"
	}
	return ""
}

func hosts(addresses []netip.Prefix) string {
	for i, a := range addresses {
		switch {
		case !a.IsValid():
			return "not an address with the length of its prefix"
		case a.Addr().IsMulticast() || a.Addr().IsUnspecified() || a.Addr().IsLoopback():
			return a.String() + " is not an interface's address"
		case slices.Contains(addresses[:i], a):
			return a.String() + " is written twice"
		}
	}
	return ""
}

func ways(routes []Route) string {
	for _, r := range routes {
		switch {
		case !r.To.IsValid():
			return "a route without to, its destination"
		case r.To != r.To.Masked():
			return fmt.Sprintf("to %s has bits below its prefix; %s is meant", r.To, r.To.Masked())
		case r.To.Bits() < 8:
			return "a default route, or so wide a one, would take the pod's own network away from it"
		case r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4():
			return fmt.Sprintf("to %s via %s: one is IPv4, one IPv6", r.To, r.Via)
		}
	}
	return ""
}

func between(least, most int) func(int) string {
	return func(n int) string {
		if n < least || n > most {
			return fmt.Sprintf("outside %d to %d", least, most)
		}
		return ""
	}
}

func word[T ~string](words ...T) func(T) string {
	return func(said T) string {
		if slices.Contains(words, said) {
			return ""
		}
		return "not known"
	}
}

func anything[T any](T) string { return "" }

// DecodeConfig reads a NicConfig strictly: what is not understood, or said twice, is refused.
func DecodeConfig(data []byte) (c Config, err error) {
	members, err := dra.Members(data, ConfigAPIVersion, ConfigKind)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", ConfigKind, err)
	}
	for _, f := range fields { // in the table's order, so that of two mistakes always the same one is told
		raw, ok := members[f.name]
		if !ok {
			continue
		}
		delete(members, f.name)
		if err := f.take(raw, &c); err != nil {
			return Config{}, fmt.Errorf("%s: %s %s: %w; write %s, or leave the field out", ConfigKind, f.name, dra.Clip(string(raw)), err, f.write)
		}
	}
	for name := range members {
		return Config{}, fmt.Errorf("%s: %s: no such field in %s; the fields are %s", ConfigKind, dra.Clip(name), ConfigAPIVersion, strings.Join(fieldNames(), ", "))
	}
	return c, c.validate()
}

// validate checks what the fields say together.
func (c Config) validate() error {
	switch {
	case c.VLANQoS != nil && *c.VLANQoS != 0 && (c.VLAN == nil || *c.VLAN == 0):
		return fmt.Errorf("%s: vlanQoS %d without a vlan: the priority is a part of the VLAN's tag; write vlan too, or leave vlanQoS out", ConfigKind, *c.VLANQoS)
	case c.VLANProto != nil && (c.VLAN == nil || *c.VLAN == 0):
		return fmt.Errorf("%s: vlanProto %s without a vlan: it is the type of the VLAN's tag; write vlan too, or leave vlanProto out", ConfigKind, *c.VLANProto)
	case c.MinTxRate != nil && c.MaxTxRate != nil && *c.MaxTxRate != 0 && *c.MinTxRate > *c.MaxTxRate:
		return fmt.Errorf("%s: minTxRate %d above maxTxRate %d; write less, or raise the limit", ConfigKind, *c.MinTxRate, *c.MaxTxRate)
	}
	return nil
}

func fieldNames() (names []string) {
	for _, f := range fields {
		names = append(names, f.name)
	}
	return names
}

// fromClaim refuses what only a DeviceClass can say.
func fromClaim(raw []byte) error {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(raw, &members) // it was read strictly before
	for _, f := range fields {
		if value, ok := members[f.name]; ok && f.classOnly {
			return fmt.Errorf("%s %s: it reaches beyond the pod, so only a DeviceClass can say it; ask the administrator of the cluster for a class with it", f.name, dra.Clip(string(value)))
		}
	}
	return nil
}

// ownMAC refuses a claim's MAC that a machine may have: on a shared network its frames would go to the pod.
func (c Config) ownMAC() error {
	if c.MAC == nil {
		return nil
	}
	if mac, err := net.ParseMAC(*c.MAC); err != nil || mac[0]&2 == 0 {
		return fmt.Errorf("mac %s: not a locally administered address, so it may be some machine's; write one that begins with 02, or leave the field out", *c.MAC)
	}
	return nil
}

// tighten is what a class allows and a claim asks: what the class says is final, but that a rate may be made lower.
func (c Config) tighten(claim Config) (Config, error) {
	if limit, asked := c.MaxTxRate, claim.MaxTxRate; limit != nil && *limit != 0 && asked != nil && (*asked == 0 || *asked > *limit) {
		return Config{}, fmt.Errorf("maxTxRate %d: the DeviceClass allows %d Mbit/s; write that or less, or leave the field out", *asked, *limit)
	}
	class, own := reflect.ValueOf(c), reflect.ValueOf(claim)
	for i := range class.NumField() {
		name, _, _ := strings.Cut(class.Type().Field(i).Tag.Get("json"), ",")
		said, asked := class.Field(i), own.Field(i)
		if name != "maxTxRate" && !said.IsNil() && !asked.IsNil() && !reflect.DeepEqual(said.Interface(), asked.Interface()) {
			return Config{}, fmt.Errorf("%s %v: the DeviceClass says %v; leave the field out, or use another DeviceClass", name, asked.Elem(), said.Elem())
		}
	}
	merged := dra.Overlay(c, claim)
	return merged, merged.validate()
}
