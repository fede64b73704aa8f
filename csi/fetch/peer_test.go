package fetch_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// indexOf lists files as an HTTP index and a peer do.
func indexOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var x fetch.Index
	for name, b := range files {
		x.Files = append(x.Files, fetch.IndexFile{Path: name, Size: node.Bytes(len(b)), SHA256: digestOf(b)[7:]})
	}
	out, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// shelf is a node's trees, in memory.
type shelf struct {
	blobs  map[string][]byte
	opened atomic.Int64
}

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

func (s *shelf) Tree(digest string) ([]byte, error) {
	if b, ok := s.blobs[digest]; ok {
		return b, nil
	}
	return nil, fetch.ErrNotFound
}

func (s *shelf) Blob(digest string) (io.ReadSeekCloser, error) {
	s.opened.Add(1)
	b, err := s.Tree(digest)
	return blob{bytes.NewReader(b)}, err
}

func newShelf(blobs ...[]byte) *shelf {
	s := &shelf{blobs: map[string][]byte{}}
	for _, b := range blobs {
		s.blobs[digestOf(b)] = b
	}
	return s
}

// node serves a shelf by HTTPS to whoever has the token.
func newNode(t *testing.T, s *shelf) *httptest.Server {
	server := httptest.NewTLSServer(fetch.Handler(s, func(r *http.Request, _ string) error {
		if r.Header.Get("Authorization") != "Bearer hunter2" {
			return errors.New("no token")
		}
		return nil
	}))
	t.Cleanup(server.Close)
	return server
}

func trusting(servers ...*httptest.Server) fetch.PeerOptions {
	p := loopback()
	p.Plain, p.Roots = false, x509.NewCertPool()
	for _, s := range servers {
		p.Roots.AddCert(s.Certificate())
	}
	return fetch.PeerOptions{Policy: p, Credentials: fetch.Credentials{Token: "hunter2"}}
}

func TestPeer(t *testing.T) {
	data := random(300 << 10)
	index := indexOf(t, map[string][]byte{"f": data})
	server := newNode(t, newShelf(data, index))
	at := "peer://" + strings.TrimPrefix(server.URL, "https://") + "/"
	o := trusting(server)
	got, err := load(t.Context(), t, open(t, at+digestOf(index), o.Policy, o.Credentials), quick())
	if err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		digest string
		c      fetch.Credentials
		want   error
	}{
		{"not here", sha, o.Credentials, fetch.ErrNotFound},
		{"no token", digestOf(index), fetch.Credentials{}, fetch.ErrDenied},
		{"not an index", digestOf(data), o.Credentials, nil},
	} {
		if _, err := open(t, at+tc.digest, o.Policy, tc.c).List(t.Context()); err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
			t.Errorf("%s: want %v, got %v", tc.name, tc.want, err)
		}
	}
	if _, err := open(t, at+digestOf(index), loopback(), o.Credentials).List(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
}

// TestStripe: with two peers that have the file and one that is gone, the origin gives the list and nothing else; with peers that break, it gives all.
func TestStripe(t *testing.T) {
	data := random(1 << 20)
	var origin atomic.Int64
	index := indexOf(t, map[string][]byte{"f": data})
	s := newSite(t, nil, func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
		b := index
		if r.URL.Path == "/f" {
			origin.Add(1)
			b = data
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return true
	})
	one, two := newShelf(data), newShelf(data)
	first, second := newNode(t, one), newNode(t, two)
	o := trusting(first, second)
	src := func(peers ...string) fetch.Source {
		return fetch.Stripe(open(t, s.URL+"/index.json#index", loopback(), fetch.Credentials{}), peers, o)
	}
	got, err := load(t.Context(), t, src(first.URL, second.URL, "https://127.0.0.1:1"), quick())
	if err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	if origin.Load() != 0 || one.opened.Load() < 4 || two.opened.Load() < 4 {
		t.Errorf("16 parts: %d from the origin, %d and %d from peers", origin.Load(), one.opened.Load(), two.opened.Load())
	}
	empty := newNode(t, newShelf())
	o = trusting(empty)
	if got, err = load(t.Context(), t, src(empty.URL), quick()); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	if origin.Load() != 16 {
		t.Errorf("16 parts: %d from the origin, as no peer has them", origin.Load())
	}
}

// TestHF reads from a server (simulated) of Hugging Face's layout, whose large files are elsewhere.
func TestHF(t *testing.T) {
	const commit = "0123456789abcdef0123456789abcdef01234567"
	data := random(300 << 10)
	cdn := newSite(t, data, func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			http.Error(w, "credentials came along", http.StatusBadRequest)
		}
		return r.Header.Get("Authorization") != ""
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/api/models/org/m/revision/main", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer hunter2" {
			http.Error(w, "gated", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, `{"sha":%q,"siblings":[{"rfilename":"w.safetensors","size":%d,"blobId":"b","lfs":{"sha256":%q,"size":%d}}]}`, commit, len(data), digestOf(data)[7:], len(data))
	})
	mux.HandleFunc("/org/m/resolve/"+commit+"/w.safetensors", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, cdn.URL+"/blob?Signature=hunter2", http.StatusFound)
	})
	hub := httptest.NewServer(mux)
	t.Cleanup(hub.Close)
	at := "hf://org/m@main?endpoint=" + hub.URL
	got, err := load(t.Context(), t, open(t, at, loopback(), fetch.Credentials{Token: "hunter2"}), quick())
	if err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	if _, err := open(t, at, loopback(), fetch.Credentials{}).List(t.Context()); !errors.Is(err, fetch.ErrDenied) {
		t.Errorf("without a token: %v", err)
	}
	if _, err := open(t, "hf://org/none?endpoint="+hub.URL, loopback(), fetch.Credentials{}).List(t.Context()); !errors.Is(err, fetch.ErrNotFound) {
		t.Errorf("a model that is not there: %v", err)
	}
}
