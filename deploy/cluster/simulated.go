package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// Simulated nodes have this label, and a taint of the same name: only pods that tolerate it go there.
const (
	simulatedLabel = "kwok.x-k8s.io/node"
	simulatedValue = "simulated"
)

// simulatedLimit is where etcd and the API server take more memory than a developer's machine spares.
const simulatedLimit = 5000

// makeSimulated makes the nodes; kwok makes them ready.
func makeSimulated(ctx context.Context, server *api, count int) error {
	for i := range count {
		name := fmt.Sprintf("simulated-%04d", i)
		size := map[string]string{"cpu": "128", "memory": "2Ti", "pods": "250"}
		node, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{
				"name":   name,
				"labels": map[string]string{simulatedLabel: simulatedValue, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
			},
			"spec":   map[string]any{"taints": []map[string]string{{"key": simulatedLabel, "value": simulatedValue, "effect": "NoSchedule"}}},
			"status": map[string]any{"capacity": size, "allocatable": size},
		})
		if err != nil {
			return fmt.Errorf("encode a node: %w", err)
		}
		if _, err := server.do(ctx, http.MethodPost, "/api/v1/nodes", node); err != nil {
			return fmt.Errorf("make node %s: %w", name, err)
		}
	}
	return nil
}

func simulatedReady(ctx context.Context, server *api, count int) error {
	var nodes struct {
		Items []struct {
			Status struct{ Conditions []condition }
		}
	}
	if err := server.get(ctx, "/api/v1/nodes?labelSelector="+simulatedLabel+"%3D"+simulatedValue, &nodes); err != nil {
		return err
	}
	ready := 0
	for _, node := range nodes.Items {
		if find(node.Status.Conditions, "Ready").Status == "True" {
			ready++
		}
	}
	if ready < count {
		return fmt.Errorf("%d of %d are ready", ready, count)
	}
	return nil
}
