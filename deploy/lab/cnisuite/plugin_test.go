package cnisuite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ipamName is what plugins find this test binary as, in CNI_PATH: then it is their IPAM plugin.
const ipamName = "labipam"

// atGate is what the IPAM plugin says at its gate.
const atGate = "here"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ipamName {
		if err := ipam(os.Getenv("CNI_COMMAND"), filepath.Join(filepath.Dir(os.Args[0]), "gate")); err != nil {
			fmt.Printf(`{"cniVersion":"1.1.0","code":100,"msg":%q}`, err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// ipam gives out one address. Where there is a gate, a FIFO, ADD says there that it has come, and then never ends.
func ipam(verb, gate string) error {
	if verb != "ADD" {
		return nil
	}
	file, err := os.OpenFile(gate, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		fmt.Print(`{"cniVersion":"1.1.0","ips":[{"address":"198.18.0.7/24"}]}`)
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := file.WriteString(atGate); err != nil {
		return err
	}
	time.Sleep(time.Hour)
	return file.Close()
}

// plugin is the one under test, on a NIC of this machine.
type plugin struct {
	path   string
	config map[string]any
	state  []string
	bin    string // CNI_PATH
}

func newPlugin(t *testing.T) *plugin {
	t.Helper()
	if os.Getenv("KERF_LAB") != "1" {
		t.Skip("not in a machine of the lab; make lab runs it there")
	}
	p := &plugin{path: os.Getenv("KERF_CNI_PLUGIN"), bin: t.TempDir(), config: map[string]any{"cniVersion": "1.1.0", "name": "lab"}}
	if err := json.Unmarshal([]byte(os.Getenv("KERF_CNI_CONFIG")), &p.config); err != nil {
		t.Fatalf("KERF_CNI_CONFIG: %v", err)
	}
	if state := os.Getenv("KERF_CNI_STATE"); state != "" {
		p.state = strings.Split(state, ",")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(p.bin, ipamName)); err != nil {
		t.Fatal(err)
	}
	return p
}

// call is one call of the plugin, for the interface net1.
type call struct {
	verb, container, netns string
	device                 string
	config                 map[string]any // over the plugin's own
}

// answer is what came of it.
type answer struct {
	out  string
	code int    // of the program
	cni  int    // of the error that it printed, or 0
	msg  string // likewise
}

func (a answer) String() string { return fmt.Sprintf("exit code %d: %s", a.code, a.out) }

func (p *plugin) command(c call) *exec.Cmd {
	config := maps.Clone(p.config)
	for key, value := range config {
		if value == "DEVICE" {
			config[key] = c.device
		}
	}
	maps.Copy(config, c.config)
	stdin, err := json.Marshal(config)
	if err != nil {
		panic(err) // of strings and numbers
	}
	cmd := exec.Command(p.path)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+c.verb, "CNI_CONTAINERID="+c.container, "CNI_NETNS="+c.netns, "CNI_IFNAME=net1", "CNI_PATH="+p.bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (p *plugin) call(t *testing.T, c call) answer {
	t.Helper()
	cmd := p.command(c)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", p.path, err)
	}
	a := answer{out: string(out) + stderr.String(), code: cmd.ProcessState.ExitCode()}
	var printed struct {
		Code int    `json:"code"`
		Msg  string `json:"msg"`
	}
	if a.code != 0 && json.Unmarshal(out, &printed) == nil {
		a.cni, a.msg = printed.Code, printed.Msg
	}
	t.Logf("%s %s: %s", c.verb, c.container, a)
	return a
}

// must is a call that has to succeed.
func (p *plugin) must(t *testing.T, c call) answer {
	t.Helper()
	a := p.call(t, c)
	if a.code != 0 {
		t.Fatalf("%s failed: %s", c.verb, a)
	}
	return a
}

// prev is the result of an ADD, as a runtime gives it to later calls.
func prev(a answer) map[string]any {
	return map[string]any{"prevResult": json.RawMessage(a.out[:strings.LastIndex(a.out, "}")+1])}
}

// pod is a network namespace, gone with the test.
func pod(t *testing.T) (name, path string) {
	t.Helper()
	name = "pod-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return name, "/run/netns/" + name
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}
