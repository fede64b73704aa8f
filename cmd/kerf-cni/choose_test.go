package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/kerf-gpu/kerf/cni"
	"github.com/kerf-gpu/kerf/cni/link/linktest"
	"github.com/kerf-gpu/kerf/internal/node"
)

const somePodArgs = "K8S_POD_UID=u-1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=llm"

// kerfd answers as the daemon does, on a socket.
func kerfd(t *testing.T, gpus []cni.GPU, status int) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+cni.PodGPUsPath, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("pod") != "default/llm" && r.FormValue("gpu") == "" {
			t.Errorf("asked for %s", r.URL)
		}
		w.WriteHeader(status)
		if status != http.StatusOK {
			_ = json.NewEncoder(w).Encode(map[string]string{"error": "kubelet is away"})
			return
		}
		_ = json.NewEncoder(w).Encode(gpus)
	})
	s := &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	s.Start()
	t.Cleanup(s.Close)
	return socket
}

func TestPoolNearTheGPU(t *testing.T) {
	place := func(path string, numa int) node.Place { return node.Place{Path: node.ParsePCIePath(path), NUMA: numa} }
	k := linktest.New()
	k.AddPF("0000:24:00.0", "pf0", "igb", 2)
	k.AddPF("0000:84:00.0", "pf1", "igb", 2)
	for _, vf := range []string{"0000:24:10.0", "0000:24:10.1"} {
		k.SetPlace(vf, place("/sys/devices/pci0000:20/0000:20:00.0/0000:21:00.0/0000:22:01.0/"+vf, 0))
	}
	for _, vf := range []string{"0000:84:10.0", "0000:84:10.1"} {
		k.SetPlace(vf, place("/sys/devices/pci0000:80/0000:80:00.0/0000:81:00.0/0000:82:01.0/"+vf, 1))
	}
	far := place("/sys/devices/pci0000:80/0000:80:00.0/0000:81:00.0/0000:82:00.0/0000:83:00.0", 1)
	gpus := []cni.GPU{{UUID: "GPU-9", Path: far.Path, NUMA: 1}}
	p := plugin{ctx: t.Context(), build: func(dir string) *cni.Engine { return &cni.Engine{Dir: dir, Kernel: k} }}

	for name, tt := range map[string]struct {
		topology, args string
		gpus           []cni.GPU
		status         int
		want           []string
		code           uint
		words          string
	}{
		"no topology":     {"", somePodArgs, gpus, 200, []string{"0000:24:10.0", "0000:24:10.1", "0000:84:10.0", "0000:84:10.1"}, 0, ""},
		"auto":            {`{"gpu":"auto"}`, somePodArgs, gpus, 200, []string{"0000:84:10.0", "0000:84:10.1", "0000:24:10.0", "0000:24:10.1"}, 0, ""},
		"at least PXB":    {`{"atLeast":"PXB"}`, somePodArgs, gpus, 200, []string{"0000:84:10.0", "0000:84:10.1"}, 0, ""},
		"by UUID":         {`{"gpu":"GPU-01234567-89ab-cdef-0123-456789abcdef","atLeast":"PIX"}`, "", gpus, 200, []string{"0000:84:10.0", "0000:84:10.1"}, 0, ""},
		"none so near":    {`{"atLeast":"PIX"}`, somePodArgs, []cni.GPU{{UUID: "GPU-8", NUMA: 0}}, 200, nil, 7, "0000:84:10.0 is SYS"},
		"a pod with none": {`{}`, somePodArgs, []cni.GPU{}, 200, nil, 7, "default/llm has no GPU"},
		"kubelet away":    {`{}`, somePodArgs, nil, 422, nil, 11, "kubelet is away"},
	} {
		t.Run(name, func(t *testing.T) {
			text := `{"name":"n","pool":{"pf":["pf0","0000:84:00.0"]},"kerfd":"` + kerfd(t, tt.gpus, tt.status) + `"`
			if tt.topology != "" {
				text += `,"topology":` + tt.topology
			}
			conf, err := cni.ParseConf([]byte(text+"}"), tt.args)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.candidates(conf, conf.Spec(cni.Key{ContainerID: "c", IfName: "net1"}, tt.args))
			var e *types.Error
			code := uint(0)
			if errors.As(err, &e) {
				code = e.Code
			} else if err != nil {
				code = uint(cni.CodeOf(err))
			}
			if !slices.Equal(got, tt.want) || code != tt.code || err != nil && !strings.Contains(err.Error(), tt.words) {
				t.Errorf("%v, code %d, %v; want %v, code %d, %q", got, code, err, tt.want, tt.code, tt.words)
			}
		})
	}
}
