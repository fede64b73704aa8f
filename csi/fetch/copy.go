package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// File is where an entry's bytes go: a file of the entry's size or less, which Copy alone writes. It is read to hash what was written.
type File interface {
	io.WriterAt
	io.ReaderAt
}

// Resume is how far an earlier Copy of the same entry came; the zero value is the start. Its parts are of the same size as the
// Options' that it was made with.
type Resume struct {
	Part   node.Bytes `json:"part"`             // of the parts below
	Parts  []byte     `json:"parts,omitempty"`  // a bit a part, the lowest first: it is written
	Hash   []byte     `json:"hash,omitempty"`   // the state of sha256 after Hashed bytes
	Hashed node.Bytes `json:"hashed,omitempty"` // bytes
}

// Progress is how a Copier fares. A reader takes the difference of two.
type Progress struct {
	Bytes   node.Bytes    // written, of all entries; what was there before counts not
	Retries int           // of parts
	Reading time.Duration // waited for the source, over all workers
	Writing time.Duration // waited for the disk
	Workers int           // parts that may be in flight
}

// LimitedBy names what the Copier waits for more: "source" or "disk".
func (p Progress) LimitedBy() string {
	if p.Writing > p.Reading {
		return "disk"
	}
	return "source"
}

// Options of a Copier. The zero value serves.
type Options struct {
	Part     node.Bytes    // of a range; 16 MiB
	Workers  int           // parts in flight at most, over all entries; twice the cores, at least 4
	Attempts int           // of a part, in a row, without one byte; 8
	Backoff  time.Duration // before the second attempt, doubled for each further; 100 ms
	Longest  time.Duration // that one backoff may last; 10 s

	// Checkpoint is called about every 64 MiB of an entry, and before Copy returns: what r says is written to the file, not synced yet.
	// It syncs, keeps r, and returns; parts are read on meanwhile. An error ends the copy. nil keeps nothing.
	Checkpoint func(e Entry, r Resume) error
	// Progress is called after each part, by one goroutine at a time.
	Progress func(e Entry, written node.Bytes, total Progress)
}

// checkpointEvery bounds what a crash loses.
const checkpointEvery = 64 * node.MiB

// Copier reads entries of a source in parts, as many at once as help. Copy may be called for several entries at once; they share the workers,
// and so the memory: one buffer each.
type Copier struct {
	src  Source
	o    Options
	gate *gate

	mu sync.Mutex
	p  Progress
}

// NewCopier makes one for a source.
func NewCopier(src Source, o Options) *Copier {
	if o.Part == 0 {
		o.Part = 16 * node.MiB
	}
	if o.Workers == 0 {
		o.Workers = defaultWorkers()
	}
	if o.Attempts == 0 {
		o.Attempts = 8
	}
	if o.Backoff == 0 {
		o.Backoff = 100 * time.Millisecond
	}
	if o.Longest == 0 {
		o.Longest = 10 * time.Second
	}
	return &Copier{src: src, o: o, gate: newGate(o.Workers)}
}

// Progress is how far it is.
func (c *Copier) Progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.p
	p.Workers = c.gate.limit()
	return p
}

// Copy reads an entry into a file, from where r ends, and returns the digest of all of it, "sha256:…". Where the source promised
// another, the error is ErrDigest.
func (c *Copier) Copy(ctx context.Context, e Entry, to File, r Resume) (string, error) {
	digest, err := c.copy(ctx, e, to, r)
	if err != nil {
		return digest, fmt.Errorf("copy %s: %w", e.Path, err)
	}
	return digest, nil
}

func (c *Copier) copy(ctx context.Context, e Entry, to File, r Resume) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b, err := newBook(e, c.o.Part, r)
	if err != nil {
		return "", err
	}
	var work sync.WaitGroup
	work.Go(func() {
		if err := b.hash(ctx, to); err != nil {
			cancel(err)
		}
	})
	if c.o.Checkpoint != nil {
		work.Go(func() {
			for b.due(ctx) {
				if err := c.o.Checkpoint(e, b.resume()); err != nil {
					cancel(fmt.Errorf("checkpoint: %w", err))
				}
			}
		})
	}
	for part := range b.missing() {
		if err := c.gate.enter(ctx); err != nil {
			break
		}
		work.Go(func() {
			defer c.gate.leave()
			if err := c.part(ctx, e, to, b, part); err != nil {
				cancel(err)
			}
		})
	}
	work.Wait()
	// A failed try keeps what it has, too: the next one begins there.
	cause := context.Cause(ctx)
	if c.o.Checkpoint != nil {
		if err := c.o.Checkpoint(e, b.resume()); err != nil {
			cause = errors.Join(cause, fmt.Errorf("checkpoint: %w", err))
		}
	}
	if cause != nil {
		return "", cause
	}
	digest := b.digest()
	if e.Digest != "" && digest != e.Digest {
		return digest, fmt.Errorf("%w: %s was promised, the bytes are %s", ErrDigest, e.Digest, digest)
	}
	return digest, nil
}

// part reads one part, as often as it is worth it. What came of a broken answer stays.
func (c *Copier) part(ctx context.Context, e Entry, to File, b *book, part int) error {
	offset, end := b.span(part)
	for attempt := 1; ; attempt++ {
		n, err := c.read(ctx, e, to, offset, end-offset)
		switch {
		case err == nil:
			c.gate.note(n, true)
			b.wrote(part)
			if c.o.Progress != nil {
				c.report(e, b)
			}
			return nil
		case !worthRetry(ctx, err):
			return err
		}
		c.gate.note(n, false)
		if !e.Whole { // else every answer starts at the start
			if offset += n; n > 0 {
				attempt = 1
			}
		}
		if attempt >= c.o.Attempts {
			return fmt.Errorf("gave up after %d attempts: %w", attempt, err)
		}
		c.mu.Lock()
		c.p.Retries++
		c.mu.Unlock()
		if err := sleep(ctx, backoff(c.o, attempt, err)); err != nil {
			return err
		}
	}
}

func (c *Copier) report(e Entry, b *book) {
	limit := c.gate.limit()
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.p
	p.Workers = limit
	c.o.Progress(e, b.written(), p)
}

// buffers are what the workers copy through.
var buffers = sync.Pool{New: func() any { b := make([]byte, 1<<20); return &b }}

// writeError tells a disk's error from a source's.
type writeError struct{ err error }

func (w writeError) Error() string { return "write: " + w.err.Error() }
func (w writeError) Unwrap() error { return w.err }

// read copies what one answer gives, and says how much that was.
func (c *Copier) read(ctx context.Context, e Entry, to File, offset, length int64) (done int64, err error) {
	var reading, writing time.Duration
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.p.Bytes += node.Bytes(done)
		c.p.Reading += reading
		c.p.Writing += writing
	}()
	start := time.Now()
	lap := func(d *time.Duration) { now := time.Now(); *d += now.Sub(start); start = now }
	body, err := c.src.Open(ctx, e, offset, length)
	lap(&reading)
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }()
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for done < length {
		n, err := io.ReadAtLeast(body, (*buffer)[:min(int64(len(*buffer)), length-done)], 1)
		for err == nil && n < len(*buffer) && done+int64(n) < length { // fill it: few large writes, not many of a packet
			var more int
			more, err = body.Read((*buffer)[n:min(int64(len(*buffer)), length-done)])
			n += more
		}
		lap(&reading)
		if n > 0 {
			if _, err := to.WriteAt((*buffer)[:n], offset+done); err != nil {
				return done, writeError{err}
			}
			lap(&writing)
			done += int64(n)
		}
		if err != nil && done < length {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return done, err
		}
	}
	return done, nil
}

// worthRetry tells what may pass from what stays.
func worthRetry(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	for _, final := range []error{ErrNotFound, ErrDenied, ErrChanged, ErrRefused, ErrLimit, ErrDigest} {
		if errors.Is(err, final) {
			return false
		}
	}
	var disk writeError
	var unknown *tls.CertificateVerificationError
	return !errors.As(err, &disk) && !errors.As(err, &unknown)
}

// backoff is how long to wait after so many attempts: half of it by chance, so that nodes do not come back all at once.
func backoff(o Options, attempt int, err error) time.Duration {
	d := min(o.Backoff<<min(attempt-1, 20), o.Longest)
	d = d/2 + rand.N(d/2+1)
	var busy *BusyError
	if errors.As(err, &busy) {
		d = max(d, busy.After)
	}
	return d
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
