package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The paths of the page.
const (
	PagePath   = "/"
	StatePath  = "/v1/node.json"   // GET → State
	EventsPath = "/v1/node.events" // GET → server-sent events, each a State
)

const (
	maxViewers = 16              // at a time; the others are told to come later
	writeTime  = 5 * time.Second // a viewer that does not take an event within it is dropped
)

//go:embed page.html
var file []byte

// Server answers with the page and its state. Without a request it does nothing.
type Server struct {
	read  func(context.Context) State
	every time.Duration
	rule  string // Content-Security-Policy

	mu      sync.Mutex // held while the state is read: it is read once, whoever asks meanwhile
	made    time.Time
	body    []byte
	viewers chan struct{} // one for each that is there
}

// New makes a server that asks read for the state, at most once in every.
func New(read func(context.Context) State, every time.Duration) *Server {
	return &Server{read: read, every: every, rule: policy(file), viewers: make(chan struct{}, maxViewers)}
}

// policy lets a page run its own script, and speak to its own server; nothing else.
func policy(file []byte) string {
	hash := func(tag string) string {
		_, rest, _ := bytes.Cut(file, []byte("<"+tag+">"))
		text, _, _ := bytes.Cut(rest, []byte("</"+tag+">"))
		sum := sha256.Sum256(text)
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return fmt.Sprintf("default-src 'none'; script-src %s; style-src %s; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		hash("script"), hash("style"))
}

// ServeHTTP answers GET and HEAD of the three paths.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", s.rule)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	switch {
	case !local(r.Host): // another site's name that points at this machine: its scripts must not read the answer
		http.Error(w, "open this page as localhost or 127.0.0.1", http.StatusMisdirectedRequest)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this page only shows", http.StatusMethodNotAllowed)
	case r.URL.Path == PagePath:
		h.Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(file)
	case r.URL.Path == StatePath:
		h.Set("Content-Type", "application/json")
		_, _ = w.Write(s.state(r.Context()))
	case r.URL.Path == EventsPath && r.Method == http.MethodGet:
		s.events(w, r)
	default:
		http.NotFound(w, r)
	}
}

// local reports whether a request was meant for this machine by a name that nobody else can give it.
func local(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return ip != nil && ip.IsLoopback()
}

// state is the state as JSON on one line, not older than the time between two events.
func (s *Server) state(ctx context.Context) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body != nil && time.Since(s.made) < s.every {
		return s.body
	}
	body, err := json.Marshal(s.read(context.WithoutCancel(ctx))) // others may wait for it
	if err != nil {
		return []byte("{}\n") // not of these types
	}
	s.body, s.made = append(body, '\n'), time.Now()
	return s.body
}

// events sends the state until the viewer goes, or takes too long.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.viewers <- struct{}{}:
		defer func() { <-s.viewers }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d viewers are there already; close one", maxViewers), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		if err := out.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return
		}
		if _, err := fmt.Fprintf(w, "data: %s\n", s.state(r.Context())); err != nil { // the state ends with a newline of its own
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}
