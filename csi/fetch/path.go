package fetch

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kerf-gpu/kerf/internal/node"
)

const (
	maxName  = 255  // bytes of one name, as ext4, XFS and btrfs have it
	maxPath  = 4000 // bytes; the kernel's PATH_MAX is 4096, and the tree's own place comes before
	maxDepth = 128  // directories
)

// CleanPath is a name from a listing or an archive as a path inside a tree, or why it cannot be one. It changes nothing that could change
// the meaning: what is not clean is refused, not repaired.
func CleanPath(name string) (string, error) {
	refuse := func(why string) (string, error) { return "", fmt.Errorf("%w: path %.80q %s", ErrRefused, name, why) }
	switch {
	case name == "" || name == ".":
		return refuse("is empty")
	case len(name) > maxPath:
		return refuse("is too long")
	case !utf8.ValidString(name):
		return refuse("is not UTF-8")
	case strings.HasPrefix(name, "/"):
		return refuse("is absolute")
	case strings.ContainsRune(name, '\\'):
		return refuse("holds a backslash, which is a separator elsewhere")
	case strings.ContainsFunc(name, unicode.IsControl):
		return refuse("holds a control character")
	}
	parts := strings.Split(name, "/")
	if len(parts) > maxDepth {
		return refuse("is too deep")
	}
	for _, p := range parts {
		switch {
		case p == "..":
			return refuse("holds ..")
		case p == "" || p == ".":
			return refuse("is not clean")
		case len(p) > maxName:
			return refuse(fmt.Sprintf("holds a name of more than %d bytes", maxName))
		}
	}
	return name, nil
}

// CleanLink is the target of a symbolic link at a path, or why it leaves the tree. The check is of the text alone: whoever makes
// the link must make it in a tree whose directories are directories (see Unpack).
func CleanLink(at, target string) error {
	if target == "" || len(target) > maxPath || strings.HasPrefix(target, "/") || strings.ContainsRune(target, '\\') ||
		strings.ContainsFunc(target, unicode.IsControl) || !utf8.ValidString(target) {
		return fmt.Errorf("%w: link %.80q to %.80q is not relative", ErrRefused, at, target)
	}
	// Step by step: path.Clean would take "a/../b" for "b", though a may be a link itself and its .. elsewhere.
	depth, named := strings.Count(at, "/"), false
	for p := range strings.SplitSeq(target, "/") {
		switch p {
		case "", ".":
		case "..":
			if depth--; depth < 0 || named {
				return fmt.Errorf("%w: link %.80q to %.80q leaves the tree", ErrRefused, at, target)
			}
		default:
			depth, named = depth+1, true
		}
	}
	return nil
}

// CheckEntries sorts a listing by path, and says why it cannot be a tree. The warnings are for people: names that differ in case
// alone are fine here, and clash on other systems.
func CheckEntries(entries []Entry, p Policy) (warnings []string, err error) {
	p = p.withDefaults()
	if len(entries) > p.MaxEntries {
		return nil, fmt.Errorf("%w: %d files, %d are allowed", ErrLimit, len(entries), p.MaxEntries)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	files := make(map[string]bool, len(entries))
	folded := make(map[string]string, len(entries))
	var total node.Bytes
	for _, e := range entries {
		if _, err := CleanPath(e.Path); err != nil {
			return nil, err
		}
		if e.Digest != "" && !digestPattern.MatchString(e.Digest) {
			return nil, fmt.Errorf("%w: %.80q: digest %.80q is no sha256", ErrRefused, e.Path, e.Digest)
		}
		if files[e.Path] {
			return nil, fmt.Errorf("%w: %.80q is listed twice", ErrRefused, e.Path)
		}
		files[e.Path] = true
		if e.Size > p.MaxSize-total {
			return nil, fmt.Errorf("%w: more than %s in all", ErrLimit, p.MaxSize)
		}
		total += e.Size
		if other, ok := folded[strings.ToLower(e.Path)]; ok {
			warnings = append(warnings, fmt.Sprintf("%q and %q differ in case alone", other, e.Path))
		}
		folded[strings.ToLower(e.Path)] = e.Path
	}
	for _, e := range entries {
		for dir := path.Dir(e.Path); dir != "."; dir = path.Dir(dir) {
			if files[dir] {
				return nil, fmt.Errorf("%w: %.80q is a file, and a directory of %.80q", ErrRefused, dir, e.Path)
			}
		}
	}
	return warnings, nil
}
