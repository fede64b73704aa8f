package dra

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// healthInterval is well within the 30 s after which kubelet takes a device's health for unknown.
const healthInterval = 10 * time.Second

// maxHealthMessage is what kubelet takes.
const maxHealthMessage = 1024

// Health is what a monitor says of a card: what kubelet tells its pods, and what schedulers are to know.
type Health struct {
	Status  kubeletplugin.HealthStatus
	Message string
	Taints  []resourceapi.DeviceTaint
}

// Judge knows how cards are.
type Judge interface {
	// Health of a card; ok is false for one that nobody watches. It must not block.
	Health(gpu node.UUID) (h Health, ok bool)
}

// seen is every device of which kubelet was told: one that is gone is reported as unknown, rather than left to go stale.
type seen struct {
	mu      sync.Mutex
	devices map[string]struct{}
}

// WatchHealthStatus implements kubeletplugin.DRAPlugin.
func (d *Driver) WatchHealthStatus(ctx context.Context, reports chan<- kubeletplugin.DeviceHealthReport) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	var last []kubeletplugin.DeviceHealth
	for due := true; ; { // each new share is a change of the devices, and seldom one of their health
		changed := d.changed.wait()
		report := d.health(time.Now())
		if due || !slices.EqualFunc(last, report.Devices, sameHealth) {
			select {
			case <-ctx.Done():
				return nil
			case reports <- report:
				last = report.Devices
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			due = true
		case <-changed:
			due = false
		}
	}
}

func sameHealth(a, b kubeletplugin.DeviceHealth) bool {
	a.LastUpdated = b.LastUpdated
	return a == b
}

// health is the health of all devices.
func (d *Driver) health(now time.Time) (report kubeletplugin.DeviceHealthReport) {
	d.seen.mu.Lock()
	defer d.seen.mu.Unlock()
	if d.seen.devices == nil {
		d.seen.devices = make(map[string]struct{})
	}
	here := make(map[string]struct{})
	add := func(h DeviceHealth) {
		here[h.Device] = struct{}{}
		report.Devices = append(report.Devices, kubeletplugin.DeviceHealth{PoolName: d.config.NodeName, DeviceName: h.Device, Health: h.Health,
			Message: h.Message, LastUpdated: now, HealthCheckTimeout: 3 * healthInterval})
	}
	for _, h := range d.kind.Health() {
		add(h)
		d.seen.devices[h.Device] = struct{}{}
	}
	for _, device := range sortedKeys(d.seen.devices) {
		if _, ok := here[device]; !ok {
			add(DeviceHealth{device, kubeletplugin.HealthStatusUnknown, "this device is not on the node any more; kerf doctor tells of each"})
		}
	}
	return report
}

func deviceNames(c Card) (names []string) {
	if c.mode() != share.ModeMIG {
		return []string{deviceName(c)}
	}
	for _, p := range places(c) {
		names = append(names, placementName(c, p.at))
	}
	return names
}

// healthOf says Unhealthy only where the hardware itself says so. That nothing is granted on a card for another reason
// is no sickness of it, and what is not known is Unknown: a broken monitor must not move a pod.
func healthOf(c Card) (kubeletplugin.HealthStatus, string) {
	if c.Health != nil {
		message := cmp.Or(c.Health.Message, c.Share.Fault)
		return c.Health.Status, message[:min(len(message), maxHealthMessage)]
	}
	fault := c.Fault
	switch {
	case fault.Lost, fault.Recovery != node.RecoveryNone, fault.RemapFailure:
		return kubeletplugin.HealthStatusUnhealthy, cmp.Or(c.Share.Fault, fault.String())
	case fault.RemapPending:
		return kubeletplugin.HealthStatusHealthy, fault.String() + ": nothing new is granted before a reset, and what runs is safe"
	case c.Share.Fault != "":
		return kubeletplugin.HealthStatusUnknown, c.Share.Fault
	}
	return kubeletplugin.HealthStatusHealthy, ""
}
