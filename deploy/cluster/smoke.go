package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// wanted are the kinds of resource.k8s.io/v1 that Kerf works with.
func wanted() []string {
	return []string{"DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice", "DeviceTaintRule"}
}

const (
	smokeWithin = time.Minute
	smokeWords  = "the pod has run"
)

// smokeVerb runs a pod that reaches the API server, to its end, through all daemons, and reads its log.
func smokeVerb(ctx context.Context, args []string) error {
	l, err := newFlags("smoke").parse(args, 0, 0)
	if err != nil {
		return err
	}
	s, err := l.running()
	if err != nil {
		return err
	}
	server, err := newAPI(l, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, smokeWithin, fmt.Errorf("not done within %s", smokeWithin))
	defer cancel()
	kinds, err := resourceKinds(ctx, server)
	if err != nil {
		return fmt.Errorf("smoke: %w", err)
	}
	fmt.Printf("resource.k8s.io/v1 serves %s\n", strings.Join(kinds, ", "))
	began := time.Now()
	if err := smokePod(ctx, server); err != nil {
		return fmt.Errorf("smoke: %w", err)
	}
	fmt.Printf("a pod ran to its end in %.1f s\n", time.Since(began).Seconds())
	return nil
}

func resourceKinds(ctx context.Context, server *api) ([]string, error) {
	var list struct{ Resources []struct{ Kind, Name string } }
	if err := server.get(ctx, "/apis/resource.k8s.io/v1", &list); err != nil {
		return nil, fmt.Errorf("list resource.k8s.io/v1: %w", err)
	}
	var kinds []string
	for _, r := range list.Resources {
		if !strings.Contains(r.Name, "/") {
			kinds = append(kinds, r.Kind)
		}
	}
	for _, kind := range wanted() {
		if !slices.Contains(kinds, kind) {
			return nil, fmt.Errorf("resource.k8s.io/v1 lacks %s, and serves %s; see the API server's feature gates", kind, strings.Join(kinds, ", "))
		}
	}
	return kinds, nil
}

func smokePod(ctx context.Context, server *api) error {
	const pods = "/api/v1/namespaces/default/pods"
	const pod = pods + "/kerf-smoke"
	// From inside, the API server answers at the address of its Service; -q -O would print its refusal of strangers.
	const script = `nc -w 5 "$KUBERNETES_SERVICE_HOST" "$KUBERNETES_SERVICE_PORT" </dev/null && echo ` + smokeWords
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "kerf-smoke"},
		"spec": map[string]any{
			"restartPolicy": "Never",
			"containers": []map[string]any{{
				"name": "main", "image": busyboxImage, "imagePullPolicy": "Never", "command": []string{"sh", "-c", script},
			}},
		},
	})
	if err != nil {
		return fmt.Errorf("encode a pod: %w", err)
	}
	if _, err := server.do(ctx, http.MethodPost, pods, body); err != nil {
		return fmt.Errorf("create a pod: %w", err)
	}
	defer func() {
		_, _ = server.do(context.WithoutCancel(ctx), http.MethodDelete, pod+"?gracePeriodSeconds=0", nil)
	}()
	if err := podEnds(ctx, server, pod); err != nil {
		return err
	}
	log, err := server.do(ctx, http.MethodGet, pod+"/log", nil)
	if err != nil {
		return fmt.Errorf("read the pod's log: %w", err)
	}
	if got := lastLine(log); got != smokeWords {
		return fmt.Errorf("read the pod's log: it says %q, not %q", got, smokeWords)
	}
	return nil
}

// podEnds waits until the pod has succeeded.
func podEnds(ctx context.Context, server *api, path string) error {
	for {
		var pod struct {
			Status struct {
				Phase             string
				ContainerStatuses []struct {
					State struct {
						Waiting    struct{ Reason, Message string }
						Terminated struct{ ExitCode int }
					}
				}
			}
		}
		if err := server.get(ctx, path, &pod); err != nil {
			return fmt.Errorf("look at the pod: %w", err)
		}
		switch pod.Status.Phase {
		case "Succeeded":
			return nil
		case "Failed":
			code := 0
			for _, c := range pod.Status.ContainerStatuses {
				code = c.State.Terminated.ExitCode
			}
			return fmt.Errorf("the pod failed with exit status %d; its script reaches for the API server's address", code)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			why := "phase " + pod.Status.Phase
			for _, c := range pod.Status.ContainerStatuses {
				why += ", " + c.State.Waiting.Reason + " " + c.State.Waiting.Message
			}
			return fmt.Errorf("wait for the pod: %w: %s", context.Cause(ctx), why)
		}
	}
}
