package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// client asks for ranges over HTTP, and checks that the answer is what was asked.
type client struct {
	policy Policy
	do     func(*http.Request) (*http.Response, error)
	header http.Header // credentials, of every request
}

func newHTTPClient(p Policy, certificates []tls.Certificate) *http.Client {
	return &http.Client{Transport: newTransport(p, certificates), CheckRedirect: p.redirect}
}

func newClient(p Policy, c Credentials, certificates []tls.Certificate) *client {
	h := http.Header{}
	switch {
	case c.Token != "":
		h.Set("Authorization", "Bearer "+c.Token)
	case c.Username != "" || c.Password != "":
		r := http.Request{Header: h}
		r.SetBasicAuth(c.Username, c.Password)
	}
	return &client{p, newHTTPClient(p, certificates).Do, h}
}

// statusError says what an answer means, nil for one that serves.
func statusError(status int) error {
	switch status {
	case http.StatusOK, http.StatusPartialContent:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w (%d): check the credentials, they may have expired", ErrDenied, status)
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w (%d)", ErrNotFound, status)
	case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w (%d)", ErrChanged, status)
	}
	return fmt.Errorf("answered %d %s", status, http.StatusText(status))
}

func (c *client) send(ctx context.Context, method, url string, set map[string]string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	for k, v := range set {
		req.Header.Set(k, v)
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "kerf")
	resp, err := c.do(req)
	if err != nil {
		return nil, plainError(err)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the server encodes with %s what was asked as it is", e)
	}
	return resp, nil
}

// body reads all of an answer, which is a listing, up to the policy's limit.
func (c *client) body(ctx context.Context, url string, set map[string]string) ([]byte, http.Header, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.send(ctx, http.MethodGet, url, set)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := statusError(resp.StatusCode); err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(watch(resp.Body, cancel, ctx, c.policy), int64(c.policy.MaxIndex)+1))
	switch {
	case err != nil:
		return nil, nil, plainError(err)
	case n > int64(c.policy.MaxIndex):
		return nil, nil, fmt.Errorf("%w: the listing is larger than %s", ErrLimit, c.policy.MaxIndex)
	}
	return out.Bytes(), resp.Header, nil
}

// pinned are the headers that make a server refuse when it has another version by now. A weak ETag never matches If-Match, so
// that one is compared when the answer comes.
func pinned(version string) map[string]string {
	set := map[string]string{}
	if date, ok := strings.CutPrefix(version, "date:"); ok {
		set["If-Unmodified-Since"] = date
	} else if strings.HasPrefix(version, `"`) {
		set["If-Match"] = version
	}
	return set
}

// versionOf is what pins an answer: its ETag, else its date.
func versionOf(h http.Header) string {
	if e := h.Get("ETag"); e != "" {
		return e
	}
	if d := h.Get("Last-Modified"); d != "" {
		return "date:" + d
	}
	return ""
}

// get reads a range. check compares the answer's header with what the entry was; nil compares the version.
func (c *client) get(ctx context.Context, url string, e Entry, offset, length int64, check func(http.Header) error) (io.ReadCloser, error) {
	if offset < 0 || length < 0 || offset+length > int64(e.Size) {
		return nil, fmt.Errorf("range %d+%d is not in %d bytes", offset, length, e.Size)
	}
	if length == 0 {
		return http.NoBody, nil
	}
	set := map[string]string{}
	whole := offset == 0 && length == int64(e.Size)
	if check == nil {
		set = pinned(e.Version)
		check = func(h http.Header) error { return sameVersion(e.Version, versionOf(h)) }
	}
	if !e.Whole {
		set["Range"] = fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := c.send(ctx, http.MethodGet, url, set)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	err = statusError(resp.StatusCode)
	if err == nil {
		err = check(resp.Header)
	}
	if err == nil {
		err = sameRange(resp, e, offset, length, whole)
	}
	if err != nil {
		_ = resp.Body.Close()
		cancel(nil)
		return nil, err
	}
	return exact(watch(resp.Body, cancel, ctx, c.policy), resp.Body, func() { cancel(nil) }, length), nil
}

func sameVersion(want, got string) error {
	if want != "" && want != got {
		return fmt.Errorf("%w: version %.80s was listed, the server has %.80s", ErrChanged, want, got)
	}
	return nil
}

var contentRange = regexp.MustCompile(`^bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$`)

// sameRange refuses an answer that is another range, or of a file of another size.
func sameRange(resp *http.Response, e Entry, offset, length int64, whole bool) error {
	if resp.StatusCode == http.StatusOK {
		switch {
		case !whole && !e.Whole:
			return errors.New("the server ignores ranges; it cannot serve this file in parts")
		case offset != 0:
			return errors.New("the server serves no ranges; read from the start")
		case resp.ContentLength >= 0 && resp.ContentLength != int64(e.Size):
			return fmt.Errorf("%w: %d bytes were listed, the server has %d", ErrChanged, e.Size, resp.ContentLength)
		}
		return nil
	}
	m := contentRange.FindStringSubmatch(resp.Header.Get("Content-Range"))
	if m == nil {
		return fmt.Errorf("the server's Content-Range %.80q is no range", resp.Header.Get("Content-Range"))
	}
	if m[3] != "*" && m[3] != strconv.FormatUint(uint64(e.Size), 10) {
		return fmt.Errorf("%w: %d bytes were listed, the server has %s", ErrChanged, e.Size, m[3])
	}
	if m[1] != strconv.FormatInt(offset, 10) || m[2] != strconv.FormatInt(offset+length-1, 10) {
		return fmt.Errorf("asked for bytes %d-%d, got %s-%s", offset, offset+length-1, m[1], m[2])
	}
	return nil
}

// exactReader gives as many bytes as were asked, or io.ErrUnexpectedEOF.
type exactReader struct {
	r     io.Reader
	body  io.Closer
	done  func()
	left  int64
	close sync.Once
}

func exact(r io.Reader, body io.Closer, done func(), length int64) io.ReadCloser {
	return &exactReader{r: r, body: body, done: done, left: length}
}

func (x *exactReader) Read(b []byte) (int, error) {
	if x.left == 0 {
		return 0, io.EOF
	}
	n, err := x.r.Read(b[:min(int64(len(b)), x.left)])
	x.left -= int64(n)
	switch {
	case x.left == 0:
		return n, nil // the next call says io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case err != nil:
		err = plainError(err)
	}
	return n, err
}

func (x *exactReader) Close() (err error) {
	x.close.Do(func() { x.done(); err = x.body.Close() })
	return err
}

// watchReader cuts a body that comes slower than the policy's least rate. Only the time spent waiting for the source counts: a slow disk is
// not the source's fault.
type watchReader struct {
	r      io.Reader
	ctx    context.Context
	least  int64 // bytes a window
	window time.Duration
	slow   error // that it came to less
	cancel context.CancelCauseFunc

	waited time.Duration
	got    int64
}

func watch(r io.Reader, cancel context.CancelCauseFunc, ctx context.Context, p Policy) io.Reader {
	least := int64(float64(p.MinRate) * p.Stall.Seconds())
	return &watchReader{r: r, ctx: ctx, window: p.Stall, cancel: cancel, least: least, slow: fmt.Errorf("%w: less than %s in %s", ErrBusy, node.Bytes(least), p.Stall)}
}

func (w *watchReader) Read(b []byte) (int, error) {
	// A window that began with enough bytes may end inside a call that gives none: such a call has a window of its own.
	left := w.window - w.waited
	if w.got >= w.least {
		left = w.window
	}
	start := time.Now()
	timer := time.AfterFunc(left, func() { w.cancel(w.slow) })
	n, err := w.r.Read(b)
	timer.Stop()
	w.waited += time.Since(start)
	w.got += int64(n)
	if w.waited >= w.window {
		if w.got < w.least && err == nil {
			err = w.slow
		}
		w.waited, w.got = 0, 0
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(w.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// sumOf is the digest of bytes as it is written everywhere.
func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
