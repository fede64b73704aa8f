package node

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is an amount of memory or storage in bytes. It encodes to JSON as a
// number, and decodes from a number or from text such as "16Gi".
type Bytes uint64

// The units that ParseBytes knows. IEC units are powers of 1024.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = []struct {
	name string
	size Bytes
}{
	{"Ti", TiB}, {"Gi", GiB}, {"Mi", MiB}, {"Ki", KiB},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}, {"K", 1e3}, {"", 1},
}

var errNoNumber = errors.New("it has no number in front of the unit")

// ParseBytes reads a size as people and Kubernetes write it: "16Gi", "512Mi",
// "1.5Gi", "1G", "1048576", "0". A fraction of a byte is cut off.
func ParseBytes(s string) (Bytes, error) {
	b, err := parseBytes(strings.TrimSpace(s))
	if err != nil {
		return 0, fmt.Errorf("size %q: %w; write it as 16Gi, 512Mi or 1G", s, err)
	}
	return b, nil
}

func parseBytes(s string) (Bytes, error) {
	if strings.HasPrefix(s, "-") {
		return 0, errors.New("a size cannot be negative")
	}
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	if digits == "" {
		return 0, errNoNumber
	}
	unit, err := byteUnit(strings.TrimSpace(s[len(digits):]))
	if err != nil {
		return 0, err
	}
	if strings.Contains(digits, ".") {
		return fractionalBytes(digits, unit)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && n > math.MaxInt64/uint64(unit):
		return 0, errors.New("it is larger than 8 EiB")
	case err != nil:
		return 0, fmt.Errorf("%q is not a number", digits)
	}
	return Bytes(n) * unit, nil
}

func fractionalBytes(digits string, unit Bytes) (Bytes, error) {
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f < 0 || math.IsNaN(f) {
		return 0, fmt.Errorf("%q is not a number", digits)
	}
	f *= float64(unit)
	if f >= math.MaxInt64 {
		return 0, errors.New("it is larger than 8 EiB")
	}
	return Bytes(f), nil
}

func byteUnit(name string) (Bytes, error) {
	for _, u := range byteUnits {
		if u.name == name {
			return u.size, nil
		}
	}
	return 0, fmt.Errorf("unknown unit %q (known: Ki Mi Gi Ti, k M G T)", name)
}

// String is for people: the largest IEC unit, with one decimal where the value
// is not a whole number of them. Use Exact where the text is read back.
func (b Bytes) String() string {
	for _, u := range byteUnits[:4] {
		if b < u.size {
			continue
		}
		if b%u.size == 0 {
			return fmt.Sprintf("%d%s", b/u.size, u.name)
		}
		return fmt.Sprintf("%.1f%s", float64(b)/float64(u.size), u.name)
	}
	return strconv.FormatUint(uint64(b), 10)
}

// Exact is the shortest IEC text that ParseBytes reads back as the same number.
func (b Bytes) Exact() string {
	for _, u := range byteUnits[:4] {
		if b != 0 && b%u.size == 0 {
			return fmt.Sprintf("%d%s", b/u.size, u.name)
		}
	}
	return strconv.FormatUint(uint64(b), 10)
}

// UnmarshalText reads what ParseBytes reads.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// UnmarshalJSON reads a number of bytes, or a string as ParseBytes does.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	return b.UnmarshalText([]byte(strings.Trim(string(data), `"`)))
}

// Set and Type make *Bytes a command-line flag.
func (b *Bytes) Set(s string) error { return b.UnmarshalText([]byte(s)) }

// Type is the word for the value in a usage text.
func (b *Bytes) Type() string { return "size" }

// Percent is a share of one GPU's time, 0 to 100.
type Percent int

// ParsePercent reads "30" or "30%".
func ParsePercent(s string) (Percent, error) {
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(s), "%"))
	if err != nil {
		return 0, fmt.Errorf("percent %q: not a whole number; write it as 30 or 30%%", s)
	}
	if err := Percent(n).Validate(); err != nil {
		return 0, err
	}
	return Percent(n), nil
}

// Validate refuses what is not within 0 and 100.
func (p Percent) Validate() error {
	if p < 0 || p > 100 {
		return fmt.Errorf("percent %d: outside 0 to 100; one GPU is 100, and 0 is best effort", int(p))
	}
	return nil
}

func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }

// Set and Type make *Percent a command-line flag.
func (p *Percent) Set(s string) (err error) {
	*p, err = ParsePercent(s)
	return err
}

// Type is the word for the value in a usage text.
func (p *Percent) Type() string { return "percent" }
