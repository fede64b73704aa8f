package sim

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kerf-gpu/kerf/internal/node"
)

// A simulated node has a kernel log of its own: a file of records in the form of /dev/kmsg, one a line, and a boot id that goes with it.
const (
	kmsgFile   = "dev/kmsg"
	bootIDFile = "proc/sys/kernel/random/boot_id"
)

func bootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it does not fail, by its documentation
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// logKernel appends a line to the node's kernel log. Several processes may: the number of a record is that of its line.
func (n *Node) logKernel(format string, a ...any) error {
	f, err := os.OpenFile(filepath.Join(n.Root, kmsgFile), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write simulated kernel log: %w", err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("write simulated kernel log: %w", err)
	}
	before, err := os.ReadFile(f.Name())
	if err != nil {
		return fmt.Errorf("write simulated kernel log: %w", err)
	}
	_, err = fmt.Fprintf(f, "4,%d,%d,-;%s\n", 1+bytes.Count(before, []byte("\n")), boottime()/1000, fmt.Sprintf(format, a...))
	return errors.Join(err, f.Sync())
}

// logXid writes what the driver writes of an Xid.
func (n *Node) logXid(g *simGpu, in Injection) error {
	process := "pid='<unknown>', name=<unknown>"
	if in.PID != 0 {
		process = fmt.Sprintf("pid=%d, name=simulated", in.PID)
	}
	text := "injected (simulated)"
	if in.Value == xidFallenOff {
		text = "GPU has fallen off the bus. (simulated)"
	}
	return n.logKernel("NVRM: Xid (PCI:%04x:%02x:%02x): %d, %s, %s", g.Facts.PciDomain, g.Facts.PciBus, g.Facts.PciDevice, in.Value, process, text)
}

// logRecovery writes what the driver writes, from R565 on, when it asks for another recovery action.
func (n *Node) logRecovery(g *simGpu, before, after uint64) error {
	return n.logKernel("NVRM: Xid (PCI:%04x:%02x:%02x): 154, GPU recovery action changed from 0x%x (%s) to 0x%x (%s)", g.Facts.PciDomain, g.Facts.PciBus,
		g.Facts.PciDevice, before, node.RecoveryAction(before), after, node.RecoveryAction(after))
}
