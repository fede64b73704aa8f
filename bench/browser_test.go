package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// browser is a real headless browser, spoken to over its debugging pipe. Skips where there is none.
type browser struct {
	t       *testing.T
	to      io.Writer
	answers *bufio.Reader
	session string
	last    int
	events  []browserMessage
}

type browserMessage struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

var browsers = []string{"chromium", "chromium-browser", "google-chrome", "chrome"}

func startBrowser(t *testing.T) *browser {
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
	b := &browser{t: t, to: ask, answers: bufio.NewReader(answer)}
	t.Cleanup(func() {
		b.call("Browser.close", nil, nil) // its children go with it, and let go of their directory
		_ = cmd.Wait()
		late.Stop()
		_, _ = ask.Close(), answer.Close()
	})
	var target struct {
		TargetID string `json:"targetId"`
	}
	b.call("Target.createTarget", map[string]string{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.call("Target.attachToTarget", struct {
		TargetID string `json:"targetId"`
		Flatten  bool   `json:"flatten"`
	}{target.TargetID, true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Network", "Log", "Runtime"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

func (b *browser) call(method string, params, result any) {
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
			b.events = append(b.events, answer)
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

func (b *browser) read() (message browserMessage) {
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

// open shows a page, and returns when it has been loaded.
func (b *browser) open(path string) {
	b.t.Helper()
	b.events = nil
	b.call("Page.navigate", map[string]string{"url": "file://" + path}, nil)
	for !b.saw("Page.loadEventFired") {
		b.events = append(b.events, b.read())
	}
}

func (b *browser) saw(method string) bool {
	for _, event := range b.events {
		if event.Method == method {
			return true
		}
	}
	return false
}

// eval is the value of an expression in the page.
func eval[T any](b *browser, expression string) (value T) {
	b.t.Helper()
	var got struct {
		Result struct {
			Value T `json:"value"`
		} `json:"result"`
		ExceptionDetails *struct {
			Text string `json:"text"`
		} `json:"exceptionDetails"`
	}
	b.call("Runtime.evaluate", struct {
		Expression    string `json:"expression"`
		ReturnByValue bool   `json:"returnByValue"`
	}{expression, true}, &got)
	if got.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, got.ExceptionDetails.Text)
	}
	return got.Result.Value
}

func (b *browser) press(key string, code int) {
	b.t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", struct {
			Type                  string `json:"type"`
			Key                   string `json:"key"`
			Code                  string `json:"code"`
			WindowsVirtualKeyCode int    `json:"windowsVirtualKeyCode"`
		}{kind, key, key, code}, nil)
	}
}

func (b *browser) prefer(scheme string) {
	b.t.Helper()
	type feature struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	b.call("Emulation.setEmulatedMedia", map[string][]feature{"features": {{"prefers-color-scheme", scheme}}}, nil)
}

func (b *browser) width(pixels int) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", struct {
		Width             int  `json:"width"`
		Height            int  `json:"height"`
		DeviceScaleFactor int  `json:"deviceScaleFactor"`
		Mobile            bool `json:"mobile"`
	}{pixels, 800, 1, false}, nil)
}

// colour is the red, green and blue of a computed style's "rgb(1, 2, 3)".
func colour(t *testing.T, text string) (rgb [3]float64) {
	t.Helper()
	if _, err := fmt.Sscanf(text, "rgb(%f, %f, %f)", &rgb[0], &rgb[1], &rgb[2]); err != nil {
		t.Fatalf("colour '%s': %v", text, err)
	}
	return rgb
}
