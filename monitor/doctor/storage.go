package doctor

import (
	"fmt"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Pool is a place for pods' volumes.
type Pool struct {
	Name, Kind            string
	Total, Free, Promised node.Bytes
	Volumes               int
	Error                 string // why it does not answer
}

// judgePools looks for pools that do not answer, disks that fill before volumes do, and what nobody has a record of.
func judgePools(f *Facts) Finding {
	var said []string
	volumes := 0
	for _, p := range f.Pools {
		switch {
		case p.Error != "":
			return found(Crit, "look at the disk and its mount, then restart kerfd", "pool %s (%s): %s", p.Name, p.Kind, p.Error)
		case p.Free < p.Total/20:
			return found(Warn, "delete what others keep there: volumes may fail to write what they were promised", "pool %s (%s): %s of %s are free", p.Name, p.Kind, p.Free, p.Total)
		}
		volumes += p.Volumes
		said = append(said, fmt.Sprintf("%s (%s, %s free)", p.Name, p.Kind, p.Free))
	}
	switch {
	case f.StorageOff:
		return found(Skip, "", "kerfd serves no volumes on this node")
	case f.StorageUnknown:
		return found(Crit, "see kerfd's log, and that kubernetes.kubeletDir is kubelet's root directory", "kubelet has not registered the CSI driver: pods with volumes cannot start")
	case len(f.Strangers) > 0:
		return found(Warn, "see whose data it is, and remove it by hand: kerfd never does", "in pools and on no record: %s", strings.Join(f.Strangers, ", "))
	}
	return pass("%d volumes in %s", volumes, strings.Join(said, ", "))
}
