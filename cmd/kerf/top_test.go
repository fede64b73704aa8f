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
		},
		Shares: []control.Share{
			{Class: share.Guaranteed, Holder: ledger.Holder{Door: ledger.DoorRun, PID: 42, Command: "/usr/bin/python train.py --epochs 100 --batch 4096 --seed 7"}, ShareState: arbiter.ShareState{
				ID: "0123456789abcdef", Refused: 3, Lease: &arbiter.LeaseState{Lease: "waits", Got: 48, Owed: 120 * time.Millisecond}, Sessions: make([]arbiter.SessionState, 2),
				Devices: []arbiter.DeviceState{{Index: 0, Limit: 70 * node.GiB, Charged: 34 * node.GiB, Implicit: node.GiB, Peak: 66 * node.GiB, Cores: 50}},
			}},
			{Class: share.BestEffort, Holder: ledger.Holder{Door: ledger.DoorRun, PID: 43, Command: "x"}, ShareState: arbiter.ShareState{
				ID: "fedcba9876543210", Tampered: "the sums differ from the slots", Devices: []arbiter.DeviceState{{Index: 0, Limit: node.GiB}},
			}},
			{Class: share.Guaranteed, Holder: ledger.Holder{Door: ledger.DoorDRA, Owner: ledger.Owner{UID: "u", Namespace: "team", Name: "llm"}},
				Inside:     []control.Container{{Namespace: "team", Pod: "llm-0", Name: "serve"}, {Namespace: "team", Pod: "llm-1", Name: "serve"}, {Namespace: "team", Pod: "llm-1", Name: "serve"}},
				ShareState: arbiter.ShareState{ID: "00000000000000aa", Devices: []arbiter.DeviceState{{Index: 2, Limit: node.GiB}}}},
			{Class: share.Guaranteed, Holder: ledger.Holder{Door: ledger.DoorDRA, Owner: ledger.Owner{UID: "u", Namespace: "team", Name: "idle"}},
				ShareState: arbiter.ShareState{ID: "00000000000000ab", Devices: []arbiter.DeviceState{{Index: 2, Limit: node.GiB}}}},
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
