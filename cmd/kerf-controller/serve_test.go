package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--version"}, "kerf-controller version"},
		{[]string{"completion", "bash"}, "bash completion"},
		{[]string{"--kubeconfig", "/nonexistent"}, "reach the API server"},
		{[]string{"--listens"}, "unknown flag"},
		{[]string{"now"}, "unknown command"},
	} {
		var out bytes.Buffer
		cmd := command()
		cmd.SetArgs(tt.args)
		cmd.SetOut(&out)
		if err := cmd.ExecuteContext(context.Background()); err != nil {
			out.WriteString(err.Error())
		}
		if !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v: %s", tt.args, out.String())
		}
	}
}

// Background work is done at once, again soon after a failure or a panic, and else at its pace; each new failure is logged once.
func TestRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m, _ := newMetrics(&certificates{})
		ctx, cancel := context.WithCancel(context.Background())
		start := time.Now()
		var at []time.Duration
		err := repeat(time.Minute, "work", m, slog.New(slog.NewTextHandler(&log, nil)), func(context.Context) error {
			at = append(at, time.Since(start))
			switch len(at) {
			case 1, 2:
				return errors.New("away")
			case 3:
				panic("here")
			case 5:
				cancel()
			}
			return nil
		})(ctx)
		if err != nil {
			t.Error(err)
		}
		if at[1] != 5*time.Second || at[2] != 10*time.Second || at[3] != 15*time.Second || at[4] != time.Minute {
			t.Errorf("done at %v", at)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 2 || !strings.Contains(log.String(), "panic: here") {
			t.Errorf("logged:\n%s", log.String())
		}
	})
}

func TestListener(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := listener(&http.Server{Addr: taken.Addr().String()})(context.Background()); err == nil || !strings.Contains(err.Error(), "serve "+taken.Addr().String()) {
		t.Errorf("a taken address: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := listener(&http.Server{Addr: "127.0.0.1:0", Handler: http.NotFoundHandler(), ErrorLog: slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)})(ctx); err != nil {
		t.Errorf("a stop that was asked for: %v", err)
	}
}
