package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// api is the API server, as the administrator. It is spoken to in plain JSON: a client library is larger than this program.
type api struct {
	url    string
	client *http.Client
}

func newAPI(l layout, s state) (*api, error) {
	cert, err := tls.LoadX509KeyPair(l.pki("admin.crt"), l.pki("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("read the administrator's certificate: %w", err)
	}
	ca, err := os.ReadFile(l.pki("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &api{s.apiURL(), &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS13}},
	}}, nil
}

// healthy asks a daemon for its health.
func (a *api) healthy(ctx context.Context, l layout, s state, d daemon) error {
	if d.url == "" {
		return ctr(ctx, l, s, "version")
	}
	_, err := a.send(ctx, http.MethodGet, d.url, nil)
	return err
}

// do sends a request to the API server and returns the answer's body.
func (a *api) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return a.send(ctx, method, a.url+path, body)
}

// send sends a request and returns the answer's body.
func (a *api) send(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		var status struct{ Message string }
		if json.Unmarshal(data, &status) != nil {
			status.Message = lastLine(data)
		}
		return nil, fmt.Errorf("answer %d: %s", resp.StatusCode, status.Message)
	}
	return data, nil
}

// get reads an object into value.
func (a *api) get(ctx context.Context, path string, value any) error {
	data, err := a.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, value)
}

// condition of a node or a pod.
type condition struct{ Type, Status, Reason, Message string }

func find(conditions []condition, kind string) condition {
	for _, c := range conditions {
		if c.Type == kind {
			return c
		}
	}
	return condition{Type: kind, Status: "Unknown", Message: "nothing reported yet"}
}
