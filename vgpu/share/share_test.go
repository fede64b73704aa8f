package share

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kerf-gpu/kerf/internal/node"
)

func gpu(index int, memory node.Bytes, granted ...Device) GPU {
	return GPU{UUID: node.UUID{byte(index + 1), 0xaa}, Index: index, Memory: memory, Granted: granted}
}

func part(memory node.Bytes, cores node.Percent) Device { return Device{Memory: memory, Cores: cores} }

func TestDecide(t *testing.T) {
	const gi = node.GiB
	crowded := gpu(0, 80*gi)
	for range MaxTenants {
		crowded.Granted = append(crowded.Granted, part(gi, 0))
	}
	lost := gpu(0, 80*gi)
	lost.Fault = "lost"
	for _, tt := range []struct {
		name    string
		gpus    []GPU
		request Request
		want    []int  // indices granted
		err     string // part of the error
	}{
		{"empty node of two", []GPU{gpu(0, 80*gi), gpu(1, 80*gi)}, Request{Memory: 10 * gi}, []int{0}, ""},
		{"the fullest that fits", []GPU{gpu(0, 80*gi), gpu(1, 80*gi, part(40*gi, 0)), gpu(2, 80*gi, part(75*gi, 0))}, Request{Memory: 10 * gi}, []int{1}, ""},
		{"to the last byte", []GPU{gpu(0, 80*gi, part(70*gi, 50))}, Request{Memory: 10 * gi, Cores: 50}, []int{0}, ""},
		{"one byte over", []GPU{gpu(0, 80*gi, part(70*gi, 50))}, Request{Memory: 10*gi + 1}, nil, "the most free memory is 10Gi, on GPU 0"},
		{"cores are full", []GPU{gpu(0, 80*gi, part(gi, 80))}, Request{Memory: gi, Cores: 21}, nil, "20% of cores left"},
		{"best effort beside full cores", []GPU{gpu(0, 80*gi, part(gi, 100))}, Request{Memory: gi, Class: BestEffort}, []int{0}, ""},
		{"two GPUs", []GPU{gpu(0, 80*gi), gpu(1, 80*gi, part(gi, 0)), gpu(2, 80*gi)}, Request{Memory: gi, GPUs: 2}, []int{0, 1}, ""},
		{"by index and by UUID", []GPU{gpu(0, 80*gi), gpu(1, 80*gi)}, Request{Memory: gi, GPU: []string{"1", "GPU-01AA"}}, []int{0, 1}, ""},
		{"by a beginning without GPU-", []GPU{gpu(0, 80*gi), gpu(1, 80*gi)}, Request{Memory: gi, GPU: []string{"02aa"}}, []int{1}, ""},

		{"no memory", []GPU{gpu(0, 80*gi)}, Request{}, nil, "memory 0: a slice without memory can run nothing; ask for at least 2Mi"},
		{"too little memory", []GPU{gpu(0, 80*gi)}, Request{Memory: 4096}, nil, "memory 4Ki: less than the 2Mi"},
		{"beyond the card", []GPU{gpu(0, 80*gi)}, Request{Memory: 96 * gi}, nil, "memory 96Gi: the largest GPU here has 80Gi; ask for less"},
		{"beyond the named card", []GPU{gpu(0, 80*gi), gpu(1, 24*gi)}, Request{Memory: 48 * gi, GPU: []string{"1"}}, nil, "GPU 1 has 24Gi"},
		{"negative cores", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, Cores: -1}, nil, "percent -1: outside 0 to 100"},
		{"101 cores", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, Cores: 101}, nil, "percent 101: outside 0 to 100"},
		{"a cap on nothing", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, Capped: true}, nil, `cores 0 with burst: false: it would never run; ask for cores`},
		{"unknown class", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, Class: "gold"}, nil, `class "gold": not known; use guaranteed`},
		{"more GPUs than there are", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, GPUs: 2}, nil, "gpus 2: this node has 1"},
		{"gpus and names differ", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, GPUs: 2, GPU: []string{"0"}}, nil, "1 GPUs are named"},
		{"unknown index", []GPU{gpu(0, 80*gi), gpu(1, gi)}, Request{Memory: gi, GPU: []string{"7"}}, nil, `GPU "7": not on this node, which has GPU 0, 1`},
		{"named twice", []GPU{gpu(0, 80*gi)}, Request{Memory: gi, GPU: []string{"0", "gpu-01aa"}}, nil, "named twice"},
		{"lost card", []GPU{lost}, Request{Memory: gi}, nil, "GPU 0: lost; nothing is granted there"},
		{"the lost one is passed over", []GPU{lost, gpu(1, 80*gi)}, Request{Memory: gi}, []int{1}, ""},
		{"32 shares on one GPU", []GPU{crowded}, Request{Memory: gi}, nil, "GPU 0 has room for 0 more of the 32 shares that one can have, and 1 asked"},
		{"no GPUs", nil, Request{Memory: gi}, nil, "no GPU on this node"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			grant, err := Decide(tt.gpus, tt.request)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("error %v, want one line with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, d := range grant.Devices {
				got = append(got, d.Index)
				if d.Memory != tt.request.Memory || d.Cores != tt.request.Cores {
					t.Errorf("granted %v, asked %+v", d, tt.request)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Whatever is asked in whatever order, no GPU is granted beyond its memory or its time.
func TestNeverMoreThanThereIs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		gpus := []GPU{gpu(0, 80*node.GiB), gpu(1, 24*node.GiB), gpu(2, 48*node.GiB)}
		for range 40 {
			r := Request{Memory: node.Bytes(rng.Int64N(int64(30 * node.GiB))), Cores: node.Percent(rng.IntN(60)), GPUs: rng.IntN(3)}
			grant, err := Decide(gpus, r)
			if err != nil {
				continue
			}
			for _, d := range grant.Devices {
				gpus[d.Index].Granted = append(gpus[d.Index].Granted, d)
			}
		}
		for _, g := range gpus {
			var memory node.Bytes
			var cores node.Percent
			for _, d := range g.Granted {
				memory, cores = memory+d.Memory, cores+d.Cores
			}
			if memory > g.Memory || cores > 100 {
				t.Fatalf("GPU %d: granted %s of %s and %s", g.Index, memory, g.Memory, cores)
			}
		}
	}
}
