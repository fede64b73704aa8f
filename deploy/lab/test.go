package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// testVerb builds the suites, boots each machine once, and runs its suites one after the other.
func testVerb(ctx context.Context, args []string) error {
	f := newFlags("test")
	only := f.String("only", "", "suites with this in their names")
	run := f.String("run", "^TestLab", "tests")
	f.name = "" // all
	f.Lookup("hardware").DefValue = ""
	if err := f.Parse(args); err != nil || f.NArg() > 0 {
		return usageError{fmt.Errorf("test: %w; see lab help", errors.Join(err, fmt.Errorf("%d operands", f.NArg())))}
	}
	if _, err := os.Stat("deploy/lab/suites.go"); err != nil {
		return errors.New("test: start it at the repository's top: it builds the packages from there")
	}
	r, err := fetch(ctx)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "kerf-lab-test-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	var lines []string
	ok := true
	for _, m := range hardware() {
		if f.name != "" && f.name != m.Name {
			continue
		}
		t := tester{root: r, machine: m, work: work, run: *run, console: f.console}
		said, good, err := t.test(ctx, *only)
		if err != nil {
			return err
		}
		lines, ok = append(lines, said...), ok && good
	}
	fmt.Println(strings.Join(lines, "\n"))
	if !ok {
		return errors.New("tests failed")
	}
	return nil
}

// tester runs the suites of one machine.
type tester struct {
	root    root
	machine Machine
	work    string
	run     string
	console bool
}

func (t tester) test(ctx context.Context, only string) (lines []string, ok bool, err error) {
	var run []suite
	var files []hostFile
	var jobs []job
	for _, s := range suites() {
		if s.hardware != t.machine.Name || !strings.Contains(s.name, only) {
			continue
		}
		if missing := s.missing(); missing != "" {
			lines = append(lines, fmt.Sprintf("none %-12s %s", s.name, missing))
			continue
		}
		built, err := t.build(ctx, s)
		if err != nil {
			return nil, false, err
		}
		if built == nil {
			lines = append(lines, fmt.Sprintf("none %-12s %s has no tests", s.name, s.pkg))
			continue
		}
		run, files, jobs = append(run, s), append(files, built...), append(jobs, s.job(t.machine, t.run))
	}
	if len(run) == 0 {
		return lines, true, nil
	}
	outputs := make([]strings.Builder, len(run))
	b := boot{root: t.root, machine: t.machine, files: files, jobs: jobs, grace: hangAfter, output: func(job int, _ byte, data []byte) {
		outputs[job].Write(data)
		_, _ = os.Stdout.Write(data)
	}}
	if t.console {
		b.console = os.Stderr
	}
	began := time.Now()
	res, err := b.run(ctx)
	if err != nil {
		return nil, false, err
	}
	ok = true
	lines = append(lines, fmt.Sprintf("machine %s: booted in %.1f s, %.1f s in all", t.machine.Name, res.ready.Seconds(), time.Since(began).Seconds()))
	for i, s := range run {
		line, good := s.report(outputs[i].String(), res.ended[i])
		lines, ok = append(lines, line), ok && good
	}
	return lines, ok, nil
}

// build makes a suite's binaries and says what to copy; nil is a package without tests.
func (t tester) build(ctx context.Context, s suite) ([]hostFile, error) {
	out := filepath.Join(t.work, s.name+".test")
	if err := compile(ctx, ".", "test", "-c", "-o", out, s.pkg); err != nil {
		return nil, fmt.Errorf("build the tests of %s: %w", s.pkg, err)
	}
	if _, err := os.Stat(out); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	files := []hostFile{{out, s.binary()}}
	if data := filepath.Join(s.pkg, "testdata"); isDir(data) {
		files = append(files, hostFile{data, s.dir() + "/testdata"})
	}
	if s.given != "" {
		files = append(files, hostFile{os.Getenv(s.given), plugins + s.name})
	}
	for _, p := range s.programs {
		out := filepath.Join(t.work, "program-"+filepath.Base(p.guest))
		if err := compile(ctx, p.module, "build", "-trimpath", "-buildvcs=false", "-o", out, p.pkg); err != nil {
			return nil, fmt.Errorf("build %s: %w", p.pkg, err)
		}
		files = append(files, hostFile{out, p.guest})
	}
	return files, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// compile runs go without cgo: programs in the machine have no libraries.
func compile(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, out)
	}
	return nil
}
