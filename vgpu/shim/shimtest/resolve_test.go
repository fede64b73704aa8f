package shimtest

import (
	"debug/elf"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/cuda"
)

// intercepted reads api.def: the symbols that the shim exports itself.
func intercepted(t *testing.T, def string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", def))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^(\w+)\s+(\w+?)(?:\+(\w+))?\s+\d+\s+\(`)
	set := map[string]bool{}
	for _, m := range line.FindAllStringSubmatch(string(text), -1) {
		if m[1] == "call" {
			continue
		}
		set[m[2]] = true
		if m[3] != "" {
			set[m[2]+"_"+m[3]] = true
		}
	}
	if len(set) == 0 {
		t.Fatalf("%s lists nothing", def)
	}
	return set
}

func exports(t *testing.T, path, prefix string) []string {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range syms {
		if s.Section != elf.SHN_UNDEF && elf.ST_TYPE(s.Info) == elf.STT_FUNC && strings.HasPrefix(s.Name, prefix) {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// vendorTenant is a tenant over NVIDIA's own libraries. Without a card cuInit fails, so its share grants no real GPU.
func vendorTenant(t *testing.T, v vendorDriver) *tenantNode {
	t.Helper()
	n := newTenant(t, libraries(t, plain, "shim"), v.library(t, "libcuda"), v.library(t, "libnvidia-ml"))
	n.share(t, "vendor", grant{uuid: [16]byte{1}, limit: 1 << 30})
	return n
}

// direct is the same view without the shim.
func (n *tenantNode) direct(t testing.TB) *tenantNode {
	t.Helper()
	d := newTenant(t, filepath.Join(n.dir, "lib"), filepath.Join(n.dir, "driver/libkerfreal-cuda.so.1"), filepath.Join(n.dir, "driver/libkerfreal-nvidia-ml.so.1"))
	for lib, to := range map[string]string{"libkerfreal-cuda.so.1": "libcuda.so.1", "libkerfreal-nvidia-ml.so.1": "libnvidia-ml.so.1"} {
		copyFile(t, filepath.Join(n.dir, "driver", lib), filepath.Join(d.dir, "lib", to))
	}
	return d
}

// allNames is every name of the table and of the driver's exports.
func allNames(t *testing.T, driver string) string {
	t.Helper()
	names := exports(t, driver, "cu")
	table, err := cuda.Entrypoints()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range table {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), "\n")
}

// TestResolutionEqualsTheDrivers asks the resolver for every name, version and flag through the shim and without it.
func TestResolutionEqualsTheDrivers(t *testing.T) {
	ours := intercepted(t, "api.def")
	resolve := program(t, "resolve", "resolve.c")
	for _, v := range vendorDrivers {
		for _, resolver := range []string{"gpa", "gpa1"} {
			t.Run(v.branch+"/"+resolver, func(t *testing.T) {
				n := vendorTenant(t, v)
				names := allNames(t, v.library(t, "libcuda"))
				shim := n.view(resolve, resolver).run(t, names).ok(t)
				direct := n.direct(t).view(resolve, resolver).run(t, names).ok(t)
				compareAnswers(t, ours, lines(direct.out), lines(shim.out))
			})
		}
	}
}

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

func compareAnswers(t *testing.T, ours map[string]bool, direct, shim []string) {
	t.Helper()
	if len(direct) != len(shim) || len(direct) < 1000 {
		t.Fatalf("%d answers directly, %d through the shim", len(direct), len(shim))
	}
	wrapped := 0
	for i := range direct {
		d, s := strings.Split(direct[i], "\t"), strings.Split(shim[i], "\t")
		symbol, library := d[len(d)-2], s[len(s)-1]
		want := "libkerfreal-cuda.so.1"
		switch {
		case symbol == "-":
			want = "-"
		case ours[symbol]:
			want = "libcuda.so.1"
			wrapped++
		}
		if !slices.Equal(d[:len(d)-1], s[:len(s)-1]) || library != want {
			t.Errorf("directly:  %s\nthe shim: %s\nwant it in %s", direct[i], shim[i], want)
		}
	}
	if wrapped < 300 {
		t.Errorf("%d answers are the shim's; the test does not see what it should", wrapped)
	}
}

// TestEntrypointsAgreeWithTheDriver holds internal/cuda's table against what NVIDIA's driver answers.
func TestEntrypointsAgreeWithTheDriver(t *testing.T) {
	table, err := cuda.Entrypoints()
	if err != nil {
		t.Fatal(err)
	}
	resolve := program(t, "resolve", "resolve.c")
	for _, v := range vendorDrivers {
		t.Run(v.branch, func(t *testing.T) {
			n := vendorTenant(t, v)
			out := n.direct(t).view(resolve, "gpa").run(t, allNames(t, v.library(t, "libcuda"))).ok(t).out
			answered := 0
			for _, line := range lines(out) {
				f := strings.Split(line, "\t")
				flag, _ := strconv.Atoi(f[1])
				version, _ := strconv.Atoi(f[2])
				stream := cuda.LegacyStream
				if flag == 2 {
					stream = cuda.ThreadStream
				}
				got := strings.Replace(f[5], "-", "", 1)
				want := table.Lookup(f[0], version, v.cuda, stream)
				// A 12.2 driver has some later names under the table's version, a table row may be newer than the driver.
				if got != want {
					t.Errorf("%s for %d, flag %d: the driver says %q, the table %q", f[0], version, flag, got, want)
				}
				if got != "" {
					answered++
				}
			}
			if answered < 900 {
				t.Errorf("the driver answered %d times; the test does not see what it should", answered)
			}
		})
	}
}

// TestEveryExportIsReachable finds each name that NVIDIA's libraries export, through the shim.
func TestEveryExportIsReachable(t *testing.T) {
	resolve := program(t, "resolve", "resolve.c")
	for _, v := range vendorDrivers {
		t.Run(v.branch, func(t *testing.T) {
			n := vendorTenant(t, v)
			ours := intercepted(t, "api.def")
			names := exports(t, v.library(t, "libcuda"), "cu")
			got := lines(n.view(resolve, "dlsym").run(t, strings.Join(names, "\n")).ok(t).out)
			for i, line := range got {
				want := names[i] + "\t" + names[i] + "\tlibkerfreal-cuda.so.1"
				if ours[names[i]] {
					want = names[i] + "\t" + names[i] + "\tlibcuda.so.1"
				}
				if line != want {
					t.Errorf("dlsym through the shim: %q, want %q", line, want)
				}
			}
		})
	}
}

// TestSubstitution finds every intercepted symbol in the shim over NVIDIA's driver, by every route of the loader.
func TestSubstitution(t *testing.T) {
	want := strconv.Itoa(len(intercepted(t, "api.def"))) + "\n"
	shim := filepath.Join(libraries(t, plain, "shim"), "libcuda.so.1")
	free := program(t, "substitute", "substitute.c")
	linked := program(t, "substitute-linked", "substitute.c", "-Wl,--no-as-needed", shim, "-Wl,--allow-shlib-undefined")
	preload := program(t, "preload.so", "preload.c", "-shared", "-fPIC")
	for _, v := range vendorDrivers {
		n := vendorTenant(t, v)
		for _, route := range []string{"dlopen", "global", "deepbind", "dlmopen", "default", "next"} {
			t.Run(v.branch+"/"+route, func(t *testing.T) {
				bin, env := free, []string(nil)
				if route == "default" || route == "next" {
					bin = linked
				}
				if route == "next" {
					env = []string{"LD_PRELOAD=" + preload}
				}
				if got := n.view(bin, route).run(t, "", env...).ok(t).out; got != want {
					t.Errorf("found in the shim: %swant %s", got, want)
				}
			})
		}
		// NVIDIA's symbols have no version, so dlvsym finds none, with the shim as without it.
		t.Run(v.branch+"/dlvsym", func(t *testing.T) {
			for _, n := range []*tenantNode{n, n.direct(t)} {
				if out := n.view(free, "dlvsym").run(t, "").ok(t).out; !strings.HasSuffix(out, "\n0\n") {
					t.Errorf("dlvsym found %s", tail(out))
				}
			}
		})
	}
}
