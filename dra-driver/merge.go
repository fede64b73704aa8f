package dra

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Overlay is a configuration with what a later one says in place of it: two of one author, who had both in view. Its fields are
// pointers, nil for what was left out; what is no pointer stays.
func Overlay[T any](c, later T) T {
	into, from := reflect.ValueOf(&c).Elem(), reflect.ValueOf(later)
	for i := range from.NumField() {
		if f := from.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			into.Field(i).Set(f)
		}
	}
	return c
}

// Tighten is what the class allows and the claim asks: the administrator's configuration of a DeviceClass is a ceiling, and a
// claim may only go below it. What the class leaves out, it leaves to the claim.
func (c ShareConfig) Tighten(claim ShareConfig) (ShareConfig, error) {
	for _, check := range []func(ShareConfig, ShareConfig) error{noMoreMemory, noMoreBurst, noStrongerClass, sameTier, sameBackend} {
		if err := check(c, claim); err != nil {
			return ShareConfig{}, err
		}
	}
	merged := Overlay(c, claim)
	return merged, merged.Validate()
}

func noMoreMemory(class, claim ShareConfig) error {
	for _, f := range []struct {
		name           string
		ceiling, asked *resource.Quantity
	}{{"memoryLimit", class.MemoryLimit, claim.MemoryLimit}, {"minResident", class.MinResident, claim.MinResident}} {
		if f.ceiling != nil && f.asked != nil && f.asked.Cmp(*f.ceiling) > 0 {
			return fmt.Errorf("%s %s: the DeviceClass allows %s; write at most that, or leave the field out", f.name, f.asked, f.ceiling)
		}
	}
	return nil
}

func noMoreBurst(class, claim ShareConfig) error {
	if class.Burst != nil && !*class.Burst && claim.Burst != nil && *claim.Burst {
		return fmt.Errorf("burst true: the DeviceClass says false; leave the field out, or use another DeviceClass")
	}
	return nil
}

// noStrongerClass relies on the words being listed strongest first.
func noStrongerClass(class, claim ShareConfig) error {
	if class.Class == nil || claim.Class == nil {
		return nil
	}
	rank := func(c ShareConfig) int { return slices.Index(fieldNamed("class").words, string(*c.Class)) }
	if rank(claim) < rank(class) {
		return fmt.Errorf("class %s: the DeviceClass allows %s; write that or a weaker one, or leave the field out", *claim.Class, *class.Class)
	}
	return nil
}

func sameTier(class, claim ShareConfig) error {
	if class.Tier != nil && claim.Tier != nil && *class.Tier != *claim.Tier {
		return fmt.Errorf("tier %s: the DeviceClass says %s; leave the field out, or use another DeviceClass", *claim.Tier, *class.Tier)
	}
	return nil
}

// sameBackend: auto in a class leaves the choice to the claim, as saying nothing does.
func sameBackend(class, claim ShareConfig) error {
	if class.Backend == nil || claim.Backend == nil || *class.Backend == "auto" || *class.Backend == *claim.Backend {
		return nil
	}
	return fmt.Errorf("backend %s: the DeviceClass says %s; leave the field out, or use another DeviceClass", *claim.Backend, *class.Backend)
}

func fieldNamed(name string) field {
	return fields[slices.IndexFunc(fields, func(f field) bool { return f.name == name })]
}

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
