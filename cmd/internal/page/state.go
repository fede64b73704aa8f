// Package page is the node page: one HTML file that shows what kerfd knows, live, and the JSON that it is drawn from.
//
// It is read-only, and for whoever can reach the loopback: it has no id of a share, no process and no command's arguments.
// Names of tenants come from other people, and are text for the page, never markup.
package page

import (
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Schema is of State. Fields may be added to v1; none changes its meaning.
const Schema = "kerf.page/v1"

// State is one moment of a node. Sizes are bytes, parts of a GPU percent.
type State struct {
	Schema    string    `json:"schema"`
	Time      time.Time `json:"time"`
	Node      string    `json:"node"`
	Version   string    `json:"version"`
	Simulated bool      `json:"simulated"`
	GPUs      []GPU     `json:"gpus"`
	NICs      []NIC     `json:"nics"`
	Links     []Link    `json:"links"`     // of every GPU to the NICs nearest to it
	Unwatched bool      `json:"unwatched"` // monitor.enabled is false: nobody looks for faults
	Faults    []Fault   `json:"faults"`
	Sources   []Source  `json:"sources"` // from which the monitor learns
	Probes    []Probe   `json:"probes,omitempty"`
	Pools     []Pool    `json:"pools,omitempty"`
	Datasets  []Dataset `json:"datasets,omitempty"`
}

// GPU is a card and those who share it. The part of Used that is no tenant's is Outside.
type GPU struct {
	Index       int          `json:"index"`
	UUID        node.UUID    `json:"uuid"`
	Name        string       `json:"name"`
	NUMA        int          `json:"numa"` // −1: not known
	Memory      node.Bytes   `json:"memory"`
	Granted     node.Bytes   `json:"granted"`
	Used        node.Bytes   `json:"used"`
	Outside     node.Bytes   `json:"outside"`
	Cores       node.Percent `json:"coresGranted"`
	Utilization node.Percent `json:"utilization"`
	Level       string       `json:"level,omitempty"`   // healthy, suspect, degraded, hold, reset, reboot or replace; empty: not watched
	Unknown     string       `json:"unknown,omitempty"` // why Used, Outside and Utilization are not known
	Tenants     []Tenant     `json:"tenants"`
}

// Tenant is a share on one GPU.
type Tenant struct {
	Name     string       `json:"name"`
	Tier     string       `json:"tier"`
	Class    string       `json:"class"`
	Limit    node.Bytes   `json:"limit"`
	Used     node.Bytes   `json:"used"`
	Peak     node.Bytes   `json:"peak"`
	Swapped  node.Bytes   `json:"swapped"` // of its memory, what is not on the card
	Cores    node.Percent `json:"cores"`   // 0: what the others leave
	Sessions int          `json:"sessions"`
	Lease    *Lease       `json:"lease,omitempty"` // absent where GPU time is not leased
	Trouble  string       `json:"trouble,omitempty"`
}

// Lease is a tenant's time on the GPU.
type Lease struct {
	State string       `json:"state"` // open, runs, waits, drains, late, rests or idle
	Got   node.Percent `json:"got"`   // over the last ten seconds
	Why   string       `json:"why"`
}

// NIC is a network card.
type NIC struct {
	Name string `json:"name"`
	PCI  string `json:"pci"`
	NUMA int    `json:"numa"`
	VFs  int    `json:"vfs"`
}

// Link is how near a GPU is to a NIC: PIX, PXB, PHB, NODE or SYS, as nvidia-smi topo writes it.
type Link struct {
	GPU   int    `json:"gpu"` // index
	NIC   string `json:"nic"`
	Class string `json:"class"`
}

// Fault is what is wrong with a device, and what ends it.
type Fault struct {
	Device string    `json:"device"`
	GPU    int       `json:"gpu"`
	Level  string    `json:"level"`
	Health string    `json:"health"` // good, bad or unknown
	Reason string    `json:"reason"`
	Clears string    `json:"clears,omitempty"`
	Since  time.Time `json:"since,omitzero"`
}

// Source is what the monitor learns from.
type Source struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
	Why  string `json:"why,omitempty"` // it is not
	Lost uint64 `json:"lost"`
}

// Probe is a program in the kernel.
type Probe struct {
	Name   string `json:"name"`
	On     bool   `json:"on"`
	Reason string `json:"reason,omitempty"` // it is off
	Hits   uint64 `json:"hits"`
	Lost   uint64 `json:"lost"`
}

// Pool is a place that volumes are made in.
type Pool struct {
	Name    string     `json:"name"`
	Backend string     `json:"backend"`
	Total   node.Bytes `json:"total"`
	Free    node.Bytes `json:"free"`
	Volumes int        `json:"volumes"`
	Error   string     `json:"error,omitempty"`
}

// Dataset is one that is here, or on its way.
type Dataset struct {
	Name   string     `json:"name"`
	Digest string     `json:"digest"`
	Bytes  node.Bytes `json:"bytes"` // here
	Total  node.Bytes `json:"total"`
	Rate   node.Bytes `json:"rate"` // a second, while it comes
	Pinned bool       `json:"pinned"`
	Refs   int        `json:"refs"`
}
