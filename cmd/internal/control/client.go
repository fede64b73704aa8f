package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Client talks to one kerfd.
type Client struct {
	socket string
	http   http.Client
}

// ErrRefused wraps what kerfd itself said no to: the text is for the user as it is.
var ErrRefused = errors.New("refused")

// Dial prepares a client; nothing is sent yet.
func Dial(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Timeout = 30 * time.Second
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	return c
}

// Grant asks for a slice.
func (c *Client) Grant(ctx context.Context, request GrantRequest) (granted Granted, err error) {
	return granted, c.call(ctx, http.MethodPost, GrantsPath, request, &granted)
}

// Release gives a slice back.
func (c *Client) Release(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, GrantsPath+"/"+id, nil, nil)
}

// Set changes a share in force.
func (c *Client) Set(ctx context.Context, id string, wanted Settings) (grant share.Grant, err error) {
	return grant, c.call(ctx, http.MethodPost, GrantsPath+"/"+url.PathEscape(id)+"/settings", wanted, &grant)
}

// State is what kerf top shows.
func (c *Client) State(ctx context.Context) (state State, err error) {
	return state, c.call(ctx, http.MethodGet, StatePath, nil, &state)
}

// Node is the hardware that kerfd serves.
func (c *Client) Node(ctx context.Context) (n Node, err error) {
	return n, c.call(ctx, http.MethodGet, NodePath, nil, &n)
}

// Health is what the monitor knows.
func (c *Client) Health(ctx context.Context) (h Health, err error) {
	return h, c.call(ctx, http.MethodGet, HealthPath, nil, &h)
}

// ReleaseDevice says that a device is well.
func (c *Client) ReleaseDevice(ctx context.Context, device, why string) error {
	return c.call(ctx, http.MethodPost, HealthPath+"/"+url.PathEscape(device)+"/release", Release{why}, nil)
}

// Ready says why pods of this node cannot get slices yet; nil if they can.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, ReadyPath, nil, nil)
}

// Succeed asks the kerfd that serves to let go of the node. It does so after it has answered.
func (c *Client) Succeed(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, SuccessionPath, nil, nil)
}

// Hold asks at a door, as its adapter does.
func (c *Client) Hold(ctx context.Context, door string, owner ledger.Owner, asks []ledger.Ask) (held []ledger.Held, err error) {
	return held, c.call(ctx, http.MethodPost, DoorsPath+"/"+door+"/holds", Holding{owner, asks}, &held)
}

// Drop gives back at a door what an owner holds.
func (c *Client) Drop(ctx context.Context, door, owner string) error {
	return c.call(ctx, http.MethodDelete, DoorsPath+"/"+door+"/holds/"+url.PathEscape(owner), nil, nil)
}

// Owners are those who hold anything through a door.
func (c *Client) Owners(ctx context.Context, door string) (owners []ledger.Owner, err error) {
	return owners, c.call(ctx, http.MethodGet, DoorsPath+"/"+door+"/holds", nil, &owners)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("ask kerfd: %w", err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://kerfd"+path, body)
	if err != nil {
		return fmt.Errorf("ask kerfd: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode/100 != 2 {
		var problem Problem
		if err := json.NewDecoder(response.Body).Decode(&problem); err != nil || problem.Error == "" {
			problem.Error = fmt.Sprintf("kerfd answered %s; are kerf and kerfd of one release?", response.Status)
		}
		if response.StatusCode == http.StatusServiceUnavailable { // another kerfd is about to answer here
			return errors.New(problem.Error)
		}
		return fmt.Errorf("%w: %s", ErrRefused, problem.Error)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fmt.Errorf("read kerfd's answer: %w; are kerf and kerfd of one release?", err)
	}
	return nil
}

// explain turns a failed connection into what a person can act on.
func (c *Client) explain(err error) error {
	info, _ := os.Stat(c.socket)
	switch {
	case len(c.socket) > arbiter.MaxSocketPath:
		return fmt.Errorf("no kerfd at %s: the path has %d bytes, the kernel takes %d for a socket; name it by a shorter one", c.socket, len(c.socket), arbiter.MaxSocketPath)
	case info != nil && info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("no kerfd at %s: that is not a socket; name kerfd's with --socket", c.socket)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no kerfd at %s: nothing is there; start one (kerfd, or kerfd --simulate h200x8), or name its socket with --socket", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no kerfd at %s: the socket is stale, its kerfd has died; start kerfd again, it takes over what was left", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("kerfd at %s: user %d may not connect; run as root, or set socketMode in kerfd's configuration", c.socket, os.Getuid())
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("kerfd at %s: no answer within %s; see its log", c.socket, c.http.Timeout)
	}
	return fmt.Errorf("ask kerfd at %s: %w", c.socket, err)
}
