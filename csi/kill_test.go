package csi

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// step is one call of a script. All are idempotent: the one that was cut short is made again.
type step struct {
	name string
	do   func(context.Context, *player) error
}

// player makes the calls of a script, and knows the ids that it was given.
type player struct {
	d   *Driver
	ids map[string]string
}

func mountCapability() *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}}}
}

func create(name, from string) step {
	return step{"create " + name, func(ctx context.Context, p *player) error {
		r := &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{mountCapability()}, CapacityRange: &spec.CapacityRange{RequiredBytes: int64(320 * node.MiB)}}
		if from != "" {
			r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: p.ids[from]}}}
		}
		answer, err := p.d.CreateVolume(ctx, r)
		p.ids[name] = answer.GetVolume().GetVolumeId()
		return err
	}}
}

func target(d *Driver, name string) string { return filepath.Join(d.config.KubeletDir, "t-"+name) }

func publish(name string, attributes map[string]string) step {
	return step{"publish " + name, func(ctx context.Context, p *player) error {
		_, err := p.d.NodePublishVolume(ctx, &spec.NodePublishVolumeRequest{VolumeId: p.id(name), TargetPath: target(p.d, name), VolumeCapability: mountCapability(), VolumeContext: attributes})
		return err
	}}
}

// id is what the driver called a volume; an ephemeral one is kubelet's to name.
func (p *player) id(name string) string {
	if id := p.ids[name]; id != "" {
		return id
	}
	return name
}

func unpublish(name string) step {
	return step{"unpublish " + name, func(ctx context.Context, p *player) error {
		_, err := p.d.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: p.id(name), TargetPath: target(p.d, name)})
		return err
	}}
}

func remove(name string) step {
	return step{"delete " + name, func(ctx context.Context, p *player) error {
		_, err := p.d.DeleteVolume(ctx, &spec.DeleteVolumeRequest{VolumeId: p.ids[name]})
		return err
	}}
}

func expand(name string) step {
	return step{"expand " + name, func(ctx context.Context, p *player) error {
		answer, err := p.d.ControllerExpandVolume(ctx, &spec.ControllerExpandVolumeRequest{VolumeId: p.ids[name], CapacityRange: &spec.CapacityRange{RequiredBytes: int64(400 * node.MiB)}})
		if err == nil && answer.GetCapacityBytes() != int64(400*node.MiB) {
			return fmt.Errorf("it has %d bytes", answer.GetCapacityBytes())
		}
		return err
	}}
}

func write(name string) step {
	return step{"write " + name, func(_ context.Context, p *player) error {
		return os.WriteFile(filepath.Join(target(p.d, name), "file"), []byte("acknowledged"), 0o600)
	}}
}

func read(name string) step {
	return step{"read " + name, func(_ context.Context, p *player) error {
		text, err := os.ReadFile(filepath.Join(target(p.d, name), "file"))
		if err == nil && string(text) != "acknowledged" {
			return fmt.Errorf("it has %q", text)
		}
		return err
	}}
}

func snapshot(name, of string) step {
	return step{"snapshot " + name, func(ctx context.Context, p *player) error {
		answer, err := p.d.CreateSnapshot(ctx, &spec.CreateSnapshotRequest{Name: name, SourceVolumeId: p.ids[of]})
		p.ids[name] = answer.GetSnapshot().GetSnapshotId()
		return err
	}}
}

func removeSnapshot(name string) step {
	return step{"delete snapshot " + name, func(ctx context.Context, p *player) error {
		_, err := p.d.DeleteSnapshot(ctx, &spec.DeleteSnapshotRequest{SnapshotId: p.ids[name]})
		return err
	}}
}

var ephemeral = map[string]string{paramEphemeral: "true", paramSize: "320Mi"}

// scripts each end where they began: with nothing.
var scripts = map[string][]step{
	"life": {create("a", ""), publish("a", nil), write("a"), expand("a"), unpublish("a"), publish("a", nil), read("a"), unpublish("a"), remove("a")},
	"copies": {create("a", ""), publish("a", nil), write("a"), snapshot("s", "a"), create("b", "a"), unpublish("a"), expand("b"), remove("a"),
		publish("b", nil), read("b"), unpublish("b"), removeSnapshot("s"), remove("b")},
	"ephemeral": {publish("e", ephemeral), write("e"), read("e"), unpublish("e")},
}

// killEnv tells a child: back end, script, directory, first step, the hit of a point at which it dies, and the ids.
const killEnv = "KERF_CSI_KILL"

// crashConfig is a driver that counts the points it passes.
func crashConfig(t *testing.T, kind, dir string, hit func(string)) (c Config, end func()) {
	t.Helper()
	at, p, end := filepath.Join(dir, "pool"), Pool{Name: kind, Kind: kind}, func() {}
	if kind == "fake" {
		fake := newFakePool(at)
		fake.at = hit
		p.Backend = fake
	} else {
		opened, err := pool.Open(t.Context(), pool.Config{Name: kind, Path: at, Backend: kind, At: hit})
		if err != nil {
			t.Skipf("no back end %s here: %v", kind, err)
		}
		p.Backend, end = opened.Backend, func() { _ = opened.Close() }
	}
	c = testConfig(dir, p)
	c.At = hit
	return c, end
}

// TestKillChild is the child: it plays a script until it is killed.
func TestKillChild(t *testing.T) {
	say := os.Getenv(killEnv)
	if say == "" {
		t.Skip("a part of TestKill")
	}
	f := strings.Split(say, "|")
	kind, script, dir := f[0], scripts[f[1]], f[2]
	first, _ := strconv.Atoi(f[3])
	dieAt, _ := strconv.Atoi(f[4])
	p := &player{ids: parseIDs(f[5])}
	hits := 0
	var err error
	var damaged error
	c, _ := crashConfig(t, kind, dir, func(string) {
		if hits++; hits > dieAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	p.d, damaged, err = New(t.Context(), c)
	if err != nil || damaged != nil {
		t.Fatal(err, damaged)
	}
	for i, s := range script[first:] {
		if err := s.do(t.Context(), p); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		fmt.Printf("done|%d|%s\n", first+i+1, formatIDs(p.ids))
	}
}

func formatIDs(ids map[string]string) string {
	var pairs []string
	for name, id := range ids {
		pairs = append(pairs, name+"="+id)
	}
	return strings.Join(pairs, ",")
}

func parseIDs(text string) map[string]string {
	ids := make(map[string]string)
	for pair := range strings.SplitSeq(text, ",") {
		if name, id, ok := strings.Cut(pair, "="); ok {
			ids[name] = id
		}
	}
	return ids
}

// child plays a script from a step on and dies at a hit. It answers the first step that did not end, and the ids so far.
func child(t *testing.T, kind, script, dir string, first, dieAt int, ids map[string]string) (int, map[string]string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%s|%d|%d|%s", killEnv, kind, script, dir, first, dieAt, formatIDs(ids)))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL && err != nil {
		t.Fatalf("%s, from step %d, kill at hit %d: %v\n%s", script, first, dieAt, err, out)
	}
	lines := bufio.NewScanner(strings.NewReader(string(out)))
	for lines.Scan() {
		if f := strings.Split(lines.Text(), "|"); len(f) == 3 && f[0] == "done" {
			first, _ = strconv.Atoi(f[1])
			ids = parseIDs(f[2])
		}
	}
	return first, ids
}

// play ends a script in this process, and looks for what is left.
func play(t *testing.T, kind, script, dir string, first int, ids map[string]string, hit func(string)) {
	t.Helper()
	c, end := crashConfig(t, kind, dir, hit)
	defer end()
	d, damaged, err := New(t.Context(), c)
	if err != nil || damaged != nil {
		t.Fatal(err, damaged)
	}
	defer func() { _ = d.Close() }()
	if ids == nil {
		ids = make(map[string]string)
	}
	p := &player{d, ids}
	for _, s := range scripts[script][first:] {
		if err := s.do(t.Context(), p); err != nil {
			t.Fatalf("%s: %s: %v", script, s.name, err)
		}
	}
	nothingLeft(t, d, c)
}

func nothingLeft(t *testing.T, d *Driver, c Config) {
	t.Helper()
	if left := d.List(); len(left) > 0 {
		t.Errorf("records left: %+v", left)
	}
	if left := d.targets.of(""); len(left) > 0 {
		t.Errorf("targets left: %+v", left)
	}
	if ids, err := c.Pools[0].Backend.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("left in the pool: %v %v", ids, err)
	}
	table, err := mount.ReadTable()
	if err != nil {
		t.Fatal(err)
	}
	for at := range table {
		if strings.HasPrefix(at, filepath.Dir(c.KubeletDir)+"/") {
			t.Errorf("mount left: %s", at)
		}
	}
	for _, dir := range []string{c.KubeletDir, filepath.Join(c.RunDir, "targets")} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v %v", dir, entries, err)
		}
	}
}

// crashDir is a directory for a node whose mounts go with the test, even one that fails.
func crashDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		table, _ := mount.ReadTable()
		for at := range table {
			if strings.HasPrefix(at, dir+"/") {
				_ = syscall.Unmount(at, syscall.MNT_DETACH)
			}
		}
	})
	if err := os.MkdirAll(filepath.Join(dir, "kubelet"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestKill kills a process before and after every change that it makes to the world; the next one finishes or undoes it, and the same calls
// lead to the same end. KERF_SOAK=1: a thousand random ones, half of which die again while they recover.
func TestKill(t *testing.T) {
	needRoot(t)
	for name := range scripts {
		t.Run(name, func(t *testing.T) { killAll(t, "fake", name) })
	}
	t.Run("loop", func(t *testing.T) { killAll(t, pool.KindLoop, "life") }) // its own changes are hit too
}

// killAll kills at every hit of a script.
func killAll(t *testing.T, kind, name string) {
	hits := 0
	points := make(map[string]bool)
	play(t, kind, name, crashDir(t), 0, nil, func(point string) { hits++; points[point] = true })
	if hits < 8 {
		t.Fatalf("only %d points are passed: this shows nothing", hits)
	}
	step := 1
	if kind != "fake" && os.Getenv("KERF_SOAK") != "1" { // each start makes a file system
		step = 7
	}
	for dieAt := 0; dieAt < hits; dieAt += step {
		dir := crashDir(t)
		first, ids := child(t, kind, name, dir, 0, dieAt, nil)
		if first == len(scripts[name]) {
			t.Errorf("hit %d: the child was not killed", dieAt)
		}
		play(t, kind, name, dir, first, ids, func(string) {})
	}
	t.Logf("killed at every %d. of %d hits of %d points", step, hits, len(points))
	if os.Getenv("KERF_SOAK") == "1" && kind == "fake" {
		soak(t, name, hits)
	}
}

func soak(t *testing.T, name string, hits int) {
	const rounds = 350
	for range rounds {
		dir := crashDir(t)
		first, ids := child(t, "fake", name, dir, 0, rand.IntN(hits), nil)
		for rand.IntN(2) == 0 {
			first, ids = child(t, "fake", name, dir, first, rand.IntN(4), ids)
		}
		play(t, "fake", name, dir, first, ids, func(string) {})
		if t.Failed() {
			return
		}
	}
	t.Logf("%d random rounds", rounds)
}
