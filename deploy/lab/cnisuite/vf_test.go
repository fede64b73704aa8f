package cnisuite

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// vf is a VF that a test has for itself.
type vf struct {
	device string // PCI address
	pf     string // link
	index  int
	before state
}

// state is all that has to be as it was.
type state struct {
	Name, MAC, Alias string
	MTU              int
	Admin            string // what the PF says of the VF
}

const pciDevices = "/sys/bus/pci/devices"

// fresh makes all VFs anew and forgets the plugin's records, as the node's start does: no plugin has to do with what another has left.
func (p *plugin) fresh(t *testing.T) {
	t.Helper()
	for _, pattern := range p.state {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if err := os.RemoveAll(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	data, err := os.ReadFile("/lab/machine.json")
	if err != nil {
		t.Fatal(err)
	}
	var machine struct {
		Devices []struct {
			Address string
			VFs     []string
		}
	}
	if err := json.Unmarshal(data, &machine); err != nil {
		t.Fatal(err)
	}
	free = nil
	for _, d := range machine.Devices {
		if len(d.VFs) == 0 {
			continue
		}
		for _, n := range []int{0, len(d.VFs)} {
			if err := os.WriteFile(filepath.Join(pciDevices, d.Address, "sriov_numvfs"), []byte(strconv.Itoa(n)), 0); err != nil {
				t.Fatal(err)
			}
		}
		pf := link(d.Address)
		run(t, "ip", "link", "set", pf, "up")
		for i, device := range d.VFs {
			free = append(free, vf{device: device, pf: pf, index: i})
		}
		// igb takes a rate only while its link is up, which it is some time after it was told to be.
		file := filepath.Join("/sys/class/net", pf, "operstate")
		until(t, pf+" up", func() bool {
			state, err := os.ReadFile(file)
			return err == nil && strings.TrimSpace(string(state)) == "up"
		})
	}
}

// free are the VFs that no test has had yet. Each test has its own: what a plugin leaves dirty is of that test alone.
var free []vf

func newVF(t *testing.T, p *plugin) vf {
	t.Helper()
	if len(free) == 0 {
		p.fresh(t)
	}
	v := free[0]
	free = free[1:]
	before, there := v.look(t)
	if !there {
		t.Fatalf("%s has no link, and no test has had it", v.device)
	}
	v.before = before
	t.Logf("%s before: %+v", v.device, before)
	return v
}

// link is the name of a function's link in this namespace, or nothing.
func link(address string) string {
	entries, err := os.ReadDir(filepath.Join(pciDevices, address, "net"))
	if err != nil || len(entries) != 1 {
		return ""
	}
	return entries[0].Name()
}

// look tells how the VF is; there is whether its link is in the host's namespace.
func (v vf) look(t *testing.T) (s state, there bool) {
	t.Helper()
	var pf []struct {
		VFs []json.RawMessage `json:"vfinfo_list"`
	}
	if err := json.Unmarshal(run(t, "ip", "-j", "link", "show", v.pf), &pf); err != nil || len(pf) != 1 || len(pf[0].VFs) <= v.index {
		t.Fatalf("what %s says of its VFs: %v, %v", v.pf, pf, err)
	}
	s.Admin = string(pf[0].VFs[v.index])
	if s.Name = link(v.device); s.Name == "" {
		return s, false
	}
	var own []struct {
		MTU   int    `json:"mtu"`
		MAC   string `json:"address"`
		Alias string `json:"ifalias"`
	}
	if err := json.Unmarshal(run(t, "ip", "-j", "link", "show", s.Name), &own); err != nil || len(own) != 1 {
		t.Fatalf("%s: %v, %v", s.Name, own, err)
	}
	s.MTU, s.MAC, s.Alias = own[0].MTU, own[0].MAC, own[0].Alias
	// A PF that has set no address tells that of the VF's own, or zeros until the VF has said it.
	s.Admin = strings.NewReplacer(`"address":"`+s.MAC+`"`, `"address":"own"`, `"address":"00:00:00:00:00:00"`, `"address":"own"`).Replace(s.Admin)
	return s, true
}

// clean fails the test unless the VF is as it was.
func (v vf) clean(t *testing.T, when string) {
	t.Helper()
	now, there := v.look(t)
	if !there {
		t.Errorf("%s: the VF's link is not in the host's namespace; its PF says %s", when, now.Admin)
	} else if now != v.before {
		t.Errorf("%s: the VF is\n  %+v, it was\n  %+v", when, now, v.before)
	}
}

// home waits until the kernel has brought the link back, which it does some time after a namespace's end.
func (v vf) home(t *testing.T) {
	t.Helper()
	until(t, v.device+" back after its namespace's end", func() bool { return link(v.device) != "" })
}

// until waits for what the kernel does in its own time, and tells of nothing that could be waited on.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// attributes are what igb takes.
func attributes() map[string]any {
	return map[string]any{"vlan": 100, "vlanQoS": 3, "spoofchk": "off", "trust": "on", "max_tx_rate": 100}
}
