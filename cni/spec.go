package cni

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kerf-gpu/kerf/cni/link"
)

// Key names an attachment.
type Key struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

func (k Key) String() string { return k.ContainerID + "/" + k.IfName }

// Owner is who a device is attached for.
type Owner struct {
	Key
	Network string `json:"network,omitempty"` // CNI network or claim; "" where only the marker is left
	PodUID  string `json:"podUID,omitempty"`
	Pod     string `json:"pod,omitempty"` // namespace/name, for people
}

func (o Owner) String() string {
	if o.Pod != "" {
		return fmt.Sprintf("%s of pod %s", o.Key, o.Pod)
	}
	return o.Key.String()
}

// Spec is what is wanted of an attachment.
type Spec struct {
	Device   string    `json:"device"` // PCI address or name of a link of the host
	Owner    Owner     `json:"owner"`
	MAC      string    `json:"mac,omitempty"`
	MTU      int       `json:"mtu,omitempty"` // 0: as it is
	VF       Asked     `json:"vf,omitzero"`
	RDMA     RDMAUse   `json:"rdma,omitempty"`
	GUID     string    `json:"guid,omitempty"`     // of an InfiniBand VF: 8 bytes
	Baseline *Override `json:"baseline,omitempty"` // what operators have set before, if it is not what is found
	IP       link.IP   `json:"ip,omitzero"`        // not compared: an attachment may get it later
}

// Asked is what is asked of a VF's PF; nil is as it is.
type Asked struct {
	VLAN       *int        `json:"vlan,omitempty"`
	QoS        *int        `json:"vlanQoS,omitempty"`
	Proto      string      `json:"vlanProto,omitempty"`
	SpoofCheck *bool       `json:"spoofchk,omitempty"`
	Trust      *bool       `json:"trust,omitempty"`
	MinRate    *int        `json:"min_tx_rate,omitempty"`
	MaxRate    *int        `json:"max_tx_rate,omitempty"`
	State      *link.State `json:"link_state,omitempty"`
}

// fields are the names of what is asked, as the configuration has them.
func (a Asked) fields() (names []string) {
	for _, f := range []struct {
		name  string
		asked bool
	}{
		{"vlan", a.VLAN != nil}, {"vlanQoS", a.QoS != nil}, {"vlanProto", a.Proto != ""}, {"spoofchk", a.SpoofCheck != nil},
		{"trust", a.Trust != nil}, {"min_tx_rate", a.MinRate != nil}, {"max_tx_rate", a.MaxRate != nil}, {"link_state", a.State != nil},
	} {
		if f.asked {
			names = append(names, f.name)
		}
	}
	return names
}

// Override is a baseline that is configured; nil and zero are as found.
type Override struct {
	MAC        string `json:"mac,omitempty"`
	MTU        int    `json:"mtu,omitempty"`
	Trust      *bool  `json:"trust,omitempty"`
	SpoofCheck *bool  `json:"spoofchk,omitempty"`
}

// RDMAUse is whether a pod gets the RDMA device of its NIC.
type RDMAUse string

// The uses. Auto is Off where the NIC has none.
const (
	RDMAAuto    RDMAUse = "auto"
	RDMARequire RDMAUse = "require"
	RDMAOff     RDMAUse = "off"
)

// Attachment is what was made.
type Attachment struct {
	Device      string      `json:"device"` // PCI address, or the link's name in the host's namespace
	Owner       Owner       `json:"owner"`
	Netns       Netns       `json:"netns"`
	Link        link.Link   `json:"link"`                  // in the pod
	RDMA        []string    `json:"rdma,omitempty"`        // devices that the pod may use
	RDMAMode    string      `json:"rdmaMode,omitempty"`    // of the system: shared or exclusive
	CharDevices []string    `json:"charDevices,omitempty"` // for the container's device list
	VF          *link.VF    `json:"vf,omitempty"`
	Of          link.Device `json:"of"`
}

// Netns is a network namespace: how it is reached, and which one it is.
type Netns struct {
	Path string `json:"path"`
	ID   string `json:"id"` // device:inode
}

// Code is a CNI error code.
type Code uint

// The codes that the engine and the plugin answer with. The first are CNI's, from 100 on they are Kerf's own.
const (
	CodeField    Code = 2 // a field that is not supported
	CodeUnknown  Code = 3 // no such container
	CodeEnv      Code = 4 // an environment variable is wrong
	CodeIO       Code = 5
	CodeDecode   Code = 6
	CodeConfig   Code = 7  // a field has a wrong value
	CodeBusy     Code = 11 // try again later
	CodeNotReady Code = 50
	CodeLimited  Code = 51  // not ready, and what is attached may suffer
	CodeRefused  Code = 100 // the kernel, a driver or a device does not do what was asked
	CodeNotBack  Code = 101 // a device could not be given back: its record is kept, try again
	CodeDiffers  Code = 102 // CHECK: the attachment is not as it was made
	CodeInternal Code = 999
)

// Error is a failure with its code.
type Error struct {
	Code Code
	Text string
	Err  error // what the kernel said, if it did; not in Text
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Text
	}
	return e.Text + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

func failf(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...), Err: err}
}

// CodeOf is the code of an error from this package.
func CodeOf(err error) Code {
	if e := new(Error); errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// marker is the alias by which a link tells whose it is.
type marker struct {
	Key
	Host string // its name in the host's namespace
	MAC  string // its address there, if it got another: a VF may give out the pod's as burnt in
}

// markerOf is the marker of an attachment.
func markerOf(s Spec, base Baseline) marker {
	m := marker{Key: s.Owner.Key, Host: base.Name}
	if s.MAC != "" {
		m.MAC = base.MAC
	}
	return m
}

const markerPrefix = "kerf:"

// longest is what of a container's name fits a marker: the kernel takes 255 bytes.
const longest = 200

func (m marker) String() string {
	id := m.ContainerID
	if len(id) > longest {
		id = id[:longest]
	}
	text := markerPrefix + id + "/" + m.IfName + ":" + m.Host
	if m.MAC != "" {
		text += ":" + m.MAC
	}
	return text
}

// parseMarker reads an alias; ok is false for one that is not ours.
func parseMarker(alias string) (m marker, ok bool) {
	rest, ours := strings.CutPrefix(alias, markerPrefix)
	id, rest, slash := strings.Cut(rest, "/")
	name, rest, colon := strings.Cut(rest, ":")
	host, mac, _ := strings.Cut(rest, ":") // no interface has a colon in its name
	if !ours || !slash || !colon || id == "" || name == "" || host == "" {
		return marker{}, false
	}
	return marker{Key{id, name}, host, mac}, true
}

// of says whether the marker is of an attachment.
func (m marker) of(k Key) bool {
	id := k.ContainerID
	if len(id) > longest {
		id = id[:longest]
	}
	return m.ContainerID == id && m.IfName == k.IfName
}
