package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/dra-driver/nic"
	"github.com/kerf-gpu/kerf/hook"
	"github.com/kerf-gpu/kerf/hook/cdi"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// nics gives NICs to pods: what the driver prepares, the container runtime and hooks attach. The record of a claim is written before
// its first NIC is touched; what is attached is in the engine's own journal, and the kernel is the truth of both.
//
// The records are in the run directory: a reboot takes the pods' networks away, and kubelet prepares every claim again.
type nics struct {
	containers *containers
	config     NICsConfig
	engine     *cni.Engine
	log        *slog.Logger
	perClaim   keyedLocks

	mu     sync.Mutex
	store  *durable.Store[nicClaim]
	claims map[string]nicClaim // by UID

	unavailable map[string]string // as reconcile saw it last

	uplinks []string // by name, as of the last look that succeeded; nil: there was none
}

// nicClaim is what a claim has.
type nicClaim struct {
	Owner ledger.Owner `json:"owner"`
	Pod   string       `json:"pod"` // its UID
	NICs  []heldNIC    `json:"nics"`
}

// heldNIC is one NIC of a claim.
type heldNIC struct {
	Name  string   `json:"name"` // of the published device
	Spec  cni.Spec `json:"spec"`
	Nodes []string `json:"nodes,omitempty"` // RDMA character devices
}

// claimNetwork is the network of our attachments in the engine's journal, beside those of kerf-cni.
const claimNetwork = nic.DriverName

// newNICs takes up what an earlier kerfd wrote down.
func newNICs(c *containers, log *slog.Logger) (*nics, error) {
	n := &nics{containers: c, config: c.config.NICs, engine: cni.New(filepath.Join(c.runDir, "nic")), log: log}
	if err := n.standIns(); err != nil {
		return nil, err
	}
	var err error
	if n.store, err = durable.Open[nicClaim](filepath.Join(c.runDir, "nics")); err != nil {
		return nil, err
	}
	var corrupt []string
	if n.claims, corrupt, err = n.store.Load(); err != nil {
		return nil, errors.Join(err, n.store.Close())
	}
	for _, file := range corrupt {
		log.Error("the record of a claim's NICs is damaged and was set aside; kubelet prepares the claim again, and its NICs are found by their journal", "file", file)
	}
	n.takeUp()
	return n, nil
}

// takeUp makes CDI specs anew, and removes those of claims that hold nothing.
func (n *nics) takeUp() {
	named := make(map[string]bool)
	for uid, c := range n.claims {
		for _, held := range c.NICs {
			named[n.cdiName(uid, held)] = true
		}
		if err := n.publish(uid, c); err != nil {
			n.log.Warn("nics", "error", err)
		}
	}
	specs, err := cdi.NICs.List(n.containers.config.CDIDir)
	for _, name := range specs {
		if !named[name] {
			err = errors.Join(err, cdi.NICs.Remove(n.containers.config.CDIDir, name))
		}
	}
	if err != nil {
		n.log.Warn("nics", "error", err)
	}
}

func (n *nics) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	last := len(n.claims) == 0
	err := n.store.Close()
	if last && n.config.StandIn && n.containers.hardware.sim != nil {
		err = errors.Join(err, removeStandIns())
	}
	return err
}

// Devices implements nic.NICs.
func (n *nics) Devices() []nic.Device {
	var uplinks []string
	host, err := link.Host{}.Open("")
	if err == nil {
		uplinks, err = linksInUse(host)
		_ = host.Close()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.uplinks = uplinks
	}
	if n.uplinks == nil { // rather no NIC than the node's own
		n.log.Warn("no NIC is published: it cannot be told which carries the node's own network", "error", err)
		return nil
	}
	devices := publishable(n.containers.hardware.Node(), n.config, n.uplinks)
	records, damaged, err := n.engine.List()
	if err != nil {
		n.log.Warn("it cannot be told which NICs others have", "error", err)
	}
	why := unavailable(records, damaged)
	for i, d := range devices {
		devices[i].Fault = why[n.device(d)]
	}
	return devices
}

// linksInUse are those that the node itself uses, by name: its default routes go over them, they have addresses, or are in a bond or bridge.
func linksInUse(host *link.Net) ([]string, error) {
	used, err := host.Uplinks()
	if err != nil {
		return nil, err
	}
	addressed, err := host.Addressed()
	if err != nil {
		return nil, err
	}
	links, err := host.Links()
	if err != nil {
		return nil, err
	}
	names := []string{} // not nil: none is an answer
	for _, l := range links {
		if l.Master != 0 || slices.Contains(used, l.Index) || slices.Contains(addressed, l.Index) {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

func (n *nics) cdiName(uid string, held heldNIC) string { return uid + "-" + held.Name }

// attachedFile is where the hook reads that a claim's interfaces are in a pod.
func (n *nics) attachedFile(uid string) string {
	return filepath.Join(n.containers.runDir, "nics", uid+".attached")
}

// Hold implements nic.NICs.
func (n *nics) Hold(ctx context.Context, owner ledger.Owner, pod string, asks []nic.Ask) ([]nic.Held, error) {
	unlock, err := n.perClaim.lockWithin(ctx, owner.UID)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", owner, err)
	}
	defer unlock()
	claim := nicClaim{Owner: owner, Pod: pod}
	for _, ask := range asks {
		claim.NICs = append(claim.NICs, heldNIC{Name: ask.Name, Spec: n.spec(owner, pod, ask), Nodes: n.nodes(ask)})
	}
	if err := n.record(claim); err != nil {
		return nil, err
	}
	if err := n.publish(owner.UID, claim); err != nil {
		return nil, errors.Join(err, n.drop(context.Background(), claim))
	}
	held := make([]nic.Held, len(asks))
	for i, ask := range asks {
		held[i] = nic.Held{CDI: cdi.NICs.Device(n.cdiName(owner.UID, claim.NICs[i])), MAC: n.mac(claim.NICs[i].Spec)}
		if ask.Config.Addresses != nil {
			held[i].Addresses = *ask.Config.Addresses
		}
	}
	return held, nil
}

// record writes a claim down, unless another has one of its NICs.
func (n *nics) record(claim nicClaim) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid, other := range n.claims {
		for _, held := range other.NICs {
			wanted := slices.ContainsFunc(claim.NICs, func(w heldNIC) bool { return w.Name == held.Name })
			if wanted && uid != claim.Owner.UID {
				return fmt.Errorf("device %s: claim %s has it, and it is for one; it is asked for again when that claim is given back", held.Name, other.Owner)
			}
		}
	}
	if err := n.store.Put(claim.Owner.UID, claim); err != nil {
		return err
	}
	n.claims[claim.Owner.UID] = claim
	return nil
}

func (n *nics) publish(uid string, c nicClaim) error {
	for _, held := range c.NICs {
		spec, err := cdi.NetworkSpec(cdi.Network{
			Name: n.cdiName(uid, held), Nodes: held.Nodes, Hook: n.containers.in.hook, Devices: []string{held.Name}, Simulated: n.containers.hardware.sim != nil,
			NIC: hook.NIC{Claim: uid, Attached: n.attachedFile(uid), Kerfd: n.containers.hookSocket()},
		})
		if err == nil {
			err = cdi.Write(n.containers.config.CDIDir, spec)
		}
		if err != nil {
			return fmt.Errorf("NIC %s of claim %s: %w", held.Name, c.Owner, err)
		}
	}
	return nil
}

// spec is what the engine is asked for.
func (n *nics) spec(owner ledger.Owner, pod string, ask nic.Ask) cni.Spec {
	c := ask.Config
	s := cni.Spec{
		Device: n.device(ask.Device),
		Owner:  cni.Owner{Key: cni.Key{ContainerID: owner.UID, IfName: ask.Interface}, Network: claimNetwork, PodUID: pod, Pod: owner.String()},
		MAC:    value(c.MAC), MTU: value(c.MTU), GUID: value(c.GUID), RDMA: cni.RDMAUse(value(c.RDMA)),
		VF: cni.Asked{VLAN: c.VLAN, QoS: c.VLANQoS, Proto: value(c.VLANProto), SpoofCheck: c.SpoofChk, Trust: c.Trust,
			MinRate: c.MinTxRate, MaxRate: c.MaxTxRate, State: (*link.State)(c.LinkState)},
	}
	for _, address := range value(c.Addresses) {
		s.IP.Addresses = append(s.IP.Addresses, address.String())
	}
	for _, route := range value(c.Routes) {
		s.IP.Routes = append(s.IP.Routes, link.Route{To: route.To.String(), Via: text(route.Via)})
	}
	return s
}

func value[T any](at *T) (zero T) {
	if at == nil {
		return zero
	}
	return *at
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// device is by what the engine finds a NIC.
func (n *nics) device(d nic.Device) string {
	if d.Simulated {
		return standIn(d.PFName)
	}
	return d.PCI.String()
}

// nodes are the RDMA character devices that a container gets.
func (n *nics) nodes(ask nic.Ask) (paths []string) {
	if ask.Device.Simulated || ask.Config.RDMA != nil && *ask.Config.RDMA == nic.RDMAOff {
		return nil
	}
	for _, rdma := range n.engine.Kernel.OfDevice(ask.Device.PCI) {
		for _, path := range n.engine.Kernel.CharDevices(rdma) {
			// With umad and issm a container could be the fabric's subnet manager.
			name := filepath.Base(path)
			verbs := strings.HasPrefix(name, "uverbs") || name == "rdma_cm"
			if verbs && !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// mac is the one that an interface will have; "" where that is not known before.
func (n *nics) mac(s cni.Spec) string {
	if s.MAC != "" {
		return s.MAC
	}
	host, err := n.engine.Kernel.Open("")
	if err != nil {
		return ""
	}
	defer func() { _ = host.Close() }()
	query := link.Query{Name: s.Device}
	if _, err := node.ParsePCIAddress(s.Device); err == nil {
		query = link.Query{Device: s.Device}
	}
	l, err := host.Link(query)
	if err != nil { // in a pod already
		return ""
	}
	return l.MAC
}

// Drop implements nic.NICs.
func (n *nics) Drop(ctx context.Context, uid string) error {
	return n.locked(ctx, uid, func(claim nicClaim) error { return n.drop(ctx, claim) })
}

// drop ends a claim. Its lock is held.
func (n *nics) drop(ctx context.Context, claim nicClaim) error {
	uid := claim.Owner.UID
	if err := n.detach(ctx, claim); err != nil {
		return err
	}
	for _, held := range claim.NICs {
		if err := cdi.NICs.Remove(n.containers.config.CDIDir, n.cdiName(uid, held)); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.store.Delete(uid); err != nil {
		return err
	}
	delete(n.claims, uid)
	return nil
}

// locked does something with a claim, if there is one, under its lock.
func (n *nics) locked(ctx context.Context, uid string, do func(nicClaim) error) error {
	unlock, err := n.perClaim.lockWithin(ctx, uid)
	if err != nil {
		return fmt.Errorf("claim %w", err)
	}
	defer unlock()
	claim, ok := n.claim(uid)
	if !ok {
		return nil
	}
	return do(claim)
}

func (n *nics) claim(uid string) (nicClaim, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, ok := n.claims[uid]
	return c, ok
}

// Owners implements nic.NICs.
func (n *nics) Owners() (owners []ledger.Owner) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.claims {
		owners = append(owners, c.Owner)
	}
	return owners
}
