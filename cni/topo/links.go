package topo

import (
	"fmt"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Link is one PCIe link of a path. Best is what the weaker of its ends can do;
// a part of either that is not known is 0.
type Link struct {
	Upper, Lower node.PCIAddress // Upper is zero where the lower end is on the root complex itself
	Now, Best    node.PCIeLink   // Best by MaxGen and MaxWidth alone
}

// Slow reports a link that trained below its best: with fewer lanes, or, where
// idle is false, at a lower speed. An idle device may lower its link's speed.
func (l Link) Slow(idle bool) bool {
	return l.Now.Width != 0 && l.Now.Width < l.Best.MaxWidth || !idle && l.Now.Gen != 0 && l.Now.Gen < l.Best.MaxGen
}

func (l Link) String() string {
	return fmt.Sprintf("%s: gen%d x%d of gen%d x%d", l.Lower, l.Now.Gen, l.Now.Width, l.Best.MaxGen, l.Best.MaxWidth)
}

// Links of a path from the root down. A bridge has a link on one side only: a
// root port and a switch's downstream port below them, an upstream port above.
// So every second function of a path is the lower end of a link.
func Links(p node.PCIePath) []Link {
	var links []Link
	for i := len(p.Hops) - 1; i >= 0; i -= 2 {
		lower := p.Hops[i].Link
		l := Link{Lower: p.Chain[i], Now: lower, Best: lower}
		if i > 0 {
			upper := p.Hops[i-1].Link
			l.Upper = p.Chain[i-1]
			l.Best.MaxGen = atMost(lower.MaxGen, upper.MaxGen)
			l.Best.MaxWidth = atMost(lower.MaxWidth, upper.MaxWidth)
			l.Now.Gen = atMost(lower.Gen, upper.Gen)
			l.Now.Width = atMost(lower.Width, upper.Width)
		}
		if l.Now != (node.PCIeLink{}) {
			links = append([]Link{l}, links...)
		}
	}
	return links
}

// atMost is the smaller one; 0 is not known.
func atMost(a, b int) int {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// Rate is what a path carries each way in a second: that of its slowest link, 0
// where no link is known.
func Rate(p node.PCIePath) (slowest node.Bytes) {
	for _, l := range Links(p) {
		if r := l.Now.Rate(); r != 0 && (slowest == 0 || r < slowest) {
			slowest = r
		}
	}
	return slowest
}

// Redirects is the bridges between two devices of one domain that send peer
// traffic up to the root complex: near as the two are, it goes by the CPU.
func Redirects(a, b node.PCIePath) (at []node.PCIAddress) {
	if a.Root != b.Root {
		return nil
	}
	common := 0
	for common < len(a.Chain)-1 && common < len(b.Chain)-1 && a.Chain[common] == b.Chain[common] {
		common++
	}
	if common == 0 {
		return nil
	}
	for _, p := range []node.PCIePath{a, b} {
		for i := common; i < len(p.Hops)-1; i++ { // the ports where the two ways part and all below, not the devices
			if p.Hops[i].ACS == node.ACSRedirect {
				at = append(at, p.Chain[i])
			}
		}
	}
	return at
}
