package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/internal/node"
)

// The rows of footprint: what kerfd takes with all of its parts, on a node of 8 GPUs.
var (
	idleRow  = Row{"KF-1200", "CPU of kerfd while nothing happens, of one core", "%", Absolute, bound(0.5), nil}
	rssRow   = Row{"KF-1201", "memory of kerfd (RSS) after all that", "B", Absolute, bound(96 << 20), nil}
	stormRow = Row{"KF-1202", "CPU of kerfd under 10,000 lines a second of the kernel log, one in 1,000 an Xid, of one core; baseline: idle", "%", Absolute, bound(5), nil}
	lossRow  = Row{"KF-1203", "Xids in those lines that were neither counted nor told as lost", "Xids", Absolute, bound(0), nil}
)

func footprintRows() []Row { return []Row{idleRow, rssRow, stormRow, lossRow} }

type footprintPlan struct {
	windows int
	window  time.Duration
}

func runFootprint(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	if !on.Simulated {
		return nil, "", errors.New("the kernel log of this machine is not for writing to; run with --simulate h200x8")
	}
	plan := footprintPlan{5, 10 * time.Second}
	if options.Quick {
		plan = footprintPlan{2, time.Second}
	}
	h, err := on.Health(ctx)
	if err != nil {
		return nil, "", err
	}
	if len(h.Devices) == 0 || h.Devices[0].Index < 0 {
		return nil, "", errors.New("the node has no GPU")
	}
	var idle, storm []float64
	written := 0
	for i := range plan.windows {
		options.progress("footprint: window %d of %d", i+1, plan.windows)
		percent, err := on.CPU(ctx, plan.window)
		if err != nil {
			return nil, "", err
		}
		idle = append(idle, percent)
		percent, xids, err := underLines(ctx, on, h.Devices[0].PCI, plan.window)
		if err != nil {
			return nil, "", err
		}
		storm, written = append(storm, percent), written+xids
	}
	silent, err := silentlyLost(ctx, on, written)
	if err != nil {
		return nil, "", err
	}
	rss, err := residentBytes(on.Pid())
	if err != nil {
		return nil, "", err
	}
	results, err := resultsOf([]taken{{idleRow, idle, nil}, {stormRow, storm, idle}})
	return append(results, rssRow.result(rss, rss, 1), lossRow.result(silent, silent, written)), h.Devices[0].Name, err
}

// The storm: so many lines each time, so often.
const (
	lineEvery   = 10 * time.Millisecond
	linesAtOnce = 100
	xidEvery    = 1000 // lines
	benchXid    = 31   // a program's own fault: it holds no card
)

// underLines is what kerfd takes while lines come, and how many Xids were among them.
func underLines(ctx context.Context, on *rig.Rig, gpu node.PCIAddress, during time.Duration) (percent float64, xids int, err error) {
	log, err := os.OpenFile(filepath.Join(on.Root(), "dev/kmsg"), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("write the simulated kernel log: %w", err)
	}
	defer log.Close()
	before, err := os.ReadFile(log.Name())
	if err != nil {
		return 0, 0, fmt.Errorf("read the simulated kernel log: %w", err)
	}
	seq := bytes.Count(before, []byte("\n"))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wrote := make(chan error, 1)
	go func() {
		tick := time.NewTicker(lineEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				wrote <- nil
				return
			case <-tick.C:
			}
			var lines bytes.Buffer
			for range linesAtOnce {
				seq++
				text := "nvme nvme0: I/O 12 QID 3 timeout, completion polled (simulated)"
				if seq%xidEvery == 0 {
					xids++
					text = fmt.Sprintf("NVRM: Xid (PCI:%s): %d, pid='<unknown>', name=<unknown>, injected (simulated)", strings.TrimSuffix(gpu.String(), ".0"), benchXid)
				}
				fmt.Fprintf(&lines, "4,%d,%d,-;%s\n", seq, time.Now().UnixMicro(), text)
			}
			if _, err := log.Write(lines.Bytes()); err != nil {
				wrote <- err
				return
			}
		}
	}()
	percent, err = on.CPU(ctx, during)
	cancel()
	return percent, xids, errors.Join(err, <-wrote)
}

// silentlyLost is how many of the Xids kerfd has neither counted nor missed with a word.
func silentlyLost(ctx context.Context, on *rig.Rig, written int) (float64, error) {
	const patience = 10 * time.Second
	for late := time.Now().Add(patience); ; {
		h, err := on.Health(ctx)
		if err != nil {
			return 0, err
		}
		counted := 0
		for _, d := range h.Devices {
			counted += d.Xids[benchXid]
		}
		lost := uint64(0)
		for _, s := range h.Sources {
			lost += s.Lost
		}
		if counted >= written || lost > 0 || time.Now().After(late) {
			return max(0, float64(written-counted)-float64(lost)), nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// residentBytes is a process's resident memory.
func residentBytes(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/PID/statm: '%s' has no second field", strings.TrimSpace(string(text)))
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/statm: %w", err)
	}
	return float64(pages) * float64(os.Getpagesize()), nil
}
