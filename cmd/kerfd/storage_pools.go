package main

import (
	"context"
	"fmt"

	"github.com/kerf-gpu/kerf/csi"
	"github.com/kerf-gpu/kerf/csi/pool"
)

// openPool opens a place with the back end that its configuration names, or the best that works there.
func openPool(ctx context.Context, p PoolConfig) (csi.Pool, error) {
	if p.Path == "" {
		return csi.Pool{}, fmt.Errorf("pool %s: devices and volume groups are not in this release; make a file system and give its path", p.Name)
	}
	opened, err := pool.Open(ctx, pool.Config{Name: p.Name, Path: p.Path, Backend: p.Backend, Unlimited: p.Enforce == enforceNone})
	if err != nil {
		return csi.Pool{}, err
	}
	return csi.Pool{Name: p.Name, Kind: opened.Report.Kind, Backend: opened.Backend, Watermark: p.Watermark}, nil
}
