package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

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
	config   NICsConfig
	runDir   string
	cdiDir   string
	hook     string
	hardware *hardware
	engine   *cni.Engine
	log      *slog.Logger
	changed  *notice
	perClaim keyedLocks

	mu     sync.Mutex
	store  *durable.Store[nicClaim]
	claims map[string]nicClaim // by UID

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
func newNICs(c Config, h *hardware, in installation, changed *notice, log *slog.Logger) (*nics, error) {
	n := &nics{config: c.Kubernetes.NICs, runDir: c.RunDir, cdiDir: c.Kubernetes.CDIDir, hook: in.hook, hardware: h,
		engine: cni.New(filepath.Join(c.RunDir, "nic")), log: log, changed: changed}
	if err := n.standIns(); err != nil {
		return nil, err
	}
	var err error
	if n.store, err = durable.Open[nicClaim](filepath.Join(c.RunDir, "nics")); err != nil {
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

// standIns makes those that are missing. A veth pair ends with the namespace that has one of its ends, where a NIC would come back.
func (n *nics) standIns() error {
	if n.hardware.sim == nil || !n.config.StandIn {
		return nil
	}
	return makeStandIns(n.hardware.Node().NICs)
}

// keepStandIns runs until ctx ends. The kernel ends a namespace some time after its last process.
func (n *nics) keepStandIns(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := n.standIns(); err != nil {
			n.log.Warn("nics", "error", err)
		}
	}
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
	specs, err := cdi.NICs.List(n.cdiDir)
	for _, name := range specs {
		if !named[name] {
			err = errors.Join(err, cdi.NICs.Remove(n.cdiDir, name))
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
	if last && n.config.StandIn && n.hardware.sim != nil {
		err = errors.Join(err, removeStandIns())
	}
	return err
}

// Devices implements nic.NICs.
func (n *nics) Devices() []nic.Device {
	var uplinks []string
	host, err := n.engine.Kernel.Open("")
	if err == nil {
		uplinks, err = namesOf(host)
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
	return publishable(n.hardware.Node(), n.config, n.uplinks)
}

// namesOf are the links that the node itself uses: its default routes go over them, they have addresses, or are in a bond or bridge.
func namesOf(host cni.Net) ([]string, error) {
	indexes, err := host.Uplinks()
	if err != nil {
		return nil, err
	}
	links, err := host.Links()
	if err != nil {
		return nil, err
	}
	names := []string{} // not nil: none is an answer
	for _, l := range links {
		ip, err := host.Configured(l.Index)
		if err != nil {
			return nil, err
		}
		if slices.Contains(indexes, l.Index) || l.Master != 0 || len(ip.Addresses) > 0 {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

func (n *nics) cdiName(uid string, held heldNIC) string { return uid + "-" + held.Name }

// attachedFile is where the hook reads that a claim's interfaces are in a pod.
func (n *nics) attachedFile(uid string) string {
	return filepath.Join(n.runDir, "nics", uid+".attached")
}

// Hold implements nic.NICs.
func (n *nics) Hold(_ context.Context, owner ledger.Owner, pod string, asks []nic.Ask) ([]nic.Held, error) {
	defer n.perClaim.lock(owner.UID)()
	claim := nicClaim{Owner: owner, Pod: pod}
	for _, ask := range asks {
		claim.NICs = append(claim.NICs, heldNIC{Name: ask.Name, Spec: n.spec(owner, pod, ask), Nodes: n.nodes(ask)})
	}
	if err := n.record(claim); err != nil {
		return nil, err
	}
	if err := n.publish(owner.UID, claim); err != nil {
		return nil, errors.Join(err, n.drop(context.Background(), owner.UID))
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
			Name: n.cdiName(uid, held), Nodes: held.Nodes, Hook: n.hook, Devices: []string{held.Name}, Simulated: n.hardware.sim != nil,
			NIC: hook.NIC{Claim: uid, Attached: n.attachedFile(uid), Kerfd: filepath.Join(n.runDir, "hook.sock")},
		})
		if err == nil {
			err = cdi.Write(n.cdiDir, spec)
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
	defer n.perClaim.lock(uid)()
	return n.drop(ctx, uid)
}

func (n *nics) drop(ctx context.Context, uid string) error {
	claim, ok := n.claim(uid)
	if !ok {
		return nil
	}
	if err := n.detach(ctx, claim); err != nil {
		return err
	}
	for _, held := range claim.NICs {
		if err := cdi.NICs.Remove(n.cdiDir, n.cdiName(uid, held)); err != nil {
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

// ofPod are the claims of a pod.
func (n *nics) ofPod(uid string) (claims []nicClaim) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.claims {
		if c.Pod == uid {
			claims = append(claims, c)
		}
	}
	slices.SortFunc(claims, func(a, b nicClaim) int { return slices.Compare([]string{a.Owner.Name}, []string{b.Owner.Name}) })
	return claims
}

// Attach implements nic.Pods.
func (n *nics) Attach(ctx context.Context, pod, netns string) error {
	for _, c := range n.ofPod(pod) {
		if err := n.attach(ctx, c.Owner.UID, netns); err != nil {
			return err
		}
	}
	return nil
}

// attachFor answers a claim's hook.
func (n *nics) attachFor(ctx context.Context, ask hook.AttachAsk) error {
	c, ok := n.claim(ask.Claim)
	switch {
	case !ok:
		return errors.New("kerfd knows of no such claim; it has ended, or kubelet has not prepared it since the node started")
	case ask.Pod != "" && ask.Pod != c.Pod:
		return fmt.Errorf("claim %s was prepared for another pod (UID %s); NICs are for one pod", c.Owner, c.Pod)
	}
	path := n.lasting(ask)
	if inode, err := podNetns(path); err != nil || inode != ask.Netns {
		return fmt.Errorf("claim %s: the container has ended meanwhile (%w)", c.Owner, errors.Join(err, fmt.Errorf("%s is another namespace", path)))
	}
	return n.attach(ctx, ask.Claim, path)
}

// lasting is a path to a container's namespace that stays when the container ends, where there is one.
func (n *nics) lasting(ask hook.AttachAsk) string {
	for _, path := range n.engine.Kernel.Namespaces() {
		info, err := os.Stat(path)
		if err == nil && !strings.HasPrefix(path, "/proc/") && info.Sys().(*syscall.Stat_t).Ino == ask.Netns {
			return path
		}
	}
	return fmt.Sprintf("/proc/%d/ns/net", ask.PID)
}

// attach moves a claim's NICs into a network namespace: all, or none. After an error the pod fails, and is made again in another one.
func (n *nics) attach(ctx context.Context, uid, netns string) error {
	return n.attachOr(ctx, uid, netns, func(c nicClaim) error { return n.detach(context.WithoutCancel(ctx), c) })
}

func (n *nics) attachOr(ctx context.Context, uid, netns string, undo func(nicClaim) error) error {
	defer n.perClaim.lock(uid)()
	c, ok := n.claim(uid)
	if !ok {
		return nil // given back meanwhile
	}
	inode, err := podNetns(netns)
	if err != nil {
		return fmt.Errorf("claim %s: %w", c.Owner, err)
	}
	attached := hook.Attached{Netns: inode}
	for _, held := range c.NICs {
		if _, err := n.engine.Attach(ctx, netns, held.Spec); err != nil {
			return errors.Join(fmt.Errorf("claim %s: NIC %s: %w", c.Owner, held.Name, err), undo(c))
		}
		attached.Interfaces = append(attached.Interfaces, held.Spec.Owner.IfName)
	}
	return attached.Write(n.attachedFile(uid))
}

// podNetns is the inode of a pod's network namespace. The host's own is none.
func podNetns(path string) (uint64, error) {
	if path == "" {
		return 0, errors.New("the pod is in the host's network, where it has every NIC already; leave hostNetwork out, or the claim")
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at the pod's network: %w", err)
	}
	own, err := os.Stat("/proc/thread-self/ns/net") // of the first thread, /proc/self, it may be another's for a moment
	if err != nil {
		return 0, fmt.Errorf("look at the node's network: %w", err)
	}
	if os.SameFile(info, own) {
		return podNetns("")
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// Detach implements nic.Pods.
func (n *nics) Detach(ctx context.Context, pod string) error {
	var errs []error
	for _, c := range n.ofPod(pod) {
		unlock := n.perClaim.lock(c.Owner.UID)
		errs = append(errs, n.detach(ctx, c))
		unlock()
	}
	return errors.Join(errs...)
}

// detach takes a claim's NICs back, the last one first. From the first step on no container starts with them.
func (n *nics) detach(ctx context.Context, c nicClaim) error {
	if err := os.Remove(n.attachedFile(c.Owner.UID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("claim %s: %w", c.Owner, err)
	}
	var errs []error
	for _, held := range slices.Backward(c.NICs) {
		if err := n.engine.Detach(ctx, held.Spec.Owner.Key, ""); err != nil {
			errs = append(errs, fmt.Errorf("claim %s: NIC %s: %w", c.Owner, held.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Running implements nic.Pods.
func (n *nics) Running(ctx context.Context, netns map[string]string) error {
	var errs []error
	for _, owner := range n.Owners() {
		c, ok := n.claim(owner.UID)
		if !ok {
			continue
		}
		if path, runs := netns[c.Pod]; runs {
			if path != "" { // an error takes nothing from a pod that runs
				errs = append(errs, n.attachOr(ctx, owner.UID, path, func(nicClaim) error { return nil }))
			}
			continue
		}
		unlock := n.perClaim.lock(owner.UID)
		errs = append(errs, n.detach(ctx, c))
		unlock()
	}
	report, err := n.engine.Reconcile(ctx, n.stands)
	if len(report.Returned) > 0 {
		n.log.Info("NICs were taken back whose pods are gone", "nics", report.Returned)
	}
	for _, failed := range report.Failed {
		errs = append(errs, errors.New(failed))
	}
	return errors.Join(append(errs, err)...)
}

// stands says whether an attachment has an owner still. Those of kerf-cni are the container runtime's to end.
func (n *nics) stands(owner cni.Owner) bool {
	return owner.Network != claimNetwork || n.ours(owner.ContainerID)
}

func (n *nics) ours(uid string) bool { _, ok := n.claim(uid); return ok }
