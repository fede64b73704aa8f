package page

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

const hostile = `<img src=x onerror="document.title='owned'">`

// sample is eight GPUs with tenants, one of them with a hostile name, and a fault.
func sample() State {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := State{Schema: Schema, Time: at, Node: "n1", Version: "test", Simulated: true, NICs: []NIC{}, Links: []Link{},
		Faults:   []Fault{{Device: "GPU-3", GPU: 3, Level: "reset", Health: "bad", Reason: "Xid 79: the GPU has fallen off the bus", Clears: "a reset of the GPU", Since: at}},
		Sources:  []Source{{Name: "kmsg", Up: true}, {Name: "nvml", Why: "no answer", Lost: 2}},
		Probes:   []Probe{{Name: "oom", On: true, Hits: 3}, {Name: "disk", Reason: "no tracefs"}},
		Pools:    []Pool{{Name: "fast", Backend: "xfs", Total: 100 * node.GiB, Free: 40 * node.GiB, Volumes: 3}},
		Datasets: []Dataset{{Name: "llm", Digest: "sha256:0123456789abcdef0123", Bytes: 3 * node.GiB, Total: 10 * node.GiB, Rate: 200 * node.MiB, Pinned: true, Refs: 2}},
	}
	for i := range 8 {
		g := GPU{Index: i, UUID: node.UUID{byte(i + 1)}, Name: "NVIDIA H200 (simulated)", NUMA: i / 4, Memory: 140 * node.GiB, Level: "healthy", Tenants: []Tenant{}}
		for k := range i % 4 {
			g.Tenants = append(g.Tenants, Tenant{Name: fmt.Sprintf("pod team/job-%d-%d (main)", i, k), Tier: "shim", Class: "guaranteed", Limit: 40 * node.GiB,
				Used: node.Bytes(k+1) * 10 * node.GiB, Peak: 30 * node.GiB, Cores: 30, Sessions: 1, Lease: &Lease{State: "runs", Got: 30, Why: "its turn"}})
			g.Granted += 40 * node.GiB
			g.Used += node.Bytes(k+1) * 10 * node.GiB
		}
		nic := fmt.Sprintf("mlx5_%d", i)
		s.NICs = append(s.NICs, NIC{Name: nic, PCI: fmt.Sprintf("0000:%02x:00.0", i), NUMA: i / 4, VFs: 8})
		s.Links = append(s.Links, Link{GPU: i, NIC: nic, Class: "PIX"})
		s.GPUs = append(s.GPUs, g)
	}
	s.GPUs[1].Tenants[0].Name = hostile
	s.GPUs[3].Level = "reset"
	return s
}

var update = flag.Bool("update", false, "write the golden file")

// TestState holds the JSON to its golden file: people's programs read it.
func TestState(t *testing.T) {
	s := sample()
	s.GPUs, s.NICs, s.Links = s.GPUs[1:2], s.NICs[:1], s.Links[:1]
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/node.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Errorf("%s (-want +got), -update writes it:\n%s", Schema, diff)
	}
}

func TestRequests(t *testing.T) {
	s := New(func(context.Context) State { return sample() }, time.Second)
	for _, tt := range []struct {
		method, host, path string
		code               int
	}{
		{"GET", "localhost:9475", "/", 200},
		{"GET", "127.0.0.1:80", StatePath, 200},
		{"GET", "[::1]:9475", StatePath, 200},
		{"GET", "LOCALHOST", "/", 200},
		{"HEAD", "localhost", "/", 200},
		{"GET", "evil.example", StatePath, 421},
		{"GET", "127.0.0.1.evil.example:9475", StatePath, 421},
		{"GET", "evil.example", EventsPath, 421},
		{"GET", "10.0.0.1:9475", "/", 421},
		{"GET", "", "/", 421},
		{"POST", "localhost", "/", 405},
		{"DELETE", "localhost", StatePath, 405},
		{"GET", "localhost", "/v1/grants", 404},
		{"GET", "localhost", "/../etc/passwd", 404},
	} {
		r := httptest.NewRequest(tt.method, "http://localhost/", nil)
		r.Host, r.URL.Path = tt.host, tt.path
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != tt.code {
			t.Errorf("%s %s of %q: %d, want %d", tt.method, tt.path, tt.host, w.Code, tt.code)
		}
		if rule := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(rule, "default-src 'none'; script-src 'sha256-") {
			t.Errorf("%s %s: policy %q", tt.method, tt.path, rule)
		}
	}
}

// TestReadOnce: however many ask, the node is asked once in every; and not at all where nobody does.
func TestReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		s := New(func(context.Context) State { reads++; return State{} }, time.Second)
		time.Sleep(time.Hour) // of the bubble's clock
		if reads != 0 {
			t.Errorf("%d reads without a viewer", reads)
		}
		for range 100 {
			s.state(t.Context())
		}
		time.Sleep(time.Second)
		s.state(t.Context())
		if reads != 2 {
			t.Errorf("%d reads, want 2", reads)
		}
	})
}

func TestEvents(t *testing.T) {
	var reads atomic.Int64
	server := httptest.NewServer(New(func(context.Context) State { return State{Schema: Schema, Node: fmt.Sprint("n", reads.Add(1))} }, time.Millisecond))
	defer server.Close()
	var hangUp []func() error
	defer func() {
		for _, end := range hangUp {
			_ = end()
		}
	}()
	get := func() (status int, body *bufio.Reader) {
		r, err := http.Get(server.URL + EventsPath) //nolint:bodyclose // hangUp does, at the end
		if err != nil {
			t.Fatal(err)
		}
		hangUp = append(hangUp, r.Body.Close)
		return r.StatusCode, bufio.NewReader(r.Body)
	}
	for range maxViewers {
		_, lines := get()
		last := ""
		for range 2 {
			text, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if blank, err := lines.ReadString('\n'); err != nil || blank != "\n" {
				t.Fatalf("after an event: %q, %v", blank, err)
			}
			var s State
			if err := json.Unmarshal([]byte(strings.TrimPrefix(text, "data: ")), &s); err != nil || s.Node == last {
				t.Fatalf("event %q, %v; the one before had node %q", text, err, last)
			}
			last = s.Node
		}
	}
	if status, _ := get(); status != http.StatusServiceUnavailable {
		t.Errorf("viewer %d: status %d", maxViewers+1, status)
	}
	_ = hangUp[0]()
	for status := 0; status != http.StatusOK; { // the place of one who has gone is free, as soon as the server has seen it
		status, _ = get()
	}
}
