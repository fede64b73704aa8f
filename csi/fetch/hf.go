package fetch

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// hfSource is a model or a data set in Hugging Face's layout: a git repository behind HTTP, large files kept apart by their sha256.
type hfSource struct {
	spec   Spec
	c      *client
	list   once
	commit string // that the revision was when it was listed
}

func openHF(s Spec, p Policy, c Credentials) (Source, error) {
	if s.Endpoint == "" {
		s.Endpoint = "https://huggingface.co"
	}
	if s.Revision == "" {
		s.Revision = "main"
	}
	return &hfSource{spec: s, c: newClient(p, Credentials{Token: c.Token}, nil), list: newOnce()}, nil
}

func (h *hfSource) String() string { return h.spec.String() }

// api is where the API has the repository: models have a prefix there alone, data sets everywhere.
func (h *hfSource) api() string {
	if strings.HasPrefix(h.spec.Name, "datasets/") {
		return "/api/" + h.spec.Name
	}
	return "/api/models/" + h.spec.Name
}

func (h *hfSource) List(ctx context.Context) ([]Entry, error) {
	return h.list.do(ctx, func(ctx context.Context) ([]Entry, error) {
		// A branch may hold "/", which is one element of this path.
		data, _, err := h.c.body(ctx, h.spec.Endpoint+h.api()+"/revision/"+strings.ReplaceAll(h.spec.Revision, "/", "%2F")+"?blobs=true", nil)
		var entries []Entry
		if err == nil {
			h.commit, entries, err = parseHub(data)
		}
		if err == nil {
			_, err = CheckEntries(entries, h.c.policy)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", h, err)
		}
		return entries, nil
	})
}

var commitPattern = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// parseHub reads what the API says of a revision.
func parseHub(data []byte) (commit string, entries []Entry, err error) {
	var info struct {
		SHA      string `json:"sha"`
		Siblings []struct {
			Name string     `json:"rfilename"`
			Size node.Bytes `json:"size"`
			Blob string     `json:"blobId"`
			LFS  *struct {
				SHA256 string     `json:"sha256"`
				Size   node.Bytes `json:"size"`
			} `json:"lfs"`
		} `json:"siblings"`
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return "", nil, fmt.Errorf("the answer is not a model's description: %w", err)
	}
	if !commitPattern.MatchString(info.SHA) {
		return "", nil, fmt.Errorf("the answer names no commit: %.80q", info.SHA)
	}
	for _, f := range info.Siblings {
		e := Entry{Path: f.Name, Size: f.Size, Version: info.SHA + ":" + f.Blob}
		if f.LFS != nil {
			e.Digest, e.Size = "sha256:"+f.LFS.SHA256, f.LFS.Size
		}
		entries = append(entries, e)
	}
	return info.SHA, entries, nil
}

func (h *hfSource) Open(ctx context.Context, e Entry, offset, length int64) (io.ReadCloser, error) {
	if _, err := h.List(ctx); err != nil { // the commit
		return nil, err
	}
	if commit, _, _ := strings.Cut(e.Version, ":"); commit != h.commit {
		return nil, fmt.Errorf("read %s of %s: %w: commit %.40s was listed, it is %s by now", e.Path, h, ErrChanged, commit, h.commit)
	}
	at := h.spec.Endpoint + "/" + h.spec.Name + "/resolve/" + h.commit + "/" + escape(e.Path)
	// The commit pins it; what comes after a redirect has an ETag of another kind.
	r, err := h.c.get(ctx, at, e, offset, length, func(http.Header) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", e.Path, h, err)
	}
	return r, nil
}
