package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/monitor/xid"
)

// xidAnswer is what kerf xid prints with --json.
type xidAnswer struct {
	Schema string `json:"schema"`
	xid.Entry
	Known     bool                     `json:"known"`
	Reactions map[string]monitor.Level `json:"reactions"` // by profile
	Decode    []xid.Row                `json:"decode,omitempty"`
}

func xidCommand() *cobra.Command {
	var profile string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "xid CODE",
		Short:   "Say what an Xid means, and what Kerf makes of it; needs neither GPU nor kerfd",
		Example: "  kerf xid 79\n  kerf xid 63 --profile conservative",
		Args:    one("xid wants one code, as in: kerf xid 79"),
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := strconv.Atoi(args[0])
			if err != nil || code < 1 {
				return exitError{exitUsage, fmt.Errorf("xid %q: not a code; write the number from the kernel's line, as in: kerf xid 79", args[0])}
			}
			profiles := monitor.Profiles()
			if profile != "" {
				one, err := monitor.FindProfile(profile)
				if err != nil {
					return exitError{exitUsage, err}
				}
				profiles = map[string]monitor.Profile{profile: one}
			}
			entry, known := xid.Lookup(code)
			answer := xidAnswer{Schema: control.XidSchema, Entry: entry, Known: known, Reactions: make(map[string]monitor.Level), Decode: rowsOf(code)}
			for name, p := range profiles {
				answer.Reactions[name] = p.Level(code, xid.None)
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(answer)
			}
			return writeXid(cmd.OutOrStdout(), answer, profiles)
		},
	}
	cmd.Flags().StringVar(&profile, "profile", "", "show what this profile makes of it: nvidia, conservative or shared; else all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON ("+control.XidSchema+")")
	return cmd
}

func rowsOf(code int) (rows []xid.Row) {
	for _, r := range xid.Rows() {
		if r.Code == code {
			rows = append(rows, r)
		}
	}
	return rows
}

// reactions say what a level means for pods.
var reactions = map[monitor.Level]string{
	monitor.Healthy:  "nothing: a program's own fault, or information; counted",
	monitor.Suspect:  "watched",
	monitor.Degraded: "told: the card is marked, and still given to pods",
	monitor.Hold:     "nothing new on the card",
	monitor.Reset:    "nothing new on the card, and a reset of it once what runs has ended",
	monitor.Reboot:   "nothing new on the card, and a reboot of the node once what runs has ended",
	monitor.Replace:  "nothing new on the card until it is another one, or somebody releases it",
}

func writeXid(out io.Writer, a xidAnswer, profiles map[string]monitor.Profile) error {
	if !a.Known {
		fmt.Fprintf(out, "Xid %d is not in the catalogue. Kerf tells of it and counts it, and does nothing else.\n", a.Code)
		return nil
	}
	fmt.Fprintf(out, "Xid %d  %s\n\n", a.Code, a.Name)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, text)
		}
	}
	line("at once", actionWords(a.Action))
	line("then", a.Investigate)
	line("products", a.Products())
	if a.Linked != "" {
		line("driver", "from "+strings.TrimPrefix(a.Linked, "GPU driver ")+" on it says itself what it needs (Xid 154), and that counts")
	}
	if !a.Used {
		line("note", "out of use: present drivers do not report it")
	}
	for _, name := range slices.Sorted(maps.Keys(profiles)) {
		text := fmt.Sprintf("%s: %s", a.Reactions[name], reactions[a.Reactions[name]])
		if slices.Contains(profiles[name].Pinned, a.Code) {
			text = "pinned on the pod whose process the line names; the card is never held for it"
		}
		line("profile "+name, text)
	}
	if len(a.Decode) > 0 {
		line("registers", fmt.Sprintf("%d meanings, by IntrInfo and ErrorStatus in the line; the profile goes by theirs:", len(a.Decode)))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range a.Decode {
		status := r.Status.String()
		if status == "" {
			status = "any"
		}
		fmt.Fprintf(out, "  %-34s %s  status %-21s %-12s %s (%s)\n", r.Unit, r.New, status, r.Action, r.Severity, r.Origin)
	}
	return nil
}

func actionWords(a xid.Action) string {
	if a == xid.None {
		return "the catalogue names nothing yet"
	}
	return string(a)
}
