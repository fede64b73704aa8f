package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The node's own knowledge: read from its files and sockets, so only where the cluster is on this machine.

// dial connects to a socket of the node, given by its path there.
func (c *clusterUnderTest) dial(path string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+filepath.Join(c.root, path), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to the node's %s: %w", path, err)
	}
	return conn, nil
}

// complete adds what the node knows of the pods' start to what the API server told.
func (c *clusterUnderTest) complete(ctx context.Context, pods map[string]times) error {
	if c.root == "" {
		return nil
	}
	if err := c.sharesMade(ctx, pods); err != nil {
		return err
	}
	return c.containersMade(ctx, pods)
}

// sharesMade reads when the CDI spec of each pod's share was written: its name has the claim's UID.
func (c *clusterUnderTest) sharesMade(ctx context.Context, pods map[string]times) error {
	claims, err := c.client.ResourceV1().ResourceClaims(benchNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the claims: %w", err)
	}
	specs, err := os.ReadDir(filepath.Join(c.root, "run/cdi"))
	if err != nil {
		return fmt.Errorf("list the node's CDI specs: %w", err)
	}
	for _, claim := range claims.Items {
		for _, spec := range specs {
			if len(claim.Status.ReservedFor) == 0 || !strings.Contains(spec.Name(), string(claim.UID)) || !strings.Contains(spec.Name(), "share") {
				continue
			}
			if info, err := spec.Info(); err == nil {
				if t := pods[claim.Status.ReservedFor[0].Name]; t != nil {
					t[prepared] = info.ModTime()
				}
			}
		}
	}
	return nil
}

// containersMade asks containerd when it made and started what.
func (c *clusterUnderTest) containersMade(ctx context.Context, pods map[string]times) error {
	conn, err := c.dial("run/containerd/containerd.sock")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	runtime := cri.NewRuntimeServiceClient(conn)
	sandboxes, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list containerd's sandboxes: %w", err)
	}
	for _, one := range sandboxes.Items {
		made := time.Unix(0, one.CreatedAt)
		// One of an earlier run may not be cleaned up yet.
		if t := pods[one.Metadata.Name]; t != nil && one.Metadata.Namespace == benchNamespace && made.After(t[posted]) {
			t[sandbox] = made
		}
	}
	containers, err := runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containerd's containers: %w", err)
	}
	for _, one := range containers.Containers {
		t := pods[one.Labels["io.kubernetes.pod.name"]]
		if t == nil || one.Labels["io.kubernetes.pod.namespace"] != benchNamespace || time.Unix(0, one.CreatedAt).Before(t[posted]) {
			continue
		}
		status, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: one.Id})
		if err != nil {
			return fmt.Errorf("ask containerd for a container: %w", err)
		}
		t[created], t[started] = time.Unix(0, status.Status.CreatedAt), time.Unix(0, status.Status.StartedAt)
	}
	return nil
}
