package region

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// The C names of the Go fields. A field that is missing here fails the parity test.
var cNames = map[string]string{
	"UUID": "uuid", "Limit": "limit", "Guaranteed": "guaranteed", "Implicit": "implicit", "ContextBytes": "context_bytes", "Cores": "cores", "Magic": "magic", "Version": "version", "Size": "size",
	"DeviceCount": "device_count", "Flags": "flags", "Epoch": "epoch", "Share": "share", "Gate": "gate",
	"Device": "device", "HostPID": "host_pid", "Generation": "generation", "Enter": "enter", "Leave": "leave",
	"Charged": "charged", "HostPinned": "host_pinned", "Imported": "imported", "Launches": "launches",
	"MinResident": "min_resident", "HostLimit": "host_limit", "FixedLimit": "fixed_limit", "Host": "host", "Resident": "resident", "Swapped": "swapped", "Moved": "moved", "Residency": "residency",
	"Refused": "refused", "Unknown": "unknown", "Mismatch": "mismatch", "Sum": "sum", "Slot": "slot",
	"Kind": "kind", "DriverVersion": "driver_version", "Comm": "comm", "Usage": "usage", "Note": "note", "Status": "status", "Reason": "reason",
	"Lease": "lease", "At": "at", "Memory": "memory", "Absent": "absent",
}

var structs = []struct {
	c string
	g any
}{
	{"kerf_policy_device", PolicyDevice{}},
	{"kerf_policy", Policy{}},
	{"kerf_slot", Slot{}},
	{"kerf_usage_sum", Sum{}},
	{"kerf_residency", Residency{}},
	{"kerf_usage", Usage{}},
	{"kerf_hello", Hello{}},
	{"kerf_welcome", Welcome{}},
	{"kerf_lease", Lease{}},
}

func TestParityWithC(t *testing.T) {
	var program strings.Builder
	program.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include \"region.h\"\nint main(void){\n")
	var want []string
	for _, s := range structs {
		typ := reflect.TypeOf(s.g)
		fmt.Fprintf(&program, "printf(\"%s %%zu\\n\", sizeof(struct %s));\n", s.c, s.c)
		want = append(want, fmt.Sprintf("%s %d", s.c, typ.Size()))
		for field := range typ.Fields() {
			if field.Name == "_" {
				continue
			}
			name, ok := cNames[field.Name]
			if !ok {
				t.Fatalf("%s.%s has no C name in this test", s.c, field.Name)
			}
			fmt.Fprintf(&program, "printf(\"%s.%s %%zu %%zu\\n\", offsetof(struct %s, %s), sizeof(((struct %s*)0)->%s));\n", s.c, name, s.c, name, s.c, name)
			want = append(want, fmt.Sprintf("%s.%s %d %d", s.c, name, field.Offset, field.Type.Size()))
		}
	}
	for name, value := range map[string]int{"KERF_REGION_MAGIC": Magic, "KERF_REGION_VERSION": Version, "KERF_MAX_DEVICES": MaxDevices,
		"KERF_MAX_SLOTS": MaxSlots, "KERF_REASON_LEN": ReasonLen, "KERF_POLICY_STRICT": FlagStrict, "KERF_POLICY_TAMPERED": FlagTampered,
		"KERF_POLICY_REVOKED": FlagRevoked, "KERF_POLICY_SIMULATED": FlagSimulated, "KERF_POLICY_OVERCOMMIT": FlagOvercommit, "KERF_POLICY_LEASES": FlagLeases, "KERF_POLICY_HOLD": FlagHold,
		"KERF_GATE_OPEN": GateOpen, "KERF_GATE_SHUT": GateShut, "KERF_GATE_SHARED": GateShared, "KERF_HELLO_LEASE": HelloLease,
		"KERF_LEASE_WATCH": LeaseWatch, "KERF_LEASE_DRAIN": LeaseDrain, "KERF_LEASE_BEGAN": LeaseBegan, "KERF_LEASE_ENDED": LeaseEnded, "KERF_LEASE_DRAINED": LeaseDrained, "KERF_LEASE_OUT": LeaseOut, "KERF_LEASE_IN": LeaseIn, "KERF_LEASE_REFUSED": LeaseRefused, "KERF_LEASE_HOST": LeaseHost, "KERF_LEASE_TRIM": LeaseTrim, "KERF_LEASE_MEMORY": LeaseMemory, "KERF_SLOT_TAMPERED": SlotTampered, "KERF_DEVICE_MIG": DeviceMIG,
		"KERF_HELLO_ATTACH": HelloAttach, "KERF_HELLO_NOTE": HelloNote, "KERF_HELLO_MEASURE": HelloMeasure, "KERF_WELCOME_OK": WelcomeOK, "KERF_WELCOME_VERSION": WelcomeVersion,
		"KERF_WELCOME_FULL": WelcomeFull, "KERF_WELCOME_REVOKED": WelcomeRevoked, "KERF_WELCOME_DENIED": WelcomeDenied} {
		fmt.Fprintf(&program, "if ((long)%s != %dL) printf(\"%s differs\\n\");\n", name, value, name)
	}
	program.WriteString("return 0;}\n")
	got := compileAndRun(t, program.String())
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(got), "\n")); diff != "" {
		t.Errorf("region.go and region.h differ (-go +c):\n%s", diff)
	}
}

func compileAndRun(t *testing.T, source string) string {
	t.Helper()
	dir := t.TempDir()
	file, bin := filepath.Join(dir, "parity.c"), filepath.Join(dir, "parity")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-I../shim", "-o", bin, file).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestCreateOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage")
	f, err := Create[Usage](path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	f.Page.Add(3, 100)
	if got := f.Page.Add(3, -101); got != 0 {
		t.Errorf("a sum below zero became %d, want 0", got)
	}
	f.Page.Add(3, 4096)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open[Usage](path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if got := again.Page.Charged(3); got != 4096 {
		t.Errorf("the sum after opening again is %d, want 4096", got)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, want 0666 whatever the umask", info.Mode().Perm())
	}
}

func TestGuardSurvivesTruncation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "usage")
	f, err := Create[Usage](path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := Guard(func() { f.Page.Add(0, 1) }); !errors.Is(err, ErrTruncated) {
		t.Errorf("error %v, want ErrTruncated", err)
	}
}

func TestOpenRefusesAnotherVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy")
	f, err := Create[Policy](path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	f.Page.Version = 7
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, "version 7"},
		{func() error { return os.Truncate(path, 100) }, "100 bytes"},
	} {
		if err := damage.do(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open[Policy](path); err == nil || !strings.Contains(err.Error(), damage.want) || !strings.Contains(err.Error(), "remove its share") {
			t.Errorf("error %v, want one that names %q and the fix", err, damage.want)
		}
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add(make([]byte, unsafe.Sizeof(Hello{})))
	f.Add([]byte("KERF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := ParseHello(b); ok && h.Magic != Magic {
			t.Error("accepted a message without the magic")
		}
	})
}
