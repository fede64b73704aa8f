// Package pool keeps the volumes of one place on a node's disks: a directory of XFS or ext4 with project quotas, btrfs subvolumes, logical
// volumes, files behind loop devices, or plain directories.
//
// Vocabulary: a pool is a place with a capacity. A back end is the technology that makes its volumes and holds them to their size. A volume
// has an id, which is an opaque token of the caller's and never more than a file name. A snapshot is a volume that nobody writes.
//
// Traps
//
//   - A back end is chosen by doing what it needs on the pool's own path, never by the file system's type: kernels are built without
//     quotas, and a mount lacks its option.
//   - Every call may have been cut short by a kill before. Create and Delete finish or undo what an earlier call of theirs left; what neither
//     knows is in List, and the caller's records decide.
package pool

import (
	"context"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Spec is what a volume is to be.
type Spec struct {
	Size       node.Bytes // the limit; 0 where the back end enforces none
	Block      bool       // a device for the tenant's own use, rather than a file system
	Filesystem string     // for back ends that make one: xfs, ext4 or btrfs; "" is the back end's choice
	Guaranteed bool       // set the space aside now, rather than when it is written
}

// Usage is what a volume holds.
type Usage struct {
	Size, Used         node.Bytes
	Inodes, InodesUsed uint64 // 0: the back end does not count them
}

// Capacity is what a pool has.
type Capacity struct {
	Total, Free node.Bytes
	Largest     node.Bytes // the largest volume that could be made now
}

// Backend makes volumes and holds them to their size. Calls for different ids may run at once, those for one id may not.
type Backend interface {
	// Create makes the volume whole, or nothing. One that is there already with this spec is no error.
	Create(ctx context.Context, id string, s Spec) error
	// Delete removes the volume and all that a cut-short Create left of it. One that is not there is no error.
	Delete(ctx context.Context, id string) error
	// Open makes the volume reachable and answers the directory, or the block device's path, that may be bind-mounted. It is idempotent,
	// and what it made outlives this process; after a reboot it is called anew.
	Open(ctx context.Context, id string) (path string, err error)
	// Close takes back what Open made; the volume is no longer mounted anywhere else.
	Close(ctx context.Context, id string) error
	// Usage is asked of an open volume.
	Usage(ctx context.Context, id string) (Usage, error)
	// List is every id that the back end has anything of.
	List(ctx context.Context) ([]string, error)
	Capacity(ctx context.Context) (Capacity, error)
}

// Expander is a back end whose volumes grow while they are used.
type Expander interface {
	Expand(ctx context.Context, id string, size node.Bytes) error
}

// Cloner is a back end that copies a volume, or a snapshot, as of one moment. Both last without the other.
type Cloner interface {
	// Clone makes a volume with the bytes of another. Its size is at least the other's.
	Clone(ctx context.Context, from, id string, s Spec) error
	// Snapshot makes a volume that nobody writes.
	Snapshot(ctx context.Context, from, id string) error
}
