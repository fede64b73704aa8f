package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

const defaultDir = "/run/kerf-cluster"

// dirLimit keeps unix sockets under the directory within the 107 bytes that the kernel takes.
const dirLimit = 60

// layout is where a cluster keeps what.
type layout struct{ dir string }

func newLayout(dir string) (layout, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, fmt.Errorf("find %s: %w", dir, err)
	}
	if len(dir) > dirLimit {
		return layout{}, fmt.Errorf("directory %s: %d bytes, and sockets under it allow %d; choose a shorter one", dir, len(dir), dirLimit)
	}
	if within(dir, "/etc") || within(dir, "/var") || strings.ContainsAny(dir, ",:\\") {
		return layout{}, fmt.Errorf("directory %s: the node has an /etc and a /var of its own, and its mounts take no comma, colon or backslash; choose another", dir)
	}
	return layout{dir}, nil
}

func (l layout) state() string      { return filepath.Join(l.dir, "cluster.json") }
func (l layout) kubeconfig() string { return filepath.Join(l.dir, "kubeconfig") }
func (l layout) containerd() string {
	return filepath.Join(l.dir, "root/run/containerd/containerd.sock")
}
func (l layout) pki(name string) string  { return filepath.Join(l.dir, "pki", name) }
func (l layout) conf(name string) string { return filepath.Join(l.dir, "conf", name) }
func (l layout) log(name string) string  { return filepath.Join(l.dir, "log", name+".log") }
func (l layout) proc(name string) string { return filepath.Join(l.dir, "proc", name+".json") }

// namespace is a mount of the node's mount namespace, which keeps it while no process is in it.
func (l layout) namespace() string { return filepath.Join(l.dir, "namespace") }

// root is a directory of the node's own file system; work belongs to its overlay.
func (l layout) root(name string) string { return filepath.Join(l.dir, "root", name) }
func (l layout) work(name string) string { return filepath.Join(l.dir, "work", name) }

// state is what down needs to know. It is written before anything outside the directory is made.
type state struct {
	Slot  int    // tells clusters of one machine apart
	Bin   string // directory of the binaries of Kubernetes
	Tools string // directory of the binaries of containerd and etcd
	Gates string `json:",omitempty"` // feature gates of all components
	Nodes int    `json:",omitempty"` // simulated nodes
	Kwok  string `json:",omitempty"` // directory of kwok
}

// slots bounds the clusters of one machine.
const slots = 100

// The addresses come from 198.18.0.0/15, which is for benches (RFC 2544) and routed nowhere.
func (s state) link() string     { return fmt.Sprintf("kerfcluster%d", s.Slot) }
func (s state) cgroup() string   { return fmt.Sprintf("kerf-cluster-%d", s.Slot) }
func (s state) podNet() string   { return fmt.Sprintf("198.18.%d.0/24", s.Slot) }
func (s state) nodeIP() string   { return fmt.Sprintf("198.18.%d.1", s.Slot) }
func (s state) svcNet() string   { return fmt.Sprintf("198.19.%d.0/24", s.Slot) }
func (s state) apiIP() string    { return fmt.Sprintf("198.19.%d.1", s.Slot) }
func (s state) apiURL() string   { return "https://" + s.apiIP() }
func (s state) etcdURL() string  { return "https://" + net.JoinHostPort(s.nodeIP(), "2379") }
func (s state) etcdPeer() string { return "https://" + net.JoinHostPort(s.nodeIP(), "2380") }

// readState reads a cluster's state; found is false where the directory holds none.
func (l layout) readState() (s state, found bool, err error) {
	data, err := os.ReadFile(l.state())
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, fmt.Errorf("read the cluster's state: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, false, fmt.Errorf("read %s: %w", l.state(), err)
	}
	if s.Slot < 0 || s.Slot >= slots {
		return s, false, fmt.Errorf("read %s: slot %d, known are 0 to %d; the file is damaged", l.state(), s.Slot, slots-1)
	}
	return s, true, nil
}

// running reads the state of a cluster that must be there.
func (l layout) running() (state, error) {
	s, found, err := l.readState()
	if err == nil && !found {
		err = fmt.Errorf("no cluster in %s; start one with cluster up", l.dir)
	}
	return s, err
}

// writeJSON replaces a file by a value, whole or not at all.
func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return writeFile(path, append(data, '\n'), 0o600)
}

// nextSuffix is of a file that is not whole yet.
const nextSuffix = ".next"

func writeFile(path string, data []byte, mode fs.FileMode) error {
	next := path + nextSuffix
	if err := os.WriteFile(next, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// within tells whether path is dir or under it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
