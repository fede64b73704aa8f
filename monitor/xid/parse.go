package xid

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Kind is what a line of the kernel log reports.
type Kind string

// The kinds.
const (
	KindXid  Kind = "xid"
	KindSXid Kind = "sxid" // of an NVSwitch
	KindLost Kind = "lost" // fallen off the bus, without a code
)

// Report is one line of the kernel log that is about a GPU or an NVSwitch.
type Report struct {
	Kind    Kind
	PCI     node.PCIAddress
	Code    int
	PID     int    // 0: none, or not known
	Process string // the name in the line
	Text    string // what follows the process

	Recovery  node.RecoveryAction // of an Xid 154
	SM        string              // of an Xid 13: "GPC 1 TPC 2 SM 0"
	Link      int                 // of an NVLink error; -1: none
	Unit      string              // of an NVLink 5 error: NETIR_LINK_EVT
	Registers []uint32            // of an NVLink error
	Fatal     bool                // as the text says
}

// marks are what a line must have to be looked at. Thousands of lines a second go by that are about something else.
var marks = [][]byte{[]byte("NVRM"), []byte("SXid")}

var (
	xidLine  = regexp.MustCompile(`^NVRM: (?:[A-Za-z0-9_]+: )?Xid \((?:PCI:)?([0-9A-Fa-f:.]+)\): (\d+)(?:, |$)(.*)$`)
	sxidLine = regexp.MustCompile(`^nvidia-nvswitch\d+: SXid \((?:PCI:)?([0-9A-Fa-f:.]+)\): (\d+)(?:, |$)(.*)$`)
	gpuLine  = regexp.MustCompile(`^NVRM: (?:The NVIDIA )?GPU (?:at )?(?:PCI:)?([0-9A-Fa-f]+:[0-9A-Fa-f:]*[0-9A-Fa-f](?:\.\d)?)`)
	process  = regexp.MustCompile(`^pid='?(\d+|<unknown>)'?(?:, name=([^,]*))?(?:, |$)`)
	shader   = regexp.MustCompile(`\(GPC (\d+), TPC (\d+), SM (\d+)\)`)
	link     = regexp.MustCompile(`(?i)\blink (\d+)`)
	register = regexp.MustCompile(`0x[0-9a-fA-F]{1,8}\b`)
	action   = regexp.MustCompile(`changed from 0x[0-9a-fA-F]+ \([^)]*\) to 0x([0-9a-fA-F]+) \(`)
	unit     = regexp.MustCompile(`^([A-Z][A-Z0-9_]+) (Fatal|Nonfatal|Non-fatal)\b`)
)

const fallenOff = "fallen off the bus"

// Parser reads the texts of kernel log records, in their order: that a GPU is lost is said over several lines.
type Parser struct{ named node.PCIAddress } // the GPU that the last NVRM line was about

// Parse reads one text.
func (p *Parser) Parse(text []byte) (Report, bool) {
	if !slices.ContainsFunc(marks, func(m []byte) bool { return bytes.Contains(text, m) }) {
		return Report{}, false
	}
	line := strings.ReplaceAll(strings.TrimRight(string(text), "\n"), `\x0a`, " ") // the kernel's way to write a newline within a record
	if m := xidLine.FindStringSubmatch(line); m != nil {
		return report(KindXid, m)
	}
	if m := sxidLine.FindStringSubmatch(line); m != nil {
		return report(KindSXid, m)
	}
	if m := gpuLine.FindStringSubmatch(line); m != nil {
		p.named, _ = busAddress(m[1]) // zero: nothing is said of what follows
	}
	if strings.Contains(line, fallenOff) && !p.named.IsZero() {
		lost := Report{Kind: KindLost, PCI: p.named, Code: FallenOffBus, Text: "GPU has fallen off the bus", Link: -1}
		p.named = node.PCIAddress{}
		return lost, true
	}
	return Report{}, false
}

// report reads a line with a code: address, code, the rest.
func report(kind Kind, m []string) (r Report, ok bool) {
	address, err := busAddress(m[1])
	if err != nil {
		return r, false
	}
	code, err := strconv.Atoi(m[2])
	if err != nil {
		return r, false
	}
	r = Report{Kind: kind, PCI: address, Code: code, Link: -1}
	r.details(m[3])
	return r, true
}

// busAddress reads 0000:b3:00, 0000:b3:00.0 and 00000000:B3:00.0.
func busAddress(text string) (node.PCIAddress, error) {
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return node.ParsePCIAddress(text)
}

// details reads what the code does not say.
func (r *Report) details(rest string) {
	if m := process.FindStringSubmatch(rest); m != nil {
		r.PID, _ = strconv.Atoi(m[1]) // '<unknown>' is none
		r.Process = strings.Trim(m[2], "'")
		if r.Process == "<unknown>" {
			r.Process = ""
		}
		rest = rest[len(m[0]):]
	}
	r.Text = rest
	if m := shader.FindStringSubmatch(rest); m != nil {
		r.SM = "GPC " + m[1] + " TPC " + m[2] + " SM " + m[3]
	}
	if m := link.FindStringSubmatch(rest); m != nil {
		r.Link, _ = strconv.Atoi(m[1])
	}
	if m := unit.FindStringSubmatch(rest); m != nil {
		r.Unit = m[1]
	}
	if r.Link >= 0 {
		for _, n := range register.FindAllString(rest, -1) {
			value, _ := strconv.ParseUint(n, 0, 32) // the pattern lets only such through
			r.Registers = append(r.Registers, uint32(value))
		}
	}
	if m := action.FindStringSubmatch(rest); m != nil && r.Code == RecoveryAction {
		value, _ := strconv.ParseUint(m[1], 16, 31) // one that does not fit is none that Kerf knows
		r.Recovery = node.RecoveryAction(value)
	}
	r.Fatal = strings.Contains(rest, "Fatal")
}

// Decoded is what the registers of an NVLink 5 error mean.
func (r Report) Decoded(branch int) (Row, bool) {
	if len(r.Registers) < 2 {
		return Row{}, false
	}
	return Decode(r.Code, branch, r.Unit, r.Registers[0], r.Registers[1])
}
