package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// HAMi's annotations. All others of hami.io and nvidia.com are its scheduler's notes, which pods must not be able to forge:
// they are never read.
const (
	annotationTypes    = "nvidia.com/use-gputype"
	annotationNotTypes = "nvidia.com/nouse-gputype"
	annotationUUIDs    = "nvidia.com/use-gpuuuid"
	annotationNotUUIDs = "nvidia.com/nouse-gpuuuid"
	annotationNUMA     = "nvidia.com/numa-bind"
	annotationMode     = "nvidia.com/vgpu-mode"
)

// ignoredAnnotations choose between HAMi's policies; the order of publishing is ours (binpack or spread, in kerfd's configuration).
var ignoredAnnotations = []string{"hami.io/node-scheduler-policy", "hami.io/gpu-scheduler-policy"}

// choice is which GPUs a pod will have.
type choice struct {
	selectors []string // CEL; all must hold
	sameNUMA  bool
	warnings  []string
}

// maxNames bounds one annotation: CEL has a budget, and every name costs.
const maxNames = 16

// typePattern is what a product's name is made of. Nothing in it can end a CEL literal.
var typePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._+()/-]{0,63}$`)

// listAnnotations are the annotations with names of GPUs: how each name must look, and what it becomes in CEL.
var listAnnotations = map[string]struct {
	parse func(string) (string, error)
	cel   string // %s is the list of literals
}{
	annotationTypes:    {gpuType, ours + isType},
	annotationNotTypes: {gpuType, ours + `!(` + isType + `)`},
	annotationUUIDs:    {gpuUUID, ours + isUUID},
	annotationNotUUIDs: {gpuUUID, ours + `!(` + isUUID + `)`},
}

// The pieces of CEL. An attribute is asked for before it is read: one that is missing ends the whole scheduling attempt. Not with
// orValue, which hides an attribute's greatest length: the API server then reckons without bound, and refuses the claim as too costly.
const (
	ours = `device.driver == "gpu.kerf.dev" && `
	// As HAMi compares: part of "NVIDIA-" and the product's name, in any case.
	isType = `has(device.attributes["gpu.kerf.dev"].productName) && ` +
		`%s.exists(t, ("nvidia-" + device.attributes["gpu.kerf.dev"].productName.lowerAscii()).contains(t))`
	isUUID = `has(device.attributes["gpu.kerf.dev"].uuid) && device.attributes["gpu.kerf.dev"].uuid in %s`
)

func gpuType(s string) (string, error) {
	if !typePattern.MatchString(s) {
		return "", fmt.Errorf("%q: not part of a product's name; write letters, digits and spaces, such as A100", clip(s))
	}
	return strings.ToLower(s), nil
}

func gpuUUID(s string) (string, error) {
	uuid, err := node.ParseUUID(s)
	if err != nil || !strings.HasPrefix(s, "GPU-") {
		return "", fmt.Errorf("%q: not a GPU's UUID; write it as GPU-01234567-89ab-cdef-0123-456789abcdef", clip(s))
	}
	return uuid.String(), nil
}

// readChoice reads a pod's annotations. It never takes their text as it is.
func readChoice(annotations map[string]string) (c choice, err error) {
	for _, name := range slices.Sorted(maps.Keys(listAnnotations)) {
		value, ok := annotations[name]
		if !ok {
			continue
		}
		literals, err := readNames(value, listAnnotations[name].parse)
		if err != nil {
			return choice{}, fmt.Errorf("annotation %s: %w", name, err)
		}
		c.selectors = append(c.selectors, fmt.Sprintf(listAnnotations[name].cel, literals))
	}
	if c.sameNUMA, err = readBool(annotations[annotationNUMA]); err != nil {
		return choice{}, fmt.Errorf("annotation %s: %w", annotationNUMA, err)
	}
	if mode := annotations[annotationMode]; mode != "" && mode != "hami-core" {
		return choice{}, fmt.Errorf("annotation %s: %q: only hami-core is taken over; "+
			"for mig write a claim of the class gpu-mig, for mps a ShareConfig with tier: mps", annotationMode, clip(mode))
	}
	for _, name := range ignoredAnnotations {
		if _, ok := annotations[name]; ok {
			c.warnings = append(c.warnings,
				fmt.Sprintf("annotation %s has no effect: the order of cards is set for a whole node, in kerfd's configuration", name))
		}
	}
	return c, nil
}

// readNames makes a CEL list of literals of the names in an annotation.
func readNames(value string, parse func(string) (string, error)) (string, error) {
	names := strings.Split(value, ",")
	if len(names) > maxNames {
		return "", fmt.Errorf("%d names: at most %d; write fewer, or parts that several names have", len(names), maxNames)
	}
	literals := make([]string, len(names))
	for i, name := range names {
		parsed, err := parse(strings.TrimSpace(name))
		if err != nil {
			return "", err
		}
		literals[i] = strconv.Quote(parsed) // no character that parse lets through needs an escape
	}
	return "[" + strings.Join(literals, ", ") + "]", nil
}

func readBool(value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, fmt.Errorf("%q: not true or false", clip(value))
}
