package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

// random are bytes that differ everywhere, the same ones each time.
func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// loopback is a policy for servers of this test: plain HTTP on 127.0.0.1, and a short patience.
func loopback() fetch.Policy {
	return fetch.Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Plain: true, Stall: 200 * time.Millisecond, MinRate: 100}
}

func open(t *testing.T, url string, p fetch.Policy, c fetch.Credentials) fetch.Source {
	t.Helper()
	spec, err := fetch.ParseSpec(url)
	if err != nil {
		t.Fatal(err)
	}
	src, err := fetch.Open(t.Context(), spec, p, c)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func list(t *testing.T, src fetch.Source) []fetch.Entry {
	t.Helper()
	entries, err := src.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// quick are options whose parts are small and whose patience is short.
func quick() fetch.Options {
	return fetch.Options{Part: 64 * node.KiB, Workers: 4, Attempts: 4, Backoff: time.Millisecond, Longest: 50 * time.Millisecond}
}

// load lists a source of one file and copies it.
func load(ctx context.Context, t *testing.T, src fetch.Source, o fetch.Options) ([]byte, error) {
	t.Helper()
	entries, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	if len(entries) != 1 {
		t.Fatalf("%d files, want 1", len(entries))
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := fetch.NewCopier(src, o).Copy(ctx, entries[0], file, fetch.Resume{}); err != nil {
		return nil, err
	}
	return os.ReadFile(file.Name())
}

// site serves one file, /file, with ETag and ranges as net/http does it, after a row's fault had its turn. The fault says whether it answered.
type site struct {
	*httptest.Server
	asked atomic.Int64
	data  []byte
	etag  string
}

func newSite(t testing.TB, data []byte, fault func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool) *site {
	s := &site{data: data, etag: `"one"`}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := s.asked.Add(1); fault == nil || !fault(s, n, w, r) {
			w.Header().Set("ETag", s.etag)
			http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(s.data))
		}
	}))
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return s
}

// cut answers a range right, but ends in the middle of it.
func cut(s *site, w http.ResponseWriter, r *http.Request) {
	var from, to int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
		panic(err)
	}
	w.Header().Set("ETag", s.etag)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(s.data)))
	w.Header().Set("Content-Length", strconv.Itoa(to-from+1))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(s.data[from : (from+to+1)/2])
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

// TestHostileServers: each row is one fault of a server over HTTP, and what a load makes of it. A nil error is a load that is whole.
func TestHostileServers(t *testing.T) {
	data := random(300 << 10)
	for _, tc := range []struct {
		name     string
		fault    func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool
		fragment string
		want     error
		text     string
	}{
		{name: "honest"},
		{name: "truncated bodies", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 && n%2 == 0 {
				cut(s, w, r)
				panic(http.ErrAbortHandler)
			}
			return false
		}},
		{name: "never more than half a body", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 && !strings.HasSuffix(r.Header.Get("Range"), "0-0") {
				cut(s, w, r)
				panic(http.ErrAbortHandler)
			}
			return false
		}, want: io.ErrUnexpectedEOF},
		{name: "changed ETag mid-way", fault: func(s *site, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n > 3 {
				w.Header().Set("ETag", `"two"`)
				http.Error(w, "", http.StatusPreconditionFailed)
			}
			return n > 3
		}, want: fetch.ErrChanged},
		{name: "changed ETag, If-Match ignored", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 3 {
				r.Header.Del("If-Match")
				w.Header().Set("ETag", `"two"`)
				http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(s.data))
			}
			return n > 3
		}, want: fetch.ErrChanged},
		{name: "another size", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 3 {
				w.Header().Set("ETag", s.etag)
				http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(append(s.data[:len(s.data):len(s.data)], 1)))
			}
			return n > 3
		}, want: fetch.ErrChanged},
		{name: "500 at times", fault: func(_ *site, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n%3 == 2 {
				http.Error(w, "", http.StatusInternalServerError)
			}
			return n%3 == 2
		}},
		{name: "500 always", fault: func(_ *site, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n > 1 {
				http.Error(w, "", http.StatusInternalServerError)
			}
			return n > 1
		}, want: fetch.ErrBusy, text: "500"},
		{name: "429 with Retry-After", fault: func(_ *site, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n == 2 {
				w.Header().Set("Retry-After", "1")
				http.Error(w, "", http.StatusTooManyRequests)
			}
			return n == 2
		}},
		{name: "slow loris", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				cut(s, w, r) // and then nothing more
				<-r.Context().Done()
			}
			return n > 1
		}, want: fetch.ErrBusy, text: "less than"},
		{name: "slow loris once", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n == 2 {
				cut(s, w, r)
				<-r.Context().Done()
			}
			return n == 2
		}},
		{name: "wrong digest", fragment: "#sha256:" + strings.Repeat("0", 64), want: fetch.ErrDigest},
		{name: "wrong range", fault: func(s *site, n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				r.Header.Set("Range", "bytes=5-9")
			}
			return false
		}, text: "asked for bytes"},
		{name: "no ranges", fault: func(_ *site, _ int64, _ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}},
		{name: "no ETag, no date", fault: func(s *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
			http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(s.data))
			return true
		}, text: "give the file's digest"},
		{name: "credentials that expire", fault: func(_ *site, n int64, w http.ResponseWriter, _ *http.Request) bool {
			if n > 3 {
				http.Error(w, "", http.StatusUnauthorized)
			}
			return n > 3
		}, want: fetch.ErrDenied, text: "may have expired"},
		{name: "gone", fault: func(_ *site, n int64, w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "", http.StatusNotFound)
			return true
		}, want: fetch.ErrNotFound},
		{name: "redirect to the metadata service", fault: func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data/", http.StatusFound)
			return true
		}, want: fetch.ErrRefused, text: "metadata"},
		{name: "redirect to a private address", fault: func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://10.0.0.1/", http.StatusFound)
			return true
		}, want: fetch.ErrRefused, text: "not a public address"},
		{name: "redirect without end", fault: func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "/file", http.StatusFound)
			return true
		}, want: fetch.ErrRefused, text: "redirects"},
		{name: "encoded", fault: func(_ *site, _ int64, w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Encoding", "gzip")
			return false
		}, text: "encodes"},
		{name: "signed URL in an error", fault: func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://127.0.0.1:1/file?X-Amz-Signature=hunter2", http.StatusFound)
			return true
		}, text: "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, data, tc.fault)
			src := open(t, s.URL+"/file"+tc.fragment, loopback(), fetch.Credentials{Token: "hunter2"})
			got, err := load(t.Context(), t, src, quick())
			switch {
			case tc.want == nil && tc.text == "":
				if err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d bytes of %d, %v", len(got), len(data), err)
				}
			case err == nil:
				t.Fatal("loaded")
			case tc.want != nil && !errors.Is(err, tc.want), !strings.Contains(err.Error(), tc.text):
				t.Fatalf("error %v; want %v, with %q", err, tc.want, tc.text)
			case strings.Contains(err.Error(), "hunter2"):
				t.Fatalf("a secret in %v", err)
			}
		})
	}
}

func TestRedirectDropsCredentials(t *testing.T) {
	data := random(1000)
	var leaked atomic.Bool
	other := newSite(t, data, func(_ *site, _ int64, _ http.ResponseWriter, r *http.Request) bool {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "")
		return false
	})
	s := newSite(t, data, func(_ *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "Bearer hunter2" {
			http.Error(w, "", http.StatusUnauthorized)
			return true
		}
		http.Redirect(w, r, other.URL+"/file", http.StatusFound) // another port is another host
		return true
	})
	got, err := load(t.Context(), t, open(t, s.URL+"/file", loopback(), fetch.Credentials{Token: "hunter2"}), quick())
	if err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	if leaked.Load() {
		t.Fatal("the other host was given the credentials")
	}
	p := loopback()
	p.Hosts = []string{strings.TrimPrefix(s.URL, "http://")}
	if _, err := load(t.Context(), t, open(t, s.URL+"/file", p, fetch.Credentials{Token: "hunter2"}), quick()); !errors.Is(err, fetch.ErrRefused) {
		t.Fatalf("redirect to a host that is not allowed: %v", err)
	}
}

// TestServerRestart stops the server in the midst of a load, and starts it again on its port.
func TestServerRestart(t *testing.T) {
	data := random(1 << 20)
	var server *http.Server
	restarted := make(chan struct{})
	var asked atomic.Int64
	var l net.Listener
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 5 {
			go func() {
				defer close(restarted)
				server.Close()
				again, err := net.Listen("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				next := &http.Server{Handler: server.Handler}
				t.Cleanup(func() { next.Close() })
				go func() { _ = next.Serve(again) }()
			}()
			<-r.Context().Done()
			return
		}
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(data))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server = &http.Server{Handler: handler}
	go func() { _ = server.Serve(l) }()
	o := quick()
	o.Attempts = 20
	got, err := load(t.Context(), t, open(t, "http://"+l.Addr().String()+"/file", loopback(), fetch.Credentials{}), o)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	<-restarted
}
