package node

// NIC is one network port's PCI function: a physical one, with its VFs.
type NIC struct {
	PCI      PCIAddress `json:"pci"`
	Path     PCIePath   `json:"path"`
	NUMA     int        `json:"numa"`
	Link     PCIeLink   `json:"link"`
	Vendor   uint16     `json:"vendor"`
	Device   uint16     `json:"device"`
	Driver   string     `json:"driver,omitempty"`
	NetDevs  []string   `json:"netDevs,omitempty"`  // empty while it is in another network namespace
	RDMA     []string   `json:"rdma,omitempty"`     // mlx5_0; names are not stable, find them by PCI address
	MaxVFs   int        `json:"maxVFs,omitempty"`   // sriov_totalvfs
	VFs      []VF       `json:"vfs,omitempty"`      // those that exist now
	LinkType string     `json:"linkType,omitempty"` // ethernet or infiniband, by ARPHRD

	// DataDirect is the function through which the NIC reaches GPU memory where
	// it has a second one for that (ConnectX-8 and later), below another root.
	DataDirect *Place `json:"dataDirect,omitempty"`
}

// Place is where the NIC sits, for Affinity.
func (n NIC) Place() Place { return Place{Path: n.Path, NUMA: n.NUMA} }

// VF is one virtual function of a NIC.
type VF struct {
	Index   int        `json:"index"` // virtfnN of its PF
	PCI     PCIAddress `json:"pci"`
	Driver  string     `json:"driver,omitempty"`
	NetDevs []string   `json:"netDevs,omitempty"`
	RDMA    []string   `json:"rdma,omitempty"`
}

// Disk is one NVMe controller.
type Disk struct {
	Name       string     `json:"name"` // nvme0
	PCI        PCIAddress `json:"pci"`
	Path       PCIePath   `json:"path"`
	NUMA       int        `json:"numa"`
	Model      string     `json:"model,omitempty"`
	Namespaces []DiskPart `json:"namespaces,omitempty"`
}

// Place is where the controller sits, for Affinity.
func (d Disk) Place() Place { return Place{Path: d.Path, NUMA: d.NUMA} }

// DiskPart is one namespace of an NVMe controller: a block device.
type DiskPart struct {
	Name string `json:"name"` // nvme0n1
	Size Bytes  `json:"size"`
}

// NUMA is one memory node of the machine.
type NUMA struct {
	ID       int    `json:"id"`
	CPUs     string `json:"cpus"` // the kernel's list form: 0-47,96-143
	Memory   Bytes  `json:"memory"`
	Distance []int  `json:"distance,omitempty"` // to node 0, 1, …
}
