package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suite is a package whose tests named TestLab… run in a machine, as root. There a test that skips has failed.
type suite struct {
	name     string
	pkg      string // as go test takes it, from the repository's top
	hardware string
	programs []program // built for it
	given    string    // environment variable with the path of a program that cannot be built here; it is copied to plugins/NAME
	env      []string
	run      string   // of its tests, if not all
	fails    []string // tests that are shown to fail: of plugins that are not ours
}

// program is built without cgo and copied into the machine.
type program struct {
	module string // directory of its go.mod, from the repository's top
	pkg    string
	guest  string
}

// suites is the list. A package that is not there yet is left out, and said.
func suites() []suite {
	return []suite{
		{name: "lab", pkg: "./deploy/lab", hardware: "cni"},
		{name: "lab-storage", pkg: "./deploy/lab", hardware: "storage"},
		{name: "topo", pkg: "./cni/topo", hardware: "cni"},
		{name: "link", pkg: "./cni/link", hardware: "cni"},
		{name: "cni", pkg: "./cni", hardware: "cni"},
		{name: "source", pkg: "./monitor/source", hardware: "cni"},
		{name: "bpf", pkg: "./monitor/bpf", hardware: "cni", run: "^TestLab(All|OOM|Crash|AER)$"},
		{name: "bpf-disk", pkg: "./monitor/bpf", hardware: "storage", run: "^TestLabDisk$"},
		{name: "pool", pkg: "./csi/pool", hardware: "storage"},
		kerfCNI(), hostDevice(), sriovCNI(),
	}
}

const plugins = labDir + "/plugins/"

// cnisuite holds one plugin to the suite of all.
func cnisuite(name, config, state string) suite {
	return suite{name: name, pkg: "./deploy/lab/cnisuite", hardware: "cni",
		env: []string{"KERF_CNI_PLUGIN=" + plugins + name, "KERF_CNI_CONFIG=" + config, "KERF_CNI_STATE=" + state}}
}

func (s suite) with(p program) suite {
	s.programs = append(s.programs, p)
	return s
}

// attributes says that the plugin knows sriov-cni's fields.
const attributes = "KERF_CNI_ATTRIBUTES=1"

// kerfCNI is ours, and has to pass all.
func kerfCNI() suite {
	s := cnisuite("kerf-cni", `{"type": "kerf-cni", "deviceID": "DEVICE"}`, "/run/kerf/nic/*.json").with(program{".", "./cmd/kerf-cni", plugins + "kerf-cni"})
	s.env = append(s.env, attributes)
	return s
}

// hostDevice is of containernetworking. It has no attributes and no records, so what is about those is left out.
func hostDevice() suite {
	s := cnisuite("host-device", `{"type": "host-device", "pciBusID": "DEVICE"}`, "").
		with(program{"deploy/lab/upstream", "github.com/containernetworking/plugins/plugins/main/host-device", plugins + "host-device"})
	s.run = "^TestLab(B[0234678]|DelOfUnknown)"
	s.fails = []string{"TestLabB2DelWithoutNetns", "TestLabB3NetnsGoneBeforeDel", "TestLabB6Status", "TestLabB6GC", "TestLabB7DelTwice", "TestLabDelOfUnknown"}
	return s
}

// sriovCNI's module cannot be had from every module proxy, so its program is given: CGO_ENABLED=0 go build ./cmd/sriov of v2.10.0.
func sriovCNI() suite {
	s := cnisuite("sriov-cni", `{"type": "sriov", "deviceID": "DEVICE"}`, "/var/lib/cni/sriov/*")
	s.given, s.env = "KERF_SRIOV_CNI", append(s.env, attributes)
	s.fails = []string{"TestLabB1AttributeRefusedRollsBack", "TestLabB2DelWithoutNetns", "TestLabB3NetnsGoneBeforeDel", "TestLabB4KilledDuringIPAM",
		"TestLabB5TruncatedState", "TestLabB5TruncatedStateWithMac", "TestLabB6Status", "TestLabB6Check", "TestLabB6GC", "TestLabB8FailedDelCanBeRetried", "TestLabB9MacOnIgb"}
	return s
}

// suiteTimeout is for all tests of a suite.
const suiteTimeout = 8 * time.Minute

// job runs the suite's test binary in its own directory, as go test does.
func (s suite) job(m Machine, run string) job {
	if s.run != "" {
		run = s.run
	}
	return job{
		Args:    []string{s.binary(), "-test.run", run, "-test.v", "-test.timeout", (suiteTimeout - 10*time.Second).String()},
		Env:     append(environment(m), s.env...),
		Dir:     s.dir(),
		Timeout: suiteTimeout,
	}
}

func (s suite) dir() string    { return labDir + "/test/" + s.name }
func (s suite) binary() string { return s.dir() + "/" + s.name + ".test" }

// missing is what has to be there for the suite and is not.
func (s suite) missing() string {
	if s.given != "" && os.Getenv(s.given) == "" {
		return "its program is not given: set " + s.given
	}
	paths := []string{s.pkg}
	for _, p := range s.programs {
		if strings.HasPrefix(p.pkg, "./") {
			paths = append(paths, filepath.Join(p.module, p.pkg))
		}
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return path + " is not there yet"
		}
	}
	return ""
}

// verdict reads what a suite's binary wrote: what is wrong, or nothing.
func (s suite) verdict(output string, end ended) (passed int, wrong []string) {
	var failed []string
	for line := range strings.Lines(output) {
		state, rest, ok := strings.Cut(strings.TrimPrefix(line, "--- "), ": ")
		if !ok || !strings.HasPrefix(line, "--- ") {
			// Subtests are indented. One that skips has failed too.
			if strings.HasPrefix(strings.TrimSpace(line), "--- SKIP: ") {
				wrong = append(wrong, "skipped: "+strings.Fields(line)[2])
			}
			continue
		}
		switch name := strings.Fields(rest)[0]; state {
		case "PASS":
			passed++
		case "FAIL":
			failed = append(failed, name)
		case "SKIP":
			wrong = append(wrong, "skipped: "+name)
		}
	}
	for _, name := range failed {
		if !slices.Contains(s.fails, name) {
			wrong = append(wrong, "failed: "+name)
		}
	}
	for _, name := range s.fails {
		if !slices.Contains(failed, name) {
			wrong = append(wrong, name+" is listed as failing with this plugin, and did not: correct the list in suites.go")
		}
	}
	if code := end.exit(); code > 1 || code == 1 && len(failed) == 0 {
		wrong = append(wrong, end.String())
	}
	return passed, wrong
}

// report is a line for a person.
func (s suite) report(output string, end ended) (line string, ok bool) {
	passed, wrong := s.verdict(output, end)
	switch {
	case len(wrong) > 0:
		return fmt.Sprintf("FAIL %-12s %s", s.name, strings.Join(wrong, "; ")), false
	case passed == 0 && len(s.fails) == 0:
		return fmt.Sprintf("none %-12s %s has no test named TestLab…", s.name, s.pkg), true
	case len(s.fails) > 0:
		return fmt.Sprintf("ok   %-12s %d passed, and shown failing: %s", s.name, passed, strings.Join(s.fails, ", ")), true
	}
	return fmt.Sprintf("ok   %-12s %d passed", s.name, passed), true
}
