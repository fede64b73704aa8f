package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// flags are a verb's; every one has --hardware.
type flags struct {
	*flag.FlagSet
	name    string
	files   []hostFile
	timeout time.Duration
	console bool
}

func newFlags(name string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.SetOutput(io.Discard)
	f.StringVar(&f.name, "hardware", "cni", "the machine")
	f.BoolVar(&f.console, "console", false, "show the kernel's console on standard error")
	f.DurationVar(&f.timeout, "timeout", 5*time.Minute, "the command's time")
	f.Func("file", "HOST:GUEST, a file or directory to copy", func(value string) error {
		host, guest, ok := strings.Cut(value, ":")
		if !ok || host == "" || !strings.HasPrefix(guest, "/") {
			return errors.New("want HOST:GUEST, with an absolute path in the machine")
		}
		f.files = append(f.files, hostFile{host, guest})
		return nil
	})
	return f
}

// parse reads args. operands tells whether some must be left, or none.
func (f *flags) parse(args []string, operands bool) (Machine, error) {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			usage(os.Stdout)
			return Machine{}, err
		}
		return Machine{}, usageError{fmt.Errorf("%s: %w", f.Name(), err)}
	}
	if operands != (f.NArg() > 0) {
		return Machine{}, usageError{fmt.Errorf("%s: %d operands given; see lab help", f.Name(), f.NArg())}
	}
	return machine(f.name)
}

// start boots a machine for jobs, and passes their output on to this process's.
func (f *flags) start(ctx context.Context, m Machine, jobs []job) (result, error) {
	r, err := fetch(ctx)
	if err != nil {
		return result{}, err
	}
	b := boot{root: r, machine: m, files: f.files, jobs: jobs, grace: hangAfter, output: func(_ int, kind byte, data []byte) {
		to := os.Stdout
		if kind == frameStderr {
			to = os.Stderr
		}
		_, _ = to.Write(data)
	}}
	if f.console {
		b.console = os.Stderr
	}
	return b.run(ctx)
}

func runVerb(ctx context.Context, args []string) error {
	f := newFlags("run")
	m, err := f.parse(args, true)
	if err != nil {
		return err
	}
	res, err := f.start(ctx, m, []job{{Args: f.Args(), Env: environment(m), Timeout: f.timeout}})
	if err != nil {
		return err
	}
	end := res.ended[0]
	if end.Timeout || end.Error != "" {
		fmt.Fprintf(os.Stderr, "lab: %s: %s\n", f.Arg(0), end)
	}
	if code := end.exit(); code != 0 {
		return exitError(code)
	}
	return nil
}

// environment is what programs in a machine know of it.
func environment(m Machine) []string {
	return []string{"KERF_LAB=1", "KERF_LAB_HARDWARE=" + m.Name, "TMPDIR=/tmp", "DM_DISABLE_UDEV=1"}
}

func shellVerb(ctx context.Context, args []string) error {
	f := newFlags("shell")
	m, err := f.parse(args, false)
	if err != nil {
		return err
	}
	_, err = f.start(ctx, m, []job{{Args: []string{"/bin/sh", "-l"}, Env: append(environment(m), "TERM=vt100"), Timeout: 24 * time.Hour, Shell: true}})
	return err
}

func bootTimeVerb(ctx context.Context, args []string) error {
	f := newFlags("boot-time")
	m, err := f.parse(args, false)
	if err != nil {
		return err
	}
	began := time.Now()
	res, err := f.start(ctx, m, []job{{Args: []string{appletDir + "/true"}, Timeout: time.Minute}})
	if err != nil {
		return err
	}
	fmt.Printf("%s: %.1f s from QEMU's start to the first command; %.1f s in all\n", m.Name, res.ready.Seconds(), time.Since(began).Seconds())
	return nil
}

func fetchVerb(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return usageError{errors.New("fetch: it takes nothing")}
	}
	r, err := fetch(ctx)
	if err == nil {
		fmt.Println(r.dir)
	}
	return err
}

func hardwareVerb(_ context.Context, args []string) error {
	f := newFlags("hardware")
	m, err := f.parse(args, false)
	if err != nil {
		return err
	}
	out, err := json.MarshalIndent(m.described(), "", "  ")
	if err == nil {
		fmt.Println(string(out))
	}
	return err
}
