package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

// memory is a source of one file in memory. fault, if any, is asked before each read: an error, or how many bytes the answer is short of.
type memory struct {
	data  []byte
	fault func(offset int64) (short int, err error)

	mu    sync.Mutex
	reads []int64 // offsets
}

func (m *memory) entry() fetch.Entry {
	return fetch.Entry{Path: "f", Size: node.Bytes(len(m.data)), Digest: digestOf(m.data)}
}

func (m *memory) List(context.Context) ([]fetch.Entry, error) { return []fetch.Entry{m.entry()}, nil }
func (m *memory) String() string                              { return "memory" }

func (m *memory) Open(_ context.Context, _ fetch.Entry, offset, length int64) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads = append(m.reads, offset)
	if m.fault != nil {
		short, err := m.fault(offset)
		if err != nil {
			return nil, err
		}
		length -= int64(short)
	}
	return io.NopCloser(bytes.NewReader(m.data[offset : offset+length])), nil
}

// disk is a file in memory; a write from full on fails.
type disk struct {
	mu   sync.Mutex
	data []byte
	full int64
}

var errFull = errors.New("no space left")

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full > 0 && at >= d.full {
		return 0, errFull
	}
	return copy(d.data[at:], b), nil
}

func (d *disk) ReadAt(b []byte, at int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(b, d.data[at:]), nil
}

func TestCopySizes(t *testing.T) {
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20} {
		m := &memory{data: random(size)}
		d := &disk{data: make([]byte, size)}
		digest, err := fetch.NewCopier(m, quick()).Copy(t.Context(), m.entry(), d, fetch.Resume{})
		if err != nil || digest != digestOf(m.data) || !bytes.Equal(d.data, m.data) {
			t.Errorf("%d bytes: %s, %v", size, digest, err)
		}
	}
}

// TestCopyResume breaks a copy off at every part, and goes on from what the last checkpoint said: nothing that it named is read again, and the
// digest is that of all.
func TestCopyResume(t *testing.T) {
	const parts = 16
	for stop := range parts {
		m := &memory{data: random(parts << 16)}
		d := &disk{data: make([]byte, len(m.data))}
		broken := errors.Join(fetch.ErrDenied)
		m.fault = func(offset int64) (int, error) {
			if offset == int64(stop)<<16 {
				return 0, broken
			}
			return 0, nil
		}
		var last fetch.Resume
		o := quick()
		o.Checkpoint = func(_ fetch.Entry, r fetch.Resume) error { last = r; return nil }
		if _, err := fetch.NewCopier(m, o).Copy(t.Context(), m.entry(), d, fetch.Resume{}); !errors.Is(err, fetch.ErrDenied) {
			t.Fatal(err)
		}
		have := map[int64]bool{}
		for i := range parts {
			if last.Parts[i/8]&(1<<(i%8)) != 0 {
				have[int64(i)<<16] = true
			}
		}
		if len(have) < stop { // the parts before it had begun
			t.Errorf("stopped at part %d: %d parts kept", stop, len(have))
		}
		for at := range d.data { // what is not named may be anything
			if !have[int64(at)&^0xffff] {
				d.data[at] = 0xee
			}
		}
		m.fault, m.reads = nil, nil
		digest, err := fetch.NewCopier(m, o).Copy(t.Context(), m.entry(), d, last)
		if err != nil || digest != digestOf(m.data) || !bytes.Equal(d.data, m.data) {
			t.Fatalf("stopped at part %d: %v", stop, err)
		}
		for _, at := range m.reads {
			if have[at] {
				t.Errorf("stopped at part %d: %d was read again", stop, at)
			}
		}
		if len(m.reads)+len(have) != parts {
			t.Errorf("stopped at part %d: %d kept, %d read", stop, len(have), len(m.reads))
		}
	}
}

func TestCopyResumeDamaged(t *testing.T) {
	m := &memory{data: random(4 << 16)}
	d := &disk{data: make([]byte, len(m.data))}
	for name, tc := range map[string]struct {
		r    fetch.Resume
		fine bool
	}{
		"other parts":       {fetch.Resume{Part: 1 << 17, Parts: []byte{0xff}}, true},
		"too few bits":      {fetch.Resume{Part: 1 << 16}, true},
		"more than written": {fetch.Resume{Part: 1 << 16, Parts: []byte{1}, Hash: []byte("x"), Hashed: 1 << 17}, false},
		"no hash":           {fetch.Resume{Part: 1 << 16, Parts: []byte{1}, Hash: []byte("x"), Hashed: 1 << 16}, false},
	} {
		if _, err := fetch.NewCopier(m, quick()).Copy(t.Context(), m.entry(), d, tc.r); (err == nil) != tc.fine {
			t.Errorf("%s: %v", name, err)
		}
	}
	copy(d.data, m.data)
	d.data[5]++ // the disk lost a byte that the record says is there
	if _, err := fetch.NewCopier(m, quick()).Copy(t.Context(), m.entry(), d, fetch.Resume{Part: 1 << 16, Parts: []byte{0xf}}); !errors.Is(err, fetch.ErrDigest) {
		t.Errorf("bytes that are others: %v", err)
	}
}

func TestCopyShortAnswersGoOn(t *testing.T) {
	m := &memory{data: random(1 << 16)}
	answers := 0
	m.fault = func(offset int64) (int, error) {
		answers++
		return (len(m.data) - int(offset)) / 2, nil // half of what is left, until one byte is
	}
	d := &disk{data: make([]byte, len(m.data))}
	if _, err := fetch.NewCopier(m, quick()).Copy(t.Context(), m.entry(), d, fetch.Resume{}); err != nil {
		t.Fatal(err)
	}
	if answers != 17 { // each goes on where the one before broke off: 16 halves and the last byte
		t.Errorf("%d answers", answers)
	}
}

func TestCopyDiskFull(t *testing.T) {
	m := &memory{data: random(1 << 20)}
	d := &disk{data: make([]byte, len(m.data)), full: 1 << 18}
	if _, err := fetch.NewCopier(m, quick()).Copy(t.Context(), m.entry(), d, fetch.Resume{}); !errors.Is(err, errFull) {
		t.Fatal(err)
	}
	if len(m.reads) > 16 {
		t.Errorf("a full disk was tried again: %d reads", len(m.reads))
	}
}

func TestCopyCheckpointFails(t *testing.T) {
	m := &memory{data: random(1 << 20)}
	o := quick()
	o.Checkpoint = func(fetch.Entry, fetch.Resume) error { return errFull }
	if _, err := fetch.NewCopier(m, o).Copy(t.Context(), m.entry(), &disk{data: make([]byte, len(m.data))}, fetch.Resume{}); !errors.Is(err, errFull) {
		t.Fatal(err)
	}
}

// TestCopyCheckpoints: a crash loses less than 64 MiB and what is in flight.
func TestCopyCheckpoints(t *testing.T) {
	m := &memory{data: random(200 << 20)}
	o := fetch.Options{Workers: 2}
	var kept []node.Bytes
	o.Checkpoint = func(_ fetch.Entry, r fetch.Resume) error { kept = append(kept, r.Hashed); return nil }
	if _, err := fetch.NewCopier(m, o).Copy(t.Context(), m.entry(), &disk{data: make([]byte, len(m.data))}, fetch.Resume{}); err != nil {
		t.Fatal(err)
	}
	if len(kept) < 2 || kept[len(kept)-1] != node.Bytes(len(m.data)) {
		t.Errorf("checkpoints %v", kept)
	}
}

// TestCopyWaits runs in a bubble of its own time: what a busy source asks for is waited for, and giving up takes bounded time.
func TestCopyWaits(t *testing.T) {
	for _, tc := range []struct {
		name     string
		err      error
		times    int
		min, max time.Duration
		fails    bool
	}{
		{"Retry-After", &fetch.BusyError{Status: 503, After: 90 * time.Second}, 1, 90 * time.Second, 90 * time.Second, false},
		{"backoff doubles", io.ErrUnexpectedEOF, 4, 750 * time.Millisecond, 1500 * time.Millisecond, false},
		{"gives up", io.ErrUnexpectedEOF, 100, 6350 * time.Millisecond, 12700 * time.Millisecond, true},
		{"denied", fetch.ErrDenied, 100, 0, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				left := tc.times
				m := &memory{data: random(1000), fault: func(int64) (int, error) {
					if left--; left >= 0 {
						return 0, fmt.Errorf("read: %w", tc.err)
					}
					return 0, nil
				}}
				start := time.Now()
				_, err := fetch.NewCopier(m, fetch.Options{}).Copy(t.Context(), m.entry(), &disk{data: make([]byte, 1000)}, fetch.Resume{})
				if passed := time.Since(start); (err != nil) != tc.fails || passed < tc.min || passed > tc.max {
					t.Errorf("after %s: %v", passed, err)
				}
			})
		})
	}
}

func TestCopyCancel(t *testing.T) {
	why := errors.New("nobody asks for it")
	ctx, cancel := context.WithCancelCause(t.Context())
	m := &memory{data: random(1 << 20)}
	m.fault = func(int64) (int, error) { cancel(why); return 0, fetch.ErrBusy }
	if _, err := fetch.NewCopier(m, fetch.Options{Part: 1 << 16}).Copy(ctx, m.entry(), &disk{data: make([]byte, len(m.data))}, fetch.Resume{}); !errors.Is(err, why) {
		t.Fatal(err)
	}
}

// TestCopyShared copies several files at once by one Copier, and looks that no more parts than workers are in flight.
func TestCopyShared(t *testing.T) {
	m := &memory{data: random(1 << 20)}
	o := quick()
	var mu sync.Mutex
	var seen fetch.Progress
	o.Progress = func(_ fetch.Entry, _ node.Bytes, total fetch.Progress) { mu.Lock(); seen = total; mu.Unlock() }
	c := fetch.NewCopier(m, o)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if _, err := c.Copy(t.Context(), m.entry(), &disk{data: make([]byte, len(m.data))}, fetch.Resume{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if c.Progress().Bytes != 5<<20 || seen.Bytes == 0 || seen.Workers > 4 {
		t.Errorf("progress %+v, last told %+v", c.Progress(), seen)
	}
}

// BenchmarkCopy is a load from a server on loopback into a file, verified, beside what one reader gets from the same server without checks: the
// source's own limit. Both ends share the machine. The capped source gives 200 MB a second to all of its connections together, as a network would.
func BenchmarkCopy(b *testing.B) {
	data := random(128 << 20)
	for name, rate := range map[string]float64{"loopback": 0, "capped": 200e6} {
		l := &link{rate: rate}
		s := newSite(b, data, func(s *site, _ int64, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("ETag", s.etag)
			http.ServeContent(w, r, "file", time.Time{}, l.over(s.data))
			return true
		})
		spec, err := fetch.ParseSpec(s.URL + "/file")
		if err != nil {
			b.Fatal(err)
		}
		src, err := fetch.Open(b.Context(), spec, loopback(), fetch.Credentials{})
		if err != nil {
			b.Fatal(err)
		}
		entries, err := src.List(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		file, err := os.Create(filepath.Join(b.TempDir(), "file"))
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		bench := func(what string, load func(b *testing.B)) {
			b.Run(name+"/"+what, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					load(b)
				}
			})
		}
		bench("source", func(b *testing.B) {
			r, err := src.Open(b.Context(), entries[0], 0, int64(len(data)))
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			if _, err := io.Copy(io.NewOffsetWriter(file, 0), r); err != nil {
				b.Fatal(err)
			}
		})
		bench("copy", func(b *testing.B) {
			if _, err := fetch.NewCopier(src, fetch.Options{Part: 8 * node.MiB}).Copy(b.Context(), entries[0], file, fetch.Resume{}); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// link lets so many bytes a second through, 0 is all.
type link struct {
	rate float64
	mu   sync.Mutex
	free time.Time // when it has sent what it took
}

// linked reads bytes through a link.
type linked struct {
	*bytes.Reader
	l *link
}

func (l *link) over(data []byte) io.ReadSeeker { return &linked{bytes.NewReader(data), l} }

// WriteTo hides the reader's own, which would pass the link by.
func (r *linked) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{r})
}

func (r *linked) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b[:min(len(b), 64<<10)])
	if r.l.rate > 0 {
		r.l.mu.Lock()
		if burst := time.Now().Add(-50 * time.Millisecond); r.l.free.Before(burst) { // what a late timer missed is made up for
			r.l.free = burst
		}
		r.l.free = r.l.free.Add(time.Duration(float64(n) / r.l.rate * float64(time.Second)))
		wait := time.Until(r.l.free)
		r.l.mu.Unlock()
		if wait > 5*time.Millisecond {
			time.Sleep(wait)
		}
	}
	return n, err
}
