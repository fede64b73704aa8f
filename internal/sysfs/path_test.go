package sysfs

import (
	"encoding/binary"
	"testing"

	"github.com/kerf-gpu/kerf/internal/node"
)

// config is a configuration space with extended capabilities: id, offset, next, and the control word of ACS.
func config(caps ...[4]int) []byte {
	b := make([]byte, configSpace)
	for _, c := range caps {
		binary.LittleEndian.PutUint32(b[c[1]:], uint32(c[0]|1<<16|c[2]<<20))
		binary.LittleEndian.PutUint16(b[c[1]+acsControl:], uint16(c[3]))
	}
	return b
}

func TestACS(t *testing.T) {
	silent := make([]byte, configSpace)
	for i := range silent {
		silent[i] = 0xff
	}
	for name, tt := range map[string]struct {
		config []byte
		want   node.ACS
	}{
		"requests redirected":           {config([4]int{capACS, 0x100, 0, acsRequests}), node.ACSRedirect},
		"replies redirected":            {config([4]int{1, 0x100, 0x148, 0}, [4]int{capACS, 0x148, 0, acsReplies}), node.ACSRedirect},
		"source validation alone":       {config([4]int{capACS, 0x100, 0, 1}), node.ACSDirect},
		"no such capability":            {config([4]int{1, 0x100, 0, acsRequests}), node.ACSDirect},
		"no extended capabilities":      {config(), node.ACSDirect},
		"as others than root see it":    {config([4]int{capACS, 0x100, 0, acsRequests})[:64], node.ACSUnknown},
		"the device does not answer":    {silent, node.ACSUnknown},
		"the list loops":                {config([4]int{1, 0x100, 0x140, 0}, [4]int{2, 0x140, 0x100, 0}), node.ACSUnknown},
		"the list leaves the space":     {config([4]int{1, 0x100, 0x40, 0}), node.ACSUnknown},
		"cut off at the end":            {config([4]int{1, 0x100, 0xffc, 0})[:configSpace], node.ACSDirect},
		"nothing at all":                {nil, node.ACSUnknown},
		"a loop of one":                 {config([4]int{1, 0x100, 0x100, 0}), node.ACSUnknown},
		"first of two, redirect second": {config([4]int{capACS, 0x100, 0x140, 0}, [4]int{capACS, 0x140, 0, acsRequests}), node.ACSDirect},
	} {
		if got := parseACS(tt.config); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func FuzzACS(f *testing.F) {
	f.Add(config([4]int{1, 0x100, 0x148, 0}, [4]int{capACS, 0x148, 0, acsReplies}))
	f.Add(config([4]int{1, 0x100, 0xffc, 0}, [4]int{capACS, 0xff4, 0, 0}))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := parseACS(b); len(b) < configSpace && got != node.ACSUnknown {
			t.Errorf("%d bytes tell %q", len(b), got)
		}
	})
}

func TestVPD(t *testing.T) {
	whole := []byte("\x82\x03\x00nic\x90\x0a\x00PN\x01aV3\x03uid\x91\x04\x00RW\x01w\x78")
	if got := parseVPD(whole); len(got) != 2 || got["PN"] != "a" || got["V3"] != "uid" {
		t.Errorf("%q", got)
	}
	for cut := range whole {
		got := parseVPD(whole[:cut])
		if v := got["V3"]; v != "" && v != "uid" {
			t.Errorf("cut at %d: V3 %q", cut, v)
		}
	}
	if got := parseVPD([]byte("\x90\x05\x00V3\x09ui\x78")); len(got) != 0 {
		t.Errorf("a field that is longer than its resource: %q", got)
	}
}

func FuzzVPD(f *testing.F) {
	f.Add([]byte("\x82\x03\x00nic\x90\x0a\x00PN\x01aV3\x03uid\x91\x04\x00RW\x01w\x78"))
	f.Add([]byte{0x90, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		for key, value := range parseVPD(b) {
			if len(key) != 2 || len(value) > 255 {
				t.Errorf("%q=%q", key, value)
			}
		}
	})
}
