package deviceplugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// dropEvery is how long Allocate waits between two attempts to end a share that still has processes.
const dropEvery = 100 * time.Millisecond

// allocate gives one container its shares: all or none.
func (p *Plugin) allocate(ctx context.Context, ids []string) (*pluginapi.ContainerAllocateResponse, error) {
	parts, err := divide(ids, Cut(p.options.GPUs(), p.options.Size))
	if err != nil {
		return nil, err
	}
	response := &pluginapi.ContainerAllocateResponse{}
	var held []string
	for _, part := range parts {
		cdi, owner, err := p.hold(ctx, part)
		if err != nil {
			return nil, errors.Join(err, p.dropAll(held))
		}
		held = append(held, owner)
		response.CdiDevices = append(response.CdiDevices, &pluginapi.CDIDevice{Name: cdi})
	}
	return response, nil
}

// dropAll takes back what was just given. No process can be in it: kubelet was not told of it yet.
func (p *Plugin) dropAll(owners []string) error {
	var errs []error
	for _, uid := range owners {
		errs = append(errs, p.options.Shares.Drop(context.Background(), uid)) // the caller's context may be why it failed
	}
	return errors.Join(errs...)
}

// hold makes one share of the slices of one GPU. Owners that have some of them end: kubelet has given these to somebody else,
// or to another container of the same pod, whose init container then finds the new share under the name that it knows.
func (p *Plugin) hold(ctx context.Context, part part) (cdi, uid string, err error) {
	uid = part.gpu.Short() + "-" + randomName()
	replaced := overlapping(p.options.Shares.Owners(), part.ids)
	for _, old := range replaced {
		if err := p.drop(ctx, old); err != nil {
			return "", "", err
		}
		uid = old.UID
	}
	owner := ledger.Owner{UID: uid, Name: ownerName(part.ids)}
	p.sightings.Forget(uid)
	p.renewed[uid] = true
	held, err := p.options.Shares.Hold(ctx, owner, []ledger.Ask{{Key: uid, Request: part.request(p.options.Size)}})
	if err != nil { // the ledger may have it already, and something behind it failed: nobody would ask again
		return "", "", errors.Join(fmt.Errorf("slices %s: %w", owner.Name, err), p.dropAll([]string{uid}))
	}
	if len(held) != 1 || held[0].CDI == "" {
		return "", "", errors.Join(
			fmt.Errorf("slices %s: %d shares without a CDI device came back for one that was asked", owner.Name, len(held)), p.dropAll([]string{uid}))
	}
	return held[0].CDI, uid, nil
}

func overlapping(owners []ledger.Owner, ids []string) []ledger.Owner {
	return slices.DeleteFunc(slices.Clone(owners), func(o ledger.Owner) bool {
		return !slices.ContainsFunc(slicesOf(o), func(id string) bool { return slices.Contains(ids, id) })
	})
}

// drop ends an owner's share, and waits a while for the processes of a container that kubelet says has ended.
func (p *Plugin) drop(ctx context.Context, owner ledger.Owner) error {
	late := time.After(p.pace.Drop)
	for {
		err := p.options.Shares.Drop(ctx, owner.UID)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(dropEvery):
			continue
		case <-ctx.Done():
		case <-late:
		}
		return fmt.Errorf("slices %s: kubelet gives them to a new container, but the one before is still there after %s: %w; "+
			"end its processes (kerf top), and delete the new pod so that it is made again", owner.Name, p.pace.Drop, err)
	}
}

func randomName() string {
	var name [8]byte
	_, _ = rand.Read(name[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(name[:])
}
