package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor/source"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// machine is a node under test: two GPUs, a state directory, clocks that stand still.
type machine struct {
	*testing.T
	config Config
	*Monitor

	mu       sync.Mutex
	now      Moment
	notices  []Notice
	reports  []error
	changes  int
	sequence uint64
}

func uuid(i int) node.UUID { return node.UUID{0xaa, byte(i)} }

func pci(i int) node.PCIAddress { return node.PCIAddress{Bus: byte(0x10 + i)} }

func newMachine(t *testing.T, profile string, mode Mode) *machine {
	p, err := FindProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{T: t, now: Moment{hour, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}
	m.config = Config{Profile: p, Mode: mode, Thresholds: DefaultThresholds(), Dir: t.TempDir(), Boot: "boot-1", Branch: 580, Now: m.moment,
		Notify:  func(_ Device, n Notice) { m.mu.Lock(); m.notices = append(m.notices, n); m.mu.Unlock() },
		Report:  func(err error) { m.mu.Lock(); m.reports = append(m.reports, err); m.mu.Unlock() },
		Changed: func() { m.mu.Lock(); m.changes++; m.mu.Unlock() },
		Tenant:  func(pid int) string { return fmt.Sprintf("pod ns/p%d (main)", pid) }}
	for i := range 2 {
		m.config.GPUs = append(m.config.GPUs, Device{ID: uuid(i).String(), Serial: fmt.Sprint("S", i), PCI: pci(i), Index: i, Name: "GPU"})
	}
	m.open()
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func (m *machine) moment() Moment { m.mu.Lock(); defer m.mu.Unlock(); return m.now }

func (m *machine) pass(t time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Boot, m.now.Wall = m.now.Boot+t, m.now.Wall.Add(t)
}

func (m *machine) open() {
	m.Helper()
	var err error
	if m.Monitor, err = New(m.config); err != nil {
		m.Fatal(err)
	}
}

// restart is a kerfd that was killed: nothing is closed in order.
func (m *machine) restart() {
	m.Helper()
	if err := m.books.Close(); err != nil {
		m.Fatal(err)
	}
	m.open()
}

func (m *machine) reboot() {
	m.config.Boot += "x"
	m.sequence = 0
	m.mu.Lock()
	m.now.Boot = minute
	m.mu.Unlock()
	m.restart()
}

// line is one of the kernel log.
func (m *machine) line(text string) {
	m.Helper()
	report, ok := new(xid.Parser).Parse([]byte(text))
	if !ok {
		m.Fatalf("no report: %s", text)
	}
	m.sequence++
	m.Record(source.Record{Report: report, Seq: m.sequence, At: m.moment().Boot})
}

func (m *machine) xidLine(gpu, code, pid int) {
	m.Helper()
	m.line(fmt.Sprintf("NVRM: Xid (PCI:%s): %d, pid=%d, name=x, text", strings.TrimSuffix(pci(gpu).String(), ".0"), code, pid))
}

// read is a reading of each GPU.
func (m *machine) read(change func(i int, v *node.Vitals)) {
	for i := range m.config.GPUs {
		v := node.Vitals{Told: node.ToldRecovery | node.ToldRemap | node.ToldECC | node.ToldThrottle | node.ToldReplays, NVLinks: 4, NVLinksUp: 4,
			Link: node.PCIeLink{Gen: 5, MaxGen: 5, Width: 16, MaxWidth: 16}}
		if change != nil {
			change(i, &v)
		}
		m.reading(source.Reading{GPU: uuid(i), Vitals: v})
	}
}

func (m *machine) of(gpu int) Verdict {
	v, ok := m.Verdict(uuid(gpu))
	if !ok {
		m.Fatalf("GPU %d is not watched", gpu)
	}
	return v
}

func (m *machine) want(gpu int, level Level, health Health) {
	m.Helper()
	if v := m.of(gpu); v.Level != level || v.Health != health {
		m.Errorf("GPU %d: level %s, %s (%s); want %s, %s", gpu, v.Level, v.Health, v.Reason, level, health)
	}
}

func effects(v Verdict) (all []string) {
	for _, t := range v.Taints {
		all = append(all, fmt.Sprintf("%s=%s:%s", t.Key, t.Value, t.Effect))
	}
	return all
}

// --- incidents that others had, by name ---

// 214 of 288 nodes were flagged at boot: links come up late, and one poll was enough.
func TestIncidentLinksLateAtBoot(t *testing.T) {
	m := newMachine(t, "conservative", ModeEvict)
	m.read(nil) // this card has four links, as is known from before
	m.restart()
	m.reboot()
	for range 3 {
		m.read(func(_ int, v *node.Vitals) { v.NVLinksUp = 0 })
		m.pass(20 * time.Second)
	}
	m.Replayed()
	m.read(nil)
	for i := range 2 {
		m.want(i, Healthy, HealthGood)
		if v := m.of(i); len(v.Taints) > 0 || v.Refuse != "" {
			t.Errorf("GPU %d: %v, refused %q", i, effects(v), v.Refuse)
		}
	}
	// Links that stay down are a fault, once the grace is over.
	m.pass(10 * minute)
	for range 4 {
		m.read(func(i int, v *node.Vitals) { v.NVLinksUp = 4 * i })
		m.pass(20 * time.Second)
	}
	m.want(0, Hold, HealthGood)
	m.want(1, Healthy, HealthGood)
}

// A connection error of a monitor cordoned nodes and drained them.
func TestIncidentConnectionError(t *testing.T) {
	m := newMachine(t, "conservative", ModeEvict)
	m.read(nil)
	for range 100 {
		for i := range 2 {
			m.reading(source.Reading{GPU: uuid(i), Err: errors.New("NVML has not answered for 5s")})
		}
		m.up(sourceEvents, errors.New("connection lost"))
		m.up(sourceKmsg, errors.New("closed"))
		m.pass(15 * time.Second)
	}
	for i := range 2 {
		m.want(i, Healthy, HealthUnknown)
		if got := effects(m.of(i)); !slices.Equal(got, []string{"kerf.dev/unmonitored=no-answer:None"}) {
			t.Error(got)
		}
	}
	m.read(nil)
	m.want(0, Healthy, HealthGood)
	if len(m.reports) != 2 {
		t.Errorf("a source that is down was told %d times, want once each: %v", len(m.reports), m.reports)
	}
}

// A condition that was set never cleared, but by a restart of the agent.
func TestIncidentNeverCleared(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	m.xidLine(0, 95, 0)
	m.want(0, Reset, HealthBad)
	for range 5 {
		m.read(func(i int, v *node.Vitals) {
			if i == 0 {
				v.Recovery = node.RecoveryReset
			}
		})
		m.pass(15 * time.Second)
	}
	m.want(0, Reset, HealthBad)
	m.restart() // and that alone clears nothing
	m.want(0, Reset, HealthBad)
	for range 5 { // somebody has reset the card
		m.read(nil)
		m.pass(15 * time.Second)
	}
	m.want(0, Healthy, HealthGood)
	if got := effects(m.of(0)); len(got) > 0 {
		t.Error(got)
	}
}

// One error of NVML's Wait marked all devices unhealthy, in a loop without a pause.
func TestIncidentWaitError(t *testing.T) {
	m := newMachine(t, "conservative", ModeEvict)
	m.read(nil)
	m.event(source.Event{Kind: source.EventOther}, m.moment()) // nobody knows which
	m.event(source.Event{Kind: source.EventXid, Code: 79}, m.moment())
	m.up(sourceEvents, errors.New("unknown error"))
	for i := range 2 {
		m.want(i, Healthy, HealthGood)
		select {
		case <-m.wake[uuid(i).String()]:
		default:
			t.Errorf("GPU %d is not read again", i)
		}
	}
}

// An event about a whole GPU found no device on a card that MIG divides, and was ignored.
func TestIncidentWholeGPUOnMIG(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	for i, mig := range []bool{false, true} {
		m.event(source.Event{Kind: source.EventXid, GPU: uuid(i), Code: 79, MIG: mig}, m.moment())
		m.want(i, Reboot, HealthBad)
	}
}

// After a restart of the plugin a hold was lost, until the fault came again.
func TestIncidentHoldLostOnRestart(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	m.xidLine(1, 79, 0)
	before := effects(m.of(1))
	m.restart()
	v := m.of(1)
	if v.Level != Reboot || v.Refuse == "" || !slices.Equal(before, effects(v)) {
		t.Errorf("before anything was read again: %s, refused %q, taints %v, want %v", v.Level, v.Refuse, effects(v), before)
	}
	m.read(nil) // one good reading is no evidence
	m.want(1, Reboot, HealthBad)
	m.reboot()
	m.want(1, Reboot, HealthBad) // nor is a new boot alone
	m.Replayed()
	for range 4 {
		m.read(nil)
		m.pass(15 * time.Second)
	}
	m.want(1, Healthy, HealthGood)
}

// A card that is lost has no name for a kerfd that starts then: it is not forgotten for that.
func TestLostCardIsNotForgotten(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	m.xidLine(1, 79, 0)
	m.config.GPUs = m.config.GPUs[:1]
	m.restart()
	m.want(1, Reboot, HealthBad)
	m.reboot()
	if _, ok := m.Verdict(uuid(1)); ok {
		t.Error("a card that was taken out is watched for ever")
	}
}

// A load that several tenants make ends in Xid 109, and no card is at fault.
func TestIncidentSharedTimeout(t *testing.T) {
	m := newMachine(t, "shared", ModeEvict)
	m.read(nil)
	for pid := range 50 {
		for _, code := range []int{13, 31, 43, 109} {
			m.xidLine(0, code, 1000+pid%2)
		}
	}
	m.want(0, Healthy, HealthGood)
	for _, n := range m.notices {
		if n.Kind != NoticeTenant && n.Kind != NoticeFollows || !strings.HasPrefix(n.Tenant, "pod ns/p100") {
			t.Fatalf("%+v", n)
		}
	}
	if len(m.notices) != 200 {
		t.Errorf("%d of 200 faults were told of with their pod", len(m.notices))
	}
}

// --- the rest of what can go wrong ---

func TestRecoveryActions(t *testing.T) {
	for text, want := range map[string]Level{"0x1 (GPU Reset Required)": Reset, "0x2 (Node Reboot Required)": Reboot, "0x9 (New)": Hold} {
		m := newMachine(t, "nvidia", ModeEvict)
		m.read(nil)
		m.line("NVRM: Xid (PCI:0000:10:00): 154, GPU recovery action changed from 0x0 (None) to " + text)
		v := m.of(0)
		if v.Level != want || v.Refuse == "" || want == Hold && strings.Contains(strings.Join(effects(v), " "), TaintDrain) {
			t.Errorf("%s: %s, refused %q, %v", text, v.Level, v.Refuse, effects(v))
		}
	}
}

func TestModes(t *testing.T) {
	for mode, want := range map[Mode]string{
		ModeObserve: "kerf.dev/xid=79:None",
		ModeHold:    "kerf.dev/xid=79:NoSchedule",
		ModeEvict:   "kerf.dev/drain=reboot:None kerf.dev/xid=79:NoSchedule",
	} {
		m := newMachine(t, "nvidia", mode)
		m.read(nil)
		m.xidLine(0, 79, 5)
		v := m.of(0)
		if got := strings.Join(effects(v), " "); got != want || (v.Refuse != "") != (mode != ModeObserve) {
			t.Errorf("%s: %s, refused %q; want %s", mode, got, v.Refuse, want)
		}
		if v.Reason == "" || v.Clears == "" || v.Since.IsZero() {
			t.Errorf("%s: a verdict without its why: %+v", mode, v)
		}
	}
}

// Two sources tell of one event: it counts once, and the kernel's line tells of it more.
func TestOneEventTwoSources(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	m.xidLine(0, 79, 5)
	m.line("NVRM: GPU 0000:10:00.0: GPU has fallen off the bus.")
	m.event(source.Event{Kind: source.EventXid, GPU: uuid(0), Code: 79}, m.moment())
	m.xidLine(0, 45, 7)
	m.xidLine(1, 45, 8)
	r := m.Report().Devices
	if r[0].Xids[79] != 1 || r[0].Xids[45] != 1 {
		t.Errorf("counted %v", r[0].Xids)
	}
	follows := 0
	for _, n := range m.notices {
		if n.Kind == NoticeFollows {
			follows++
		}
	}
	if follows != 2 {
		t.Errorf("%d of two Xids 45 follow from the 79: %+v", follows, m.notices)
	}
	m.want(1, Healthy, HealthGood)
}

func TestReplayCountsNothingTwice(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	m.xidLine(0, 31, 5)
	m.xidLine(0, 500, 0)
	if err := m.flush(); err != nil {
		t.Fatal(err)
	}
	m.restart()
	m.sequence = 0
	m.xidLine(0, 31, 5)
	m.xidLine(0, 500, 0)
	m.xidLine(0, 31, 5) // a new one
	if x := m.Report().Devices[0].Xids; x[31] != 2 || x[500] != 1 {
		t.Errorf("counted %v", x)
	}
}

func TestUnknownXidsAndCards(t *testing.T) {
	m := newMachine(t, "conservative", ModeEvict)
	m.read(nil)
	m.xidLine(0, 999, 0)
	m.line("NVRM: Xid (PCI:0000:77:00): 79, GPU has fallen off the bus.")
	m.want(0, Healthy, HealthGood)
	unknown := 0
	for _, n := range m.notices {
		if n.Kind == NoticeUnknown {
			unknown++
		}
	}
	if r := m.Report(); unknown != 2 || r.Orphans[79] != 1 || r.Devices[0].Xids[999] != 1 {
		t.Errorf("%d notices, %+v", unknown, r)
	}
}

// A damaged file is set aside and said; the device is unknown until it was read.
func TestCorruptState(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(nil)
	m.xidLine(0, 79, 0)
	file := filepath.Join(m.config.Dir, stateKey(m.config.GPUs[0])+".json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), "reboot", "healthy", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	m.restart()
	m.want(0, Healthy, HealthUnknown)
	if r := m.Report(); len(r.Corrupt) != 1 || len(m.reports) != 1 || !strings.Contains(m.reports[0].Error(), "set aside") {
		t.Errorf("%v, %v", r.Corrupt, m.reports)
	}
	if _, err := os.Stat(file + ".corrupt"); err != nil {
		t.Error(err)
	}
}

// Another board in the same place does not inherit.
func TestSwappedBoard(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(func(_ int, v *node.Vitals) { v.RemapFailure = true })
	m.read(func(_ int, v *node.Vitals) { v.RemapFailure = true })
	m.want(0, Replace, HealthBad)
	m.config.GPUs[0].Serial = "another"
	m.reboot()
	m.Replayed()
	for range 6 {
		m.read(nil)
		m.pass(minute)
	}
	m.want(0, Healthy, HealthGood)
	m.want(1, Replace, HealthBad)
}

func TestReleaseHoldsUntilTheSignalChanges(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	pending := func(_ int, v *node.Vitals) { v.RemapFailure = true }
	for range 3 {
		m.read(pending)
	}
	m.want(0, Replace, HealthBad)
	if err := m.Release("0", "user 0", "it is fine"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m.read(pending)
	}
	m.want(0, Healthy, HealthGood)
	m.restart()
	for range 3 {
		m.read(pending)
	}
	m.want(0, Healthy, HealthGood)
	last := m.notices[slices.IndexFunc(m.notices, func(n Notice) bool { return n.Kind == NoticeReleased })]
	if !strings.Contains(last.Text, "user 0") || !strings.Contains(last.Text, "it is fine") {
		t.Errorf("%+v", last)
	}
	if err := m.Release("7", "user 0", ""); err == nil || !strings.Contains(err.Error(), `"7"`) {
		t.Error(err)
	}
	m.want(1, Replace, HealthBad)
}

// A card that needs a reset again and again is told to be a lemon, and each time it must show for longer that it is well.
func TestLemon(t *testing.T) {
	m := newMachine(t, "conservative", ModeHold)
	for range 3 {
		m.read(nil)
		m.xidLine(0, 95, 0)
		m.pass(hour)
		for range 40 {
			m.read(nil)
			m.pass(10 * minute)
		}
	}
	v := m.of(0)
	if v.Level != Replace || v.Conditions[0].Key != lemonKey {
		t.Errorf("%s: %s", v.Level, v.Reason)
	}
	m.reboot()
	m.Replayed()
	m.read(nil)
	m.want(0, Replace, HealthBad)
}

// NVML returning garbage: values that make no sense change nothing, or hold; nothing is evicted for them, and nothing breaks.
func TestGarbage(t *testing.T) {
	m := newMachine(t, "nvidia", ModeEvict)
	m.read(func(_ int, v *node.Vitals) {
		*v = node.Vitals{Told: ^node.Told(0), Replays: 1 << 63, NVLinks: -1, NVLinksUp: -5, Link: node.PCIeLink{Width: -3, MaxWidth: 1}, Temperature: -1000}
	})
	m.pass(time.Second)
	m.read(func(_ int, v *node.Vitals) { *v = node.Vitals{Told: ^node.Told(0)} })
	m.want(0, Healthy, HealthGood)
	for range 3 {
		m.read(func(_ int, v *node.Vitals) { v.Recovery = -7 })
	}
	if v := m.of(0); v.Level != Hold || strings.Contains(strings.Join(effects(v), " "), TaintDrain) {
		t.Errorf("%s %v", v.Level, effects(v))
	}
}

func TestSwitchFault(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	m.read(func(i int, v *node.Vitals) { v.NVLinksUp *= i })
	m.line("nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)")
	m.want(1, Healthy, HealthGood)
	m.line("nvidia-nvswitch0: SXid (PCI:0000:c5:00.0): 20034, Fatal, Link 30 LTSSM Fault Up")
	m.want(0, Healthy, HealthGood) // no link to any switch
	m.want(1, Reset, HealthBad)
}

// Every metric has a name by Prometheus' rules and is the same set on each scrape; labels of codes are bounded.
func TestMetrics(t *testing.T) {
	m := newMachine(t, "nvidia", ModeObserve)
	m.read(nil)
	for code := 900; code < 950; code++ {
		m.xidLine(0, code, 0)
	}
	m.xidLine(0, 79, 0)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for _, f := range families {
		found[f.GetName()] = len(f.GetMetric())
	}
	for name, want := range map[string]int{"kerf_gpu_xid_total": 2, "kerf_gpu_health_state": 6, "kerf_gpu_level": 14, "kerf_gpu_info": 2, "kerf_policy_actions_total": 2,
		"kerf_gpu_recovery_action": 2, "kerf_gpu_nvlink_up_links": 2} {
		if found[name] != want {
			t.Errorf("%s: %d series, want %d", name, found[name], want)
		}
	}
}

func TestModeIsChecked(t *testing.T) {
	if _, err := New(Config{Mode: "destroy"}); err == nil || !strings.Contains(err.Error(), "observe, hold or evict") {
		t.Error(err)
	}
}

func TestTwoMonitors(t *testing.T) {
	m := newMachine(t, "nvidia", ModeHold)
	if _, err := New(m.config); err == nil || !strings.Contains(err.Error(), "another kerfd") {
		t.Error(err)
	}
}

// A tenant that crashes in a loop writes Xids as fast as it can; each must stay cheap, however many came before.
func BenchmarkXidFlood(b *testing.B) {
	p := Profiles()["shared"]
	m, err := New(Config{Profile: p, Mode: ModeHold, Dir: b.TempDir(), Boot: "b", Now: func() Moment { return Moment{hour, time.Time{}} },
		GPUs: []Device{{ID: uuid(0).String(), PCI: pci(0)}}})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	report, _ := new(xid.Parser).Parse([]byte("NVRM: Xid (PCI:0000:10:00): 31, pid=7, name=x, text"))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Record(source.Record{Report: report, Seq: uint64(i + 1), At: hour})
	}
}
