package rig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseDriverVersion(t *testing.T) {
	for text, want := range map[string]string{
		"NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\nGCC version: gcc 12.2.0": "550.163.01",
		"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs)  Tue\n":                   "580.95.05",
		"": "unknown",
		"GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)": "12.2.0", // the first line is taken at its word
	} {
		if got := parseDriverVersion(text); got != want {
			t.Errorf("parseDriverVersion(%q) = %s, want %s", text, got, want)
		}
	}
}

func TestStartFailsCleanly(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	fake := filepath.Join(t.TempDir(), "kerfd")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho no such profile >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{Bin: filepath.Dir(fake), Profile: "none"})
	if err == nil || !strings.Contains(err.Error(), "no such profile") {
		t.Errorf("error %v does not quote kerfd", err)
	}
	left, err := os.ReadDir(temp)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if strings.HasPrefix(entry.Name(), "kerf-rig-") {
			t.Errorf("%s left behind", entry.Name())
		}
	}
}

func TestLogTail(t *testing.T) {
	tail := &logTail{}
	if _, err := tail.Write([]byte(strings.Repeat("x", logTailBytes) + "the end\n")); err != nil {
		t.Fatal(err)
	}
	if got := tail.String(); !strings.HasSuffix(got, "the end") || len(got) > logTailBytes {
		t.Errorf("tail of %d bytes ends %q", len(got), got[len(got)-10:])
	}
}

func TestParseTicks(t *testing.T) {
	got, err := parseTicks([]byte("42 (a ) b) S 1 42 42 0 -1 4194304 1 2 3 4 17 5 6 7 20 0 9 0 100 200"))
	if err != nil || got != 22 {
		t.Errorf("%d ticks (%v), want 22", got, err)
	}
	for _, line := range []string{"", "42 (kerfd) S 1", "42 (kerfd) S 1 42 42 0 -1 4194304 1 2 3 4 x 5 6"} {
		if _, err := parseTicks([]byte(line)); err == nil {
			t.Errorf("'%s' was taken for a process", line)
		}
	}
}
