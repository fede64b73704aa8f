package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	annotationUnpack   = "io.deis.oras.content.unpack" // "true": a directory, packed by oras
	annotationFilepath = "org.cncf.model.filepath"     // ModelPack's title
	maxManifest        = 4 << 20
)

// ociSource is an artifact, whose layers are files by their titles, or an image, whose layers are archives.
type ociSource struct {
	spec Spec
	repo *remote.Repository
	c    *client
	list once
}

func openOCI(s Spec, p Policy, c Credentials) (Source, error) {
	host := s.Endpoint[strings.LastIndexByte(s.Endpoint, '/')+1:]
	name := s.Name
	if host == "docker.io" && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	repo := &remote.Repository{
		Reference: registry.Reference{Registry: host, Repository: name, Reference: s.Revision},
		PlainHTTP: strings.HasPrefix(s.Endpoint, "http://"), MaxMetadataBytes: maxManifest,
	}
	if err := p.host(&url.URL{Scheme: s.Endpoint[:strings.IndexByte(s.Endpoint, ':')], Host: repo.Reference.Host()}); err != nil {
		return nil, err
	}
	// The token is a registry's own, given for a scope; a password buys one.
	login := &auth.Client{Client: newHTTPClient(p, nil), Cache: auth.NewCache(), Credential: auth.StaticCredential(host,
		auth.Credential{Username: c.Username, Password: c.Password, AccessToken: c.Token})}
	repo.Client = login
	return &ociSource{spec: s, repo: repo, c: &client{policy: p, do: login.Do}, list: newOnce()}, nil
}

func (o *ociSource) String() string { return o.spec.String() }

func (o *ociSource) List(ctx context.Context) ([]Entry, error) {
	return o.list.do(ctx, func(ctx context.Context) ([]Entry, error) {
		entries, err := o.read(ctx)
		if err == nil {
			_, err = CheckEntries(entries, o.c.policy)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", o, ociError(err))
		}
		return entries, nil
	})
}

// read resolves the tag, once, and follows an index to the image of this machine's architecture.
func (o *ociSource) read(ctx context.Context) ([]Entry, error) {
	at, err := o.repo.Resolve(ctx, o.spec.Revision)
	for range 2 {
		if err != nil {
			return nil, err
		}
		if at.Size > maxManifest {
			return nil, fmt.Errorf("%w: a manifest of %d bytes", ErrLimit, at.Size)
		}
		data, err := o.manifest(ctx, at)
		if err != nil {
			return nil, err
		}
		var m struct {
			MediaType string               `json:"mediaType"`
			Manifests []ocispec.Descriptor `json:"manifests"`
			Layers    []ocispec.Descriptor `json:"layers"`
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, fmt.Errorf("the manifest is not JSON: %w", err)
		}
		if len(m.Manifests) == 0 {
			return layers(m.Layers)
		}
		if at, err = choose(m.Manifests, runtime.GOARCH); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("an index within an index")
}

// manifest reads it, and checks it against its digest.
func (o *ociSource) manifest(ctx context.Context, at ocispec.Descriptor) ([]byte, error) {
	r, err := o.repo.Manifests().Fetch(ctx, at)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	data, err := content.ReadAll(r, at)
	if errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData) {
		return nil, fmt.Errorf("%w: of the manifest: %w", ErrDigest, err)
	}
	return data, err
}

// choose is the manifest for an architecture, or the only one that is no attestation.
func choose(all []ocispec.Descriptor, arch string) (ocispec.Descriptor, error) {
	var others []ocispec.Descriptor
	for _, d := range all {
		switch {
		case d.Annotations["vnd.docker.reference.type"] != "":
		case d.Platform != nil && d.Platform.OS == "linux" && d.Platform.Architecture == arch:
			return d, nil
		default:
			others = append(others, d)
		}
	}
	if len(others) == 1 {
		return others[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("%w: the index has %d manifests, none for linux/%s; name one by its digest", ErrNotFound, len(others), arch)
}

// layers are a manifest's files. Archives stand in the order in which they are to be unpacked, and their names sort so.
func layers(all []ocispec.Descriptor) ([]Entry, error) {
	entries := make([]Entry, 0, len(all))
	for i, d := range all {
		if d.Size < 0 || !digestPattern.MatchString(d.Digest.String()) {
			return nil, fmt.Errorf("%w: layer %d has no sha256 digest", ErrRefused, i)
		}
		e := Entry{Path: d.Annotations[ocispec.AnnotationTitle], Size: node.Bytes(d.Size), Digest: d.Digest.String(), Version: d.Digest.String()}
		title := e.Path != ""
		if !title {
			e.Path = d.Annotations[annotationFilepath]
		}
		e.Archive = archiveOf(d.MediaType)
		if title && e.Archive != "" && d.Annotations[annotationUnpack] != "true" {
			e.Archive = "" // somebody's archive, which is a file of the dataset
		} else if title && d.Annotations[annotationUnpack] == "true" {
			e.Archive = "tar+gzip" // oras packs so, whatever the media type says
		}
		switch {
		case e.Archive != "":
			e.Path = fmt.Sprintf("layer-%05d", i)
		case e.Path == "":
			return nil, fmt.Errorf("layer %d, of type %.80q, is no archive and has no title: nothing names its file", i, d.MediaType)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// archiveOf is what a layer's media type says of its packing: OCI's, Docker's and ModelPack's.
func archiveOf(mediaType string) string {
	switch {
	case strings.HasSuffix(mediaType, ".tar.gzip"), strings.HasSuffix(mediaType, ".tar+gzip"):
		return "tar+gzip"
	case strings.HasSuffix(mediaType, ".tar.zstd"), strings.HasSuffix(mediaType, ".tar+zstd"):
		return "tar+zstd"
	case strings.HasSuffix(mediaType, ".tar"):
		return "tar"
	}
	return ""
}

func (o *ociSource) Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	r := o.repo.Reference
	scheme := "https"
	if o.repo.PlainHTTP {
		scheme = "http"
	}
	ctx = auth.AppendRepositoryScope(ctx, r, auth.ActionPull)
	at := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", scheme, r.Host(), r.Repository, e.Digest)
	// A blob's address is its digest: it has no other version.
	body, err := o.c.get(ctx, at, e, offset, length, func(http.Header) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", e.Path, o, ociError(err))
	}
	return body, nil
}

// ociError is a registry's answer as one of our errors.
func ociError(err error) error {
	var answer *errcode.ErrorResponse
	if errors.As(err, &answer) {
		if is := statusError(answer.StatusCode); is != nil {
			return is
		}
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return fmt.Errorf("%w: the registry wants credentials, the dataset names none", ErrDenied)
	}
	if errors.Is(err, errdef.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrNotFound, plainError(err))
	}
	return plainError(err)
}
