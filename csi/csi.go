// Package csi is Kerf's storage for pods: the CSI driver scratch.csi.kerf.dev, read-write volumes on the disks of one node.
//
// Vocabulary: a pool is a place on this node that volumes are made in (package pool). A volume has a record, which is written before
// anything is made and deleted after everything is gone. Its id is a random token: it is looked up among the records, and no part
// of a request ever becomes a path. To publish is to bind a volume to a target, which kubelet names. An ephemeral volume is made when it is
// published and deleted when it is unpublished.
//
// Traps
//
//   - A volume is on one node, and so is its driver: controller and node services are one process, and "the cluster" is never asked.
//   - kubelet calls again after every error and every restart of either side, and may call twice at once. Every call is idempotent; one that
//     meets another for the same volume is ABORTED.
//   - What a call began is finished although kubelet hangs up: work is not tied to the call's context.
//   - That a target is mounted is the kernel's to say. The records of what is published are hints for whoever starts next, and lie
//     where a reboot removes them, with the mounts.
package csi

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// DriverName is what storage classes name.
const DriverName = "scratch.csi.kerf.dev"

// TopologyKey is the label of a node by which its volumes are found.
const TopologyKey = "topology.scratch.csi.kerf.dev/node"

// Pool is a place for volumes.
type Pool struct {
	Name      string
	Kind      string // of the back end, for people: btrfs, loop, …
	Backend   pool.Backend
	Watermark node.Percent // volumes together are promised no more of the pool's total; 0: all of it
}

// Config is what the driver needs to know.
type Config struct {
	NodeName   string
	Version    string
	KubeletDir string
	StateDir   string // for records that survive a reboot
	RunDir     string // for those that a reboot makes void
	Pools      []Pool // the first is the default
	Now        func() time.Time
	// At, if set, is called with a name before and after each change of the world. Tests die there.
	At func(point string)
}

// Driver is scratch.csi.kerf.dev on this node.
type Driver struct {
	spec.UnimplementedIdentityServer
	spec.UnimplementedControllerServer
	spec.UnimplementedNodeServer
	config  Config
	books   *books
	targets *targets
	kubelet mount.Root
	busy    busy
	changed chan struct{} // gets one when the pools' capacity changed
}

// New reads the records and the mount table, and finishes or undoes what an earlier process began. The error says which records
// are damaged; the driver is usable without them.
func New(ctx context.Context, c Config) (d *Driver, damaged error, err error) {
	if len(c.Pools) == 0 {
		return nil, nil, errors.New("csi: no pool; name one in the section storage of kerfd's configuration")
	}
	d = &Driver{config: c, kubelet: mount.Below(c.KubeletDir), changed: make(chan struct{}, 1)}
	var corrupt []string
	if d.books, corrupt, err = openBooks(filepath.Join(c.StateDir, "volumes")); err != nil {
		return nil, nil, err
	}
	if d.targets, err = openTargets(filepath.Join(c.RunDir, "targets")); err != nil {
		return nil, nil, errors.Join(err, d.books.close())
	}
	for _, file := range corrupt {
		damaged = errors.Join(damaged, fmt.Errorf("a volume's record is damaged and was set aside as %s; what the pool has of it stays until it is removed by hand", file))
	}
	return d, errors.Join(damaged, d.recover(ctx)), nil
}

// Close gives the records back. Nothing is unmounted.
func (d *Driver) Close() error { return d.books.close() }

// Register adds the driver's services to a server.
func (d *Driver) Register(s *grpc.Server) {
	spec.RegisterIdentityServer(s, d)
	spec.RegisterControllerServer(s, d)
	spec.RegisterNodeServer(s, d)
}

// Changed gets one when the pools' capacity changed.
func (d *Driver) Changed() <-chan struct{} { return d.changed }

func (d *Driver) tell() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// at is a place where a kill may strike.
func (d *Driver) at(point string) {
	if d.config.At != nil {
		d.config.At(point)
	}
}
