package fetch_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
)

// server is the path of a program of the module servers, built once for each version and kept outside the tree. The first time takes minutes.
func server(t *testing.T, module, pkg string) string {
	t.Helper()
	mod, err := os.ReadFile("servers/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(regexp.QuoteMeta(module) + ` (v[^ \n]+)`).FindSubmatch(mod)
	if m == nil {
		t.Fatalf("servers/go.mod does not name %s", module)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "kerf", "servers")
	name := filepath.Join(dir, filepath.Base(pkg)+"-"+string(m[1]))
	if _, err := os.Stat(name); err == nil {
		return name
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	temp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	build := exec.CommandContext(t.Context(), "go", "build", "-C", "servers", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(temp, "server"), pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	if err := os.Rename(filepath.Join(temp, "server"), name); err != nil {
		t.Fatal(err)
	}
	return name
}

// freePort is a port of loopback that nobody has just now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a server until the test ends, or stop is called, and returns when it answers HTTP.
func start(t *testing.T, addr, program string, env []string, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, program, args...)
	var log bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			return stop
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", program, log.String())
		case <-time.After(20 * time.Millisecond): // there is no event to wait for
		}
	}
}

const (
	accessKey = "kerf-test"
	secretKey = "kerf-test-secret"
)

// s3Server is a versitygw with a bucket, and a client that fills it.
func s3Server(t *testing.T) (addr string, stop, again func(), put func(key string, data []byte) (version string)) {
	t.Helper()
	program := server(t, "github.com/versity/versitygw", "github.com/versity/versitygw/cmd/versitygw")
	root, meta, versions := t.TempDir(), t.TempDir(), t.TempDir()
	addr = freePort(t)
	run := func() func() {
		return start(t, addr, program, []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey},
			"--port", addr, "posix", "--sidecar", meta, "--versioning-dir", versions, root)
	}
	stop = run()
	client, err := minio.New(addr, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), "data", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.EnableVersioning(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	put = func(key string, data []byte) string {
		t.Helper()
		info, err := client.PutObject(t.Context(), "data", key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{DisableMultipart: true})
		if err != nil {
			t.Fatal(err)
		}
		return info.VersionID
	}
	return addr, stop, func() { run() }, put
}

// TestS3 reads from a real S3 server.
func TestS3(t *testing.T) {
	addr, stop, again, put := s3Server(t)
	data := random(3 << 20)
	put("models/a/weights.bin", data)
	put("models/a/sub dir/config+1.json", []byte("{}"))
	put("models/a/empty", nil)
	put("models/ab", []byte("not of it"))
	keys := fetch.Credentials{AccessKey: accessKey, SecretKey: secretKey}
	at := func(prefix string) string {
		return "s3://data/" + prefix + "?endpoint=http://" + addr + "&style=path"
	}

	t.Run("prefix", func(t *testing.T) {
		src := open(t, at("models/a"), loopback(), keys)
		entries := list(t, src)
		var paths []string
		for _, e := range entries {
			paths = append(paths, e.Path)
			file, err := os.Create(filepath.Join(t.TempDir(), "file"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if _, err := fetch.NewCopier(src, quick()).Copy(t.Context(), e, file, fetch.Resume{}); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file.Name())
			if err != nil || int64(len(got)) != int64(e.Size) || (e.Path == "weights.bin" && !bytes.Equal(got, data)) {
				t.Fatalf("%s: %d bytes, %v", e.Path, len(got), err)
			}
		}
		if got := strings.Join(paths, " "); got != "empty sub dir/config+1.json weights.bin" {
			t.Fatalf("listed %s", got)
		}
	})
	t.Run("one object", func(t *testing.T) {
		got, err := load(t.Context(), t, open(t, at("models/a/weights.bin"), loopback(), keys), quick())
		if err != nil || !bytes.Equal(got, data) {
			t.Fatal(err)
		}
	})
	t.Run("overwritten mid-way", func(t *testing.T) {
		put("changing", data)
		src := open(t, at("changing"), loopback(), keys)
		list(t, src)
		put("changing", random(len(data)-1))
		if _, err := load(t.Context(), t, src, quick()); !errors.Is(err, fetch.ErrChanged) {
			t.Fatalf("want %v, got %v", fetch.ErrChanged, err)
		}
	})
	t.Run("version", func(t *testing.T) {
		version := put("versions", data)
		put("versions", []byte("newer"))
		if version == "" {
			t.Fatal("the server gave no version id")
		}
		got, err := load(t.Context(), t, open(t, at("versions")+"&version="+version, loopback(), keys), quick())
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
	for name, tc := range map[string]struct {
		prefix string
		c      fetch.Credentials
		want   error
	}{
		"wrong secret":  {"models/a", fetch.Credentials{AccessKey: accessKey, SecretKey: "hunter2"}, fetch.ErrDenied},
		"no such key":   {"models/b", keys, fetch.ErrNotFound},
		"wrong key":     {"models/a", fetch.Credentials{AccessKey: "somebody", SecretKey: "hunter2"}, fetch.ErrDenied},
		"no credential": {"models/a", fetch.Credentials{}, fetch.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, at(tc.prefix), loopback(), tc.c).List(t.Context())
			if !errors.Is(err, tc.want) || strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("want %v, got %v", tc.want, err)
			}
		})
	}
	t.Run("server restart", func(t *testing.T) {
		src := open(t, at("models/a/weights.bin"), loopback(), keys)
		list(t, src)
		o := quick()
		o.Attempts, o.Workers = 200, 1
		stopped := false
		o.Progress = func(fetch.Entry, node.Bytes, fetch.Progress) {
			if !stopped {
				stopped = true
				stop()
				again()
			}
		}
		got, err := load(t.Context(), t, src, o)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatal(err)
		}
	})
}

// TestOCI reads from a real registry what oras pushed to it.
func TestOCI(t *testing.T) {
	program := server(t, "github.com/distribution/distribution/v3", "github.com/distribution/distribution/v3/cmd/registry")
	addr := freePort(t)
	config := filepath.Join(t.TempDir(), "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: %s\n", t.TempDir(), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, addr, program, []string{"OTEL_TRACES_EXPORTER=none"}, "serve", config)
	data := random(1 << 20)
	layer := tarball(t, []tar.Header{{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "dir/file", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 2}}, "hi")
	digest := push(t, addr, "team/model", "v1", map[string]string{ocispec.AnnotationTitle: "weights.bin"}, "application/octet-stream", data)
	push(t, addr, "team/image", "v1", nil, ocispec.MediaTypeImageLayer, layer)

	for _, ref := range []string{"team/model:v1", "team/model@" + digest} {
		got, err := load(t.Context(), t, open(t, "oci://"+addr+"/"+ref+"?plain=true", loopback(), fetch.Credentials{}), quick())
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: %v", ref, err)
		}
	}
	src := open(t, "oci://"+addr+"/team/image:v1?plain=true", loopback(), fetch.Credentials{})
	entries := list(t, src)
	if len(entries) != 1 || entries[0].Archive != "tar" || entries[0].Digest == "" {
		t.Fatalf("an image's layer is %+v", entries)
	}
	got, err := load(t.Context(), t, src, quick())
	if err != nil || !bytes.Equal(got, layer) {
		t.Fatal(err)
	}
	gated := tokens(t, addr)
	password := fetch.Credentials{Username: "me", Password: "hunter2"}
	at := "oci://" + gated + "/team/model:v1?plain=true"
	if got, err := load(t.Context(), t, open(t, at, loopback(), password), quick()); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("with a password that buys tokens: %v", err)
	}
	for name, c := range map[string]fetch.Credentials{"no password": {}, "wrong password": {Username: "me", Password: "hunter3"}} {
		if _, err := open(t, at, loopback(), c).List(t.Context()); !errors.Is(err, fetch.ErrDenied) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: want %v, got %v", name, fetch.ErrDenied, err)
		}
	}
	for _, ref := range []string{"team/model:v2", "team/none:v1", "team/model@sha256:" + strings.Repeat("0", 64)} {
		if _, err := open(t, "oci://"+addr+"/"+ref+"?plain=true", loopback(), fetch.Credentials{}).List(t.Context()); !errors.Is(err, fetch.ErrNotFound) {
			t.Errorf("%s: want %v, got %v", ref, fetch.ErrNotFound, err)
		}
	}
}

// push makes a manifest of one layer.
func push(t *testing.T, addr, name, tag string, annotations map[string]string, mediaType string, data []byte) string {
	t.Helper()
	repo, err := remote.NewRepository(addr + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	layer := content.NewDescriptorFromBytes(mediaType, data)
	layer.Annotations = annotations
	if err := repo.Push(t.Context(), layer, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	manifest, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, "application/vnd.kerf.test", oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(t.Context(), manifest, tag); err != nil {
		t.Fatal(err)
	}
	return manifest.Digest.String()
}

// tokens is a front of a registry that wants a bearer token, and sells it for a password.
func tokens(t *testing.T, registry string) string {
	t.Helper()
	mux := http.NewServeMux()
	front := httptest.NewServer(mux)
	t.Cleanup(front.Close)
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "hunter2" || r.URL.Query().Get("scope") != "repository:team/model:pull" {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"bought"}`)
	})
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer bought" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+front.URL+`/token",service="test",scope="repository:team/model:pull"`)
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	return strings.TrimPrefix(front.URL, "http://")
}
