package hook

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kerf-gpu/kerf/internal/durable"
)

// Binding says that a container holds a share. It is written before the container's program starts, and stays until the share
// ends or kerfd, which looks every few seconds, finds the process gone.
type Binding struct {
	Share     string    `json:"share"`
	ID        string    `json:"id"`               // the container's
	PID       int       `json:"pid"`              // of its first process
	Start     uint64    `json:"start"`            // that process's start time in clock ticks since boot, which tells it from a later one
	Cgroup    string    `json:"cgroup,omitempty"` // below the mount of cgroup v2; "" on a node without
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	PodUID    string    `json:"podUID,omitempty"`
	Container string    `json:"container,omitempty"` // its name in the pod
	Created   time.Time `json:"created"`
}

// bindingsDir is beside a share's pages, where tenants cannot see it.
func bindingsDir(pages string) string { return filepath.Join(filepath.Dir(pages), "containers") }

// Bindings are the containers that were bound to a share, by the directory of its pages. Files that are no bindings are skipped.
func Bindings(pages string) ([]Binding, error) {
	dir := bindingsDir(pages)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read bindings: %w", err)
	}
	var bindings []Binding
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".json" {
			continue
		}
		var b Binding
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err == nil && json.Unmarshal(text, &b) == nil && b.ID+".json" == entry.Name() {
			bindings = append(bindings, b)
		}
	}
	return bindings, nil
}

// Unbind forgets a container; it is no error that it is not there.
func Unbind(pages, container string) error {
	err := os.Remove(filepath.Join(bindingsDir(pages), container+".json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove binding: %w", err)
	}
	return nil
}

// bind writes a binding. The share's own directory must be there: it is how kerfd says that the share is in force.
func (b Binding) write(pages string) error {
	if b.ID == "" || strings.ContainsAny(b.ID, "/\x00") || strings.HasPrefix(b.ID, ".") {
		return fmt.Errorf("the container's id %q cannot be a file's name", b.ID)
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	dir := bindingsDir(pages)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("bind the container to share %s: %w; is the claim still prepared on this node?", b.Share, err)
	}
	if err := durable.Replace(filepath.Join(dir, b.ID+".json"), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("bind the container to share %s: %w", b.Share, err)
	}
	return nil
}

// bindingOf is what the runtime and /proc say of a container. containerd and CRI-O name the pod in annotations of their own.
func bindingOf(c *container, share string, now time.Time) Binding {
	return Binding{
		Share: share, ID: c.state.ID, PID: c.state.Pid, Start: startTime(c.state.Pid), Cgroup: cgroupOf(c.state.Pid),
		Namespace: c.annotation("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
		Pod:       c.annotation("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
		PodUID:    podUID(c),
		Container: c.annotation("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
		Created:   now.UTC(),
	}
}

// annotation is one that containerd and CRI-O have by names of their own.
func (c *container) annotation(containerd, crio string) string {
	return cmp.Or(c.spec.Annotations[containerd], c.spec.Annotations[crio])
}

func podUID(c *container) string {
	return c.annotation("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
}

// cgroupOf reads the line of cgroup v2, "0::/kubepods/…".
func cgroupOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && path != "/" {
			return path
		}
	}
	return ""
}

// startTime is field 22 of stat; the command's name, field 2, may hold spaces and brackets.
func startTime(pid int) (start uint64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	if len(fields) > 19 {
		_, _ = fmt.Sscan(fields[19], &start)
	}
	return start
}
