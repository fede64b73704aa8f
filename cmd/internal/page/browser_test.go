package page

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kerf-gpu/kerf/internal/browser"
)

// shown is a page in a browser, whose state the test sets.
type shown struct {
	*browser.Browser
	t     *testing.T
	state atomic.Pointer[State]
	url   string
}

func show(t *testing.T, s State) *shown {
	t.Helper()
	p := &shown{Browser: browser.Start(t), t: t}
	p.state.Store(&s)
	server := httptest.NewServer(New(func(context.Context) State { return *p.state.Load() }, 50*time.Millisecond))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	p.url = server.URL + "/"
	p.Width(1200)
	p.Open(p.url)
	return p
}

// await waits until an expression is true in the page; the browser's own time bounds it.
func (p *shown) await(expression string) {
	p.t.Helper()
	for !browser.Eval[bool](p.Browser, expression) {
	}
}

// quiet fails where the page complained, or asked anybody but its own server.
func (p *shown) quiet() {
	p.t.Helper()
	for _, e := range p.Events {
		text := string(e.Params)
		switch {
		case e.Method == "Log.entryAdded", e.Method == "Runtime.exceptionThrown", e.Method == "Runtime.consoleAPICalled":
			p.t.Errorf("the page complains: %s", text)
		case e.Method == "Network.requestWillBeSent" && !strings.Contains(text, `"url":"`+p.url) && !strings.Contains(text, `"url":"data:`):
			p.t.Errorf("a request to somebody else: %s", text)
		}
	}
}

// picture writes a screenshot where KERF_PICTURES says, for people to look at.
func (p *shown) picture(name string) {
	p.t.Helper()
	dir := os.Getenv("KERF_PICTURES")
	if dir == "" {
		return
	}
	var shot struct {
		Data string `json:"data"`
	}
	p.Call("Page.captureScreenshot", map[string]bool{"captureBeyondViewport": true}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600)
	}
	if err != nil {
		p.t.Error(err)
	}
}

func TestPage(t *testing.T) {
	p := show(t, sample())
	p.await("document.querySelectorAll('article').length === 8")
	for expression, want := range map[string]string{
		"document.title": "Kerf on n1",
		"String(document.getElementById('mark').checkVisibility())":                    "true",
		"document.querySelector('#gpu-1 li strong').textContent":                       hostile,
		"String(document.images.length)":                                               "0",
		"String(document.querySelectorAll('#topo ~ .scroll line').length)":             "8",
		"String(document.querySelectorAll('#t-faults tbody tr').length)":               "1",
		"document.querySelector('#t-faults tbody tr td:nth-child(4)').textContent":     "a reset of the GPU",
		"document.querySelector('#t-datasets tbody td:nth-child(3)').textContent":      " 3.0 GiB of 10.0 GiB",
		"document.querySelector('#gpu-3 .map').getAttribute('aria-label').slice(0,43)": "memory of GPU 3: 120 GiB of 140 GiB granted",
	} {
		if got := browser.Eval[string](p.Browser, expression); got != want {
			t.Errorf("%s is %q, want %q", expression, got, want)
		}
	}
	for _, scheme := range []string{"light", "dark"} {
		p.Prefer(scheme)
		if low := browser.Eval[string](p.Browser, contrast); low != "" {
			t.Errorf("%s: too little contrast: %s", scheme, low)
		}
		p.picture(scheme)
	}
	for _, width := range []int{400, 320} {
		p.Width(width)
		if over := browser.Eval[int](p.Browser, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); over > 0 {
			t.Errorf("at %d pixels the page is %d too wide", width, over)
		}
		p.picture(fmt.Sprint("narrow-", width))
	}
	p.quiet()
}

// contrast names the texts that WCAG AA asks more of than 4.5 of.
const contrast = `(() => {
const rgb = c => c.match(/[\d.]+/g).map(Number);
const light = c => { const [r,g,b] = rgb(c).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4); return .2126*r+.7152*g+.0722*b; };
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] !== 0) return c; } return 'rgb(255,255,255)'; };
const low = new Set();
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || ['SCRIPT','STYLE','NOSCRIPT'].includes(e.tagName) || e.closest('noscript')) continue;
  const style = getComputedStyle(e);
  const svg = e instanceof SVGElement;
  const a = light(svg ? style.fill : style.color), b = light(svg ? getComputedStyle(document.querySelector('svg rect')).fill : behind(e));
  if ((Math.max(a,b)+.05)/(Math.min(a,b)+.05) < 4.5) low.add(e.tagName + '.' + e.className + ' ' + e.textContent.slice(0,30));
}
return [...low].join('; ');
})()`

// TestLive: a new state shows without a load, a fault is told aloud, and who is in the page by keyboard stays where he is.
func TestLive(t *testing.T) {
	s := sample()
	s.Faults = []Fault{}
	p := show(t, s)
	p.await("document.querySelectorAll('article').length === 8")
	browser.Eval[bool](p.Browser, "window.same = true, document.getElementById('gpu-5').focus(), true")
	p.state.Store(new(sample()))
	p.await("document.getElementById('live').textContent === 'Faults: GPU 3 reset'")
	if !browser.Eval[bool](p.Browser, "window.same && document.activeElement.id === 'gpu-5'") {
		t.Error("the page was loaded again, or took the focus away")
	}
	gone := sample()
	first := browser.Eval[string](p.Browser, "document.querySelector('#gpu-7 li:nth-child(2) .key').className")
	gone.GPUs[7].Tenants = gone.GPUs[7].Tenants[1:]
	p.state.Store(&gone)
	p.await("document.querySelectorAll('#gpu-7 li').length === 2")
	if now := browser.Eval[string](p.Browser, "document.querySelector('#gpu-7 li:nth-child(1) .key').className"); now != first {
		t.Errorf("a tenant's pattern changes from %s to %s as another goes", first, now)
	}
	empty := State{Schema: Schema, Node: "n2", GPUs: []GPU{}, NICs: []NIC{}, Links: []Link{}, Faults: []Fault{}, Sources: []Source{}}
	p.state.Store(&empty)
	p.await("document.body.textContent.includes('this node has no GPU')")
	p.await("document.getElementById('live').textContent === 'No faults any more'")
	if browser.Eval[bool](p.Browser, "document.getElementById('mark').checkVisibility()") {
		t.Error("a node that is not simulated says that it is")
	}
	p.picture("empty")
	p.quiet()
}

func TestKeyboard(t *testing.T) {
	p := show(t, sample())
	p.await("document.querySelectorAll('article').length === 8")
	wanted := browser.Eval[int](p.Browser, "document.querySelectorAll('a.skip, [tabindex=\"0\"]').length")
	places := make(map[string]bool)
	for i := range wanted {
		p.Press("Tab", 9)
		at := browser.Eval[string](p.Browser, "document.activeElement.id || document.activeElement.className")
		if i == 0 && at != "skip" {
			t.Errorf("the first place is %s, not the skip link", at)
		}
		if browser.Eval[string](p.Browser, "getComputedStyle(document.activeElement).outlineStyle") == "none" {
			t.Errorf("place %s does not show that it has the focus", at)
		}
		places[at] = true
	}
	if len(places) != wanted {
		t.Errorf("Tab reaches %d of %d places: %v", len(places), wanted, places)
	}
}

func TestNoScript(t *testing.T) {
	b := browser.Start(t)
	server := httptest.NewServer(New(func(context.Context) State { return sample() }, time.Second))
	defer server.Close()
	b.Call("Emulation.setScriptExecutionDisabled", map[string]bool{"value": true}, nil)
	p := &shown{Browser: b, t: t, url: server.URL + "/"}
	p.Width(400)
	p.Open(p.url)
	if !browser.Eval[bool](b, "document.querySelector('noscript').innerText.includes('/v1/node.json')") {
		t.Error("without scripts nothing says where the state is")
	}
	p.picture("noscript")
	if r, err := http.Get(server.URL + StatePath); err != nil || r.Body.Close() != nil || r.StatusCode != http.StatusOK {
		t.Errorf("%s: %v, %v", StatePath, r, err)
	}
}
