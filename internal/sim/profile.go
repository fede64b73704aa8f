package sim

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Profile is a machine to simulate. See profiles/*.yaml for what one looks like.
type Profile struct {
	Name        string              `yaml:"name"`
	Description string              `yaml:"description"`
	Driver      DriverSpec          `yaml:"driver"` // empty: no driver is installed
	Models      map[string]Model    `yaml:"models"`
	NICs        map[string]NICModel `yaml:"nics"`
	NUMA        []NUMASpec          `yaml:"numa"`
	PCIe        []Root              `yaml:"pcie"`
	NVLink      []NVLinkSpec        `yaml:"nvlink"`
	MIG         []MIGSpec           `yaml:"mig"`
	Faults      []FaultSpec         `yaml:"faults"` // injected when the node is made

	text []byte // as it was read
}

// DriverSpec is the installed driver.
type DriverSpec struct {
	Version string `yaml:"version"`
	CUDA    string `yaml:"cuda"` // 13.0
	MPS     bool   `yaml:"mps"`  // nvidia-cuda-mps-control is installed
}

// Model is one kind of GPU.
type Model struct {
	Name         string        `yaml:"name"`
	Brand        string        `yaml:"brand"` // nvidia, tesla, rtx, geforce
	Architecture string        `yaml:"architecture"`
	Compute      string        `yaml:"compute_capability"`
	PCIID        string        `yaml:"pci_id"` // 10de:2335
	Memory       node.Bytes    `yaml:"memory"`
	Reserved     node.Bytes    `yaml:"reserved"`      // of Memory, by driver and firmware
	ContextBytes node.Bytes    `yaml:"context_bytes"` // what each CUDA context costs
	SMs          int           `yaml:"sms"`
	BusWidth     int           `yaml:"bus_width"`
	BAR1         node.Bytes    `yaml:"bar1"`
	ECC          bool          `yaml:"ecc"`
	PowerLimit   int           `yaml:"power_limit"`  // W
	SMClock      int           `yaml:"sm_clock"`     // MHz, highest
	MemoryClock  int           `yaml:"memory_clock"` // MHz
	PCIe         LinkSpec      `yaml:"pcie"`
	Timeslice    time.Duration `yaml:"timeslice"`
	Launch       time.Duration `yaml:"launch"`
	Bandwidth    Bandwidth     `yaml:"bandwidth"`
	MIG          MIGModel      `yaml:"mig"`
}

// Bandwidth of the copy engines, in 10⁹ bytes a second.
type Bandwidth struct {
	H2D  float64 `yaml:"h2d"`
	D2H  float64 `yaml:"d2h"`
	D2D  float64 `yaml:"d2d"`
	Peer float64 `yaml:"peer"`
}

// LinkSpec is the best that a PCIe link can do.
type LinkSpec struct {
	Gen   int `yaml:"gen"`
	Width int `yaml:"width"`
}

// MIGModel is what a model's MIG can do.
type MIGModel struct {
	Capable  bool         `yaml:"capable"`
	Profiles []MIGProfile `yaml:"profiles"`
}

// MIGProfile is one row of nvidia-smi mig -lgip and -lgipp.
type MIGProfile struct {
	Name        string     `yaml:"name"`
	ID          int        `yaml:"id"`   // the driver's number
	Slot        int        `yaml:"slot"` // NVML's NVML_GPU_INSTANCE_PROFILE_*
	Memory      node.Bytes `yaml:"memory"`
	SMs         int        `yaml:"sms"`
	Slices      int        `yaml:"slices"`
	CopyEngines int        `yaml:"copy_engines"`
	Max         int        `yaml:"max"`
	Size        int        `yaml:"size"` // memory slices
	Placements  []int      `yaml:"placements"`
}

// MIGSpec puts a GPU into MIG mode, with instances.
type MIGSpec struct {
	GPU       int               `yaml:"gpu"`
	Instances []MIGInstanceSpec `yaml:"instances"`
}

// MIGInstanceSpec is one instance: a GPU instance with one compute instance.
type MIGInstanceSpec struct {
	Profile string `yaml:"profile"`
	Start   int    `yaml:"start"`
}

// NICModel is one kind of NIC.
type NICModel struct {
	PCIID  string   `yaml:"pci_id"`
	Driver string   `yaml:"driver"`
	Speed  int      `yaml:"speed"` // Mbit/s
	Link   string   `yaml:"link"`  // ethernet or infiniband
	MaxVFs int      `yaml:"max_vfs"`
	VFs    int      `yaml:"vfs"`
	PCIe   LinkSpec `yaml:"pcie"`
}

// NUMASpec is one memory node of the host.
type NUMASpec struct {
	ID     int        `yaml:"id"`
	CPUs   string     `yaml:"cpus"`
	Memory node.Bytes `yaml:"memory"`
}

// Root is one PCIe root complex.
type Root struct {
	Root  string `yaml:"root"` // pci0000:15
	NUMA  int    `yaml:"numa"` // −1: the kernel does not know
	Below []Slot `yaml:"below"`
}

// Slot is one PCI function, with what hangs below it.
type Slot struct {
	At     node.PCIAddress `yaml:"at"`
	Is     string          `yaml:"is"` // bridge, gpu, nic, nvme or nvswitch
	Model  string          `yaml:"model"`
	NetDev string          `yaml:"netdev"`
	RDMA   string          `yaml:"rdma"`
	Size   node.Bytes      `yaml:"size"`  // of an NVMe disk
	Width  int             `yaml:"width"` // lanes that trained, where fewer than the model has
	Below  []Slot          `yaml:"below"`
}

// NVLinkSpec joins GPUs: all of them through switches, or two by a bridge.
type NVLinkSpec struct {
	GPUs    []int  `yaml:"gpus"`
	Links   int    `yaml:"links"` // of each GPU
	Version int    `yaml:"version"`
	Through string `yaml:"through"` // switch or bridge
}

// FaultSpec is a fault that is there from the start: what `kerf sim inject`
// would be told.
type FaultSpec struct {
	GPU   int    `yaml:"gpu"`
	Kind  string `yaml:"kind"`
	Value uint64 `yaml:"value"`
}

//go:embed profiles/*.yaml
var profiles embed.FS

// Profiles is the names of the built-in profiles.
func Profiles() []string {
	entries, _ := fs.ReadDir(profiles, "profiles") // embedded: there is nothing to fail
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// LoadProfile reads a built-in profile by name, or a file by a path that ends
// in .yaml or has a slash in it.
func LoadProfile(name string) (*Profile, error) {
	var text []byte
	var err error
	if strings.ContainsRune(name, filepath.Separator) || strings.HasSuffix(name, ".yaml") {
		text, err = os.ReadFile(name)
	} else if text, err = profiles.ReadFile("profiles/" + name + ".yaml"); err != nil {
		return nil, fmt.Errorf("profile %q: there is none by this name; take one of %s, or give a YAML file", name, strings.Join(Profiles(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w; check the path", name, err)
	}
	p, err := ParseProfile(text)
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", name, err)
	}
	return p, nil
}

// ParseProfile reads and checks a profile. An unknown key is an error, since a
// misspelt one would silently simulate another machine.
func ParseProfile(text []byte) (*Profile, error) {
	var p Profile
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	dec.KnownFields(true)
	if err := dec.Decode(&p); err != nil {
		return nil, yamlError(err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document; keep one profile in a file")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	p.text = text
	return &p, nil
}

var unknownKeyRE = regexp.MustCompile(`^(line \d+): field (\S+) not found in type`)

// yamlError makes one line of the parser's errors: the first, with a fix.
func yamlError(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("empty; a profile has at least a name, numa and pcie")
	}
	text := err.Error()
	if many := (*yaml.TypeError)(nil); errors.As(err, &many) {
		text = many.Errors[0]
	}
	if m := unknownKeyRE.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s: key %q is unknown here; remove it, or see a built-in profile for the right one", m[1], m[2])
	}
	text, _, _ = strings.Cut(strings.TrimPrefix(text, "yaml: "), "\n")
	return fmt.Errorf("%s; correct the YAML", text)
}

// placed is a slot with the way to it.
type placed struct {
	Slot
	root *Root
	path []node.PCIAddress // from the root port to the slot itself
}

// slots lists every function of the tree, parents first, in order of address
// within each level of the tree.
func (p *Profile) slots() []placed {
	var all []placed
	var walk func(root *Root, above []node.PCIAddress, below []Slot)
	walk = func(root *Root, above []node.PCIAddress, below []Slot) {
		for _, s := range below {
			path := append(slices.Clone(above), s.At)
			all = append(all, placed{s, root, path})
			walk(root, path, s.Below)
		}
	}
	for i := range p.PCIe {
		walk(&p.PCIe[i], nil, p.PCIe[i].Below)
	}
	return all
}

// of lists the slots of one kind by PCI address, which is how NVML numbers GPUs.
func (p *Profile) of(kind string) []placed {
	found := slices.DeleteFunc(p.slots(), func(s placed) bool { return s.Is != kind })
	slices.SortFunc(found, func(a, b placed) int { return a.At.Compare(b.At) })
	return found
}

// cudaVersion is CUDA's number of the driver: 13000 for "13.0".
func (d DriverSpec) cudaVersion() int {
	var major, minor int
	if n, err := fmt.Sscanf(d.CUDA+" ", "%d.%d ", &major, &minor); n != 2 || err != nil {
		return 0
	}
	return major*1000 + minor*10
}
