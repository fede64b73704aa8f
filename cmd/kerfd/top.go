package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/hook"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// hiddenID stands for the id of another user's share.
const hiddenID = "(other user)"

// state is what kerf top shows to a user: the id of a share, by which its directory is found, to its holder and to root only.
func (g *grants) state(uid int) control.State {
	s := control.State{Schema: control.TopSchema, Time: time.Now().UTC(), Simulated: g.hardware.Node().Simulated, GPUs: []control.GPU{}, Shares: []control.Share{}}
	live := g.arbiter.State()
	inShares := make(map[int]bool)
	for _, state := range live {
		for _, session := range state.Sessions {
			inShares[session.PID] = true
		}
		if e, ok := g.ledger.Entry(state.ID); ok {
			if uid != 0 && uid != e.Holder.UID {
				state.ID = hiddenID
			}
			s.Shares = append(s.Shares, control.Share{ShareState: state, Class: e.Grant.Class, Holder: e.Holder, Created: e.Created, Inside: g.inside(e)})
		}
	}
	for _, gpu := range g.gpus() {
		s.GPUs = append(s.GPUs, g.gpuState(gpu, inShares))
	}
	return s
}

// inside are the containers that have a share, less those that have ended since: these are forgotten.
func (g *grants) inside(e ledger.Entry) (containers []control.Container) {
	pages := arbiter.Directory(g.config.sharesDir(), e.ID)
	bindings, err := hook.Bindings(pages)
	for _, b := range bindings {
		if (arbiter.Process{PID: b.PID, Start: b.Start}).Gone() {
			err = errors.Join(err, hook.Unbind(pages, b.ID))
			continue
		}
		containers = append(containers, control.Container{Namespace: b.Namespace, Pod: b.Pod, Name: b.Container, ID: b.ID})
	}
	if err != nil {
		g.log.Debug("cannot read which containers have a share", "share", e.ID, "error", err)
	}
	return containers
}

func (g *grants) gpuState(gpu share.GPU, inShares map[int]bool) control.GPU {
	out := control.GPU{Index: gpu.Index, UUID: gpu.UUID, Memory: gpu.Memory, Granted: gpu.Capacity() - gpu.FreeMemory(), Cores: 100 - gpu.FreeCores(), Fault: gpu.Fault, MPS: g.mpsState(gpu.UUID)}
	for _, known := range g.hardware.Node().GPUs {
		if known.UUID == gpu.UUID {
			out.Name = known.ProductName
		}
	}
	used, err := g.hardware.ProcessMemory(gpu.UUID)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	for pid, bytes := range used {
		if bytes == arbiter.UnknownBytes {
			out.Error = fmt.Sprintf("the driver does not say how much process %d has", pid)
			continue
		}
		out.Used += bytes
		if !inShares[pid] {
			out.Outside += bytes
		}
	}
	if utilization, err := g.hardware.utilization(gpu.UUID); err == nil { // vGPU hosts and MIG cards have none
		out.Utilization = min(utilization.GPU, 100)
	}
	return out
}
