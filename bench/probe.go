package bench

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
)

// probeProgram is the C program that times driver calls, see bench/probe/overhead.c for the clock's care.
const probeProgram = "overhead-probe"

// samples are times in nanoseconds: per call as the mean of a batch, and of single calls.
type samples struct{ batches, calls []float64 }

type sides struct{ native, sliced samples }

// probe is a running probe: one request line in, one answer line out.
type probe struct {
	card   string
	cmd    *exec.Cmd
	ask    io.WriteCloser
	answer *bufio.Reader
	stderr bytes.Buffer
	once   sync.Once
	ended  error
}

func startProbe(cmd *exec.Cmd) (*probe, error) {
	p := &probe{cmd: cmd}
	cmd.Stderr = &p.stderr
	ask, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answer, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.ask, p.answer = ask, bufio.NewReaderSize(answer, 1<<20)
	card, err := p.line()
	if err != nil {
		return nil, err
	}
	p.card = strings.TrimPrefix(card, "card ")
	return p, nil
}

func (p *probe) line() (string, error) {
	line, err := p.answer.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("ended before its answer: %w", cmp.Or(p.end(), err))
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// end closes the probe's input, which ends it, and says what it complained of.
func (p *probe) end() error {
	p.once.Do(func() {
		if err := errors.Join(p.ask.Close(), p.cmd.Wait()); err != nil {
			p.ended = fmt.Errorf("%w: %s", err, strings.TrimSpace(p.stderr.String()))
		}
	})
	return p.ended
}

// measure has the probe run one round of a metric.
func (p *probe) measure(metric overheadMetric, into *samples) error {
	if _, err := fmt.Fprintf(p.ask, "%s %d %d\n", metric.probe, metric.batches, metric.batch); err != nil {
		return fmt.Errorf("ask probe: %w", err)
	}
	for _, list := range []*[]float64{&into.batches, &into.calls} {
		line, err := p.line()
		if err != nil {
			return err
		}
		if *list, err = appendTimes(*list, line); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the probe; an error of its own is reported where there is none before.
func (p *probe) stop(err *error) {
	if ended := p.end(); *err == nil && ended != nil {
		*err = fmt.Errorf("probe: %w", ended)
	}
}

// runInit runs a probe that prints one line of times and ends.
func runInit(cmd *exec.Cmd) ([]float64, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	line, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return appendTimes(nil, string(line))
}

// appendTimes reads a line of times in nanoseconds.
func appendTimes(times []float64, line string) ([]float64, error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return nil, errors.New("probe answered with no times")
	}
	for _, field := range fields {
		value, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return nil, fmt.Errorf("probe answered '%s' where a time was due", field)
		}
		times = append(times, value)
	}
	return times, nil
}
