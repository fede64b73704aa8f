package dra

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// claim is the claim as the API server has it.
func (k *kubelet) claim(of *resourceapi.ResourceClaim) *resourceapi.ResourceClaim {
	k.t.Helper()
	claim, err := k.client.ResourceV1().ResourceClaims(of.Namespace).Get(context.Background(), of.Name, metav1.GetOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	return claim
}

func (k *kubelet) statusWrites() (n int) {
	for _, a := range k.client.Actions() {
		if a.GetVerb() == "patch" && a.GetSubresource() == "status" {
			n++
		}
	}
	return n
}

func TestStatus(t *testing.T) {
	k := newKubelet(t)
	k.start(k.config())
	claim := k.allocate(claimOf("u1", result(crowded, "s1", "memory=30Gi", "cores=40"), result(crowded, "s2", "memory=1Gi")))
	claim.Status.Allocation.Devices.Config = []resourceapi.DeviceAllocationConfiguration{opaque("claim", `"memoryLimit":"40Gi","class":"burstable"`)}
	if _, err := k.client.ResourceV1().ResourceClaims("default").Update(context.Background(), claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, problem := k.prepared(claim); problem != "" {
		t.Fatal(problem)
	}
	k.eventually("the status is written", func() bool { return len(k.claim(claim).Status.Devices) == 2 })
	s := k.claim(claim).Status.Devices[0]
	var data DeviceData
	if err := json.Unmarshal(s.Data.Raw, &data); err != nil {
		t.Fatal(err)
	}
	if len(data.Share) != 16 {
		t.Errorf("share %q", data.Share)
	}
	data.Share = ""
	want := DeviceData{UUID: "GPU-ca010d00-0000-0000-0000-000000000000", Memory: "30Gi", Limit: "40Gi", Cores: 40, Class: "burstable", Backend: "auto", Simulated: true}
	if d := cmp.Diff(want, data); d != "" {
		t.Error(d)
	}
	if s.Device != crowded || *s.ShareID != "s1" || len(s.Conditions) != 1 || s.Conditions[0].Type != "Ready" || s.Conditions[0].Status != metav1.ConditionTrue {
		t.Errorf("%+v", s)
	}
	// Prepared again, by this driver or by its successor, it is not written again.
	_ = k.stop()
	k.start(k.config())
	if _, problem := k.prepared(claim); problem != "" {
		t.Fatal(problem)
	}
	marker := k.allocate(simple("marker", "s", "1Gi"))
	if _, problem := k.prepared(marker); problem != "" {
		t.Fatal(problem)
	}
	k.eventually("the marker's status is written", func() bool { return len(k.claim(marker).Status.Devices) == 1 })
	if n := k.statusWrites(); n != 2 {
		t.Errorf("%d writes for two claims", n)
	}
}

// A status that cannot be written is tried again, later and later; pods do not wait.
func TestStatusIsTriedAgain(t *testing.T) {
	k := newKubelet(t)
	down := true
	k.client.PrependReactor("patch", "resourceclaims", func(clienttesting.Action) (bool, runtime.Object, error) {
		return down, nil, errors.New("connection refused")
	})
	claim := k.allocate(simple("u1", "s", "1Gi"))
	gone := simple("u2", "s", "1Gi")
	synctest.Test(t, func(t *testing.T) {
		d, err := New(k.config())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { d.writeStatuses(ctx) })
		if _, err := d.prepare(ctx, claim); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(k.reported()); n != 4 { // at 0, 1, 3 and 7 s
			t.Errorf("%d attempts in 10 s, want 4", n)
		}
		down = false
		if _, err := d.prepare(ctx, gone); err != nil { // it was deleted meanwhile: said once, and not tried again
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(k.reported()); n > 5 || len(d.status.pending) != 0 {
			t.Errorf("%d errors, %d pending", n, len(d.status.pending))
		}
		cancel()
		loop.Wait()
	})
	if len(k.claim(claim).Status.Devices) != 1 {
		t.Error("not written in the end")
	}
}
