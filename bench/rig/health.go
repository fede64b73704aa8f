package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Health is what benches need of what kerfd's monitor knows (schema kerf.health/v1).
type Health struct {
	Devices []struct {
		PCI   node.PCIAddress `json:"pci"`
		Index int             `json:"index"` // -1: no GPU
		Name  string          `json:"name"`
		Xids  map[int]int     `json:"xids"` // by code
	} `json:"devices"`
	Sources []struct {
		Lost uint64 `json:"lost"`
	} `json:"sources"`
}

// Health asks kerfd itself: no command shows all of it.
func (r *Rig) Health(ctx context.Context) (h Health, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.Socket())
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kerfd"+"/v1/health", nil)
	if err != nil {
		return h, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return h, fmt.Errorf("ask kerfd for health: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return h, fmt.Errorf("ask kerfd for health: %s", answer.Status)
	}
	if err := json.NewDecoder(answer.Body).Decode(&h); err != nil {
		return h, fmt.Errorf("ask kerfd for health: %w", err)
	}
	return h, nil
}
