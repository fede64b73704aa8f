package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Health is what benches need of what kerfd's monitor knows (schema kerf.health/v1): GPUs first, by their index.
type Health struct {
	Devices []struct {
		PCI    node.PCIAddress `json:"pci"`
		Index  int             `json:"index"` // -1: no GPU
		Name   string          `json:"name"`
		Health string          `json:"health"` // unknown, healthy, unhealthy
		Xids   map[int]int     `json:"xids"`   // by code
	} `json:"devices"`
	Sources []struct {
		Lost uint64 `json:"lost"`
	} `json:"sources"`
}

// Health asks kerfd by its socket: a process a question would be most of what is measured.
func (r *Rig) Health(ctx context.Context) (h Health, err error) {
	return h, r.ask(ctx, http.MethodGet, "/v1/health", nil, &h)
}

// Release says that a device is well, as kerf release does.
func (r *Rig) Release(ctx context.Context, device, why string) error {
	return r.ask(ctx, http.MethodPost, "/v1/health/"+device+"/release", map[string]string{"why": why}, nil)
}

func (r *Rig) ask(ctx context.Context, method, path string, body, answer any) error {
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://kerfd"+path, &text)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.Socket())
	}}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("ask kerfd: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(response.Body) // what is left of it is as good
		return fmt.Errorf("ask kerfd: %s %s: %s: %s", method, path, response.Status, said)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}
