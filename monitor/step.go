package monitor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// Notice is something that happened which a person, or a pod's owner, is told.
type Notice struct {
	Kind   NoticeKind
	Code   int // of an Xid
	Level  Level
	PID    int
	Tenant string // whose it is; empty: the device's
	Text   string
}

// NoticeKind is what it is about.
type NoticeKind string

// The kinds.
const (
	NoticeRaised   NoticeKind = "raised"   // a condition was established, or grew worse
	NoticeCleared  NoticeKind = "cleared"  // one went
	NoticeTenant   NoticeKind = "tenant"   // a tenant's own fault
	NoticeFollows  NoticeKind = "follows"  // an Xid that another explains
	NoticeNoted    NoticeKind = "noted"    // an Xid that asks for nothing
	NoticeUnknown  NoticeKind = "unknown"  // an Xid that the catalogue does not have
	NoticeOOM      NoticeKind = "oom"      // a tenant's process was killed for lack of memory
	NoticeCrash    NoticeKind = "crash"    // one crashed
	NoticeReleased NoticeKind = "released" // somebody said that the device is well
)

// step is one Step under way.
type step struct {
	State
	policy  Profile
	now     Moment
	notices []Notice
}

// Step takes a fact in. It reads no clock and changes nothing outside; the state that it was given stays as it was.
func Step(p Profile, before State, f Fact, now Moment) (State, []Notice) {
	s := step{State: before.clone(), policy: p, now: now}
	s.now.Boot = max(now.Boot, before.at) // a clock that goes back must not make a streak long
	s.at = s.now.Boot
	switch f.Kind {
	case KindXid:
		s.xid(f.Xid)
	case KindSwitch:
		s.raise(Condition{Key: fmt.Sprintf("sxid-%d", f.Xid.Code), Level: p.Switch, Event: true,
			Means: fmt.Sprintf("an NVSwitch reported the fatal SXid %d", f.Xid.Code), Evidence: evidence(f.Xid)})
	case KindRecovery:
		s.recovery(f.Recovery)
	case KindSample:
		s.sample(f.Signals)
	case KindSilence:
		s.silent = f.Reason
		clear(s.streaks) // what is not seen is no evidence, of either kind
	case KindReload:
		s.Fresh = s.now.Boot
		clear(s.streaks)
	case KindReplayed:
		s.replayed = true
	case KindHost:
		s.host(f.Host)
	case KindRelease:
		s.release(f.Reason)
	}
	return s.State, s.notices
}

func (s *step) tell(kind NoticeKind, n Notice) {
	n.Kind = kind
	s.notices = append(s.notices, n)
}

// raise establishes a condition, or strengthens it.
func (s *step) raise(c Condition) {
	if c.Level == Healthy {
		return
	}
	old, known := s.Conditions[c.Key]
	c.Since, c.Last, c.Count, c.Seen = s.now.Wall, s.now.Wall, 1, s.now.Boot
	if known {
		c.Since, c.Count = old.Since, old.Count+1
		c.Level, c.Sticky = max(c.Level, old.Level), c.Sticky || old.Sticky
	}
	fresh := !known || old.Earlier || old.Level < c.Level
	if (!known || old.Earlier) && c.Level.drains() {
		s.Lifetime[c.Key]++
	}
	s.Conditions[c.Key] = c
	if fresh {
		s.tell(NoticeRaised, Notice{Level: c.Level, Code: codeOf(c.Key), Text: c.Means + " (" + c.Evidence + ")"})
		s.lemon()
	}
}

// lemonKey is the condition of a card that has needed too much.
const lemonKey = "lemon"

func (s *step) lemon() {
	total := 0
	for key, n := range s.Lifetime {
		if key != lemonKey {
			total += n
		}
	}
	if _, known := s.Conditions[lemonKey]; known || s.policy.Lemon == 0 || total < s.policy.Lemon {
		return
	}
	s.raise(Condition{Key: lemonKey, Level: s.policy.LemonIs, Sticky: true, Event: true, Means: "this card asks for resets too often",
		Evidence: fmt.Sprintf("%d times over its life", total)})
}

func (s *step) clear(key, why string) {
	c, known := s.Conditions[key]
	if !known {
		return
	}
	delete(s.Conditions, key)
	s.tell(NoticeCleared, Notice{Level: c.Level, Code: codeOf(key), Text: c.Means + ": " + why})
}

// --- Xids ---

func (s *step) xid(x Xid) {
	s.Xids[x.Code]++
	n := Notice{Code: x.Code, PID: x.PID, Tenant: x.Tenant, Text: x.Text}
	if ended, ok := s.policy.Ends[x.Code]; ok {
		s.clear(xidKey(ended), fmt.Sprintf("Xid %d says that it is over", x.Code))
	}
	entry, known := xid.Lookup(x.Code)
	level := s.policy.Level(x.Code, x.Action)
	switch {
	case !known:
		s.tell(NoticeUnknown, n)
	case x.Follows != 0:
		n.Text = fmt.Sprintf("follows from Xid %d", x.Follows)
		s.tell(NoticeFollows, n)
	case slices.Contains(s.policy.Pinned, x.Code):
		s.tell(NoticeTenant, n)
		s.pattern(x)
	case level > Healthy:
		s.raise(Condition{Key: xidKey(x.Code), Level: level, Event: true, Sticky: level == Replace,
			Means: fmt.Sprintf("Xid %d %s", x.Code, entry.Name), Evidence: evidence(x)})
	case x.PID != 0:
		s.tell(NoticeTenant, n)
		s.pattern(x)
	default:
		s.tell(NoticeNoted, n)
	}
}

func evidence(x Xid) string {
	text := strings.TrimSpace(x.Text)
	if text == "" {
		return "reported by the driver"
	}
	return text
}

// pattern keeps an application's fault, and looks whether it is one: a tenant that crashes in a loop says nothing of the card.
func (s *step) pattern(x Xid) {
	who := x.Tenant
	if who == "" {
		who = fmt.Sprintf("pid %d", x.PID)
	}
	s.History = append(s.History, seen{Code: x.Code, At: s.now.Boot, Who: who, Place: x.Place})
	s.History = s.History[max(0, len(s.History)-maxHistory):]
	for _, r := range s.policy.Repeats {
		if r.Code != x.Code || r.SamePlace && x.Place == "" {
			continue
		}
		tenants := make(map[string]bool)
		for _, h := range s.History {
			if h.Code == x.Code && s.now.Boot-h.At <= r.Within && (!r.SamePlace || h.Place == x.Place) {
				tenants[h.Who] = true
			}
		}
		if len(tenants) >= r.Tenants {
			s.raise(Condition{Key: "repeated-" + fmt.Sprint(x.Code), Level: r.Level, Event: true,
				Means:    fmt.Sprintf("Xid %d comes again for different tenants: the hardware is suspected", x.Code),
				Evidence: fmt.Sprintf("%d tenants in %s %s", len(tenants), r.Within, x.Place)})
		}
	}
}

// --- what the driver asks for ---

// recovery is the driver's own statement, not a sample of it: it counts at once. That it asks for nothing any more is left to samples.
func (s *step) recovery(action node.RecoveryAction) {
	if action == node.RecoveryNone {
		return
	}
	s.raise(s.recoveryCondition(action))
}

func (s *step) recoveryCondition(action node.RecoveryAction) Condition {
	rule := s.policy.Signals[SignalRecovery]
	return Condition{Key: recoveryKey, Level: s.policy.recovery(action), Floor: true, Event: true, Means: rule.Means, Evidence: action.String()}
}

// --- samples ---

func (s *step) sample(readings []Reading) {
	s.sampled, s.silent = true, ""
	wrong := slices.ContainsFunc(readings, func(r Reading) bool { return r.Bad && s.policy.Signals[r.Signal].Level >= Hold })
	told := false // whether the driver says what it asks for
	for _, r := range readings {
		told = told || r.Signal == SignalRecovery
		s.signal(r)
	}
	s.quiet(told, wrong)
}

// signal takes one signal of a sample.
func (s *step) signal(r Reading) {
	rule, ok := s.policy.Signals[r.Signal]
	if !ok {
		return
	}
	key := string(r.Signal)
	k := s.streaks[key]
	if !r.Bad {
		if k.Good == 0 {
			k = streak{From: s.now.Boot}
		}
		k.Good++
		s.streaks[key] = k
		delete(s.Released, key)
		if c, raised := s.Conditions[key]; raised && !c.Sticky && s.enough(k.Good, s.now.Boot-k.From, key) {
			s.clear(key, "good readings")
		}
		return
	}
	if s.now.Boot < rule.Grace || s.now.Boot-s.Fresh < rule.Grace {
		return
	}
	if k.Bad == 0 {
		k = streak{From: s.now.Boot}
	}
	k.Bad, k.Value = k.Bad+1, r.Value
	s.streaks[key] = k
	if k.Bad < rule.Confirm || s.now.Boot-k.From < rule.Over || s.Released[key] == r.Value {
		return
	}
	c := Condition{Key: key, Level: rule.Level, Sticky: rule.Sticky, Floor: rule.Floor, Means: rule.Means, Evidence: r.Value}
	if r.Signal == SignalRecovery {
		c = s.recoveryCondition(r.Action)
	}
	if c.Evidence == "" {
		c.Evidence = "by reading"
	}
	s.raise(c)
}

// enough is evidence enough that a condition is gone: it lasts longer each time.
func (s *step) enough(good int, over time.Duration, key string) bool {
	return good >= s.policy.Clear && over >= s.policy.damp(s.Lifetime[key])
}

// quietKey is the streak of samples in which nothing is wrong that would hold a card.
const quietKey = "quiet"

// quiet ends what events raised, on evidence: the driver says that it asks for nothing, or the driver is newly loaded, and the device
// answers well since.
func (s *step) quiet(told, wrong bool) {
	k := s.streaks[quietKey]
	switch {
	case wrong:
		k = streak{}
	case k.Good == 0:
		k = streak{Good: 1, From: s.now.Boot}
	default:
		k.Good++
	}
	s.streaks[quietKey] = k
	if k.Good < s.policy.Clear {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(s.Conditions)) {
		c := s.Conditions[key]
		since := max(k.From, c.Seen)
		switch {
		case c.Sticky, !c.Event && !c.Earlier:
		case c.Earlier:
			if s.replayed || told && s.now.Boot-since >= s.policy.damp(s.Lifetime[key]) { // a log that cannot be read must not hold it for ever
				s.clear(key, "a new boot without it")
			}
		case s.now.Boot-since < s.policy.damp(s.Lifetime[key]):
		case told, s.Fresh > c.Seen && c.Level < Reboot, c.Level < Hold:
			s.clear(key, "good readings, and the driver asks for nothing")
		}
	}
}

// release is somebody's word that the device is well. What a signal still says of it does not count until it says something else.
func (s *step) release(reason string) {
	for _, key := range slices.Sorted(maps.Keys(s.Conditions)) {
		if c := s.Conditions[key]; !c.Event || key == recoveryKey {
			s.Released[key] = c.Evidence
		}
		delete(s.Conditions, key)
	}
	clear(s.streaks)
	clear(s.Lifetime)
	s.tell(NoticeReleased, Notice{Text: reason})
}

func codeOf(key string) (code int) {
	_, _ = fmt.Sscanf(key, xidPrefix+"%d", &code) // other keys have none
	return code
}
