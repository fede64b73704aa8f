package monitor

import (
	"slices"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/monitor/xid"
)

// sympathies are Xids that only say what another has brought about.
var sympathies = []struct {
	codes  []int
	after  func(code int) bool
	within time.Duration
	node   bool // the other may be another device's
}{
	{codes: []int{45}, after: func(code int) bool { return code != 45 }, within: 10 * time.Second},
	{codes: []int{43, 94}, after: takesContexts, within: 10 * time.Second},
	{codes: []int{43, 45}, after: func(code int) bool { return code == xid.FallenOffBus }, within: time.Minute, node: true},
}

// takesContexts reports whether what a code asks for ends all that runs on the card, by the catalogue.
func takesContexts(code int) bool {
	e, _ := xid.Lookup(code)
	return slices.Contains([]xid.Action{xid.ResetGPU, xid.RestartNode, xid.Workflow48}, e.Action)
}

// Where a report came from.
const (
	fromKmsg = "kmsg" // with a code
	fromText = "text" // the kernel's words that a card is lost
	fromNVML = "nvml"
)

const (
	sameEvent   = 10 * time.Second // two sources tell of one event within this
	rememberFor = 5 * time.Minute
	maxRecent   = 64 // a tenant can write as many as it likes
)

// reported is one Xid that was seen.
type reported struct {
	device, source string
	code           int
	at             time.Duration
	told           string // other sources that have told of the same event
}

// correlator remembers what was seen on the node lately. It is a value: see leaves the one that it was called on as it was.
type correlator struct{ recent []reported }

// see says whether a report is one more of an event that is known already, and which Xid it follows from (0: none).
func (c correlator) see(r reported) (after correlator, duplicate bool, follows int) {
	recent := slices.DeleteFunc(slices.Clone(c.recent), func(old reported) bool { return r.at-old.at > rememberFor })
	for i := len(recent) - 1; i >= 0; i-- {
		old := &recent[i]
		window := sameEvent
		if r.source == fromText || old.source == fromText {
			window = rememberFor
		}
		if old.device == r.device && old.code == r.code && old.source != r.source && !strings.Contains(old.told, r.source) && distance(old.at, r.at) <= window {
			old.told += r.source + " "
			return correlator{recent}, true, 0
		}
	}
	for _, old := range recent {
		for _, s := range sympathies {
			if slices.Contains(s.codes, r.code) && s.after(old.code) && distance(old.at, r.at) <= s.within && (s.node || old.device == r.device) {
				follows = old.code
			}
		}
	}
	recent = append(recent, r)
	return correlator{recent[max(0, len(recent)-maxRecent):]}, false, follows
}

func distance(a, b time.Duration) time.Duration {
	if a < b {
		return b - a
	}
	return a - b
}
