package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kerf-gpu/kerf/bench/rig"
	"github.com/kerf-gpu/kerf/internal/sim"
)

// knownWithin is how soon a fault that the driver tells of is a device's state on its node.
const knownWithin = 50 * millisecond

// The rows of fault. The baseline is the injection alone: until the simulated driver's line is in the kernel log and its event is raised.
var (
	faultKnownRow = Row{"KF-1300", "Xid 79 injected: until kerfd says that the card is unhealthy; baseline: the injection alone", "ns", Absolute, nil, bound(knownWithin)}
	faultClearRow = Row{"KF-1301", "  until kerf release has given it back; baseline: the same", "ns", Absolute, nil, nil}
)

func faultRows() []Row { return []Row{faultKnownRow, faultClearRow} }

// faultLate is a fault that was missed.
const faultLate = 5 * time.Second

// runFault breaks one simulated card after the other, and asks kerfd how they are.
func runFault(ctx context.Context, on *rig.Rig, options Options) ([]Result, string, error) {
	bed, err := openBed(on, "fault")
	if err != nil {
		return nil, "", err
	}
	defer bed.close()
	rounds := 200
	if options.Quick {
		rounds = 10
	}
	cards := len(bed.node.Status().GPUs)
	for gpu := range cards { // each has been read once
		if err := bed.awaitHealth(ctx, gpu, "healthy"); err != nil {
			return nil, "", err
		}
	}
	var known, cleared, injected []float64
	for i := range rounds {
		if i%50 == 0 {
			options.progress("fault: %d of %d", i+1, rounds)
		}
		gpu := i % cards
		began := time.Now()
		if err := bed.node.Inject(gpu, sim.Injection{Kind: "xid", Value: 79}); err != nil {
			return nil, "", err
		}
		injected = append(injected, float64(time.Since(began)))
		if err := bed.awaitHealth(ctx, gpu, "unhealthy"); err != nil {
			return nil, "", err
		}
		known = append(known, float64(time.Since(began)))
		took, err := bed.mend(ctx, gpu)
		if err != nil {
			return nil, "", err
		}
		cleared = append(cleared, took)
	}
	results, err := resultsOf([]taken{{faultKnownRow, known, injected}, {faultClearRow, cleared, injected}})
	return results, bed.card(), err
}

// mend takes a fault out of a card, and has kerfd take somebody's word that it is well.
func (b *bed) mend(ctx context.Context, gpu int) (took float64, err error) {
	if err := b.node.Inject(gpu, sim.Injection{Kind: "clear"}); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := b.on.Release(ctx, b.node.Status().GPUs[gpu].UUID.String(), "kerf bench run fault"); err != nil {
		return 0, err
	}
	return float64(time.Since(began)), b.awaitHealth(ctx, gpu, "healthy")
}

// awaitHealth asks kerfd until a card is so.
func (b *bed) awaitHealth(ctx context.Context, gpu int, want string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, faultLate, errors.New("it is late"))
	defer cancel()
	for {
		h, err := b.on.Health(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("simulated GPU %d is not %s after %s", gpu, want, faultLate)
		case err != nil:
			return err
		case gpu >= len(h.Devices):
			return fmt.Errorf("kerfd watches %d devices, and GPU %d is not among them", len(h.Devices), gpu)
		case h.Devices[gpu].Health == want:
			return nil
		}
	}
}
