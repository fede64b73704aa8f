package nodetest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nvml"
)

// divide cuts every card in MIG mode in every way there is room for, one
// instance at a time, and holds what comes of it to the contract.
func divide(t *testing.T, lib *nvml.Library, root string, n node.Node) {
	for _, g := range n.GPUs {
		for _, p := range g.MIG.Profiles {
			for _, start := range p.Placements {
				if overlaps(g, p, start) {
					refused(t, lib, g, p.Name, start)
				} else {
					cut(t, lib, root, g, p, start)
				}
			}
			refused(t, lib, g, p.Name, 9)
		}
		refused(t, lib, g, "9g.999gb", 0)
		if after := reread(t, lib, g); !cmp.Equal(after.MIG, g.MIG) {
			t.Errorf("GPU %d is not as it was: %s", g.Index, cmp.Diff(g.MIG, after.MIG))
		}
	}
}

func overlaps(g node.GPU, p node.MIGProfile, start int) bool {
	return slices.ContainsFunc(g.MIG.Instances, func(in node.MIGInstance) bool {
		return start < in.Start+in.Slices && in.Start < start+p.Size
	})
}

func reread(t *testing.T, lib *nvml.Library, g node.GPU) node.GPU {
	t.Helper()
	gpus, err := lib.GPUs()
	if err != nil {
		t.Fatal(err)
	}
	return gpus[g.Index]
}

// refused fails unless there is an instance in the place already, and it is this one.
func refused(t *testing.T, lib *nvml.Library, g node.GPU, profile string, start int) {
	t.Helper()
	in, err := lib.CreateMIG(g.UUID, profile, start)
	there := slices.ContainsFunc(g.MIG.Instances, func(in node.MIGInstance) bool { return in.Profile == profile && in.Start == start })
	switch {
	case there && (err != nil || !slices.Contains(g.MIG.Instances, in)):
		t.Errorf("GPU %d: %s at %d is there, and asked for again is %+v, %v", g.Index, profile, start, in, err)
	case !there && (err == nil || !strings.Contains(err.Error(), profile)):
		t.Errorf("GPU %d: %s at %d: %+v, %v; want it refused by name", g.Index, profile, start, in, err)
	}
}

func cut(t *testing.T, lib *nvml.Library, root string, g node.GPU, p node.MIGProfile, start int) {
	t.Helper()
	in, err := lib.CreateMIG(g.UUID, p.Name, start)
	if err != nil {
		t.Error(err)
		return
	}
	if in.Profile != p.Name || in.Start != start || in.Slices != p.Size || in.Memory != p.Memory || in.SMs != p.SMs || node.UUID(in.UUID).IsZero() {
		t.Errorf("GPU %d: asked for %s at %d, got %+v", g.Index, p.Name, start, in)
	}
	if again, err := lib.CreateMIG(g.UUID, p.Name, start); err != nil || again != in {
		t.Errorf("GPU %d: the same again: %+v, %v; want %+v", g.Index, again, err, in)
	}
	after := reread(t, lib, g)
	if len(after.MIG.Instances) != len(g.MIG.Instances)+1 || !slices.Contains(after.MIG.Instances, in) {
		t.Errorf("GPU %d: instances %+v; want %+v among them", g.Index, after.MIG.Instances, in)
	}
	if m, err := lib.InstanceMemory(in.UUID); err != nil || m.Total != p.Memory || m.Used != 0 || m.Used+m.Free+m.Reserved != m.Total {
		t.Errorf("GPU %d: memory of %s: %+v, %v", g.Index, in.UUID, m, err)
	}
	nodes, err := nvml.InstanceNodes(root, g, in)
	if err != nil {
		t.Error(err)
	}
	for _, path := range nodes {
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			t.Errorf("GPU %d: %v", g.Index, err)
		}
	}
	for range 2 { // the second time there is none
		if err := lib.DestroyMIG(g.UUID, p.Name, start); err != nil {
			t.Error(err)
		}
	}
	for _, path := range nodes {
		if _, err := os.Stat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("GPU %d: %s is left of %s: %v", g.Index, path, in.UUID, err)
		}
	}
	if _, err := lib.InstanceMemory(in.UUID); err == nil {
		t.Errorf("GPU %d: %s has memory and is gone", g.Index, in.UUID)
	}
}
