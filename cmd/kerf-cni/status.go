package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
)

// status says whether an ADD could succeed now.
func (p plugin) status(args *skel.CmdArgs) error {
	conf, err := cni.ParseConf(args.StdinData, "")
	if err != nil {
		return err
	}
	engine := p.engine(conf.RunDir)
	if err := writable(engine.Dir); err != nil {
		return notReady("the journal %s cannot be written: %v", engine.Dir, err)
	}
	for _, id := range devicesOf(conf) {
		if _, err := engine.Kernel.Device(id); err != nil {
			return notReady("%s: %v", id, err)
		}
	}
	if mode := engine.Kernel.Mode(); conf.RDMA == string(cni.RDMARequire) && mode != link.Exclusive {
		return notReady("rdma: require: the RDMA subsystem's mode is %q, not exclusive; put `options ib_core netns_mode=0` in /etc/modprobe.d and the initramfs, and reboot", mode)
	}
	if conf.IPAM.Type != "" {
		if err := invoke.DelegateStatus(p.ctx, conf.IPAM.Type, args.StdinData, nil); err != nil {
			return ipamStatus(conf.IPAM.Type, err)
		}
	}
	return limited(engine)
}

// limited tells of devices that have not come back.
func limited(engine *cni.Engine) error {
	records, damaged, err := engine.List()
	if err != nil {
		return notReady("the journal %s cannot be read: %v", engine.Dir, err)
	}
	var out []string
	for _, r := range records {
		if r.Phase == cni.Stranded || r.Phase == cni.Dirty {
			out = append(out, fmt.Sprintf("%s is %s (%s)", r.Device.ID(), r.Phase, r.Note))
		}
	}
	for _, id := range damaged {
		out = append(out, fmt.Sprintf("the record of %s is damaged", id))
	}
	if len(out) == 0 {
		return nil
	}
	return types.NewError(types.ErrLimitedConnectivity, strings.Join(out, "; ")+"; GC or a restart of kerfd mends it", "")
}

func notReady(format string, args ...any) error {
	return types.NewError(types.ErrPluginNotAvailable, fmt.Sprintf(format, args...), "")
}

// ipamStatus passes on what the IPAM plugin says, with its code if that is one of STATUS.
func ipamStatus(name string, err error) error {
	if e := new(types.Error); errors.As(err, &e) && (e.Code == types.ErrPluginNotAvailable || e.Code == types.ErrLimitedConnectivity) {
		return types.NewError(e.Code, fmt.Sprintf("ipam %s: %s", name, e.Msg), e.Details)
	}
	return notReady("ipam %s: %v", name, err)
}

func devicesOf(c cni.Conf) (ids []string) {
	if c.DeviceID != "" {
		ids = append(ids, c.DeviceID)
	}
	if c.Pool != nil {
		ids = append(append(ids, c.Pool.PF...), c.Pool.Devices...)
	}
	return ids
}

func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".status.*.tmp")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(filepath.Clean(f.Name())))
}
