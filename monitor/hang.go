package monitor

import (
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

const (
	hangAfter = time.Minute      // that a process waits for a card without launching anything
	hangFresh = 30 * time.Second // after which what was seen of waiting processes says nothing any more
)

// waits is the longest that a process has waited for a card without launching anything, as its calls tell.
type waits struct {
	waited time.Duration
	at     time.Duration // since boot; 0: nobody looks
}

// hang is whether work on a card does not move. It takes two signs that know nothing of each other: the process waits, by its own calls,
// and the card has nothing to do, by its own word. A process that waits for a busy card only has much to do. ok is false where one of
// the two was not looked at: that is no evidence, of either kind. However certain, the signal's level is Suspect: it moves nothing.
func hang(w waits, v node.Vitals, now time.Duration) (r Reading, ok bool) {
	if w.at == 0 || now-w.at > hangFresh || v.Lost {
		return r, false
	}
	r = Reading{Signal: SignalHang, Bad: w.waited >= hangAfter && v.Utilization == 0}
	if r.Bad {
		r.Value = fmt.Sprintf("a process waits for longer than %s, and the card is idle", hangAfter)
	}
	return r, true
}

// Waiting takes in how long a process has waited for a GPU without launching anything; 0: none does.
func (m *Monitor) Waiting(gpu node.UUID, waited time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.devices[gpu.String()]; w != nil {
		w.waits = waits{waited, m.config.Now().Boot}
	}
}
