package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Shares gives and ends shares through the door of the device plugin.
type Shares interface {
	// Hold takes all asks of an owner or none, puts the shares in force and writes their CDI specs. Asked again, it gives
	// the same shares and writes again what was lost.
	Hold(ctx context.Context, owner ledger.Owner, asks []ledger.Ask) ([]ledger.Held, error)
	// Drop ends all shares of an owner; nil where there are none, an error where processes are still in one.
	Drop(ctx context.Context, ownerUID string) error
	// Owners are those who hold something through this door.
	Owners() []ledger.Owner
}

// Options is what a plugin needs.
type Options struct {
	Resource   string // kerf.dev/gpu-slice
	Size       Size
	KubeletDir string // /var/lib/kubelet
	Shares     Shares
	GPUs       func() []share.GPU // with what is granted on each, through any door
	Changed    <-chan struct{}    // says "look at the GPUs again"; nil: they are looked at every few seconds only
	Report     func(error)        // what goes wrong in the background, once for each new reason
	Pace       Pace
}

// Pace is how often things are looked at. Zero fields have defaults.
type Pace struct {
	Devices   time.Duration // between two looks at the GPUs without word of a change: 5 s
	Kubelet   time.Duration // between two looks for kubelet's socket and the plugin's own, besides inotify: 250 ms
	InUse     time.Duration // between two of kubelet's lists of devices in use: 15 s
	UnseenFor time.Duration // how long an owner may be in no list: 10 min
	Drop      time.Duration // how long Allocate waits for the last processes of a share: 10 s
}

func (p Pace) complete() Pace {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&p.Devices, 5 * time.Second}, {&p.Kubelet, 250 * time.Millisecond}, {&p.InUse, 15 * time.Second}, {&p.UnseenFor, 10 * time.Minute}, {&p.Drop, 10 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return p
}

// Plugin serves one resource to the kubelet of this node.
type Plugin struct {
	options Options
	pace    Pace
	changes broadcast

	mu        sync.Mutex // over Allocate and the end of owners, so that neither undoes what the other just did
	sightings Sightings
	renewed   map[string]bool // UIDs that were allocated since kubelet was last asked who is in use

	said sync.Map // topic → the last thing reported of it
}

// New makes a plugin. It does nothing before Run.
func New(o Options) (*Plugin, error) {
	domain, name, ok := strings.Cut(o.Resource, "/")
	if !ok || domain == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("devicePlugin.resource %q: not a name in a domain; write it as kerf.dev/gpu-slice", o.Resource)
	}
	if err := o.Size.Validate(); err != nil {
		return nil, err
	}
	return &Plugin{options: o, pace: o.Pace.complete(), renewed: map[string]bool{}}, nil
}

// Run serves until the context ends. A kubelet that is not there is waited for, whatever the reason.
func (p *Plugin) Run(ctx context.Context) error {
	p.restore(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { p.watchInUse(ctx) })
	parts.Go(func() { p.forward(ctx) })
	p.serve(ctx)
	parts.Wait()
	return nil
}

// restore puts all shares in force again: after a reboot their directories and CDI specs are gone, and kubelet starts the
// containers again without a word to the plugin.
func (p *Plugin) restore(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, owner := range p.options.Shares.Owners() {
		request := part{ids: slicesOf(owner)}.request(p.options.Size) // what is held already keeps its terms
		if _, err := p.options.Shares.Hold(ctx, owner, []ledger.Ask{{Key: owner.UID, Request: request}}); err != nil {
			errs = append(errs, fmt.Errorf("restore slices %s: %w", owner.Name, err))
		}
	}
	p.report("restore", errors.Join(errs...))
}

// forward makes word of a change known to every stream.
func (p *Plugin) forward(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.options.Changed:
			p.changes.send()
		}
	}
}

// report tells of an error once, and again only when the reason changes or it came back. nil says that all is well.
func (p *Plugin) report(topic string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if last, _ := p.said.Swap(topic, text); err != nil && last != text && p.options.Report != nil {
		p.options.Report(err)
	}
}

// Ready says why kubelet does not know of the plugin; nil if it does.
func (p *Plugin) Ready() error {
	switch last, known := p.said.Load("endpoint"); {
	case !known:
		return fmt.Errorf("register %s: not tried yet", p.options.Resource)
	case last != "":
		return errors.New(last.(string))
	}
	return nil
}

func (p *Plugin) directory() string { return filepath.Join(p.options.KubeletDir, "device-plugins") }

// Endpoint is the name of the plugin's own socket in kubelet's directory of device plugins.
func (p *Plugin) Endpoint() string { return strings.ReplaceAll(p.options.Resource, "/", "-") + ".sock" }

// broadcast wakes all who wait. The zero value is ready.
type broadcast struct {
	mu   sync.Mutex
	wake chan struct{}
}

// wait is closed by the next send.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wake == nil {
		b.wake = make(chan struct{})
	}
	return b.wake
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wake != nil {
		close(b.wake)
	}
	b.wake = nil
}
