package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Configure gives a link its addresses and routes. It may be called again: what is there stays.
func (n *Net) Configure(index int, ip IP) error {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	for _, text := range ip.Addresses {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
		if address.IP.To4() == nil {
			address.Flags = unix.IFA_F_NODAD // a pod must not wait for it; IPAM answers for its being the only one
		}
		if err := handle.AddrReplace(l, address); err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
	}
	for _, route := range ip.Routes {
		r, err := route.parse(index)
		if err != nil {
			return err
		}
		if err := handle.RouteReplace(r); err != nil {
			return fmt.Errorf("route to %s via %q: %w", route.To, route.Via, err)
		}
	}
	return nil
}

func (r Route) parse(index int) (*netlink.Route, error) {
	_, to, err := net.ParseCIDR(r.To)
	if err != nil {
		return nil, fmt.Errorf("route to %q: %w", r.To, err)
	}
	parsed := &netlink.Route{LinkIndex: index, Dst: to, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: netlink.Scope(r.Scope)}
	switch {
	case r.Via != "":
		if parsed.Gw = net.ParseIP(r.Via); parsed.Gw == nil {
			return nil, fmt.Errorf("route to %s via %q: not an address", r.To, r.Via)
		}
	case r.Scope == 0:
		parsed.Scope = unix.RT_SCOPE_LINK
	}
	return parsed, nil
}

// Configured is what Configure did, and what else is there: global addresses and the routes over the link.
func (n *Net) Configured(index int) (ip IP, err error) {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return ip, err
	}
	defer handle.Close()
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
	addresses, err := handle.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return ip, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			ip.Addresses = append(ip.Addresses, a.IPNet.String())
		}
	}
	routes, err := handle.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return ip, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		one := Route{MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: int(r.Scope), To: "0.0.0.0/0"}
		if r.Family == netlink.FAMILY_V6 {
			one.To = "::/0"
		}
		if r.Dst != nil {
			one.To = r.Dst.String()
		}
		if r.Gw != nil {
			one.Via = r.Gw.String()
		}
		ip.Routes = append(ip.Routes, one)
	}
	return ip, nil
}

// Addressed are the links that have a global address.
func (n *Net) Addressed() (indexes []int, err error) {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	addresses, err := handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			indexes = append(indexes, a.LinkIndex)
		}
	}
	return indexes, nil
}

// Uplinks are the links that the default routes of the namespace go over, and those below them: the members of a bond, the link that a
// VLAN is on.
func (n *Net) Uplinks() (indexes []int, err error) {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	routes, err := handle.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() != "0.0.0.0/0" && r.Dst.String() != "::/0" {
			continue
		}
		indexes = append(indexes, r.LinkIndex)
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
	}
	all, err := n.Links()
	if err != nil {
		return nil, err
	}
	return Below(all, indexes), nil
}

// Below adds to some links those that they stand on. It is pure.
func Below(all []Link, indexes []int) []int {
	for i := 0; i < len(indexes); i++ { // it grows
		for _, l := range all {
			carries := l.Master == indexes[i] || slices.ContainsFunc(all, func(upper Link) bool { return upper.Index == indexes[i] && upper.Parent == l.Index })
			if carries && !slices.Contains(indexes, l.Index) {
				indexes = append(indexes, l.Index)
			}
		}
	}
	return indexes
}

// Announce has the kernel tell the neighbours which address is where, when the link comes up and whenever its own address changes.
// So nobody waits for a carrier, which may take seconds.
func (n *Net) Announce(name string) error {
	return n.inside(func() error {
		for family, setting := range map[string]string{"ipv4": "arp_notify", "ipv6": "ndisc_notify"} {
			path := filepath.Join("/proc/sys/net", family, "conf", name, setting) // of the thread's namespace
			err := os.WriteFile(path, []byte("1"), 0o644)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EROFS) { // no IPv6; a container's /proc
				return fmt.Errorf("set %s: %w", setting, err)
			}
		}
		return nil
	})
}

// inside runs a function in the namespace.
func (n *Net) inside(do func() error) error {
	return Apart(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		return do()
	})
}
