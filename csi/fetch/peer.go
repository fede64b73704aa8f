package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// Trees is what a node has for its peers: trees and blobs that it has verified.
type Trees interface {
	// Tree is the index of a tree (see Index), whose digest is the argument; ErrNotFound where it is not here, or not complete.
	Tree(digest string) ([]byte, error)
	// Blob opens a file by its digest.
	Blob(digest string) (io.ReadSeekCloser, error)
}

// Where a peer serves. Both end in a digest.
const (
	treePath = "/v1/trees/"
	blobPath = "/v1/blobs/"
)

// Handler serves trees to peers. allowed says who may have a digest, from the certificate or the token that came with the request: a digest
// is no permission. An error is an answer of 403, and stays here.
func Handler(trees Trees, allowed func(r *http.Request, digest string) error) http.Handler {
	serve := func(send func(http.ResponseWriter, *http.Request, string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			digest := r.PathValue("digest")
			if !digestPattern.MatchString(digest) {
				http.Error(w, "not a digest: sha256:…", http.StatusBadRequest)
				return
			}
			if err := allowed(r, digest); err != nil {
				http.Error(w, "not allowed", http.StatusForbidden)
				return
			}
			err := send(w, r, digest)
			switch {
			case errors.Is(err, ErrNotFound):
				http.Error(w, "not here", http.StatusNotFound)
			case err != nil:
				http.Error(w, "cannot be read", http.StatusInternalServerError)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+treePath+"{digest}", serve(func(w http.ResponseWriter, _ *http.Request, digest string) error {
		data, err := trees.Tree(digest)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(data) // a peer that went away is no error of ours
		return nil
	}))
	mux.HandleFunc("GET "+blobPath+"{digest}", serve(func(w http.ResponseWriter, r *http.Request, digest string) error {
		blob, err := trees.Blob(digest)
		if err != nil {
			return err
		}
		defer func() { _ = blob.Close() }()
		w.Header().Set("ETag", `"`+digest+`"`)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, blob) // the digest says all; a date would say less
		return nil
	}))
	return mux
}

// PeerOptions are how this node speaks to others.
type PeerOptions struct {
	Policy       Policy
	Credentials  Credentials       // a token; or
	Certificates []tls.Certificate // mTLS
}

// peer is one other node.
type peer struct {
	endpoint string
	c        *client
	failed   atomic.Int32 // in a row
}

func newPeer(endpoint string, o PeerOptions) *peer {
	return &peer{endpoint: endpoint, c: newClient(o.Policy.withDefaults(), Credentials{Token: o.Credentials.Token}, o.Certificates)}
}

func (p *peer) open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	e.Version, e.Whole = `"`+e.Digest+`"`, false
	return p.c.get(ctx, p.endpoint+blobPath+e.Digest, e, offset, length, nil)
}

// peerSource is a tree that another node holds.
type peerSource struct {
	spec Spec
	peer *peer
	list once
}

// OpenPeer is Open for a peer, with a certificate to show.
func OpenPeer(s Spec, o PeerOptions) (Source, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.Kind != Peer {
		return nil, fmt.Errorf("source %s: not a peer", s)
	}
	return &peerSource{spec: s, peer: newPeer(s.Endpoint, o), list: newOnce()}, nil
}

func openPeer(s Spec, p Policy, c Credentials) (Source, error) {
	return OpenPeer(s, PeerOptions{Policy: p, Credentials: c})
}

func (p *peerSource) String() string { return p.spec.String() }

func (p *peerSource) List(ctx context.Context) ([]Entry, error) {
	return p.list.do(ctx, func(ctx context.Context) ([]Entry, error) {
		data, _, err := p.peer.c.body(ctx, p.spec.Endpoint+treePath+p.spec.Name, nil)
		if err == nil && sumOf(data) != p.spec.Name {
			err = fmt.Errorf("%w: the peer's list is %s", ErrDigest, sumOf(data))
		}
		var entries []Entry
		if err == nil {
			entries, err = ParseIndex(data)
		}
		if err == nil {
			_, err = CheckEntries(entries, p.peer.c.policy)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", p, err)
		}
		return entries, nil
	})
}

func (p *peerSource) Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	r, err := p.peer.open(ctx, e, offset, length)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", e.Path, p, err)
	}
	return r, nil
}

// striped reads parts from peers in turn, and from the origin what none of them gives.
type striped struct {
	Source
	peers []*peer
	next  atomic.Uint64
}

// Stripe is a source whose parts come from peers where they can, endpoints as https://host:port. The origin lists: what it says of digests is
// what peers must serve, and files without a digest come from it alone. A peer that fails three times in a row is asked no more.
// Parts are not verified one by one: where a Copy ends in ErrDigest, try again with the origin alone.
func Stripe(origin Source, endpoints []string, o PeerOptions) Source {
	s := &striped{Source: origin}
	for _, e := range endpoints {
		s.peers = append(s.peers, newPeer(e, o))
	}
	return s
}

const peerFailures = 3

func (s *striped) Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	if e.Digest != "" && len(s.peers) > 0 && length > 0 {
		first := s.next.Add(1)
		for i := range s.peers {
			p := s.peers[(first+uint64(i))%uint64(len(s.peers))]
			if p.failed.Load() >= peerFailures {
				continue
			}
			r, err := p.open(ctx, e, offset, length)
			if err == nil {
				return &peerBody{r, p, length}, nil
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if !errors.Is(err, ErrNotFound) { // not having it is no fault
				p.failed.Add(1)
			}
		}
	}
	return s.Source.Open(ctx, e, offset, length)
}

func (s *striped) String() string {
	var peers []string
	for _, p := range s.peers {
		peers = append(peers, strings.TrimPrefix(p.endpoint, "https://"))
	}
	return s.Source.String() + " (peers " + strings.Join(peers, ", ") + ")"
}

// peerBody tells on its peer when it breaks off, and forgives it when it gave all.
type peerBody struct {
	io.ReadCloser
	peer *peer
	left int64
}

func (b *peerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch b.left -= int64(n); {
	case b.left == 0:
		b.peer.failed.Store(0)
	case err != nil:
		b.peer.failed.Add(1)
	}
	return n, err
}
