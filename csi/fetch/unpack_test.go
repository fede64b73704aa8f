package fetch_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/klauspost/compress/zstd"
)

// tarball is an archive of headers; a file's bytes are as much of content as it is long.
func tarball(t testing.TB, headers []tar.Header, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(content)[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(u *fetch.Unpacker, data []byte, archive string) (members []fetch.Member, err error) {
	err = u.Unpack(bytes.NewReader(data), archive, func(m fetch.Member, r io.Reader) error {
		members = append(members, m)
		_, err := io.Copy(io.Discard, r)
		return err
	})
	return members, err
}

func TestUnpack(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 1, Mode: 0o6711}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	hard := func(name, to string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to} }
	for _, tc := range []struct {
		name    string
		headers []tar.Header
		want    []fetch.Member
		err     error
	}{
		{"a tree", []tar.Header{{Name: "./", Typeflag: tar.TypeDir}, {Name: "./d/", Typeflag: tar.TypeDir}, file("./d/f"), link("d/l", "../d/f"), hard("h", "./d/f")}, []fetch.Member{
			{Path: "d", Kind: "directory"}, {Path: "d/f", Kind: "file", Size: 1, Executable: true}, {Path: "d/l", Kind: "symlink", Target: "../d/f"}, {Path: "h", Kind: "hardlink", Target: "d/f"}}, nil},
		{"dot dot", []tar.Header{file("../f")}, nil, fetch.ErrRefused},
		{"absolute", []tar.Header{file("/f")}, nil, fetch.ErrRefused},
		{"link out", []tar.Header{link("l", "../x")}, nil, fetch.ErrRefused},
		{"absolute link", []tar.Header{link("l", "/etc")}, nil, fetch.ErrRefused},
		{"link through a link", []tar.Header{link("d/l", "a/../../x")}, nil, fetch.ErrRefused},
		{"file below a link", []tar.Header{link("l", "d"), file("l/f")}, []fetch.Member{{Path: "l", Kind: "symlink", Target: "d"}}, fetch.ErrRefused},
		{"file below a file", []tar.Header{file("f"), file("f/g")}, []fetch.Member{{Path: "f", Kind: "file", Size: 1, Executable: true}}, fetch.ErrRefused},
		{"file in place of a directory", []tar.Header{{Name: "d/", Typeflag: tar.TypeDir}, file("d")}, []fetch.Member{{Path: "d", Kind: "directory"}}, fetch.ErrRefused},
		{"hard link to nothing", []tar.Header{hard("h", "etc/passwd")}, nil, fetch.ErrRefused},
		{"hard link to a link", []tar.Header{link("l", "d"), hard("h", "l")}, []fetch.Member{{Path: "l", Kind: "symlink", Target: "d"}}, fetch.ErrRefused},
		{"device", []tar.Header{{Name: "d", Typeflag: tar.TypeBlock}}, nil, fetch.ErrRefused},
		{"pipe", []tar.Header{{Name: "p", Typeflag: tar.TypeFifo}}, nil, fetch.ErrRefused},
		{"whiteout", []tar.Header{file("d/.wh.f"), file("d/.wh..wh..opq")}, []fetch.Member{{Path: "d/f", Kind: "whiteout"}, {Path: "d", Kind: "opaque"}}, nil},
		{"whiteout of dot dot", []tar.Header{file("d/.wh...")}, nil, fetch.ErrRefused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := unpack(fetch.NewUnpacker(fetch.Policy{}), tarball(t, tc.headers, "x"), "tar")
			if !errors.Is(err, tc.err) || (err != nil) != (tc.err != nil) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnpackCompressed(t *testing.T) {
	plain := tarball(t, []tar.Header{{Name: "f", Typeflag: tar.TypeReg, Size: 5}}, "hello")
	bomb := tarball(t, []tar.Header{{Name: "f", Typeflag: tar.TypeReg, Size: 32 << 20}}, strings.Repeat("\x00", 32<<20))
	pack := map[string]func([]byte) []byte{
		"tar": func(b []byte) []byte { return b },
		"tar+gzip": func(b []byte) []byte {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, _ = w.Write(b)
			_ = w.Close()
			return out.Bytes()
		},
		"tar+zstd": func(b []byte) []byte {
			var out bytes.Buffer
			w, err := zstd.NewWriter(&out)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = w.Write(b)
			_ = w.Close()
			return out.Bytes()
		},
	}
	for archive := range maps.Keys(pack) {
		if got, err := unpack(fetch.NewUnpacker(fetch.Policy{}), pack[archive](plain), archive); err != nil || len(got) != 1 {
			t.Errorf("%s: %v, %v", archive, got, err)
		}
		_, err := unpack(fetch.NewUnpacker(fetch.Policy{}), pack[archive](bomb), archive)
		if want := archive != "tar"; errors.Is(err, fetch.ErrLimit) != want {
			t.Errorf("%s: a bomb gives %v", archive, err)
		}
	}
	if _, err := unpack(fetch.NewUnpacker(fetch.Policy{MaxSize: 4}), plain, "tar"); !errors.Is(err, fetch.ErrLimit) {
		t.Errorf("over the size: %v", err)
	}
	if _, err := unpack(fetch.NewUnpacker(fetch.Policy{}), plain[:512], "tar"); err == nil {
		t.Error("a truncated archive unpacked")
	}
}

// FuzzUnpack writes what an archive says into a root that cannot be left, as a store would, with nothing else in between: no member may need more.
func FuzzUnpack(f *testing.F) {
	f.Add(tarball(f, []tar.Header{{Name: "a/", Typeflag: tar.TypeDir}, {Name: "a/b", Typeflag: tar.TypeReg, Size: 1}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a/b"}}, "x"))
	f.Add(tarball(f, []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"}, {Name: "a/.wh.b", Typeflag: tar.TypeReg, Size: 1}}, "x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = fetch.NewUnpacker(fetch.Policy{MaxEntries: 100, MaxSize: 1 << 20}).Unpack(bytes.NewReader(data), "tar", func(m fetch.Member, _ io.Reader) error {
			if clean, err := fetch.CleanPath(m.Path); m.Path != "." && (err != nil || clean != m.Path) {
				t.Fatalf("member %+v: %v", m, err)
			}
			switch m.Kind {
			case fetch.MemberSymlink:
				_ = root.MkdirAll(path.Dir(m.Path), 0o755)
				_ = root.Symlink(m.Target, m.Path)
				if _, err := root.Stat(m.Path); err != nil && strings.Contains(err.Error(), "escapes") {
					t.Fatalf("link %+v leaves the tree", m)
				}
			case fetch.MemberDir:
				_ = root.MkdirAll(m.Path, 0o755)
			}
			return nil
		})
	})
}
