package csi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// backEnds are those that the suite of CSI is run over, each in a process of its own: it runs once in a process.
var backEnds = []struct {
	name   string
	open   func(t *testing.T, dir string) Pool
	params map[string]string
}{
	{"fake", func(_ *testing.T, dir string) Pool {
		return Pool{Name: "fake", Kind: "fake", Backend: newFakePool(dir)}
	}, nil},
	{"dir", func(t *testing.T, dir string) Pool {
		b, err := pool.OpenDirectory(dir)
		if err != nil {
			t.Fatal(err)
		}
		return Pool{Name: "dir", Kind: "dir", Backend: b}
	}, nil},
}

// needRoot skips where mounts cannot be made.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
}

const sanityEnv = "KERF_CSI_SANITY" // the back end that this process is to run the suite over

func TestSanity(t *testing.T) {
	needRoot(t)
	if name := os.Getenv(sanityEnv); name != "" {
		sanityOf(t, name)
		return
	}
	for _, b := range backEnds {
		t.Run(b.name, func(t *testing.T) {
			child := exec.Command(os.Args[0], "-test.run=^TestSanity$", "-test.v")
			child.Env = append(os.Environ(), sanityEnv+"="+b.name)
			out, err := child.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "Passed") || strings.HasPrefix(line, "--- SKIP") {
					t.Log(strings.TrimSpace(line))
				}
			}
		})
	}
}

func sanityOf(t *testing.T, name string) {
	for _, b := range backEnds {
		if b.name != name {
			continue
		}
		dir, err := os.MkdirTemp("", "kerf") // short: sockets
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		place := filepath.Join(dir, "pool")
		if err := os.Mkdir(place, 0o755); err != nil {
			t.Fatal(err)
		}
		d := openDriver(t, dir, b.open(t, place))
		p := serve(t, dir, d)
		c := sanity.NewTestConfig()
		c.Address = "unix:" + p.Socket()
		c.TargetPath = filepath.Join(p.KubeletDir, "target")
		c.StagingPath = filepath.Join(p.KubeletDir, "staging")
		c.TestVolumeSize = int64(400 * node.MiB)
		c.TestVolumeExpandSize = int64(500 * node.MiB)
		c.TestVolumeParameters = b.params
		c.IdempotentCount = 3
		sanity.Test(t, c)
		if left := d.List(); len(left) > 0 {
			t.Errorf("left behind: %+v", left)
		}
	}
}

// openDriver is a driver with its state in a directory.
func openDriver(t *testing.T, dir string, pools ...Pool) *Driver {
	t.Helper()
	d, damaged, err := New(t.Context(), testConfig(dir, pools...))
	if err != nil || damaged != nil {
		t.Fatal(err, damaged)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func testConfig(dir string, pools ...Pool) Config {
	return Config{NodeName: "node-1", Version: "test", KubeletDir: filepath.Join(dir, "kubelet"), StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		Pools: pools, Now: time.Now}
}

// serve runs a plugin until the test ends.
func serve(t *testing.T, dir string, d *Driver) *Plugin {
	t.Helper()
	p := &Plugin{Name: DriverName, KubeletDir: filepath.Join(dir, "kubelet"), Services: func(s *grpc.Server) { d.Register(s) }, Report: func(err error) { t.Error(err) },
		Latency: NewCallTimes(DriverName)}
	ended := make(chan error, 1)
	ctx := t.Context()
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for range 1000 {
		if _, err := os.Stat(p.registrySocket()); err == nil {
			return p
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the driver does not listen")
	return nil
}
