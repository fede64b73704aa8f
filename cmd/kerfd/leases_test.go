package main

import (
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

func TestChanged(t *testing.T) {
	uuid := node.UUID{1}
	mine := share.Device{UUID: uuid, Cores: 30}
	gpus := []share.GPU{{UUID: uuid, Granted: []share.Device{mine, {UUID: uuid, Cores: 50}}}}
	cores := func(p node.Percent) *node.Percent { return &p }
	on, gold := true, share.Class("gold")
	for _, row := range []struct {
		name   string
		grant  share.Grant
		wanted control.Settings
		cores  node.Percent
		err    string
	}{
		{"more", share.Grant{Devices: []share.Device{mine}}, control.Settings{Cores: cores(50)}, 50, ""},
		{"none, so what others leave", share.Grant{Devices: []share.Device{mine}}, control.Settings{Cores: cores(0)}, 0, ""},
		{"more than is left", share.Grant{Devices: []share.Device{mine}}, control.Settings{Cores: cores(51)}, 0, "cores 51% asked, GPU 0 has 50% to give"},
		{"more than there is", share.Grant{Devices: []share.Device{mine}}, control.Settings{Cores: cores(101)}, 0, "101"},
		{"a cap on nothing", share.Grant{Devices: []share.Device{mine}}, control.Settings{Cores: cores(0), Capped: &on}, 0, "would never run"},
		{"no such class", share.Grant{Devices: []share.Device{mine}}, control.Settings{Class: &gold}, 0, "not known; use guaranteed"},
	} {
		got, err := changed(row.grant, row.wanted, gpus)
		switch {
		case row.err != "":
			if err == nil || !strings.Contains(err.Error(), row.err) {
				t.Errorf("%s: error %v, want %q", row.name, err, row.err)
			}
		case err != nil || got.Devices[0].Cores != row.cores:
			t.Errorf("%s: %v, %v", row.name, got, err)
		}
		if row.grant.Devices[0].Cores != 30 {
			t.Errorf("%s: the grant that was has changed", row.name)
		}
	}
}
