package hook

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/kerf-gpu/kerf/internal/durable"
)

// NICVerb is the subcommand that a claim of NICs has under createRuntime: the interfaces are in the container's network namespace, or
// the container does not start.
const NICVerb = "nic"

// NIC is what that hook knows of its claim, as arguments.
type NIC struct {
	Claim    string // its UID
	Attached string // the file in which kerfd says that the interfaces are in a pod
	Kerfd    string // the socket at which it attaches them
}

func (n *NIC) flags() *flag.FlagSet {
	set := flag.NewFlagSet(NICVerb, flag.ContinueOnError)
	set.SetOutput(new(strings.Builder)) // Run's error says it
	set.StringVar(&n.Claim, "claim", n.Claim, "the claim's UID")
	set.StringVar(&n.Attached, "attached", n.Attached, "the file that says where its NICs are")
	set.StringVar(&n.Kerfd, "kerfd", n.Kerfd, "kerfd's socket for hooks")
	return set
}

// Args are the hook's arguments.
func (n NIC) Args() []string {
	return []string{Program, NICVerb, "--claim=" + n.Claim, "--attached=" + n.Attached, "--kerfd=" + n.Kerfd}
}

func parseNIC(args []string) (n NIC, err error) {
	if err := n.flags().Parse(args[2:]); err != nil {
		return n, fmt.Errorf("arguments: %w; the CDI spec is of another version of Kerf than this program", err)
	}
	if n.Claim == "" || n.Attached == "" || n.Kerfd == "" {
		return n, errors.New("arguments: --claim, --attached or --kerfd is missing; the CDI spec is damaged, kerfd writes it anew when it prepares the claim again")
	}
	return n, nil
}

// Attached says that all interfaces of a claim are in one network namespace. It is written after the last of them was moved there, and
// removed before the first is taken back.
type Attached struct {
	Netns      uint64   `json:"netns"` // inode of the namespace. Numbers are used again, so the interfaces are looked for as well
	Interfaces []string `json:"interfaces"`
}

// Write puts the statement into its file.
func (a Attached) Write(file string) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return durable.Replace(file, append(text, '\n'), 0o600)
}

// AttachAsk is the hook's wish: have the NICs of a claim in the namespace of a process.
type AttachAsk struct {
	Claim string `json:"claim"`
	PID   int    `json:"pid"`
	Netns uint64 `json:"netns"` // inode of its network namespace: the number of a process that has ended may be another's
	Pod   string `json:"pod"`   // its UID, as the runtime says
}

// nics makes sure of a claim's NICs. kerfd is asked only where they are not there already, so a kerfd that is away holds no container up
// whose NICs were attached when its pod's network was made.
func nics(c *container, n NIC) error {
	why := n.attachedTo(c.state.Pid)
	if why == nil {
		return nil
	}
	inode, err := Netns(c.state.Pid)
	if err != nil {
		return err
	}
	ask := AttachAsk{Claim: n.Claim, PID: c.state.Pid, Netns: inode, Pod: podUID(c)}
	if err := askFor(n.Kerfd, message{Attach: &ask}, askWithin, "the NICs of the claim"); err != nil {
		return fmt.Errorf("%w (%w)", err, why)
	}
	if err := n.attachedTo(c.state.Pid); err != nil {
		return fmt.Errorf("kerfd says that the NICs of the claim are attached, but %w", err)
	}
	return nil
}

// attachedTo is nil if the claim's interfaces are in the network namespace of a process.
func (n NIC) attachedTo(pid int) error {
	var a Attached
	text, err := os.ReadFile(n.Attached)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no NIC of the claim is attached to a pod yet")
	case err != nil:
		return err
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("%s is damaged: %w", n.Attached, err)
	}
	inode, err := Netns(pid)
	switch {
	case err != nil:
		return err
	case inode != a.Netns:
		return errors.New("the NICs of the claim are attached to another pod, or to an earlier network of this one")
	}
	there, err := interfaces(pid)
	if err != nil {
		return err
	}
	for _, name := range a.Interfaces {
		if !slices.Contains(there, name) {
			return fmt.Errorf("interface %s is not in the pod any more", name)
		}
	}
	return nil
}

// Netns is the inode of a process's network namespace.
func Netns(pid int) (uint64, error) {
	info, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return 0, fmt.Errorf("look at the container's network: %w", err)
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// interfaces are those in a process's network namespace, as the kernel lists them for it.
func interfaces(pid int) (names []string, err error) {
	file, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "net/dev"))
	if err != nil {
		return nil, fmt.Errorf("look at the container's network: %w", err)
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if name, _, ok := strings.Cut(lines.Text(), ":"); ok { // the two lines of headings have none
			names = append(names, strings.TrimSpace(name))
		}
	}
	return names, lines.Err()
}
