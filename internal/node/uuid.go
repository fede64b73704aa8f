package node

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// UUID names a GPU for its whole life. The zero value is no GPU.
type UUID [16]byte

// ParseUUID reads "GPU-8-4-4-4-12", "MIG-…" or the bare hexadecimal form.
func ParseUUID(s string) (UUID, error) {
	bare := strings.TrimPrefix(strings.TrimPrefix(s, "GPU-"), "MIG-")
	groups := strings.Split(bare, "-")
	var u UUID
	raw, err := hex.DecodeString(strings.Join(groups, ""))
	if err != nil || len(raw) != len(u) || len(groups) != 5 || !groupLengths(groups) {
		return UUID{}, fmt.Errorf("GPU %q: not a UUID; write it as GPU-01234567-89ab-cdef-0123-456789abcdef", s)
	}
	copy(u[:], raw)
	return u, nil
}

func groupLengths(groups []string) bool {
	for i, n := range [5]int{8, 4, 4, 4, 12} {
		if len(groups[i]) != n {
			return false
		}
	}
	return true
}

// String is the form of NVML and of CUDA_VISIBLE_DEVICES: GPU-….
func (u UUID) String() string { return "GPU-" + u.bare() }

// Short is the first eight hexadecimal digits, as used in device names.
func (u UUID) Short() string { return hex.EncodeToString(u[:4]) }

// IsZero reports whether u names nothing.
func (u UUID) IsZero() bool { return u == UUID{} }

func (u UUID) bare() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// MarshalText writes the GPU-… form; the zero UUID is empty text.
func (u UUID) MarshalText() ([]byte, error) {
	if u.IsZero() {
		return nil, nil
	}
	return []byte(u.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (u *UUID) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*u = UUID{}
		return nil
	}
	*u, err = ParseUUID(string(text))
	return err
}

// MIGUUID names a MIG instance. Its text form is MIG-….
type MIGUUID UUID

func (u MIGUUID) String() string { return "MIG-" + UUID(u).bare() }

// MarshalText writes the MIG-… form.
func (u MIGUUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (u *MIGUUID) UnmarshalText(text []byte) error {
	parsed, err := ParseUUID(string(text))
	*u = MIGUUID(parsed)
	return err
}
