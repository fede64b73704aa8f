package main

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kerf-gpu/kerf/internal/node"
)

// HAMi's resources, as its documentation has them in limits.
const (
	resourceGPU     corev1.ResourceName = "nvidia.com/gpu"
	resourceMemory  corev1.ResourceName = "nvidia.com/gpumem"            // MiB of each GPU
	resourcePercent corev1.ResourceName = "nvidia.com/gpumem-percentage" // of each GPU's memory
	resourceCores   corev1.ResourceName = "nvidia.com/gpucores"          // percent of each GPU's time
	resourcePrio    corev1.ResourceName = "nvidia.com/priority"
)

// hamiResources are all that are taken from a pod. Other names of nvidia.com are other people's.
var hamiResources = []corev1.ResourceName{resourceGPU, resourceMemory, resourcePercent, resourceCores, resourcePrio}

// Bounds of what one container can ask for.
const (
	maxGPUs = 16      // one share's devices
	maxMiB  = 1 << 22 // 4 TiB: more than any card; a larger number was meant in bytes
)

// want is what one container asks for. Two containers that want the same are equal.
type want struct {
	gpus    int
	memory  node.Bytes // of each; 0: all of it
	percent int64      // of each GPU's memory; 0: not said, and never beside memory
	cores   int64      // of each
}

// readWant reads a container's HAMi resources. asks is false where it has none, or asks for no GPU.
func readWant(c corev1.Container) (w want, asks bool, warnings []string, err error) {
	amounts := map[corev1.ResourceName]int64{}
	for _, name := range hamiResources {
		amount, found, err := readAmount(c, name)
		if err != nil {
			return want{}, false, nil, fmt.Errorf("container %q: %s %w", c.Name, name, err)
		}
		if found {
			amounts[name] = amount
		}
	}
	if _, found := amounts[resourcePrio]; found {
		warnings = append(warnings,
			fmt.Sprintf("container %q: %s is not taken over; a claim's class says who gives way (see migrate-from-hami)", c.Name, resourcePrio))
		delete(amounts, resourcePrio)
	}
	gpus, counted := amounts[resourceGPU]
	if !counted {
		gpus = 1 // as HAMi has it
	}
	if len(amounts) == 0 || gpus == 0 {
		return want{}, false, warnings, nil
	}
	w = want{gpus: int(gpus), memory: node.Bytes(amounts[resourceMemory]) * node.MiB, percent: amounts[resourcePercent], cores: amounts[resourceCores]}
	if w.memory > 0 && w.percent > 0 {
		warnings = append(warnings, fmt.Sprintf("container %q: %s has no effect beside %s", c.Name, resourcePercent, resourceMemory))
		w.percent = 0
	}
	if w.percent == 100 {
		w.percent = 0
	}
	return w, true, warnings, nil
}

// bounds are the largest amounts, and what to say of more.
var bounds = map[corev1.ResourceName]struct {
	max int64
	fix string
}{
	resourceGPU:     {maxGPUs, "one container can have 16 GPUs; ask for fewer"},
	resourceMemory:  {maxMiB, "it counts MiB, of each GPU; write 16384 for 16Gi"},
	resourcePercent: {100, "it is a percentage of each GPU's memory; write 1 to 100"},
	resourceCores:   {100, "it is a percentage of each GPU's time; write 0 to 100"},
	resourcePrio:    {1 << 31, "write a small number"},
}

// readAmount is a resource's number, checked. The API server fills in requests from limits, so they must be the same.
func readAmount(c corev1.Container, name corev1.ResourceName) (amount int64, found bool, err error) {
	limit, found := c.Resources.Limits[name]
	request, requested := c.Resources.Requests[name]
	switch {
	case !found && !requested:
		return 0, false, nil
	case !found:
		return 0, false, fmt.Errorf("%s: only in requests; write it in limits", text(request))
	case requested && request.Cmp(limit) != 0:
		return 0, false, fmt.Errorf("%s: %s in requests; write it in limits only", text(limit), text(request))
	}
	amount, whole := limit.AsInt64()
	switch b := bounds[name]; {
	case !whole || amount < 0:
		return 0, false, fmt.Errorf("%s: not a whole number of 0 or more; %s", text(limit), b.fix)
	case amount > b.max:
		return 0, false, fmt.Errorf("%s: that is %d, and the most is %d; %s", text(limit), amount, b.max, b.fix)
	}
	return amount, true, nil
}

// text is a quantity as it can stand in a message.
func text(q resource.Quantity) string { return clip(q.String()) }

// clip keeps a user's text short enough for a message.
func clip(s string) string {
	if len(s) <= 60 {
		return s
	}
	return strings.ToValidUTF8(s[:60], "") + "…"
}

// hamiVariables are environment variables that steer HAMi's library in the container, and nothing here.
var hamiVariables = []string{"CUDA_DISABLE_CONTROL", "CUDA_DEVICE_MEMORY_LIMIT", "CUDA_DEVICE_SM_LIMIT", "CUDA_OVERSUBSCRIBE",
	"GPU_CORE_UTILIZATION_POLICY", "CUDA_TASK_PRIORITY", "ACTIVE_OOM_KILLER"}

func environmentWarnings(c corev1.Container) (warnings []string) {
	for _, e := range c.Env {
		for _, name := range hamiVariables {
			if e.Name == name || strings.HasPrefix(e.Name, name+"_") {
				warnings = append(warnings,
					fmt.Sprintf("container %q: variable %s is HAMi's and has no effect; limits are outside the container's reach", c.Name, clip(e.Name)))
			}
		}
	}
	return warnings
}
