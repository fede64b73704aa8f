package fetch

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/klauspost/compress/zstd"
)

// MemberKind is what a member of an archive is.
type MemberKind string

// The kinds. Others (devices, pipes, sockets) are refused.
const (
	MemberFile     MemberKind = "file"
	MemberDir      MemberKind = "directory"
	MemberSymlink  MemberKind = "symlink"
	MemberHardlink MemberKind = "hardlink" // to a file that came before
	MemberWhiteout MemberKind = "whiteout" // removes what a lower layer had at this path
	MemberOpaque   MemberKind = "opaque"   // removes all that lower layers had in this directory
)

// Member is something in an archive that may go into a tree. Owners, times, suid and sgid bits, and extended attributes are left out.
type Member struct {
	Path       string // clean
	Kind       MemberKind
	Target     string // a symlink's, relative and inside the tree; a hardlink's, a path
	Size       node.Bytes
	Executable bool
}

// Unpacker checks the archives of one tree, lowest layer first, and knows what they made: what lies below a symlink or a file is refused.
type Unpacker struct {
	policy Policy
	kinds  map[string]MemberKind
	count  int
	size   node.Bytes
}

// NewUnpacker makes one for an empty tree.
func NewUnpacker(p Policy) *Unpacker {
	return &Unpacker{policy: p.withDefaults(), kinds: map[string]MemberKind{}}
}

const (
	// maxRatio is how many times larger than its packed form an archive may be: text packs by 10, tables of zeros by some 100, bombs by 1000.
	maxRatio = 250
	// freeRatio is what any archive may hold, however small it is.
	freeRatio = 1 << 20
	maxWindow = 64 << 20 // of zstd: memory
)

// Unpack gives each member of an archive ("tar", "tar+gzip", "tar+zstd") to sink, a file with its bytes. The archive must have been verified:
// this reads as much of it as it needs, no more.
func (u *Unpacker) Unpack(r io.Reader, archive string, sink func(Member, io.Reader) error) error {
	packed := &counter{r: r}
	plain, done, err := decompress(packed, archive)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", archive, err)
	}
	defer done()
	bounded := &ratioReader{plain: counter{r: plain}, packed: packed}
	archived := tar.NewReader(bounded)
	for {
		h, err := archived.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", archive, err)
		}
		m, err := u.member(h)
		if err == nil && m.Kind != "" {
			err = sink(m, archived)
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %.80q: %w", archive, h.Name, err)
		}
	}
}

func decompress(r io.Reader, archive string) (io.Reader, func(), error) {
	switch archive {
	case "tar":
		return r, func() {}, nil
	case "tar+gzip":
		g, err := gzip.NewReader(r)
		return g, func() {}, err
	case "tar+zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return nil, nil, errors.New("not a known kind of archive; tar, tar+gzip and tar+zstd are")
}

// member is what a header stands for; its kind is "" for one that stands for nothing.
func (u *Unpacker) member(h *tar.Header) (Member, error) {
	name := strings.TrimPrefix(h.Name, "./")
	if h.Typeflag == tar.TypeDir {
		name = strings.TrimSuffix(name, "/")
	}
	if h.Typeflag == tar.TypeXGlobalHeader || (h.Typeflag == tar.TypeDir && (name == "" || name == ".")) {
		return Member{}, nil
	}
	name, err := CleanPath(name)
	if err != nil {
		return Member{}, err
	}
	m := Member{Path: name}
	dir, base := path.Split(name)
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") { // its bytes are not in the archive: no ratio would tell a bomb
				return Member{}, fmt.Errorf("%w: a sparse file; pack without --sparse", ErrRefused)
			}
		}
		m.Kind, m.Size, m.Executable = MemberFile, node.Bytes(max(h.Size, 0)), h.Mode&0o111 != 0
		if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			m = Member{Path: dir + hidden, Kind: MemberWhiteout}
			if hidden == ".wh..opq" {
				m = Member{Path: path.Clean(dir), Kind: MemberOpaque}
			}
		}
	case tar.TypeDir:
		m.Kind = MemberDir
	case tar.TypeSymlink:
		m.Kind, m.Target, err = MemberSymlink, h.Linkname, CleanLink(name, h.Linkname)
	case tar.TypeLink:
		m.Kind = MemberHardlink
		if m.Target, err = CleanPath(strings.TrimPrefix(h.Linkname, "./")); err == nil && u.kinds[m.Target] != MemberFile {
			err = fmt.Errorf("%w: hard link to %.80q, which is no file that came before", ErrRefused, m.Target)
		}
	default:
		err = fmt.Errorf("%w: a device, pipe or other special file (type %q)", ErrRefused, h.Typeflag)
	}
	if err != nil {
		return Member{}, err
	}
	return m, u.add(m)
}

// add checks a member against those before it, and keeps it in mind.
func (u *Unpacker) add(m Member) error {
	if u.count++; u.count > u.policy.MaxEntries {
		return fmt.Errorf("%w: more than %d members", ErrLimit, u.policy.MaxEntries)
	}
	if m.Size > u.policy.MaxSize-u.size {
		return fmt.Errorf("%w: more than %s unpacked", ErrLimit, u.policy.MaxSize)
	}
	u.size += m.Size
	var parents []string
	for dir := path.Dir(m.Path); dir != "."; dir = path.Dir(dir) {
		if k := u.kinds[dir]; k != "" && k != MemberDir {
			return fmt.Errorf("%w: %.80q lies below a %s", ErrRefused, m.Path, k)
		}
		parents = append(parents, dir)
	}
	switch m.Kind {
	case MemberWhiteout, MemberOpaque:
		return u.remove(m)
	case MemberHardlink:
		m.Kind = MemberFile
	}
	if was := u.kinds[m.Path]; (was == MemberDir) != (m.Kind == MemberDir) && was != "" {
		return fmt.Errorf("%w: %.80q is a %s, and a %s", ErrRefused, m.Path, was, m.Kind)
	}
	for _, dir := range parents {
		u.kinds[dir] = MemberDir
	}
	u.kinds[m.Path] = m.Kind
	return nil
}

// remove forgets what a whiteout removes.
func (u *Unpacker) remove(m Member) error {
	if m.Kind == MemberWhiteout {
		if _, err := CleanPath(m.Path); err != nil { // ".wh..." hides ".."
			return err
		}
		delete(u.kinds, m.Path)
	} else if k := u.kinds[m.Path]; k != "" && k != MemberDir {
		return fmt.Errorf("%w: %.80q is a %s", ErrRefused, m.Path, k)
	}
	for p := range u.kinds {
		if m.Path == "." || strings.HasPrefix(p, m.Path+"/") {
			delete(u.kinds, p)
		}
	}
	return nil
}

// counter counts what was read.
type counter struct {
	r io.Reader
	n uint64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += uint64(n)
	return n, err
}

// ratioReader stops a bomb while it unpacks.
type ratioReader struct {
	plain  counter
	packed *counter
}

func (r *ratioReader) Read(b []byte) (int, error) {
	n, err := r.plain.Read(b)
	if large := tooLarge(r.plain.n, r.packed.n); large != nil {
		return n, large
	}
	return n, err
}

func tooLarge(plain, packed uint64) error {
	if plain > freeRatio && plain-freeRatio > maxRatio*packed {
		return fmt.Errorf("%w: %s from %s packed, which looks like a bomb", ErrLimit, node.Bytes(plain), node.Bytes(packed))
	}
	return nil
}
