package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Policy is what an administrator allows. The zero value allows public addresses by TLS, with the defaults that are named below.
type Policy struct {
	Hosts    []string       // which may be asked, redirects included: "host", "host:port", "*.domain"; empty is any
	Networks []netip.Prefix // addresses that may be dialled though they are not public: loopback, private, link-local
	Plain    bool           // HTTP without TLS is allowed
	Roots    *x509.CertPool // who is trusted to sign; nil is the system's

	Dial    time.Duration // for a connection; 10 s
	Header  time.Duration // from a request to its answer's header; 30 s
	Stall   time.Duration // a body that gives less than MinRate for so long is cut; 20 s
	MinRate node.Bytes    // a second; 16 KiB

	MaxEntries int        // of a listing; 1,000,000
	MaxSize    node.Bytes // of a dataset; 16 TiB
	MaxIndex   node.Bytes // of a listing as it is sent; 256 MiB
}

// withDefaults fills what was left out.
func (p Policy) withDefaults() Policy {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&p.Dial, 10*time.Second)
	def(&p.Header, 30*time.Second)
	def(&p.Stall, 20*time.Second)
	if p.MinRate == 0 {
		p.MinRate = 16 << 10
	}
	if p.MaxEntries == 0 {
		p.MaxEntries = 1_000_000
	}
	if p.MaxSize == 0 {
		p.MaxSize = 16 << 40
	}
	if p.MaxIndex == 0 {
		p.MaxIndex = 256 << 20
	}
	return p
}

// metadata are the addresses where clouds keep an instance's credentials: refused whatever Networks says.
var metadata = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"),
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd00:ec2::23"), netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("fd20:ce::254"),
}

// special are networks that are not the public internet, beside those that netip knows. The last three carry IPv4 addresses
// inside, which the kernel or a router would dial.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/32"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("2001::/32"),
}

// addr says whether an address may be dialled.
func (p Policy) addr(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if slices.Contains(metadata, a) {
		return fmt.Errorf("%w: %s is a cloud's metadata service", ErrRefused, a)
	}
	in := func(n netip.Prefix) bool { return n.Contains(a) }
	if slices.ContainsFunc(p.Networks, in) {
		return nil
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() || slices.ContainsFunc(special, in) {
		return fmt.Errorf("%w: %s is not a public address; an administrator may allow its network", ErrRefused, a)
	}
	return nil
}

// host says whether a URL may be asked.
func (p Policy) host(u *url.URL) error {
	if u.Scheme != "https" && (u.Scheme != "http" || !p.Plain) {
		return fmt.Errorf("%w: %s://%s is not protected by TLS; use https, or have an administrator allow plain HTTP", ErrRefused, u.Scheme, u.Host)
	}
	name := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if len(p.Hosts) == 0 || slices.ContainsFunc(p.Hosts, func(allowed string) bool { return hostFits(strings.ToLower(allowed), name, portOf(u)) }) {
		return nil
	}
	return fmt.Errorf("%w: host %s is not among those that an administrator allows", ErrRefused, u.Host)
}

func hostFits(allowed, name, port string) bool {
	if host, p, err := net.SplitHostPort(allowed); err == nil {
		if p != port {
			return false
		}
		allowed = host
	}
	if suffix, ok := strings.CutPrefix(allowed, "*"); ok {
		return strings.HasPrefix(suffix, ".") && strings.HasSuffix(name, suffix) && len(name) > len(suffix)
	}
	return allowed == name
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}

// secretHeaders are what a redirect to another place must not carry. Cookie is there for completeness: we keep none.
var secretHeaders = []string{"Authorization", "Cookie", "Proxy-Authorization", "X-Amz-Security-Token", "Www-Authenticate"}

// redirect is http.Client's CheckRedirect: the standard library keeps credentials for subdomains and other ports, we do not.
func (p Policy) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > 5 {
		return fmt.Errorf("%w: more than 5 redirects", ErrRefused)
	}
	if err := p.host(req.URL); err != nil {
		return err
	}
	elsewhere := func(r *http.Request) bool {
		return r.URL.Scheme != req.URL.Scheme || !strings.EqualFold(r.URL.Hostname(), req.URL.Hostname()) || portOf(r.URL) != portOf(req.URL)
	}
	if slices.ContainsFunc(via, elsewhere) {
		for _, h := range secretHeaders {
			req.Header.Del(h)
		}
		req.Header.Del("Referer")
	}
	return nil
}

// transport connects where the policy allows, and makes errors of answers that say "later". It uses no proxy: the proxy would
// choose the address.
type transport struct {
	policy Policy
	next   *http.Transport
}

func newTransport(p Policy, certificates []tls.Certificate) *transport {
	dialer := &net.Dialer{Timeout: p.Dial, KeepAlive: 15 * time.Second, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(address) // what the name resolved to: a second answer cannot differ from what was checked
		if err != nil {
			return fmt.Errorf("%w: address %q", ErrRefused, address)
		}
		return p.addr(a.Addr())
	}}
	return &transport{p, &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: p.Roots, MinVersion: tls.VersionTLS12, Certificates: certificates},
		TLSHandshakeTimeout: p.Dial, ResponseHeaderTimeout: p.Header, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second,
		DisableCompression: true, MaxResponseHeaderBytes: 64 << 10, ReadBufferSize: 64 << 10,
	}}
}

// RoundTrip asks, and answers BusyError where the server says that it could not now.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.policy.host(req.URL); err != nil {
		return nil, err
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		_ = resp.Body.Close()
		return nil, &BusyError{Status: resp.StatusCode, After: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	}
	return resp, nil
}

// BusyError is an ErrBusy that says when to come back.
type BusyError struct {
	Status int
	After  time.Duration // 0 is not told
}

func (e *BusyError) Error() string {
	text := fmt.Sprintf("answered %d %s", e.Status, http.StatusText(e.Status))
	if e.After > 0 {
		text += fmt.Sprintf(", asks to wait %s", e.After)
	}
	return text
}

// Is makes it an ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = 2 * time.Minute

func retryAfter(header string, now time.Time) time.Duration {
	var d time.Duration
	if seconds, err := strconv.ParseUint(strings.TrimSpace(header), 10, 31); err == nil {
		d = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), maxRetryAfter)
}

// plainError takes URLs out of an error: after a redirect they hold signatures, which are credentials.
func plainError(err error) error {
	for u := (*url.Error)(nil); errors.As(err, &u); {
		err = u.Err
	}
	return err
}
