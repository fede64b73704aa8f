package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	dra "github.com/kerf-gpu/kerf/dra-driver"
	"github.com/kerf-gpu/kerf/internal/node"
)

func claimCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "claim",
		Short: "Write ResourceClaims that are long by hand",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return exitError{exitUsage, errors.New("claim wants a kind: kerf claim gpu-nic --pairs 4")}
		},
	}
	cmd.AddCommand(claimPairsCommand())
	return cmd
}

// pairFlags is what the command line says of a claim of pairs.
type pairFlags struct {
	pairs                        int
	fallback, memory, cores      string
	gpuClass, nicClass           string
	template                     bool
	name, namespace, outputStyle string
}

func claimPairsCommand() *cobra.Command {
	var f pairFlags
	cmd := &cobra.Command{
		Use:   "gpu-nic",
		Short: "Write a claim of GPUs that each have the nearest NIC",
		Long: "Write a ResourceClaim of GPUs that each have a NIC of their own below the same PCIe root port, so that data goes from\n" +
			"one to the other past the CPU. One constraint binds all the devices that it names, so each pair needs its own.\n\n" +
			"Where no NIC is that near: --fallback none, the pod waits; numa, one on the GPU's NUMA node; any, that, or else any\n" +
			"NIC of the node. Whole GPUs, unless --memory or --cores is given.\n\n" +
			"  kerf claim gpu-nic --pairs 4 --fallback numa --template | kubectl apply -f -",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := f.render()
			if err != nil {
				return exitError{exitUsage, err}
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&f.pairs, "pairs", 1, "how many GPUs, each with a NIC")
	flags.StringVar(&f.fallback, "fallback", string(dra.PairNone), "where no NIC is near: none, numa or any")
	flags.StringVar(&f.memory, "memory", "", "memory of each GPU: a slice (40Gi)")
	flags.StringVar(&f.cores, "cores", "", "percent of each GPU's time: a slice")
	flags.StringVar(&f.gpuClass, "gpu-class", "", "DeviceClass of the GPUs (default gpu, or gpu-shared for slices)")
	flags.StringVar(&f.nicClass, "nic-class", "nic", "DeviceClass of the NICs")
	flags.BoolVar(&f.template, "template", false, "write a ResourceClaimTemplate, of which each pod gets a claim")
	flags.StringVar(&f.name, "name", "", "name of the object (default gpu-nic-N)")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the object (default: kubectl's)")
	flags.StringVarP(&f.outputStyle, "output", "o", "yaml", "yaml or json")
	complete(cmd, "fallback", string(dra.PairNone), string(dra.PairNUMA), string(dra.PairAny))
	complete(cmd, "output", "yaml", "json")
	return cmd
}

// complete offers a flag's words in the shell.
func complete(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // fails for a flag that is not there alone
}

// claimObject is a claim or a template as kubectl reads it, without the fields that the server fills in.
type claimObject struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Metadata   claimMetadata `json:"metadata"`
	Spec       any           `json:"spec"`
}

type claimMetadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

// claimTemplateSpec is a ResourceClaimTemplateSpec without metadata of the claims.
type claimTemplateSpec struct {
	Spec resourceapi.ResourceClaimSpec `json:"spec"`
}

func (f pairFlags) render() ([]byte, error) {
	if f.outputStyle != "yaml" && f.outputStyle != "json" {
		return nil, fmt.Errorf("--output %q: not known; take yaml or json", f.outputStyle)
	}
	pairs, err := f.claim()
	if err != nil {
		return nil, err
	}
	spec, err := pairs.Claim()
	if err != nil {
		return nil, err
	}
	object := claimObject{APIVersion: resourceapi.SchemeGroupVersion.String(), Kind: "ResourceClaim", Metadata: claimMetadata{f.name, f.namespace}, Spec: spec}
	if f.name == "" {
		object.Metadata.Name = fmt.Sprint("gpu-nic-", f.pairs)
	}
	if f.template {
		object.Kind, object.Spec = "ResourceClaimTemplate", claimTemplateSpec{spec}
	}
	for flag, value := range map[string]string{"--name": object.Metadata.Name, "--gpu-class": pairs.GPUClass, "--nic-class": pairs.NICClass} {
		if problems := validation.IsDNS1123Subdomain(value); len(problems) > 0 {
			return nil, fmt.Errorf("%s %q: not a name that Kubernetes takes; use lower-case letters, digits and -", flag, value)
		}
	}
	if f.outputStyle == "json" {
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false) // people read the selectors
		err := encoder.Encode(object)
		return text.Bytes(), err
	}
	return yaml.Marshal(object)
}

func (f pairFlags) claim() (dra.Pairs, error) {
	pairs := dra.Pairs{Count: f.pairs, Fallback: dra.PairFallback(f.fallback), GPUClass: f.gpuClass, NICClass: f.nicClass}
	slices := map[resourceapi.QualifiedName]resource.Quantity{}
	if f.memory != "" {
		bytes, err := node.ParseBytes(f.memory)
		if err != nil || bytes == 0 {
			return pairs, fmt.Errorf("--memory %q: not an amount of GPU memory; write it as 40Gi", f.memory)
		}
		slices["memory"] = *resource.NewQuantity(int64(bytes), resource.BinarySI)
	}
	if f.cores != "" {
		percent, err := node.ParsePercent(f.cores)
		if err != nil {
			return pairs, fmt.Errorf("--cores: %w", err)
		}
		slices["cores"] = *resource.NewQuantity(int64(percent), resource.DecimalSI)
	}
	class := "gpu"
	if len(slices) > 0 {
		pairs.Capacity, class = slices, "gpu-shared"
	}
	if pairs.GPUClass == "" {
		pairs.GPUClass = class
	}
	return pairs, nil
}
