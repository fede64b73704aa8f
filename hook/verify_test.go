package hook

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func simulatedShare(id string) Share {
	return Share{
		ID: id, Pages: "/run/kerf/shares/" + id + "/s", Lib: "/kerf/lib", CUDA: "/sim/usr/lib/libcuda.so.1", NVML: "/sim/usr/lib/libnvidia-ml.so.1",
		GPUs: []string{"/sim/dev/nvidia0"}, Control: []string{"/sim/dev/nvidiactl"}, Simulated: true,
	}
}

func realShare(id string, gpus ...string) Share {
	return Share{
		ID: id, Pages: "/run/kerf/shares/" + id + "/s", Lib: "/kerf/lib", CUDA: "/usr/lib/libcuda.so.570", NVML: "/usr/lib/libnvidia-ml.so.570",
		GPUs: gpus, Control: []string{"/dev/nvidiactl"},
	}
}

func mpsShare(id string) Share {
	s := simulatedShare(id)
	s.MPS = "/run/kerf/mps/0011223344556677/pipe"
	return s
}

func adminShare() Share {
	s := realShare("", "/dev/nvidia0")
	s.Pages, s.CUDA, s.Admin = "", "", true
	return s
}

// apply is what a runtime makes of the shares' CDI specs, as far as Verify looks.
func specOf(shares ...Share) *specs.Spec {
	spec := &specs.Spec{
		Linux:  &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}}}},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/run", Type: "bind", Source: "/var/lib/kubelet/x"}},
	}
	for _, s := range shares {
		for _, m := range s.Mounts() {
			options := []string{"ro", "rbind"}
			if m.Writable {
				options = []string{"rw", "rbind"}
			}
			if at := lastMount(spec, m.Target); at >= 0 {
				spec.Mounts = append(spec.Mounts[:at], spec.Mounts[at+1:]...)
			}
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: m.Target, Source: m.Source, Options: options})
		}
		for _, node := range s.GPUs {
			if !s.Simulated {
				addDevice(spec, s.NodeIn(node), nvidiaMajor, int64(node[len(node)-1]-'0'))
			}
		}
	}
	return spec
}

func addDevice(spec *specs.Spec, path string, major, minor int64) {
	spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor})
	spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
}

func mount(source, target string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Source: source, Destination: target, Options: []string{"rbind"}})
	}
}

func TestVerify(t *testing.T) {
	const a, b = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
	newer := simulatedShare(b)
	newer.Lib = "/kerf/newer/lib"
	privileged := func(s *specs.Spec) {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		addDevice(s, "/dev/nvidia7", nvidiaMajor, 7)
	}
	for _, tt := range []struct {
		name   string
		shares []Share
		edit   func(*specs.Spec)
		want   string // "": accepted
	}{
		{"simulated", []Share{simulatedShare(a)}, nil, ""},
		{"real", []Share{realShare(a, "/dev/nvidia0")}, nil, ""},
		{"two shares", []Share{realShare(a, "/dev/nvidia0"), realShare(b, "/dev/nvidia1")}, nil, ""},
		{"prepared by two versions", []Share{simulatedShare(a), newer}, nil, ""},
		{"a driver's other node", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { addDevice(s, "/dev/nvidiactl", 195, 255) }, ""},
		{"another vendor's node", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { addDevice(s, "/dev/fuse", 10, 229) }, ""},
		{"a driver's library", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: LibDir + "/libnvidia-nvvm.so.4", Source: "/x", Options: []string{"ro"}})
		}, ""},
		{"monitoring", []Share{adminShare()}, nil, ""},
		{"privileged monitoring", []Share{adminShare()}, privileged, ""},

		{"monitoring beside a share", []Share{adminShare(), realShare(a, "/dev/nvidia0")}, nil, "put them in two containers"},
		{"mps", []Share{mpsShare(a)}, nil, ""},
		{"mps beside a share", []Share{mpsShare(a), simulatedShare(b)}, nil, "a share of tier mps beside another"},
		{"volume on the pipes", []Share{mpsShare(a)}, mount("/own", "/run/kerf/mps"), "is mounted from /own, not from /run/kerf/mps/0011223344556677/pipe"},
		{"too many shares", slices.Repeat([]Share{simulatedShare(a)}, 17), nil, "has 17 shares, and 16 are the most"},
		{"Kata", []Share{simulatedShare(a)}, func(s *specs.Spec) {
			s.Annotations = map[string]string{"io.katacontainers.pkg.oci.container_type": "x"}
		}, "Kata Containers"},
		{"gVisor", []Share{simulatedShare(a)}, func(s *specs.Spec) { s.Annotations = map[string]string{"dev.gvisor.spec.mount": "x"} }, "gVisor"},
		{"a virtual machine", []Share{simulatedShare(a)}, func(s *specs.Spec) { s.VM = &specs.VM{Hypervisor: specs.VMHypervisor{Path: "/qemu"}} }, "virtual machine"},
		{"no mounts", []Share{simulatedShare(a)}, func(s *specs.Spec) { s.Mounts = nil }, "/run/kerf/lib/libcuda.so.1 is not mounted"},
		{"volume on Kerf's root", []Share{simulatedShare(a)}, mount("/host/run/kerf", "/run/kerf"), "/run/kerf is Kerf's"},
		{"volume on the libraries", []Share{simulatedShare(a)}, mount("/own", "/run/kerf/lib/"), "/own is mounted on /run/kerf/lib"},
		{"volume on the shim", []Share{simulatedShare(a)}, mount("/own", "/run/kerf/lib/../lib/libcuda.so.1"), "is mounted from /own, not from /kerf/lib/libcuda.so.1"},
		{"volume on the policy", []Share{simulatedShare(a)}, mount("/own", "/run/kerf/shares/"+a+"/policy"), "is Kerf's"},
		{"another share", []Share{simulatedShare(a)}, mount("/run/kerf/shares/"+b+"/s", "/run/kerf/shares/"+b), "is Kerf's"},
		{"later volume above", []Share{simulatedShare(a)}, mount("/own", "/run"), "/own is mounted on /run and hides /run/kerf/lib/libcuda.so.1"},
		{"later volume on everything", []Share{simulatedShare(a)}, mount("/own", "/"), "hides"},
		{"volume on the loader's cache", []Share{simulatedShare(a)}, mount("/own", "/etc/ld.so.cache"), "/etc/ld.so.cache, which decides"},
		{"volume on ld.so.preload", []Share{simulatedShare(a)}, mount("/own", "/etc/ld.so.preload"), "/etc/ld.so.preload, which decides"},
		{"writable policy", []Share{simulatedShare(a)}, func(s *specs.Spec) { s.Mounts[lastMount(s, "/run/kerf/shares/"+a)].Options = []string{"ro", "rw"} }, "is mounted writable"},
		{"another share's pages", []Share{simulatedShare(a)}, func(s *specs.Spec) {
			s.Mounts[lastMount(s, "/run/kerf/shares/"+a)].Source = "/run/kerf/shares/" + b + "/s"
		}, "not from /run/kerf/shares/" + a},
		{"no node", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { s.Linux.Devices = nil }, "/dev/nvidia0 is not in the container"},
		{"foreign node", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { addDevice(s, "/dev/nvidia3", 195, 3) }, "/dev/nvidia3 (195:3) is in the container"},
		{"foreign node by another name", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { addDevice(s, "/dev/x", 195, 3) }, "/dev/x (195:3)"},
		{"foreign node under the granted name", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { s.Linux.Devices[0].Minor = 3 }, "/dev/nvidia0 (195:3)"},
		{"foreign node on a simulated node", []Share{simulatedShare(a)}, func(s *specs.Spec) { addDevice(s, "/dev/nvidia3", 195, 3) }, "/dev/nvidia3"},
		{"foreign MIG capability", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) { addDevice(s, "/dev/nvidia-caps/nvidia-cap30", 236, 30) }, "/dev/nvidia-caps/nvidia-cap30"},
		{"privileged", []Share{realShare(a, "/dev/nvidia0")}, privileged, "/dev/nvidia7"},
		{"privileged on a node without more", []Share{simulatedShare(a)}, func(s *specs.Spec) {
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		}, "privileged: true?"},
		{"one rule too many", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) {
			major, minor := int64(195), int64(2)
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "r"})
		}, "may open /dev/nvidia2"},
		{"all of the driver's", []Share{realShare(a, "/dev/nvidia0")}, func(s *specs.Spec) {
			major := int64(195)
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: "rw"})
		}, "may open every device"},
		{"bound node", []Share{realShare(a, "/dev/nvidia0")}, mount("/dev/nvidia1", "/mnt/x"), "/dev/nvidia1 is mounted on /mnt/x"},
		{"bound simulated node", []Share{simulatedShare(a)}, mount("/sim/dev/nvidia1", "/mnt/x"), "/sim/dev/nvidia1 is mounted on /mnt/x"},
		{"bound simulated nodes", []Share{simulatedShare(a)}, mount("/sim/dev", "/mnt/x"), "/sim/dev is mounted on /mnt/x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := specOf(tt.shares...)
			if tt.edit != nil {
				tt.edit(spec)
			}
			err := Verify(spec, tt.shares)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestArgs(t *testing.T) {
	shares := []Share{simulatedShare("aaaaaaaaaaaaaaaa"), realShare("bbbbbbbbbbbbbbbb", "/dev/nvidia0", "/dev/nvidia1"), adminShare()}
	shares[1].Kerfd = "/run/kerf/hook.sock"
	for _, want := range shares {
		verb, got, err := ParseArgs(want.Args(CreateRuntimeVerb))
		if err != nil || verb != CreateRuntimeVerb {
			t.Error(verb, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, tt := range []struct{ args, want string }{
		{"kerf-hook", "no subcommand"},
		{"kerf-hook create-runtime", "--lib or --nvml is missing"},
		{"kerf-hook create-runtime --lib=/x --nvml=/y", "--share, --pages or --cuda is missing"},
		{"kerf-hook create-runtime --newer=1", "another version of Kerf"},
	} {
		if _, _, err := ParseArgs(strings.Fields(tt.args)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
}
