package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// getPodGPUs answers kerf-cni, which looks for a NIC near to a pod's GPUs. Kubelet knows a pod's claims and slices before it makes
// the pod's network; which GPUs those are, the ledger knows.
func (s *server) getPodGPUs(w http.ResponseWriter, r *http.Request) {
	gpus, err := s.podGPUs(r.Context(), r.FormValue("gpu"), r.FormValue("pod"))
	answer(w, gpus, err)
}

func (s *server) podGPUs(ctx context.Context, gpu, pod string) ([]cni.GPU, error) {
	all := s.grants.hardware.Node().GPUs
	if gpu != "" {
		found := placesOf(all, func(uuid node.UUID) bool { return uuid.String() == gpu })
		if len(found) == 0 {
			return nil, fmt.Errorf("GPU %s: this node has none of that UUID; kerf top lists them", gpu)
		}
		return found, nil
	}
	switch {
	case pod == "" || pod == "/":
		return nil, errors.New("pod: not named; ask with pod=NAMESPACE/NAME, or with gpu=UUID")
	case s.kubernetes == nil:
		return nil, fmt.Errorf("pod %s: this kerfd serves no cluster, so it knows of no pods; name a GPU", pod)
	}
	list, err := kubeletPods(ctx, s.config.Kubernetes.KubeletDir)
	if err != nil {
		return nil, err
	}
	held := gpusOf(list, pod, s.grants.ledger.Entries())
	return placesOf(all, func(uuid node.UUID) bool { return slices.Contains(held, uuid) }), nil
}

// gpusOf are the GPUs of a pod, by what kubelet lists of it and what the ledger has for that. It is pure.
func gpusOf(list *podresources.ListPodResourcesResponse, pod string, entries []ledger.Entry) (uuids []node.UUID) {
	claims, ids := make(map[string]bool), make(map[string]bool)
	for _, p := range list.GetPodResources() {
		if p.GetNamespace()+"/"+p.GetName() != pod {
			continue
		}
		for _, c := range p.GetContainers() {
			for _, claim := range c.GetDynamicResources() {
				claims[claim.GetClaimNamespace()+"/"+claim.GetClaimName()] = true
			}
			for _, devices := range c.GetDevices() {
				for _, id := range devices.GetDeviceIds() {
					ids[id] = true
				}
			}
		}
	}
	for _, e := range entries {
		owner := e.Holder.Owner
		mine := e.Holder.Door == ledger.DoorDRA && claims[owner.String()]
		for id := range strings.SplitSeq(owner.Name, ",") { // the device plugin's name for several slices
			mine = mine || e.Holder.Door == ledger.DoorPlugin && ids[id]
		}
		if !mine {
			continue
		}
		for _, d := range e.Grant.Devices {
			uuids = append(uuids, d.UUID)
		}
	}
	return uuids
}

func placesOf(gpus []node.GPU, wanted func(node.UUID) bool) []cni.GPU {
	found := []cni.GPU{} // JSON has [] for none, not null
	for _, g := range gpus {
		if wanted(g.UUID) {
			found = append(found, cni.GPU{UUID: g.UUID.String(), PCI: g.PCI, Path: g.Path, NUMA: g.NUMA})
		}
	}
	return found
}

// kubeletWithin is short: a pod's network waits for it.
const kubeletWithin = 3 * time.Second

// kubeletPods asks kubelet what its pods have.
func kubeletPods(ctx context.Context, kubeletDir string) (*podresources.ListPodResourcesResponse, error) {
	socket := filepath.Join(kubeletDir, "pod-resources", "kubelet.sock")
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("pod resources %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, kubeletWithin)
	defer cancel()
	list, err := podresources.NewPodResourcesListerClient(conn).List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask kubelet at %s what the pod has: %w", socket, err)
	}
	return list, nil
}
