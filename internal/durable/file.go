package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ErrDamaged says that a record's checksum does not match, or that it is no record.
var ErrDamaged = errors.New("damaged record")

// PutFile writes one record, in a directory that many processes write to; each guards its records by locks of its own. It does
// not sync: it is for a tmpfs, and for what a crash of the machine makes void anyway.
func PutFile[T any](path string, record T) error {
	body, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("write record %s: %w", path, err)
	}
	if err := Replace(path, encode(body), 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// GetFile reads one record: fs.ErrNotExist where there is none, ErrDamaged for what PutFile did not write.
func GetFile[T any](path string) (record T, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			err = errors.Join(ErrDamaged, err) // a directory, or a disk that is broken
		}
		return record, fmt.Errorf("read record: %w", err)
	}
	body, ok := decode(content)
	if !ok {
		return record, fmt.Errorf("read record %s: %w: checksum differs", path, ErrDamaged)
	}
	if err := json.Unmarshal(body, &record); err != nil {
		return record, fmt.Errorf("read record %s: %w", path, errors.Join(ErrDamaged, err))
	}
	return record, nil
}
