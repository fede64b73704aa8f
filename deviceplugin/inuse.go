package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// maxList bounds kubelet's answer: its own limit.
const maxList = 16 << 20

// watchInUse asks kubelet again and again which slices are in use, and ends those who have none.
func (p *Plugin) watchInUse(ctx context.Context) {
	socket := filepath.Join(p.options.KubeletDir, "pod-resources", "kubelet.sock")
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxList)))
	if err != nil { // only a malformed path
		p.report("in use", fmt.Errorf("pod resources %s: %w", socket, err))
		return
	}
	defer func() { _ = conn.Close() }()
	tick := time.NewTicker(p.pace.InUse)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			p.report("in use", p.collect(ctx, podresources.NewPodResourcesListerClient(conn), now))
		}
	}
}

// collect asks once, and drops who has ended.
func (p *Plugin) collect(ctx context.Context, kubelet podresources.PodResourcesListerClient, now time.Time) error {
	p.mu.Lock()
	owners := p.options.Shares.Owners()
	clear(p.renewed)
	p.mu.Unlock()
	if len(owners) == 0 {
		return nil
	}
	inUse, err := p.inUse(ctx, kubelet) // without the lock: kubelet may hold one of its own while it waits for Allocate
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	older := owners[:0]
	for _, owner := range owners {
		if !p.renewed[owner.UID] {
			older = append(older, owner)
		}
	}
	return p.end(ctx, p.sightings.Look(older, inUse, now, p.pace.UnseenFor))
}

func (p *Plugin) end(ctx context.Context, gone []ledger.Owner) error {
	var errs []error
	for _, owner := range gone {
		if err := p.options.Shares.Drop(ctx, owner.UID); err != nil {
			errs = append(errs, fmt.Errorf("end slices %s, which kubelet no longer uses: %w", owner.Name, err))
			continue
		}
		p.sightings.Forget(owner.UID)
		p.changes.send()
	}
	return errors.Join(errs...)
}

// inUse are the slices that containers of this node's pods have.
func (p *Plugin) inUse(ctx context.Context, kubelet podresources.PodResourcesListerClient) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := kubelet.List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask kubelet which slices are in use: %w; until it answers, no share ends but by its slices being given out again", err)
	}
	if len(list.GetPodResources()) == 0 {
		return nil, errors.New("kubelet lists no pod at all, " +
			"not even kerfd's own: it has not heard from the API server since it started; no share is ended on such a list")
	}
	used := map[string]bool{}
	for _, pod := range list.GetPodResources() {
		for _, container := range pod.GetContainers() {
			for _, devices := range container.GetDevices() {
				if devices.GetResourceName() != p.options.Resource {
					continue
				}
				for _, id := range devices.GetDeviceIds() {
					used[id] = true
				}
			}
		}
	}
	return used, nil
}
