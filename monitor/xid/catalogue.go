// Package xid knows what NVIDIA's driver reports when something goes wrong on a GPU: the catalogue of codes, the decoding of NVLink 5
// errors, and the form of the kernel's lines.
//
// Vocabulary: an Xid is a numbered report of the kernel driver about one GPU, an SXid one about an NVSwitch. The catalogue gives each
// code an action, which is a fact: what NVIDIA says is to be done at once. What Kerf does about it is policy, and lives in package
// monitor. A recovery action is what the driver itself asks for, as Xid 154 or through NVML; it has authority over the catalogue.
//
// Traps
//
//   - Products disagree about the same code (63, 94, 109): nothing here says that a code is bad.
//   - Xid 144 to 150 mean nothing by their number alone: their registers do, and the layout of the first changed with R575.
//   - Whether an SXid is fatal, its text says; the same code comes in both kinds.
//   - A line may name a process that has ended long ago, or '<unknown>'.
//   - "fallen off the bus" may come as Xid 79, as two lines without a code, or as both for one event.
//
// The two tables are files of their own (catalogue.tsv, nvlink.tsv), so that a code is added without a program being changed.
package xid

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Action is what NVIDIA says is to be done at once.
type Action string

// The actions of the tables. XID_154_EVAL stands for: what Xid 154 asks for, if it comes; else the application is restarted.
const (
	None          Action = ""
	Ignore        Action = "IGNORE"
	RestartApp    Action = "RESTART_APP"
	ResetGPU      Action = "RESET_GPU"
	RestartNode   Action = "RESTART_BM"
	RestartVM     Action = "RESTART_VM"
	Contact       Action = "CONTACT_SUPPORT"
	Mechanicals   Action = "CHECK_MECHANICALS"
	UpdateSW      Action = "UPDATE_SWFW"
	CheckUVM      Action = "CHECK_UVM"
	FollowXid154  Action = "XID_154"
	EvalXid154    Action = "XID_154_EVAL"
	Workflow45    Action = "WORKFLOW_XID_45"
	Workflow48    Action = "WORKFLOW_XID_48"
	WorkflowLink  Action = "WORKFLOW_NVLINK_ERR"
	WorkflowLink5 Action = "WORKFLOW_NVLINK5_ERR"
)

// Actions is all of them.
var Actions = []Action{None, Ignore, RestartApp, ResetGPU, RestartNode, RestartVM, Contact, Mechanicals, UpdateSW, CheckUVM, FollowXid154,
	EvalXid154, Workflow45, Workflow48, WorkflowLink, WorkflowLink5}

// Codes that are about other codes, rather than faults of their own.
const (
	FallenOffBus   = 79
	RecoveryAction = 154
)

// Entry is one code of the catalogue.
type Entry struct {
	Code        int    `json:"code"`
	Name        string `json:"name"`
	Families    string `json:"families,omitempty"` // of "ahbg": A100, H100, B100, GB200
	Action      Action `json:"action,omitempty"`   // at once; None: the catalogue has none yet
	Investigate string `json:"investigate,omitempty"`
	Linked      string `json:"linked,omitempty"` // from which driver on the driver's own recovery action comes with it
	Used        bool   `json:"used"`
}

// Products spells the families out.
func (e Entry) Products() string {
	var names []string
	for _, f := range []struct{ letter, name string }{{"a", "A100"}, {"h", "H100"}, {"b", "B100"}, {"g", "GB200"}} {
		if strings.Contains(e.Families, f.letter) {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, ", ")
}

//go:embed catalogue.tsv
var catalogueText string

var catalogue = sync.OnceValues(func() ([]Entry, error) { return table(catalogueText, 7, parseEntry) })

// All is the catalogue, by code.
func All() []Entry {
	all, err := catalogue()
	if err != nil {
		panic(err) // the file is part of the program, and a test reads it
	}
	return all
}

// Lookup finds a code.
func Lookup(code int) (Entry, bool) {
	all := All()
	if code < 1 || code > len(all) { // there is no gap; a test says so
		return Entry{Code: code}, false
	}
	return all[code-1], true
}

// table reads lines of columns, without those that begin with #.
func table[T any](text string, columns int, parse func([]string) (T, error)) (rows []T, err error) {
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != columns {
			return nil, fmt.Errorf("line %d: %d columns, not %d", i+1, len(fields), columns)
		}
		for j, f := range fields {
			if f == "-" {
				fields[j] = ""
			}
		}
		row, err := parse(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func parseEntry(f []string) (e Entry, err error) {
	if e.Code, err = strconv.Atoi(f[0]); err != nil {
		return e, err
	}
	e.Name, e.Families, e.Action, e.Investigate, e.Linked, e.Used = f[1], f[2], Action(f[3]), f[4], f[5], f[6] == "yes"
	return e, nil
}
