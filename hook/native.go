package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// Limits of the talk between the hook and kerfd.
const (
	askWithin  = 10 * time.Second // for kerfd to set the driver's limit; it may be restarting
	askAgain   = 50 * time.Millisecond
	maxMessage = 64 << 10
)

// answer is kerfd's.
type answer struct {
	Error string `json:"error,omitempty"`
}

// ask tells kerfd of a binding and waits until the driver limits the container's cgroup. NVML is a library that a static program
// cannot load, so kerfd makes the call; the container's program must not start before it. Errors of the connection are tried again.
func ask(socket string, b Binding, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		err := askOnce(socket, b, deadline)
		var refused refusal
		if err == nil || errors.As(err, &refused) {
			return err
		}
		if time.Now().Add(askAgain).After(deadline) {
			return fmt.Errorf("the driver's own limit was asked for, and kerfd has not set it within %s: %w; is kerfd running on this node?", within, err)
		}
		time.Sleep(askAgain)
	}
}

// refusal is an answer that asking again does not change.
type refusal string

func (r refusal) Error() string { return "the driver's own limit was not set: " + string(r) }

func askOnce(socket string, b Binding, deadline time.Time) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if _, err := conn.Write(text); err != nil {
		return err
	}
	reply := make([]byte, maxMessage)
	n, err := conn.Read(reply)
	if err != nil {
		return err
	}
	var a answer
	if err := json.Unmarshal(reply[:n], &a); err != nil {
		return err
	}
	if a.Error != "" {
		return refusal(a.Error)
	}
	return nil
}

// Serve answers hooks on a socket until the context ends: kerfd's half. limit sets the driver's limit for a container's cgroup; it
// is called from several goroutines, and more than once for a container whose hook asked again.
func Serve(ctx context.Context, socket string, limit func(context.Context, Binding) error) error {
	_ = os.Remove(socket) // of a kerfd that was killed
	listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("listen for hooks: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("listen for hooks: %w", err), listener.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		conn, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listen for hooks: %w", err)
		}
		go serveOne(ctx, conn, limit)
	}
}

func serveOne(ctx context.Context, conn *net.UnixConn, limit func(context.Context, Binding) error) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(askWithin))
	message := make([]byte, maxMessage)
	n, err := conn.Read(message)
	if err != nil {
		return // the hook was killed
	}
	var b Binding
	var a answer
	if err := json.Unmarshal(message[:n], &b); err != nil {
		a.Error = err.Error()
	} else if err := limit(ctx, b); err != nil {
		a.Error = err.Error()
	}
	if text, err := json.Marshal(a); err == nil {
		_, _ = conn.Write(text) // a hook that has gone has failed its container already
	}
}
