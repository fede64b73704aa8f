package sim

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/kerf-gpu/kerf/internal/node"
)

// simulatedMark ends every product name.
const simulatedMark = " (simulated)"

// markFile says in words what the directory is.
const markFile = "SIMULATED"

// libraries that a driver root has.
var libraries = []string{"libcuda", "libnvidia-ml"}

// Create makes the simulated node at root, which must not exist or be an empty
// directory, with the C libraries of libDir (build/lib/kerf/sim). It appears
// whole or not at all. The caller closes the Node, and removes it.
func Create(root string, p *Profile, libDir string) (*Node, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("create simulated node: %w", err)
	}
	if err := vacant(root); err != nil {
		return nil, fmt.Errorf("create simulated node: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return nil, fmt.Errorf("create simulated node: %w", err)
	}
	making, err := os.MkdirTemp(filepath.Dir(root), "."+filepath.Base(root)+".making-")
	if err != nil {
		return nil, fmt.Errorf("create simulated node: %w", err)
	}
	err = p.write(making, libDir)
	if err == nil {
		err = os.Rename(making, root)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create simulated node: %w", err), os.RemoveAll(making))
	}
	n, err := Open(root)
	if err != nil {
		return nil, err
	}
	for _, f := range p.Faults {
		if err := n.Inject(f.GPU, Injection{Kind: f.Kind, Value: f.Value}); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

func vacant(root string) error {
	entries, err := os.ReadDir(root)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) == 0:
		return nil
	}
	if _, err := os.Stat(filepath.Join(root, markFile)); err == nil {
		return fmt.Errorf("%s: a simulated node is there already; stop it first, or choose another root", root)
	}
	return fmt.Errorf("%s: the directory is not empty; choose another root", root)
}

// write makes all the files of the node below dir.
func (p *Profile) write(dir, libDir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	files := p.sysfs()
	files = append(files,
		entry{path: markFile, text: fmt.Sprintf("This directory is a node simulated by Kerf (profile %s). Nothing in it is real hardware.\n", p.Name)},
		entry{path: "profile.yaml", text: string(p.text)},
		entry{path: bootIDFile, text: bootID() + "\n"}, entry{path: kmsgFile})
	if p.Driver.Version != "" {
		files = append(files, p.procFiles()...)
	}
	if err := writeEntries(dir, files); err != nil {
		return err
	}
	if p.Driver.Version == "" {
		return nil
	}
	if err := copyLibraries(dir, libDir, p.Driver.Version); err != nil {
		return err
	}
	if p.Driver.MPS {
		if err := copyProgram(dir, libDir, mpsControl); err != nil {
			return err
		}
	}
	return p.writeDevices(filepath.Join(dir, "dev"))
}

func writeEntries(dir string, files []entry) error {
	for _, f := range files {
		path := filepath.Join(dir, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if f.link != "" {
			if err := os.Symlink(f.link, path); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(path, []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (p *Profile) procFiles() []entry {
	files := []entry{{
		path: "proc/driver/nvidia/version",
		text: fmt.Sprintf("NVRM version: NVIDIA UNIX x86_64 Kernel Module  %s  (simulated by Kerf)\nGCC version:  simulated\n", p.Driver.Version),
	}}
	for i, s := range p.of("gpu") {
		files = append(files, entry{
			path: filepath.Join("proc/driver/nvidia/gpus", s.At.String(), "information"),
			text: fmt.Sprintf("Model: \t\t %s%s\nGPU UUID: \t %s\nBus Location: \t %s\nDevice Minor: \t %d\n", p.Models[s.Model].Name, simulatedMark, p.uuid("GPU", i), s.At, i),
		})
	}
	return append(files, p.capabilityFiles()...)
}

// libraryDir is where Debian has the driver, on this architecture.
func libraryDir() string {
	if runtime.GOARCH == "arm64" {
		return "usr/lib/aarch64-linux-gnu"
	}
	return "usr/lib/x86_64-linux-gnu"
}

func copyLibraries(dir, libDir, version string) error {
	to := filepath.Join(dir, libraryDir())
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, name := range libraries {
		from := filepath.Join(libDir, name+".so.1")
		if err := copyFile(from, filepath.Join(to, name+".so."+version)); err != nil {
			return fmt.Errorf("library %s: %w; build it with make build, or correct the library directory", from, err)
		}
		if err := os.Symlink(name+".so."+version, filepath.Join(to, name+".so.1")); err != nil {
			return err
		}
	}
	return nil
}

// mpsControl is NVIDIA's name for the program, which a profile has or has not.
const mpsControl = "nvidia-cuda-mps-control"

func copyProgram(dir, libDir, name string) error {
	to, from := filepath.Join(dir, "usr/bin"), filepath.Join(libDir, name)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := copyFile(from, filepath.Join(to, name)); err != nil {
		return fmt.Errorf("program %s: %w; build it with make build, or correct the library directory", from, err)
	}
	return nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return errors.Unwrap(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// writeDevices makes the files that stand in for device nodes. They are
// writable by all, as the real ones are.
func (p *Profile) writeDevices(dev string) error {
	if err := os.MkdirAll(dev, 0o755); err != nil {
		return err
	}
	if err := p.writeCapabilities(filepath.Join(dev, "nvidia-caps")); err != nil {
		return err
	}
	gpus := p.of("gpu")
	ctl := simCtl{
		Magic: ctlMagic, Version: stateVersion, Size: uint32(unsafe.Sizeof(simCtl{})),
		GpuCount: uint32(len(gpus)), CudaVersion: uint32(p.Driver.cudaVersion()),
	}
	put(ctl.DriverVersion[:], p.Driver.Version)
	put(ctl.NvmlVersion[:], fmt.Sprintf("%d.%s", p.Driver.cudaVersion()/1000, p.Driver.Version))
	if err := writeDevice(filepath.Join(dev, "nvidiactl"), bytesOf(&ctl)); err != nil {
		return err
	}
	if err := writeDevice(filepath.Join(dev, "nvidia-uvm"), nil); err != nil {
		return err
	}
	for i := range gpus {
		g := p.gpu(i)
		if err := writeDevice(filepath.Join(dev, fmt.Sprintf("nvidia%d", i)), bytesOf(g)); err != nil {
			return err
		}
	}
	return nil
}

func writeDevice(path string, content []byte) error {
	return writeWithMode(path, content, 0o666)
}

func writeWithMode(path string, content []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, content, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode) // whatever the umask
}

func (p *Profile) writeCapabilities(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, c := range p.capabilities() {
		if err := writeWithMode(filepath.Join(dir, fmt.Sprintf("nvidia-cap%d", c.number)), nil, os.FileMode(c.mode)); err != nil {
			return err
		}
	}
	return nil
}

// bytesOf is the memory of a state struct, which has no pointers in it.
func bytesOf[T simCtl | simGpu](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// put writes a C string, cut to leave room for its end.
func put(to []byte, s string) { copy(to[:len(to)-1], s) }

// uuid is the same for the same profile on every machine, so that commands and
// goldens can name a GPU. Its version and variant bits say "made from a name".
func (p *Profile) uuid(kind string, n ...int) node.UUID {
	sum := sha256.Sum256(fmt.Append(nil, "kerf-sim/", p.Name, "/", kind, n))
	u := node.UUID(sum[:16])
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return u
}
