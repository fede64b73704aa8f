package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	resourceapi "k8s.io/api/resource/v1"
	"sigs.k8s.io/yaml"
)

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

// TestClaimPairs: what is written, and that the API's own types read it with nothing left over.
func TestClaimPairs(t *testing.T) {
	for name, args := range map[string][]string{
		"claim-pairs.yaml":  {"--pairs", "2"},
		"claim-slices.yaml": {"--pairs", "2", "--memory", "40Gi", "--cores", "50", "--template", "--fallback", "any", "--name", "train", "-n", "ml"},
		"claim-numa.json":   {"--fallback", "numa", "-o", "json", "--gpu-class", "gpu-h200"},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := kerf(t, claimCommand(), append([]string{"gpu-nic"}, args...)...)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, text)
			var claim resourceapi.ResourceClaim
			devices := &claim.Spec.Devices
			if strings.Contains(text, "ResourceClaimTemplate") {
				var template resourceapi.ResourceClaimTemplate
				err, devices = yaml.UnmarshalStrict([]byte(text), &template), &template.Spec.Spec.Devices
			} else {
				err = yaml.UnmarshalStrict([]byte(text), &claim)
			}
			if err != nil || len(devices.Requests) == 0 {
				t.Errorf("%d requests read, %v", len(devices.Requests), err)
			}
			if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
				t.Errorf("no JSON: %s", text)
			}
		})
	}
}

func TestClaimErrors(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"gpu-nic", "--pairs", "17"}, "a ResourceClaim takes 32; ask for at most 16 pairs"},
		{[]string{"gpu-nic", "--pairs", "16", "--fallback", "any", "--memory", "1Gi"}, "33 constraints"},
		{[]string{"gpu-nic", "--pairs", "0"}, "at least 1"},
		{[]string{"gpu-nic", "--fallback", "near"}, "take none, numa or any"},
		{[]string{"gpu-nic", "--memory", "much"}, `--memory "much"`},
		{[]string{"gpu-nic", "--memory", "0"}, `--memory "0"`},
		{[]string{"gpu-nic", "--cores", "101"}, "--cores"},
		{[]string{"gpu-nic", "-o", "xml"}, `--output "xml": not known; take yaml or json`},
		{[]string{"gpu-nic", "--name", "My Claim"}, `--name "My Claim"`},
		{[]string{"gpu-nic", "--nic-class", ""}, `--nic-class ""`},
		{[]string{}, "claim wants a kind"},
	} {
		out, err := kerf(t, claimCommand(), tt.args...)
		var exit exitError
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") || !errors.As(err, &exit) || exit.code != exitUsage {
			t.Errorf("%v: %v, want %q and code 64", tt.args, err, tt.want)
		}
		if strings.Contains(out, "requests:") {
			t.Errorf("%v: an error, and a claim:\n%s", tt.args, out)
		}
	}
}
