package hook

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/hook/ldcache"
)

// Verb is what a step does to the image.
type Verb string

// The verbs.
const (
	Bind  Verb = "bind"  // mount Source over the file Target
	Link  Verb = "link"  // make Target a link to Source, in the place of what is there
	Write Verb = "write" // make Target a file with Content
)

// Step is one change of the image, convergent: taken again, it changes nothing.
type Step struct {
	Verb    Verb   `json:"verb"`
	Source  string `json:"source,omitempty"`
	Target  string `json:"target"`
	Content []byte `json:"content,omitempty"`
}

// confFile makes a later ldconfig, run by the image's own start script, keep what is here.
const confFile = "/etc/ld.so.conf.d/000-kerf.conf"

// Plan is the steps that make the libraries in LibDir the ones that a loader finds. It is pure.
//
// Three ways, since each fails somewhere. Files in the way are covered, for programs that name them or have a search path of their
// own. The cache has the libraries, for `ldconfig -p` and for programs that search by it. The loader's default directory has
// links, for a loader without a cache, and after an ldconfig that does not know LibDir.
func Plan(image *Image) (steps []Step) {
	for _, file := range image.Taken {
		if source := standIn(image, path.Base(file)); source != "" {
			steps = append(steps, Step{Verb: Bind, Source: source, Target: file})
		}
	}
	if len(image.Default) > 0 {
		for _, name := range image.Libraries {
			link := path.Join(image.Default[0], name)
			if isLibrary(name) && !slices.Contains(image.Taken, link) {
				steps = append(steps, Step{Verb: Link, Source: path.Join(LibDir, name), Target: link})
			}
		}
	}
	if image.ConfDir {
		steps = append(steps, Step{Verb: Write, Target: confFile, Content: []byte(LibDir + "\n")})
	}
	return append(steps, Step{Verb: Write, Target: ldcache.Path, Content: newCache(image).Bytes()})
}

// standIn is the library in LibDir for a file's name, whatever its version; "" where the share has none, as monitoring has no libcuda.
func standIn(image *Image, name string) string {
	for _, l := range libraries {
		if (name == l || strings.HasPrefix(name, l+".")) && slices.Contains(image.Libraries, l+".1") {
			return path.Join(LibDir, l+".1")
		}
	}
	return ""
}

func newCache(image *Image) *ldcache.Cache {
	paths := make(map[string]string)
	for _, name := range image.Libraries {
		paths[name] = path.Join(LibDir, name)
	}
	cache := image.Cache
	if cache == nil {
		cache = new(ldcache.Cache)
	}
	return cache.With(paths)
}

// apply takes the steps. What cannot be written is left: an image that cannot be written may not need it, which prove decides.
func apply(r *root, steps []Step) (unwritten error, err error) {
	for _, step := range steps {
		switch step.Verb {
		case Bind:
			if err := bindOnce(r, step); err != nil {
				return nil, fmt.Errorf("cover the image's own %s: %w", step.Target, err)
			}
		case Link:
			unwritten = errors.Join(unwritten, annotate(step, r.link(step.Source, step.Target)))
		case Write:
			if there, err := r.read(step.Target); err == nil && bytes.Equal(there, step.Content) {
				continue
			}
			unwritten = errors.Join(unwritten, annotate(step, r.write(step.Target, step.Content)))
		}
	}
	return unwritten, nil
}

func bindOnce(r *root, step Step) error {
	source, _, err := r.stat(step.Source)
	if err != nil {
		return err
	}
	// Another name of a file that is covered by now, or another share's hook was here.
	if target, _, err := r.stat(step.Target); err != nil || target == source {
		return err
	}
	return r.bind(step.Source, step.Target)
}

func annotate(step Step, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%s: a volume is mounted there or above, which is not the image's to change", step.Target)
	}
	return fmt.Errorf("%s: %w", step.Target, err)
}

// prove: whatever a loader finds under a library's name is the one in LibDir, and it finds it. The links and the cache are looked at
// as they are now.
func prove(r *root, image *Image) error {
	for _, file := range image.Taken {
		want := standIn(image, path.Base(file))
		if want == "" {
			continue
		}
		if err := r.isSame(file, want); err != nil {
			return err
		}
	}
	cache, err := readCache(r)
	if err != nil {
		return err
	}
	for _, name := range image.Libraries {
		if !isLibrary(name) || path.Ext(name) != ".1" {
			continue
		}
		if !finds(r, image, cache, name) {
			return fmt.Errorf("the loader would not find %s: it is neither in %s nor in %v", name, ldcache.Path, image.Default)
		}
	}
	return nil
}

// isSame compares two names within the root.
func (r *root) isSame(name, want string) error {
	got, _, err := r.stat(name)
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	if wanted, _, err := r.stat(want); err != nil || got != wanted {
		return errors.Join(err, fmt.Errorf("%s is not Kerf's library after all: something in the image or its volumes is in the way", name))
	}
	return nil
}

// finds: the loader takes the first of these that is there, and none of them is another's.
func finds(r *root, image *Image, cache *ldcache.Cache, name string) bool {
	var candidates []string
	if cache != nil {
		candidates = cache.Find(name)
	}
	for _, dir := range image.Default {
		candidates = append(candidates, path.Join(dir, name))
	}
	for _, candidate := range candidates {
		if _, _, err := r.stat(candidate); err == nil {
			return r.isSame(candidate, path.Join(LibDir, name)) == nil
		}
	}
	return false
}
