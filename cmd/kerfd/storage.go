package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/cmd/internal/version"
	"github.com/kerf-gpu/kerf/csi"
	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// StorageConfig is for volumes of pods on this node's disks. Paths are the host's, and must be the same in kerfd's container.
type StorageConfig struct {
	Enabled     bool         `yaml:"enabled"`
	Provisioner string       `yaml:"provisioner"` // internal: claims of this node are served here; external: sidecars call the CSI driver
	Namespace   string       `yaml:"namespace"`   // of CSIStorageCapacity objects; empty: $POD_NAMESPACE
	Pools       []PoolConfig `yaml:"pools"`       // the first is what a class gets that names none
}

// PoolConfig is a place that volumes are made in: a path, devices, or a volume group.
type PoolConfig struct {
	Name        string       `yaml:"name"`
	Path        string       `yaml:"path"`
	Devices     []string     `yaml:"devices"`
	VolumeGroup string       `yaml:"volumeGroup"`
	Backend     string       `yaml:"backend"`   // empty: the best that the place can do
	Enforce     string       `yaml:"enforce"`   // size: volumes are held to theirs; none: take a back end that cannot
	Watermark   node.Percent `yaml:"watermark"` // volumes together are promised no more of the pool; 95
}

const (
	provisionerInternal = "internal"
	provisionerExternal = "external"
	enforceSize         = "size"
	enforceNone         = "none"
)

var poolName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func (s StorageConfig) complete() StorageConfig {
	if s.Provisioner == "" {
		s.Provisioner = provisionerInternal
	}
	if s.Namespace == "" {
		s.Namespace = os.Getenv("POD_NAMESPACE")
	}
	pools := make([]PoolConfig, len(s.Pools)) // not the caller's
	for i, p := range s.Pools {
		if p.Watermark == 0 {
			p.Watermark = 95
		}
		if p.Enforce == "" {
			p.Enforce = enforceSize
		}
		pools[i] = p
	}
	s.Pools = pools
	return s
}

func (s StorageConfig) validate(k KubernetesConfig) error {
	switch {
	case !s.Enabled:
		return nil
	case !k.Enabled:
		return errors.New("config: storage.enabled without kubernetes.enabled: volumes are pods'; switch kubernetes on, or storage off")
	case s.Provisioner != provisionerInternal && s.Provisioner != provisionerExternal:
		return fmt.Errorf("config: storage.provisioner %q: not known; use internal or external", s.Provisioner)
	case s.Provisioner == provisionerInternal && s.Namespace == "":
		return errors.New("config: storage.namespace: not set, nor is POD_NAMESPACE in the environment; the DaemonSet sets it from metadata.namespace")
	case len(s.Pools) == 0:
		return errors.New("config: storage.pools: none; name one, with a path such as /var/lib/kerf/scratch")
	}
	names := make(map[string]bool)
	for _, p := range s.Pools {
		if err := p.validate(); err != nil {
			return err
		}
		if names[p.Name] {
			return fmt.Errorf("config: storage.pools: two are named %s; give one another name", p.Name)
		}
		names[p.Name] = true
	}
	return nil
}

func (p PoolConfig) validate() error {
	places := 0
	for _, given := range []bool{p.Path != "", len(p.Devices) > 0, p.VolumeGroup != ""} {
		if given {
			places++
		}
	}
	switch {
	case !poolName.MatchString(p.Name):
		return fmt.Errorf("config: storage.pools: name %q: use up to 40 small letters, digits and '-'", p.Name)
	case places != 1:
		return fmt.Errorf("config: storage.pools: %s has %d of path, devices and volumeGroup; give it one", p.Name, places)
	case p.Enforce != enforceSize && p.Enforce != enforceNone:
		return fmt.Errorf("config: storage.pools: %s: enforce %q: not known; use size or none", p.Name, p.Enforce)
	case p.Watermark < 1 || p.Watermark > 100:
		return fmt.Errorf("config: storage.pools: %s: watermark %d: outside 1 to 100", p.Name, int(p.Watermark))
	}
	if p.Path == "" {
		return nil
	}
	if err := p.place().Validate(); err != nil {
		return fmt.Errorf("config: storage.pools: %w", err)
	}
	return nil
}

// place is the pool as package pool has it.
func (p PoolConfig) place() pool.Config {
	return pool.Config{Name: p.Name, Path: p.Path, Backend: p.Backend, Unlimited: p.Enforce == enforceNone}
}

// storage is the volumes' side of kerfd; nil where there are none.
type storage struct {
	config StorageConfig
	driver *csi.Driver
	plugin *csi.Plugin
	pools  []*pool.Pool
	claims *csi.Claims // nil with external sidecars
}

// newStorage opens the pools and takes up what an earlier kerfd left.
func (k *kubernetes) newStorage(c Config, metrics prometheus.Registerer) (_ *storage, err error) {
	if !c.Storage.Enabled {
		return nil, nil //nolint:nilnil // no volumes here
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	report := k.report("storage")
	s := &storage{config: c.Storage}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	var pools []csi.Pool
	for _, p := range c.Storage.Pools {
		of, opened, err := openPool(ctx, p)
		if err != nil {
			return nil, err
		}
		k.log.Info("pool", "name", p.Name, "report", opened.Report.String())
		pools, s.pools = append(pools, of), append(s.pools, opened)
	}
	var damaged error
	s.driver, damaged, err = csi.New(ctx, csi.Config{NodeName: c.Kubernetes.NodeName, Version: version.Version, KubeletDir: c.Kubernetes.KubeletDir,
		StateDir: filepath.Join(c.StateDir, "csi"), RunDir: filepath.Join(c.RunDir, "csi"), Pools: pools, Now: time.Now})
	if err != nil {
		return nil, err
	}
	report(damaged)
	calls := csi.NewCallTimes(csi.DriverName)
	s.plugin = &csi.Plugin{Name: csi.DriverName, KubeletDir: c.Kubernetes.KubeletDir, Services: s.driver.Register, Report: report, Latency: calls}
	if c.Storage.Provisioner == provisionerInternal {
		s.claims = csi.NewClaims(s.driver, k.client, c.Storage.Namespace, report)
	}
	metrics.MustRegister(append(calls.Collectors(), s.driver.Collector())...)
	return s, nil
}

func (s *storage) parts() (parts []part) {
	if s == nil {
		return nil
	}
	parts = append(parts, part{"csi driver", s.plugin.Run})
	if s.claims != nil {
		parts = append(parts, part{"claims", s.claims.Run})
	}
	return parts
}

func (s *storage) close() error {
	if s == nil {
		return nil
	}
	var errs []error
	if s.driver != nil {
		errs = append(errs, s.driver.Close())
	}
	for _, p := range s.pools {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

func (s *storage) ready() error {
	if s == nil || s.plugin.Registered() {
		return nil
	}
	return errors.New("kubelet has not registered the CSI driver of scratch volumes")
}

// state is what kerf volumes and kerf doctor ask for.
func (s *storage) state(ctx context.Context) control.Storage {
	answer := control.Storage{Schema: control.StorageSchema, Pools: s.poolStates(ctx), Volumes: []control.Volume{}}
	if s == nil {
		return answer
	}
	answer.Enabled, answer.Registered = true, s.plugin.Registered()
	for _, v := range s.driver.List() {
		one := control.Volume{ID: v.ID, Kind: string(v.Kind), Name: v.Name, State: string(v.State), Pool: v.Pool, Size: v.Spec.Size, Block: v.Spec.Block, Source: v.Source, Created: v.Created}
		for _, target := range v.Targets {
			one.Targets = append(one.Targets, target.Path)
		}
		answer.Volumes = append(answer.Volumes, one)
	}
	strangers, err := s.driver.Strangers(ctx)
	answer.Strangers = strangers
	if err != nil {
		answer.Error = err.Error()
	}
	return answer
}

// poolStates is how the pools are; it looks into none of them.
func (s *storage) poolStates(ctx context.Context) []control.Pool {
	pools := []control.Pool{}
	if s == nil {
		return pools
	}
	for _, p := range s.driver.States(ctx) {
		pools = append(pools, control.Pool(p))
	}
	return pools
}

// pools is how the node's pools are, for who asks every second.
func (k *kubernetes) pools(ctx context.Context) []control.Pool {
	if k == nil {
		return nil
	}
	return k.volumes.poolStates(ctx)
}

// storage is the node's volumes; on a machine that is no node there are none.
func (k *kubernetes) storage(ctx context.Context) control.Storage {
	if k == nil {
		return (*storage)(nil).state(ctx)
	}
	return k.volumes.state(ctx)
}
