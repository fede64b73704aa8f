package dra

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-gpu/kerf/vgpu/share"
)

// Names that clusters depend on.
const (
	DriverName       = "gpu.kerf.dev"
	ConfigAPIVersion = "gpu.kerf.dev/v1alpha1"
	ConfigKind       = "ShareConfig"
)

// maxConfig is Kubernetes' own limit for an opaque configuration.
const maxConfig = 10 << 10

// Tier is by what means a GPU is divided.
type Tier string

// The tiers.
const (
	TierTime  Tier = "time"  // in time, by leases
	TierMPS   Tier = "mps"   // kernels of tenants who trust each other, at once
	TierMIG   Tier = "mig"   // by the hardware
	TierWhole Tier = "whole" // not at all: the tenant is alone on the card
)

// Tiers lists every tier.
var Tiers = []Tier{TierTime, TierMPS, TierMIG, TierWhole}

// ShareConfig is what a claim, or the administrator in a DeviceClass, says beyond capacities. A nil field was left out.
type ShareConfig struct {
	metav1.TypeMeta `json:",inline"`

	MemoryLimit *resource.Quantity `json:"memoryLimit,omitempty"` // hard limit above the guarantee: a burst into what is free
	Burst       *bool              `json:"burst,omitempty"`       // false: cores are a limit too
	Class       *share.Class       `json:"class,omitempty"`
	Tier        *Tier              `json:"tier,omitempty"`
	MinResident *resource.Quantity `json:"minResident,omitempty"` // never swapped out
	Backend     *share.Backend     `json:"backend,omitempty"`
}

// fieldKind is what a field's text is.
type fieldKind int

const (
	quantity fieldKind = iota
	boolean
	word
)

// quantityForm is what a quantity may look like, here and in the admission policy. It is narrower than Kubernetes' own: its parser
// computes powers of ten for minutes on 9E99999999999, which any user can write, and there is no end to digits.
const quantityForm = `^[0-9]{1,18}([.][0-9]{1,9})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$`

var quantityRE = regexp.MustCompile(quantityForm)

// field is one line of the table from which both the validator here and the admission policy's CEL come.
type field struct {
	name     string
	kind     fieldKind
	min, max string   // of a quantity
	words    []string // of a word
	fix      string   // an example of what to write
	at       func(*ShareConfig) any
}

// fields is every field of a ShareConfig beside apiVersion and kind.
var fields = []field{
	{name: "memoryLimit", kind: quantity, min: share.MinMemory.Exact(), max: "1Pi", fix: `"24Gi"`, at: func(c *ShareConfig) any { return &c.MemoryLimit }},
	{name: "burst", kind: boolean, fix: "true or false", at: func(c *ShareConfig) any { return &c.Burst }},
	{name: "class", kind: word, words: texts(share.Classes), at: func(c *ShareConfig) any { return &c.Class }},
	{name: "tier", kind: word, words: texts(Tiers), at: func(c *ShareConfig) any { return &c.Tier }},
	{name: "minResident", kind: quantity, min: "0", max: "1Pi", fix: `"4Gi"`, at: func(c *ShareConfig) any { return &c.MinResident }},
	{name: "backend", kind: word, words: texts(share.Backends), at: func(c *ShareConfig) any { return &c.Backend }},
}

func texts[T ~string](words []T) (s []string) {
	for _, w := range words {
		s = append(s, string(w))
	}
	return s
}

// DecodeConfig reads a ShareConfig strictly: what is not understood, or said twice, is refused, since a limit
// that is misspelt must not be lost. The result is valid.
func DecodeConfig(data []byte) (ShareConfig, error) {
	c, err := decodeConfig(data)
	if err != nil {
		return ShareConfig{}, fmt.Errorf("%s: %w", ConfigKind, err)
	}
	return c, nil
}

func decodeConfig(data []byte) (c ShareConfig, err error) {
	members, err := Members(data, ConfigAPIVersion, ConfigKind)
	if err != nil {
		return c, err
	}
	c.APIVersion, c.Kind = ConfigAPIVersion, ConfigKind
	for _, name := range sortedKeys(members) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		if i < 0 {
			return c, fmt.Errorf("%s: no such field in %s; the fields are %s", Clip(name), ConfigAPIVersion, fieldNames())
		}
		if err := fields[i].decode(members[name], &c); err != nil {
			return c, err
		}
	}
	return c, c.Validate()
}

// Members reads the fields of an opaque configuration strictly: of the given version and kind, which are not among the result, and each
// field once.
func Members(data []byte, apiVersion, kind string) (map[string]json.RawMessage, error) {
	switch {
	case len(data) > maxConfig:
		return nil, fmt.Errorf("%d bytes: Kubernetes takes %d; leave out what is no field", len(data), maxConfig)
	case !utf8.Valid(data):
		return nil, errors.New("the text is not UTF-8; write it anew")
	}
	found, err := members(data, fmt.Sprintf("write apiVersion: %s, kind: %s and fields", apiVersion, kind))
	if err != nil {
		return nil, err
	}
	return found, identity(found, apiVersion, kind)
}

// members splits a JSON object. encoding/json by itself takes the last of two equal keys, matches keys without
// regard to case, and ignores what follows.
func members(data []byte, fix string) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil, fmt.Errorf("%s: not a JSON object; %s", Clip(string(data)), fix)
	}
	found := make(map[string]json.RawMessage)
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		name, _ := key.(string) // an object's keys are text, or Token fails
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, fmt.Errorf("not JSON after %s: %w", Clip(name), err)
		}
		if _, twice := found[name]; twice {
			return nil, fmt.Errorf("%s: written twice; leave one out", Clip(name))
		}
		found[name] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object; leave it out")
	}
	return found, nil
}

// identity takes apiVersion and kind from the members.
func identity(members map[string]json.RawMessage, apiVersion, kind string) error {
	for _, want := range []struct{ name, value string }{{"apiVersion", apiVersion}, {"kind", kind}} {
		raw, ok := members[want.name]
		if !ok {
			return fmt.Errorf("%s: missing; write %s: %s", want.name, want.name, want.value)
		}
		var said string
		if err := json.Unmarshal(raw, &said); err != nil || said != want.value {
			return fmt.Errorf("%s %s: not known to this driver; write %s", want.name, Clip(string(raw)), want.value)
		}
		delete(members, want.name)
	}
	return nil
}

func (f field) decode(raw json.RawMessage, c *ShareConfig) error {
	fail := func(problem string) error {
		return fmt.Errorf("%s %s: %s; write %s, or leave the field out", f.name, Clip(string(raw)), problem, f.example())
	}
	text := ""
	if f.kind != boolean && (raw[0] != '"' || json.Unmarshal(raw, &text) != nil) {
		return fail("not a text")
	}
	switch at := f.at(c).(type) {
	case **bool:
		if string(raw) == "null" || json.Unmarshal(raw, at) != nil {
			return fail("not true or false")
		}
	case **resource.Quantity:
		if !quantityRE.MatchString(text) {
			return fail("not a size")
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return fail("not a size")
		}
		*at = &q
		if err := f.validate(*c); err != nil { // before the cut, as the admission policy sees it
			return err
		}
		cut(&q)
	case **share.Class:
		*at = (*share.Class)(&text)
	case **Tier:
		*at = (*Tier)(&text)
	case **share.Backend:
		*at = (*share.Backend)(&text)
	}
	return nil
}

// cut leaves out the fraction of a byte, which 0.01Gi has, and which is written in thousandths.
func cut(q *resource.Quantity) {
	whole := resource.NewQuantity(q.Value(), resource.BinarySI)
	switch q.Cmp(*whole) {
	case 0:
		return
	case -1: // Value rounds up
		whole.Set(q.Value() - 1)
	}
	*q = *whole
}

// Validate checks every field that is set, and what they say together. A zero TypeMeta is valid: the caller may fill it in later.
func (c ShareConfig) Validate() error {
	for _, f := range fields {
		if err := f.validate(c); err != nil {
			return err
		}
	}
	if c.MemoryLimit != nil && c.MinResident != nil && c.MinResident.Cmp(*c.MemoryLimit) > 0 {
		return fmt.Errorf("minResident %s: above memoryLimit %s; write less, or raise the limit", c.MinResident, c.MemoryLimit)
	}
	return nil
}

func (f field) validate(c ShareConfig) error {
	switch at := f.at(&c).(type) {
	case **resource.Quantity:
		if q := *at; q != nil && (q.Cmp(resource.MustParse(f.min)) < 0 || q.Cmp(resource.MustParse(f.max)) > 0) {
			return fmt.Errorf("%s %q: outside %s to %s; write %s, or leave the field out", f.name, q, f.min, f.max, f.example())
		}
	case **share.Class:
		return knownWord(f, *at)
	case **Tier:
		return knownWord(f, *at)
	case **share.Backend:
		return knownWord(f, *at)
	}
	return nil
}

func knownWord[T ~string](f field, value *T) error {
	if value == nil || slices.Contains(f.words, string(*value)) {
		return nil
	}
	return fmt.Errorf("%s %q: not known; write %s, or leave the field out", f.name, Clip(string(*value)), f.example())
}

func (f field) example() string {
	if f.kind == word {
		return oneOf(f.words)
	}
	return f.fix
}

func oneOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func fieldNames() string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return strings.Join(names, ", ")
}

// Clip keeps a user's text short enough for an event, which has 1 KiB for everything.
func Clip(text string) string {
	if len(text) <= 60 {
		return text
	}
	return strings.ToValidUTF8(text[:60], "") + "…"
}
