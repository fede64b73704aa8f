package dataset

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
)

// checkpoint is how far an entry came. Without Blob, the bytes are in a file beside it.
type checkpoint struct {
	Entry  fetch.Entry  `json:"entry"` // another one of this path at the source starts anew
	Resume fetch.Resume `json:"resume"`
	Blob   string       `json:"blob,omitempty"` // verified, and a blob or about to be renamed to one
}

// load is one call of Load.
type load struct {
	s       *Store
	key     string
	saved   *durable.Store[checkpoint]
	mu      sync.Mutex
	written map[string]node.Bytes // by path
	need    node.Bytes
	report  func(done, total node.Bytes, p fetch.Progress)
	copier  *fetch.Copier
	was     map[string]checkpoint
	files   map[string]*os.File // by path, of what is copied
}

// Load makes a source's tree, from where an earlier Load of it ended, and returns its digest. report is called with bytes of this call; it may be
// nil. A load that is cut short keeps what it has.
func (s *Store) Load(ctx context.Context, src fetch.Source, report func(done, total node.Bytes, p fetch.Progress)) (digest string, err error) {
	l := &load{s: s, key: key(src.String()), written: map[string]node.Bytes{}, report: report, files: map[string]*os.File{}}
	s.mu.Lock()
	busy := s.loading[l.key]
	s.loading[l.key] = true
	s.mu.Unlock()
	if busy {
		return "", fmt.Errorf("load %s: %w", src, ErrLoading)
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.loading, l.key)
		delete(s.reserved, l.key)
	}()
	if digest, err = l.run(ctx, src); err != nil {
		return "", fmt.Errorf("load %s: %w", src, err)
	}
	return digest, nil
}

func (l *load) run(ctx context.Context, src fetch.Source) (string, error) {
	entries, err := src.List(ctx)
	if err != nil {
		return "", err
	}
	if _, err := fetch.CheckEntries(entries, l.s.c.Policy); err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.Archive != "" {
			return "", fmt.Errorf("%s is an archive (%s); the store keeps plain files alone: use a source of plain files", e.Path, e.Archive)
		}
	}
	if l.saved, err = durable.Open[checkpoint](l.path("state")); err != nil {
		return "", err
	}
	defer func() { _ = l.saved.Close() }()
	if l.was, _, err = l.saved.Load(); err != nil {
		return "", err
	}
	blobs, err := l.blobs(ctx, src, entries)
	defer l.drop(blobs)
	if err != nil {
		return "", err
	}
	return l.publish(src, entries, blobs)
}

// blobs brings every entry's blob, and holds it until drop.
func (l *load) blobs(ctx context.Context, src fetch.Source, entries []fetch.Entry) ([]string, error) {
	blobs := make([]string, len(entries))
	for i, e := range entries {
		var err error
		if blobs[i], err = l.have(e); err != nil {
			return blobs, err
		}
		if blobs[i] == "" {
			l.need += e.Size - min(e.Size, l.kept(e))
		}
	}
	if err := l.s.reserve(l.key, l.need); err != nil {
		return blobs, err
	}
	o := l.s.c.Copy
	o.Checkpoint, o.Progress = l.checkpoint, l.progress
	l.copier = fetch.NewCopier(src, o)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	slots := make(chan struct{}, 4) // files at once: parts are parallel already, small files are not
	for i, e := range entries {
		if blobs[i] != "" {
			continue
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			blob, err := l.bring(ctx, e)
			if err != nil {
				cancel(err)
			}
			blobs[i] = blob
		})
	}
	work.Wait()
	return blobs, context.Cause(ctx)
}

// have holds an entry's blob where it is here: known by the source's digest, or by the checkpoint of an entry that was done.
func (l *load) have(e fetch.Entry) (blob string, err error) {
	if e.Digest != "" {
		blob = blobName(e, e.Digest)
	}
	if c := l.was[key(e.Path)]; c.Blob != "" && c.Entry == e {
		blob = c.Blob
		if err := l.place(e, blob); err != nil {
			return "", err
		}
	}
	if blob == "" {
		return "", nil
	}
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	st, err := os.Lstat(l.s.path("blobs", blob))
	if err != nil || node.Bytes(st.Size()) != e.Size {
		return "", nil
	}
	l.s.held[blob]++
	return blob, nil
}

// kept is what an earlier load wrote of an entry.
func (l *load) kept(e fetch.Entry) node.Bytes {
	if c := l.was[key(e.Path)]; c.Entry == e {
		return c.Resume.Hashed
	}
	return 0
}

// bring copies an entry, and makes a blob of it.
func (l *load) bring(ctx context.Context, e fetch.Entry) (string, error) {
	f, err := os.OpenFile(l.part(e), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	var from fetch.Resume
	if c := l.was[key(e.Path)]; c.Entry == e && c.Blob == "" && l.fits(f, e, c.Resume) {
		from = c.Resume
	} else if err := l.saved.Delete(key(e.Path)); err != nil { // first: else it would vouch for what is written next
		return "", err
	} else if err := f.Truncate(0); err != nil {
		return "", err
	}
	l.mu.Lock()
	l.files[e.Path] = f
	l.mu.Unlock()
	l.s.c.at("copy")
	digest, err := l.copier.Copy(ctx, e, f, from)
	if errors.Is(err, fetch.ErrDigest) {
		return "", errors.Join(err, l.setAside(e))
	}
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Chmod(mode(e)), f.Sync()); err != nil {
		return "", err
	}
	l.s.c.at("copied")
	blob := blobName(e, digest)
	l.s.mu.Lock()
	l.s.held[blob]++ // before it is a blob: a sweep must not find it unheld
	l.s.mu.Unlock()
	if err := l.saved.Put(key(e.Path), checkpoint{Entry: e, Blob: blob}); err != nil {
		return blob, err
	}
	l.s.c.at("done")
	return blob, l.place(e, blob)
}

// place makes a verified part a blob. One that is there stays: trees link to it.
func (l *load) place(e fetch.Entry, blob string) error {
	if err := os.Link(l.part(e), l.s.path("blobs", blob)); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l.s.c.at("blob")
	if err := os.Remove(l.part(e)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// fits says whether a checkpoint is of the file that is here: a part that was synced reaches as far as it was hashed.
func (l *load) fits(f *os.File, e fetch.Entry, r fetch.Resume) bool {
	st, err := f.Stat()
	part := cmp.Or(l.s.c.Copy.Part, 16*node.MiB)
	return err == nil && r.Part == part && node.Bytes(st.Size()) <= e.Size && node.Bytes(st.Size()) >= r.Hashed
}

func (l *load) setAside(e fetch.Entry) error {
	if err := l.saved.Delete(key(e.Path)); err != nil {
		return err
	}
	return os.Rename(l.part(e), l.s.path("aside", key(e.Path)))
}

func (l *load) checkpoint(e fetch.Entry, r fetch.Resume) error {
	l.mu.Lock()
	f := l.files[e.Path]
	l.mu.Unlock()
	if err := f.Sync(); err != nil {
		return err
	}
	l.s.c.at("synced")
	return l.saved.Put(key(e.Path), checkpoint{Entry: e, Resume: r})
}

// progress turns what was promised into what is written.
func (l *load) progress(_ fetch.Entry, _ node.Bytes, p fetch.Progress) {
	left := l.need - min(l.need, p.Bytes)
	l.s.mu.Lock()
	l.s.reserved[l.key] = left
	l.s.mu.Unlock()
	if l.report != nil {
		l.report(min(p.Bytes, l.need), l.need, p)
	}
}

func (l *load) drop(blobs []string) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, b := range blobs {
		if l.s.held[b]--; l.s.held[b] <= 0 {
			delete(l.s.held, b)
		}
	}
}

func (l *load) path(p ...string) string {
	return l.s.path(append([]string{"incoming", l.key}, p...)...)
}
func (l *load) part(e fetch.Entry) string { return l.path(key(e.Path) + ".part") }

// blobName tells programs from data: a hard link has the mode of its inode.
func blobName(e fetch.Entry, digest string) string {
	if e.Executable {
		return strings.TrimPrefix(digest, "sha256:") + ".x"
	}
	return strings.TrimPrefix(digest, "sha256:")
}

func mode(e fetch.Entry) os.FileMode {
	if e.Executable {
		return 0o555
	}
	return 0o444
}

// index is the canonical one: sorted by path, as entries are.
func index(entries []fetch.Entry, blobs []string) (text []byte, name string, err error) {
	var x fetch.Index
	for i, e := range entries {
		x.Files = append(x.Files, fetch.IndexFile{Path: e.Path, Size: e.Size, SHA256: strings.TrimSuffix(blobs[i], ".x"), Executable: e.Executable})
	}
	if text, err = json.Marshal(x); err != nil {
		return nil, "", err
	}
	return text, key(string(text)), nil
}
