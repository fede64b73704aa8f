package main

import (
	"context"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/vgpu/mps"
)

// checkMPS looks for what tier mps needs. To be without it is no fault: the other tiers do not.
func checkMPS(ctx context.Context, p *patient) finding {
	if f, missing := p.needsDaemon(); missing {
		return f
	}
	if len(p.node.GPUs) == 0 {
		return found(statusSkip, "", "no GPU on this node")
	}
	program, err := mps.Find(p.node.Root)
	if err != nil {
		return found(statusInfo, "", "no shares of tier mps here: %v", err)
	}
	state, err := control.Dial(p.socket).State(ctx)
	if err != nil {
		return found(statusUnknown, "", "%v", err)
	}
	daemons := 0
	for _, g := range state.GPUs {
		switch {
		case g.MPS != nil && g.MPS.Trouble != "":
			return found(statusWarn, "kerfd tries again; its log, and the daemon's in kerfd's run directory under mps/, say more", "GPU %d: %s", g.Index, g.MPS.Trouble)
		case g.MPS != nil:
			daemons++
		}
	}
	return pass("%s serves tier mps, on %d GPUs now%s", program, daemons, simulatedMark(p.node.Simulated))
}
