package main

import (
	"context"
	"fmt"

	"github.com/kerf-gpu/kerf/csi"
	"github.com/kerf-gpu/kerf/csi/pool"
)

// openPool opens a place with the back end that its configuration names, or the best that works there.
func openPool(ctx context.Context, p PoolConfig) (csi.Pool, *pool.Pool, error) {
	if p.Path == "" {
		return csi.Pool{}, nil, fmt.Errorf("pool %s: devices and volume groups are for a later release; make a file system there and give its path", p.Name)
	}
	opened, err := pool.Open(ctx, p.place())
	if err != nil {
		return csi.Pool{}, nil, err
	}
	return csi.Pool{Name: p.Name, Kind: opened.Report.Kind, Backend: opened.Backend, Watermark: p.Watermark}, opened, nil
}
