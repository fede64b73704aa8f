package fetch

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kind is how a source is spoken to.
type Kind string

// The kinds of sources.
const (
	S3   Kind = "s3"
	HTTP Kind = "http"
	OCI  Kind = "oci"
	HF   Kind = "hf"
	Peer Kind = "peer"
)

// Spec says where a dataset is kept. It holds no secret, and may be shown to everybody. Its URL form, for people:
//
//	s3://bucket/prefix?endpoint=https://s3.example.com&region=…&style=path&version=…
//	https://host/file#sha256:…             one file
//	https://host/index.json#index          an index (see Index), pinned by #index=sha256:…
//	oci://registry/repository:tag          or @sha256:…; ?plain=true is HTTP without TLS
//	hf://org/model@revision?endpoint=…     hf://datasets/org/name@revision is a dataset
//	peer://host:port/sha256:…              a tree that another node holds
type Spec struct {
	Kind     Kind   `json:"kind" yaml:"kind"`
	Endpoint string `json:"endpoint,omitempty" yaml:"endpoint,omitempty"` // scheme://host[:port]
	Name     string `json:"name" yaml:"name"`                             // bucket; path of the file; repository; org/model; digest of the tree
	Prefix   string `json:"prefix,omitempty" yaml:"prefix,omitempty"`     // s3: the key of an object, or what is before "/" in many
	Revision string `json:"revision,omitempty" yaml:"revision,omitempty"` // s3: an object's version id; oci: tag or digest; hf: branch, tag or commit
	Region   string `json:"region,omitempty" yaml:"region,omitempty"`     // s3
	Style    string `json:"style,omitempty" yaml:"style,omitempty"`       // s3: "path" or "virtual"; "" lets the endpoint decide
	Digest   string `json:"digest,omitempty" yaml:"digest,omitempty"`     // http: "sha256:…" of the file, or of the index
	Index    bool   `json:"index,omitempty" yaml:"index,omitempty"`       // http: the file lists others
}

// Credentials open a source. They never print: not by fmt, not as JSON, not in a log.
type Credentials struct {
	AccessKey, SecretKey, SessionToken string // s3
	Username, Password                 string // http, oci
	Token                              string // http, oci, hf, peer: a bearer token
}

func (Credentials) String() string   { return "(credentials)" }
func (Credentials) GoString() string { return "(credentials)" }

// MarshalJSON refuses: whoever stores credentials does it on purpose, and elsewhere.
func (Credentials) MarshalJSON() ([]byte, error) {
	return nil, errors.New("credentials are not written as JSON")
}

var (
	digestPattern   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	bucketPattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	repoPattern     = regexp.MustCompile(`^[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*$`)
	tagPattern      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	modelPattern    = regexp.MustCompile(`^(datasets/)?[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$`)
	revisionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,254}$`)
	hostPattern     = regexp.MustCompile(`^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$`)
)

// ParseSpec reads the URL form.
func ParseSpec(s string) (Spec, error) {
	if rest, ok := strings.CutPrefix(s, "hf://"); ok { // to a URL's parser hf://model@revision is a user at a host
		spec, err := parseHF(rest)
		if err != nil {
			return Spec{}, fmt.Errorf("source hf: %w", err)
		}
		return spec, spec.Validate()
	}
	u, err := url.Parse(s)
	if err != nil {
		return Spec{}, errors.New("source: not a URL") // url.Error would repeat it, with what a user may have put in by mistake
	}
	if u.User != nil {
		return Spec{}, errors.New("source: a user or password in a URL is shown to everybody; put it into the secret that the dataset names")
	}
	parse := map[string]func(*url.URL) (Spec, error){"s3": parseS3, "http": parseHTTP, "https": parseHTTP, "oci": parseOCI, "peer": parsePeer}[u.Scheme]
	if parse == nil {
		return Spec{}, fmt.Errorf("source: scheme %q is not known; s3, https, oci, hf and peer are", u.Scheme)
	}
	spec, err := parse(u)
	if err != nil {
		return Spec{}, fmt.Errorf("source %s: %w", u.Scheme, err)
	}
	return spec, spec.Validate()
}

// query takes the keys that a kind knows, and refuses others: they may be secrets, or mistakes.
func query(u *url.URL, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("the part after ? is not well formed")
	}
	for key, values := range q {
		if !slices.Contains(known, key) || len(values) != 1 {
			return nil, fmt.Errorf("parameter %q is not known, or given twice; known are: %s", key, strings.Join(known, ", "))
		}
	}
	return q, nil
}

func parseS3(u *url.URL) (Spec, error) {
	q, err := query(u, "endpoint", "region", "style", "version")
	if err != nil {
		return Spec{}, err
	}
	return Spec{Kind: S3, Endpoint: strings.TrimSuffix(q.Get("endpoint"), "/"), Name: u.Host, Prefix: strings.TrimPrefix(u.Path, "/"),
		Region: q.Get("region"), Style: q.Get("style"), Revision: q.Get("version")}, nil
}

func parseHTTP(u *url.URL) (Spec, error) {
	if u.RawQuery != "" {
		return Spec{}, errors.New("a URL with ? often holds a signature, which everybody would see; give the plain URL, and credentials in the secret")
	}
	s := Spec{Kind: HTTP, Endpoint: u.Scheme + "://" + u.Host, Name: u.EscapedPath()}
	what, digest, _ := strings.Cut(u.Fragment, "=")
	switch s.Index = what == "index"; {
	case s.Index:
		s.Digest = digest
	default:
		s.Digest = u.Fragment
	}
	return s, nil
}

func parseOCI(u *url.URL) (Spec, error) {
	q, err := query(u, "plain")
	if err != nil {
		return Spec{}, err
	}
	scheme := "https"
	if v := q.Get("plain"); v != "" {
		plain, err := strconv.ParseBool(v)
		if err != nil {
			return Spec{}, errors.New("plain is true or false")
		}
		if plain {
			scheme = "http"
		}
	}
	s := Spec{Kind: OCI, Endpoint: scheme + "://" + u.Host}
	name := strings.TrimPrefix(u.Path, "/")
	if repo, digest, ok := strings.Cut(name, "@"); ok {
		s.Name, s.Revision = repo, digest
	} else if i := strings.LastIndexByte(name, ':'); i >= 0 {
		s.Name, s.Revision = name[:i], name[i+1:]
	} else {
		s.Name, s.Revision = name, "latest"
	}
	return s, nil
}

func parseHF(rest string) (Spec, error) {
	rest, raw, _ := strings.Cut(rest, "?")
	q, err := query(&url.URL{RawQuery: raw}, "endpoint")
	if err != nil {
		return Spec{}, err
	}
	name, revision, _ := strings.Cut(rest, "@")
	if strings.Contains(rest, ":") {
		return Spec{}, errors.New("not org/model@revision; a user or password in it would be shown to everybody")
	}
	return Spec{Kind: HF, Endpoint: strings.TrimSuffix(q.Get("endpoint"), "/"), Name: name, Revision: revision}, nil
}

func parsePeer(u *url.URL) (Spec, error) {
	if _, err := query(u); err != nil {
		return Spec{}, err
	}
	return Spec{Kind: Peer, Endpoint: "https://" + u.Host, Name: strings.TrimPrefix(u.Path, "/")}, nil
}

// Validate says what is wrong with a source's description, or nil.
func (s Spec) Validate() error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("source %s %q: %w", s.Kind, s.Name, err)
	}
	return nil
}

func (s Spec) validate() error {
	if s.Endpoint == "" && s.Kind != S3 && s.Kind != HF {
		return errors.New("no endpoint; give https://host")
	}
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || !hostPattern.MatchString(u.Host) || s.Endpoint != u.Scheme+"://"+u.Host {
			return errors.New("the endpoint is not https://host or https://host:port")
		}
	}
	if s.Digest != "" && !digestPattern.MatchString(s.Digest) {
		return errors.New("the digest is not sha256: and 64 hexadecimal digits")
	}
	switch s.Kind {
	case S3:
		return s.validateS3()
	case HTTP:
		if !strings.HasPrefix(s.Name, "/") || strings.HasSuffix(s.Name, "/") || strings.ContainsAny(s.Name, "?#\x00\\ ") {
			return errors.New("not the path of a file")
		}
		if unescaped, err := url.PathUnescape(s.Name); err != nil || path.Clean(unescaped) != unescaped {
			return errors.New("not the path of a file")
		}
	case OCI:
		if !repoPattern.MatchString(s.Name) || !(tagPattern.MatchString(s.Revision) || digestPattern.MatchString(s.Revision)) {
			return errors.New("not a repository with a tag or a sha256 digest: oci://registry/repository@sha256:…")
		}
	case HF:
		if !modelPattern.MatchString(s.Name) || (s.Revision != "" && !revisionPattern.MatchString(s.Revision)) || strings.Contains(s.Revision, "..") {
			return errors.New("not a model: hf://org/model@revision")
		}
	case Peer:
		if !digestPattern.MatchString(s.Name) {
			return errors.New("not the digest of a tree: peer://host:port/sha256:…")
		}
	default:
		return fmt.Errorf("kind %q is not known; s3, http, oci, hf and peer are", s.Kind)
	}
	return nil
}

func (s Spec) validateS3() error {
	if !bucketPattern.MatchString(s.Name) || strings.Contains(s.Name, "..") {
		return errors.New("not a bucket's name: 3 to 63 lower-case letters, digits, dots and dashes")
	}
	if s.Style != "" && s.Style != "path" && s.Style != "virtual" {
		return fmt.Errorf("style %q; it is path or virtual", s.Style)
	}
	if s.Revision != "" && (s.Prefix == "" || strings.HasSuffix(s.Prefix, "/")) {
		return errors.New("a version is of one object: name its key")
	}
	if strings.ContainsRune(s.Prefix, 0) || len(s.Prefix) > 1024 {
		return errors.New("the prefix is no key")
	}
	return nil
}

// String is the URL form.
func (s Spec) String() string {
	host := s.Endpoint[strings.LastIndexByte(s.Endpoint, '/')+1:]
	q := url.Values{}
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	u := url.URL{Scheme: string(s.Kind), Host: host}
	switch s.Kind {
	case S3:
		u.Host, u.Path = s.Name, "/"+s.Prefix
		set("endpoint", s.Endpoint)
		set("region", s.Region)
		set("style", s.Style)
		set("version", s.Revision)
	case HTTP:
		text := s.Endpoint + s.Name
		switch {
		case s.Index && s.Digest != "":
			return text + "#index=" + s.Digest
		case s.Index:
			return text + "#index"
		case s.Digest != "":
			return text + "#" + s.Digest
		}
		return text
	case OCI:
		sep := ":"
		if digestPattern.MatchString(s.Revision) {
			sep = "@"
		}
		if strings.HasPrefix(s.Endpoint, "http://") {
			set("plain", "true")
		}
		u.Path = "/" + s.Name + sep + s.Revision
	case HF:
		name := s.Name
		if s.Revision != "" {
			name += "@" + s.Revision
		}
		set("endpoint", s.Endpoint)
		text := "hf://" + name
		if len(q) > 0 {
			text += "?" + q.Encode()
		}
		return text
	default:
		u.Path = "/" + s.Name
	}
	u.RawQuery = q.Encode()
	return u.String()
}
