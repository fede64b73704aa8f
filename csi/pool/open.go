package pool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Config is a place, and what is wanted of it.
type Config struct {
	Name    string
	Path    string // absolute
	Backend string // of Kinds; "" or "auto" is the first that works
	// Unlimited takes a back end that holds no volume to its size, if none does.
	Unlimited bool
	// At, if set, is called with a name before and after each change of the world. Tests die there.
	At func(point string)
}

// The back ends.
const (
	KindXFS   = "xfs"
	KindExt4  = "ext4"
	KindBtrfs = "btrfs"
	KindLoop  = "loop"
	KindDir   = "dir"
	auto      = "auto"
)

// Kinds are the back ends' names, the best first.
func Kinds() []string { return []string{KindXFS, KindExt4, KindBtrfs, KindLoop, KindDir} }

// Report says which back end a pool got, and why not each other that was tried before.
type Report struct {
	Kind    string
	Refused []Refusal
}

// Refusal is why a back end does not work in a place.
type Refusal struct{ Kind, Why string }

func (r Report) String() string {
	words := []string{"back end " + r.Kind}
	for _, f := range r.Refused {
		words = append(words, fmt.Sprintf("not %s: %s", f.Kind, f.Why))
	}
	return strings.Join(words, "; ")
}

// Pool is an open place. Close gives its lock back, and leaves the volumes as they are.
type Pool struct {
	Backend Backend
	Report  Report
	close   func() error
}

// Close gives the place back.
func (p *Pool) Close() error { return p.close() }

// Open takes a place, with the back end asked for or the first that works there, which is found by doing what it needs.
func Open(ctx context.Context, c Config) (*Pool, error) {
	kinds, err := c.wanted()
	if err != nil {
		return nil, err
	}
	place, err := openPlace(c.Path, c.At)
	if err != nil {
		return nil, err
	}
	if was, ok := place.record(kindRecord); ok { // its volumes are of this kind, whatever works today
		if kinds, err = only(was.Spec.Filesystem, kinds); err != nil {
			return nil, errors.Join(fmt.Errorf("pool %s: %w", c.Name, err), place.close())
		}
	}
	pool := &Pool{close: place.close}
	for _, kind := range kinds {
		b, err := open(ctx, kind, place, c)
		if err == nil {
			pool.Backend, pool.Report.Kind = b, kind
			if err := errors.Join(place.put(kindRecord, record{Spec: Spec{Filesystem: kind}}), removeProbes(ctx, b)); err != nil {
				return nil, errors.Join(fmt.Errorf("pool %s: %w", c.Name, err), place.close())
			}
			return pool, nil
		}
		pool.Report.Refused = append(pool.Report.Refused, Refusal{kind, err.Error()})
	}
	var why []string
	for _, r := range pool.Report.Refused {
		why = append(why, r.Kind+": "+r.Why)
	}
	return nil, errors.Join(fmt.Errorf("pool %s: no back end works at %s: %s", c.Name, c.Path, strings.Join(why, "; ")), place.close())
}

// kindRecord is the record whose Filesystem is the back end of a pool's volumes. No volume's id is in capitals.
const kindRecord = "KIND"

func only(kind string, wanted []string) ([]string, error) {
	if !slices.Contains(wanted, kind) {
		return nil, fmt.Errorf("its volumes are of back end %s, %s is asked for; ask for %s, or give another path", kind, strings.Join(wanted, ", "), kind)
	}
	return []string{kind}, nil
}

// removeProbes removes what a killed probe left.
func removeProbes(ctx context.Context, b Backend) error {
	all, err := b.List(ctx)
	for _, id := range all {
		if strings.HasPrefix(id, probePrefix) {
			err = errors.Join(err, b.Delete(ctx, id))
		}
	}
	return err
}

// Validate checks what can be checked without the place.
func (c Config) Validate() error {
	_, err := c.wanted()
	return err
}

func (c Config) wanted() ([]string, error) {
	if !filepath.IsAbs(c.Path) || filepath.Clean(c.Path) != c.Path || c.Path == "/" {
		return nil, fmt.Errorf("pool %s: path %q: not an absolute path of a directory of its own", c.Name, c.Path)
	}
	if c.Backend == "" || c.Backend == auto {
		return Kinds(), nil
	}
	if slices.Contains(Kinds(), c.Backend) {
		return []string{c.Backend}, nil
	}
	return nil, fmt.Errorf("pool %s: back end %q: not known; use auto, %s", c.Name, c.Backend, strings.Join(Kinds(), ", "))
}

func open(ctx context.Context, kind string, p *place, c Config) (Backend, error) {
	switch kind {
	case KindXFS:
		return openQuota(ctx, p, KindXFS, unix.XFS_SUPER_MAGIC, "no XFS here",
			"the mount has no prjquota option (it cannot be added by a remount), or the kernel lacks CONFIG_XFS_QUOTA")
	case KindExt4:
		return openQuota(ctx, p, KindExt4, unix.EXT4_SUPER_MAGIC, "no ext4 here",
			"the file system lacks the features quota and project (tune2fs -O quota,project), the mount its prjquota option, or the kernel CONFIG_QFMT_V2")
	case KindBtrfs:
		b, err := openBtrfs(p)
		if err != nil {
			return nil, err
		}
		return b, tryLimit(ctx, b, p)
	case KindLoop:
		return openLoop(ctx, p)
	default:
		if !c.Unlimited {
			return nil, errors.New("holds no volume to its size; set enforce: none if that will do")
		}
		return OpenDirectory(c.Path)
	}
}

func openQuota(ctx context.Context, p *place, filesystem string, magic int64, other, why string) (Backend, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.path, &st); err != nil {
		return nil, err
	}
	if st.Type != magic {
		return nil, errors.New(other)
	}
	q := &Quota{place: p, filesystem: filesystem}
	if err := within(p.path, os.O_RDONLY, func(f *os.File) error { return quotactl(f, quotaGet, 0, new(dqblk)) }); err != nil {
		return nil, fmt.Errorf("%s (%w)", why, err)
	}
	if err := tryLimit(ctx, q, p); err != nil {
		return nil, fmt.Errorf("%s (%w)", why, err)
	}
	return q, nil
}

// probePrefix is of ids that no caller's volume may have.
const probePrefix = "kerf-probe-"

func probeID() string { return probePrefix + strings.ToLower(rand.Text()[:12]) }

// tryLimit makes a volume and sees that it is held to its size.
func tryLimit(ctx context.Context, b Backend, p *place) error {
	id := probeID()
	const size = 4 * node.MiB
	err := b.Create(ctx, id, Spec{Size: size})
	if err == nil {
		err = AsTenant(func() error { return overfill(p.file(volumesDir, id), size) })
	}
	return errors.Join(err, b.Delete(ctx, id))
}

// overfill writes twice the limit, which must fail.
func overfill(dir string, limit node.Bytes) error {
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	chunk := make([]byte, node.MiB)
	for range 2 * limit / node.MiB {
		if _, err = f.Write(chunk); err == nil {
			err = f.Sync()
		}
		if errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("a volume of %s took twice as much", limit)
}

// openLoop finds a file system that can be made and mounted inside a volume, and whether images share blocks.
func openLoop(ctx context.Context, p *place) (Backend, error) {
	var why []string
	for _, filesystem := range []string{KindXFS, KindExt4, KindBtrfs} {
		if _, err := exec.LookPath(makers[filesystem][0]); err != nil {
			why = append(why, makers[filesystem][0]+" is not installed")
			continue
		}
		l := &Loop{p, filesystem}
		id := probeID()
		err := l.Create(ctx, id, Spec{Size: 320 * node.MiB})
		var reflink error
		if err == nil {
			if _, err = l.Open(ctx, id); err == nil {
				err = l.Expand(ctx, id, 336*node.MiB)
				from := filepath.Join(p.file(volumesDir, id), image)
				reflink = reflinkFile(from, from+".clone")
			}
		}
		if err = errors.Join(err, l.Delete(ctx, id)); err != nil {
			why = append(why, filesystem+" inside: "+err.Error())
			continue
		}
		if reflink != nil {
			return l, nil
		}
		return LoopReflink{l}, nil
	}
	return nil, errors.New(strings.Join(why, "; "))
}
