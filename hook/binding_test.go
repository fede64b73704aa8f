package hook

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestBindings(t *testing.T) {
	pages := filepath.Join(t.TempDir(), "share", "s")
	if err := os.MkdirAll(pages, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Bindings(pages); err != nil || got != nil {
		t.Error("of a share without containers: ", got, err)
	}
	c := &container{
		state: specs.State{ID: "c1", Pid: os.Getpid()},
		spec: &specs.Spec{Annotations: map[string]string{ // CRI-O's
			"io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.name": "pod", "io.kubernetes.pod.uid": "uid", "io.kubernetes.container.name": "main",
		}},
	}
	want := bindingOf(c, "aaaaaaaaaaaaaaaa", time.Unix(1, 0))
	if want.Start == 0 || want.Namespace != "ns" || want.Pod != "pod" || want.PodUID != "uid" || want.Container != "main" {
		t.Errorf("%+v", want)
	}
	for range 2 { // a hook that is run again
		if err := want.write(pages); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"c2.json": "{", "c3.json": `{"id":"another"}`, ".c4.1": "{}", "c5.txt": "{}"} {
		writeFile(t, filepath.Join(bindingsDir(pages), name), text)
	}
	got, err := Bindings(pages)
	if diff := cmp.Diff([]Binding{want}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for range 2 {
		if err := Unbind(pages, "c1"); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", "../x", ".", ".hidden"} {
		if err := (Binding{ID: id}).write(pages); err == nil {
			t.Errorf("%q: written", id)
		}
	}
	if err := want.write(filepath.Join(t.TempDir(), "gone", "s")); err == nil || !strings.Contains(err.Error(), "is the claim still prepared") {
		t.Error(err)
	}
}

func TestNative(t *testing.T) {
	dir, err := os.MkdirTemp("", "kerf") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "hook.sock")
	b := Binding{Share: "aaaaaaaaaaaaaaaa", ID: "c1", Cgroup: "/kubepods/x"}
	if err := ask(socket, b, 0); err == nil || !strings.Contains(err.Error(), "is kerfd running on this node?") {
		t.Errorf("without kerfd: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var mu sync.Mutex
	var asked []Binding
	limit := func(_ context.Context, b Binding) error {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, b)
		if b.ID == "refused" {
			return errors.New("the driver is older than R615")
		}
		return nil
	}
	go func() { done <- Serve(ctx, socket, Answers{Limit: limit}) }()
	if err := ask(socket, b, askWithin); err != nil { // Serve may be later than this: asked again
		t.Error(err)
	}
	if err := ask(socket, Binding{ID: "refused"}, askWithin); err == nil || !strings.Contains(err.Error(), "older than R615") {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]Binding{b, {ID: "refused"}}, asked); diff != "" {
		t.Error(diff)
	}
}

func TestRunErrors(t *testing.T) {
	share := strings.Join(simulatedShare("aaaaaaaaaaaaaaaa").Args(CreateRuntimeVerb), " ")
	bundle := func(config string) string {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), config)
		return `{"ociVersion":"1.0.2","id":"c1","pid":1,"bundle":"` + dir + `"}`
	}
	for _, tt := range []struct{ name, args, state, want string }{
		{"by hand", Program, "", "a container runtime calls this"},
		{"no state", share, "", "read the container's state from stdin"},
		{"no bundle", share, "{}", "names no bundle"},
		{"bundle gone", share, `{"bundle":"/nowhere"}`, "/nowhere/config.json: no such file"},
		{"damaged configuration", share, bundle("{"), "read the container's configuration"},
		{"no root", share, bundle("{}"), "names no root"},
		{"hooks hidden", share, bundle(`{"root":{"path":"rootfs"}}`), "does not name share aaaaaaaaaaaaaaaa"},
		{"unknown subcommand", strings.Replace(share, CreateRuntimeVerb, "start", 1), bundle(`{"root":{"path":"rootfs"}}`), "start: unknown subcommand"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Run(strings.Fields(tt.args), strings.NewReader(tt.state))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// A configuration may be anything that is JSON.
func FuzzVerify(f *testing.F) {
	for _, share := range []Share{simulatedShare("aaaaaaaaaaaaaaaa"), realShare("aaaaaaaaaaaaaaaa", "/dev/nvidia0"), adminShare()} {
		text, err := json.Marshal(specOf(share))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"hooks":{"createRuntime":[{"path":"/x","args":["kerf-hook","create-runtime","--share"]}]}}`))
	f.Fuzz(func(_ *testing.T, text []byte) {
		var spec specs.Spec
		if json.Unmarshal(text, &spec) != nil {
			return
		}
		shares, err := Shares(&spec)
		if err != nil {
			return
		}
		_ = Verify(&spec, append(shares, realShare("aaaaaaaaaaaaaaaa", "/dev/nvidia0")))
	})
}
