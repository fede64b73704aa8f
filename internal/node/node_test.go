package node

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseBytes(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Bytes
		err  string
	}{
		{in: "16Gi", want: 16 * GiB},
		{in: "512Mi", want: 512 * MiB},
		{in: "1G", want: 1e9},
		{in: "0", want: 0},
		{in: "1048576", want: MiB},
		{in: "1.5Gi", want: 1536 * MiB},
		{in: " 4 Ki ", want: 4096},
		{in: "-1Gi", err: "cannot be negative"},
		{in: "", err: "no number"},
		{in: "Gi", err: "no number"},
		{in: "16Q", err: `unknown unit "Q"`},
		{in: "16gb", err: `unknown unit "gb"`},
		{in: "1e3", err: `not a number`},
		{in: "0x10", err: "not a number"},
		{in: "1.2.3Gi", err: "not a number"},
		{in: "9000000Ti", err: "larger than 8 EiB"},
		{in: "9000000.5Ti", err: "larger than 8 EiB"},
		{in: "99999999999999999999", err: "larger than 8 EiB"},
	} {
		got, err := ParseBytes(tc.in)
		if tc.err == "" && (err != nil || got != tc.want) {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", tc.in, got, err, tc.want)
		}
		if tc.err != "" {
			wantError(t, err, tc.err)
		}
	}
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v; want one line with %q", err, part)
	}
}

func TestBytesText(t *testing.T) {
	for _, tc := range []struct {
		b             Bytes
		people, exact string
	}{
		{0, "0", "0"},
		{512, "512", "512"},
		{16 * GiB, "16Gi", "16Gi"},
		{1536 * MiB, "1.5Gi", "1536Mi"},
		{GiB + 1, "1.0Gi", "1073741825"},
		{2 * TiB, "2Ti", "2Ti"},
	} {
		if tc.b.String() != tc.people || tc.b.Exact() != tc.exact {
			t.Errorf("%d: %s, %s; want %s, %s", uint64(tc.b), tc.b, tc.b.Exact(), tc.people, tc.exact)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"16Gi", "1.5G", "-1", "0", "Ki"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseBytes(s)
		if err != nil {
			return
		}
		if back, err := ParseBytes(b.Exact()); err != nil || back != b {
			t.Errorf("%q: %d reads back as %d, %v", s, b, back, err)
		}
	})
}

func TestBytesJSON(t *testing.T) {
	var got []Bytes
	if err := json.Unmarshal([]byte(`[1024, "16Gi"]`), &got); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(got)
	if err != nil || string(out) != "[1024,17179869184]" {
		t.Errorf("%s, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`[-1]`), &got); err == nil {
		t.Error("a negative number was taken")
	}
}

func TestParsePercent(t *testing.T) {
	for in, want := range map[string]Percent{"30": 30, "30%": 30, "0": 0, "100": 100} {
		if got, err := ParsePercent(in); err != nil || got != want {
			t.Errorf("ParsePercent(%q) = %v, %v", in, got, err)
		}
	}
	for in, part := range map[string]string{"-1": "outside 0 to 100", "101": "outside 0 to 100", "x": "not a whole number", "": "not a whole number"} {
		_, err := ParsePercent(in)
		wantError(t, err, part)
	}
}

func TestUUID(t *testing.T) {
	const text = "GPU-01234567-89ab-cdef-0123-456789abcdef"
	u, err := ParseUUID(text)
	if err != nil || u.String() != text || u.Short() != "01234567" || MIGUUID(u).String() != "MIG"+text[3:] {
		t.Errorf("%v %v %v %v", u, u.Short(), MIGUUID(u), err)
	}
	for _, bad := range []string{"", "GPU-", "gpu0", text[:len(text)-1], "GPU-0123456789abcdef0123456789abcdef", "GPU-0123456-789ab-cdef-0123-456789abcdef"} {
		_, err := ParseUUID(bad)
		wantError(t, err, "not a UUID")
	}
}

func TestPCIAddress(t *testing.T) {
	for in, want := range map[string]string{
		"0000:b3:00.0":     "0000:b3:00.0",
		"00000000:B3:00.0": "0000:b3:00.0",
		"b3:00.1":          "0000:b3:00.1",
		"10001:02:1f.7":    "10001:02:1f.7",
	} {
		if got, err := ParsePCIAddress(in); err != nil || got.String() != want {
			t.Errorf("ParsePCIAddress(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for in, part := range map[string]string{"": "not domain", "b3:00": "not domain", "0000:b3:00.8": "not domain", "0000:b3:20.0": "above 1f"} {
		_, err := ParsePCIAddress(in)
		wantError(t, err, part)
	}
}

func TestAffinity(t *testing.T) {
	place := func(path string, numa int) Place { return Place{ParsePCIePath(path), numa} }
	gpu := place("/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:00.0/0000:23:00.0", 0)
	for name, tc := range map[string]struct {
		other Place
		want  AffinityClass
	}{
		"itself":                  {gpu, Self},
		"same switch":             {place("/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:01.0/0000:24:00.0", 0), PIX},
		"further switch":          {place("/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:02.0/0000:25:00.0/0000:26:00.0/0000:27:00.0", 0), PXB},
		"other root port":         {place("/sys/devices/pci0000:20/0000:20:01.0/0000:30:00.0", 0), PHB},
		"other root, same node":   {place("/sys/devices/pci0000:40/0000:40:00.0/0000:41:00.0", 0), NODE},
		"other node":              {place("/sys/devices/pci0000:80/0000:80:00.0/0000:81:00.0", 1), SYS},
		"node unknown":            {place("/sys/devices/pci0000:80/0000:80:00.0/0000:81:00.0", -1), UnknownAffinity},
		"no path, same node":      {Place{NUMA: 0}, NODE},
		"Hyper-V, a prefix first": {place("/sys/devices/LNXSYSTM:00/VMBUS:01/guid/pci0101:00/0101:00:00.0", 0), NODE},
	} {
		if got := Affinity(gpu, tc.other); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if got := Affinity(tc.other, gpu); got != tc.want {
			t.Errorf("%s, the other way round: %v, want %v", name, got, tc.want)
		}
	}
}

func TestAffinityOrder(t *testing.T) {
	order := []AffinityClass{NVLinks(18), NVLinks(4), NVLinks(1), Self, PIX, PXB, PHB, NODE, SYS, UnknownAffinity}
	names := "NV18 NV4 NV1 X PIX PXB PHB NODE SYS UNKNOWN"
	var got []string
	for i, c := range order {
		got = append(got, c.String())
		if i > 0 && order[i-1] >= c {
			t.Errorf("%v does not sort before %v", order[i-1], c)
		}
		if c.PeerDMA() != (i < 6) {
			t.Errorf("%v: PeerDMA %v", c, c.PeerDMA())
		}
	}
	if s := strings.Join(got, " "); s != names {
		t.Errorf("%s; want %s", s, names)
	}
}

func TestGPUAffinity(t *testing.T) {
	gpu := func(n byte, links ...NVLink) GPU {
		return GPU{UUID: UUID{n}, PCI: PCIAddress{Bus: n}, NVLink: links}
	}
	toSwitch := NVLink{Active: true, Kind: NVLinkToSwitch}
	to := func(n byte, active bool) NVLink {
		return NVLink{Active: active, Kind: NVLinkToGPU, Peer: PCIAddress{Bus: n}}
	}
	for name, tc := range map[string]struct {
		a, b GPU
		want AffinityClass
	}{
		"bridge":          {gpu(1, to(2, true), to(2, true)), gpu(2, to(1, true), to(1, true)), NVLinks(2)},
		"one link down":   {gpu(1, to(2, true), to(2, false)), gpu(2, to(1, true)), NVLinks(1)},
		"to another GPU":  {gpu(1, to(3, true)), gpu(2), NODE},
		"through switch":  {gpu(1, toSwitch, toSwitch, toSwitch), gpu(2, toSwitch, toSwitch), NVLinks(2)},
		"only one switch": {gpu(1, toSwitch), gpu(2), NODE},
	} {
		if got := GPUAffinity(tc.a, tc.b); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestFault(t *testing.T) {
	for text, f := range map[string]Fault{
		"healthy":           {},
		"lost":              {Lost: true, Recovery: RecoveryReboot},
		"node reboot":       {Recovery: RecoveryReboot},
		"unknown action 12": {Recovery: 12},
		"row remap failed":  {RemapFailure: true, RemapPending: true},
		"row remap pending": {RemapPending: true},
	} {
		if f.String() != text || f.Healthy() != (text == "healthy") {
			t.Errorf("%+v: %s, healthy %v; want %s", f, f, f.Healthy(), text)
		}
	}
}
