package csi

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// pool is the pool of this name, or the default for "".
func (d *Driver) pool(name string) (Pool, error) {
	var known []string
	for _, p := range d.config.Pools {
		if name == "" || p.Name == name {
			return p, nil
		}
		known = append(known, p.Name)
	}
	return Pool{}, invalid("pool %q: node %s has none of this name; it has %s", name, d.config.NodeName, strings.Join(known, ", "))
}

// poolOf is a volume's pool. One that is no longer configured still has the volume.
func (d *Driver) poolOf(v Volume) (Pool, error) {
	for _, p := range d.config.Pools {
		if p.Name == v.Pool {
			return p, nil
		}
	}
	return Pool{}, status.Errorf(codes.FailedPrecondition, "volume %s is in pool %s, which kerfd on node %s no longer has; add it to its configuration again", v.ID, v.Pool, d.config.NodeName)
}

// room is what a pool can still promise.
type room struct {
	total, promisable, largest node.Bytes
}

func roomOf(c pool.Capacity, watermark node.Percent, promised node.Bytes) room {
	r := room{total: c.Total}
	most := c.Total
	if watermark > 0 {
		most = c.Total / 100 * node.Bytes(watermark)
	}
	if most > promised {
		r.promisable = most - promised
	}
	r.largest = min(r.promisable, c.Largest) / node.MiB * node.MiB
	return r
}

// fits refuses what a pool cannot promise.
func fits(p Pool, c pool.Capacity, promised, need, extra node.Bytes) error {
	r := roomOf(c, p.Watermark, promised)
	if need > c.Total {
		return status.Errorf(codes.OutOfRange, "pool %s: %s asked, the whole pool has %s; ask for less", p.Name, need, c.Total)
	}
	if extra > r.largest {
		return status.Errorf(codes.ResourceExhausted, "pool %s: need %s, free %s (of %s: promised to volumes %s, on disk free %s); delete volumes, or ask for less",
			p.Name, extra, r.largest, c.Total, promised, c.Free)
	}
	return nil
}

// capacity asks a pool what it has.
func (p Pool) capacity(ctx context.Context) (pool.Capacity, error) {
	c, err := p.Backend.Capacity(ctx)
	if err != nil {
		return c, status.Errorf(codes.Unavailable, "pool %s (%s) does not say what it has: %v", p.Name, p.Kind, err)
	}
	return c, nil
}

// failed is an error of a back end, with CSI's code.
func failed(p Pool, what string, err error) error {
	code := codes.Internal
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = codes.ResourceExhausted
	}
	return status.Errorf(code, "pool %s (%s): %s: %v", p.Name, p.Kind, what, err)
}

// aborted is for a call that meets another.
func aborted(what string) error {
	return status.Errorf(codes.Aborted, "%s: another call works on it; call again", what)
}
