package xid

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Row says what the registers of an NVLink 5 error mean.
type Row struct {
	Code        int    `json:"code"`
	Unit        string `json:"unit"`
	Old, New    Mask   `json:"-"` // of IntrInfo, before R575 and from there on
	Status      Status `json:"-"`
	Action      Action `json:"action"`
	Investigate string `json:"investigate,omitempty"`
	Severity    string `json:"severity"` // fatal, link-fatal, non-fatal
	Origin      string `json:"origin"`   // HW, SW, HW/SW, FW
}

// Mask is a register's pattern: which bits count, and what they are.
type Mask struct{ care, want uint32 }

func (m Mask) fits(register uint32) bool { return register&m.care == m.want }

func parseMask(text string) (m Mask, err error) {
	if len(text) != 32 {
		return m, fmt.Errorf("mask %q: not 32 bits", text)
	}
	for _, bit := range text {
		m.care, m.want = m.care<<1, m.want<<1
		switch bit {
		case '1':
			m.care, m.want = m.care|1, m.want|1
		case '0':
			m.care |= 1
		case '-':
		default:
			return m, fmt.Errorf("mask %q: a bit is 0, 1 or -", text)
		}
	}
	return m, nil
}

func (m Mask) String() string {
	var b strings.Builder
	for bit := uint32(1) << 31; bit != 0; bit >>= 1 {
		switch {
		case m.care&bit == 0:
			b.WriteByte('-')
		case m.want&bit == 0:
			b.WriteByte('0')
		default:
			b.WriteByte('1')
		}
	}
	return b.String()
}

// Status is the values of ErrorStatus that a row is about; none: any.
type Status []uint32

func parseStatus(text string) (s Status, err error) {
	for one := range strings.SplitSeq(text, "/") {
		if text == "" {
			break
		}
		n, err := strconv.ParseUint(one, 0, 32)
		if err != nil {
			return nil, fmt.Errorf("status %q: %w", text, err)
		}
		s = append(s, uint32(n))
	}
	return s, nil
}

func (s Status) String() string {
	all := make([]string, len(s))
	for i, n := range s {
		all[i] = fmt.Sprintf("0x%08X", n)
	}
	return strings.Join(all, "/")
}

// closeness is how well a status fits: 0 not at all, 1 by one of several bits that are set, 2 any status does, 3 exactly.
func (s Status) closeness(register uint32) (best int) {
	if len(s) == 0 {
		return 2
	}
	for _, n := range s {
		switch {
		case n == register:
			return 3
		case n&register != 0:
			best = 1
		}
	}
	return best
}

//go:embed nvlink.tsv
var nvlinkText string

var nvlink = sync.OnceValues(func() ([]Row, error) { return table(nvlinkText, 9, parseRow) })

// Rows is the table for NVLink 5 errors.
func Rows() []Row {
	rows, err := nvlink()
	if err != nil {
		panic(err) // the file is part of the program, and a test reads it
	}
	return rows
}

func parseRow(f []string) (r Row, err error) {
	if r.Code, err = strconv.Atoi(f[0]); err != nil {
		return r, err
	}
	if r.Old, err = parseMask(f[2]); err != nil {
		return r, err
	}
	if r.New, err = parseMask(f[3]); err != nil {
		return r, err
	}
	if r.Status, err = parseStatus(f[4]); err != nil {
		return r, err
	}
	r.Unit, r.Action, r.Investigate, r.Severity, r.Origin = f[1], Action(f[5]), f[6], f[7], f[8]
	return r, nil
}

// newLayout is the driver branch from which on IntrInfo has its present layout.
const newLayout = 575

// Decode finds what the registers of an NVLink 5 error mean to a driver of a branch (580; 0: not known, then both layouts are tried,
// the present one first). unit is the name in the text, empty where there is none: where the registers leave several rows, it chooses.
// Of those that fit equally well, the worst counts.
func Decode(code, branch int, unit string, intrInfo, status uint32) (best Row, ok bool) {
	if branch == 0 {
		if best, ok = Decode(code, newLayout, unit, intrInfo, status); ok {
			return best, ok
		}
		branch = newLayout - 1
	}
	fit := 0
	for _, r := range Rows() {
		mask := r.New
		if branch < newLayout {
			mask = r.Old
		}
		closeness := r.Status.closeness(status)
		if r.Code != code || !mask.fits(intrInfo) || closeness == 0 {
			continue
		}
		if unit != "" && strings.Contains(r.Unit, unit) {
			closeness += 4
		}
		if closeness > fit || closeness == fit && severity[r.Severity] > severity[best.Severity] {
			best, fit, ok = r, closeness, true
		}
	}
	return best, ok
}

var severity = map[string]int{"non-fatal": 0, "link-fatal": 1, "fatal": 2}
