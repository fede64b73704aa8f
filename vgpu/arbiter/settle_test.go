package arbiter

import (
	"bufio"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/vgpu/region"
)

func TestDrift(t *testing.T) {
	rest := func(bytes uint64) region.Snapshot {
		return region.Snapshot{Charged: [region.MaxDevices]uint64{bytes}, Enter: 3, Leave: 3}
	}
	busy := rest(10)
	busy.Enter++
	for _, tt := range []struct {
		name  string
		r     reading
		still bool
		drift int64
	}{
		{"agrees", reading{[]region.Snapshot{rest(10), rest(5)}, []region.Snapshot{rest(10), rest(5)}, [region.MaxDevices]uint64{15}}, true, 0},
		{"sum too small", reading{[]region.Snapshot{rest(10)}, []region.Snapshot{rest(10)}, [region.MaxDevices]uint64{4}}, true, 6},
		{"sum too large", reading{[]region.Snapshot{rest(10)}, []region.Snapshot{rest(10)}, [region.MaxDevices]uint64{14}}, true, -4},
		{"in the middle of a change", reading{[]region.Snapshot{busy}, []region.Snapshot{busy}, [region.MaxDevices]uint64{0}}, false, 10},
		{"changed meanwhile", reading{[]region.Snapshot{rest(9)}, []region.Snapshot{rest(10)}, [region.MaxDevices]uint64{9}}, false, 1},
		{"nobody", reading{}, true, 0},
	} {
		if got := tt.r.still(); got != tt.still {
			t.Errorf("%s: still %v", tt.name, got)
		}
		if got := tt.r.drift()[0]; got != tt.drift {
			t.Errorf("%s: drift %d, want %d", tt.name, got, tt.drift)
		}
	}
}

func TestFindMappings(t *testing.T) {
	const maps = "7f01-7f02 rw-s 00000000 00:1b 42      /run/kerf/shares/a/usage\n" +
		"7f03-7f04 rw-s 00001000 00:1b 42      /run/kerf/shares/a/usage\n" +
		"7f05-7f06 rw-s 00000000 00:1b 43      /run/kerf/shares/b/usage\n" +
		"7f06-7f07 r--s 00000000 00:1b 42      /run/kerf/shares/a/usage\n" +
		"7f07-7f08 rw-p 00000000 00:00 0\n" +
		"7f09-7f0a rw-s 00000000 00:1b 42      /run/kerf/shares/a/usage\n"
	found, any := findMappings(bufio.NewScanner(strings.NewReader(maps)), pageID{"00:1b", 42})
	if diff := cmp.Diff(map[uint64]bool{0x7f01: true, 0x7f09: true}, found); diff != "" || !any {
		t.Error(diff, any)
	}
	if _, any := findMappings(bufio.NewScanner(strings.NewReader("")), pageID{}); any {
		t.Error("the maps of a dead main thread, which are empty, were taken for an answer")
	}
}

func TestLostSessions(t *testing.T) {
	self, err := FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	at := func(usage uint64) *session { return &session{Process: self, usage: usage} }
	gone := &session{Process: Process{PID: self.PID, Start: self.Start + 1}, usage: 1}
	for _, tt := range []struct {
		name      string
		mine      []*session
		mapped    map[uint64]bool
		readable  bool
		attaching uint64
		lost      []int // indices of mine
	}{
		{"all there", []*session{at(1), at(2)}, map[uint64]bool{1: true, 2: true}, true, 0, nil},
		{"exec", []*session{at(1), at(2)}, map[uint64]bool{}, true, 0, []int{1, 0}},
		{"exec, and attaching elsewhere", []*session{at(1)}, map[uint64]bool{3: true}, true, 3, []int{0}},
		{"exec, and attaching at the same address", []*session{at(1)}, map[uint64]bool{1: true}, true, 1, []int{0}},
		{"a second copy attaches", []*session{at(1)}, map[uint64]bool{1: true, 2: true}, true, 2, nil},
		{"a second copy tries again", []*session{at(1), at(2)}, map[uint64]bool{1: true, 2: true}, true, 2, []int{1}},
		{"two at one address", []*session{at(1), at(1)}, map[uint64]bool{1: true}, true, 0, []int{0}},
		{"unreadable", []*session{at(1)}, nil, false, 0, nil},
		{"another process by now", []*session{gone}, nil, false, 0, []int{0}},
	} {
		var want []*session
		for _, i := range tt.lost {
			want = append(want, tt.mine[i])
		}
		got := lostSessions(tt.mine, tt.mapped, tt.readable, tt.attaching)
		if !slices.Equal(want, got) {
			t.Errorf("%s: %d lost, want %d", tt.name, len(got), len(want))
		}
	}
}
