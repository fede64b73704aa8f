package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/doctor"
)

// doctorFlags are what a person may say of an examination.
type doctorFlags struct {
	level, format, bundle, profile string
	json                           bool
	timeout                        time.Duration
	selection                      doctor.Selection
}

func doctorCommand(o *options) *cobra.Command {
	var d doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong on this node",
		Long: "Look for what is wrong on this node. Level quick takes less than two seconds and only reads; full reads more; active runs\n" +
			"a small program in a slice, to see that the shim holds its limit.\n\nExit: 0 all is well, 1 warnings, 2 critical, 3 something could not be told, 64 wrong command line.",
		Example: "  kerf doctor\n  kerf doctor --level active -o junit\n  kerf doctor --only gpu,driver.module --skip gpu.links\n  kerf doctor --bundle node7.tar.gz",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return exitError{exitUsage, fmt.Errorf("argument %q: doctor takes flags only; see kerf doctor --help", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := d.examine(cmd.Context(), o)
			if err != nil {
				return err
			}
			if d.bundle != "" {
				if err := writeBundle(cmd.Context(), d.bundle, r, o); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "kerf: wrote %s\n", d.bundle)
			}
			if err := r.Write(cmd.OutOrStdout(), d.format); err != nil {
				return err
			}
			if code := r.Exit(); code != 0 {
				return exitError{code: code}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.level, "level", "quick", "how far to go: quick, full or active")
	f.StringVarP(&d.format, "output", "o", "text", "text, json ("+control.DoctorSchema+") or junit")
	f.BoolVar(&d.json, "json", false, "the same as -o json")
	f.StringSliceVar(&d.selection.Only, "only", nil, "checks, or groups of them (the part before the dot), to run")
	f.StringSliceVar(&d.selection.Skip, "skip", nil, "checks, or groups of them, to leave out")
	f.DurationVar(&d.timeout, "timeout", 0, "for each set of facts; a check without its facts is UNKNOWN (default: 2s to 60s, by what it is)")
	f.StringVar(&d.profile, "profile", "", "fail where kerfd judges by another profile than this: nvidia, conservative or shared")
	f.StringVar(&d.bundle, "bundle", "", "also write a .tar.gz for a report of a fault, without secrets")
	return cmd
}

func (d *doctorFlags) examine(ctx context.Context, o *options) (r doctor.Report, err error) {
	usage := func(err error) error { return exitError{exitUsage, err} }
	if d.json {
		d.format = "json"
	}
	if !slices.Contains(doctor.Formats, d.format) {
		return r, usage(fmt.Errorf("output %q: not known; use %s", d.format, strings.Join(doctor.Formats, ", ")))
	}
	if d.timeout < 0 {
		return r, usage(errors.New("timeout: below 0; leave it out for the default"))
	}
	if d.profile != "" {
		if _, err := monitor.FindProfile(d.profile); err != nil {
			return r, usage(err)
		}
	}
	if d.selection.Level, err = doctor.ParseLevel(d.level); err != nil {
		return r, usage(err)
	}
	checks, err := d.selection.Select()
	if err != nil {
		return r, usage(err)
	}
	p := &patient{client: o.client(), socket: o.socket, timeout: d.timeout}
	r = doctor.Report{Schema: control.DoctorSchema, Tool: "kerf " + version.Version, Started: time.Now().UTC(), Level: d.level}
	f := p.gather(ctx, doctor.Sections(checks, d.selection.Level))
	r.Checks, r.Worst = doctor.Examine(checks, d.selection.Level, f)
	if d.profile != "" {
		r.Checks = append(r.Checks, profileFinding(ctx, p, d.profile))
		r.Worst = doctor.Worse(r.Worst, r.Checks[len(r.Checks)-1].Status)
	}
	r.Simulated, r.BootID, r.Node = f.Simulated, f.BootID, f.NodeName
	if r.Node == "" {
		r.Node, _ = os.Hostname() // a report without a name is still one
	}
	r.Duration = time.Since(r.Started).Seconds()
	return r, nil
}

// profileFinding compares the profile that is in force with the one that somebody expects.
func profileFinding(ctx context.Context, p *patient, want string) doctor.Finding {
	f := doctor.Finding{ID: "monitor.profile", Group: "monitor", Status: doctor.Pass}
	h, err := p.client.Health(ctx)
	switch {
	case err != nil:
		f.Status, f.Found = doctor.Unknown, err.Error()
	case h.Profile != want:
		f.Status, f.Found, f.Fix = doctor.Warn, fmt.Sprintf("kerfd judges by profile %q, not %q", h.Profile, want), "set monitor.profile in kerfd's configuration"
	default:
		f.Found = fmt.Sprintf("kerfd judges by profile %s, mode %s", h.Profile, h.Mode)
	}
	return f
}
