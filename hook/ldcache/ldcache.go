// Package ldcache reads and writes /etc/ld.so.cache, in which glibc's loader looks a library up by name.
//
// Why not ldconfig: the image's own is a foreign program, which a hook would run with the host still in sight; the host's may not
// be there, takes longer than a container's whole start on a large image, and parses every library of that image. What a hook
// wants is a few entries more, which takes a millisecond and looks at one file.
//
// The format is of glibc 2.2 and later ("glibc-ld.so.cache1.1"), alone or behind the older "ld.so-1.7.0", which is skipped and not
// written. Entries are sorted by name, descending, in an order that takes runs of digits as numbers; the loader searches by
// halves, so an entry out of order hides others. From glibc 2.32 on, an extension names the CPU levels that some entries are for.
package ldcache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Path is where the loader has its cache.
const Path = "/etc/ld.so.cache"

// Entry is one library: the loader takes Path for Name.
type Entry struct {
	Name, Path string
	Flags      uint32
	OSVersion  uint32
	HWCap      uint64 // 0: for any CPU
}

// Cache is a loader cache. The zero value is an empty one.
type Cache struct {
	Entries   []Entry
	Flags     byte     // byte order, from glibc 2.33 on
	Levels    []string // of CPUs, which Entry.HWCap refers to by index
	Generator string
}

const (
	magic    = "glibc-ld.so.cache1.1"
	oldMagic = "ld.so-1.7.0"

	headerBytes   = 48
	entryBytes    = 24
	oldEntryBytes = 12

	extensionMagic = 0xEAA42174
	tagGenerator   = 0
	tagLevels      = 1
)

// A cache comes from an image, and whoever reads one for a container has no limit of memory that is the container's. So a cache is
// bounded here: the largest that a distribution makes, with every package installed, is a tenth of this.
const (
	MaxBytes    = 8 << 20
	maxEntries  = 1 << 16
	maxLevels   = 64
	maxSections = 16
	maxText     = 4 << 20 // of all names and paths; many may be parts of one text, so the file's size does not bound it
)

// ErrTooLarge is for a cache that a loader would read, and that is larger than any honest one.
var ErrTooLarge = fmt.Errorf("larger than a loader cache can be here (%d MiB, %d entries, %d CPU levels, %d MiB of names)", MaxBytes>>20, maxEntries, maxLevels, maxText>>20)

// errNotACache covers everything that is not worth telling apart: a damaged cache is replaced like a missing one.
var errNotACache = errors.New("not a loader cache of glibc 2.2 or later")

var order = binary.LittleEndian // of every architecture that has a GPU driver

// Native are the flags of an entry for this program's architecture: glibc, 64 bits.
func Native() uint32 {
	if runtime.GOARCH == "arm64" {
		return 0x0a03
	}
	return 0x0303
}

// Parse reads a cache. It takes any bytes without harm; its memory is at most a few times MaxBytes.
func Parse(data []byte) (*Cache, error) {
	if len(data) > MaxBytes {
		return nil, ErrTooLarge
	}
	data, err := skipOld(data)
	if err != nil {
		return nil, err
	}
	if len(data) < headerBytes || string(data[:len(magic)]) != magic {
		return nil, errNotACache
	}
	count := uint64(order.Uint32(data[20:]))
	if headerBytes+count*entryBytes > uint64(len(data)) {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", errNotACache, count, len(data))
	}
	if count > maxEntries {
		return nil, ErrTooLarge
	}
	c := &Cache{Flags: data[28], Entries: make([]Entry, 0, count)}
	texts := &texts{whole: string(data), left: maxText}
	for i := range count {
		raw := data[headerBytes+i*entryBytes:]
		name, err1 := texts.at(order.Uint32(raw[4:]))
		path, err2 := texts.at(order.Uint32(raw[8:]))
		if err := cmp.Or(err1, err2); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		c.Entries = append(c.Entries, Entry{Name: name, Path: path, Flags: order.Uint32(raw), OSVersion: order.Uint32(raw[12:]), HWCap: order.Uint64(raw[16:])})
	}
	return c, c.parseExtension(data, order.Uint32(data[32:]), texts)
}

// texts are the names and paths of a cache: parts of one string, since a large cache has thousands. It gives out so much and no more.
type texts struct {
	whole string
	left  int
}

func (t *texts) at(offset uint32) (string, error) {
	if uint64(offset) >= uint64(len(t.whole)) {
		return "", fmt.Errorf("%w: a text lies outside", errNotACache)
	}
	rest := t.whole[offset:]
	length := strings.IndexByte(rest[:min(len(rest), t.left+1)], 0)
	switch {
	case length >= 0:
		t.left -= length
		return rest[:length], nil
	case len(rest) > t.left:
		return "", ErrTooLarge
	}
	return "", fmt.Errorf("%w: a text has no end", errNotACache)
}

func skipOld(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, []byte(oldMagic)) {
		return data, nil
	}
	if len(data) < 16 {
		return nil, errNotACache
	}
	start := (16 + uint64(order.Uint32(data[12:]))*oldEntryBytes + 7) &^ 7
	if start > uint64(len(data)) {
		return nil, errNotACache
	}
	return data[start:], nil
}

func (c *Cache) parseExtension(data []byte, offset uint32, texts *texts) error {
	if offset == 0 {
		return nil
	}
	raw, ok := part(data, offset, 8)
	if !ok || order.Uint32(raw) != extensionMagic {
		return nil // as the loader does: an extension of another kind is ignored
	}
	count := order.Uint32(raw[4:])
	sections, ok := part(data, offset+8, uint64(count)*16)
	if !ok {
		return fmt.Errorf("%w: %d extensions lie outside", errNotACache, count)
	}
	if count > maxSections {
		return ErrTooLarge
	}
	for section := range slices.Chunk(sections, 16) {
		body, ok := part(data, order.Uint32(section[8:]), uint64(order.Uint32(section[12:])))
		if !ok {
			return fmt.Errorf("%w: an extension lies outside", errNotACache)
		}
		switch order.Uint32(section) {
		case tagGenerator:
			if texts.left -= len(body); texts.left < 0 {
				return ErrTooLarge
			}
			c.Generator = string(body)
		case tagLevels:
			if err := c.parseLevels(body, texts); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cache) parseLevels(body []byte, texts *texts) error {
	if len(c.Levels)+len(body)/4 > maxLevels {
		return ErrTooLarge
	}
	for i := 0; i+4 <= len(body); i += 4 {
		level, err := texts.at(order.Uint32(body[i:]))
		if err != nil {
			return fmt.Errorf("CPU level: %w", err)
		}
		c.Levels = append(c.Levels, level)
	}
	return nil
}

func part(data []byte, offset uint32, length uint64) ([]byte, bool) {
	if uint64(offset)+length > uint64(len(data)) {
		return nil, false
	}
	return data[offset:][:length], true
}

// Find is the paths that the cache has for a name, whatever the CPU and the architecture.
func (c *Cache) Find(name string) (paths []string) {
	for _, e := range c.Entries {
		if e.Name == name {
			paths = append(paths, e.Path)
		}
	}
	return paths
}

// With is the cache with entries of this program's architecture, in the place of those of the same names.
func (c *Cache) With(paths map[string]string) *Cache {
	with := *c
	with.Entries = slices.DeleteFunc(slices.Clone(c.Entries), func(e Entry) bool { return paths[e.Name] != "" && e.Flags == Native() })
	for name, path := range paths {
		entry := Entry{Name: name, Path: path, Flags: Native()}
		at, _ := slices.BinarySearchFunc(with.Entries, entry, func(a, b Entry) int { return compare(b.Name, a.Name) })
		with.Entries = slices.Insert(with.Entries, at, entry)
	}
	return &with
}

// Bytes is the cache as the loader reads it.
func (c *Cache) Bytes() []byte {
	out := make([]byte, headerBytes+len(c.Entries)*entryBytes, headerBytes+len(c.Entries)*(entryBytes+100))
	copy(out, magic)
	order.PutUint32(out[20:], uint32(len(c.Entries)))
	out[28] = c.Flags
	add := func(s string) uint32 {
		at := uint32(len(out))
		out = append(append(out, s...), 0)
		return at
	}
	for i, e := range c.Entries {
		name, path := add(e.Name), add(e.Path)
		raw := out[headerBytes+i*entryBytes:]
		order.PutUint32(raw, e.Flags)
		order.PutUint32(raw[4:], name)
		order.PutUint32(raw[8:], path)
		order.PutUint32(raw[12:], e.OSVersion)
		order.PutUint64(raw[16:], e.HWCap)
	}
	var levels []byte
	for _, level := range c.Levels {
		levels = order.AppendUint32(levels, add(level))
	}
	order.PutUint32(out[24:], uint32(len(out)-headerBytes-len(c.Entries)*entryBytes))
	return c.appendExtension(out, levels)
}

func (c *Cache) appendExtension(out, levels []byte) []byte {
	if len(levels) == 0 && c.Generator == "" {
		return out
	}
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	order.PutUint32(out[32:], uint32(len(out)))
	sections := []struct {
		tag  uint32
		body []byte
	}{{tagLevels, levels}, {tagGenerator, []byte(c.Generator)}}
	at := uint32(len(out) + 8 + len(sections)*16)
	out = order.AppendUint32(out, extensionMagic)
	out = order.AppendUint32(out, uint32(len(sections)))
	for _, s := range sections {
		for _, word := range []uint32{s.tag, 0, at, uint32(len(s.body))} {
			out = order.AppendUint32(out, word)
		}
		at += uint32(len(s.body))
	}
	for _, s := range sections {
		out = append(out, s.body...)
	}
	return out
}

// compare is the loader's order of names (_dl_cache_libcmp): runs of digits are numbers, and come after everything else.
func compare(a, b string) int {
	for a != "" && b != "" {
		switch digitA, digitB := isDigit(a[0]), isDigit(b[0]); {
		case digitA && digitB:
			var na, nb string
			na, a = number(a)
			nb, b = number(b)
			if len(na) != len(nb) {
				return len(na) - len(nb)
			}
			if na != nb {
				return strings.Compare(na, nb)
			}
		case digitA:
			return 1
		case digitB:
			return -1
		case a[0] != b[0]:
			return int(a[0]) - int(b[0])
		default:
			a, b = a[1:], b[1:]
		}
	}
	return len(a) - len(b)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// number splits off a run of digits, without its leading zeros.
func number(s string) (digits, rest string) {
	end := 0
	for end < len(s) && isDigit(s[end]) {
		end++
	}
	return strings.TrimLeft(s[:end], "0"), s[end:]
}
