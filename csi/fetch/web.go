package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Index lists a dataset's files. An HTTP source may be one, and a peer serves one for each tree that it holds.
type Index struct {
	Files []IndexFile `json:"files"`
}

// IndexFile is a file of an Index.
type IndexFile struct {
	Path       string     `json:"path"`
	Size       node.Bytes `json:"size"`
	SHA256     string     `json:"sha256"` // 64 hexadecimal digits
	Executable bool       `json:"executable,omitempty"`
}

// ParseIndex reads an Index. Every file must have its digest: the list is the only thing that is trusted.
func ParseIndex(data []byte) ([]Entry, error) {
	var x Index
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, fmt.Errorf("the index is not JSON of {\"files\": [{path, size, sha256}]}: %w", err)
	}
	entries := make([]Entry, 0, len(x.Files))
	for _, f := range x.Files {
		e := Entry{Path: f.Path, Size: f.Size, Digest: "sha256:" + f.SHA256, Executable: f.Executable}
		if !digestPattern.MatchString(e.Digest) {
			return nil, fmt.Errorf("the index gives %.80q no sha256 of 64 hexadecimal digits", f.Path)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// webSource is a file that a web server has, or the files that an index there lists; they are beside it.
type webSource struct {
	spec Spec
	c    *client
	list once
}

func openWeb(s Spec, p Policy, c Credentials) (Source, error) {
	return &webSource{spec: s, c: newClient(p, c, nil), list: newOnce()}, nil
}

func (w *webSource) String() string { return w.spec.String() }

func (w *webSource) List(ctx context.Context) ([]Entry, error) {
	return w.list.do(ctx, func(ctx context.Context) ([]Entry, error) {
		entries, err := w.read(ctx)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", w, err)
		}
		if _, err := CheckEntries(entries, w.c.policy); err != nil {
			return nil, fmt.Errorf("list %s: %w", w, err)
		}
		return entries, nil
	})
}

func (w *webSource) read(ctx context.Context) ([]Entry, error) {
	if !w.spec.Index {
		e, err := w.file(ctx)
		return []Entry{e}, err
	}
	data, _, err := w.c.body(ctx, w.spec.Endpoint+w.spec.Name, nil)
	if err != nil {
		return nil, err
	}
	if got := sumOf(data); w.spec.Digest != "" && got != w.spec.Digest {
		return nil, fmt.Errorf("%w: the index is %s", ErrDigest, got)
	}
	return ParseIndex(data)
}

// file asks for the first byte: unlike HEAD this is what a server of ranges surely knows, and what a signed URL surely allows.
func (w *webSource) file(ctx context.Context) (Entry, error) {
	name, err := url.PathUnescape(path.Base(w.spec.Name))
	if err != nil {
		return Entry{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := w.c.send(ctx, http.MethodGet, w.spec.Endpoint+w.spec.Name, map[string]string{"Range": "bytes=0-0"})
	if err != nil {
		return Entry{}, err
	}
	_ = resp.Body.Close()
	size, whole := resp.ContentLength, true
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && strings.TrimSpace(resp.Header.Get("Content-Range")) == "bytes */0" {
		return w.pin(Entry{Path: name, Version: versionOf(resp.Header)})
	}
	if err := statusError(resp.StatusCode); err != nil {
		return Entry{}, err
	}
	if resp.StatusCode == http.StatusPartialContent {
		m := contentRange.FindStringSubmatch(resp.Header.Get("Content-Range"))
		if m == nil || m[3] == "*" {
			return Entry{}, errors.New("the server does not tell the file's size")
		}
		if _, err := fmt.Sscan(m[3], &size); err != nil {
			return Entry{}, err
		}
		whole = false
	}
	if size < 0 {
		return Entry{}, errors.New("the server does not tell the file's size")
	}
	return w.pin(Entry{Path: name, Size: node.Bytes(size), Version: versionOf(resp.Header), Whole: whole})
}

func (w *webSource) pin(e Entry) (Entry, error) {
	if e.Digest = w.spec.Digest; e.Digest == "" && e.Version == "" {
		return e, errors.New("the server gives neither ETag nor Last-Modified: parts of two versions could be mixed; give the file's digest (#sha256:…)")
	}
	return e, nil
}

func (w *webSource) Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	at := w.spec.Endpoint + w.spec.Name
	if w.spec.Index {
		at = w.spec.Endpoint + path.Dir(w.spec.Name)
		at = strings.TrimSuffix(at, "/") + "/" + escape(e.Path)
	}
	r, err := w.c.get(ctx, at, e, offset, length, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", e.Path, w, err)
	}
	return r, nil
}

// escape is a path as a URL has it.
func escape(p string) string {
	parts := strings.Split(p, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// once keeps the first list that a source gave without an error.
type once struct{ state chan []Entry }

func newOnce() once {
	o := once{make(chan []Entry, 1)}
	o.state <- nil
	return o
}

func (o once) do(ctx context.Context, list func(context.Context) ([]Entry, error)) ([]Entry, error) {
	select {
	case entries := <-o.state:
		defer func() { o.state <- entries }()
		if entries != nil {
			return entries, nil
		}
		got, err := list(ctx)
		if err != nil {
			return nil, err
		}
		if entries = got; entries == nil {
			entries = []Entry{}
		}
		return entries, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
