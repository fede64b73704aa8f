package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/call"
)

// watchMoves counts the links that leave a namespace for another, as the kernel announces it: in the namespace itself, and in those
// that it knows because something was moved there from it, which is where a plugin's temporary ones are.
func watchMoves(host string) (count func() (int, error), err error) {
	fd := -1
	err = call.Inside(host, func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: int64(50 * time.Millisecond / time.Microsecond)}),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}),
		)
	})
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("watch for moves: %w", err)
	}
	return func() (moves int, err error) {
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		buffer := make([]byte, 64<<10)
		for { // all was announced before the plugins ended: what is not in the socket's queue by now never comes
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if errors.Is(err, unix.EAGAIN) {
				return moves, nil
			}
			if err != nil {
				return 0, fmt.Errorf("count moves: %w", err)
			}
			moves += movesIn(buffer[:n])
		}
	}, nil
}

// newNetnsID is IFLA_NEW_NETNSID, which only the farewell of a link that is moved has.
const newNetnsID = 45

// movesIn counts the farewells of moved links among netlink messages.
func movesIn(messages []byte) (moves int) {
	for len(messages) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(messages))
		if size < unix.SizeofNlMsghdr || size > len(messages) {
			return moves
		}
		kind := binary.NativeEndian.Uint16(messages[4:])
		if head := unix.SizeofNlMsghdr + unix.SizeofIfInfomsg; kind == unix.RTM_DELLINK && size > head && hasAttr(messages[head:size], newNetnsID) {
			moves++
		}
		messages = messages[min(align(size), len(messages)):]
	}
	return moves
}

func hasAttr(attrs []byte, wanted uint16) bool {
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return false
		}
		if binary.NativeEndian.Uint16(attrs[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == wanted {
			return true
		}
		attrs = attrs[min(align(size), len(attrs)):]
	}
	return false
}

func align(n int) int { return (n + 3) &^ 3 }
