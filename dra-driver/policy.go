package dra

import (
	"fmt"
	"strings"
)

// Policy is what a ValidatingAdmissionPolicy says of ShareConfigs, as data: variables in order, and rules that use them. It refuses
// what DecodeConfig refuses, before a pod waits for it; Prepare checks again, since the policy may not be installed.
//
// It is written for the resources resourceclaims, resourceclaimtemplates and deviceclasses of resource.k8s.io.
type Policy struct {
	Variables   []Variable
	Validations []Validation
}

// Variable is a named CEL expression.
type Variable struct{ Name, Expression string }

// Validation is a CEL expression that must be true, and what a person reads where it is not.
type Validation struct{ Expression, Message string }

// AdmissionPolicy renders the table of fields as CEL. What a parsed object no longer shows (a key that was written twice, text
// after the object) is left to DecodeConfig.
func AdmissionPolicy() Policy {
	p := Policy{
		Variables: []Variable{
			// dyn: the API server checks the types of each resource, and no resource has all three places.
			{"configs", "dyn(object).spec.?devices.?config.orValue([]) + dyn(object).spec.?spec.?devices.?config.orValue([]) + " +
				"dyn(object).spec.?config.orValue([])"},
			{"ours", fmt.Sprintf("variables.configs.filter(c, has(c.opaque) && c.opaque.driver == '%s').map(c, c.opaque.?parameters.orValue(null))", DriverName)},
			{"shares", "variables.ours.filter(p, type(p) == map)"},
		},
		Validations: []Validation{
			{"variables.ours.all(p, type(p) == map)", "parameters: not an object" + writeIdentity},
			{fmt.Sprintf("variables.shares.all(p, p.?apiVersion.orValue('') == '%s' && p.?kind.orValue('') == '%s')", ConfigAPIVersion, ConfigKind),
				"apiVersion or kind is missing, or not known" + writeIdentity},
			{fmt.Sprintf("variables.shares.all(p, p.all(k, k in ['apiVersion', 'kind', '%s']))", strings.ReplaceAll(fieldNames(), ", ", "', '")),
				"unknown field; the fields are " + fieldNames()},
		},
	}
	for _, f := range fields {
		p.Validations = append(p.Validations, Validation{
			fmt.Sprintf("variables.shares.all(p, !('%[1]s' in p) || %[2]s)", f.name, f.cel("p."+f.name)),
			fmt.Sprintf("%s must be %s; write %s, or leave the field out", f.name, f.means(), f.example())})
	}
	p.Validations = append(p.Validations, Validation{
		fmt.Sprintf("variables.shares.all(p, !('memoryLimit' in p && 'minResident' in p) || !(%s && %s) || "+
			"quantity(p.minResident).compareTo(quantity(p.memoryLimit)) <= 0)", isSize("p.memoryLimit"), isSize("p.minResident")),
		"minResident is above memoryLimit; write less, or raise the limit"})
	for i := range p.Validations {
		p.Validations[i].Message = ConfigKind + ": " + p.Validations[i].Message
	}
	return p
}

const writeIdentity = "; write apiVersion: " + ConfigAPIVersion + ", kind: " + ConfigKind + " and fields"

// cel is true for a value that validate takes.
func (f field) cel(value string) string {
	switch f.kind {
	case boolean:
		return fmt.Sprintf("type(%s) == bool", value)
	case word:
		return fmt.Sprintf("%s in ['%s']", value, strings.Join(f.words, "', '"))
	}
	return fmt.Sprintf("(%[2]s && quantity(%[1]s).compareTo(quantity('%[3]s')) >= 0 && quantity(%[1]s).compareTo(quantity('%[4]s')) <= 0)",
		value, isSize(value), f.min, f.max)
}

// isSize comes before each use of quantity: && ends at the first false, so the API server's parser sees only what has the form.
func isSize(value string) string {
	return fmt.Sprintf("type(%[1]s) == string && %[1]s.matches('%[2]s')", value, quantityForm)
}

func (f field) means() string {
	switch f.kind {
	case boolean:
		return "a boolean"
	case word:
		return "a known word"
	}
	return fmt.Sprintf("a size, as text, from %s to %s", f.min, f.max)
}
