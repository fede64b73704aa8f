package cnisuite

import (
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const mac = "02:00:00:00:00:42"

func with(config map[string]any, more map[string]any) map[string]any {
	config = maps.Clone(config)
	maps.Copy(config, more)
	return config
}

// TestLabB0AddAndDel: what everything else builds on.
func TestLabB0AddAndDel(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	name, netns := pod(t)
	add := p.must(t, call{"ADD", "b0", netns, v.device, attributes()})
	run(t, "ip", "-n", name, "link", "show", "net1")
	if now, _ := v.look(t); os.Getenv("KERF_CNI_ATTRIBUTES") != "" && !strings.Contains(now.Admin, `"vlan":100`) {
		t.Errorf("vlan 100 was asked for, the PF says %s", now.Admin)
	}
	p.must(t, call{"DEL", "b0", netns, v.device, with(attributes(), prev(add))})
	v.clean(t, "after DEL")
}

// TestLabB1AttributeRefusedRollsBack: the driver refuses the last of several attributes; the others must not stay.
func TestLabB1AttributeRefusedRollsBack(t *testing.T) {
	for name, refused := range map[string]map[string]any{
		"link_state": {"link_state": "enable"}, "min_tx_rate": {"min_tx_rate": 50}, "vlanProto": {"vlanProto": "802.1ad"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t)
			v := newVF(t, p)
			_, netns := pod(t)
			config := with(with(attributes(), map[string]any{"mac": mac}), refused)
			a := p.call(t, call{"ADD", "b1", netns, v.device, config})
			if a.code == 0 {
				t.Errorf("igb cannot do %v, and ADD says that it is done", refused)
			} else if !strings.Contains(a.msg, name) {
				t.Errorf("the error does not name %s: %s", name, a.msg)
			}
			v.clean(t, "after the ADD that failed")
			p.must(t, call{"DEL", "b1", netns, v.device, config})
			v.clean(t, "after DEL")
		})
	}
}

// TestLabB2DelWithoutNetns: a runtime that has lost the namespace calls DEL with an empty CNI_NETNS.
func TestLabB2DelWithoutNetns(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	_, netns := pod(t)
	add := p.must(t, call{"ADD", "b2", netns, v.device, attributes()})
	p.must(t, call{"DEL", "b2", "", v.device, with(attributes(), prev(add))})
	v.clean(t, "after DEL without CNI_NETNS")
}

// TestLabB3NetnsGoneBeforeDel: the kernel brings the link back under its name in the pod, which must not become its own.
func TestLabB3NetnsGoneBeforeDel(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	name, netns := pod(t)
	add := p.must(t, call{"ADD", "b3", netns, v.device, attributes()})
	run(t, "ip", "netns", "del", name)
	v.home(t)
	p.must(t, call{"DEL", "b3", netns, v.device, with(attributes(), prev(add))})
	v.clean(t, "after DEL")
	_, netns = pod(t)
	add = p.must(t, call{"ADD", "b3next", netns, v.device, nil})
	p.must(t, call{"DEL", "b3next", netns, v.device, prev(add)})
	v.clean(t, "after the next pod")
}

// TestLabB4KilledDuringIPAM: kill -9 while the plugin waits for addresses.
func TestLabB4KilledDuringIPAM(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	_, netns := pod(t)
	gate := filepath.Join(p.bin, "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	config := with(attributes(), map[string]any{"ipam": map[string]any{"type": ipamName}})
	cmd := p.command(call{"ADD", "b4", netns, v.device, config})
	if came := untilGate(t, cmd, gate); came != atGate {
		t.Fatalf("the plugin ended before it called the IPAM plugin")
	}
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	p.must(t, call{"DEL", "b4", netns, v.device, config})
	v.clean(t, "after kill -9 and DEL")
	_, netns = pod(t)
	add := p.must(t, call{"ADD", "b4next", netns, v.device, config})
	p.must(t, call{"DEL", "b4next", netns, v.device, with(config, prev(add))})
	v.clean(t, "after the next pod")
}

// untilGate starts a plugin and kills it and its IPAM plugin when that has come to the gate.
func untilGate(t *testing.T, cmd *exec.Cmd, gate string) string {
	t.Helper()
	fifo, err := os.OpenFile(gate, os.O_RDWR, 0) // of both ends: then neither opening nor a plugin that ends early blocks
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		_, _ = fifo.WriteString("gone")
		close(ended)
	}()
	came := make([]byte, len(atGate))
	if _, err := io.ReadFull(fifo, came); err != nil {
		t.Fatal(err)
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	<-ended
	return string(came)
}

// TestLabB5TruncatedState: the plugin's records are there and empty, as after a full disk or a reset.
func TestLabB5TruncatedState(t *testing.T) { truncated(t, attributes()) }

// TestLabB5TruncatedStateWithMac: the address that the VF had before is in no record any more.
func TestLabB5TruncatedStateWithMac(t *testing.T) { truncated(t, map[string]any{"mac": mac}) }

func truncated(t *testing.T, config map[string]any) {
	p := newPlugin(t)
	v := newVF(t, p)
	_, netns := pod(t)
	add := p.must(t, call{"ADD", "b5", netns, v.device, config})
	found := 0
	for _, pattern := range p.state {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || info.IsDir() {
				continue
			}
			if err := os.Truncate(file, 0); err != nil {
				t.Fatal(err)
			}
			found++
		}
	}
	if found == 0 {
		t.Fatalf("no records match %q", p.state)
	}
	p.must(t, call{"DEL", "b5", netns, v.device, with(config, prev(add))})
	v.clean(t, "after DEL with empty records")
}

// TestLabB6Status: STATUS of a plugin that cannot work is code 50 or 51.
func TestLabB6Status(t *testing.T) {
	p := newPlugin(t)
	if a := p.call(t, call{"STATUS", "", "", "0000:ff:1f.7", nil}); a.code == 0 || a.cni != 50 && a.cni != 51 {
		t.Errorf("STATUS with a device that is not there: %s; want an error of code 50 or 51", a)
	}
}

// TestLabB6Check: CHECK of an attachment that is gone fails.
func TestLabB6Check(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	_, netns := pod(t)
	add := p.must(t, call{"ADD", "b6", netns, v.device, attributes()})
	p.must(t, call{"CHECK", "b6", netns, v.device, with(attributes(), prev(add))})
	p.must(t, call{"DEL", "b6", netns, v.device, with(attributes(), prev(add))})
	if a := p.call(t, call{"CHECK", "b6", netns, v.device, with(attributes(), prev(add))}); a.code == 0 {
		t.Error("CHECK after DEL says that all is as it was made")
	}
}

// TestLabB6GC: GC with an empty list brings back what a runtime has forgotten.
func TestLabB6GC(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	_, netns := pod(t)
	p.must(t, call{"ADD", "b6gc", netns, v.device, attributes()})
	p.must(t, call{"GC", "", "", v.device, map[string]any{"cni.dev/valid-attachments": []any{}}})
	v.clean(t, "after GC")
}

// TestLabB7DelTwice: DEL is idempotent.
func TestLabB7DelTwice(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	name, netns := pod(t)
	add := p.must(t, call{"ADD", "b7", netns, v.device, attributes()})
	p.must(t, call{"DEL", "b7", netns, v.device, with(attributes(), prev(add))})
	p.must(t, call{"DEL", "b7", netns, v.device, with(attributes(), prev(add))})
	run(t, "ip", "netns", "del", name)
	p.must(t, call{"DEL", "b7", netns, v.device, with(attributes(), prev(add))})
	v.clean(t, "after DEL")
}

// TestLabB8FailedDelCanBeRetried: another link has the VF's name when it comes back.
func TestLabB8FailedDelCanBeRetried(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	_, netns := pod(t)
	add := p.must(t, call{"ADD", "b8", netns, v.device, attributes()})
	run(t, "ip", "link", "add", v.before.Name, "type", "dummy")
	first := p.call(t, call{"DEL", "b8", netns, v.device, with(attributes(), prev(add))})
	run(t, "ip", "link", "del", v.before.Name)
	if first.code == 0 && link(v.device) == "" {
		t.Error("DEL says that it is done, and the VF is not back")
	}
	p.must(t, call{"DEL", "b8", netns, v.device, with(attributes(), prev(add))})
	now, there := v.look(t)
	if !there || now.Admin != v.before.Admin {
		t.Errorf("after the second DEL the VF is %+v (back: %v), it was %+v", now, there, v.before)
	}
	_, netns = pod(t)
	add = p.must(t, call{"ADD", "b8next", netns, v.device, nil})
	p.must(t, call{"DEL", "b8next", netns, v.device, prev(add)})
}

// TestLabB9MacOnIgb: igb's VF refuses the address that its PF has set for it; it is set all the same.
func TestLabB9MacOnIgb(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	name, netns := pod(t)
	config := map[string]any{"mac": mac}
	add := p.must(t, call{"ADD", "b9", netns, v.device, config})
	if out := string(run(t, "ip", "-n", name, "link", "show", "net1")); !strings.Contains(out, mac) {
		t.Errorf("net1 has not the address %s: %s", mac, out)
	}
	p.must(t, call{"DEL", "b9", netns, v.device, with(config, prev(add))})
	v.clean(t, "after DEL")
}

// TestLabDelOfUnknown: DEL of a container that never was leaves the device to the one that has it.
func TestLabDelOfUnknown(t *testing.T) {
	p := newPlugin(t)
	v := newVF(t, p)
	name, netns := pod(t)
	_, other := pod(t)
	add := p.must(t, call{"ADD", "mine", netns, v.device, attributes()})
	p.must(t, call{"DEL", "stranger", other, v.device, attributes()})
	run(t, "ip", "-n", name, "link", "show", "net1")
	p.must(t, call{"DEL", "mine", netns, v.device, with(attributes(), prev(add))})
	v.clean(t, "after DEL")
}
