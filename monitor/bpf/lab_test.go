package bpf

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// These tests run in the machine of deploy/lab: another kernel, AER and device mapper.

func lab(t *testing.T) {
	t.Helper()
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("needs the machine of deploy/lab: make lab")
	}
}

func TestLabOOM(t *testing.T)   { lab(t); mountCgroup2(t); TestHostOOM(t) }
func TestLabCrash(t *testing.T) { lab(t); TestHostCrash(t) }

// TestLabAll: this kernel has all tracepoints of the table.
func TestLabAll(t *testing.T) {
	lab(t)
	s := Open(Config{Tracefs: mountTracefs(t), Probes: Names()})
	defer s.Close()
	for _, r := range s.Rows() {
		if !r.On {
			t.Errorf("%+v", r)
		}
	}
}

// TestLabAER: errors that are injected at the port above a GPU come with its address and their severity. No driver hangs on that port
// which the kernel's recovery would disturb.
func TestLabAER(t *testing.T) {
	lab(t)
	s := open(t, "pcie")
	address := portAbove(t, "gpu1")
	for _, tt := range []struct {
		name       string
		uncor, cor uint32
		level      Severity
		bits       uint32
	}{
		{name: "bad TLP", cor: 1 << 6, level: Corrected, bits: 1 << 6},
		{name: "completion timeout", uncor: 1 << 14, level: Uncorrected, bits: 1 << 14},
	} {
		inject(t, address, tt.uncor, tt.cor)
		e := s.wait(t, func(e Event) bool { return e.Kind == AER && e.PCI == address })
		if e.Level != tt.level || e.Bits&tt.bits == 0 {
			t.Errorf("%s: %+v", tt.name, e)
		}
	}
}

// inject has the kernel believe that a device reported errors: struct aer_error_inj.
func inject(t *testing.T, address string, uncor, cor uint32) {
	t.Helper()
	var domain uint32
	var bus, dev, fn byte
	if n, err := fmt.Sscanf(address, "%x:%x:%x.%x", &domain, &bus, &dev, &fn); n != 4 {
		t.Fatalf("address %q: %v", address, err)
	}
	b := make([]byte, 32)
	b[0], b[1], b[2] = bus, dev, fn
	binary.LittleEndian.PutUint32(b[4:], uncor)
	binary.LittleEndian.PutUint32(b[8:], cor)
	binary.LittleEndian.PutUint32(b[28:], domain)
	f, err := os.OpenFile("/dev/aer_inject", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatalf("inject at %s: %v", address, err)
	}
}

// TestLabDisk: a request that the device mapper's error target fails, told of the disk that was asked.
func TestLabDisk(t *testing.T) {
	lab(t)
	s := open(t, "disk")
	command(t, "dmsetup", "create", "kerf-bad", "--table", "0 8192 error")
	t.Cleanup(func() { command(t, "dmsetup", "remove", "--retry", "kerf-bad") })
	command(t, "dmsetup", "mknodes")
	loop, number := attachLoop(t, "/dev/mapper/kerf-bad")
	disk, err := os.Open(loop)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := disk.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Fatal("the error target reads well")
	}
	if e := s.wait(t, func(e Event) bool { return e.Kind == Block && e.Disk == number }); e.Errno != unix.EIO {
		t.Errorf("%+v", e)
	}
}

// portAbove is the address of the PCIe port that a device hangs on.
func portAbove(t *testing.T, device string) string {
	t.Helper()
	text, err := os.ReadFile("/lab/machine.json")
	if err != nil {
		t.Fatal(err)
	}
	var machine struct{ Devices []struct{ Name, Path string } }
	if err := json.Unmarshal(text, &machine); err != nil {
		t.Fatal(err)
	}
	for _, d := range machine.Devices {
		if d.Name == device {
			return filepath.Base(filepath.Dir(d.Path))
		}
	}
	t.Fatalf("the machine has no %s", device)
	return ""
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
