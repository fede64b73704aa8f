package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kerf-gpu/kerf/internal/node"
)

// A simulated NIC has no interface that could be moved into a pod. A stand-in is one: an end of a veth pair, whose other end is on a
// bridge, so that pods reach each other by it. It has no VFs, no RDMA, and no speed to speak of.
const (
	standInPrefix = "ks-"       // of the end that pods get
	wirePrefix    = "kw-"       // of the other
	wire          = "kerf-wire" // the bridge
)

func standIn(netdev string) string { return standInPrefix + netdev }

// standIns makes those that are missing, on a simulated node that is to have some. A veth pair ends with the namespace that has one of its
// ends, where a NIC would come back.
func (n *nics) standIns() error {
	if n.containers.hardware.sim == nil || !n.config.StandIn {
		return nil
	}
	return makeStandIns(n.containers.hardware.Node().NICs)
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

// makeStandIns makes what is missing: those that pods have are not in sight, and the other ends tell that they exist.
func makeStandIns(nics []node.NIC) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: wire}}
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make stand-ins for simulated NICs: bridge %s: %w; kerfd needs CAP_NET_ADMIN, in the host's network", wire, err)
	}
	master, err := netlink.LinkByName(wire)
	if err != nil {
		return fmt.Errorf("make stand-ins for simulated NICs: %w", err)
	}
	if err := netlink.LinkSetUp(master); err != nil {
		return fmt.Errorf("make stand-ins for simulated NICs: %w", err)
	}
	for _, n := range nics {
		name := first(n.NetDevs)
		if name == "" {
			continue
		}
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: wirePrefix + name, MasterIndex: master.Attrs().Index}, PeerName: standIn(name)}
		if err := netlink.LinkAdd(pair); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a stand-in for the simulated NIC %s: %w", name, err)
		}
		end, err := netlink.LinkByName(wirePrefix + name)
		if err == nil {
			err = netlink.LinkSetUp(end)
		}
		if err != nil {
			return fmt.Errorf("make a stand-in for the simulated NIC %s: %w", name, err)
		}
	}
	return nil
}

// removeStandIns removes all of them: with one end of a pair the other goes.
func removeStandIns() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("remove stand-ins: %w", err)
	}
	var errs []error
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, wirePrefix) || name == wire {
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	return errors.Join(errs...)
}
