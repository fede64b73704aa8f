package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	spec "github.com/containernetworking/cni/pkg/version"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link"
)

func asError(err error, to **types.Error) bool { return errors.As(err, to) }

func keyOf(args *skel.CmdArgs) cni.Key {
	return cni.Key{ContainerID: args.ContainerID, IfName: args.IfName}
}

// lateIPAM needs the interface to be in the pod before it can find an address.
const lateIPAM = "dhcp"

func (p plugin) add(args *skel.CmdArgs) (err error) {
	conf, err := cni.ParseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	for _, field := range cni.Unknown(args.StdinData) {
		warn("%s: no such field; it is ignored", field)
	}
	if err = spec.ParsePrevResult(&conf.PluginConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	wanted := conf.Spec(keyOf(args), args.Args)
	if err = p.engine(conf.RunDir).Vacant(args.Netns, wanted.Owner.Key); err != nil { // before IPAM: its DEL would give away the address in use
		return err
	}
	candidates, err := p.candidates(conf, wanted)
	if err != nil {
		return err
	}
	result := new(current.Result)
	if conf.PrevResult != nil {
		if result, err = current.NewResultFromResult(conf.PrevResult); err != nil {
			return types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
		}
	}
	if conf.IPAM.Type != "" {
		defer func() {
			if err != nil { // whatever failed: nobody would give the address back
				err = joined(err, invoke.DelegateDel(p.ctx, conf.IPAM.Type, args.StdinData, nil))
			}
		}()
	}
	return p.attach(conf, args, wanted, candidates, result)
}

// attach makes the attachment and prints the result.
func (p plugin) attach(conf cni.Conf, args *skel.CmdArgs, wanted cni.Spec, candidates []string, result *current.Result) (err error) {
	engine := p.engine(conf.RunDir)
	ips, err := p.address(conf, args, conf.IPAM.Type != lateIPAM)
	if err != nil {
		return err
	}
	wanted.IP = ipOf(ips)
	var made cni.Attachment
	if conf.Pool != nil {
		made, err = engine.AttachAny(p.ctx, args.Netns, wanted, candidates)
	} else {
		made, err = engine.Attach(p.ctx, args.Netns, wanted)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = joined(err, engine.Detach(p.ctx, wanted.Owner.Key, args.Netns))
		}
	}()
	if conf.IPAM.Type == lateIPAM {
		if ips, err = p.address(conf, args, true); err != nil {
			return err
		}
		if err = engine.Configure(p.ctx, wanted.Owner.Key, ipOf(ips)); err != nil {
			return err
		}
	}
	extend(result, made, ips, args.Netns)
	return types.PrintResult(result, conf.CNIVersion)
}

// joined adds what else went wrong to an error, and keeps its code.
func joined(err, more error) error {
	if more == nil {
		return err
	}
	code := uint(cni.CodeOf(err))
	if e := new(types.Error); errors.As(err, &e) {
		code = e.Code
	}
	return types.NewError(code, err.Error(), more.Error())
}

// address asks the IPAM plugin.
func (p plugin) address(conf cni.Conf, args *skel.CmdArgs, now bool) (*current.Result, error) {
	if conf.IPAM.Type == "" || !now {
		return nil, nil
	}
	got, err := invoke.DelegateAdd(p.ctx, conf.IPAM.Type, args.StdinData, nil)
	if err != nil {
		return nil, fmt.Errorf("ipam %s: %w", conf.IPAM.Type, err)
	}
	result, err := current.NewResultFromResult(got)
	if err != nil {
		return nil, fmt.Errorf("ipam %s: %w", conf.IPAM.Type, err)
	}
	if len(result.IPs) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("ipam: %s: gave no address", conf.IPAM.Type), "")
	}
	return result, nil
}

func ipOf(r *current.Result) (ip link.IP) {
	if r == nil {
		return ip
	}
	for _, one := range r.IPs {
		ip.Addresses = append(ip.Addresses, one.Address.String())
	}
	for _, route := range r.Routes {
		to := link.Route{To: route.Dst.String(), MTU: route.MTU, AdvMSS: route.AdvMSS, Priority: route.Priority}
		if route.Table != nil {
			to.Table = *route.Table
		}
		if route.Scope != nil {
			to.Scope = *route.Scope
		}
		if route.GW != nil {
			to.Via = route.GW.String()
		} else { // the specification: the gateway of an address of the same family
			to.Via = gateway(r, route.Dst.IP.To4() != nil)
		}
		ip.Routes = append(ip.Routes, to)
	}
	return ip
}

func gateway(r *current.Result, v4 bool) string {
	for _, one := range r.IPs {
		if one.Gateway != nil && (one.Gateway.To4() != nil) == v4 {
			return one.Gateway.String()
		}
	}
	return ""
}

// extend adds the attachment to the result of the plugins before.
func extend(result *current.Result, made cni.Attachment, ips *current.Result, netns string) {
	at := len(result.Interfaces)
	one := &current.Interface{Name: made.Link.Name, Mac: made.Link.MAC, Mtu: made.Link.MTU, Sandbox: netns}
	if !made.Of.PCI.IsZero() {
		one.PciID = made.Of.PCI.String()
	}
	result.Interfaces = append(result.Interfaces, one)
	if ips == nil {
		return
	}
	for _, ip := range ips.IPs {
		ip.Interface = current.Int(at)
		result.IPs = append(result.IPs, ip)
	}
	result.Routes = append(result.Routes, ips.Routes...)
	if result.DNS.IsEmpty() {
		result.DNS = ips.DNS
	}
}

// less is what DEL and GC need of a configuration: one that is wrong elsewhere must not keep a device in a pod.
type less struct {
	types.PluginConf
	RunDir string `json:"runDir"`
}

func parseLess(stdin []byte) (c less, err error) {
	if err := json.Unmarshal(stdin, &c); err != nil {
		return c, types.NewError(types.ErrDecodingFailure, "read the configuration: "+err.Error(), "")
	}
	return c, nil
}

func (p plugin) del(args *skel.CmdArgs) error {
	conf, err := parseLess(args.StdinData)
	if err != nil {
		return err
	}
	var failed error
	if conf.IPAM.Type != "" {
		failed = invoke.DelegateDel(p.ctx, conf.IPAM.Type, args.StdinData, nil)
	}
	if err := p.engine(conf.RunDir).Detach(p.ctx, keyOf(args), args.Netns); err != nil {
		return joined(err, failed)
	}
	return failed
}

func (p plugin) check(args *skel.CmdArgs) error {
	conf, err := cni.ParseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if err := spec.ParsePrevResult(&conf.PluginConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	if conf.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult: missing, and CHECK compares with it", "")
	}
	result, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	ours := func(i *current.Interface) bool { return i.Name == args.IfName && i.Sandbox == args.Netns }
	if !slices.ContainsFunc(result.Interfaces, ours) {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("prevResult: has no interface %s in %s", args.IfName, args.Netns), "")
	}
	if conf.IPAM.Type != "" {
		if err := invoke.DelegateCheck(p.ctx, conf.IPAM.Type, args.StdinData, nil); err != nil {
			return fmt.Errorf("ipam %s: %w", conf.IPAM.Type, err)
		}
	}
	return p.engine(conf.RunDir).Check(p.ctx, keyOf(args))
}

// gc gives back what no container of this network has any more, and goes on past errors.
func (p plugin) gc(args *skel.CmdArgs) error {
	conf, err := parseLess(args.StdinData)
	if err != nil {
		return err
	}
	valid, err := validOf(args.StdinData)
	if err != nil {
		return err
	}
	report, err := p.engine(conf.RunDir).Reconcile(p.ctx, func(o cni.Owner) bool {
		return o.Network != conf.Name || valid == nil || slices.Contains(*valid, cni.Valid{ContainerID: o.ContainerID, IfName: o.IfName})
	})
	for _, reason := range report.Failed {
		err = errors.Join(err, errors.New(reason))
	}
	if conf.IPAM.Type != "" {
		err = errors.Join(err, invoke.DelegateGC(p.ctx, conf.IPAM.Type, args.StdinData, nil))
	}
	return err
}

// validOf is the list of those that are valid; nil where there is no list, which does not mean that nobody is.
func validOf(stdin []byte) (*[]cni.Valid, error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &top); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read the configuration: "+err.Error(), "")
	}
	for _, field := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} { // the specification's name, and libcni's older one
		text, given := top[field]
		if !given {
			continue
		}
		list := []cni.Valid{}
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s: %s: not a list of containerID and ifname", field, text), "")
		}
		return &list, nil
	}
	return nil, nil
}
