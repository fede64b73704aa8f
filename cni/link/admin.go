package link

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// VF is what a PF, a link of the host, has set on one of its VFs. It asks about all of them: there is no smaller question.
func (n *Net) VF(pf, vf int) (VF, error) {
	req := n.request(unix.RTM_GETLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(pf)
	req.AddData(message)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(nl.RTEXT_FILTER_VF)))
	answers, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return VF{}, fmt.Errorf("ask a PF about its VFs: %w", err)
	}
	for _, answer := range answers {
		described, err := netlink.LinkDeserialize(nil, answer)
		if err != nil {
			return VF{}, fmt.Errorf("read what a PF says of its VFs: %w", err)
		}
		for _, info := range described.Attrs().Vfs {
			if info.ID == vf {
				return readVF(info), nil
			}
		}
	}
	return VF{}, ErrNoVF
}

// neither is what the kernel writes for a setting that the driver does not have.
const neither = 1<<32 - 1

func readVF(info netlink.VfInfo) VF {
	v := VF{
		MAC: info.Mac.String(), VLAN: info.Vlan, QoS: info.Qos, Proto: Q, SpoofCheck: info.Spoofchk,
		Trust: info.Trust != 0 && info.Trust != neither, MinRate: int(info.MinTxRate), MaxRate: int(info.MaxTxRate), State: Auto,
	}
	if info.VlanProto == unix.ETH_P_8021AD || swap(info.VlanProto) == unix.ETH_P_8021AD {
		v.Proto = AD
	}
	if states := []State{Auto, Enable, Disable}; int(info.LinkState) < len(states) {
		v.State = states[info.LinkState]
	}
	return v
}

func swap(proto int) int { return proto>>8&0xff | proto&0xff<<8 }

// SetVF sets one attribute.
func (n *Net) SetVF(pf, vf int, attr Attr, to VF) error {
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: pf}}
	switch attr {
	case AttrVLAN:
		if to.Proto == AD {
			return handle.LinkSetVfVlanQosProto(l, vf, to.VLAN, to.QoS, unix.ETH_P_8021AD)
		}
		return handle.LinkSetVfVlanQos(l, vf, to.VLAN, to.QoS) // the older message, which every driver takes
	case AttrMAC:
		mac, err := net.ParseMAC(to.MAC)
		if err != nil {
			return err
		}
		return handle.LinkSetVfHardwareAddr(l, vf, mac)
	case AttrRate:
		return handle.LinkSetVfRate(l, vf, to.MinRate, to.MaxRate)
	case AttrSpoof:
		return handle.LinkSetVfSpoofchk(l, vf, to.SpoofCheck)
	case AttrTrust:
		return handle.LinkSetVfTrust(l, vf, to.Trust)
	case AttrState:
		return handle.LinkSetVfState(l, vf, uint32(slices.Index([]State{Auto, Enable, Disable}, to.State)))
	}
	return fmt.Errorf("attribute %q: %w", attr, errors.ErrUnsupported)
}

// SetGUID sets both GUIDs of an InfiniBand VF. The VF's driver reads them when it is bound again.
func (n *Net) SetGUID(pf, vf int, guid string) error {
	value, err := net.ParseMAC(guid)
	if err != nil {
		return err
	}
	handle, err := netlink.NewHandleAt(n.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: pf}}
	if err := handle.LinkSetVfGUID(l, vf, value, nl.IFLA_VF_IB_NODE_GUID); err != nil {
		return err
	}
	return handle.LinkSetVfGUID(l, vf, value, nl.IFLA_VF_IB_PORT_GUID)
}
