package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// hostEnv reads what /proc says of the machine. What cannot be read stays "unknown": a bench that cannot
// name the CPU is still worth running.
func hostEnv(now time.Time) Env {
	machine := fmt.Sprintf("%s, %d CPUs", runtime.GOARCH, runtime.NumCPU())
	if kib, err := strconv.ParseUint(strings.TrimSuffix(procField("/proc/meminfo", "MemTotal"), " kB"), 10, 64); err == nil {
		machine += fmt.Sprintf(", %d GiB", (kib+512*1024)/(1024*1024))
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	return Env{
		Date:    now.UTC().Format(time.RFC3339),
		Machine: machine,
		CPU:     procField("/proc/cpuinfo", "model name"),
		Kernel:  strings.TrimSpace(string(kernel)),
	}
}

// procField is the value of the first "name : value" line of a file under /proc.
func procField(path, name string) string {
	file, err := os.Open(path)
	if err != nil {
		return "unknown"
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, found := strings.Cut(lines.Text(), ":")
		if found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
