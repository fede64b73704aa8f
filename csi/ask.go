package csi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kerf-gpu/kerf/csi/pool"
	"github.com/kerf-gpu/kerf/internal/node"
)

// The parameters of a storage class, and the attributes of an inline volume.
const (
	paramPool       = "pool"
	paramGuaranteed = "guaranteed"
	paramSize       = "size" // of inline volumes alone
	contextPrefix   = "csi.storage.k8s.io/"
	paramEphemeral  = contextPrefix + "ephemeral"
)

// The sizes that a volume may have.
const (
	minSize     = node.MiB
	defaultSize = node.GiB
	maxSize     = node.Bytes(1) << 60
)

// ask is a volume as it was asked for, checked.
type ask struct {
	pool  string // "": the default
	spec  pool.Spec
	limit node.Bytes // 0: none
	asked node.Bytes // the least that will do
}

// modes are the access modes that a volume of one node can have.
var modes = []spec.VolumeCapability_AccessMode_Mode{
	spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

// mountFlags are what a pod may ask of its mount; the file system below was mounted without it.
var mountFlags = []string{"ro", "rw", "noexec", "exec", "noatime", "relatime", "nosuid", "nodev"}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// parseParameters reads what a class or a pod may say.
func parseParameters(p map[string]string, inline bool) (a ask, err error) {
	known := []string{paramPool, paramGuaranteed}
	if inline {
		known = append(known, paramSize)
	}
	for _, key := range slices.Sorted(maps.Keys(p)) {
		value := p[key]
		switch {
		case key == paramPool:
			a.pool = value
		case key == paramGuaranteed && (value == "true" || value == "false"):
			a.spec.Guaranteed = value == "true"
		case key == paramGuaranteed:
			return a, invalid("parameter %s: %q is neither true nor false", key, value)
		case key == paramSize && inline:
			if a.asked, err = node.ParseBytes(value); err != nil {
				return a, invalid("attribute size: %v", err)
			}
		case strings.HasPrefix(key, contextPrefix): // what Kubernetes says of the claim or the pod
		default:
			return a, invalid("parameter %q is not known; the known ones are %s (the file system is named by fsType)", key, strings.Join(known, ", "))
		}
	}
	return a, nil
}

// parseCapabilities checks that a volume can be used so, and answers what it then is.
func parseCapabilities(capabilities []*spec.VolumeCapability) (s pool.Spec, err error) {
	if len(capabilities) == 0 {
		return s, invalid("volume_capabilities: none; name an access type and an access mode")
	}
	for i, c := range capabilities {
		one, err := parseCapability(c)
		if err != nil {
			return s, err
		}
		switch {
		case i == 0:
			s = one
		case one.Block != s.Block:
			return s, invalid("volume_capabilities: block and mount; a volume is either a device or a file system")
		case one.Filesystem != s.Filesystem:
			return s, invalid("volume_capabilities: file systems %q and %q; a volume has one", s.Filesystem, one.Filesystem)
		}
	}
	return s, nil
}

func parseCapability(c *spec.VolumeCapability) (s pool.Spec, err error) {
	mode := c.GetAccessMode().GetMode()
	if !slices.Contains(modes, mode) {
		return s, invalid("access mode %s: a scratch volume is on one node; the access modes are %s (ReadWriteOnce and ReadWriteOncePod in Kubernetes)", mode, names(modes))
	}
	switch {
	case c.GetBlock() != nil:
		s.Block = true
	case c.GetMount() == nil:
		return s, invalid("volume capability: neither block nor mount; name an access type")
	default:
		s.Filesystem = c.GetMount().GetFsType()
		for _, flag := range c.GetMount().GetMountFlags() {
			if !slices.Contains(mountFlags, flag) {
				return s, invalid("mount option %q: a volume is bound, so its mount takes %s alone", flag, strings.Join(mountFlags, ", "))
			}
		}
	}
	return s, nil
}

func names(modes []spec.VolumeCapability_AccessMode_Mode) string {
	var all []string
	for _, m := range modes {
		all = append(all, m.String())
	}
	return strings.Join(all, ", ")
}

// parseSize answers the size that a range asks for, in whole MiB.
func parseSize(r *spec.CapacityRange) (size, limit node.Bytes, err error) {
	required, most := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || most < 0 {
		return 0, 0, invalid("capacity_range: required_bytes %d, limit_bytes %d; neither may be negative", required, most)
	}
	size, limit = node.Bytes(required), node.Bytes(most)
	if limit != 0 && size > limit {
		return 0, 0, invalid("capacity_range: required_bytes %s is more than limit_bytes %s", size, limit)
	}
	if size == 0 {
		size = defaultSize
		if limit != 0 {
			size = min(size, limit/node.MiB*node.MiB)
		}
	}
	if size > maxSize {
		return 0, 0, status.Errorf(codes.OutOfRange, "%s asked, the largest volume is %s; ask for less", size, maxSize)
	}
	size = max(minSize, (size+node.MiB-1)/node.MiB*node.MiB)
	if limit != 0 && size > limit {
		return 0, 0, status.Errorf(codes.OutOfRange, "at most %s asked (limit_bytes %d); volumes are whole MiB, and at least %s; allow %s", limit, most, minSize, size)
	}
	return size, limit, nil
}

// parseCreate checks a request for a volume.
func parseCreate(r *spec.CreateVolumeRequest, nodeName string) (a ask, err error) {
	if r.GetName() == "" {
		return a, invalid("name: empty; it is what a repeated request is known by")
	}
	if len(r.GetMutableParameters()) > 0 {
		return a, invalid("mutable_parameters: scratch volumes have none")
	}
	s, err := parseCapabilities(r.GetVolumeCapabilities())
	if err != nil {
		return a, err
	}
	if a, err = parseParameters(r.GetParameters(), false); err != nil {
		return a, err
	}
	s.Guaranteed = a.spec.Guaranteed
	if a.asked, a.limit, err = parseSize(r.GetCapacityRange()); err != nil {
		return a, err
	}
	s.Size = a.asked
	a.spec = s
	if !reachable(r.GetAccessibilityRequirements(), nodeName) {
		return a, status.Errorf(codes.ResourceExhausted, "the volume is to be reachable from nodes other than %s, where this driver makes volumes; "+
			"use volumeBindingMode WaitForFirstConsumer", nodeName)
	}
	return a, nil
}

// reachable says whether a volume of this node meets a requirement.
func reachable(r *spec.TopologyRequirement, nodeName string) bool {
	if len(r.GetRequisite()) == 0 {
		return true
	}
	return slices.ContainsFunc(r.GetRequisite(), func(t *spec.Topology) bool { return isNode(t, nodeName) })
}

func isNode(t *spec.Topology, nodeName string) bool {
	for key, value := range t.GetSegments() {
		if key != TopologyKey || value != nodeName {
			return false
		}
	}
	return true
}

// differs says what of an existing volume is other than now asked; "": nothing.
func (v Volume) differs(a ask, source string, parameters map[string]string) string {
	switch {
	case v.Spec.Size < a.asked || a.limit != 0 && v.Spec.Size > a.limit:
		return fmt.Sprintf("has %s, asked is %s", v.Spec.Size, a.asked)
	case v.Spec.Block != a.spec.Block:
		return "is for the other access type (block or mount)"
	case v.Spec.Filesystem != a.spec.Filesystem:
		return fmt.Sprintf("has file system %q, asked is %q", v.Spec.Filesystem, a.spec.Filesystem)
	case v.Source != source:
		return fmt.Sprintf("was made from %q, asked is %q", v.Source, source)
	case !maps.Equal(v.Parameters, parameters):
		return fmt.Sprintf("has parameters %v, asked are %v", v.Parameters, parameters)
	}
	return ""
}

// lasting are the parameters that a volume is told by.
func lasting(parameters map[string]string) map[string]string {
	kept := make(map[string]string)
	for key, value := range parameters {
		if !strings.HasPrefix(key, contextPrefix) {
			kept[key] = value
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}
