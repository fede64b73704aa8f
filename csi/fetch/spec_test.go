package fetch_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kerf-gpu/kerf/csi/fetch"
)

var sha = "sha256:" + strings.Repeat("ab", 32)

var specs = []struct {
	url  string
	want fetch.Spec
}{
	{"s3://bucket/a/b", fetch.Spec{Kind: fetch.S3, Name: "bucket", Prefix: "a/b"}},
	{"s3://bucket/?endpoint=https%3A%2F%2Fs3.example.com&region=eu-1&style=path", fetch.Spec{Kind: fetch.S3, Name: "bucket", Endpoint: "https://s3.example.com", Region: "eu-1", Style: "path"}},
	{"s3://bucket/key?version=42", fetch.Spec{Kind: fetch.S3, Name: "bucket", Prefix: "key", Revision: "42"}},
	{"https://host:8443/a/f%20g", fetch.Spec{Kind: fetch.HTTP, Endpoint: "https://host:8443", Name: "/a/f%20g"}},
	{"https://host/f#" + sha, fetch.Spec{Kind: fetch.HTTP, Endpoint: "https://host", Name: "/f", Digest: sha}},
	{"https://host/i.json#index", fetch.Spec{Kind: fetch.HTTP, Endpoint: "https://host", Name: "/i.json", Index: true}},
	{"https://host/i.json#index=" + sha, fetch.Spec{Kind: fetch.HTTP, Endpoint: "https://host", Name: "/i.json", Index: true, Digest: sha}},
	{"oci://reg:5000/a/b:v1", fetch.Spec{Kind: fetch.OCI, Endpoint: "https://reg:5000", Name: "a/b", Revision: "v1"}},
	{"oci://reg/a@" + sha + "?plain=true", fetch.Spec{Kind: fetch.OCI, Endpoint: "http://reg", Name: "a", Revision: sha}},
	{"hf://org/model@refs/pr/1", fetch.Spec{Kind: fetch.HF, Name: "org/model", Revision: "refs/pr/1"}},
	{"hf://gpt2@main", fetch.Spec{Kind: fetch.HF, Name: "gpt2", Revision: "main"}},
	{"hf://datasets/Org/d", fetch.Spec{Kind: fetch.HF, Name: "datasets/Org/d"}},
	{"peer://10.0.0.1:7443/" + sha, fetch.Spec{Kind: fetch.Peer, Endpoint: "https://10.0.0.1:7443", Name: sha}},
}

func TestParseSpec(t *testing.T) {
	for _, tc := range specs {
		got, err := fetch.ParseSpec(tc.url)
		if diff := cmp.Diff(tc.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", tc.url, err, diff)
			continue
		}
		if got.String() != tc.url {
			t.Errorf("%s prints as %s", tc.url, got)
		}
	}
	for _, bad := range []string{
		"", "ftp://host/f", "https://user:hunter2@host/f", "https://host/f?X-Amz-Signature=hunter2", "https://host/", "https://host/a/../b", "https:///f",
		"s3://b/k", "s3://Bucket/k", "s3://bucket/k?secret=hunter2", "s3://bucket/k?endpoint=https://user:hunter2@h", "s3://bucket/k?endpoint=file:///etc",
		"s3://bucket/?version=1", "s3://bucket/k?style=odd", "https://host/f#sha256:12", "oci://reg/UPPER:v1", "oci://reg/a@sha512:12", "hf://../x", "hf://a/b/c", "hf://org/m#x", "hf://user:hunter2@host/m",
		"hf://org/m@../../x", "peer://h/latest", "https://ho st/f", "https://host\\@evil/f", "https://host/%2e%2e/f",
	} {
		if got, err := fetch.ParseSpec(bad); err == nil {
			t.Errorf("%s is taken as %+v", bad, got)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a secret in %v", err)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, tc := range specs {
		f.Add(tc.url)
	}
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := fetch.ParseSpec(s)
		if err != nil {
			return
		}
		again, err := fetch.ParseSpec(spec.String())
		if err != nil || again != spec {
			t.Fatalf("%q: %+v prints as %s, which is %+v, %v", s, spec, spec, again, err)
		}
	})
}

func TestCredentialsDoNotPrint(t *testing.T) {
	c := fetch.Credentials{AccessKey: "hunter2", SecretKey: "hunter2", SessionToken: "hunter2", Username: "hunter2", Password: "hunter2", Token: "hunter2"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "c", c, "p", &c)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), fmt.Sprintf("%s %v", &c, []fetch.Credentials{c}), log.String()} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("printed: %s", text)
		}
	}
	if out, err := json.Marshal(c); err == nil {
		t.Errorf("written as %s", out)
	}
}

func TestPolicyAddresses(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fd00::/8")}
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "10.1.2.3": true, "::ffff:10.1.2.3": true, "169.254.7.7": true, "fd00::1": true,
		"10.2.0.1": false, "127.0.0.1": false, "::1": false, "::ffff:127.0.0.1": false, "192.168.0.1": false, "172.16.0.1": false, "0.0.0.0": false, "::": false,
		"169.254.169.254": false, "::ffff:169.254.169.254": false, "fd00:ec2::254": false, "100.100.100.200": false, "fe80::1%eth0": false, "100.64.0.1": false,
		"224.0.0.1": false, "255.255.255.255": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "::7f00:1": false, "ff02::1": false,
	} {
		if err := fetch.CheckAddress(fetch.Policy{Networks: networks}, netip.MustParseAddr(addr)); (err == nil) != want || (err != nil && !errors.Is(err, fetch.ErrRefused)) {
			t.Errorf("%s: %v, want allowed %t", addr, err, want)
		}
	}
}

func TestCleanPath(t *testing.T) {
	for _, good := range []string{"a", "a/b.c", ".hidden", "a..b/...", "ü/日本", strings.Repeat("n", 255)} {
		if got, err := fetch.CleanPath(good); err != nil || got != good {
			t.Errorf("%q: %q, %v", good, got, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "/a", "a/", "a//b", "a/./b", "a/../b", "../a", "a\x00b", "a\\b", "..\\a", "a\nb", "\xff", strings.Repeat("n", 256), strings.Repeat("a/", 200) + "a"} {
		if got, err := fetch.CleanPath(bad); !errors.Is(err, fetch.ErrRefused) {
			t.Errorf("%q is taken as %q, %v", bad, got, err)
		}
	}
}

func FuzzCleanPath(f *testing.F) {
	f.Add("a/../b")
	f.Add("a/b")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := fetch.CleanPath(s); err == nil && (got != s || strings.HasPrefix(s, "/") || strings.Contains("/"+s+"/", "/../") || strings.ContainsAny(s, "\x00\\")) {
			t.Fatalf("%q is taken as %q", s, got)
		}
	})
}

func TestCheckEntries(t *testing.T) {
	e := func(paths ...string) (entries []fetch.Entry) {
		for _, p := range paths {
			entries = append(entries, fetch.Entry{Path: p, Size: 10})
		}
		return entries
	}
	for _, tc := range []struct {
		name     string
		entries  []fetch.Entry
		policy   fetch.Policy
		warnings int
		err      error
	}{
		{"a tree", e("b", "a/b", "a/c", "a.b"), fetch.Policy{}, 0, nil},
		{"file and directory", e("a", "a.b", "a/b"), fetch.Policy{}, 0, fetch.ErrRefused},
		{"file and directory, deep", e("a/b", "a/b/c/d"), fetch.Policy{}, 0, fetch.ErrRefused},
		{"twice", e("a", "a"), fetch.Policy{}, 0, fetch.ErrRefused},
		{"case alone", e("README", "readme"), fetch.Policy{}, 1, nil},
		{"dot dot", e("../a"), fetch.Policy{}, 0, fetch.ErrRefused},
		{"too many", e("a", "b", "c"), fetch.Policy{MaxEntries: 2}, 0, fetch.ErrLimit},
		{"too large", e("a", "b"), fetch.Policy{MaxSize: 19}, 0, fetch.ErrLimit},
		{"sizes that overflow", []fetch.Entry{{Path: "a", Size: 1 << 63}, {Path: "b", Size: 1 << 63}}, fetch.Policy{}, 0, fetch.ErrLimit},
		{"no digest", []fetch.Entry{{Path: "a", Digest: "md5:12"}}, fetch.Policy{}, 0, fetch.ErrRefused},
	} {
		warnings, err := fetch.CheckEntries(tc.entries, tc.policy)
		if !errors.Is(err, tc.err) || (err != nil) != (tc.err != nil) || len(warnings) != tc.warnings {
			t.Errorf("%s: %q, %v; want %d warnings, %v", tc.name, warnings, err, tc.warnings, tc.err)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"files":[{"path":"a","size":1,"sha256":"` + sha[7:] + `"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := fetch.ParseIndex(data)
		if err != nil {
			return
		}
		for _, e := range entries {
			if len(e.Digest) != len(sha) {
				t.Fatalf("%+v has no digest", e)
			}
		}
	})
}
