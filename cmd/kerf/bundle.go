package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kerf-gpu/kerf/monitor/doctor"
)

// writeBundle writes what whoever looks into a fault needs: the report, what the monitor and kerfd know, what the kernel said of GPUs.
// Commands and names of processes are left out: they are tenants', and may carry secrets.
func writeBundle(ctx context.Context, path string, r doctor.Report, o *options) error {
	files := []struct {
		name  string
		value any
	}{{"report.json", r}}
	add := func(name string, value any, err error) {
		if err != nil {
			value = map[string]string{"error": err.Error()}
		}
		files = append(files, struct {
			name  string
			value any
		}{name, value})
	}
	health, err := o.client().Health(ctx)
	add("health.json", health, err)
	n, err := o.client().Node(ctx)
	add("node.json", n, err)
	state, err := o.client().State(ctx)
	add("gpus.json", state.GPUs, err) // not the shares: they name commands and pods
	log, err := kernelLines(filepath.Join("/", "dev/kmsg"))
	if n.Simulated {
		log, err = kernelLines(filepath.Join(n.Root, "dev/kmsg"))
	}
	if err != nil {
		log = []byte(err.Error() + "\n")
	}

	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write bundle: %w; name a file in a directory that you may write to", err)
	}
	zipped := gzip.NewWriter(f)
	archive := tar.NewWriter(zipped)
	errs := []error{put(archive, "kernel.log", doctor.Redact(log))}
	for _, file := range files {
		text, err := json.MarshalIndent(file.value, "", "  ")
		errs = append(errs, err, put(archive, file.name, doctor.Redact(text)))
	}
	if err := errors.Join(append(errs, archive.Close(), zipped.Close(), f.Close())...); err != nil {
		return fmt.Errorf("write bundle %s: %w", path, err)
	}
	return nil
}

func put(archive *tar.Writer, name string, content []byte) error {
	header := &tar.Header{Name: "kerf-bundle/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: time.Now()}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

// kernelLines is what the kernel log has about GPUs, switches and PCIe errors now.
func kernelLines(path string) (lines []byte, err error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("kernel log %s: %w", path, err)
	}
	defer func() { _ = syscall.Close(fd) }() // it was only read
	buf := make([]byte, 16<<10)
	var all bytes.Buffer
	for range 1 << 20 { // records; the ring holds fewer
		n, err := syscall.Read(fd, buf)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.EINTR) {
			continue
		}
		if n <= 0 || errors.Is(err, io.EOF) || err != nil {
			break
		}
		all.Write(buf[:n])
	}
	for line := range strings.Lines(all.String()) {
		for _, word := range []string{"NVRM", "nvidia", "SXid", "AER", "pcieport", "mce:"} {
			if strings.Contains(line, word) {
				lines = append(lines, line...)
				break
			}
		}
	}
	return lines, nil
}
