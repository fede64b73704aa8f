// Package browser is a real headless browser for tests of pages. It skips a test where there is none; see Start.
package browser

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Browser is a real headless browser, spoken to over its debugging pipe. Skips where there is none.
type Browser struct {
	t       *testing.T
	to      io.Writer
	answers *bufio.Reader
	session string
	last    int
	Events  []Message // since the last page was opened
}

// Message is an event of the browser, or an answer.
type Message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

var browsers = []string{"chromium", "chromium-browser", "google-chrome", "chrome"}

// Start starts one, which ends with the test.
func Start(t *testing.T) *Browser {
	t.Helper()
	var path string
	for _, name := range browsers {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skipf("no browser: none of %s is in PATH; install chromium to test the page in one", strings.Join(browsers, ", "))
	}
	asked, ask, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answer, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// --no-sandbox: tests run as root in containers, where Chromium's sandbox cannot; the page is our own.
	cmd := exec.Command(path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{asked, answers} // descriptors 3 and 4 there
	if err := cmd.Start(); err != nil {
		t.Skipf("%s does not start: %v", path, err)
	}
	_, _ = asked.Close(), answers.Close()
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() }) // a browser that hangs fails its own test only
	b := &Browser{t: t, to: ask, answers: bufio.NewReader(answer)}
	t.Cleanup(func() {
		b.Call("Browser.close", nil, nil) // its children go with it, and let go of their directory
		_ = cmd.Wait()
		late.Stop()
		_, _ = ask.Close(), answer.Close()
	})
	var target struct {
		TargetID string `json:"targetId"`
	}
	b.Call("Target.createTarget", map[string]string{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.Call("Target.attachToTarget", struct {
		TargetID string `json:"targetId"`
		Flatten  bool   `json:"flatten"`
	}{target.TargetID, true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Network", "Log", "Runtime"} {
		b.Call(domain+".enable", nil, nil)
	}
	return b
}

// Call calls a method of the debugging protocol; nil for no parameters, or no interest in the result.
func (b *Browser) Call(method string, params, result any) {
	b.t.Helper()
	b.last++
	message := struct {
		ID        int    `json:"id"`
		SessionID string `json:"sessionId,omitempty"`
		Method    string `json:"method"`
		Params    any    `json:"params,omitempty"`
	}{b.last, b.session, method, params}
	if method == "Browser.close" {
		message.SessionID = ""
	}
	text, err := json.Marshal(message)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		answer := b.read()
		if answer.ID != b.last {
			b.Events = append(b.Events, answer)
			continue
		}
		if answer.Error != nil {
			b.t.Fatalf("%s: %s", method, answer.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(answer.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
		return
	}
}

func (b *Browser) read() (message Message) {
	b.t.Helper()
	text, err := b.answers.ReadBytes(0)
	if err != nil {
		b.t.Fatalf("the browser ended: %v", err)
	}
	if err := json.Unmarshal(text[:len(text)-1], &message); err != nil {
		b.t.Fatal(err)
	}
	return message
}

// Open shows a page, and returns when it has been loaded.
func (b *Browser) Open(url string) {
	b.t.Helper()
	b.Events = nil
	b.Call("Page.navigate", map[string]string{"url": url}, nil)
	for !b.Saw("Page.loadEventFired") {
		b.Events = append(b.Events, b.read())
	}
}

// Saw reports whether an event of that method came.
func (b *Browser) Saw(method string) bool {
	for _, event := range b.Events {
		if event.Method == method {
			return true
		}
	}
	return false
}

// Eval is the value of an expression in the page.
func Eval[T any](b *Browser, expression string) (value T) {
	b.t.Helper()
	var got struct {
		Result struct {
			Value T `json:"value"`
		} `json:"result"`
		ExceptionDetails *struct {
			Text string `json:"text"`
		} `json:"exceptionDetails"`
	}
	b.Call("Runtime.evaluate", struct {
		Expression    string `json:"expression"`
		ReturnByValue bool   `json:"returnByValue"`
	}{expression, true}, &got)
	if got.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, got.ExceptionDetails.Text)
	}
	return got.Result.Value
}

// Press presses a key by its name and its Windows code.
func (b *Browser) Press(key string, code int) {
	b.t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		b.Call("Input.dispatchKeyEvent", struct {
			Type                  string `json:"type"`
			Key                   string `json:"key"`
			Code                  string `json:"code"`
			WindowsVirtualKeyCode int    `json:"windowsVirtualKeyCode"`
		}{kind, key, key, code}, nil)
	}
}

// Prefer sets the colour scheme, light or dark.
func (b *Browser) Prefer(scheme string) {
	b.t.Helper()
	type feature struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	b.Call("Emulation.setEmulatedMedia", map[string][]feature{"features": {{"prefers-color-scheme", scheme}}}, nil)
}

// Width sets the width of the window; it is 800 high.
func (b *Browser) Width(pixels int) {
	b.t.Helper()
	b.Call("Emulation.setDeviceMetricsOverride", struct {
		Width             int  `json:"width"`
		Height            int  `json:"height"`
		DeviceScaleFactor int  `json:"deviceScaleFactor"`
		Mobile            bool `json:"mobile"`
	}{pixels, 800, 1, false}, nil)
}
