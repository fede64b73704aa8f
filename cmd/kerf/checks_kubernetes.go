package main

import (
	"context"
	"os"
	"slices"
	"strings"
)

// needsKubernetes is the answer where kerfd serves no pods.
func (p *patient) needsKubernetes() (finding, bool) {
	if f, missing := p.needsDaemon(); missing {
		return f, true
	}
	return found(statusSkip, "", "kerfd serves no pods on this node"), p.node.Kubernetes == nil
}

// checkKubernetes asks whether kubelet knows kerfd, and the API server its GPUs.
func checkKubernetes(_ context.Context, p *patient) finding {
	if f, missing := p.needsKubernetes(); missing {
		return f
	}
	if reason := p.node.Kubernetes.NotReady; reason != "" {
		return found(statusCrit, "see kerfd's log (kubectl -n kerf-system logs ds/kerfd), and that kubernetes.kubeletDir is kubelet's root directory", "pods cannot get slices: %s", reason)
	}
	return pass("kubelet of node %s knows kerfd, and its GPUs are published", p.node.Kubernetes.NodeName)
}

// checkCDI looks for what the container runtime would miss.
func checkCDI(_ context.Context, p *patient) finding {
	if f, missing := p.needsKubernetes(); missing {
		return f
	}
	k := p.node.Kubernetes
	if _, err := os.ReadDir(k.CDIDir); err != nil {
		return found(statusCrit, "make the directory, or set kubernetes.cdiDir to the one that the container runtime reads", "CDI directory: %v", err)
	}
	if len(k.Missing) > 0 {
		return found(statusCrit, "restart kerfd, which writes them anew: containers that begin now would fail", "%s has no spec for %s", k.CDIDir, strings.Join(k.Missing, ", "))
	}
	return pass("%s has a spec for each of %d shares of pods", k.CDIDir, len(k.Specs))
}

// checkSlices compares what the scheduler was told with what is there.
func checkSlices(_ context.Context, p *patient) finding {
	if f, missing := p.needsKubernetes(); missing {
		return f
	}
	k := p.node.Kubernetes
	without := func(a, b []string) []string {
		return slices.DeleteFunc(slices.Clone(a), func(name string) bool { return slices.Contains(b, name) })
	}
	unpublished, stale := without(k.Expected, k.Published), without(k.Published, k.Expected)
	switch {
	case len(unpublished) > 0:
		return found(statusWarn, "kubectl get resourceslices; kerfd's log says why they are not there", "not published: %s", strings.Join(unpublished, ", "))
	case len(stale) > 0:
		return found(statusWarn, "kubectl get resourceslices; kerfd's log says why they are still there", "published, and not on this node: %s", strings.Join(stale, ", "))
	}
	return pass("%d devices are published, as this node has them%s", len(k.Published), simulatedMark(p.node.Simulated))
}
