package bpf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCosts(t *testing.T) {
	for _, tt := range []struct {
		calls   uint64
		perCall time.Duration
		during  time.Duration
		want    float64
	}{
		{0, time.Microsecond, time.Second, 0},
		{2000, 2500 * time.Nanosecond, time.Second, 0.005},
		{1_000_000, time.Microsecond, 10 * time.Second, 0.1},
		{5, time.Microsecond, 0, 0}, // a clock that stands still is no reason to take anything off
	} {
		if got := costs(tt.calls, tt.perCall, tt.during); got < tt.want-1e-9 || got > tt.want+1e-9 {
			t.Errorf("%d calls of %s in %s: %g, want %g", tt.calls, tt.perCall, tt.during, got, tt.want)
		}
	}
}

func TestPerCall(t *testing.T) {
	for name, tt := range map[string]struct {
		code []byte
		want time.Duration
	}{
		"push %rbx": {[]byte{0x53, 0x89}, emulatedCall}, "push %r15": {[]byte{0x41, 0x57}, emulatedCall}, "nop": {[]byte{0x90}, emulatedCall},
		"jmp": {[]byte{0xe9, 0}, emulatedCall}, "endbr64": {[]byte{0xf3, 0x0f, 0x1e, 0xfa}, steppedCall}, "sub $8,%rsp": {[]byte{0x48, 0x83, 0xec, 8}, steppedCall},
		"mov %r8,%rax": {[]byte{0x4c, 0x89, 0xc0}, steppedCall}, "nothing": {nil, steppedCall}, "a prefix alone": {[]byte{0x41}, steppedCall},
	} {
		if got := perCall(tt.code); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestCallsOff(t *testing.T) {
	s := OpenCalls(CallsConfig{})
	defer s.Close()
	if s.On() || s.Waits().Below != nil || len(s.Stalls(time.Hour)) != 0 || s.Check(time.Second) != nil {
		t.Error("something is on")
	}
	for _, r := range s.Rows() {
		if r.On || r.Reason != "switched off" || r.Needs == "" || r.Hits != 0 {
			t.Errorf("%+v", r)
		}
	}
	absent := OpenCalls(CallsConfig{CUDA: filepath.Join(t.TempDir(), "libcuda.so.1")})
	defer absent.Close()
	if r := absent.Rows()[0]; r.On || r.Reason == "" || r.Reason == "switched off" {
		t.Errorf("a library that is not there: %+v", r)
	}
}

// calling is a stand-in for libcuda with three of its functions, and a program that calls them, and says what a launch took in ns.
const calling = `
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int cuLaunchKernel(void);
int cuCtxSynchronize(void);
int main(int argc, char **argv)
{
	struct timespec a, b;
	int n = argc > 1 ? atoi(argv[1]) : 0;
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (int i = 0; i < n; i++)
		cuLaunchKernel();
	clock_gettime(CLOCK_MONOTONIC, &b);
	for (int i = 0; i < 3; i++)
		cuCtxSynchronize();
	printf("%.1f\n", n ? ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n : 0.0);
	fflush(stdout);
	if (argc > 2) { /* a hang, until the other end is closed */
		int stuck(void);
		stuck();
	}
	return 0;
}
`

const called = `
#include <unistd.h>
int cuLaunchKernel(void) { return getppid() < 0; }
int cuCtxSynchronize(void) { return usleep(2000); }
int cuStreamSynchronize(void) { char c; return read(0, &c, 1); }
int stuck(void) { return cuStreamSynchronize(); }
`

// libraries compiles them.
func libraries(t testing.TB) (library, program string) {
	t.Helper()
	dir := t.TempDir()
	library, program = filepath.Join(dir, "libcuda.so.1"), filepath.Join(dir, "program")
	for _, c := range []struct {
		source string
		args   []string
	}{
		{called, []string{"-shared", "-fPIC", "-o", library}},
		{calling, []string{"-o", program, library, "-Wl,-rpath," + dir}},
	} {
		source := filepath.Join(dir, "source.c")
		if err := os.WriteFile(source, []byte(c.source), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("gcc", append([]string{"-O1", source}, c.args...)...).CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v\n%s", err, out)
		}
	}
	return library, program
}

func openCalls(t testing.TB, c CallsConfig) *Calls {
	t.Helper()
	s := OpenCalls(c)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if r := s.Rows()[0]; !r.On {
		t.Skipf("no uprobes here: %s", r.Reason)
	}
	return s
}

// TestHostCalls: every call is counted, by whichever process, and above the budget the probes come off.
func TestHostCalls(t *testing.T) {
	library, program := libraries(t)
	s := openCalls(t, CallsConfig{CUDA: library, Budget: 0.01})
	const each = 500
	for range 2 {
		if out, err := exec.Command(program, fmt.Sprint(each)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	rows := s.Rows()
	if rows[0].Hits != 2*each || rows[1].Hits != 6 {
		t.Errorf("%d launches, %d waits; want %d and 6", rows[0].Hits, rows[1].Hits, 2*each)
	}
	var waits, short uint64
	for i, n := range s.Waits().Below {
		waits += n
		if i <= 10 { // less than 1024 µs
			short += n
		}
	}
	if waits != 6 || short != 0 || s.Waits().Sum < 12*time.Millisecond {
		t.Errorf("waits %+v, want 6 of 2 ms or more", s.Waits())
	}
	if err := s.Check(time.Hour); err != nil || !s.On() {
		t.Fatalf("within the budget: %v, on %v", err, s.On())
	}
	if out, err := exec.Command(program, fmt.Sprint(each)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := s.Check(time.Millisecond); err != nil || s.On() {
		t.Fatalf("above the budget: %v, on %v", err, s.On())
	}
	if r := s.Rows()[0]; r.On || !strings.Contains(r.Reason, "more than its budget of 1 %") {
		t.Errorf("%+v", r)
	}
	if out, err := exec.Command(program, fmt.Sprint(each)).CombinedOutput(); err != nil || s.Rows()[0].Hits != 3*each {
		t.Errorf("off: %v, %s, %d launches", err, out, s.Rows()[0].Hits)
	}
}

// TestHostStall: a process that waits is seen waiting, from its last launch on.
func TestHostStall(t *testing.T) {
	library, program := libraries(t)
	s := openCalls(t, CallsConfig{CUDA: library, Budget: 1})
	cmd := exec.Command(program, "1", "hang")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	for late := time.Now().Add(20 * time.Second); s.Rows()[1].Hits < 4; { // the fourth is the one that hangs
		if time.Now().After(late) {
			t.Fatalf("it does not wait: %+v", s.Rows()[1])
		}
	}
	if stalls := s.Stalls(1000 * time.Hour); stalls[pid] < time.Hour || len(stalls) != 1 {
		t.Errorf("%v, want process %d", stalls, pid)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if stalls := s.Stalls(1000 * time.Hour); len(stalls) != 0 {
		t.Errorf("it has gone on: %v", stalls)
	}
}

// BenchmarkCall is what a probe adds to one launch: ns/op is with it, bare-ns/op without.
func BenchmarkCall(b *testing.B) {
	library, program := libraries(b)
	run := func() (ns float64) {
		out, err := exec.Command(program, "200000").Output()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := fmt.Sscanf(string(out), "%f", &ns); err != nil {
			b.Fatal(err)
		}
		return ns
	}
	bare := run()
	s := openCalls(b, CallsConfig{CUDA: library, Budget: 1000})
	probed := run()
	if s.Rows()[0].Hits != 200000 {
		b.Fatalf("%d hits", s.Rows()[0].Hits)
	}
	b.ReportMetric(bare, "bare-ns/call")
	b.ReportMetric(probed, "probed-ns/call")
	b.ReportMetric(probed-bare, "added-ns/call")
}
