package bpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const format = `name: block_rq_error
ID: 2106
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;

print fmt: "%d", 1
`

func TestFormat(t *testing.T) {
	got, err := parseFormat("block/block_rq_error", bufio.NewScanner(strings.NewReader(format)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]place{"common_type": {0, 2}, "common_pid": {4, 4}, "dev": {8, 4}, "error": {28, 4}, "rwbs": {34, 10}, "cmd": {44, 4}}
	if diff := cmp.Diff(want, got.fields, cmp.AllowUnexported(place{})); diff != "" || got.id != 2106 {
		t.Errorf("id %d, fields (-want +got):\n%s", got.id, diff)
	}
	for name, text := range map[string]string{
		"empty": "", "no ID": "name: x\n\tfield:int pid;\toffset:8;\tsize:4;\n", "ID": "ID: x\n", "field": "ID: 1\n\tfield:int pid;\n",
		"offset": "ID: 1\n\tfield:int pid;\toffset:x;\tsize:4;\n", "far": "ID: 1\n\tfield:int pid;\toffset:70000;\tsize:4;\n", "nameless": "ID: 1\n\tfield: ;\toffset:8;\tsize:4;\n",
	} {
		if got, err := parseFormat("x", bufio.NewScanner(strings.NewReader(text))); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

func FuzzFormat(f *testing.F) {
	f.Add(format)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseFormat("x", bufio.NewScanner(strings.NewReader(text)))
		for name, p := range got.fields {
			if name == "" || p.offset < 0 || p.size < 0 || p.offset > 0xffff {
				t.Errorf("field %q at %+v", name, p)
			}
		}
		if err == nil && got.id == 0 {
			t.Error("no ID, no error")
		}
	})
}

func TestLocate(t *testing.T) {
	point := tracepoint{name: "x/y", fields: map[string]place{"errors": {28, 4}, "dev": {8, 4}}}
	for _, tt := range []struct {
		name   string
		fields []field
		want   map[string]uint16
		err    string
	}{
		{"nothing", nil, map[string]uint16{}, ""},
		{"first name", []field{{"d", []string{"dev"}, 4}}, map[string]uint16{"d": 8}, ""},
		{"older name", []field{{"e", []string{"error", "errors"}, 4}}, map[string]uint16{"e": 28}, ""},
		{"absent", []field{{"e", []string{"code", "status"}, 4}}, nil, "this kernel's x/y has no field code or status"},
		{"other size", []field{{"d", []string{"dev"}, 8}}, nil, "this kernel's x/y has a field dev of 4 bytes, 8 are known"},
	} {
		got, err := locate(point, tt.fields)
		if text := fmt.Sprint(err); tt.err != "" && text != tt.err || tt.err == "" && err != nil {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func raw(kind Kind, pid uint32, code int32, dev uint32, count uint64, text string) []byte {
	b := make([]byte, recordSize)
	binary.LittleEndian.PutUint64(b, 5e9)
	binary.LittleEndian.PutUint32(b[8:], uint32(kind))
	binary.LittleEndian.PutUint32(b[12:], pid)
	binary.LittleEndian.PutUint32(b[16:], uint32(code))
	binary.LittleEndian.PutUint32(b[20:], dev)
	binary.LittleEndian.PutUint64(b[24:], count)
	copy(b[32:], text)
	return b
}

func TestParse(t *testing.T) {
	at := 5 * time.Second
	for _, tt := range []struct {
		name string
		raw  []byte
		want Event
		ok   bool
		err  string
	}{
		{"oom", raw(OOM, 7, 0, 0, 0, ""), Event{Kind: OOM, At: at, PID: 7}, true, ""},
		{"crash", raw(Crash, 7, 11, 0, 0, ""), Event{Kind: Crash, At: at, PID: 7, Sig: syscall.SIGSEGV}, true, ""},
		{"memory, corrected", raw(Memory, 0, 0, 1, 3, "DIMM_A1"), Event{Kind: Memory, At: at, MC: 1, Label: "DIMM_A1", Count: 3}, true, ""},
		{"memory, deferred", raw(Memory, 0, 2, 0, 1, ""), Event{Kind: Memory, At: at, Count: 1}, true, ""},
		{"memory, uncorrected", raw(Memory, 0, 1, 0, 1, ""), Event{Kind: Memory, At: at, Level: Uncorrected, Count: 1}, true, ""},
		{"memory, fatal", raw(Memory, 0, 3, 0, 1, ""), Event{Kind: Memory, At: at, Level: Fatal, Count: 1}, true, ""},
		{"memory, information", raw(Memory, 0, 4, 0, 1, ""), Event{Kind: Memory, At: at, Count: 1}, false, ""},
		{"aer, not fatal", raw(AER, 0, 0, 0, 0x4000, "0000:b3:00.0"), Event{Kind: AER, At: at, Level: Uncorrected, Bits: 0x4000, PCI: "0000:b3:00.0"}, true, ""},
		{"aer, fatal", raw(AER, 0, 1, 0, 0x10, "0000:b3:00.0"), Event{Kind: AER, At: at, Level: Fatal, Bits: 0x10, PCI: "0000:b3:00.0"}, true, ""},
		{"aer, corrected", raw(AER, 0, 2, 0, 1, "0000:b3:00.0"), Event{Kind: AER, At: at, Bits: 1, PCI: "0000:b3:00.0"}, true, ""},
		{"aer, unknown", raw(AER, 0, 9, 0, 1, "0000:b3:00.0"), Event{Kind: AER, At: at, Bits: 1, PCI: "0000:b3:00.0"}, false, ""},
		{"disk", raw(Block, 0, -5, 259<<20|1, 12, ""), Event{Kind: Block, At: at, Errno: unix.EIO, Disk: "259:1", Count: 12}, true, ""},
		{"disk, older kernel", raw(Block, 0, 5, 8<<20, 1, ""), Event{Kind: Block, At: at, Errno: unix.EIO, Disk: "8:0", Count: 1}, true, ""},
		{"disk that knows no discard", raw(Block, 0, -95, 8<<20, 1, ""), Event{Kind: Block, At: at, Errno: unix.EOPNOTSUPP, Disk: "8:0", Count: 1}, false, ""},
		{"text to the end", raw(AER, 0, 0, 0, 0, strings.Repeat("x", 64)), Event{Kind: AER, At: at, Level: Uncorrected, PCI: strings.Repeat("x", 64)}, true, ""},
		{"kind of a later object", raw(99, 0, 0, 0, 0, ""), Event{Kind: 99, At: at}, false, "a record of kind 99: object and program differ"},
		{"short", make([]byte, 20), Event{}, false, "a record of 20 bytes, 96 are due: object and program differ"},
	} {
		got, ok, err := parse(tt.raw)
		if diff := cmp.Diff(tt.want, got); diff != "" || ok != tt.ok || err != nil && err.Error() != tt.err || err == nil && tt.err != "" {
			t.Errorf("%s: ok %v, error %v (-want +got):\n%s", tt.name, ok, err, diff)
		}
	}
}

func TestWhy(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{fmt.Errorf("%w at /x", errNoTracefs), "tracefs is not mounted at /x; mount it (mount -t tracefs tracefs /sys/kernel/tracing), in a container from the host"},
		{fmt.Errorf("%w: ras/aer_event", errNoTracepoint), "this kernel has no such tracepoint: ras/aer_event; nothing to do: another kernel may have it"},
		{fmt.Errorf("make maps: %w", unix.EPERM), "no permission (make maps: operation not permitted); give kerfd CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN before Linux 5.8"},
		{&fs.PathError{Op: "open", Path: "/x", Err: unix.EACCES}, "no permission (open /x: permission denied); give kerfd CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN before Linux 5.8"},
		{fmt.Errorf("%w: load: %w", errNoBTF, ebpf.ErrNotSupported), "this kernel has no BTF (no /sys/kernel/btf/vmlinux: load: not supported); one with CONFIG_DEBUG_INFO_BTF has"},
		{fmt.Errorf("load: %w", ebpf.ErrNotSupported), "this kernel lacks what the probe needs (load: not supported); Linux 5.8 has it"},
		{fmt.Errorf("load: %w", unix.ENOSYS), "this kernel lacks what the probe needs (load: function not implemented); Linux 5.8 has it"},
		{fmt.Errorf("load: %w", &ebpf.VerifierError{Cause: unix.EACCES, Log: []string{"R1"}}), "the kernel's verifier refuses the program (load: : permission denied: R1); please report it, the other probes are not concerned"},
		{errors.New("a\nb"), "a; the other probes are not concerned"},
	} {
		if got := why(tt.err); got != tt.want {
			t.Errorf("%v:\n got %q\nwant %q", tt.err, got, tt.want)
		}
	}
}

// TestTable: the object has what the table says, and nothing else.
func TestTable(t *testing.T) {
	spec, err := loadProbes()
	if err != nil {
		t.Fatal(err)
	}
	if len(spec.Programs) != len(table) {
		t.Errorf("the object has %d programs, the table %d rows", len(spec.Programs), len(table))
	}
	constants, kinds := 0, make(map[Kind]bool)
	for _, p := range table {
		if spec.Programs[p.program] == nil || kinds[p.kind] || p.tells == "" || len(p.points) == 0 {
			t.Errorf("%s: program %q, kind %d, tells %q, points %v", p.name, p.program, p.kind, p.tells, p.points)
		}
		kinds[p.kind] = true
		for _, f := range p.fields {
			constants++
			if v := spec.Variables[f.variable]; v == nil || v.Size() != 2 || !v.Constant() {
				t.Errorf("%s: the object has no constant %s of 2 bytes", p.name, f.variable)
			}
		}
	}
	for name, v := range spec.Variables {
		if v.Constant() {
			constants--
		} else if name != "unused_event" {
			t.Errorf("variable %s: nobody sets it", name)
		}
	}
	if constants != 0 {
		t.Errorf("%d constants of the object are in no row", -constants)
	}
}

// TestOff: without tracefs, without a tracepoint, or when nobody asks, each row says why, and nothing fails.
func TestOff(t *testing.T) {
	empty := t.TempDir()
	bare := t.TempDir()
	if err := os.Mkdir(filepath.Join(bare, "events"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Tracefs: empty}, "switched off"},
		{Config{Tracefs: empty, Probes: Names()}, "tracefs is not mounted"},
		{Config{Tracefs: bare, Probes: Names()}, "no such tracepoint"},
	} {
		s := Open(tt.config)
		if s.On() {
			t.Error("a probe is on")
		}
		for _, r := range s.Rows() {
			// Who may make no maps hears of that first.
			if r.On || !strings.Contains(r.Reason, tt.want) && !strings.Contains(r.Reason, "no permission") || r.Needs == "" {
				t.Errorf("%+v, want the reason %q", r, tt.want)
			}
		}
		if err := errors.Join(s.Watch(1), s.Forget(1), s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}
