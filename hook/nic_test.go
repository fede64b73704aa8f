package hook

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// state is what a runtime says of this process as a container in a pod.
func state(t *testing.T, dir string) string {
	t.Helper()
	config := `{"ociVersion": "1.0.0", "root": {"path": "rootfs"}, "annotations": {"io.kubernetes.cri.sandbox-uid": "pod-1"}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{"ociVersion": "1.0.0", "id": "x", "status": "created", "pid": os.Getpid(), "bundle": dir})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNIC(t *testing.T) {
	dir, err := os.MkdirTemp("", "kerf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	here, err := Netns(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	attached := func(a Attached) func(string) error { return a.Write }
	nothing := func(string) error { return nil }
	for name, tt := range map[string]struct {
		before func(file string) error // what an earlier kerfd left
		kerfd  func(file string) error // what kerfd does when it is asked; nil: it must not be
		want   string                  // part of the error; "": none
	}{
		"there":                 {before: attached(Attached{here, []string{"lo"}})},
		"nothing yet":           {before: nothing, kerfd: attached(Attached{here, []string{"lo"}})},
		"another namespace":     {before: attached(Attached{here + 1, []string{"lo"}}), kerfd: attached(Attached{here, []string{"lo"}})},
		"an inode used again":   {before: attached(Attached{here, []string{"nic-0"}}), kerfd: attached(Attached{here, []string{"lo"}})},
		"damaged":               {before: func(file string) error { return os.WriteFile(file, []byte(`{"net`), 0o600) }, kerfd: attached(Attached{here, []string{"lo"}})},
		"kerfd refuses":         {before: nothing, kerfd: func(string) error { return errors.New("nic-1 is in pod other") }, want: "the NICs of the claim: kerfd refuses: nic-1 is in pod other (no NIC of the claim is attached to a pod yet)"},
		"kerfd is wrong":        {before: nothing, kerfd: nothing, want: "kerfd says that the NICs of the claim are attached, but no NIC"},
		"kerfd attaches half":   {before: nothing, kerfd: attached(Attached{here, []string{"lo", "nic-1"}}), want: "but interface nic-1 is not in the pod"},
		"kerfd attaches others": {before: nothing, kerfd: attached(Attached{here + 1, []string{"lo"}}), want: "attached to another pod"},
	} {
		t.Run(name, func(t *testing.T) {
			file, socket := filepath.Join(dir, "attached.json"), filepath.Join(dir, "hook.sock")
			_ = os.Remove(file)
			if err := tt.before(file); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			asked := 0
			go func() {
				served <- Serve(ctx, socket, Answers{Attach: func(_ context.Context, ask AttachAsk) error {
					asked++
					if want := (AttachAsk{Claim: "claim-1", PID: os.Getpid(), Netns: here, Pod: "pod-1"}); ask != want {
						t.Errorf("asked %+v, want %+v", ask, want)
					}
					return tt.kerfd(file)
				}})
			}()
			err := Run(NIC{Claim: "claim-1", Attached: file, Kerfd: socket}.Args(), strings.NewReader(state(t, t.TempDir())))
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if (tt.kerfd != nil) != (asked > 0) {
				t.Errorf("kerfd was asked %d times", asked)
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestNICArgs(t *testing.T) {
	for _, args := range [][]string{{Program, NICVerb}, {Program, NICVerb, "--claim=x", "--attached=/a"}, {Program, NICVerb, "--nic=x"}} {
		if err := Run(args, strings.NewReader("")); err == nil || !strings.Contains(err.Error(), "arguments: ") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// A kerfd without NICs says so, and one that is asked for nothing says that too.
func TestAnswers(t *testing.T) {
	answers := Answers{Limit: func(context.Context, Binding) error { return nil }}
	for text, want := range map[string]string{
		`{"attach": {"claim": "x"}}`:    "serves no NICs",
		`{}`:                            "without a binding",
		`{"share": "aaaaaaaaaaaaaaaa"}`: "",
		`[]`:                            "cannot unmarshal",
	} {
		err := answers.to(t.Context(), []byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
