package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain: the test binary is the init of the machines that it boots, as the program is of its own.
func TestMain(m *testing.M) {
	if isInit() {
		guestInit()
	}
	if len(os.Args) > 1 && os.Args[1] == guestVerb {
		if err := guestRun(); err != nil {
			os.Exit(exitFailure)
		}
		return
	}
	os.Exit(m.Run())
}

// small boots in a few seconds.
func small(t *testing.T, grace time.Duration, jobs ...job) (boot, *bytes.Buffer) {
	t.Helper()
	if os.Getenv("KERF_LAB_BOOT") != "1" {
		t.Skip("it boots machines, for which two CPUs are busy for some seconds; make lab sets KERF_LAB_BOOT=1")
	}
	var out bytes.Buffer
	m := Machine{Name: "small", Nodes: []Node{{MiB: 512, Bus: 0x20}}, Modules: []string{"configfs"}}
	return boot{root: cached(t), machine: m, jobs: jobs, grace: grace, output: func(_ int, _ byte, data []byte) { out.Write(data) }}, &out
}

func sh(timeout time.Duration, script string) job {
	return job{Args: []string{"sh", "-c", script}, Timeout: timeout}
}

// TestBootEnds: how commands end is told as it was, whatever they did before.
func TestBootEnds(t *testing.T) {
	const lines = 1 << 20 // of ten bytes
	b, out := small(t, time.Minute,
		sh(time.Minute, "exit 7"), sh(time.Minute, "kill -9 $$"), sh(time.Second, "sleep 1000 & echo still here; wait"), sh(time.Minute, "kill -STOP 1; echo noise >/dev/kmsg; exit 0"),
		sh(2*time.Minute, "yes 123456789 | head -n 1048576"), job{Args: []string{"/nonesuch"}, Timeout: time.Minute})
	res, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var codes []int
	for _, e := range res.ended {
		codes = append(codes, e.exit())
	}
	want := []int{7, 137, exitTimeout, 0, 0, exitFailure}
	if len(codes) != len(want) {
		t.Fatalf("%v ended, want %v", codes, want)
	}
	for i := range want {
		if codes[i] != want[i] {
			t.Errorf("command %d has exit code %d, want %d", i, codes[i], want[i])
		}
	}
	if want := "still here\n" + strings.Repeat("123456789\n", lines); out.String() != want {
		t.Errorf("%d bytes of output came, want %d", out.Len(), len(want))
	}
}

// TestBootPanic: a kernel that panics is told from a command that fails, with its own words.
func TestBootPanic(t *testing.T) {
	b, _ := small(t, time.Minute, sh(time.Minute, "echo c >/proc/sysrq-trigger"))
	_, err := b.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Kernel panic - not syncing: sysrq triggered crash") {
		t.Errorf("a panic gives %v", err)
	}
}

// TestBootHangs: a machine that says nothing any more is ended.
func TestBootHangs(t *testing.T) {
	b, _ := small(t, time.Second, sh(time.Second, "kill -STOP $PPID"))
	_, err := b.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("a machine that hangs gives %v", err)
	}
}

// TestBootModule: a module that does not load is named.
func TestBootModule(t *testing.T) {
	b, _ := small(t, time.Minute, sh(time.Minute, "true"))
	b.machine.Modules = []string{"libcrc32c"} // without an implementation of crc32c
	_, err := b.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "libcrc32c") {
		t.Errorf("a module that does not load gives %v", err)
	}
}
