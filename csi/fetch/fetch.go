// Package fetch reads datasets from where they are kept: S3, HTTP, OCI registries, Hugging Face's layout over HTTP, other nodes.
//
// Vocabulary: a source is one place that a dataset comes from, pinned: what it lists is what it serves, or a read fails. An entry is a file
// of it. A part is a range of an entry, which one request reads.
//
// Traps
//
//   - This runs as root on a node, and the address is a tenant's: where it may connect is decided when it connects, after the name was resolved
//     and at every redirect.
//   - A body may end early without an error, and a server may have other bytes by now: every range states which version it is of.
package fetch

import (
	"context"
	"errors"
	"io"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Entry is a file of a dataset.
type Entry struct {
	Path       string     // slash-separated, relative, clean
	Size       node.Bytes // of what Open gives
	Digest     string     // "sha256:…" of what Open gives; "" where the source does not tell
	Version    string     // what pins it at the source: an ETag, a version id, a blob's digest; "" where there is none
	Executable bool
	Archive    string // "tar", "tar+gzip", "tar+zstd": a layer, whose files stand for it in the tree; "" is a plain file
	Whole      bool   // the source serves no ranges of it: it is read from the start, in one go
}

// Source is one dataset where it is kept.
type Source interface {
	// List is every file, sorted by path. Its answer does not change while the process lives.
	List(ctx context.Context) ([]Entry, error)
	// Open reads length bytes of an entry from an offset. Other bytes than those that were listed are ErrChanged; fewer are
	// io.ErrUnexpectedEOF.
	Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error)
	// String names it for people, without secrets.
	String() string
}

// Why a source does not serve. They are wrapped in errors that name the object and what to do.
var (
	ErrNotFound = errors.New("not found")
	ErrDenied   = errors.New("access denied")
	ErrChanged  = errors.New("changed at the source")
	ErrRefused  = errors.New("refused by policy") // an address that a tenant may not name
	ErrBusy     = errors.New("source is busy")    // worth another try, as are errors of the network
	ErrDigest   = errors.New("digest mismatch")   // all bytes came, and they are not those that were promised
	ErrLimit    = errors.New("over the limit")    // more files, more bytes or longer names than the policy allows
)
