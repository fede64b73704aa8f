package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const none = netns.NsHandle(-1)

// Net is an open network namespace. It is not for several goroutines at once.
type Net struct {
	id      string
	file    *os.File
	host    Host
	sockets map[int]*nl.SocketHandle
}

// ID tells it from every other namespace that is alive: device and inode of its file.
func (n *Net) ID() string { return n.id }

// Fd is its descriptor, for Change.To.
func (n *Net) Fd() int { return int(n.file.Fd()) }

// Close gives the descriptors back; the namespace may end then.
func (n *Net) Close() error {
	for _, s := range n.sockets {
		s.Close()
	}
	return n.file.Close()
}

func (n *Net) handle() netns.NsHandle { return netns.NsHandle(n.file.Fd()) }

func (n *Net) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	r.Sockets = n.sockets
	return r
}

// Link finds one link, by its index or name with a single question, else among all. No VF is asked about.
func (n *Net) Link(q Query) (Link, error) {
	if q.Index == 0 && q.Name == "" {
		return n.search(q)
	}
	req := n.request(unix.RTM_GETLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(q.Index)
	req.AddData(message)
	if q.Index == 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(q.Name)))
	}
	answers, err := req.Execute(unix.NETLINK_ROUTE, 0)
	switch {
	case errors.Is(err, unix.ENODEV):
		return Link{}, ErrNotFound
	case err != nil:
		return Link{}, fmt.Errorf("ask for link %+v: %w", q, err)
	case len(answers) == 0:
		return Link{}, ErrNotFound
	}
	l, err := read(answers[0])
	if err == nil && !q.Matches(l) {
		err = ErrNotFound
	}
	return l, err
}

// dumps is how often a list is asked for that the kernel says was changed while it was told.
const dumps = 50

func (n *Net) search(q Query) (Link, error) {
	for try := 1; ; try++ {
		all, err := n.dump()
		if i := slices.IndexFunc(all, q.Matches); i >= 0 { // it is there, whatever else was changed
			return all[i], nil
		}
		if err == nil {
			return Link{}, ErrNotFound
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumps {
			return Link{}, fmt.Errorf("search for link %+v: %w", q, err)
		}
	}
}

// Links are all links of the namespace.
func (n *Net) Links() (all []Link, err error) {
	for range dumps {
		if all, err = n.dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// dump is one list; with netlink.ErrDumpInterrupted it may lack some, or have one twice.
func (n *Net) dump() (all []Link, err error) {
	req := n.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	answers, interrupted := req.Execute(unix.NETLINK_ROUTE, 0)
	if interrupted != nil && !errors.Is(interrupted, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", interrupted)
	}
	for _, answer := range answers {
		l, err := read(answer)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, interrupted
}

func read(answer []byte) (Link, error) {
	described, err := netlink.LinkDeserialize(nil, answer)
	if err != nil {
		return Link{}, fmt.Errorf("read a link's description: %w", err)
	}
	a := described.Attrs()
	l := Link{
		Index: a.Index, Name: a.Name, MTU: a.MTU, MAC: a.HardwareAddr.String(), PermMAC: a.PermHWAddr.String(), Alias: a.Alias,
		Up: a.RawFlags&unix.IFF_UP != 0, Master: a.MasterIndex, Parent: a.ParentIndex, Device: a.ParentDev, IPoIB: a.EncapType == "infiniband",
	}
	if described.Type() != "device" {
		l.Kind = described.Type()
	}
	return l, nil
}

// Change sends one message about the link of that index.
func (n *Net) Change(index int, c Change) error {
	req := n.request(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	if c.Up != nil {
		message.Change = unix.IFF_UP
		if *c.Up {
			message.Flags = unix.IFF_UP
		}
	}
	req.AddData(message)
	if c.To != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(c.To))))
	}
	if c.Name != "" {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(c.Name)))
	}
	if c.MTU != 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(c.MTU))))
	}
	if c.MAC != "" {
		mac, err := net.ParseMAC(c.MAC)
		if err != nil {
			return err
		}
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	if c.Alias != nil {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(*c.Alias)))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENODEV) {
		return errors.Join(ErrNotFound, err)
	}
	return err
}
