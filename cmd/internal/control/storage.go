package control

import (
	"context"
	"net/http"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
)

// StorageSchema is of what kerf volumes prints with --json.
const StorageSchema = "kerf.storage/v1"

// StoragePath is where volumes are asked for: GET → Storage. Root's only.
const StoragePath = "/v1/storage"

// Storage is the volumes of a node and their pools.
type Storage struct {
	Schema     string   `json:"schema"`
	Enabled    bool     `json:"enabled"`
	Registered bool     `json:"registered"` // with kubelet
	Pools      []Pool   `json:"pools"`
	Volumes    []Volume `json:"volumes"`
	Strangers  []string `json:"strangers,omitempty"` // POOL/ID of what is in pools and on no record
	Error      string   `json:"error,omitempty"`
}

// Pool is a place that volumes are made in. Bytes.
type Pool struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind"`
	Total    node.Bytes `json:"total"`
	Free     node.Bytes `json:"free"`
	Promised node.Bytes `json:"promised"`
	Largest  node.Bytes `json:"largest"`
	Volumes  int        `json:"volumes"`
	Error    string     `json:"error,omitempty"`
}

// Volume is a volume or a snapshot.
type Volume struct {
	ID      string     `json:"id"`
	Kind    string     `json:"kind"` // volume, snapshot, ephemeral
	Name    string     `json:"name"`
	State   string     `json:"state"`
	Pool    string     `json:"pool"`
	Size    node.Bytes `json:"size"`
	Block   bool       `json:"block,omitempty"`
	Source  string     `json:"source,omitempty"`
	Created time.Time  `json:"created"`
	Targets []string   `json:"targets,omitempty"` // where it is mounted
}

// Storage is the volumes of the node.
func (c *Client) Storage(ctx context.Context) (s Storage, err error) {
	return s, c.call(ctx, http.MethodGet, StoragePath, nil, &s)
}
