package monitor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func unmarshalName(names []string, text []byte, to *int) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("%q: none of %s", text, strings.Join(names, ", "))
	}
	*to = i
	return nil
}

const xidPrefix = "xid/"

func xidKey(code int) string { return xidPrefix + strconv.Itoa(code) }

// taintOf is the key and value by which a condition is told. A value is a label: letters, digits, - and .
func taintOf(c Condition) (key, value string) {
	if code, isXid := strings.CutPrefix(c.Key, xidPrefix); isXid {
		return TaintXid, code
	}
	if c.Key == lostKey {
		return TaintLost, "true"
	}
	return taintDomain + c.Key, label(c.Evidence)
}

func label(text string) string {
	value := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.':
			return r
		}
		return '-'
	}, strings.ToLower(text))
	for strings.Contains(value, "--") {
		value = strings.ReplaceAll(value, "--", "-")
	}
	return strings.Trim(value[:min(len(value), 63)], "-.")
}
