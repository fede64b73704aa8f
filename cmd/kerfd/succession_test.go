package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/cmd/internal/control"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// nodeConfig is that of a kerfd on a node whose kubelet is not there.
func nodeConfig(t *testing.T) (flag, cdi string) {
	t.Helper()
	dir := t.TempDir()
	cdi = filepath.Join(dir, "cdi")
	file := filepath.Join(dir, "kerfd.yaml")
	text := fmt.Sprintf("kubernetes:\n  {enabled: true, nodeName: n, dra: false, devicePlugin: {enabled: true}, kubeletDir: %s/kubelet, cdiDir: %s, hostDir: %s/host}\n", dir, cdi, dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--config=" + file, cdi
}

// One kerfd after the other takes over while claims come and go: no call fails, nothing is granted twice, nothing is left.
func TestSuccession(t *testing.T) {
	config, cdi := nodeConfig(t)
	d := startDaemon(t, config)
	client := control.Dial(control.Socket(d.dir))
	stay := ledger.Owner{UID: "stay", Namespace: "team", Name: "stay"}
	asks := func(uid string) []ledger.Ask { return []ledger.Ask{slice(uid+"-a", 4*node.GiB)} }
	first, err := client.Hold(t.Context(), ledger.DoorDRA, stay, asks(stay.UID))
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var churn sync.WaitGroup
	calls := 0
	churn.Go(func() {
		for ; ctx.Err() == nil; calls++ {
			owner := ledger.Owner{UID: fmt.Sprint("churn", calls)}
			err := passOn(context.Background(), func(ctx context.Context) error { // as the doors of one that has retired
				_, err := client.Hold(ctx, ledger.DoorDRA, owner, asks(owner.UID))
				return err
			})
			if err == nil {
				err = passOn(context.Background(), func(ctx context.Context) error { return client.Drop(ctx, ledger.DoorDRA, owner.UID) })
			}
			if err != nil {
				t.Errorf("call %d: %v", calls, err)
				return
			}
		}
	})
	for range soak(3, 50) {
		old, log := d.cmd, d.log.String()
		d.start()
		d.eventually("the new kerfd is up", func() bool { return strings.Contains(strings.TrimPrefix(d.log.String(), log), "kerfd is up") })
		next := d.cmd
		d.cmd = old
		d.stop()
		d.cmd = next
	}
	cancel()
	churn.Wait()
	t.Logf("%d claims held and dropped meanwhile (simulated)", calls)

	again, err := client.Hold(t.Context(), ledger.DoorDRA, stay, asks(stay.UID))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the share that stayed:\n%s", diff)
	}
	if shares := d.state().Shares; len(shares) != 1 {
		t.Errorf("%d shares, want the one that stayed", len(shares))
	}
	if err := client.Drop(t.Context(), ledger.DoorDRA, stay.UID); err != nil {
		t.Fatal(err)
	}
	if specs, _ := os.ReadDir(cdi); len(specs) != 0 {
		t.Errorf("left over: %v", specs)
	}
}

// Outside of a cluster a second kerfd is a mistake.
func TestSecondKerfd(t *testing.T) {
	d := startDaemon(t)
	_, err := succeed(t.Context(), Config{RunDir: d.dir}, nil)
	if err == nil || !strings.Contains(err.Error(), "another kerfd serves it") {
		t.Errorf("error %v", err)
	}
}

func TestPassOn(t *testing.T) {
	away, refused := errors.New("connection refused"), fmt.Errorf("%w: does not fit", control.ErrRefused)
	for _, tt := range []struct {
		name    string
		answers []error
		want    error
	}{
		{"at once", []error{nil}, nil},
		{"after the successor came up", []error{away, away, nil}, nil},
		{"a refusal is an answer", []error{away, refused, nil}, refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			err := passOn(t.Context(), func(context.Context) error { calls++; return tt.answers[calls-1] })
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := passOn(ctx, func(context.Context) error { return away }); !errors.Is(err, away) || !strings.Contains(err.Error(), "being updated") {
		t.Errorf("nobody comes: %v", err)
	}
}

// A kerfd that has retired takes over again when its successor is gone: an update that fails leaves the node served.
func TestSuccessorDies(t *testing.T) {
	config, _ := nodeConfig(t)
	d := startDaemon(t, config)
	first := d.cmd
	d.start()
	d.eventually("the second kerfd serves", func() bool { return strings.Count(d.log.String(), "kerfd is up") == 2 })
	d.kill()
	if err := first.Wait(); err == nil || !strings.Contains(d.log.String(), "the kerfd that took over has gone") {
		t.Errorf("the one that retired ended with %v, want an error, so that it is started again", err)
	}
	d.start()
}

// The kerfd of a pod that was succeeded, started again before the pod is stopped, does not take the node back.
func TestSucceededWaits(t *testing.T) {
	c := Config{RunDir: t.TempDir(), Kubernetes: KubernetesConfig{Enabled: true, PodUID: "a"}}
	for _, pod := range []string{"a", "b"} {
		c.Kubernetes.PodUID = pod
		if err := noteServing(c); err != nil {
			t.Fatal(err)
		}
	}
	for pod, want := range map[string]bool{"a": true, "b": false, "new": false} {
		c.Kubernetes.PodUID = pod
		if got := wasSucceeded(c); got != want {
			t.Errorf("pod %s was succeeded: %v, want %v", pod, got, want)
		}
	}
	c.Kubernetes.PodUID = "a"
	if err := noteServing(c); err != nil || wasSucceeded(c) { // b died, and a served again
		t.Errorf("%v; pod a still counts as succeeded: %v", err, wasSucceeded(c))
	}
}

// A request that outlives the retirement grants nothing.
func TestRetiredGrantsNothing(t *testing.T) {
	s := newSite(t)
	s.retire()
	server := &server{grants: s.grants, config: s.config, metrics: http.NotFoundHandler()}
	for _, request := range []*http.Request{
		httptest.NewRequest(http.MethodPost, control.GrantsPath, strings.NewReader(`{"memory":"1Gi"}`)),
		httptest.NewRequest(http.MethodPost, control.DoorsPath+"/dra/holds", strings.NewReader(`{"owner":{"uid":"u"},"asks":[]}`)),
	} {
		ctx := context.WithValue(request.Context(), clientKey{}, client{Peer: arbiter.Peer{Process: arbiter.Process{PID: os.Getpid()}}})
		answer := httptest.NewRecorder()
		server.routes().ServeHTTP(answer, request.WithContext(ctx))
		if answer.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", request.URL, answer.Code, answer.Body)
		}
	}
	s.want(0, 0, 0)
}
