package mps

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

var card0 = node.UUID{1, 2, 3}

// rig is a driver root with the simulated control program, and a directory for daemons.
type rig struct {
	t         *testing.T
	root, dir string

	mu     sync.Mutex
	events []Event
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "mps") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, root: t.TempDir(), dir: filepath.Join(dir, "mps")}
	bin := filepath.Join(r.root, "usr/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("../../internal/sim/mps/*.c")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("gcc", append([]string{"-O1", "-o", filepath.Join(bin, controlName)}, sources...)...).CombinedOutput()
	if err != nil {
		t.Skipf("gcc: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if left := r.processes(); len(left) > 0 {
			t.Errorf("left behind: %+v", left)
			_ = kill(left)
		}
		_ = os.RemoveAll(dir)
	})
	return r
}

// kerfd is a supervisor as a kerfd has one; a second one is the next kerfd.
func (r *rig) kerfd() *Supervisor {
	return New(Config{Dir: r.dir, Root: r.root, Now: time.Now, Notify: func(e Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}})
}

func (r *rig) processes() []found {
	all, err := below(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

func (r *rig) happened(kind EventKind) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.events, func(e Event) bool { return e.Kind == kind })
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for late := time.Now().Add(20 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(late) {
			r.t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func (r *rig) ask(pipe string, commands ...string) string {
	r.t.Helper()
	control := filepath.Join(r.root, "usr/bin", controlName)
	answer, err := tell(r.t.Context(), control, environment(control, r.root, pipe, pipe, card0), commands...)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(answer, " ")
}

func (r *rig) ensure(s *Supervisor, limits Limits) (pipe string, pid int) {
	r.t.Helper()
	place, err := s.Ensure(r.t.Context(), card0, limits)
	if err != nil {
		r.t.Fatal(err)
	}
	state, ok := s.State(card0)
	if !ok || state.PID == 0 || state.Trouble != "" {
		r.t.Fatalf("%+v %v", state, ok)
	}
	return place.Pipe, state.PID
}

func (r *rig) end(s *Supervisor) {
	r.t.Helper()
	if err := s.Drop(card0); err != nil {
		r.t.Fatal(err)
	}
	if _, err := os.Stat(r.dir); !errors.Is(err, os.ErrNotExist) {
		r.t.Errorf("the directory is left: %v", err)
	}
}

func TestLife(t *testing.T) {
	r := newRig(t)
	s := r.kerfd()
	pipe, pid := r.ensure(s, Limits{Percent: 30, Memory: 16*node.GiB + 1})
	if again, same := r.ensure(s, Limits{Percent: 30, Memory: 16*node.GiB + 1}); again != pipe || same != pid {
		t.Errorf("a second call: %s %d, want %s %d", again, same, pipe, pid)
	}
	r.ask(pipe, "start_server -uid 0")
	server := r.ask(pipe, "get_server_list")
	limits := func() string {
		return r.ask(pipe, "get_default_active_thread_percentage", "get_default_device_pinned_mem_limit 0", "get_active_thread_percentage "+server, "get_device_pinned_mem_limit "+server+" 0")
	}
	if got := limits(); got != "30.0 16385M 30.0 16385M" {
		t.Errorf("limits %q", got)
	}
	r.ensure(s, Limits{Percent: 60, Memory: 32 * node.GiB}) // a larger share has come
	if got := limits(); got != "60.0 32768M 60.0 32768M" {
		t.Errorf("limits %q", got)
	}
	r.end(s)
}

func TestDeathOfTheDaemon(t *testing.T) {
	r := newRig(t)
	s := r.kerfd()
	pipe, pid := r.ensure(s, Limits{Percent: 40})
	r.ask(pipe, "start_server -uid 0")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("another serves", func() bool {
		state, _ := s.State(card0)
		return state.PID != 0 && state.PID != pid && state.Trouble == ""
	})
	if !r.happened(Died) {
		t.Error("nobody was told")
	}
	if got := r.ask(pipe, "get_default_active_thread_percentage"); got != "40.0" { // in the same place, with the same limits
		t.Errorf("the new one lets %s in", got)
	}
	if state, _ := s.State(card0); state.Deaths != 1 {
		t.Errorf("%+v", state)
	}
	r.end(s)
}

// The server alone may die. Its daemon goes on, with the same limits for the next one.
func TestDeathOfTheServer(t *testing.T) {
	r := newRig(t)
	s := r.kerfd()
	pipe, pid := r.ensure(s, Limits{Percent: 40})
	r.ask(pipe, "start_server -uid 0")
	server := r.ask(pipe, "get_server_list")
	s.sweep()
	if r.happened(Lost) {
		t.Error("it lives")
	}
	r.ask(pipe, "shutdown_server "+server)
	s.sweep()
	if !r.happened(Lost) || r.happened(Died) {
		t.Errorf("%+v", r.events)
	}
	if _, same := r.ensure(s, Limits{Percent: 40}); same != pid {
		t.Errorf("another daemon: %d, want %d", same, pid)
	}
	r.end(s)
}

// A kerfd that is killed leaves its daemons, and the next one takes them up, ends them, or mourns them.
func TestDeathOfKerfd(t *testing.T) {
	want := map[node.UUID]Limits{card0: {Percent: 50}}
	for _, tt := range []struct {
		name      string
		meanwhile func(*rig, int)
		want      map[node.UUID]Limits
		told      EventKind
		same      bool
	}{
		{"its shares live", func(*rig, int) {}, want, Adopted, true},
		{"its shares are gone", func(*rig, int) {}, nil, "", false},
		{"so is the daemon", func(r *rig, pid int) { _ = kill(r.processes()) }, want, Died, false},
		{"and so the files", func(r *rig, pid int) { _ = os.RemoveAll(r.dir) }, nil, Stray, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			first := r.kerfd()
			pipe, pid := r.ensure(first, Limits{Percent: 50})
			first.close() // a killed one does not even do that; here its watches would speak
			tt.meanwhile(r, pid)
			next := r.kerfd()
			if err := next.Restore(t.Context(), tt.want); err != nil {
				t.Fatal(err)
			}
			if tt.told != "" && !r.happened(tt.told) {
				t.Errorf("%q was not told: %+v", tt.told, r.events)
			}
			state, there := next.State(card0)
			if there != (tt.want != nil) || there && (state.PID == pid) != tt.same {
				t.Errorf("state %+v %v, the first one's pid was %d", state, there, pid)
			}
			if got := next.Place(card0).Pipe; there && got != pipe {
				t.Errorf("pipe %s: what tenants have mounted is %s", got, pipe)
			}
			r.end(next)
		})
	}
}

// What a kerfd started in its last moment, and no record names, is nobody's.
func TestStray(t *testing.T) {
	r := newRig(t)
	pipe := filepath.Join(r.dir, "0011223344556677", pipeName)
	if err := os.MkdirAll(pipe, 0o755); err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(r.root, "usr/bin", controlName)
	cmd := exec.Command(control, "-f")
	cmd.Env = environment(control, r.root, pipe, pipe, card0)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	r.eventually("it runs", func() bool { return len(r.processes()) == 1 })
	s := r.kerfd()
	_, own := r.ensure(s, Limits{Percent: 100})
	s.sweep()
	if left := r.processes(); len(left) != 1 || left[0].PID != own {
		t.Errorf("left: %+v, want pid %d alone", left, own)
	}
	if err := s.Drop(card0); err != nil {
		t.Fatal(err)
	}
}

func TestFails(t *testing.T) {
	r := newRig(t)
	control := filepath.Join(r.root, "usr/bin", controlName)
	s := r.kerfd()
	refused := func(words ...string) {
		t.Helper()
		_, err := s.Ensure(t.Context(), card0, Limits{Percent: 50})
		for _, word := range words {
			if err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v: not one line that says %q", err, word)
			}
		}
	}
	if err := os.WriteFile(control, []byte("#!/bin/sh\necho no device >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	refused("ended as soon as it was started", "exit status 3", "no device")
	if err := os.Chmod(control, 0o644); err != nil {
		t.Fatal(err)
	}
	refused(control, "cannot be executed", "make it executable")
	if err := os.Remove(control); err != nil {
		t.Fatal(err)
	}
	refused("nvidia-cuda-mps-control is not below "+r.root, "usr/bin", "install", "tier time")
	if state, ok := s.State(card0); !ok || state.PID != 0 || state.Trouble == "" {
		t.Errorf("%+v %v", state, ok)
	}
	r.end(s)
}

func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		limits            Limits
		defaults, running string
	}{
		{Limits{Percent: 100}, "set_default_active_thread_percentage 100; get_default_active_thread_percentage", "set_active_thread_percentage 7 100"},
		{Limits{30, node.GiB}, "set_default_active_thread_percentage 30; set_default_device_pinned_mem_limit 0 1024M; get_default_active_thread_percentage", "set_active_thread_percentage 7 30; set_device_pinned_mem_limit 7 0 1024M"},
		{Limits{30, node.MiB + 1}, "set_default_active_thread_percentage 30; set_default_device_pinned_mem_limit 0 2M; get_default_active_thread_percentage", "set_active_thread_percentage 7 30; set_device_pinned_mem_limit 7 0 2M"},
	} {
		if diff := cmp.Diff(tt.defaults, strings.Join(tt.limits.defaults(), "; ")); diff != "" {
			t.Errorf("%+v: %s", tt.limits, diff)
		}
		if diff := cmp.Diff(tt.running, strings.Join(tt.limits.running(7), "; ")); diff != "" {
			t.Errorf("%+v: %s", tt.limits, diff)
		}
	}
	for answer, want := range map[string]bool{"30": true, "30.0": true, "30.000000": true, "set 30.0": true, "29.0": false, "": false, "thirty": false} {
		if got := percentIs(strings.Fields(answer), 30); got != want {
			t.Errorf("%q is 30%%: %v", answer, got)
		}
	}
}

func TestNextDelay(t *testing.T) {
	for _, tt := range []struct{ last, lived, want time.Duration }{
		{0, 0, delayFirst}, {delayFirst, time.Second, 2 * delayFirst}, {delayMost, 0, delayMost}, {delayMost * 3 / 4, 0, delayMost}, {delayMost, delayReset, delayFirst},
	} {
		if got := nextDelay(tt.last, tt.lived); got != tt.want {
			t.Errorf("after %s, lived %s: %s, want %s", tt.last, tt.lived, got, tt.want)
		}
	}
}

func TestLeader(t *testing.T) {
	var all []found
	for _, p := range []struct{ pid, parent int }{{12, 11}, {11, 1}, {13, 11}} {
		f := found{parent: p.parent}
		f.PID = p.pid
		all = append(all, f)
	}
	if got, ok := leader(all); !ok || got.PID != 11 {
		t.Errorf("%v %v", got, ok)
	}
	if _, ok := leader(nil); ok {
		t.Error("one of none")
	}
	if got := fmt.Sprint(variable([]byte("A=1\x00CUDA_MPS_PIPE_DIRECTORY=/x/y\x00B=2"), "CUDA_MPS_PIPE_DIRECTORY")); got != "/x/y" {
		t.Error(got)
	}
}
