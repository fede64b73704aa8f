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

// message is what a hook sends. A binding's fields are at the top, as in versions of the hook that knew of nothing else.
type message struct {
	*Binding
	Attach *AttachAsk `json:"attach,omitempty"`
}

// Answers is how kerfd answers hooks. Both are called from several goroutines, and more than once for a container whose hook asked again.
type Answers struct {
	Limit  func(context.Context, Binding) error   // sets the driver's limit for a container's cgroup
	Attach func(context.Context, AttachAsk) error // moves a claim's NICs into a container's network namespace
}

// ask tells kerfd of a binding and waits until the driver limits the container's cgroup. NVML is a library that a static program
// cannot load, so kerfd makes the call; the container's program must not start before it.
func ask(socket string, b Binding, within time.Duration) error {
	return askFor(socket, message{Binding: &b}, within, "the driver's own limit")
}

// askFor has kerfd do something that the container's program must not start before. Errors of the connection are tried again.
func askFor(socket string, m message, within time.Duration, what string) error {
	deadline := time.Now().Add(within)
	for {
		err := askOnce(socket, m, deadline)
		var refused refusal
		switch {
		case err == nil:
			return nil
		case errors.As(err, &refused):
			return fmt.Errorf("%s: kerfd refuses: %w", what, err)
		case time.Now().Add(askAgain).After(deadline):
			return fmt.Errorf("%s: asked for, and kerfd has not answered within %s: %w; is kerfd running on this node?", what, within, err)
		}
		time.Sleep(askAgain)
	}
}

// refusal is an answer that asking again does not change.
type refusal string

func (r refusal) Error() string { return string(r) }

func askOnce(socket string, m message, deadline time.Time) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	text, err := json.Marshal(m)
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

// Serve answers hooks on a socket until the context ends: kerfd's half.
func Serve(ctx context.Context, socket string, answers Answers) error {
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
		go serveOne(ctx, conn, answers)
	}
}

func serveOne(ctx context.Context, conn *net.UnixConn, answers Answers) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(askWithin))
	text := make([]byte, maxMessage)
	n, err := conn.Read(text)
	if err != nil {
		return // the hook was killed
	}
	var a answer
	if err := answers.to(ctx, text[:n]); err != nil {
		a.Error = err.Error()
	}
	if text, err := json.Marshal(a); err == nil {
		_, _ = conn.Write(text) // a hook that has gone has failed its container already
	}
}

func (a Answers) to(ctx context.Context, text []byte) error {
	var m message
	switch err := json.Unmarshal(text, &m); {
	case err != nil:
		return err
	case m.Attach != nil && a.Attach == nil:
		return errors.New("this kerfd serves no NICs; is nics.enabled off in its configuration?")
	case m.Attach != nil:
		return a.Attach(ctx, *m.Attach)
	case m.Binding == nil:
		return errors.New("a message without a binding; the hook is of another version of Kerf than kerfd")
	}
	return a.Limit(ctx, *m.Binding)
}
