package csi

import (
	"context"
	"errors"
	"fmt"

	"github.com/kerf-gpu/kerf/csi/mount"
)

// recover finishes or undoes what an earlier process was at. What fails is reported, and is tried again when the volume is next asked for,
// or at the next start. Nothing that has no record is touched: Strangers says what that is.
func (d *Driver) recover(ctx context.Context) error {
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	var errs []error
	for _, target := range d.targets.of("") {
		if err := d.recoverTarget(ctx, target, table); err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", target.Path, err))
		}
	}
	for _, v := range d.books.all() {
		if err := d.recoverVolume(ctx, v); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", v.Kind, v.ID, err))
		}
	}
	return errors.Join(errs...)
}

// recoverTarget undoes a publishing that was cut short, and finishes an unpublishing.
func (d *Driver) recoverTarget(ctx context.Context, target Target, table mount.Table) error {
	if _, mounted := table[target.Path]; mounted {
		return nil
	}
	v, ok := d.books.get(target.Volume)
	if !ok {
		return errors.Join(d.kubelet.Unbind(target.Path), d.targets.remove(target.Path))
	}
	return d.unbind(ctx, v, target.Path)
}

func (d *Driver) recoverVolume(ctx context.Context, v Volume) error {
	switch {
	case v.State != StateReady: // nobody was told of it, or it was to go
		return d.destroy(ctx, v)
	case v.Growing != 0:
		p, err := d.poolOf(v)
		if err != nil {
			return err
		}
		_, err = d.grow(ctx, p, v)
		return err
	}
	return nil
}

// Strangers are the ids that pools have something of and no record names. They are reported and never removed: the records may be lost,
// and the data is somebody's.
func (d *Driver) Strangers(ctx context.Context) (found []string, err error) {
	for _, p := range d.config.Pools {
		ids, err := p.Backend.List(ctx)
		if err != nil {
			return found, fmt.Errorf("pool %s: %w", p.Name, err)
		}
		for _, id := range ids {
			if _, ok := d.books.get(id); !ok {
				found = append(found, p.Name+"/"+id)
			}
		}
	}
	return found, nil
}
