// Package demo is what `make demo` shows: four programs that know nothing of Kerf share one GPU, each within
// its memory; one asks for too much and is refused, one is killed and its memory comes back, the others
// notice neither.
//
// It is a Go program and not a shell script because it is mostly bookkeeping of processes: whatever fails,
// every tenant and kerfd must be gone afterwards. It runs wherever the binaries are, without make.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
)

// Options of Run.
type Options struct {
	Bin     string // directory of kerf and kerfd; "": beside the running binary
	Profile string // simulate this profile even where a GPU is there
	Out     io.Writer
}

// part is one of the four tenants.
type part struct {
	name    string
	percent int // of the card's memory, and of its time
	args    []string
}

var parts = []part{
	{"train", 50, []string{"--seconds", "0"}},
	{"serve", 30, []string{"--seconds", "0"}},
	{"notebook", 19, []string{"--seconds", "0", "--idle", "0.2"}},
	{"hog", 1, nil}, // runs to its end while the others work
}

// victim is the part that is killed.
const victim = "notebook"

// line is a row of the closing report.
type line struct {
	limit, peak uint64
	refused     string
	verified    uint64
	wrong       uint64
	end         string
}

type demo struct {
	out    io.Writer
	on     *rig.Rig
	memory uint64 // bytes of the GPU
	gpu    string // its uuid
	lines  map[string]*line
	lives  map[string]*rig.Tenant
	holds  map[string]rig.Event
}

// Run shows everything and returns nil when all went as promised. It leaves nothing behind.
func Run(ctx context.Context, options Options) (err error) {
	began := time.Now()
	on, err := rig.Start(ctx, rig.Options{Bin: options.Bin, Profile: options.Profile})
	if err != nil {
		return err
	}
	d := &demo{out: options.Out, on: on, lines: map[string]*line{}, lives: map[string]*rig.Tenant{}, holds: map[string]rig.Event{}}
	defer func() { err = errors.Join(err, d.close()) }()
	for _, step := range []func(context.Context) error{d.introduce, d.startTenants, d.showTop, d.hog, d.kill, d.finish} {
		err := step(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted; nothing is left behind: %w", ctx.Err()) // what else failed, failed of that
		}
		if err != nil {
			return err
		}
	}
	return d.report(time.Since(began))
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// close ends whatever still runs, also after a failure half way.
func (d *demo) close() error {
	for _, tenant := range d.lives {
		tenant.End()
	}
	return d.on.Close()
}

func (d *demo) introduce(ctx context.Context) error {
	top, err := d.on.Top(ctx)
	if err != nil {
		return err
	}
	if len(top.GPUs) == 0 {
		return fmt.Errorf("kerfd sees no GPU: nothing to share")
	}
	card := top.GPUs[0]
	d.memory, d.gpu = uint64(card.Memory), card.UUID.String()
	if d.on.Simulated {
		d.say("SIMULATED: this machine has no NVIDIA GPU; kerfd simulates %s. Memory and limits are real, speed is not.", d.on.Profile)
	} else {
		d.say("On this machine's GPU, driver %s.", d.on.DriverVersion())
	}
	d.say("GPU 0 is a %s with %s.\n", card.Name, gib(d.memory))
	return nil
}

func (d *demo) startTenants(ctx context.Context) error {
	d.say("Three programs take 50, 30 and 19 %% of it, each by `kerf run`:")
	for _, part := range parts {
		d.lines[part.name] = &line{}
		if part.args == nil {
			continue
		}
		tenant, err := d.start(ctx, part)
		if err != nil {
			return err
		}
		d.lives[part.name] = tenant
		event, err := tenant.Await("holding")
		if err != nil {
			return err
		}
		d.holds[part.name] = event
		*d.lines[part.name] = line{limit: event.Limit, peak: event.Held}
		d.say("  kerf run --memory %dMi --cores %d -- %-8s  sees a card of %s, holds %s", d.mebibytes(part), part.percent, part.name, gib(event.Limit), gib(event.Held))
	}
	return nil
}

func (d *demo) start(ctx context.Context, part part) (*rig.Tenant, error) {
	slice := rig.Slice{Memory: fmt.Sprintf("%dMi", d.mebibytes(part)), Cores: part.percent, GPU: d.gpu}
	args := append([]string{"--json"}, part.args...)
	return rig.StartTenant(part.name, d.on.Sliced(ctx, slice, d.on.Tenant(part.name), args...))
}

func (d *demo) mebibytes(part part) uint64 { return d.memory * uint64(part.percent) / 100 >> 20 }

func (d *demo) showTop(ctx context.Context) error {
	d.say("\n$ kerf top --once")
	cmd := d.on.Kerf(ctx, "top", "--once")
	cmd.Stdout, cmd.Stderr = d.out, d.out
	return cmd.Run()
}

// hog fills the last percent by every class of allocation and must be refused each time.
func (d *demo) hog(ctx context.Context) error {
	part := parts[len(parts)-1]
	d.say("\nA hog in the last %d %% asks for one chunk too many, by each class of allocation:", part.percent)
	part.args = []string{"--limit", fmt.Sprintf("%dMi", d.mebibytes(part))}
	tenant, err := d.start(ctx, part)
	if err != nil {
		return err
	}
	d.lives[part.name] = tenant
	row := d.lines[part.name]
	for {
		event, more := tenant.Next()
		if !more {
			break
		}
		switch event.Event {
		case "class":
			if event.Complaint != "" {
				return fmt.Errorf("hog, class %s: %s (error %d after %s)", event.Class, event.Complaint, event.Error, gib(event.Got))
			}
			d.say("  %-8s got %s, then refused %s with error %d", event.Class, gib(event.Got), mib(event.Refused), event.Error)
			row.peak = max(row.peak, event.Got)
			row.refused = fmt.Sprintf("%s, error %d", mib(event.Refused), event.Error)
		case "report":
			row.limit, row.verified, row.wrong = event.Limit, event.Verified, event.Wrong
		}
	}
	delete(d.lives, part.name)
	if err := tenant.Wait(); err != nil {
		return err
	}
	row.end = "refused in every class"
	return nil
}

// killPatience is how long the memory of a killed tenant may take to be back.
const killPatience = 5 * time.Second

func (d *demo) kill(ctx context.Context) error {
	before, err := d.grantable(ctx)
	if err != nil {
		return err
	}
	tenant, held := d.lives[victim], d.holds[victim]
	d.say("\nkill -9 %d (%s), which holds %s; %s can be granted:", held.Pid, victim, gib(held.Held), gib(before))
	killed := time.Now()
	if err := syscall.Kill(held.Pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", victim, err)
	}
	_ = tenant.Wait() // killed: its end is no news
	delete(d.lives, victim)
	d.lines[victim].end = "killed, memory back"

	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		after, err := d.grantable(ctx)
		if err != nil {
			return err
		}
		if after >= before+held.Limit {
			d.say("  %s can be granted %d ms later", gib(after), time.Since(killed).Milliseconds())
			return nil
		}
		if time.Since(killed) > killPatience {
			return fmt.Errorf("%s was killed %v ago and held %s of its %s slice, but only %s can be granted, %s before: its memory is not back",
				victim, killPatience, gib(held.Held), gib(held.Limit), gib(after), gib(before))
		}
		<-tick.C
	}
}

func (d *demo) grantable(ctx context.Context) (uint64, error) {
	top, err := d.on.Top(ctx)
	if err != nil {
		return 0, err
	}
	for _, card := range top.GPUs {
		if card.UUID.String() == d.gpu {
			return uint64(card.Memory - card.Granted), nil
		}
	}
	return 0, fmt.Errorf("kerf top no longer lists GPU %s", d.gpu)
}

// finish has the survivors verify all that they wrote, and end.
func (d *demo) finish(context.Context) error {
	for _, part := range parts {
		tenant := d.lives[part.name]
		if tenant == nil {
			continue
		}
		tenant.Stop()
		event, err := tenant.Await("report")
		if err != nil {
			return err
		}
		if err := tenant.Wait(); err != nil {
			return err
		}
		delete(d.lives, part.name)
		row := d.lines[part.name]
		row.verified, row.wrong, row.end = event.Verified, event.Wrong, "ran to its end"
	}
	return nil
}

func (d *demo) report(took time.Duration) error {
	d.say("")
	table := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "tenant\tshare\tlimit\tpeak use\trefused\tdata verified\tend")
	var wrong uint64
	for _, part := range parts {
		row := d.lines[part.name]
		wrong += row.wrong
		fmt.Fprintf(table, "%s\t%d %%\t%s\t%s\t%s\t%s\t%s\n", part.name, part.percent, gib(row.limit), gib(row.peak),
			orDash(row.refused), verified(row), row.end)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d regions of memory were not as written: tenants are not isolated", wrong)
	}
	kind := "on the real GPU"
	if d.on.Simulated {
		kind = "SIMULATED"
	}
	d.say("\nAs promised, in %.0f s (%s).", took.Seconds(), kind)
	return nil
}

func verified(row *line) string {
	switch {
	case row.wrong > 0:
		return fmt.Sprintf("%d of %d WRONG", row.wrong, row.verified)
	case row.verified == 0:
		return "-"
	default:
		return fmt.Sprintf("%d regions, all right", row.verified)
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func gib(count uint64) string { return fmt.Sprintf("%.2f GiB", float64(count)/(1<<30)) }
func mib(count uint64) string { return fmt.Sprintf("%.0f MiB", float64(count)/(1<<20)) }
