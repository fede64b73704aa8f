package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/internal/node"
)

// candidates are the devices to choose from, best first. It also refuses a device that is named and too far from the pod's GPU.
func (p plugin) candidates(conf cni.Conf, s cni.Spec) ([]string, error) {
	kernel := p.engine(conf.RunDir).Kernel
	if conf.Pool == nil && conf.DeviceID == "" {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "deviceID: missing; name a VF or NIC by its PCI address, or a pool to choose from", "")
	}
	ids := []string{conf.DeviceID}
	if conf.Pool != nil {
		ids = conf.Pool.Devices
		for _, pf := range conf.Pool.PF {
			vfs, err := kernel.VFs(pf)
			if err != nil {
				return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("pool.pf: %s: %v", pf, err), "")
			}
			ids = append(ids, vfs...)
		}
	}
	if conf.Topology == nil {
		return ids, nil
	}
	gpus, err := p.gpus(conf, s)
	if err != nil {
		return nil, err
	}
	var nics []node.NIC
	for _, id := range ids {
		place, err := kernel.Place(id)
		if err != nil {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("topology: %s: %v", id, err), "")
		}
		pci, err := node.ParsePCIAddress(id)
		if err != nil {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("topology: %v; a link without one is not near to anything", err), "")
		}
		nics = append(nics, node.NIC{PCI: pci, Path: place.Path, NUMA: place.NUMA})
	}
	return cni.Nearest(nics, gpus, conf.Topology.AtLeast)
}

// gpus asks kerfd where the GPUs are that the NIC should be near to.
func (p plugin) gpus(conf cni.Conf, s cni.Spec) ([]cni.GPU, error) {
	socket := conf.Kerfd
	if socket == "" {
		socket = "/run/kerf/kerfd.sock"
	}
	query := url.Values{"uid": {s.Owner.PodUID}, "pod": {s.Owner.Pod}}
	if gpu := conf.Topology.GPU; gpu != "" && gpu != "auto" {
		query = url.Values{"gpu": {gpu}}
	} else if s.Owner.PodUID == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "topology.gpu: auto: the runtime gives no K8S_POD_UID in CNI_ARGS, so the pod's GPUs cannot be told; name one", "")
	}
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	gpus, err := askKerfd(ctx, socket, cni.PodGPUsPath+"?"+query.Encode())
	if err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("topology: kerfd at %s does not tell the pod's GPUs: %v", socket, err), "")
	}
	if len(gpus) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("topology.gpu: auto: pod %s has no GPU of Kerf; give it one, or leave topology out", s.Owner.Pod), "")
	}
	return gpus, nil
}

// askKerfd sends one request. A client with its pool of connections would cost more to set up than the question.
func askKerfd(ctx context.Context, socket, path string) (gpus []cni.GPU, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // sockets have one
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kerfd"+path, nil)
	if err != nil {
		return nil, err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		var problem struct {
			Error string `json:"error"`
		}
		_ = json.NewDecoder(response.Body).Decode(&problem) // the status says enough without it
		return nil, fmt.Errorf("%s: %s", response.Status, problem.Error)
	}
	return gpus, json.NewDecoder(response.Body).Decode(&gpus)
}
