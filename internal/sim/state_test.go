package sim

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// TestStateParity compiles driver/state.h and compares the size of every struct
// and the offset of every field with the Go mirror.
func TestStateParity(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is not installed; the layout cannot be compared")
	}
	var code strings.Builder
	var want []string
	code.WriteString("#include <stdio.h>\n#include <stddef.h>\n#include \"state.h\"\nint main(void) {\n")
	for _, v := range []any{
		simLock{}, simProc{}, simCtl{}, simNvlink{}, simMigProfile{}, simMigInstance{}, simFacts{},
		simUse{}, simEngine{}, simCopyEngine{}, simEvent{}, simRun{}, simHealth{}, simGpu{},
	} {
		typ := reflect.TypeOf(v)
		name := "struct " + snake(typ.Name())
		fmt.Fprintf(&code, "printf(\"%s %%zu\\n\", sizeof(%s));\n", name, name)
		want = append(want, fmt.Sprintf("%s %d", name, typ.Size()))
		for i := range typ.NumField() {
			f := typ.Field(i)
			field := snake(f.Name)
			fmt.Fprintf(&code, "printf(\"%s.%s %%zu %%zu\\n\", offsetof(%s, %s), sizeof(((%s *)0)->%s));\n", name, field, name, field, name, field)
			want = append(want, fmt.Sprintf("%s.%s %d %d", name, field, f.Offset, f.Type.Size()))
		}
	}
	for name, value := range map[string]int{
		"SIM_CTL_MAGIC": ctlMagic, "SIM_GPU_MAGIC": gpuMagic, "SIM_VERSION": stateVersion, "SIM_MAX_GPUS": maxGPUs,
		"SIM_MAX_PROCS": maxProcs, "SIM_MAX_EVENTS": maxEvents, "SIM_MAX_RUNS": maxRuns, "SIM_MAX_NVLINKS": maxNVLinks, "SIM_MAX_MIG_PROFILES": maxMIGProfiles,
		"SIM_MAX_MIG_INSTANCES": maxMIGInstances, "SIM_SLOT_LOCK_BASE": slotLockBase, "SIM_ZERO_COST": flagZeroCost,
		"SIM_LINK_GPU": linkGPU, "SIM_LINK_SWITCH": linkSwitch, "SIM_FAULT_LOST": faultLost, "SIM_FAULT_HANG": faultHang,
		"SIM_CAP_CONFIG": capConfig, "SIM_CAP_MONITOR": capMonitor, "SIM_CAP_GI(3, 14)": giCapability(3, 14).number, "SIM_CAP_CI(3, 14, 7)": ciCapability(3, 14, 7).number,
	} {
		fmt.Fprintf(&code, "_Static_assert(%s == %d, \"%s\");\n", name, value, name)
	}
	code.WriteString("return 0; }\n")

	dir := t.TempDir()
	src := filepath.Join(dir, "layout.c")
	if err := os.WriteFile(src, []byte(code.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "layout")
	if out, err := exec.Command(gcc, "-std=gnu11", "-Idriver", "-o", exe, src).CombinedOutput(); err != nil {
		t.Fatalf("compile driver/state.h: %v\n%s", err, out)
	}
	out, err := exec.Command(exe).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(string(bytes.TrimSpace(out)), "\n")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("driver/state.h and state.go differ (-Go +C):\n%s", d)
	}
}

// snake turns PcieGenMax into pcie_gen_max, and Bar1Total into bar1_total.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
