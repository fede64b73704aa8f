package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kerf-gpu/kerf/cni/call"
)

// The rows of cni. The baseline is containernetworking's host-device, which does the same to the same links.
var (
	cniWallRow  = Row{"KF-1000", "32 ADDs at once: until the last is done; baseline: host-device", "ns", Absolute, bound(second), nil}
	cniAddRow   = Row{"KF-1001", "each of 32 ADDs at once; baseline: host-device", "ns", Absolute, nil, nil}
	cniOneRow   = Row{"KF-1002", "an ADD alone; baseline: host-device", "ns", Absolute, nil, nil}
	cniMovesRow = Row{"KF-1003", "moves between namespaces for each ADD, as the kernel tells; baseline: host-device", "moves", Absolute, bound(1), bound(1)}
	cniDelRow   = Row{"KF-1004", "32 DELs at once: until the last is done; baseline: host-device", "ns", Absolute, nil, nil}
)

func cniRows() []Row { return []Row{cniWallRow, cniAddRow, cniOneRow, cniMovesRow, cniDelRow} }

const second = float64(time.Second)

// cniAtOnce is how many ADDs a round starts together: a node that comes back with 32 pods.
const cniAtOnce = 32

// upstreamDirs is where distributions and Kubernetes put host-device.
var upstreamDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// contender is a plugin under test, with what was measured of it.
type contender struct {
	path, conf                    string
	wall, add, alone, moves, dels []float64
}

// runCNI has Kerf's plugin and host-device attach veths in namespaces made for it, by turns.
func runCNI(ctx context.Context, options Options) (m measured, err error) {
	if os.Geteuid() != 0 {
		return m, errors.New("network namespaces need root; run it by sudo")
	}
	dir, err := os.MkdirTemp("", "kerf-bench-cni-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ours, theirs, err := contenders(dir, options)
	if err != nil {
		return m, err
	}
	rounds := 10
	if options.Quick {
		rounds = 2
	}
	for i := range rounds {
		options.progress("cni: round %d of %d, %d ADDs at once", i+1, rounds, cniAtOnce)
		for _, c := range []*contender{ours, theirs} {
			if c == nil {
				continue
			}
			if err := c.round(ctx, dir); err != nil {
				return m, fmt.Errorf("%s: %w", filepath.Base(c.path), err)
			}
		}
	}
	if theirs == nil {
		theirs = &contender{}
	}
	results, err := resultsOf([]taken{
		{cniWallRow, ours.wall, theirs.wall}, {cniAddRow, ours.add, theirs.add}, {cniOneRow, ours.alone, theirs.alone},
		{cniMovesRow, ours.moves, theirs.moves}, {cniDelRow, ours.dels, theirs.dels},
	})
	return measured{results: results, card: "none (veth, no GPU in use)", driver: "none"}, err
}

// contenders finds the plugins. Without host-device there is no baseline, which is said and no failure.
func contenders(dir string, options Options) (ours, theirs *contender, err error) {
	bin := options.Bin
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		bin = filepath.Dir(self)
	}
	ours = &contender{path: filepath.Join(bin, "kerf-cni"), conf: `{"cniVersion":"1.0.0","name":"bench","type":"kerf-cni","deviceID":"%s","runDir":"` + dir + `/run"}`}
	if _, err := os.Stat(ours.path); err != nil {
		return nil, nil, fmt.Errorf("kerf-cni: %w; make build", err)
	}
	for _, at := range append(filepath.SplitList(os.Getenv("CNI_PATH")), upstreamDirs...) {
		path := filepath.Join(at, "host-device")
		if _, err := os.Stat(path); err == nil {
			return ours, &contender{path: path, conf: `{"cniVersion":"1.0.0","name":"bench","type":"host-device","device":"%s"}`}, nil
		}
	}
	options.progress("cni: no host-device in CNI_PATH or %v, so no baseline (Debian: containernetworking-plugins)", upstreamDirs)
	return ours, nil, nil
}

// round is one ADD alone, then as many at once as there are links, and their DELs.
func (c *contender) round(ctx context.Context, dir string) (err error) {
	stage, err := os.MkdirTemp(dir, "round-")
	if err != nil {
		return err
	}
	var spaces []string
	defer func() {
		for _, path := range spaces {
			err = errors.Join(err, call.EndNetns(path))
		}
	}()
	for i := range cniAtOnce + 1 { // the host's first
		path, err := call.NewNetns(stage, fmt.Sprint("n", i))
		if err != nil {
			return err
		}
		spaces = append(spaces, path)
	}
	host, pods := spaces[0], spaces[1:]
	for i := range pods {
		err := call.Inside(host, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device(i)}, PeerName: fmt.Sprint("peer", i)})
		})
		if err != nil {
			return fmt.Errorf("make a veth: %w", err)
		}
	}
	alone, err := c.run(ctx, "ADD", host, pods, 0)
	if err == nil {
		_, err = c.run(ctx, "DEL", host, pods, 0)
	}
	if err != nil {
		return err
	}
	c.alone = append(c.alone, float64(alone))
	return c.together(ctx, host, pods)
}

func device(i int) string { return fmt.Sprint("dev", i) }

func (c *contender) together(ctx context.Context, host string, pods []string) error {
	count, err := watchMoves(host)
	if err != nil {
		return err
	}
	begin := time.Now()
	each, err := c.all(ctx, "ADD", host, pods)
	wall := time.Since(begin)
	moves, countErr := count()
	if err := errors.Join(err, countErr); err != nil {
		return err
	}
	begin = time.Now()
	if _, err := c.all(ctx, "DEL", host, pods); err != nil {
		return err
	}
	c.wall, c.dels = append(c.wall, float64(wall)), append(c.dels, float64(time.Since(begin)))
	c.add = append(c.add, each...)
	c.moves = append(c.moves, float64(moves)/float64(len(pods)))
	return nil
}

// all runs a command for every pod at once.
func (c *contender) all(ctx context.Context, command, host string, pods []string) ([]float64, error) {
	took, errs := make([]float64, len(pods)), make([]error, len(pods))
	var group sync.WaitGroup
	for i := range pods {
		group.Go(func() {
			d, err := c.run(ctx, command, host, pods, i)
			took[i], errs[i] = float64(d), err
		})
	}
	group.Wait()
	return took, errors.Join(errs...)
}

func (c *contender) run(ctx context.Context, command, host string, pods []string, i int) (time.Duration, error) {
	a, err := call.Run(ctx, c.path, host, call.Call{
		Command: command, Container: fmt.Sprint("c", i), IfName: "net1", Netns: pods[i], Path: filepath.Dir(c.path), Stdin: fmt.Appendf(nil, c.conf, device(i)),
	})
	if err == nil && a.Code != 0 {
		err = fmt.Errorf("%s %s: %s", command, device(i), a)
	}
	return a.Took, err
}
