package monitor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Condition is what facts have established about a device.
type Condition struct {
	Key      string        `json:"key"`
	Level    Level         `json:"level"`
	Means    string        `json:"means"`
	Evidence string        `json:"evidence"`
	Since    time.Time     `json:"since"`
	Last     time.Time     `json:"last"`
	Count    int           `json:"count"`
	Sticky   bool          `json:"sticky,omitempty"`
	Floor    bool          `json:"floor,omitempty"`
	Event    bool          `json:"event,omitempty"` // an Xid or a recovery action, rather than a signal's samples
	Seen     time.Duration `json:"seen"`            // when it was last seen, since boot
	// Earlier: of the boot before this one. It holds until the new boot has shown that it is gone.
	Earlier bool   `json:"earlier,omitempty"`
	Clears  string `json:"clears,omitempty"` // in words; in a verdict
}

// streak is samples of one signal in a row.
type streak struct {
	Bad, Good int
	Value     string
	From      time.Duration // of the first of these
}

// seen is an application's fault, kept to tell a pattern.
type seen struct {
	Code  int           `json:"code"`
	At    time.Duration `json:"at"`
	Who   string        `json:"who"`
	Place string        `json:"place,omitempty"`
}

// maxHistory bounds it: a tenant that crashes in a loop writes many.
const maxHistory = 128

// State is what is known of one device. It is a value: Step leaves the one that it was given as it was. What has JSON names outlives
// a restart of kerfd; the rest is read anew.
type State struct {
	Conditions map[string]Condition `json:"conditions,omitempty"`
	Lifetime   map[string]int       `json:"lifetime,omitempty"` // conditions of level reset and up over the card's life, by key
	Xids       map[int]int          `json:"xids,omitempty"`     // reports over the card's life, by code
	Released   map[string]string    `json:"released,omitempty"` // signals that somebody declared well as they were, by key; the value then
	History    []seen               `json:"history,omitempty"`  // of this boot
	Seq        uint64               `json:"seq,omitempty"`      // of the last record of the kernel log that was taken in; by the boot
	MostLinks  int                  `json:"mostLinks,omitempty"`
	Fresh      time.Duration        `json:"fresh,omitempty"` // when the driver was loaded, or the card reset, since boot

	streaks  map[string]streak
	sampled  bool          // answered since kerfd started
	silent   string        // why the last reading was not answered; empty: it was
	replayed bool          // the log of this boot has been read
	at       time.Duration // of the last fact
}

func (s State) clone() State {
	s.Conditions, s.Lifetime, s.Xids, s.Released, s.streaks = maps.Clone(s.Conditions), maps.Clone(s.Lifetime), maps.Clone(s.Xids),
		maps.Clone(s.Released), maps.Clone(s.streaks)
	s.History = slices.Clone(s.History)
	if s.Conditions == nil {
		s.Conditions = make(map[string]Condition)
	}
	if s.Lifetime == nil {
		s.Lifetime = make(map[string]int)
	}
	if s.Xids == nil {
		s.Xids = make(map[int]int)
	}
	if s.Released == nil {
		s.Released = make(map[string]string)
	}
	if s.streaks == nil {
		s.streaks = make(map[string]streak)
	}
	return s
}

// Resume is a state as it was written, taken up by another kerfd. sameBoot says whether the machine has run on since.
func Resume(s State, sameBoot bool) State {
	s = s.clone()
	s.streaks, s.sampled, s.silent, s.replayed = make(map[string]streak), false, "", false
	if sameBoot {
		return s
	}
	s.History, s.Fresh, s.at, s.Seq = nil, 0, 0, 0
	for key, c := range s.Conditions {
		c.Earlier, c.Seen = true, 0
		s.Conditions[key] = c
	}
	return s
}

// Mode is what may be done about a verdict.
type Mode string

// The modes.
const (
	ModeObserve Mode = "observe" // say it
	ModeHold    Mode = "hold"    // keep new work away
	ModeEvict   Mode = "evict"   // ask for what runs to be moved
)

// Modes is all of them.
var Modes = []Mode{ModeObserve, ModeHold, ModeEvict}

// Effect is that of a taint, in Kubernetes' words.
type Effect string

// The effects.
const (
	EffectNone       Effect = "None"
	EffectNoSchedule Effect = "NoSchedule"
)

// Taint is what a scheduler is told of a device. Who evicts is never this node: it asks, by TaintDrain.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Effect Effect `json:"effect"`
}

// Keys of taints.
const (
	taintDomain      = "kerf.dev/"
	TaintXid         = taintDomain + "xid"
	TaintLost        = taintDomain + "gpu-lost"
	TaintUnmonitored = taintDomain + "unmonitored"
	TaintDrain       = taintDomain + "drain" // what runs is to be moved, so that what the value says can be done
)

// Verdict is what a device's state comes to.
type Verdict struct {
	Level      Level       `json:"level"`
	Health     Health      `json:"health"`
	Reason     string      `json:"reason,omitempty"`
	Clears     string      `json:"clears,omitempty"` // what ends it
	Since      time.Time   `json:"since,omitzero"`
	Conditions []Condition `json:"conditions,omitempty"` // the worst first
	Taints     []Taint     `json:"taints,omitempty"`
	// Refuse is why nothing new may be granted; empty: it may.
	Refuse string `json:"refuse,omitempty"`
}

// Verdict judges a state.
func (s State) Verdict(p Profile, mode Mode) (v Verdict) {
	v.Conditions = slices.SortedFunc(maps.Values(s.Conditions), func(a, b Condition) int {
		if a.Level != b.Level {
			return int(b.Level - a.Level)
		}
		return a.Since.Compare(b.Since)
	})
	for i, c := range v.Conditions {
		v.Conditions[i].Clears = s.clears(c, p)
	}
	v.Health = HealthGood
	if len(v.Conditions) > 0 {
		worst := v.Conditions[0]
		v.Level, v.Since = worst.Level, worst.Since
		v.Reason = worst.Means + " (" + worst.Evidence + ")"
		v.Clears = worst.Clears
	}
	switch {
	case v.Level > Hold: // a hold for a row remap is no sickness of what runs
		v.Health = HealthBad
	case s.silent != "":
		v.Health, v.Reason, v.Clears = HealthUnknown, s.silent, "the next reading that is answered"
	case !s.sampled:
		v.Health, v.Reason, v.Clears = HealthUnknown, "the device has not been read yet", "the first reading"
	}
	v.Taints = s.taints(v, mode)
	for _, c := range v.Conditions {
		if c.Level >= Hold && (c.Floor || mode != ModeObserve) {
			v.Refuse = c.Means + " (" + c.Evidence + ")"
			break
		}
	}
	return v
}

func (s State) taints(v Verdict, mode Mode) (taints []Taint) {
	add := func(t Taint) {
		if !slices.ContainsFunc(taints, func(have Taint) bool { return have.Key == t.Key }) { // the worst of a key comes first
			taints = append(taints, t)
		}
	}
	for _, c := range v.Conditions {
		if c.Level < Degraded {
			continue
		}
		effect := EffectNone
		if c.Level >= Hold && mode != ModeObserve {
			effect = EffectNoSchedule
		}
		key, value := taintOf(c)
		add(Taint{key, value, effect})
	}
	if mode == ModeEvict && v.Level.drains() {
		add(Taint{TaintDrain, v.Level.String(), EffectNone})
	}
	if s.silent != "" {
		add(Taint{TaintUnmonitored, "no-answer", EffectNone})
	}
	slices.SortFunc(taints, func(a, b Taint) int { return cmp.Compare(a.Key, b.Key) })
	return taints
}

// clears says what ends a condition.
func (s State) clears(c Condition, p Profile) string {
	release := "kerf release GPU"
	switch {
	case c.Sticky:
		return "another card in its place, or " + release
	case c.Earlier:
		return fmt.Sprintf("the kernel log of this boot without it, and %d good readings", p.Clear)
	case c.Event && hostMeans[HostKind(c.Key)] != "":
		return s.hostClears(c, p)
	case c.Event:
		return fmt.Sprintf("a reset (or a reboot) and then %d good readings over %s, in which the driver asks for nothing; or %s", p.Clear, p.damp(s.Lifetime[c.Key]), release)
	}
	return fmt.Sprintf("%d good readings in a row, over %s; or %s", p.Clear, p.damp(s.Lifetime[c.Key]), release)
}
