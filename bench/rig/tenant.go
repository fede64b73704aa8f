package rig

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Event is one line of a tenant program under --json. Each program fills what it knows of.
type Event struct {
	Tenant    string `json:"tenant"`
	Event     string `json:"event"` // "holding", "class" (hog), "report"
	Pid       int    `json:"pid"`
	Simulated bool   `json:"simulated"`
	Card      string `json:"card"`

	Limit    uint64 `json:"limit"` // what the card says it has
	Held     uint64 `json:"held"`
	Verified uint64 `json:"verified"` // regions read back
	Wrong    uint64 `json:"wrong"`    // of which not as written

	Class     string `json:"class"` // hog: one class of allocation
	Got       uint64 `json:"got"`
	Refused   uint64 `json:"refused"` // bytes of the request that was refused
	Left      uint64 `json:"left"`    // bytes that were free then
	Error     int    `json:"error"`   // the driver's code for it
	Complaint string `json:"complaint"`

	Requests uint64  `json:"requests"` // serve
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
}

// Tenant is a running tenant program whose events are read.
type Tenant struct {
	Name   string
	events chan Event
	cmd    *exec.Cmd
	stderr logTail // one that finds much wrong says so at length
	once   sync.Once
	ended  error
}

// StartTenant starts a tenant program, which must have been given --json. The caller waits for it.
func StartTenant(name string, cmd *exec.Cmd) (*Tenant, error) {
	t := &Tenant{Name: name, cmd: cmd, events: make(chan Event)}
	cmd.Stderr = &t.stderr
	// A group of its own, so that Kill reaches the tenant through `kerf run` as well, and Ctrl-C at the terminal
	// does not: the program that started it decides.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("tenant %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("tenant %s: %w", name, err)
	}
	go t.read(output)
	return t, nil
}

func (t *Tenant) read(output io.Reader) {
	defer close(t.events)
	for lines := bufio.NewScanner(output); lines.Scan(); {
		var event Event
		if json.Unmarshal(lines.Bytes(), &event) == nil {
			t.events <- event
		}
	}
}

// Next returns the next event, and false when the tenant has ended.
func (t *Tenant) Next() (Event, bool) {
	event, more := <-t.events
	return event, more
}

// Await returns the next event of that kind; an error where the tenant ends without one.
func (t *Tenant) Await(kind string) (Event, error) {
	for event := range t.events {
		if event.Event == kind {
			return event, nil
		}
	}
	if err := t.Wait(); err != nil {
		return Event{}, err
	}
	return Event{}, fmt.Errorf("tenant %s ended without a '%s' line", t.Name, kind)
}

// Stop asks the tenant to end; its report still comes. Not the group: `kerf run` passes the signal on, and a
// second one kills.
func (t *Tenant) Stop() { _ = t.cmd.Process.Signal(syscall.SIGTERM) }

// Kill ends the tenant and what it started, at once.
func (t *Tenant) Kill() { _ = syscall.Kill(-t.cmd.Process.Pid, syscall.SIGKILL) }

// End stops the tenant, by force if it takes more than five seconds, and waits for its end.
func (t *Tenant) End() {
	t.Stop()
	force := time.AfterFunc(5*time.Second, t.Kill)
	defer force.Stop()
	_ = t.Wait() // stopped: how it ended is no news
}

// Wait waits for the tenant's end, and reads the events nobody waited for. Its error quotes the tenant's own.
func (t *Tenant) Wait() error {
	t.once.Do(func() {
		for range t.events { // drained, or the reader would block, and the tenant with it
		}
		if err := t.cmd.Wait(); err != nil {
			t.ended = fmt.Errorf("tenant %s: %w: %s", t.Name, err, &t.stderr)
		}
	})
	return t.ended
}
