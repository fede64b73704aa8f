package share

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kerf-gpu/kerf/internal/node"
)

// inMode is an 80 GiB card in a mode.
func inMode(mode Mode, granted ...Device) GPU {
	g := gpu(0, 80*node.GiB, granted...)
	g.Mode = mode
	if mode == ModeOvercommit {
		g.Overcommit = 200
	}
	return g
}

func placed(profile string, start, size int) *Placement { return &Placement{profile, start, size} }

// onMPS is a part of tier mps.
func onMPS(memory node.Bytes, cores node.Percent) Device {
	d := part(memory, cores)
	d.Tier = TierMPS
	return d
}

func TestModes(t *testing.T) {
	const gi = node.GiB
	held := func(d Device, mode Mode) Device { d.Mode = mode; return d }
	mig := func(p *Placement) Device { return Device{Mode: ModeMIG, Memory: gi, Placement: p} }
	foreign := inMode(ModeMIG)
	foreign.Foreign = []Placement{*placed("3g.40gb", 0, 4)}
	withoutMPS := inMode(ModeVGPU)
	withoutMPS.NoMPS = "not installed; install it"
	lost := inMode(ModeVGPU)
	lost.Fault = "lost"
	for _, tt := range []struct {
		name    string
		gpu     GPU
		request Request
		want    Device // less UUID, Index and Mode
		err     string
	}{
		{"two guarantees of the whole card", inMode(ModeOvercommit, held(part(80*gi, 0), ModeOvercommit)), Request{Memory: 80 * gi}, Device{Memory: 80 * gi}, ""},
		{"not three", inMode(ModeOvercommit, held(part(80*gi, 0), ModeOvercommit), held(part(80*gi, 0), ModeOvercommit)), Request{Memory: gi}, Device{}, "the most free memory is 0"},
		{"never more than the card in one", inMode(ModeOvercommit), Request{Memory: 81 * gi}, Device{}, "memory 81Gi: the largest GPU here has 80Gi"},
		{"burst where memory is over-committed", inMode(ModeOvercommit), Request{Memory: 10 * gi, Limit: 40 * gi}, Device{Memory: 10 * gi, Limit: 40 * gi}, ""},
		{"burst beyond the card", inMode(ModeOvercommit), Request{Memory: 10 * gi, Limit: 81 * gi}, Device{}, "memoryLimit 81Gi: GPU 0 has 80Gi"},
		{"burst where others have guarantees", inMode(ModeVGPU), Request{Memory: 10 * gi, Limit: 40 * gi}, Device{}, "use a card in mode overcommit"},
		{"a limit that is the memory", inMode(ModeVGPU), Request{Memory: 10 * gi, Limit: 10 * gi}, Device{Memory: 10 * gi}, ""},
		{"a limit below the memory", inMode(ModeOvercommit), Request{Memory: 10 * gi, Limit: gi}, Device{}, "memoryLimit 1Gi: less than the memory of 10Gi"},
		{"more resident than asked", inMode(ModeOvercommit), Request{Memory: gi, MinResident: 2 * gi}, Device{}, "minResident 2Gi: more than the memory of 1Gi"},

		{"alone on an empty card", inMode(ModeVGPU), Request{Memory: gi, Tenants: MaxTenants}, Device{Memory: gi, Tenants: MaxTenants}, ""},
		{"not alone beside others", inMode(ModeVGPU, part(gi, 0)), Request{Memory: gi, Tenants: MaxTenants}, Device{}, "GPU 0 has room for 31 more of the 32 shares that one can have, and 32 asked"},
		{"nobody beside who is alone", inMode(ModeVGPU, Device{Memory: gi, Tenants: MaxTenants}), Request{Memory: gi}, Device{}, "room for 0 more"},
		{"33 tenants", inMode(ModeVGPU), Request{Memory: gi, Tenants: 33}, Device{}, "tenants 33: outside 1 to 32"},

		{"an exclusive card is had whole", inMode(ModeExclusive), Request{Memory: gi}, Device{Memory: 80 * gi, Tenants: MaxTenants}, ""},
		{"and by one", inMode(ModeExclusive, held(part(gi, 0), ModeExclusive)), Request{Memory: gi}, Device{}, "in mode exclusive, and somebody has it"},

		{"a placement", inMode(ModeMIG, mig(placed("3g.40gb", 0, 4))), Request{Memory: gi, Placement: placed("2g.20gb", 4, 2)}, Device{Memory: gi, Placement: placed("2g.20gb", 4, 2)}, ""},
		{"in another's place", inMode(ModeMIG, mig(placed("3g.40gb", 0, 4))), Request{Memory: gi, Placement: placed("1g.10gb", 3, 1)}, Device{}, "GPU 0 has 3g.40gb at slice 0 in its place"},
		{"the same twice", inMode(ModeMIG, mig(placed("1g.10gb", 3, 1))), Request{Memory: gi, Placement: placed("1g.10gb", 3, 1)}, Device{}, "in its place"},
		{"in a stranger's place", foreign, Request{Memory: gi, Placement: placed("1g.10gb", 3, 1)}, Device{}, "GPU 0 has 3g.40gb at slice 0 in its place, which Kerf did not make"},
		{"off the card", inMode(ModeMIG), Request{Memory: gi, Placement: placed("4g.40gb", 6, 4)}, Device{}, "outside the card's 8 memory slices"},
		{"memory of a MIG card", inMode(ModeMIG), Request{Memory: gi}, Device{}, "in mode mig, which the hardware divides"},
		{"a placement on a card without MIG", inMode(ModeVGPU), Request{Memory: gi, Placement: placed("1g.10gb", 3, 1)}, Device{}, "set the card's mode to mig"},

		{"a mode that waits for the last share", inMode(ModeMIG, part(gi, 0)), Request{Memory: gi, Placement: placed("1g.10gb", 3, 1)}, Device{}, "GPU 0 changes from mode vgpu to mig"},
		{"guarantees beside over-commitment", inMode(ModeVGPU, held(part(gi, 0), ModeOvercommit)), Request{Memory: gi}, Device{}, "changes from mode overcommit to vgpu"},

		{"mps on an empty card", inMode(ModeVGPU), Request{Memory: gi, Cores: 30, Tier: TierMPS}, Device{Memory: gi, Cores: 30, Tier: TierMPS}, ""},
		{"mps beside mps", inMode(ModeVGPU, onMPS(gi, 60)), Request{Memory: gi, Cores: 40, Tier: TierMPS}, Device{Memory: gi, Cores: 40, Tier: TierMPS}, ""},
		{"mps, and no cores left", inMode(ModeVGPU, onMPS(gi, 60)), Request{Memory: gi, Cores: 41, Tier: TierMPS}, Device{}, "which has 40% of cores left"},
		{"mps beside time", inMode(ModeVGPU, part(gi, 0)), Request{Memory: gi, Tier: TierMPS}, Device{}, "GPU 0 has shares of tier time, and a card has one tier at a time"},
		{"time beside mps", inMode(ModeVGPU, onMPS(gi, 0)), Request{Memory: gi}, Device{}, "GPU 0 has shares of tier mps"},
		{"mps where there is none", withoutMPS, Request{Memory: gi, Tier: TierMPS}, Device{}, "tier mps: GPU 0: not installed; install it"},
		{"time where there is no mps", withoutMPS, Request{Memory: gi}, Device{Memory: gi}, ""},
		{"mps over-committed", inMode(ModeOvercommit), Request{Memory: gi, Tier: TierMPS}, Device{}, "in mode overcommit, where a program whose memory is swapped out must wait"},
		{"mps on an exclusive card", inMode(ModeExclusive), Request{Memory: gi, Tier: TierMPS}, Device{}, "GPU 0 is in mode exclusive"},
		{"mps in a MIG instance", inMode(ModeMIG), Request{Memory: gi, Tier: TierMPS, Placement: placed("1g.10gb", 3, 1)}, Device{}, "it divides whole cards only"},
		{"mps on a MIG card", inMode(ModeMIG), Request{Memory: gi, Tier: TierMPS}, Device{}, "in mode mig"},
		{"mps on two GPUs", inMode(ModeVGPU), Request{Memory: gi, Tier: TierMPS, GPUs: 2}, Device{}, "a program is the client of one MPS server"},
		{"mps that gives way", inMode(ModeVGPU), Request{Memory: gi, Tier: TierMPS, Class: BestEffort}, Device{}, "nobody waits there"},
		{"mps with a burst of memory", inMode(ModeVGPU), Request{Memory: gi, Limit: 2 * gi, Tier: TierMPS}, Device{}, "leave memoryLimit out"},
		{"unknown tier", inMode(ModeVGPU), Request{Memory: gi, Tier: "fast"}, Device{}, `tier "fast": not known; use time or mps`},

		{"who watches needs no room", inMode(ModeVGPU, part(80*gi, 100)), Request{Admin: true}, Device{}, ""},
		{"and watches a lost card", lost, Request{Admin: true}, Device{}, ""},
		{"unknown backend", inMode(ModeVGPU), Request{Memory: gi, Backend: "magic"}, Device{}, `backend "magic": not known`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			grant, err := Decide([]GPU{tt.gpu}, tt.request)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("error %v, want one line with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			want.UUID, want.Mode = tt.gpu.UUID, tt.gpu.Mode
			if diff := cmp.Diff([]Device{want}, grant.Devices); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCapacity(t *testing.T) {
	odd := GPU{Memory: 80*node.GiB + 4096, Mode: ModeOvercommit, Overcommit: 150}
	if got := odd.Capacity(); got != 120*node.GiB {
		t.Errorf("150%% of 80Gi and a page: %s", got.Exact())
	}
	odd.Mode = ModeVGPU
	if got := odd.Capacity(); got != odd.Memory {
		t.Errorf("a card that is not over-committed has %s of %s", got.Exact(), odd.Memory.Exact())
	}
}

// Who may be granted later is told from who never will.
func TestNoRoomOrNever(t *testing.T) {
	const gi = node.GiB
	for _, tt := range []struct {
		name    string
		gpu     GPU
		request Request
		later   bool
	}{
		{"memory that others have", inMode(ModeVGPU, part(70*gi, 0)), Request{Memory: 20 * gi, GPU: []string{"0"}}, true},
		{"cores that others have", inMode(ModeVGPU, part(gi, 90)), Request{Memory: gi, Cores: 20}, true},
		{"places that others have", inMode(ModeVGPU, part(gi, 0)), Request{Memory: gi, Tenants: MaxTenants}, true},
		{"a card that somebody has", inMode(ModeExclusive, part(gi, 0)), Request{Memory: gi, GPU: []string{"0"}}, true},
		{"a placement that somebody has", inMode(ModeMIG, Device{Mode: ModeMIG, Placement: placed("3g.40gb", 0, 4)}), Request{Memory: gi, Placement: placed("1g.10gb", 0, 1)}, true},
		{"a mode that waits", inMode(ModeExclusive, part(gi, 0)), Request{Memory: gi}, true},
		{"a card of the other tier", inMode(ModeVGPU, part(gi, 0)), Request{Memory: gi, Tier: TierMPS, GPU: []string{"0"}}, true},
		{"and the other way", inMode(ModeVGPU, onMPS(gi, 0)), Request{Memory: gi}, true},
		{"mps over-committed", inMode(ModeOvercommit), Request{Memory: gi, Tier: TierMPS}, false},
		{"more than the card has", inMode(ModeVGPU), Request{Memory: 81 * gi, GPU: []string{"0"}}, false},
		{"memory of a MIG card", inMode(ModeMIG), Request{Memory: gi}, false},
		{"nonsense", inMode(ModeVGPU), Request{Memory: gi, Cores: 101}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Decide([]GPU{tt.gpu}, tt.request)
			if later := errors.As(err, new(*NoRoomError)); err == nil || later != tt.later {
				t.Errorf("%v: room later: %v, want %v", err, later, tt.later)
			}
		})
	}
}
