package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxState bounds what is read of a runtime.
const maxState = 16 << 20

// container is what the runtime says of a container.
type container struct {
	state  specs.State
	spec   *specs.Spec
	rootfs string // absolute
}

// readContainer reads the state from stdin and the configuration from its bundle.
func readContainer(stdin io.Reader) (*container, error) {
	c := &container{spec: new(specs.Spec)}
	if err := json.NewDecoder(io.LimitReader(stdin, maxState)).Decode(&c.state); err != nil {
		return nil, fmt.Errorf("read the container's state from stdin: %w; a container runtime calls this program, with the state that the OCI runtime specification names", err)
	}
	if c.state.Bundle == "" {
		return nil, errors.New("the container's state names no bundle; is the runtime one of OCI 1.0 or later?")
	}
	text, err := os.ReadFile(filepath.Join(c.state.Bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's configuration: %w", err)
	}
	if err := json.Unmarshal(text, c.spec); err != nil {
		return nil, fmt.Errorf("read the container's configuration in %s: %w", c.state.Bundle, err)
	}
	if c.spec.Root == nil || c.spec.Root.Path == "" {
		return nil, fmt.Errorf("the container's configuration in %s names no root", c.state.Bundle)
	}
	c.rootfs = c.spec.Root.Path
	if !filepath.IsAbs(c.rootfs) {
		c.rootfs = filepath.Join(c.state.Bundle, c.rootfs)
	}
	// A bundle may be reached by links; the container's view of them may differ.
	if real, err := filepath.EvalSymlinks(c.rootfs); err == nil {
		c.rootfs = real
	}
	return c, nil
}
