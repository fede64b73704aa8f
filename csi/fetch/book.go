package fetch

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/kerf-gpu/kerf/internal/node"
)

// book knows which parts of one entry are written, and hashes them in order behind the workers. The bytes are read back from
// the file: they are in the page cache, and memory stays bounded however far the workers are ahead.
type book struct {
	size, part int64

	mu      sync.Mutex
	bits    []byte
	done    int64 // bytes written
	front   int   // parts before it are written
	since   int64 // bytes written since the last checkpoint
	sum     hash.Hash
	state   []byte // of sum, after hashed bytes
	hashed  int64
	ended   bool
	changed chan struct{} // closed, and made new, at each change
}

func newBook(e Entry, part node.Bytes, r Resume) (*book, error) {
	if e.Whole {
		part = max(e.Size, 1)
	}
	b := &book{size: int64(e.Size), part: int64(part), sum: sha256.New(), changed: make(chan struct{})}
	b.bits = make([]byte, (b.parts()+7)/8)
	b.ended = b.size == 0
	if r.Part != part || len(r.Parts) != len(b.bits) { // another size: nothing of it can be used
		return b, nil
	}
	copy(b.bits, r.Parts)
	for i := range b.parts() {
		if b.has(i) {
			from, to := b.span(i)
			b.done += to - from
		}
	}
	b.advance()
	if r.Hashed == 0 {
		return b, nil
	}
	if from, _ := b.span(b.front); int64(r.Hashed) > from {
		return nil, fmt.Errorf("the state to resume from has hashed %s, of %d bytes that are there; remove it to start again", r.Hashed, from)
	}
	if err := b.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.Hash); err != nil {
		return nil, fmt.Errorf("the state to resume from is damaged; remove it to start again: %w", err)
	}
	b.hashed, b.state, b.ended = int64(r.Hashed), slices.Clone(r.Hash), int64(r.Hashed) == b.size
	return b, nil
}

func (b *book) parts() int { return int((b.size + b.part - 1) / b.part) }

func (b *book) span(i int) (from, to int64) {
	return min(int64(i)*b.part, b.size), min(int64(i+1)*b.part, b.size)
}

func (b *book) has(i int) bool { return b.bits[i/8]&(1<<(i%8)) != 0 }

// missing are the parts to read, in order.
func (b *book) missing() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range b.parts() {
			b.mu.Lock()
			has := b.has(i)
			b.mu.Unlock()
			if !has && !yield(i) {
				return
			}
		}
	}
}

func (b *book) advance() {
	for b.front < b.parts() && b.has(b.front) {
		b.front++
	}
}

func (b *book) signal() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *book) wrote(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	from, to := b.span(i)
	b.bits[i/8] |= 1 << (i % 8)
	b.done += to - from
	b.since += to - from
	b.advance()
	b.signal()
}

func (b *book) written() node.Bytes {
	b.mu.Lock()
	defer b.mu.Unlock()
	return node.Bytes(b.done)
}

// resume is a copy of the state. The parts it names are written by now.
func (b *book) resume() Resume {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Resume{Part: node.Bytes(b.part), Parts: slices.Clone(b.bits), Hash: slices.Clone(b.state), Hashed: node.Bytes(b.hashed)}
}

// due waits for the next checkpoint, and says that there is one.
func (b *book) due(ctx context.Context) bool {
	for {
		b.mu.Lock()
		due, ended, changed := b.since >= int64(checkpointEvery), b.ended, b.changed
		if due {
			b.since = 0
		}
		b.mu.Unlock()
		if due || ended {
			return due && !ended
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// hash follows the workers to the end.
func (b *book) hash(ctx context.Context, from io.ReaderAt) error {
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	for {
		b.mu.Lock()
		at, ended, changed := b.hashed, b.ended, b.changed
		front, _ := b.span(b.front)
		b.mu.Unlock()
		switch {
		case ended:
			return nil
		case at == front:
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		n, err := from.ReadAt((*buffer)[:min(int64(len(*buffer)), front-at)], at)
		if n == 0 {
			return fmt.Errorf("read back at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
		}
		b.sum.Write((*buffer)[:n])
		state, err := b.sum.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.hashed, b.state = at+int64(n), state
		b.ended = b.hashed == b.size
		if b.ended {
			b.signal()
		}
		b.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (b *book) digest() string { return "sha256:" + hex.EncodeToString(b.sum.Sum(nil)) }
