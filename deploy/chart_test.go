package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
)

// render runs Helm, which takes minutes to build: `make chart-test` says where it is.
func render(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	helm := strings.Fields(os.Getenv("KERF_HELM"))
	if len(helm) == 0 {
		t.Skip("KERF_HELM is not set; run make chart-test")
	}
	arguments = append([]string{"template", "kerf", "deploy/chart", "--namespace", "kerf-system"}, arguments...)
	cmd := exec.CommandContext(t.Context(), helm[0], append(helm[1:], arguments...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return stderr.String(), err
	}
	return string(out), nil
}

func TestKeptManifestsAreRendered(t *testing.T) {
	for _, file := range manifests {
		got, err := render(t, "--values", "deploy/"+strings.TrimSuffix(file, ".yaml")+".values.yaml")
		if err != nil {
			t.Fatal(got)
		}
		kept, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, kept, _ := strings.Cut(string(kept), "\n"); kept != got {
			t.Errorf("%s is not what the chart renders; run make manifests", file)
		}
	}
}

func TestValuesRefused(t *testing.T) {
	for _, tt := range []struct{ set, want string }{
		{"simulte=h200x8", "simulte"},
		{"simulate=H200 x 8", "simulate"},
		{"cdiDir=run/cdi", "cdiDir"},
		{"logLevel=verbose", "logLevel"},
		{"leases=maybe", "leases"},
		{"drainTimeout=2", "drainTimeout"},
		{"cards[0].mode=shared", "mode"},
		{"cards[0].mode=overcommit", "overcommitPercent"},
		{"cards[0].mode=overcommit,cards[0].overcommitPercent=100", "overcommitPercent"},
		{"cards[0].mode=mig,cards[0].overcommitPercent=150", "cards"},
		{"cards[0].mode=mig,cards[0].match.name=A100", "match"},
		{"devicePlugin.memory=10GB", "memory"},
		{"devicePlugin.cores=101", "cores"},
		{`productClasses.gpu-x[0]=A100") || true || ("`, "productClasses"},
		{"productClasses.fast[0]=NVIDIA A100", "fast"},
		{"productClasses.gpu-mig[0]=NVIDIA A100", "gpu-mig"},
		{"webhook.failurePolicy=Maybe", "failurePolicy"},
		{"controller.replicas=0", "replicas"},
		{"image.pullPolicy=Sometimes", "pullPolicy"},
		{"controller.evictions.mode=now", "mode"},
		{"controller.evictions.pods=0", "pods"},
		{"controller.evictions.per=60", "per"},
		{"controller.evictions.breaker.nodes=1", "nodes"},
	} {
		t.Run(tt.set, func(t *testing.T) {
			if out, err := render(t, "--set", tt.set); err == nil || !strings.Contains(out, tt.want) {
				t.Errorf("error %v, want one about %q in:\n%s", err, tt.want, out)
			}
		})
	}
}

// TestValuesTaken renders with values that are not the defaults, and reads the result as strictly as the manifests.
func TestValuesTaken(t *testing.T) {
	for _, tt := range []struct {
		name, set string
		want      []string // in kerfd.yaml or in the DaemonSet's volumes
		classes   bool
	}{
		{"cards", "cards[0].mode=overcommit,cards[0].overcommitPercent=150,cards[0].match.product=NVIDIA A100", []string{"overcommitPercent: 150", "product: NVIDIA A100"}, true},
		{"device plugin only", "dra.enabled=false,devicePlugin.enabled=true,devicePlugin.memory=5Gi", []string{"memory: 5Gi", "/var/lib/kubelet/device-plugins"}, false},
		{"other directories", "kubeletDir=/data/kubelet,cdiDir=/etc/cdi,hostDir=/opt/kerf,stateDir=/data/kerf", []string{"/data/kubelet/plugins_registry", "/etc/cdi", "/opt/kerf", "/data/kerf"}, true},
		{"driver in a container", "driverRoot=/run/nvidia/driver", []string{"root: /driver-root", "/run/nvidia/driver"}, true},
		{"storage", "simulate=h200x8,storage.enabled=true,storage.pools[0].name=scratch,storage.pools[0].path=/data/scratch,storage.pools[0].enforce=none,storage.classes.fast.pool=scratch",
			[]string{"path: /data/scratch", "enforce: none", "/data/scratch\n", "/var/lib/kubelet\n"}, true},
		{"no product classes", "productClasses.gpu-a100=null", nil, true},
		{"labelled by hand", "nodeSelector.pool=gpu,controller.enabled=false,policies.ownSlices=false,policies.ownStatuses=false,policies.shareConfigs=false,policies.deviceTaintRules=false", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := render(t, "--set", tt.set)
			if err != nil {
				t.Fatal(out)
			}
			file := filepath.Join(t.TempDir(), "rendered.yaml")
			if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
				t.Fatal(err)
			}
			objects := read(t, file)
			said := only[*core.ConfigMap](objects)[0].Data["kerfd.yaml"]
			pod := only[*apps.DaemonSet](objects)[0].Spec.Template.Spec
			checkMounts(t, pod)
			for _, volume := range pod.Volumes {
				if volume.HostPath != nil {
					said += volume.HostPath.Path + "\n"
				}
			}
			for _, want := range tt.want {
				if !strings.Contains(said, want) {
					t.Errorf("no %q in:\n%s", want, said)
				}
			}
			if got := len(only[*resourceapi.DeviceClass](objects)) > 0; got != tt.classes {
				t.Errorf("device classes: %v, want %v", got, tt.classes)
			}
		})
	}
}

// TestEvictionRights: nobody may evict who is not to, and evictions need no webhook.
func TestEvictionRights(t *testing.T) {
	for _, tt := range []struct {
		set                          string
		there, evicts, forces, hooks bool
	}{
		{"controller.evictions.mode=off", true, false, false, true},
		{"controller.evictions.mode=observe", true, false, false, true},
		{"controller.evictions.mode=dry-run,controller.enabled=false", true, true, false, false},
		{"controller.evictions.mode=evict,controller.evictions.forceAfter=10m", true, true, true, true},
		{"controller.enabled=false", false, false, false, false},
	} {
		t.Run(tt.set, func(t *testing.T) {
			out, err := render(t, "--set", tt.set)
			if err != nil {
				t.Fatal(out)
			}
			for text, want := range map[string]bool{"command:\n            - /usr/bin/kerf-controller": tt.there, "resources: [pods/eviction]": tt.evicts,
				"# NoExecute, on one device each": tt.forces, "kind: MutatingWebhookConfiguration": tt.hooks} {
				if strings.Contains(out, text) != want {
					t.Errorf("%q is there: %v, want %v", text, !want, want)
				}
			}
		})
	}
}
