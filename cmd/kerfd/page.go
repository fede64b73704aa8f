package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/page"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/cni/topo"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/monitor"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// PageConfig is the node page.
type PageConfig struct {
	// Listen is an address of the loopback; "off": no page. The default is 127.0.0.1:9475 for the daemon of a machine, and off for
	// one with a run directory of its own.
	Listen string `yaml:"listen"`
}

const (
	pageOff    = "off"
	pageListen = "127.0.0.1:9475"
	pageEvery  = time.Second
)

func (p PageConfig) complete(runDir string) PageConfig {
	standard := pageOff
	if runDir == control.DefaultRunDir {
		standard = pageListen
	}
	p.Listen = cmp.Or(p.Listen, standard)
	return p
}

func (p PageConfig) validate() error {
	if p.Listen == pageOff {
		return nil
	}
	host, _, err := net.SplitHostPort(p.Listen)
	if err != nil {
		return fmt.Errorf("config: page.listen %q: no address and port; write it as %s, or off", p.Listen, pageListen)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("config: page.listen %s: not an address of the loopback, and the page asks nobody for a password; use %s and kubectl port-forward", p.Listen, pageListen)
	}
	return nil
}

// openPage listens for the page; nil where there is none. A port that is taken costs the page, not the node.
func (k *core) openPage(log *slog.Logger) {
	if k.config.Page.Listen == pageOff {
		return
	}
	listener, err := net.Listen("tcp", k.config.Page.Listen)
	if err != nil {
		log.Warn("no node page; set page.listen to a free port, or to off", "error", err)
		return
	}
	k.page, k.control.page = listener, "http://"+listener.Addr().String()+"/"
	log.Info("node page", "url", k.control.page)
}

func (k *core) servePage(ctx context.Context) error {
	h := &http.Server{
		Handler:           page.New(k.control.pageState, pageEvery),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    1 << 14,
		BaseContext:       func(net.Listener) context.Context { return ctx }, // viewers go with it
	}
	defer context.AfterFunc(ctx, func() { _ = h.Close() })()
	if err := h.Serve(k.page); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}

// pageState is what the page shows.
func (s *server) pageState(ctx context.Context) page.State {
	name := s.config.Kubernetes.NodeName
	if name == "" {
		name, _ = os.Hostname() // empty is a name as well
	}
	const nobody = -1 // whoever reaches the loopback
	return pageOf(name, s.grants.state(nobody), s.grants.hardware.Node(), s.grants.health(), s.kubernetes.pools(ctx))
}

// pageOf puts together what the parts know.
func pageOf(name string, top control.State, n node.Node, health control.Health, pools []control.Pool) page.State {
	p := page.State{Schema: page.Schema, Time: top.Time, Node: name, Version: version.Version, Simulated: top.Simulated, GPUs: []page.GPU{}, NICs: []page.NIC{},
		Links: []page.Link{}, Unwatched: health.Off, Faults: []page.Fault{}, Sources: []page.Source{}}
	levels := make(map[string]string)
	for _, d := range health.Devices {
		levels[d.ID] = d.Level.String()
		if d.Level != monitor.Healthy || d.Health != monitor.HealthGood {
			p.Faults = append(p.Faults, page.Fault{Device: d.ID, GPU: d.Index, Level: d.Level.String(), Health: d.Health.String(), Reason: d.Reason, Clears: d.Clears, Since: d.Since})
		}
	}
	for _, g := range top.GPUs {
		one := page.GPU{Index: g.Index, UUID: g.UUID, Name: g.Name, NUMA: node.UnknownNUMA, Memory: g.Memory, Granted: g.Granted, Used: g.Used, Outside: g.Outside,
			Cores: g.Cores, Utilization: g.Utilization, Level: levels[g.UUID.String()], Unknown: cmp.Or(g.Error, g.Fault), Tenants: []page.Tenant{}}
		for _, share := range top.Shares {
			one.Tenants = append(one.Tenants, tenantsOn(g.UUID, share)...)
		}
		for _, known := range n.GPUs {
			if known.UUID == g.UUID {
				one.NUMA = known.NUMA
				p.Links = append(p.Links, nearest(known, n.NICs)...)
			}
		}
		p.GPUs = append(p.GPUs, one)
	}
	for _, nic := range n.NICs {
		p.NICs = append(p.NICs, page.NIC{Name: pageNIC(nic), PCI: nic.PCI.String(), NUMA: nic.NUMA, VFs: len(nic.VFs)})
	}
	for _, s := range health.Sources {
		p.Sources = append(p.Sources, page.Source{Name: s.Name, Up: s.Up, Why: s.Why, Lost: s.Lost})
	}
	for _, probe := range health.Probes {
		p.Probes = append(p.Probes, page.Probe{Name: probe.Name, On: probe.On, Reason: probe.Reason, Hits: probe.Hits, Lost: probe.Lost})
	}
	for _, pool := range pools {
		p.Pools = append(p.Pools, page.Pool{Name: pool.Name, Backend: pool.Kind, Total: pool.Total, Free: pool.Free, Volumes: pool.Volumes, Error: pool.Error})
	}
	return p
}

// tenantsOn is a share's part of a GPU.
func tenantsOn(gpu node.UUID, s control.Share) (tenants []page.Tenant) {
	for _, d := range s.Devices {
		if d.UUID != gpu {
			continue
		}
		t := page.Tenant{Name: pageTenant(s), Tier: string(s.Tier), Class: string(s.Class), Limit: d.Limit, Used: d.Used(), Peak: d.Peak, Cores: d.Cores,
			Sessions: len(s.Sessions), Trouble: s.Tampered}
		if d.Swap != nil {
			t.Swapped = d.Swap.Out
		}
		if s.Lease != nil {
			t.Lease = &page.Lease{State: s.Lease.Lease, Got: s.Lease.Got, Why: s.Lease.Why}
		}
		tenants = append(tenants, t)
	}
	return tenants
}

// pageTenant is a tenant's name without its process, and without arguments, which may have secrets in them.
func pageTenant(s control.Share) string {
	switch {
	case s.Holder.Door == ledger.DoorRun:
		words := strings.Fields(s.Holder.Command)
		if len(words) == 0 {
			return fmt.Sprintf("user %d", s.Holder.UID)
		}
		return fmt.Sprintf("user %d: %s", s.Holder.UID, filepath.Base(words[0]))
	case len(s.Inside) > 0:
		return fmt.Sprintf("pod %s/%s (%s)", s.Inside[0].Namespace, s.Inside[0].Pod, s.Inside[0].Name)
	}
	return "claim " + s.Holder.Owner.String()
}

// nearest are the NICs that no other is nearer than.
func nearest(g node.GPU, nics []node.NIC) (links []page.Link) {
	best := node.UnknownAffinity
	for _, nic := range nics {
		class, _ := topo.Between(g, nic)
		best = min(best, class)
	}
	for _, nic := range nics {
		if class, _ := topo.Between(g, nic); class == best {
			links = append(links, page.Link{GPU: g.Index, NIC: pageNIC(nic), Class: class.String()})
		}
	}
	return links
}

func pageNIC(nic node.NIC) string {
	if len(nic.RDMA) > 0 {
		return nic.RDMA[0]
	}
	if len(nic.NetDevs) > 0 {
		return nic.NetDevs[0]
	}
	return nic.PCI.String()
}
