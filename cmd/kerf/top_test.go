package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/mps"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

var update = flag.Bool("update", false, "write the golden files")

func TestTopPicture(t *testing.T) {
	state := control.State{
		Time: time.Date(2026, 11, 23, 12, 0, 0, 0, time.Local), Simulated: true,
		GPUs: []control.GPU{
			{Index: 0, Name: "NVIDIA H200 (simulated)", Memory: 140 * node.GiB, Granted: 70 * node.GiB, Cores: 50, Used: 36 * node.GiB, Outside: node.GiB, Utilization: 97},
			{Index: 1, Name: "NVIDIA H200 (simulated)", Memory: 140 * node.GiB, Error: "GPU is lost"},
			{Index: 2, Name: "NVIDIA H200 (simulated)", Memory: 140 * node.GiB, Fault: "gpu reset"},
			{Index: 3, Name: "NVIDIA H200 (simulated)", Memory: 140 * node.GiB, MPS: &mps.State{Trouble: "its control daemon (pid 7) has ended, and is started again"}},
		},
		Shares: []control.Share{
			{Class: share.Guaranteed, Holder: ledger.Holder{Door: ledger.DoorRun, PID: 42, Command: "/usr/bin/python train.py --epochs 100 --batch 4096 --seed 7"}, ShareState: arbiter.ShareState{
				ID: "0123456789abcdef", Tier: share.TierTime, Refused: 3, Lease: &arbiter.LeaseState{Lease: "waits", Got: 48, Owed: 120 * time.Millisecond}, Sessions: make([]arbiter.SessionState, 2),
				Devices: []arbiter.DeviceState{{Index: 0, Limit: 70 * node.GiB, Charged: 34 * node.GiB, Implicit: node.GiB, Peak: 66 * node.GiB, Cores: 50}},
			}},
			{Class: share.BestEffort, Holder: ledger.Holder{Door: ledger.DoorRun, PID: 43, Command: "x"}, ShareState: arbiter.ShareState{
				ID: "fedcba9876543210", Tier: share.TierTime, Tampered: "the sums differ from the slots", Devices: []arbiter.DeviceState{{Index: 0, Limit: node.GiB}},
			}},
			{Class: share.Guaranteed, Holder: ledger.Holder{Door: ledger.DoorDRA, Owner: ledger.Owner{UID: "u", Namespace: "team", Name: "llm"}},
				Inside:     []control.Container{{Namespace: "team", Pod: "llm-0", Name: "serve"}, {Namespace: "team", Pod: "llm-1", Name: "serve"}, {Namespace: "team", Pod: "llm-1", Name: "serve"}},
				ShareState: arbiter.ShareState{ID: "00000000000000aa", Tier: share.TierMPS, Devices: []arbiter.DeviceState{{Index: 2, Limit: node.GiB}}}},
			{Class: share.Guaranteed, Holder: ledger.Holder{Door: ledger.DoorDRA, Owner: ledger.Owner{UID: "u", Namespace: "team", Name: "idle"}},
				ShareState: arbiter.ShareState{ID: "00000000000000ab", Tier: share.TierMPS, Devices: []arbiter.DeviceState{{Index: 2, Limit: node.GiB}}}},
		},
	}
	var got strings.Builder
	if err := writeTop(&got, state); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "top.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}

// A share of tier mps does not wait, and is told why, and how its daemon is.
func TestExplainMPS(t *testing.T) {
	uuid := node.UUID{7}
	s := control.Share{ShareState: arbiter.ShareState{Tier: share.TierMPS, Devices: []arbiter.DeviceState{{UUID: uuid, Cores: 30}}}}
	for want, daemon := range map[string]*mps.State{
		"GPU 2's MPS daemon is pid 5":                {PID: 5},
		"died 2 times, and each time all":            {PID: 5, Deaths: 2},
		"cannot start; programs that start now":      {Trouble: "cannot start"},
		"GPU 2 has no MPS daemon, so programs that ": nil,
	} {
		got := explain(s, []control.GPU{{}, {UUID: uuid, Index: 2, MPS: daemon}})
		for _, word := range []string{"never waits for a turn", "at most 30%", want} {
			if !strings.Contains(got, word) {
				t.Errorf("%q does not say %q", got, word)
			}
		}
	}
}
