package shimtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// enterEnv carries the view to the child that enters it: this test binary again, in new namespaces.
const enterEnv = "KERF_SHIMTEST_VIEW"

func TestMain(m *testing.M) {
	if text := os.Getenv(enterEnv); text != "" {
		err := enter(text)
		fmt.Fprintln(os.Stderr, "enter tenant view:", err)
		os.Exit(120)
	}
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// view is what a tenant finds under /run.
type view struct {
	Kerf  string // a directory of the host that becomes /run/kerf; "": there is none
	Sim   string // becomes /run/kerf/sim; "": no simulated node
	Nodes []int  // GPUs of the simulated node that are there
	Caps  []int  // and MIG capabilities
	Argv  []string
	UID   int // run as this user, if not 0
}

func enter(text string) error {
	var v view
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return err
	}
	os.Unsetenv(enterEnv)
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := syscall.Mount("kerf-test", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if v.Kerf != "" {
		if err := v.mount(); err != nil {
			return err
		}
	}
	if v.UID != 0 {
		if err := syscall.Setgid(v.UID); err != nil {
			return err
		}
		if err := syscall.Setuid(v.UID); err != nil {
			return err
		}
	}
	return syscall.Exec(v.Argv[0], v.Argv, os.Environ())
}

func bind(from, to string, flags uintptr) error {
	if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	if flags == 0 {
		return nil
	}
	return syscall.Mount("", to, "", syscall.MS_BIND|syscall.MS_REMOUNT|flags, "")
}

func (v view) mount() error {
	if err := os.MkdirAll("/run/kerf", 0o755); err != nil {
		return err
	}
	if err := bind(v.Kerf, "/run/kerf", 0); err != nil {
		return err
	}
	policies, _ := filepath.Glob("/run/kerf/shares/*/policy")
	for _, p := range policies {
		if err := bind(p, p, syscall.MS_RDONLY); err != nil {
			return err
		}
	}
	if v.Sim == "" {
		return nil
	}
	files := []string{"dev/nvidiactl", "SIMULATED"}
	for _, n := range v.Nodes {
		files = append(files, fmt.Sprintf("dev/nvidia%d", n))
	}
	for _, n := range v.Caps {
		files = append(files, fmt.Sprintf("dev/nvidia-caps/nvidia-cap%d", n))
	}
	for _, f := range files {
		to := filepath.Join("/run/kerf/sim", f)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, nil, 0o666); err != nil {
			return err
		}
		if err := bind(filepath.Join(v.Sim, f), to, 0); err != nil {
			return err
		}
	}
	return nil
}

// run starts the view's program and waits for it. Environment: env alone and PATH.
func (v view) run(t testing.TB, stdin string, env ...string) result {
	t.Helper()
	cmd := v.command(t, env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	r := result{out: out.String(), errs: errs.String(), code: cmd.ProcessState.ExitCode()}
	if r.code == 120 {
		t.Skip("no mount namespace to be had: ", r.errs)
	}
	return r
}

type result struct {
	out, errs string
	code      int
}

func (r result) ok(t testing.TB) result {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit status %d\n%s%s", r.code, tail(r.out), tail(r.errs))
	}
	return r
}

func tail(s string) string {
	if len(s) > 4000 {
		return "…" + s[len(s)-4000:]
	}
	return s
}

func (v view) command(t testing.TB, env ...string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.WaitDelay = 5 * time.Second // a child that outlives the program must not hold the test by its pipe
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LD_LIBRARY_PATH=/run/kerf/lib", enterEnv + "=" + string(text)}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

// --- what is built -------------------------------------------------------------------------------------------------

var built struct {
	sync.Mutex
	dir  string
	done map[string]error
}

func repoRoot(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// once makes the named thing in the directory of this run, and returns its path.
func once(t testing.TB, name string, build func(path string) error) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "kerf-shimtest-")
		if err != nil {
			t.Fatal(err)
		}
		built.dir, built.done = dir, map[string]error{}
	}
	path := filepath.Join(built.dir, name)
	err, done := built.done[name]
	if !done {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = build(path)
		}
		built.done[name] = err
	}
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return path
}

// variant is a way to compile the C code.
type variant struct {
	name, cc, flags string
}

var plain = variant{"gcc", "gcc", ""}

// libraries builds a library directory (build/lib/kerf of a make) with the goals.
func libraries(t testing.TB, v variant, goals ...string) string {
	t.Helper()
	name := strings.Join(append([]string{v.name}, goals...), "-")
	return once(t, name+"/lib/kerf", func(path string) error {
		if _, err := exec.LookPath(v.cc); err != nil {
			return err
		}
		args := append([]string{"-s", "-j2", "-C", repoRoot(t), "B=" + filepath.Dir(filepath.Dir(path)), "CC=" + v.cc, "SHIM_FLAGS=" + v.flags}, goals...)
		if out, err := exec.Command("make", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// program compiles vgpu/shim/test/<source>.c. Arguments after the source go to the compiler's end.
func program(t testing.TB, name, source string, args ...string) string {
	t.Helper()
	return once(t, "bin/"+name, func(path string) error {
		root := repoRoot(t)
		base := []string{
			"-O1", "-g", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I" + filepath.Join(root, "internal/cuda"),
			"-I" + filepath.Join(root, "vgpu/shim"), "-o", path, filepath.Join(root, "vgpu/shim/test", source),
		}
		out, err := exec.Command("gcc", append(append(base, args...), "-ldl", "-lpthread")...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
