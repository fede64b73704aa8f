package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/hook"
)

// ofPod are the claims of a pod.
func (n *nics) ofPod(uid string) (claims []nicClaim) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.claims {
		if c.Pod == uid {
			claims = append(claims, c)
		}
	}
	slices.SortFunc(claims, func(a, b nicClaim) int { return cmp.Compare(a.Owner.Name, b.Owner.Name) })
	return claims
}

// Attach implements nic.Pods.
func (n *nics) Attach(ctx context.Context, pod, netns string) error {
	for _, c := range n.ofPod(pod) {
		if err := n.attach(ctx, c.Owner.UID, netns); err != nil {
			return err
		}
	}
	return nil
}

// attachFor answers a claim's hook.
func (n *nics) attachFor(ctx context.Context, ask hook.AttachAsk) error {
	c, ok := n.claim(ask.Claim)
	switch {
	case !ok:
		return errors.New("kerfd knows of no such claim; it has ended, or kubelet has not prepared it since the node started")
	case ask.Pod != "" && ask.Pod != c.Pod:
		return fmt.Errorf("claim %s was prepared for another pod (UID %s); NICs are for one pod", c.Owner, c.Pod)
	}
	path := n.lasting(ask)
	switch inode, err := podNetns(path); {
	case err != nil:
		return fmt.Errorf("claim %s: %w", c.Owner, err)
	case inode != ask.Netns:
		return fmt.Errorf("claim %s: the container has ended meanwhile: %s is another namespace", c.Owner, path)
	}
	return n.attach(ctx, ask.Claim, path)
}

// lasting is a path to a container's namespace that stays when the container ends, where there is one.
func (n *nics) lasting(ask hook.AttachAsk) string {
	for _, path := range n.engine.Kernel.Namespaces() {
		info, err := os.Stat(path)
		if err == nil && !strings.HasPrefix(path, "/proc/") && info.Sys().(*syscall.Stat_t).Ino == ask.Netns {
			return path
		}
	}
	return fmt.Sprintf("/proc/%d/ns/net", ask.PID)
}

// undoWithin bounds what is taken back of an attach that failed: the container runtime waits. What is left comes home with the namespace, or
// when the claim is given back.
const undoWithin = 700 * time.Millisecond

// attach moves a claim's NICs into a network namespace: all, or none. After an error the pod fails, and is made again in another one.
func (n *nics) attach(ctx context.Context, uid, netns string) error {
	return n.locked(ctx, uid, func(c nicClaim) error {
		inode, err := podNetns(netns)
		if err != nil {
			return fmt.Errorf("claim %s: %w", c.Owner, err)
		}
		if err := n.move(ctx, c, netns, inode); err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
			defer cancel()
			return errors.Join(err, n.detach(undo, c))
		}
		return nil
	})
}

// move brings a claim's NICs into a namespace, and says so to its hook. Its lock is held.
func (n *nics) move(ctx context.Context, c nicClaim, netns string, inode uint64) error {
	attached := hook.Attached{Netns: inode}
	for _, held := range c.NICs {
		if _, err := n.engine.Attach(ctx, netns, held.Spec); err != nil {
			return fmt.Errorf("claim %s: NIC %s: %w", c.Owner, held.Name, err)
		}
		attached.Interfaces = append(attached.Interfaces, held.Spec.Owner.IfName)
	}
	return attached.Write(n.attachedFile(c.Owner.UID))
}

// podNetns is the inode of a pod's network namespace. The host's own is none.
func podNetns(path string) (uint64, error) {
	if path == "" {
		return 0, errors.New("the pod is in the host's network, where it has every NIC already; leave hostNetwork out, or the claim")
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at the pod's network: %w", err)
	}
	own, err := os.Stat("/proc/thread-self/ns/net") // of the first thread, /proc/self, it may be another's for a moment
	if err != nil {
		return 0, fmt.Errorf("look at the node's network: %w", err)
	}
	if os.SameFile(info, own) {
		return podNetns("")
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// Detach implements nic.Pods.
func (n *nics) Detach(ctx context.Context, pod string) error {
	var errs []error
	for _, c := range n.ofPod(pod) {
		errs = append(errs, n.locked(ctx, c.Owner.UID, func(c nicClaim) error { return n.detach(ctx, c) }))
	}
	return errors.Join(errs...)
}

// detach takes a claim's NICs back, the last one first. From the first step on no container starts with them. Its lock is held.
func (n *nics) detach(ctx context.Context, c nicClaim) error {
	if err := os.Remove(n.attachedFile(c.Owner.UID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("claim %s: %w", c.Owner, err)
	}
	var errs []error
	for _, held := range slices.Backward(c.NICs) {
		if err := n.engine.Detach(ctx, held.Spec.Owner.Key, ""); err != nil {
			errs = append(errs, fmt.Errorf("claim %s: NIC %s: %w", c.Owner, held.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Running implements nic.Pods. An error takes nothing from a pod that runs.
func (n *nics) Running(ctx context.Context, netns map[string]string) error {
	var errs []error
	for _, owner := range n.Owners() {
		errs = append(errs, n.locked(ctx, owner.UID, func(c nicClaim) error {
			path, runs := netns[c.Pod]
			switch {
			case !runs:
				return n.detach(ctx, c)
			case path == "": // it is not told where
				return nil
			}
			inode, err := podNetns(path)
			if err != nil {
				return fmt.Errorf("claim %s: %w", c.Owner, err)
			}
			return n.move(ctx, c, path, inode)
		}))
	}
	return errors.Join(append(errs, n.reconcile(ctx))...)
}

// Run takes back what no claim has, now and every so often: a record may have been lost, and not every container runtime says what runs.
func (n *nics) Run(ctx context.Context) error {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for said := ""; ; {
		switch err := n.reconcile(ctx); {
		case err == nil || ctx.Err() != nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			n.log.Warn("take back NICs that no claim has", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

const reconcileEvery = time.Minute

// tell has the devices published anew when others may be had than before.
func (n *nics) tell(why map[string]string) {
	n.mu.Lock()
	changed := !maps.Equal(n.unavailable, why)
	n.unavailable = why
	n.mu.Unlock()
	if changed {
		n.containers.hardware.changed.tell()
	}
}

func (n *nics) reconcile(ctx context.Context) error {
	report, err := n.engine.Reconcile(ctx, n.stands)
	if len(report.Returned) > 0 {
		n.log.Info("NICs were taken back whose pods are gone", "nics", report.Returned)
	}
	errs := []error{err}
	if records, damaged, err := n.engine.List(); err == nil {
		n.tell(unavailable(records, damaged))
	}
	for _, failed := range report.Failed {
		errs = append(errs, errors.New(failed))
	}
	return errors.Join(errs...)
}

// stands says whether an attachment has an owner still. Those of kerf-cni are the container runtime's to end.
func (n *nics) stands(owner cni.Owner) bool {
	_, ours := n.claim(owner.ContainerID)
	return ours || owner.Network != claimNetwork
}
