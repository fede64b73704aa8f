// Package durable keeps records on disk that are whole or absent, whatever dies in between.
//
// A store is a directory; a record is one file in it, <key>.json, of one line of JSON and one line with the checksum of
// that line. Put writes a temporary file, syncs it, renames it over the record and syncs the directory: a reader sees
// the old record or the new one. An action on the world is preceded by a record that says what is intended, so
// that whoever starts next can finish or undo it: package durable gives the record, the caller the intent.
//
// A record that does not match its checksum is set aside as <key>.json.corrupt and named in Load's answer: one damaged
// file must neither stop a daemon nor be silently forgotten.
//
// Replace is the lesser thing, for files that need not outlive a crash of the machine.
package durable

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Store is a directory of records of type T. One process at a time owns it.
type Store[T any] struct {
	dir  string
	lock *os.File
}

// ErrLocked says that another process owns the store.
var ErrLocked = errors.New("another process owns it")

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// Open makes the directory if needed, and takes its lock, which the kernel gives back when the process dies.
func Open[T any](dir string) (*Store[T], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return &Store[T]{dir: dir, lock: lock}, nil
}

// Close gives the lock back.
func (s *Store[T]) Close() error { return s.lock.Close() }

// Put writes a record. When it returns nil, the record survives a crash of the machine.
func (s *Store[T]) Put(key string, record T) error {
	if err := s.put(key, record); err != nil {
		return fmt.Errorf("write record %s: %w", key, err)
	}
	return nil
}

func (s *Store[T]) put(key string, record T) error {
	if !keyPattern.MatchString(key) { // a key becomes a file name
		return fmt.Errorf("key %q: not a name of letters, digits, '.', '_' and '-'", key)
	}
	body, err := json.Marshal(record)
	if err != nil {
		return err
	}
	temp := filepath.Join(s.dir, "."+key+".new")
	if err := WriteSynced(temp, encode(body), 0o600); err != nil {
		_ = os.Remove(temp)
		return err
	}
	if err := os.Rename(temp, s.path(key)); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return SyncDir(s.dir)
}

// Delete removes a record; it is no error that there is none.
func (s *Store[T]) Delete(key string) error {
	err := os.Remove(s.path(key))
	if err == nil {
		err = SyncDir(s.dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete record %s: %w", key, err)
	}
	return nil
}

// Load reads all records by key. Corrupt ones are set aside, and their file names returned.
func (s *Store[T]) Load() (records map[string]T, corrupt []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read store: %w", err)
	}
	records = make(map[string]T)
	for _, entry := range entries {
		name := entry.Name()
		key, isRecord := strings.CutSuffix(name, ".json")
		switch {
		case strings.HasSuffix(name, ".new"): // a write that was cut off before its rename never happened
			_ = os.Remove(filepath.Join(s.dir, name))
		case isRecord && keyPattern.MatchString(key):
			record, err := s.read(key)
			if err != nil {
				aside := s.path(key) + ".corrupt"
				_ = os.Rename(s.path(key), aside)
				corrupt = append(corrupt, aside)
				continue
			}
			records[key] = record
		}
	}
	return records, corrupt, nil
}

func (s *Store[T]) read(key string) (record T, err error) {
	content, err := os.ReadFile(s.path(key))
	if err != nil {
		return record, err
	}
	body, ok := decode(content)
	if !ok {
		return record, errors.New("checksum differs")
	}
	return record, json.Unmarshal(body, &record)
}

func (s *Store[T]) path(key string) string { return filepath.Join(s.dir, key+".json") }

func encode(body []byte) []byte {
	sum := sha256.Sum256(body)
	return append(append(body, '\n'), hex.EncodeToString(sum[:])+"\n"...)
}

func decode(content []byte) (body []byte, ok bool) {
	body, rest, found := bytes.Cut(content, []byte("\n"))
	sum := sha256.Sum256(body)
	return body, found && string(rest) == hex.EncodeToString(sum[:])+"\n"
}

// WriteSynced writes a file whose bytes survive a crash of the machine once it returns nil; for its name to, SyncDir. What it had before is lost.
func WriteSynced(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncDir makes what was created, renamed and removed in a directory survive a crash of the machine.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
