package main

import (
	"context"
	"fmt"

	"github.com/kerf-gpu/kerf/csi"
	"github.com/kerf-gpu/kerf/csi/pool"
)

// openPool opens a place with the back end that its configuration names.
func openPool(_ context.Context, p PoolConfig) (csi.Pool, error) {
	switch {
	case p.Path == "" || p.Backend != "" && p.Backend != "dir":
		return csi.Pool{}, fmt.Errorf("pool %s: backend %q is not in this release; use a path and backend dir", p.Name, p.Backend)
	case p.Enforce != enforceNone:
		return csi.Pool{}, fmt.Errorf("pool %s: back end dir holds no volume to its size; set enforce: none if that will do", p.Name)
	}
	backend, err := pool.OpenDirectory(p.Path)
	if err != nil {
		return csi.Pool{}, err
	}
	return csi.Pool{Name: p.Name, Kind: "dir", Backend: backend, Watermark: p.Watermark}, nil
}
