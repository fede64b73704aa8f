package nvml

import (
	"errors"
	"fmt"
	"time"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-gpu/kerf/internal/node"
)

// EventKind is what happened to a GPU.
type EventKind uint64

// The kinds that Watch asks for; NVML's bits.
const (
	EventXid            EventKind = 0x8
	EventDoubleBit      EventKind = 0x2
	EventUnavailable    EventKind = 0x4000
	EventRecoveryAction EventKind = 0x8000 // from R565 on
)

const watched = uint64(EventXid | EventDoubleBit | EventUnavailable | EventRecoveryAction)

// WholeGPU is the instance of an Event that is about no MIG instance.
const WholeGPU = 0xffffffff

// Event is one thing that the driver reported. Events from before Watch are not
// seen: read the state (node.Fault, the kernel log) after the Watch, and then
// wait.
type Event struct {
	GPU             node.UUID // zero where the GPU can no longer be asked
	Kind            EventKind
	Data            uint64 // the Xid of an EventXid; 999 is one that NVML does not know
	GPUInstance     uint32 // WholeGPU unless in MIG mode
	ComputeInstance uint32
}

// Watcher receives events. Wait is called from one goroutine.
type Watcher struct {
	set   gonvml.EventSet
	uuids map[gonvml.Device]node.UUID
}

// Watch registers for the events of all GPUs. A GPU that is lost already is
// left out.
func (l *Library) Watch() (*Watcher, error) {
	set, ret := l.api.EventSetCreate()
	if err := check(ret, "create event set"); err != nil {
		return nil, err
	}
	w := &Watcher{set: set, uuids: map[gonvml.Device]node.UUID{}}
	if err := l.register(w); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (l *Library) register(w *Watcher) error {
	count, ret := l.api.DeviceGetCount()
	if err := check(ret, "count GPUs"); err != nil {
		return err
	}
	for i := range count {
		dev, ret := l.api.DeviceGetHandleByIndex(i)
		if ret == gonvml.ERROR_GPU_IS_LOST {
			continue
		}
		if err := check(ret, "read handle of GPU %d", i); err != nil {
			return err
		}
		types, ret := dev.GetSupportedEventTypes()
		if ret == gonvml.ERROR_NOT_SUPPORTED {
			continue
		}
		if err := check(ret, "read event types of GPU %d", i); err != nil {
			return err
		}
		// An unsupported bit makes NVML refuse all of them.
		if err := check(dev.RegisterEvents(types&watched, w.set), "register events of GPU %d", i); err != nil {
			return err
		}
		uuid, ret := dev.GetUUID()
		if err := check(ret, "read UUID of GPU %d", i); err != nil {
			return err
		}
		u, err := node.ParseUUID(uuid)
		if err != nil {
			return fmt.Errorf("read UUID of GPU %d: %w", i, err)
		}
		w.uuids[dev] = u
	}
	return nil
}

// Wait returns the next event; ok is false where none came within the timeout.
func (w *Watcher) Wait(timeout time.Duration) (e Event, ok bool, err error) {
	data, ret := w.set.Wait(uint32(timeout.Milliseconds()))
	if ret == gonvml.ERROR_TIMEOUT {
		return Event{}, false, nil
	}
	if err := check(ret, "wait for events"); err != nil {
		return Event{}, false, err
	}
	return Event{
		GPU: w.uuids[data.Device], Kind: EventKind(data.EventType), Data: data.EventData,
		GPUInstance: data.GpuInstanceId, ComputeInstance: data.ComputeInstanceId,
	}, true, nil
}

// Close ends the watch. No Wait may be under way.
func (w *Watcher) Close() error { return check(w.set.Free(), "free event set") }
