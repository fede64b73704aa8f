package dataset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"sync/atomic"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
)

// fakeSource is a source in memory. It counts what it serves, and lies where it is told to.
type fakeSource struct {
	name    string
	files   map[string][]byte
	digests bool         // it tells them
	flip    string       // a path whose bytes are not those of the digest
	served  atomic.Int64 // bytes
	open    func()       // called at each Open
}

func (f *fakeSource) String() string { return f.name }

func (f *fakeSource) List(context.Context) ([]fetch.Entry, error) {
	var all []fetch.Entry
	for path, b := range f.files {
		e := fetch.Entry{Path: path, Size: node.Bytes(len(b)), Version: "1"}
		if f.digests {
			sum := sha256.Sum256(b)
			e.Digest = "sha256:" + hex.EncodeToString(sum[:])
		}
		all = append(all, e)
	}
	return all, nil
}

func (f *fakeSource) Open(_ context.Context, e fetch.Entry, offset, length int64) (io.ReadCloser, error) {
	if f.open != nil {
		f.open()
	}
	b := bytes.Clone(f.files[e.Path][offset : offset+length])
	if f.flip == e.Path {
		b[0] ^= 1
	}
	f.served.Add(length)
	return io.NopCloser(bytes.NewReader(b)), nil
}

// noise is the same bytes for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(s).Read(b)
	return b
}
