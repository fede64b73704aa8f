package sim

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// capability is one of the driver's: who can open its node has it. The library
// keeps those of instances that it makes and destroys, see nvml/caps.c.
type capability struct {
	number int
	name   string // as in mig-minors
	dir    string // below /proc/driver/nvidia/capabilities
	mode   int64  // of the node
}

// capabilities are those of a node as it begins.
func (p *Profile) capabilities() []capability {
	caps := []capability{{capConfig, "config", "mig", 0o400}, {capMonitor, "monitor", "mig", 0o400}}
	for i := range p.of("gpu") {
		for _, in := range p.gpu(i).Mig {
			if in.Used != 0 {
				caps = append(caps, giCapability(i, int(in.Gi)), ciCapability(i, int(in.Gi), int(in.Ci)))
			}
		}
	}
	return caps
}

func giCapability(gpu, gi int) capability {
	name := fmt.Sprintf("gpu%d/gi%d/access", gpu, gi)
	return capability{3 + gpu*capsPerGPU + gi*capsPerGI, name, fmt.Sprintf("gpu%d/mig/gi%d", gpu, gi), 0o444}
}

func ciCapability(gpu, gi, ci int) capability {
	of := giCapability(gpu, gi)
	name := fmt.Sprintf("gpu%d/gi%d/ci%d/access", gpu, gi, ci)
	return capability{of.number + 1 + ci, name, fmt.Sprintf("%s/ci%d", of.dir, ci), 0o444}
}

// files are what /proc tells of the capabilities: each one's number where there
// is such an instance, and the list of all that there can be.
func (p *Profile) capabilityFiles() []entry {
	var files []entry
	for _, c := range p.capabilities() {
		files = append(files, entry{
			path: filepath.Join("proc/driver/nvidia/capabilities", c.dir, filepath.Base(c.name)),
			text: fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: %s\nDeviceFileModify: 1\n", c.number, strconv.FormatInt(c.mode, 8)),
		})
	}
	var minors strings.Builder
	fmt.Fprintf(&minors, "config %d\nmonitor %d\n", capConfig, capMonitor)
	for gpu := range p.of("gpu") {
		for gi := range capsPerGPU / capsPerGI {
			c := giCapability(gpu, gi)
			fmt.Fprintf(&minors, "%s %d\n", c.name, c.number)
			for ci := range capsPerGI - 1 {
				c := ciCapability(gpu, gi, ci)
				fmt.Fprintf(&minors, "%s %d\n", c.name, c.number)
			}
		}
	}
	return append(files, entry{path: "proc/driver/nvidia-caps/mig-minors", text: minors.String()})
}
