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
	GPUs []GPU `json:"gpus"`
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
