package bpf

import (
	"debug/elf"
	"fmt"
	"time"
)

// What one hit of a probe takes, trap and program. The kernel emulates the first instruction of a function where it is one of a few;
// others it has stepped through, with a second trap. Both are what BenchmarkCall and others measured in virtual machines, the dearest:
// a budget is to hold on every machine.
const (
	emulatedCall = 1 * time.Microsecond
	steppedCall  = 15 * time.Microsecond
)

// perCall is what a hit at a function takes that begins so.
func perCall(code []byte) time.Duration {
	const (
		rexFirst, rexLast   = 0x40, 0x4f
		pushFirst, pushLast = 0x50, 0x57
		nop, call, jump     = 0x90, 0xe8, 0xe9
		shortJump           = 0xeb
	)
	if len(code) > 1 && code[0] >= rexFirst && code[0] <= rexLast && code[1] >= pushFirst && code[1] <= pushLast {
		code = code[1:]
	}
	switch {
	case len(code) == 0:
		return steppedCall
	case code[0] >= pushFirst && code[0] <= pushLast, code[0] == nop, code[0] == call, code[0] == jump, code[0] == shortJump:
		return emulatedCall
	}
	return steppedCall
}

// firstBytes are those of a library's functions, by name; functions that it lacks are not in it.
func firstBytes(path string, symbols []string) (map[string][]byte, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	all, err := f.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	wanted := make(map[string]bool)
	for _, s := range symbols {
		wanted[s] = true
	}
	first := make(map[string][]byte)
	for _, s := range all {
		if !wanted[s.Name] || s.Value == 0 || int(s.Section) >= len(f.Sections) {
			continue
		}
		section := f.Sections[s.Section]
		code := make([]byte, 4)
		if _, err := section.ReadAt(code, int64(s.Value-section.Addr)); err != nil { //nolint:gosec // G115: an address in a file
			return nil, fmt.Errorf("%s: %s: %w", path, s.Name, err)
		}
		first[s.Name] = code
	}
	return first, nil
}
