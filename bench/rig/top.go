package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Top is what benches and demos need of `kerf top --once --json` (schema kerf.top/v1).
type Top struct {
	GPUs   []GPU   `json:"gpus"`
	Shares []Share `json:"shares"`
}

// Share is a slice in force, and who is in it.
type Share struct {
	ID       string `json:"id"`
	Sessions []struct {
		PID int `json:"pid"`
	} `json:"sessions"`
}

// ShareOf is the share that the process is in, and false where it is in none.
func (t Top) ShareOf(pid int) (Share, bool) {
	for _, share := range t.Shares {
		for _, session := range share.Sessions {
			if session.PID == pid {
				return share, true
			}
		}
	}
	return Share{}, false
}

// GPU is one GPU's row. Memory is what can be granted, Granted what is.
type GPU struct {
	UUID    node.UUID  `json:"uuid"`
	Name    string     `json:"name"`
	Memory  node.Bytes `json:"memory"`
	Granted node.Bytes `json:"granted"`
	Used    node.Bytes `json:"used"`
}

// Top asks kerfd what is granted and used now.
func (r *Rig) Top(ctx context.Context) (Top, error) {
	var stderr bytes.Buffer
	cmd := r.Kerf(ctx, "top", "--once", "--json")
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return Top{}, fmt.Errorf("kerf top: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var top Top
	if err := json.Unmarshal(text, &top); err != nil {
		return Top{}, fmt.Errorf("kerf top: %w", err)
	}
	return top, nil
}

// Set changes a share by `kerf set`.
func (r *Rig) Set(ctx context.Context, share string, flags ...string) error {
	if text, err := r.Kerf(ctx, append([]string{"set", share}, flags...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("kerf set %s: %w: %s", share, err, strings.TrimSpace(string(text)))
	}
	return nil
}
