package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// set changes what a share has of its GPUs' time. It is on record before it is in force, and in force before the answer.
func (g *grants) set(id string, wanted control.Settings, uid int) (share.Grant, error) {
	defer g.owners.lock("settings")() // no owner has this name; one change at a time, or two could take the same room
	entry, ok := g.ledger.Entry(id)
	if !ok {
		return share.Grant{}, fmt.Errorf("share %q: not there; kerf top lists the shares", id)
	}
	if uid != 0 && (uid != entry.Holder.UID || entry.Holder.Door != ledger.DoorRun) {
		return share.Grant{}, fmt.Errorf("share %s: it is not user %d's to change; ask its holder, or root", id, uid)
	}
	if entry.Grant.Tier() == share.TierMPS {
		return share.Grant{}, fmt.Errorf("share %s: %w", id, errMPSFixed)
	}
	grant, err := changed(entry.Grant, wanted, g.gpus())
	if err != nil {
		return grant, fmt.Errorf("share %s: %w", id, err)
	}
	entry.Grant = grant
	if err := g.ledger.Update(entry); err != nil {
		return grant, err
	}
	if err := g.arbiter.Change(id, grant); err != nil {
		return grant, err
	}
	g.changed.tell()
	g.log.Info("changed", "share", id, "cores", grant.Devices[0].Cores, "class", grant.Class, "capped", grant.Capped)
	return grant, nil
}

// changed is the grant as wanted, or why it cannot be.
func changed(grant share.Grant, wanted control.Settings, gpus []share.GPU) (share.Grant, error) {
	grant.Devices = slices.Clone(grant.Devices)
	if wanted.Class != nil {
		if !slices.Contains(share.Classes, *wanted.Class) {
			return grant, fmt.Errorf("class %q: not known; use guaranteed, burstable or besteffort", *wanted.Class)
		}
		grant.Class = *wanted.Class
	}
	if wanted.Capped != nil {
		grant.Capped = *wanted.Capped
	}
	if wanted.Cores != nil {
		if err := wanted.Cores.Validate(); err != nil {
			return grant, fmt.Errorf("cores: %w", err)
		}
		for i := range grant.Devices {
			if err := fits(grant.Devices[i], *wanted.Cores, gpus); err != nil {
				return grant, err
			}
			grant.Devices[i].Cores = *wanted.Cores
		}
	}
	if grant.Capped && slices.ContainsFunc(grant.Devices, func(d share.Device) bool { return d.Cores == 0 }) {
		return grant, errors.New("cores 0 without burst: it would never run; give it cores, or let it burst")
	}
	return grant, nil
}

func fits(d share.Device, cores node.Percent, gpus []share.GPU) error {
	for _, gpu := range gpus {
		if room := gpu.FreeCores() + d.Cores; gpu.UUID == d.UUID && d.MIG == (node.MIGUUID{}) && cores > room {
			return fmt.Errorf("cores %s asked, GPU %d has %s to give besides what others were granted; ask for less, or take some from another share", cores, gpu.Index, room)
		}
	}
	return nil
}

func (s *server) postSettings(w http.ResponseWriter, r *http.Request) {
	var wanted control.Settings
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&wanted); err != nil {
		answer(w, nil, fmt.Errorf("settings: %w", err))
		return
	}
	grant, err := s.grants.set(r.PathValue("id"), wanted, uidOf(r.Context()))
	answer(w, grant, err)
}
