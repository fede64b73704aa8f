package nodetest_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/internal/nodetest"
	"github.com/kerf-gpu/kerf/internal/nvml"
	"github.com/kerf-gpu/kerf/internal/sim"
)

var update = flag.Bool("update", false, "write the goldens in testdata")

// simulated makes a node of a built-in profile.
func simulated(t *testing.T, profile string) *sim.Node {
	t.Helper()
	p, err := sim.LoadProfile(profile)
	if err != nil {
		t.Fatal(err)
	}
	n, err := sim.Create(filepath.Join(t.TempDir(), "node"), p, nodetest.SimulatorDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// open opens the NVML of a simulated node.
func open(t *testing.T, n *sim.Node) *nvml.Library {
	t.Helper()
	lib, err := nvml.Open(n.Root)
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

func TestSimulatedNodes(t *testing.T) {
	for _, profile := range sim.Profiles() {
		if profile == "none" {
			continue
		}
		t.Run(profile, func(t *testing.T) {
			nodetest.InOwnProcess(t, func(t *testing.T) {
				nodetest.Run(t, simulated(t, profile).Root, true)
			})
		})
	}
}

func TestRealNode(t *testing.T) {
	if os.Getenv("KERF_REAL_GPU") != "1" {
		t.Skip("KERF_REAL_GPU is not 1: no real GPU is claimed to be here")
	}
	nodetest.Run(t, "/", false) // every other test here leaves NVML to a process of its own
}

// TestInventory compares the whole inventory of each profile with a golden.
func TestInventory(t *testing.T) {
	for _, profile := range sim.Profiles() {
		if profile == "none" {
			continue
		}
		t.Run(profile, func(t *testing.T) {
			nodetest.InOwnProcess(t, func(t *testing.T) {
				n := simulated(t, profile)
				got, err := nodetest.Read(open(t, n), n.Root)
				if err != nil {
					t.Fatal(err)
				}
				golden(t, filepath.Join("testdata", profile+".jsonl"), lines(t, got))
			})
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

// lines is a node as JSON, one line for each thing that it has, so that a
// difference shows which one.
func lines(t *testing.T, n node.Node) string {
	t.Helper()
	var b strings.Builder
	enc := json.NewEncoder(&b)
	put := func(v any) {
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	put(n.Driver)
	for _, g := range n.GPUs {
		put(g)
	}
	for _, nic := range n.NICs {
		put(nic)
	}
	for _, d := range n.Disks {
		put(d)
	}
	for _, m := range n.NUMA {
		put(m)
	}
	return b.String()
}

func TestNoDriver(t *testing.T) {
	n := simulated(t, "none")
	if _, err := nvml.Open(n.Root); !errors.Is(err, nvml.ErrNoDriver) {
		t.Errorf("open: %v, want ErrNoDriver", err)
	}
}

// TestAnotherRoot proves that a second driver root is refused, not misread.
func TestAnotherRoot(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		open(t, simulated(t, "l40sx4"))
		if _, err := nvml.Open(simulated(t, "mixed").Root); err == nil {
			t.Error("a second root was opened in one process")
		}
	})
}

// TestMissingDevice: a GPU whose device node is not there is not visible.
func TestMissingDevice(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "l40sx4")
		if err := os.Remove(filepath.Join(n.Root, "dev/nvidia1")); err != nil {
			t.Fatal(err)
		}
		gpus, err := open(t, n).GPUs()
		if err != nil || len(gpus) != 3 || gpus[1].Minor != 2 || gpus[1].Index != 1 {
			t.Errorf("GPUs %+v, %v", gpus, err)
		}
	})
}

func TestInjections(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "h200x8")
		lib := open(t, n)
		before, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		w, err := lib.Watch()
		if err != nil {
			t.Fatal(err)
		}
		inject := func(gpu int, in sim.Injection) {
			t.Helper()
			if err := n.Inject(gpu, in); err != nil {
				t.Fatal(err)
			}
		}
		inject(1, sim.Injection{Kind: "xid", Value: 31, PID: 4242})
		wantEvent(t, w, nvml.Event{GPU: before[1].UUID, Kind: nvml.EventXid, Data: 31})
		inject(2, sim.Injection{Kind: "xid", Value: 95})
		wantEvent(t, w, nvml.Event{GPU: before[2].UUID, Kind: nvml.EventXid, Data: 95})
		wantEvent(t, w, nvml.Event{GPU: before[2].UUID, Kind: nvml.EventRecoveryAction, Data: uint64(node.RecoveryReset)})
		inject(4, sim.Injection{Kind: "ecc", Value: 3})
		wantEvent(t, w, nvml.Event{GPU: before[4].UUID, Kind: nvml.EventDoubleBit})
		inject(5, sim.Injection{Kind: "remap", Value: 1})
		inject(6, sim.Injection{Kind: "remap", Value: 2})
		inject(3, sim.Injection{Kind: "lost"})
		wantEvent(t, w, nvml.Event{GPU: before[3].UUID, Kind: nvml.EventXid, Data: 79})

		after, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		var faults []node.Fault
		for i, g := range after {
			faults = append(faults, g.Fault)
			if g.UUID != before[i].UUID || g.Index != i {
				t.Errorf("GPU %d lost its name: %+v", i, g)
			}
		}
		want := []node.Fault{
			{}, {}, {Recovery: node.RecoveryReset}, {Lost: true}, {Uncorrectable: 3}, {RemapPending: true}, {RemapFailure: true}, {},
		}
		if d := cmp.Diff(want, faults); d != "" {
			t.Errorf("faults (-want +got):\n%s", d)
		}
		if _, err := lib.Memory(before[3].UUID); !errors.Is(err, nvml.ErrLost) {
			t.Errorf("memory of a lost GPU: %v, want ErrLost", err)
		}
		inject(3, sim.Injection{Kind: "clear"})
		if _, err := lib.Memory(before[3].UUID); err != nil {
			t.Errorf("after clear: %v", err)
		}
	})
}

func wantEvent(t *testing.T, w *nvml.Watcher, want nvml.Event) {
	t.Helper()
	want.GPUInstance, want.ComputeInstance = nvml.WholeGPU, nvml.WholeGPU
	got, ok, err := w.Wait(10 * time.Second)
	if err != nil || !ok {
		t.Fatalf("no event: %v", err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("event (-want +got):\n%s", d)
	}
}

// TestWaitWakes: an event ends a wait that is under way.
func TestWaitWakes(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "l40sx4")
		w, err := open(t, n).Watch()
		if err != nil {
			t.Fatal(err)
		}
		woke := make(chan nvml.Event)
		go func() {
			e, _, _ := w.Wait(time.Minute)
			woke <- e
		}()
		if err := n.Inject(3, sim.Injection{Kind: "xid", Value: 48}); err != nil {
			t.Fatal(err)
		}
		if e := <-woke; e.Data != 48 {
			t.Errorf("event %+v", e)
		}
	})
}

// TestHang: calls on a hung GPU block for the injected time, and are freed by
// a clear; other GPUs answer.
func TestHang(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "l40sx4")
		lib := open(t, n)
		gpus, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Inject(0, sim.Injection{Kind: "hang", Hang: time.Hour}); err != nil {
			t.Fatal(err)
		}
		answered := make(chan error)
		go func() {
			_, err := lib.Memory(gpus[0].UUID)
			answered <- err
		}()
		if _, err := lib.Memory(gpus[1].UUID); err != nil {
			t.Error(err)
		}
		select {
		case <-answered:
			t.Error("the hung GPU answered")
		case <-time.After(50 * time.Millisecond):
		}
		if err := n.Inject(0, sim.Injection{Kind: "clear"}); err != nil {
			t.Fatal(err)
		}
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})
}

// holder starts a program that holds memory of each GPU through the node's libcuda, and waits until it does.
func holder(t *testing.T, n *sim.Node, bytes node.Bytes, env ...string) *exec.Cmd {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "hold")
	if out, err := exec.Command("gcc", "-o", exe, "testdata/hold.c", "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("compile testdata/hold.c: %v\n%s", err, out)
	}
	library, err := nvml.FindLibrary(n.Root, "libcuda.so.1")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, library, fmt.Sprint(uint64(bytes)))
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("holder said %q, %v", line, err)
	}
	return cmd
}

// TestMIGInUse: an instance with a process in it is not destroyed, and shows what is in it; with the process dead, it goes. What
// then comes in its place has another name.
func TestMIGInUse(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "a100x8")
		lib := open(t, n)
		gpus, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		gpu := gpus[6].UUID
		in, err := lib.CreateMIG(gpu, "2g.20gb", 2)
		if err != nil {
			t.Fatal(err)
		}
		cmd := holder(t, n, 3*node.GiB, "CUDA_VISIBLE_DEVICES="+in.UUID.String())
		const held = 3*node.GiB + 416*node.MiB
		if m, err := lib.InstanceMemory(in.UUID); err != nil || m.Used != held || m.Total != 19968*node.MiB {
			t.Errorf("memory %+v, %v", m, err)
		}
		if m, err := lib.Memory(gpu); err != nil || m.Used != held {
			t.Errorf("memory of the card %+v, %v", m, err)
		}
		procs, err := lib.Processes(gpu)
		if err != nil || len(procs) != 1 || procs[0].PID != cmd.Process.Pid || procs[0].Bytes != held {
			t.Errorf("processes of the card %+v, %v", procs, err)
		}
		if err := lib.DestroyMIG(gpu, "2g.20gb", 2); !errors.Is(err, nvml.ErrInUse) || !strings.Contains(err.Error(), "2g.20gb at slice 2") {
			t.Errorf("destroyed in use: %v", err)
		}
		if err := lib.SetMIGMode(gpu, false); !errors.Is(err, nvml.ErrInUse) {
			t.Errorf("mode of a card with instances: %v", err)
		}
		if same, err := lib.CreateMIG(gpu, "2g.20gb", 2); err != nil || same != in {
			t.Errorf("asked again: %+v, %v; want %+v", same, err, in)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed: that is its error
		if err := lib.DestroyMIG(gpu, "2g.20gb", 2); err != nil {
			t.Error(err)
		}
		if next, err := lib.CreateMIG(gpu, "2g.20gb", 2); err != nil || next.UUID == in.UUID {
			t.Errorf("after %v came %+v, %v", in.UUID, next, err)
		}
	})
}

const churnEnv = "KERF_NODETEST_CHURN" // the root of the node on which this process makes and destroys instances until it is killed

// churn says before each step that it takes it.
func churn(root string) error {
	lib, err := nvml.Open(root)
	if err != nil {
		return err
	}
	gpus, err := lib.GPUs()
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		fmt.Println("step")
		start, profile := i%4*2, "1g.20gb"
		if i%2 == 1 {
			profile = "1g.10gb"
		}
		if _, err := lib.CreateMIG(gpus[6].UUID, profile, start); err != nil {
			return err
		}
		fmt.Println("step")
		if err := lib.DestroyMIG(gpus[6].UUID, profile, start); err != nil {
			return err
		}
	}
}

// TestMIGCrash: a process that divides a card is killed at any point. What it leaves are instances that can be completed and
// destroyed, or none; nothing is lost of the card.
func TestMIGCrash(t *testing.T) {
	if root := os.Getenv(churnEnv); root != "" {
		t.Fatal(churn(root))
	}
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "a100x8")
		lib := open(t, n)
		gpus, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		for round := range 12 {
			cmd := exec.Command(os.Args[0], "-test.run=^TestMIGCrash$")
			cmd.Env = append(os.Environ(), churnEnv+"="+n.Root)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			for range 1 + round*3 {
				if line, err := lines.ReadString('\n'); line != "step\n" {
					t.Fatalf("said %q, %v", line, err)
				}
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed: that is its error
			for start := 0; start < 8; start += 2 {
				for _, profile := range []string{"1g.10gb", "1g.20gb"} {
					if err := lib.DestroyMIG(gpus[6].UUID, profile, start); err != nil {
						t.Error(err)
					}
				}
			}
			if _, err := lib.CreateMIG(gpus[6].UUID, "7g.80gb", 0); err != nil {
				t.Errorf("the whole card in one after round %d: %v", round, err)
			}
			if err := lib.DestroyMIG(gpus[6].UUID, "7g.80gb", 0); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestMIGMode: a card goes into MIG mode and out of it while nobody uses it.
func TestMIGMode(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "h200x8")
		lib := open(t, n)
		gpus, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		gpu := gpus[2].UUID
		if _, err := lib.CreateMIG(gpu, "1g.18gb", 0); err == nil || !strings.Contains(err.Error(), "not in MIG mode") {
			t.Errorf("instance on a card that is not in MIG mode: %v", err)
		}
		if err := lib.DestroyMIG(gpu, "1g.18gb", 0); err != nil {
			t.Errorf("nothing to destroy: %v", err)
		}
		if err := lib.SetMIGMode(gpu, true); err != nil {
			t.Fatal(err)
		}
		if _, err := lib.CreateMIG(gpu, "1g.18gb", 0); err != nil {
			t.Error(err)
		}
		if err := lib.DestroyMIG(gpu, "1g.18gb", 0); err != nil {
			t.Error(err)
		}
		if err := lib.SetMIGMode(gpu, false); err != nil {
			t.Error(err)
		}
		holder(t, n, node.GiB)
		if err := lib.SetMIGMode(gpu, true); !errors.Is(err, nvml.ErrInUse) {
			t.Errorf("mode of a card in use: %v", err)
		}
		if gpus, err = lib.GPUs(); err != nil || gpus[2].MIG.Enabled || !gpus[2].MIG.Pending {
			t.Errorf("%+v, %v; want the mode to wait", gpus[2].MIG, err)
		}
	})
}

// TestKilledProcess: what a process holds shows with its pid, and is gone once it was killed.
func TestKilledProcess(t *testing.T) {
	nodetest.InOwnProcess(t, func(t *testing.T) {
		n := simulated(t, "l40sx4")
		lib := open(t, n)
		gpus, err := lib.GPUs()
		if err != nil {
			t.Fatal(err)
		}
		cmd := holder(t, n, 3*node.GiB)
		for _, g := range gpus {
			procs, err := lib.Processes(g.UUID)
			if err != nil || len(procs) != 1 || procs[0].PID != cmd.Process.Pid || procs[0].Bytes != 3*node.GiB+384*node.MiB {
				t.Errorf("GPU %d: processes %+v, %v; want pid %d with 3Gi and a context", g.Index, procs, err, cmd.Process.Pid)
			}
		}
		if st := n.Status(); len(st.GPUs[1].Processes) != 1 || st.GPUs[1].Used != 3*node.GiB+384*node.MiB {
			t.Errorf("status %+v", st.GPUs[1])
		}
		if err := n.Remove(false); err == nil || !strings.Contains(err.Error(), fmt.Sprint(cmd.Process.Pid)) {
			t.Errorf("remove of a node in use: %v", err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed: that is its error
		for _, g := range gpus {
			procs, err := lib.Processes(g.UUID)
			m, memErr := lib.Memory(g.UUID)
			if err != nil || memErr != nil || len(procs) != 0 || m.Used != 0 {
				t.Errorf("GPU %d after the kill: %+v, %+v, %v, %v", g.Index, procs, m, err, memErr)
			}
		}
	})
}
