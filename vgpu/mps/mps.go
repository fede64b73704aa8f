// Package mps runs NVIDIA's MPS control daemons: one for each GPU that has shares of tier mps, while it has them.
//
// Vocabulary. The control daemon (nvidia-cuda-mps-control) is started by us; it starts the server, which is what all programs of the
// card go through. A client is such a program: it finds the daemon by a pipe directory. What is used is the interface of MPS version 2,
// which every driver since R470 has: limits are set for the server, from its side, and a client can lower them for itself, never raise
// them.
//
// A card's directory, Dir/TOKEN, has the GPU's UUID in a file, and the daemon's pipe and log directories. The token is not to be
// guessed, and Dir not to be listed: who is told the name is let in. The directory is there before the daemon is started and as long
// as the card has shares, through all deaths of daemons, since tenants have it mounted.
//
// Who dies. A daemon outlives the kerfd that started it, as tenants do, and the next kerfd takes it up: it is found by its environment,
// so there is no moment at which a death would lose it. If the daemon or its server dies, the contexts of all clients are lost, and
// nothing can keep them: the programs see errors and must be started again. A new daemon is started, later each time.
//
// Shared memory. Server and clients of NVIDIA's MPS must see one /dev/shm. On a machine they do. For containers, which have each their
// own, a daemon gets a directory of ours as its /dev/shm (Config.Enter), and so do its clients.
//
// Traps. A percentage is of each client: a share of several processes has it several times. A server is one user's: NVIDIA's daemon lets clients of another user wait, inside cuInit, until the first user's have ended.
// A client that finds no daemon goes on without MPS and without a word; Kerf's shim asks the driver and refuses it then.
package mps

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
)

// Names in a card's directory.
const (
	gpuName  = "gpu"
	pipeName = "pipe"
	shmName  = "shm"
	logName  = "log"
)

// Event is something worth a line in kerfd's log.
type Event struct {
	GPU     node.UUID
	Kind    EventKind
	Message string
}

// EventKind is what happened.
type EventKind string

// The events.
const (
	Started EventKind = "MPS daemon started"
	Adopted EventKind = "MPS daemon taken up"
	Died    EventKind = "MPS daemon died"
	Failed  EventKind = "MPS daemon failed"
	Stopped EventKind = "MPS daemon stopped"
	Stray   EventKind = "MPS process of nobody ended"
	Lost    EventKind = "MPS server ended"
)

// Config is what a Supervisor needs.
type Config struct {
	Dir    string      // of the cards' directories; on a tmpfs, as daemons do not outlive a boot
	Root   string      // the driver root, where the programs are
	Enter  []string    // a command that, in a new mount namespace, makes its next argument /dev/shm, and becomes the rest; nil: daemons have ours
	Notify func(Event) // called without a lock held
	Now    func() time.Time
}

// Supervisor runs the daemons. Its methods may be called from several goroutines.
type Supervisor struct {
	config Config

	// mu guards all below. It is not held while anything is started or asked.
	mu     sync.Mutex
	cards  map[node.UUID]*card
	closed bool
}

// New makes a supervisor of no daemon. Restore follows.
func New(config Config) *Supervisor {
	return &Supervisor{config: config, cards: make(map[node.UUID]*card)}
}

// Restore takes up what an earlier kerfd left: daemons of cards that are wanted go on, with the limits that are wanted now; the others
// end, and so does what belongs to no card. A card that is wanted and has none gets one; why it could not is an event, since the
// other cards' shares are not to suffer.
func (s *Supervisor) Restore(ctx context.Context, want map[node.UUID]Limits) error {
	dirs, err := os.ReadDir(s.config.Dir)
	if errors.Is(err, os.ErrNotExist) {
		dirs, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("restore MPS: %w", err)
	}
	for _, entry := range dirs {
		dir := filepath.Join(s.config.Dir, entry.Name())
		text, _ := os.ReadFile(filepath.Join(dir, gpuName)) // none: it was just being made, and no daemon was started
		gpu, err := node.ParseUUID(strings.TrimSpace(string(text)))
		c := &card{s: s, gpu: gpu, dir: dir}
		if _, wanted := want[gpu]; err != nil || !wanted || s.cards[gpu] != nil {
			if err := c.end(); err != nil {
				return fmt.Errorf("restore MPS: %w", err)
			}
			continue
		}
		s.cards[gpu] = c
		if err := s.takeUp(c); err != nil {
			return err
		}
	}
	s.sweep()
	if len(want) == 0 {
		_ = os.Remove(s.config.Dir) // if empty
	}
	for _, gpu := range sorted(want) {
		if _, err := s.Ensure(ctx, gpu, want[gpu]); err != nil {
			s.config.Notify(Event{GPU: gpu, Kind: Failed, Message: err.Error()})
			s.retrySoon(gpu)
		}
	}
	return nil
}

// takeUp finds a card's daemon.
func (s *Supervisor) takeUp(c *card) error {
	all, err := c.processes()
	if err != nil {
		return err
	}
	if process, ok := leader(all); ok {
		c.adopt(process)
		s.config.Notify(Event{GPU: c.gpu, Kind: Adopted, Message: fmt.Sprintf("the MPS control daemon (pid %d) that an earlier kerfd started goes on", process.PID)})
		return nil
	}
	s.config.Notify(Event{GPU: c.gpu, Kind: Died, Message: "its MPS control daemon ended while kerfd was away: the programs of this card's mps shares have lost their contexts and must be started again"})
	return nil
}

func (s *Supervisor) retrySoon(gpu node.UUID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cards[gpu]; c != nil && !c.gone {
		c.retryLater(0)
	}
}

// Ensure has a daemon serve the card with these limits, and answers where it is found. It is convergent. After an error there
// may be no daemon; the next Ensure or Drop decides what becomes of the card.
func (s *Supervisor) Ensure(ctx context.Context, gpu node.UUID, limits Limits) (Place, error) {
	c, err := s.locked(gpu)
	if err != nil {
		return Place{}, err
	}
	defer c.op.Unlock()
	ran := c.running()
	if err := c.ensure(ctx, limits); err != nil {
		c.limits = limits // for the retry
		return Place{}, fmt.Errorf("MPS on GPU %s: %w", gpu.Short(), err)
	}
	if !ran {
		s.config.Notify(Event{GPU: gpu, Kind: Started, Message: fmt.Sprintf("the MPS control daemon (pid %d) serves the card's mps shares", c.now().PID)})
	}
	return c.place(), nil
}

// locked is a card with its op held. One that was dropped while we waited for it is made anew.
func (s *Supervisor) locked(gpu node.UUID) (*card, error) {
	for {
		c, err := s.card(gpu)
		if err != nil {
			return nil, err
		}
		c.op.Lock()
		s.mu.Lock()
		gone := c.gone
		s.mu.Unlock()
		if !gone {
			return c, nil
		}
		c.op.Unlock()
	}
}

// card finds a card's directory, or makes one.
func (s *Supervisor) card(gpu node.UUID) (*card, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cards[gpu]; c != nil && !c.gone {
		return c, nil
	}
	var token [8]byte
	_, _ = rand.Read(token[:]) // never fails
	c := &card{s: s, gpu: gpu, dir: filepath.Join(s.config.Dir, hex.EncodeToString(token[:]))}
	for dir, mode := range map[string]os.FileMode{s.config.Dir: 0o711, c.dir: 0o755, c.pipe(): 0o755, c.log(): 0o700} {
		if err := errors.Join(os.MkdirAll(dir, mode), os.Chmod(dir, mode)); err != nil { // whatever the umask
			return nil, fmt.Errorf("make the directory of an MPS daemon: %w", err)
		}
	}
	if s.config.Enter != nil {
		if err := errors.Join(os.Mkdir(c.shm(), 0o700), os.Chmod(c.shm(), os.ModeSticky|0o777)); err != nil {
			return nil, fmt.Errorf("make the directory of an MPS daemon: %w", err)
		}
	}
	if err := durable.Replace(filepath.Join(c.dir, gpuName), []byte(gpu.String()+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("make the directory of an MPS daemon: %w", err)
	}
	s.cards[gpu] = c
	return c, nil
}

// Cards are those that have a daemon, or are to have one.
func (s *Supervisor) Cards() []node.UUID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sorted(s.cards)
}

// Drop stops the daemon of a card that has no share of the tier any more; it is no error that it has none.
func (s *Supervisor) Drop(gpu node.UUID) error {
	s.mu.Lock()
	c := s.cards[gpu]
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	return s.drop(c)
}

func (s *Supervisor) drop(c *card) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.end(); err != nil {
		return fmt.Errorf("stop MPS on GPU %s: %w", c.gpu.Short(), err)
	}
	s.mu.Lock()
	if s.cards[c.gpu] == c {
		delete(s.cards, c.gpu)
	}
	if len(s.cards) == 0 {
		_ = os.Remove(s.config.Dir) // if empty
	}
	s.mu.Unlock()
	s.config.Notify(Event{GPU: c.gpu, Kind: Stopped, Message: "the card has no mps share any more"})
	return nil
}

// sweepEvery is how often processes are looked for that belong to nobody: a kerfd that is killed in the very moment of a start may
// leave one that shows itself only after the next has looked.
const sweepEvery = 5 * time.Second

// lostServers are the servers that have ended since the last look, while their daemon goes on. Under Supervisor.mu.
func (c *card) lostServers(all []found) (events []Event) {
	servers := make(map[arbiter.Process]bool)
	for _, p := range all {
		if p.pipe == c.pipe() && p.parent == c.process.PID && c.process.PID != 0 {
			servers[p.Process] = true
		}
	}
	for old := range c.servers {
		if !servers[old] && c.served == c.process {
			events = append(events, Event{GPU: c.gpu, Kind: Lost, Message: fmt.Sprintf("the MPS server (pid %d) has ended: programs that were its clients have lost their contexts; those that start now get a new server", old.PID)})
		}
	}
	c.servers, c.served = servers, c.process
	return events
}

// Run looks for strays until the context ends. The daemons stay, for the next kerfd.
func (s *Supervisor) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.close()
			return nil
		case <-tick.C:
			s.sweep()
		}
	}
}

func (s *Supervisor) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, c := range s.cards {
		if c.again != nil {
			c.again.Stop()
		}
		if c.stop != nil {
			c.stop()
		}
	}
}

// sweep ends the processes below our directory that belong to no card.
func (s *Supervisor) sweep() {
	all, err := below(s.config.Dir)
	if err != nil {
		return // it comes again
	}
	s.mu.Lock()
	known := make(map[string]bool)
	var lost []Event
	for _, c := range s.cards {
		known[c.pipe()] = true
		lost = append(lost, c.lostServers(all)...)
	}
	s.mu.Unlock()
	for _, e := range lost {
		s.config.Notify(e)
	}
	strays := slices.DeleteFunc(all, func(p found) bool { return known[p.pipe] })
	if len(strays) == 0 {
		return
	}
	err = kill(strays)
	s.config.Notify(Event{Kind: Stray, Message: fmt.Sprintf("pid %d, of %s: left by a kerfd that was killed (%v)", strays[0].PID, strays[0].pipe, err)})
}

// State is a card's daemon as a person sees it.
type State struct {
	PID     int       `json:"pid"` // 0: none runs
	Since   time.Time `json:"since"`
	Deaths  int       `json:"deaths"` // since this kerfd started
	Trouble string    `json:"trouble,omitempty"`
}

// State says how a card's daemon is; false: the card has none, nor is to.
func (s *Supervisor) State(gpu node.UUID) (State, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cards[gpu]
	if c == nil || c.gone {
		return State{}, false
	}
	return State{PID: c.process.PID, Since: c.since, Deaths: c.deaths, Trouble: c.trouble}, true
}

// Place is where the clients of a card find its daemon. Paths are the host's.
type Place struct {
	Pipe   string `json:"pipe"`             // the pipe directory
	Memory string `json:"memory,omitempty"` // what must be /dev/shm to them; "": the host's own is
}

// Place is the card's; zero where it has none.
func (s *Supervisor) Place(gpu node.UUID) Place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cards[gpu]; c != nil && !c.gone {
		return c.place()
	}
	return Place{}
}

// place goes by what is there: the daemon may be one that another kerfd started, in its way.
func (c *card) place() Place {
	p := Place{Pipe: c.pipe()}
	if _, err := os.Stat(c.shm()); err == nil {
		p.Memory = c.shm()
	}
	return p
}

func sorted[T any](cards map[node.UUID]T) []node.UUID {
	return slices.SortedFunc(maps.Keys(cards), func(a, b node.UUID) int { return strings.Compare(a.String(), b.String()) })
}
