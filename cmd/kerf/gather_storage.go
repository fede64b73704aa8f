package main

import (
	"context"

	"github.com/kerf-gpu/kerf/monitor/doctor"
)

func gatherStorage(ctx context.Context, p patient) (func(*doctor.Facts), error) {
	s, err := p.client.Storage(ctx)
	if err != nil {
		return nil, err
	}
	return func(f *doctor.Facts) {
		f.StorageOff, f.StorageUnknown, f.Strangers = !s.Enabled, s.Enabled && !s.Registered, s.Strangers
		for _, pool := range s.Pools {
			f.Pools = append(f.Pools, doctor.Pool{Name: pool.Name, Kind: pool.Kind, Total: pool.Total, Free: pool.Free, Promised: pool.Promised, Volumes: pool.Volumes, Error: pool.Error})
		}
	}, nil
}
