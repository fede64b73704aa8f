package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// job is one command in the machine.
type job struct {
	Args    []string
	Env     []string `json:",omitempty"`
	Dir     string   `json:",omitempty"`
	Timeout time.Duration
	Shell   bool `json:",omitempty"` // on the console, for a person
}

// ended is how a job ended.
type ended struct {
	Code    int    // of a command that exited
	Signal  int    `json:",omitempty"` // that ended it
	Timeout bool   `json:",omitempty"`
	Error   string `json:",omitempty"` // it did not start
}

// exit is the code that a shell would give it.
func (e ended) exit() int {
	switch {
	case e.Error != "":
		return exitFailure
	case e.Timeout:
		return exitTimeout
	case e.Signal != 0:
		return 128 + e.Signal
	}
	return e.Code
}

func (e ended) String() string {
	switch {
	case e.Error != "":
		return e.Error
	case e.Timeout:
		return "it ran past its time and was killed"
	case e.Signal != 0:
		return fmt.Sprintf("signal %d ended it", e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// The port carries frames: a kind, four bytes of length (big endian), that many bytes. The guest sends them.
const (
	frameReady  = 'b' // modules are loaded, the first job begins
	frameStdout = 'o'
	frameStderr = 'e'
	frameEnded  = 'x' // of the job: ended as JSON
	frameFailed = 'f' // the machine could not be made ready: text
	frameDone   = 'd' // no more jobs; the host ends the machine
	frameMax    = 1 << 20
)

// port writes frames, whole ones, from any goroutine.
type port struct {
	mu sync.Mutex
	w  io.Writer
}

func (p *port) send(kind byte, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	frame := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(data)))
	_, err := p.w.Write(append(frame, data...))
	return err
}

func (p *port) sendJSON(kind byte, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return p.send(kind, data)
}

// stream is one of a job's outputs.
type stream struct {
	*port
	kind byte
}

func (s stream) Write(data []byte) (int, error) {
	for sent := 0; sent < len(data); {
		chunk := data[sent:min(len(data), sent+frameMax)]
		if err := s.send(s.kind, chunk); err != nil {
			return sent, err
		}
		sent += len(chunk)
	}
	return len(data), nil
}

// receive reads one frame. io.EOF is the end of the machine between two frames.
func receive(r io.Reader) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > frameMax {
		return 0, nil, fmt.Errorf("a frame of %d bytes on the machine's port, at most %d are sent: something else writes there", size, frameMax)
	}
	data = make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, fmt.Errorf("the machine ended within a frame: %w", err)
	}
	return head[0], data, nil
}
