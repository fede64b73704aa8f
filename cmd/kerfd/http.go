package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// maxRequest bounds what a client may send.
const maxRequest = 1 << 16

// maxHolding is for what another kerfd sends: a claim has at most 32 results.
const maxHolding = 1 << 20

// server is the control socket.
type server struct {
	grants     *grants
	config     Config
	kubernetes *kubernetes
	metrics    http.Handler
	page       string        // its URL; empty: none
	succession chan struct{} // gets one when a successor asks
}

// listen makes the socket. The run directory's lock is held already, so a socket that is there belongs to nobody alive.
func (s *server) listen() (net.Listener, error) {
	mode, err := s.config.mode()
	if err != nil {
		return nil, err
	}
	path := control.Socket(s.config.RunDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; the kernel takes paths of at most 107 bytes", path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), listener.Close())
	}
	return listener, nil
}

type clientKey struct{}

// serve answers until the context ends.
func (s *server) serve(ctx context.Context, listener net.Listener) error {
	h := &http.Server{
		Handler:     s.routes(),
		ReadTimeout: 10 * time.Second, // a client that says nothing must not hold a descriptor for long
		IdleTimeout: time.Minute,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, clientKey{}, clientOf(conn))
		},
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		bounded, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = h.Shutdown(bounded)
		_ = h.Close() // who has not sent his request by now is not waited for
	})
	err := h.Serve(listener)
	if !stop() {
		<-ended // the last answers are still on their way, and need the hardware
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+control.GrantsPath, s.postGrant)
	mux.HandleFunc("DELETE "+control.GrantsPath+"/{id}", s.deleteGrant)
	mux.HandleFunc("POST "+control.GrantsPath+"/{id}/settings", s.postSettings)
	mux.HandleFunc("GET "+control.StatePath, func(w http.ResponseWriter, r *http.Request) { answer(w, s.grants.state(uidOf(r.Context())), nil) })
	mux.HandleFunc("GET "+control.NodePath, func(w http.ResponseWriter, r *http.Request) { answer(w, s.node(r.Context()), nil) })
	mux.HandleFunc("GET "+control.HealthPath, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.grants.health(), nil) })
	mux.HandleFunc("POST "+control.HealthPath+"/{device}/release", rootOnly(s.postRelease))
	mux.HandleFunc("POST "+control.SuccessionPath, rootOnly(s.postSuccession))
	mux.HandleFunc("POST "+control.DoorsPath+"/{door}/holds", rootOnly(s.postHold))
	mux.HandleFunc("GET "+control.DoorsPath+"/{door}/holds", rootOnly(s.getOwners))
	mux.HandleFunc("DELETE "+control.DoorsPath+"/{door}/holds/{owner}", rootOnly(s.deleteHold))
	mux.HandleFunc("GET "+control.ReadyPath, func(w http.ResponseWriter, r *http.Request) { answer(w, struct{}{}, s.kubernetes.ready(r.Context())) })
	mux.HandleFunc("GET "+control.StoragePath, rootOnly(func(w http.ResponseWriter, r *http.Request) {
		answer(w, s.kubernetes.storage(r.Context()), nil)
	}))
	mux.HandleFunc("GET "+cni.PodGPUsPath, rootOnly(s.getPodGPUs))
	mux.Handle("GET "+control.MetricsPath, s.metrics)
	return mux
}

func (s *server) node(ctx context.Context) control.Node {
	n := control.Node{
		Schema: control.NodeSchema, Version: version.Version, Root: s.grants.hardware.root, RunDir: s.config.RunDir,
		LibDir: s.config.LibDir, Node: s.grants.hardware.Node(), Kubernetes: s.kubernetes.state(ctx), Page: s.page,
	}
	if lib := s.grants.hardware.lib; lib != nil {
		n.MemoryLimits = lib.MemoryLimitsSupported()
	}
	return n
}

func (s *server) postGrant(w http.ResponseWriter, r *http.Request) {
	var request control.GrantRequest
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil || decoder.More() {
		answer(w, nil, fmt.Errorf("request: not one JSON object of a grant request (%w)", errOr(err, errors.New("there is more behind it"))))
		return
	}
	holder, err := holderOf(r.Context())
	if err != nil {
		answer(w, nil, err)
		return
	}
	if !s.grants.stay() {
		answer(w, nil, errRetired)
		return
	}
	defer s.grants.life.RUnlock()
	holder.Command = printable(request.Command)
	granted, err := s.grants.grant(request, holder)
	answer(w, granted, err)
}

func (s *server) deleteGrant(w http.ResponseWriter, r *http.Request) {
	holder, err := holderOf(r.Context())
	if !s.grants.stay() {
		answer(w, nil, errRetired)
		return
	}
	defer s.grants.life.RUnlock()
	if err == nil {
		err = s.grants.release(r.PathValue("id"), holder.UID)
	}
	answer(w, struct{}{}, err)
}

// rootOnly keeps other users out.
func rootOnly(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if uid := uidOf(r.Context()); uid != 0 && uid != os.Geteuid() {
			answer(w, nil, fmt.Errorf("user %d: only root may do this", uid))
			return
		}
		handler(w, r)
	}
}

func (s *server) postSuccession(w http.ResponseWriter, _ *http.Request) {
	select {
	case s.succession <- struct{}{}:
	default: // asked already
	}
	answer(w, struct{}{}, nil)
}

func (s *server) postHold(w http.ResponseWriter, r *http.Request) {
	var h control.Holding
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxHolding)).Decode(&h); err != nil {
		answer(w, nil, fmt.Errorf("hold: %w", err))
		return
	}
	d := door{r.PathValue("door"), s.grants}
	if !d.grants.stay() { // or we would pass on to ourselves
		answer(w, nil, errRetired)
		return
	}
	d.grants.life.RUnlock()
	held, err := d.Hold(r.Context(), h.Owner, h.Asks)
	answer(w, held, err)
}

func (s *server) getOwners(w http.ResponseWriter, r *http.Request) {
	answer(w, door{r.PathValue("door"), s.grants}.owners(), nil)
}

func (s *server) deleteHold(w http.ResponseWriter, r *http.Request) {
	answer(w, struct{}{}, door{r.PathValue("door"), s.grants}.Drop(r.Context(), r.PathValue("owner")))
}

// client is who is at the other end of a connection; err is why its process could not be told.
type client struct {
	arbiter.Peer
	err error
}

func clientOf(conn net.Conn) client {
	peer, err := arbiter.FindPeer(conn.(*net.UnixConn))
	return client{peer, err}
}

func holderOf(ctx context.Context) (ledger.Holder, error) {
	c := ctx.Value(clientKey{}).(client) // ConnContext puts it in every request's
	if c.err != nil {
		return ledger.Holder{}, fmt.Errorf("kerfd cannot tell who asks (%w); run kerf in the same pid namespace as kerfd, or in one below it", c.err)
	}
	return ledger.Holder{Door: ledger.DoorRun, PID: c.PID, Start: c.Start, UID: c.UID, GID: c.GID}, nil
}

// uidOf is the user who asks.
func uidOf(ctx context.Context) int { return ctx.Value(clientKey{}).(client).UID }

// printable is a command as it may stand in root's terminal and log: a user chose it.
func printable(command string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, command)
}

func answer(w http.ResponseWriter, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case errors.Is(err, errRetired):
		w.WriteHeader(http.StatusServiceUnavailable)
		body = control.Problem{Error: err.Error()}
	case err != nil:
		w.WriteHeader(http.StatusUnprocessableEntity)
		body = control.Problem{Error: cmp.Or(err.Error(), "unknown")}
	}
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}
