package cdi

import (
	"debug/elf"
	"errors"
)

// soname is the name under which a loader asks for a library; "" for one without, which a program opens by its path, and for
// what is no library of 64 bits.
func soname(file string) (string, error) {
	f, err := elf.Open(file)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if f.Class != elf.ELFCLASS64 {
		return "", nil
	}
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) == 0 {
		return "", nil // without a dynamic section it is opened by its path, or not at all
	}
	return names[0], nil
}
