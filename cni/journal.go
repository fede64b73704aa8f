package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-gpu/kerf/cni/link"
	"github.com/kerf-gpu/kerf/internal/durable"
)

// recordVersion is of this format. A record of another is taken as lost.
const recordVersion = 1

// Phase is how far an attachment had come. It is a hint.
type Phase string

// The phases.
const (
	Attaching Phase = "attaching" // some of the changes may have been made
	Attached  Phase = "attached"
	Detaching Phase = "detaching"
	Stranded  Phase = "stranded" // its link is in no namespace that can be found
	Dirty     Phase = "dirty"    // back, its owner gone, but not yet as it was
)

// Record is what the journal keeps of a device from before the first change until it is clean again.
type Record struct {
	Version    int         `json:"version"`
	Device     link.Device `json:"device"` // as it was found
	Spec       Spec        `json:"spec"`
	Netns      Netns       `json:"netns"`
	Baseline   Baseline    `json:"baseline"`
	Phase      Phase       `json:"phase"`
	Since      time.Time   `json:"since"`
	Attachment Attachment  `json:"attachment,omitzero"` // from phase attached on
	Note       string      `json:"note,omitempty"`      // why it is stranded or dirty
}

// Baseline is how a device has to be when nobody has it.
type Baseline struct {
	Name  string   `json:"name"`
	Index int      `json:"index"` // only to know a link without hardware that has no marker yet
	Kind  string   `json:"kind,omitempty"`
	MTU   int      `json:"mtu"` // 0: not known, any
	MAC   string   `json:"mac"` // "": likewise
	Up    bool     `json:"up"`
	Alias string   `json:"alias"`
	VF    *link.VF `json:"vf,omitempty"`
	GUID  bool     `json:"guid,omitempty"` // a GUID was set, and has to be taken away
}

// Journal is the directory of records, /run/kerf/nic: on a tmpfs, since no VF's state outlives a reboot. A record is DEVICE.json, its
// lock DEVICE.lock.
type Journal interface {
	Put(id string, r Record) error
	Get(id string) (Record, error) // errors as durable.GetFile
	Delete(id string) error
	List() ([]string, error) // of devices, damaged ones too
}

// Dir is a journal in a directory.
type Dir string

func (d Dir) path(id string) string { return filepath.Join(string(d), id+".json") }

// Put writes a record.
func (d Dir) Put(id string, r Record) error {
	r.Version = recordVersion
	return durable.PutFile(d.path(id), r)
}

// Get reads one.
func (d Dir) Get(id string) (Record, error) {
	r, err := durable.GetFile[Record](d.path(id))
	if err == nil && r.Version != recordVersion {
		err = fmt.Errorf("record of %s has version %d, this program knows %d: %w", id, r.Version, recordVersion, durable.ErrDamaged)
	}
	return r, err
}

// Delete removes one; it is no error that there is none.
func (d Dir) Delete(id string) error {
	err := os.Remove(d.path(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = os.RemoveAll(d.path(id)) // something that is no file took its place
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// List is the devices that have records.
func (d Dir) List() (ids []string, err error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if id, isRecord := strings.CutSuffix(e.Name(), ".json"); isRecord && !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// errHeld says that another process has the lock.
var errHeld = errors.New("locked by another process")

// lock takes a lock by name, waiting until the context ends or the time is over; 0 does not wait.
func (e *Engine) lock(ctx context.Context, name string, wait time.Duration) (unlock func(), err error) {
	if err = os.MkdirAll(e.Dir, 0o700); err != nil {
		return nil, failf(CodeIO, err, "make the journal's directory")
	}
	path := filepath.Join(e.Dir, name+".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, failf(CodeIO, err, "open a device's lock")
	}
	deadline := time.Now().Add(wait)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(failf(CodeIO, err, "lock %s", path), f.Close())
		case ctx.Err() != nil || !time.Now().Before(deadline):
			_ = f.Close()
			return nil, failf(CodeBusy, errHeld, "%s: another attachment of it is being made or ended, and was not done within %s; try again", name, wait)
		}
		select { // flock has no time limit of its own
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}
