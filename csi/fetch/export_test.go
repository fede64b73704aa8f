package fetch

import "net/netip"

// CheckAddress is what the dialer asks for each address.
func CheckAddress(p Policy, a netip.Addr) error { return p.addr(a) }
