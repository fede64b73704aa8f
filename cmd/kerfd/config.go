package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/dra-driver/nic"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Config is kerfd's one file. `kerfd config print` shows it with the defaults filled in.
type Config struct {
	RunDir     string           `yaml:"runDir"`       // sockets and shares; on a tmpfs
	StateDir   string           `yaml:"stateDir"`     // what survives a reboot: the ledger
	Root       string           `yaml:"root"`         // the driver root: / unless the driver lives in a container
	LibDir     string           `yaml:"libDir"`       // Kerf's libraries; default: ../lib/kerf beside the program
	SocketMode string           `yaml:"socketMode"`   // who may ask for slices on this machine, as file mode of the socket
	Strict     bool             `yaml:"strict"`       // refuse driver calls that may allocate and are not known
	Leases     *bool            `yaml:"leases"`       // share GPU time by cores and class; the default
	HoldGates  bool             `yaml:"holdGates"`    // while kerfd is away, who was not to run does not; else everybody does
	Drain      time.Duration    `yaml:"drainTimeout"` // work that runs longer after its lease no longer keeps others off the GPU; 2s
	LogLevel   string           `yaml:"logLevel"`     // debug, info, warn or error
	Cards      []CardConfig     `yaml:"cards"`        // how cards are divided; one that none of these matches is in mode vgpu
	Swap       SwapConfig       `yaml:"swap"`
	NICs       []NICConfig      `yaml:"nics"` // PFs that are to have VFs; others are left as they are
	Monitor    MonitorConfig    `yaml:"monitor"`
	Kubernetes KubernetesConfig `yaml:"kubernetes"`
	Storage    StorageConfig    `yaml:"storage"`
	Page       PageConfig       `yaml:"page"`
	Simulate   SimulateConfig   `yaml:"simulate"`

	mpsEnter []string // by which an MPS daemon gets a /dev/shm of its own; nil: kerfd may not mount
}

// SwapConfig is for cards in mode overcommit.
type SwapConfig struct {
	HostMemory node.Bytes `yaml:"hostMemory"` // of this machine, for what does not fit the cards; default: half of it
}

// KubernetesConfig is for nodes of a cluster. Directories are the host's, and must have the same path in kerfd's container.
type KubernetesConfig struct {
	Enabled      bool         `yaml:"enabled"`
	Kubeconfig   string       `yaml:"kubeconfig"` // empty: the service account's
	NodeName     string       `yaml:"nodeName"`   // empty: $NODE_NAME
	PodUID       string       `yaml:"podUID"`     // of kerfd's pod, which tells two apart while one follows the other; empty: $POD_UID
	KubeletDir   string       `yaml:"kubeletDir"`
	CDIDir       string       `yaml:"cdiDir"`
	HostDir      string       `yaml:"hostDir"`    // where containers find Kerf's libraries and its hook
	RootOnHost   string       `yaml:"rootOnHost"` // the driver root as the host sees it; empty: as kerfd does
	DRA          *bool        `yaml:"dra"`        // serve ResourceClaims; the default
	DevicePlugin PluginConfig `yaml:"devicePlugin"`
	NICs         NICsConfig   `yaml:"nics"`
}

// PluginConfig is the device plugin, for clusters without ResourceClaims: every slice is the same.
type PluginConfig struct {
	Enabled  bool         `yaml:"enabled"`
	Resource string       `yaml:"resource"`
	Memory   node.Bytes   `yaml:"memory"` // of a slice
	Cores    node.Percent `yaml:"cores"`  // likewise
}

// SimulateConfig is for machines without a GPU.
type SimulateConfig struct {
	Profile  string `yaml:"profile"`  // name or file; empty: use the real hardware
	ZeroCost bool   `yaml:"zeroCost"` // a driver whose calls take no time, for benches
}

// readConfig reads a file, "" being an empty one. An unknown key is an error: a limit that is misspelt must not be lost.
func readConfig(path string) (Config, error) {
	var c Config
	if path == "" {
		return c, nil
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, fmt.Errorf("config %s: no such file; leave --config out for the defaults", path)
	case err != nil:
		return c, fmt.Errorf("config %s: cannot be read (%w); check its mode and owner", path, err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("config %s: %s; `kerfd config print` shows every key", path, oneLine(err))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("config %s: a second document begins after ---, and would be lost; write one", path)
	}
	return c, nil
}

// complete fills in the defaults and checks every value.
func (c Config) complete() (Config, error) {
	c.RunDir = cmp.Or(c.RunDir, defaultRunDir())
	c.Root = cmp.Or(c.Root, "/")
	c.LibDir = cmp.Or(c.LibDir, defaultLibDir())
	c.SocketMode = cmp.Or(c.SocketMode, "0666")
	c.LogLevel = cmp.Or(c.LogLevel, "info")
	lease := true
	c.Leases = cmp.Or(c.Leases, &lease)
	c.Drain = cmp.Or(c.Drain, 2*time.Second)
	if c.StateDir == "" {
		c.StateDir = filepath.Join(c.RunDir, "state")
		if c.RunDir == control.DefaultRunDir {
			c.StateDir = "/var/lib/kerf"
		}
	}
	c.Kubernetes = c.Kubernetes.complete()
	c.Monitor = c.Monitor.complete()
	c.Storage = c.Storage.complete()
	c.Page = c.Page.complete(c.RunDir)
	for _, dir := range []*string{&c.RunDir, &c.StateDir, &c.Root, &c.LibDir, &c.Kubernetes.KubeletDir, &c.Kubernetes.CDIDir, &c.Kubernetes.HostDir} {
		absolute, err := filepath.Abs(*dir)
		if err != nil {
			return c, fmt.Errorf("config: directory %q: %w", *dir, err)
		}
		*dir = absolute
	}
	if longest := len(arbiter.Socket(arbiter.Directory(c.sharesDir(), strings.Repeat("0", ledger.IDLength)))); longest > arbiter.MaxSocketPath {
		return c, fmt.Errorf("config: runDir %s: the sockets below it would have paths of %d bytes, the kernel takes %d; use a shorter one", c.RunDir, longest, arbiter.MaxSocketPath)
	}
	if _, err := c.mode(); err != nil {
		return c, err
	}
	if _, err := c.level(); err != nil {
		return c, err
	}
	if c.Drain < 50*time.Millisecond || c.Drain > time.Minute {
		return c, fmt.Errorf("config: drainTimeout %s: outside 50ms to 1m; kernels of most programs end within 2s", c.Drain)
	}
	for _, card := range c.Cards {
		if err := card.validate(); err != nil {
			return c, err
		}
	}
	if err := errors.Join(validateNICs(c.NICs), c.Monitor.validate(), c.Storage.validate(c.Kubernetes)); err != nil {
		return c, err
	}
	if c.overcommits() && !*c.Leases {
		return c, errors.New("config: leases: false with a card in mode overcommit: memory is moved between two leases, so without them it never would be; leave leases out, or change the card's mode")
	}
	if err := errors.Join(c.Kubernetes.validate(), c.Kubernetes.NICs.validate(*c.Kubernetes.DRA, c.Simulate.Profile != "")); err != nil {
		return c, err
	}
	if err := c.Page.validate(); err != nil {
		return c, err
	}
	if err := c.Kubernetes.validateDirs(c.StateDir, c.RunDir); err != nil {
		return c, err
	}
	if c.Simulate.Profile != "" && c.Root != "/" {
		return c, fmt.Errorf("config: root %s and simulate.profile %s: a simulated node has a root of its own; leave one out", c.Root, c.Simulate.Profile)
	}
	if c.Simulate.ZeroCost && c.Simulate.Profile == "" {
		return c, errors.New("config: simulate.zeroCost without simulate.profile: real hardware cannot be free; name a profile")
	}
	return c, nil
}

func (c Config) overcommits() bool {
	return slices.ContainsFunc(c.Cards, func(card CardConfig) bool { return card.Mode == share.ModeOvercommit })
}

func (k KubernetesConfig) complete() KubernetesConfig {
	serve := true
	k.NodeName = cmp.Or(k.NodeName, os.Getenv("NODE_NAME"))
	k.PodUID = cmp.Or(k.PodUID, os.Getenv("POD_UID"))
	k.KubeletDir = cmp.Or(k.KubeletDir, "/var/lib/kubelet")
	k.CDIDir = cmp.Or(k.CDIDir, "/var/run/cdi")
	k.HostDir = cmp.Or(k.HostDir, "/var/lib/kerf/host")
	k.DRA = cmp.Or(k.DRA, &serve)
	k.NICs.NRISocket = cmp.Or(k.NICs.NRISocket, nic.DefaultSocket)
	k.DevicePlugin.Resource = cmp.Or(k.DevicePlugin.Resource, "kerf.dev/gpu-slice")
	k.DevicePlugin.Memory = cmp.Or(k.DevicePlugin.Memory, 10*node.GiB)
	return k
}

func (k KubernetesConfig) validate() error {
	plugin := k.DevicePlugin
	switch {
	case !k.Enabled:
		return nil
	case k.NodeName == "":
		return errors.New("config: kubernetes.nodeName: not set, nor is NODE_NAME in the environment; the DaemonSet sets it from spec.nodeName")
	case !*k.DRA && !plugin.Enabled:
		return errors.New("config: kubernetes: neither dra nor devicePlugin is on, so no pod could get a slice; switch one on, or kubernetes off")
	case plugin.Enabled && plugin.Memory < share.MinMemory:
		return fmt.Errorf("config: kubernetes.devicePlugin.memory %s: less than %s, the smallest slice; set more", plugin.Memory, share.MinMemory)
	case plugin.Enabled && (plugin.Cores < 0 || plugin.Cores > 100):
		return fmt.Errorf("config: kubernetes.devicePlugin.cores: %w", plugin.Cores.Validate())
	}
	return nil
}

// validateDirs refuses a directory for versions that has others of kerfd's in it.
func (k KubernetesConfig) validateDirs(others ...string) error {
	if !k.Enabled {
		return nil
	}
	for _, dir := range append(others, k.CDIDir, k.KubeletDir) {
		if rest, err := filepath.Rel(k.HostDir, dir); err == nil && filepath.IsLocal(rest) {
			return fmt.Errorf("config: kubernetes.hostDir %s: %s is there, or in it; name a directory of its own, such as /var/lib/kerf/host", k.HostDir, dir)
		}
	}
	return nil
}

func (c Config) mode() (fs.FileMode, error) {
	mode, err := strconv.ParseUint(c.SocketMode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, fmt.Errorf("config: socketMode %q: not an octal file mode; write it as \"0660\"", c.SocketMode)
	}
	return fs.FileMode(mode), nil
}

func (c Config) level() (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, fmt.Errorf("config: logLevel %q: not known; use debug, info, warn or error", c.LogLevel)
	}
	return level, nil
}

func (c Config) sharesDir() string   { return filepath.Join(c.RunDir, "shares") }
func (c Config) sessionsDir() string { return filepath.Join(c.RunDir, "sessions") }
func (c Config) simRoot() string     { return filepath.Join(c.RunDir, "sim") }
func (c Config) ledgerDir() string   { return filepath.Join(c.StateDir, "ledger") }

// defaultRunDir is /run/kerf for the machine's daemon, and a user's own run directory for a user's.
func defaultRunDir() string {
	if user := os.Getenv("XDG_RUNTIME_DIR"); os.Geteuid() != 0 && user != "" {
		return filepath.Join(user, "kerf")
	}
	return control.DefaultRunDir
}

func defaultLibDir() string {
	self, err := os.Executable()
	if err != nil {
		return "/usr/lib/kerf"
	}
	return filepath.Join(filepath.Dir(self), "..", "lib", "kerf")
}

// oneLine flattens yaml's list of complaints.
func oneLine(err error) string {
	return string(bytes.Join(bytes.Fields([]byte(err.Error())), []byte(" ")))
}
