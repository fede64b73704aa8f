package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// s3Source is an object, or all objects under a prefix.
type s3Source struct {
	spec   Spec
	policy Policy
	core   *minio.Core
	list   once
	single bool // the prefix is one object's key; known once it was listed
}

func openS3(s Spec, p Policy, c Credentials) (Source, error) {
	if s.Region == "" {
		s.Region = "us-east-1" // else the library asks the server first, which needs one permission more
	}
	endpoint := s.Endpoint
	if endpoint == "" {
		endpoint = "https://s3." + s.Region + ".amazonaws.com"
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, errors.New("the endpoint is no URL")
	}
	if err := p.host(u); err != nil {
		return nil, err
	}
	lookup := map[string]minio.BucketLookupType{"": minio.BucketLookupAuto, "path": minio.BucketLookupPath, "virtual": minio.BucketLookupDNS}[s.Style]
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken), Secure: u.Scheme == "https", Transport: newTransport(p, nil),
		Region: s.Region, BucketLookup: lookup, MaxRetries: 1, // the scheduler retries: it knows what is worth it
	})
	if err != nil {
		return nil, err
	}
	return &s3Source{spec: s, policy: p, core: core, list: newOnce()}, nil
}

func (s *s3Source) String() string { return s.spec.String() }

func (s *s3Source) List(ctx context.Context) ([]Entry, error) {
	return s.list.do(ctx, func(ctx context.Context) ([]Entry, error) {
		entries, err := s.object(ctx)
		if err == nil && entries == nil {
			entries, err = s.keys(ctx)
		}
		if err == nil && len(entries) == 0 {
			err = fmt.Errorf("%w: no object has this key or prefix", ErrNotFound)
		}
		if err == nil {
			_, err = CheckEntries(entries, s.policy)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", s, s3Error(err))
		}
		return entries, nil
	})
}

// object is the one object that the prefix names, or nil: then it is a directory's name.
func (s *s3Source) object(ctx context.Context) ([]Entry, error) {
	if s.spec.Prefix == "" || strings.HasSuffix(s.spec.Prefix, "/") {
		return nil, nil
	}
	o, err := s.core.StatObject(ctx, s.spec.Name, s.spec.Prefix, minio.StatObjectOptions{VersionID: s.spec.Revision})
	if minio.ToErrorResponse(err).StatusCode == http.StatusNotFound && s.spec.Revision == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.single = true
	return []Entry{{Path: path.Base(s.spec.Prefix), Size: node.Bytes(o.Size), Version: quoted(o.ETag)}}, nil
}

// dir is what keys begin with.
func (s *s3Source) dir() string {
	if s.spec.Prefix == "" || strings.HasSuffix(s.spec.Prefix, "/") {
		return s.spec.Prefix
	}
	return s.spec.Prefix + "/"
}

// keys lists the objects under the prefix.
func (s *s3Source) keys(ctx context.Context) (entries []Entry, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the library's goroutine
	for o := range s.core.Client.ListObjects(ctx, s.spec.Name, minio.ListObjectsOptions{Prefix: s.dir(), Recursive: true}) {
		if o.Err != nil {
			return nil, o.Err
		}
		if strings.HasSuffix(o.Key, "/") { // a directory that some tool marked
			continue
		}
		name, ok := strings.CutPrefix(o.Key, s.dir())
		if !ok {
			return nil, fmt.Errorf("the server listed %.80q, which was not asked", o.Key)
		}
		if len(entries) >= s.policy.MaxEntries {
			return nil, fmt.Errorf("%w: more than %d objects", ErrLimit, s.policy.MaxEntries)
		}
		if o.Size < 0 || o.ETag == "" {
			return nil, fmt.Errorf("the server lists %.80q without size and ETag", o.Key)
		}
		entries = append(entries, Entry{Path: name, Size: node.Bytes(o.Size), Version: quoted(o.ETag)})
	}
	return entries, ctx.Err()
}

func quoted(etag string) string { return `"` + strings.Trim(etag, `"`) + `"` }

func (s *s3Source) Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	r, err := s.open(ctx, e, offset, length)
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", e.Path, s, s3Error(err))
	}
	return r, nil
}

func (s *s3Source) open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	if _, err := s.List(ctx); err != nil { // whether the prefix is one object
		return nil, err
	}
	if offset < 0 || length < 0 || offset+length > int64(e.Size) {
		return nil, fmt.Errorf("range %d+%d is not in %d bytes", offset, length, e.Size)
	}
	if length == 0 {
		return http.NoBody, nil
	}
	key := s.dir() + e.Path
	if s.single {
		key = s.spec.Prefix
	}
	opts := minio.GetObjectOptions{VersionID: s.spec.Revision}
	if err := errors.Join(opts.SetRange(offset, offset+length-1), opts.SetMatchETag(strings.Trim(e.Version, `"`))); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	body, info, header, err := s.core.GetObject(ctx, s.spec.Name, key, opts)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	err = sameVersion(e.Version, quoted(info.ETag))
	if err == nil {
		status := http.StatusPartialContent
		if header.Get("Content-Range") == "" {
			status = http.StatusOK
		}
		answer := &http.Response{StatusCode: status, Header: header, ContentLength: info.Size}
		err = sameRange(answer, e, offset, length, offset == 0 && length == int64(e.Size))
	}
	if err != nil {
		_ = body.Close()
		cancel(nil)
		return nil, err
	}
	return exact(watch(body, cancel, ctx, s.policy), body, func() { cancel(nil) }, length), nil
}

// s3Error is a server's answer as one of our errors. What the server writes for people stays: it tells an expired token from a wrong key.
func s3Error(err error) error {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return plainError(err)
	}
	switch answer.Code {
	case "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired", "XAdminUserNotFound": // AWS answers 400, versitygw 404
		return fmt.Errorf("%w: %s: %.200s; renew the credentials", ErrDenied, answer.Code, answer.Message)
	}
	if is := statusError(answer.StatusCode); is != nil && answer.StatusCode != 0 {
		return fmt.Errorf("%w: %s: %.200s", is, answer.Code, answer.Message)
	}
	return fmt.Errorf("%s: %.200s", answer.Code, answer.Message)
}
