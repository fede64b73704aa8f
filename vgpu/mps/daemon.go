package mps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/arbiter"
)

// card is one GPU's daemon, or the want of one.
type card struct {
	s   *Supervisor
	gpu node.UUID
	dir string

	// op is held while the daemon is started, told or stopped. Supervisor.mu comes after it.
	op     sync.Mutex
	limits Limits

	// The rest is guarded by Supervisor.mu.
	process arbiter.Process // zero: none runs
	since   time.Time
	deaths  int
	delay   time.Duration // before the next start
	again   *time.Timer
	stop    func()                   // of the watch
	trouble string                   // why none runs, or why its limits are not as they should be
	gone    bool                     // the card has no share of this tier any more
	servers map[arbiter.Process]bool // at the last look
	served  arbiter.Process          // whose they were
}

func (c *card) pipe() string { return filepath.Join(c.dir, pipeName) }
func (c *card) log() string  { return filepath.Join(c.dir, logName) }
func (c *card) shm() string  { return filepath.Join(c.dir, shmName) }

func (c *card) env(control string) []string {
	return environment(control, c.s.config.Root, c.pipe(), c.log(), c.gpu)
}

// processes are the daemon and its servers.
func (c *card) processes() ([]found, error) {
	all, err := below(c.s.config.Dir)
	return slices.DeleteFunc(all, func(p found) bool { return p.pipe != c.pipe() }), err
}

// readyWithin bounds how long a daemon that was started may take to answer.
const readyWithin = 10 * time.Second

// ensure has the daemon run with the limits. Under op.
func (c *card) ensure(ctx context.Context, limits Limits) error {
	err := c.start(ctx, limits)
	c.s.mu.Lock()
	c.trouble = ""
	if err != nil {
		c.trouble = err.Error()
	}
	c.s.mu.Unlock()
	return err
}

func (c *card) start(ctx context.Context, limits Limits) error {
	control, err := Find(c.s.config.Root)
	if err != nil {
		return err
	}
	if c.running() {
		if c.limits == limits {
			return nil
		}
		return c.limit(ctx, control, limits)
	}
	if err := c.clear(); err != nil { // a server may outlive its daemon
		return err
	}
	ended, err := c.launch(control)
	if err != nil {
		return err
	}
	if err := c.await(ctx, control, ended); err != nil {
		return errors.Join(err, c.clear())
	}
	if err := c.limit(ctx, control, limits); err != nil { // nobody may come in without limits
		return errors.Join(err, c.clear())
	}
	return nil
}

func (c *card) running() bool {
	process := c.now()
	return process != (arbiter.Process{}) && !process.Gone()
}

// now is the daemon's process; zero where none runs.
func (c *card) now() arbiter.Process {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.process
}

// launch starts the daemon in a session of its own: it is to outlive this kerfd, whose tenants outlive it too. One that is killed
// before it has noted the process finds it again by its environment.
func (c *card) launch(control string) (ended chan error, err error) {
	output, err := os.OpenFile(filepath.Join(c.log(), "output.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", controlName, err)
	}
	defer func() { _ = output.Close() }()
	cmd := exec.Command(control, "-f")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if memory := c.place().Memory; memory != "" && c.s.config.Enter != nil {
		words := slices.Concat(c.s.config.Enter, []string{memory}, cmd.Args)
		cmd = exec.Command(words[0], words[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	}
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = c.env(control), output, output, "/"
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w; kerf doctor looks at what it needs", control, err)
	}
	ended = make(chan error, 1)
	process, err := arbiter.FindProcess(cmd.Process.Pid)
	go func() { ended <- cmd.Wait() }() // a child is reaped, whoever watches it
	if err != nil {
		return ended, nil // it has ended already; await says how
	}
	c.adopt(process)
	return ended, nil
}

// adopt notes a daemon that runs, and watches it.
func (c *card) adopt(process arbiter.Process) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.stop != nil {
		c.stop()
	}
	c.process, c.since = process, c.s.config.Now()
	stop, err := process.Watch(func() { c.died(process) })
	if err != nil { // gone, or not to be watched: the sweep looks
		stop = func() {}
	}
	c.stop = stop
}

// await waits until the daemon answers.
func (c *card) await(ctx context.Context, control string, ended <-chan error) error {
	late := time.After(readyWithin)
	for {
		_, err := tell(ctx, control, c.env(control), "get_default_active_thread_percentage")
		if err == nil {
			return nil
		}
		select {
		case end := <-ended:
			return fmt.Errorf("%s ended as soon as it was started (%w): %s", controlName, cmp.Or(end, errors.New("exit status 0")), c.lastWords())
		case <-late:
			return fmt.Errorf("%s does not answer within %s of its start: %w; its log is in %s", controlName, readyWithin, err, c.log())
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w", controlName, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastWords are the end of what the daemon said.
func (c *card) lastWords() string {
	text, _ := os.ReadFile(filepath.Join(c.log(), "output.log"))
	words := strings.Join(strings.Fields(string(text[max(0, len(text)-300):])), " ")
	return cmp.Or(words, "it said nothing; its log is in "+c.log())
}

// limit sets the limits of servers to come, and then those of the ones that there are, so that none slips through.
func (c *card) limit(ctx context.Context, control string, limits Limits) error {
	answer, err := tell(ctx, control, c.env(control), limits.defaults()...)
	if err != nil {
		return err
	}
	if !percentIs(answer, limits.Percent) {
		return fmt.Errorf("%s was told %d%% of the threads and answers %q; nobody is let in without limits", controlName, limits.Percent, strings.Join(answer, " "))
	}
	servers, err := tell(ctx, control, c.env(control), "get_server_list")
	if err != nil {
		return err
	}
	for _, word := range servers {
		server, err := strconv.Atoi(word)
		if err != nil {
			return fmt.Errorf("%s lists servers as %q, which are no pids", controlName, strings.Join(servers, " "))
		}
		if _, err := tell(ctx, control, c.env(control), limits.running(server)...); err != nil {
			return err
		}
	}
	c.limits = limits
	return nil
}

// percentIs: the last word of the answer is the percentage, as 60 or 60.0.
func percentIs(answer []string, want node.Percent) bool {
	if len(answer) == 0 {
		return false
	}
	got, err := strconv.ParseFloat(answer[len(answer)-1], 64)
	return err == nil && got == float64(want)
}

// clear ends all that is left of the daemon.
func (c *card) clear() error {
	c.forget()
	all, err := c.processes()
	if err != nil {
		return err
	}
	return kill(all)
}

// forget ends the watch: what dies from here on was meant to.
func (c *card) forget() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.stop != nil {
		c.stop()
	}
	c.process, c.stop = arbiter.Process{}, nil
}

// end stops the daemon, first by asking, and takes its directory away. Under op.
func (c *card) end() error {
	c.s.mu.Lock()
	c.gone = true
	if c.again != nil {
		c.again.Stop()
	}
	c.s.mu.Unlock()
	if control, err := Find(c.s.config.Root); err == nil && c.running() {
		ctx, cancel := context.WithTimeout(context.Background(), commandWithin)
		process := c.now()
		c.forget()
		_, _ = tell(ctx, control, c.env(control), "quit") // what does not go by itself goes by force
		for range 200 {
			if process.Gone() {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		cancel()
	}
	if err := c.clear(); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

// The delay before a daemon that died is started again.
const (
	delayFirst = 100 * time.Millisecond
	delayMost  = 30 * time.Second
	delayReset = time.Minute // that it must have lived to count as well again
)

// nextDelay doubles, unless the last one lived for long.
func nextDelay(last, lived time.Duration) time.Duration {
	if last == 0 || lived >= delayReset {
		return delayFirst
	}
	return min(2*last, delayMost)
}

// died is the watch's: a daemon has ended that was not to.
func (c *card) died(process arbiter.Process) {
	c.s.mu.Lock()
	if c.process != process || c.gone || c.s.closed {
		c.s.mu.Unlock()
		return
	}
	c.deaths++
	c.process, c.stop = arbiter.Process{}, nil
	c.trouble = fmt.Sprintf("its control daemon (pid %d) has ended, and is started again", process.PID)
	c.retryLater(c.s.config.Now().Sub(c.since))
	delay := c.delay
	c.s.mu.Unlock()
	c.s.config.Notify(Event{GPU: c.gpu, Kind: Died, Message: fmt.Sprintf("the MPS control daemon (pid %d) has ended: the programs of this card's mps shares have lost their contexts "+
		"(CUDA_ERROR_MPS_RPC_FAILURE or another MPS error) and must be started again; a new daemon starts in %s", process.PID, delay)})
}

// retryLater is under Supervisor.mu.
func (c *card) retryLater(lived time.Duration) {
	c.delay = nextDelay(c.delay, lived)
	c.again = time.AfterFunc(c.delay, c.retry)
}

func (c *card) retry() {
	c.op.Lock()
	defer c.op.Unlock()
	c.s.mu.Lock()
	over := c.gone || c.s.closed
	c.s.mu.Unlock()
	if over {
		return
	}
	err := c.ensure(context.Background(), c.limits)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	event := Event{GPU: c.gpu, Kind: Started, Message: fmt.Sprintf("a new MPS control daemon (pid %d) serves the card", c.process.PID)}
	if err != nil {
		c.retryLater(0)
		event = Event{GPU: c.gpu, Kind: Failed, Message: fmt.Sprintf("%v; tried again in %s", err, c.delay)}
	}
	go c.s.config.Notify(event)
}
