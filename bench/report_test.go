package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kerf-gpu/kerf/internal/browser"
)

// everything is a report with each kind of plot.
func everything() Report {
	report := sample()
	more := []Result{
		{Scenario: "shares", ID: "KF-120", Name: "2 equal: share error over all", Unit: "%", Basis: Absolute, Value: 0.3, P99: 0.3, Target: bound(1), N: 1,
			Shares: []Share{{"1: short", 50, 49.7}, {"2: long", 50, 50.3}}},
		{Scenario: "crash", ID: "KF-700", Name: "gap", Unit: "ns", Basis: Absolute, Value: 4e6, P99: 7e6, Target: bound(5e7), TargetP99: bound(5e7), N: 20,
			Spread: []float64{1e6, 3e6, 4e6, 5e6, 6e6, 7e6}, Baseline: 3e6, BaselineP99: 5e6, BaselineSpread: []float64{1e6, 2e6, 3e6, 4e6, 4e6, 5e6}},
		{Scenario: "memory", ID: "KF-410", Name: "bytes over", Unit: "B", Basis: Absolute, Value: 0, Target: bound(0), N: 4},
		{Scenario: "kubernetes-scale", ID: "KF-310", Name: "pods scheduled a second", Unit: "pods/s", Basis: Absolute, Value: 15, P99: 15, Baseline: 98,
			BaselineP99: 98, N: 100, MoreIsBetter: true},
	}
	for _, one := range more {
		one.Simulated = true
		one.Judge()
		report.Results = append(report.Results, one)
	}
	return report
}

func htmlOf(t *testing.T, files ...File) string {
	t.Helper()
	var text bytes.Buffer
	if err := WriteHTML(&text, files); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// Nothing on the page comes from elsewhere, and a name in a report is text.
func TestReportIsSelfContained(t *testing.T) {
	report := everything()
	report.Results[0].Name = `<script>alert("launch")</script>`
	report.Results[4].Shares[0].Tenant = `"><script>x</script>`
	report.Env.Card = `<img src=x onerror=alert(1)> (simulated)`
	text := htmlOf(t, File{`a "quoted" <file>.json`, report})
	for _, no := range []string{"<script", "<img", "<link rel=\"stylesheet", "http://", "https://", "@import", "url(", "NaN", "ZgotmplZ"} {
		if strings.Contains(text, no) {
			t.Errorf("'%s' is on the page", no)
		}
	}
	if !strings.Contains(text, "&lt;script&gt;alert(") {
		t.Error("the name is not on the page as text")
	}
}

func TestReportSaysWhatItIs(t *testing.T) {
	real := sample()
	real.Env.Simulated, real.Env.Card = false, "NVIDIA H200"
	for i := range real.Results {
		real.Results[i].Simulated = false
	}
	for name, test := range map[string]struct {
		files    []File
		want, no string
	}{
		"simulated": {[]File{{"a", sample()}}, `<p class="kind simulated">SIMULATED GPU</p>`, "REAL GPU"},
		"real":      {[]File{{"a", real}}, `<p class="kind">REAL GPU</p>`, "SIMULATED"},
		"both":      {[]File{{"a", real}, {"b", sample()}}, `<p class="kind simulated">SIMULATED AND REAL GPUs</p>`, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			text := htmlOf(t, test.files...)
			_, body, _ := strings.Cut(text, "</style>")
			if !strings.Contains(body, test.want) || test.no != "-" && strings.Contains(body, test.no) {
				t.Errorf("the page has not '%s', or has '%s'", test.want, test.no)
			}
			for _, want := range []string{"2026-01-02T03:04:05Z", "AMD EPYC", "580.95.05", "✗ missed"} {
				if !strings.Contains(body, want) {
					t.Errorf("no '%s' on the page", want)
				}
			}
		})
	}
	if err := WriteHTML(&bytes.Buffer{}, nil); err == nil {
		t.Error("a page of nothing was written")
	}
}

// Every value that a report can have finds a place on every axis.
func TestAxis(t *testing.T) {
	values := []float64{-math.MaxFloat64, -1, 0, math.SmallestNonzeroFloat64, 1e-9, 0.5, 1, 3, 1e9, math.MaxFloat64}
	for i := range values {
		for j := range values {
			some := []float64{values[i], values[j]}
			for _, a := range []axis{linear(some, "%"), linear(some, "B"), decades(some, "ns")} {
				for _, v := range values {
					if x := a.x(v); !(x >= plotMargin && x <= plotWidth-plotMargin) {
						t.Errorf("%g on the axis of %v (log %t) is at %g", v, some, a.log, x)
					}
				}
				if n := len(a.ticks()); n > 16 {
					t.Errorf("the axis of %v has %d ticks", some, n)
				}
			}
		}
	}
}

func TestTicks(t *testing.T) {
	for name, test := range map[string]struct {
		axis axis
		want string
	}{
		"percent":    {linear([]float64{50}, "%"), "0 %, 10 %, 20 %, 30 %, 40 %, 50 %"},
		"bytes":      {linear([]float64{64 << 20}, "B"), "0 B, 16 MiB, 32 MiB, 48 MiB, 64 MiB"},
		"nothing":    {linear(nil, "%"), "0 %, 0.2 %, 0.4 %, 0.6 %, 0.8 %, 1 %"},
		"decades":    {decades([]float64{2, 3e6}, "ns"), "1 ns, 10 ns, 100 ns, 1 µs, 10 µs, 100 µs, 1 ms, 10 ms"},
		"long times": {decades([]float64{1e9, 1e12}, "ns"), "1 s, 10 s, 100 s, 1000 s"},
	} {
		var got []string
		for _, tick := range test.axis.ticks() {
			got = append(got, short(tick, test.axis.unit))
		}
		if text := strings.Join(got, ", "); text != test.want {
			t.Errorf("%s: %s, want %s", name, text, test.want)
		}
	}
}

// contrast of two colours, by WCAG 2.
func contrast(a, b [3]float64) float64 {
	luminance := func(rgb [3]float64) float64 {
		var linear [3]float64
		for i, c := range rgb {
			if c /= 255; c <= 0.04045 {
				linear[i] = c / 12.92
			} else {
				linear[i] = math.Pow((c+0.055)/1.055, 2.4)
			}
		}
		return 0.2126*linear[0] + 0.7152*linear[1] + 0.0722*linear[2]
	}
	la, lb := luminance(a), luminance(b)
	return (max(la, lb) + 0.05) / (min(la, lb) + 0.05)
}

func openReport(t *testing.T) *browser.Browser {
	t.Helper()
	b := browser.Start(t)
	path := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(path, []byte(htmlOf(t, File{"a.json", everything()})), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Width(1200)
	b.Open("file://" + path)
	return b
}

// A browser reads the page as it was meant, fetches nothing for it, and has nothing to complain of.
func TestReportInBrowser(t *testing.T) {
	b := openReport(t)
	for expression, want := range map[string]int{
		"document.querySelectorAll('table.rows tbody tr').length":                                                                             8,
		"document.querySelectorAll('table.targets tbody tr').length":                                                                          6,
		"document.querySelectorAll('.kind.simulated').length":                                                                                 2,
		"document.querySelectorAll('script').length":                                                                                          0,
		"document.querySelectorAll('svg[role=img][aria-label] > title').length":                                                               6,
		"document.querySelectorAll('svg').length":                                                                                             6,
		"[...document.querySelectorAll('[id]')].length - new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size":                 0,
		"[...document.querySelectorAll('[aria-labelledby]')].filter(e => !document.getElementById(e.getAttribute('aria-labelledby'))).length": 0,
		"[...document.querySelectorAll('a')].filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length":                   0,
		"[...document.querySelectorAll('svg *')].filter(e => [...e.attributes].some(a => /NaN|Infinity/.test(a.value))).length":               0,
		"[...document.querySelectorAll('svg text')].filter(e => { const b = e.getBBox(); return b.x < 0 || b.x + b.width > 720 }).length":     0,
		"document.querySelectorAll('th:not([scope])').length":                                                                                 0,
	} {
		if got := browser.Eval[int](b, expression); got != want {
			t.Errorf("%s is %d, want %d", expression, got, want)
		}
	}
	size := browser.Eval[float64](b, "parseFloat(getComputedStyle(document.querySelector('.kind')).fontSize)")
	if size < 32 {
		t.Errorf("SIMULATED is written in %g pixels: not in big letters", size)
	}
	for _, event := range b.Events {
		switch event.Method {
		case "Log.entryAdded", "Runtime.exceptionThrown":
			t.Errorf("the browser complains: %s", event.Params)
		case "Network.requestWillBeSent":
			var sent struct {
				Request struct{ URL string } `json:"request"`
			}
			if err := json.Unmarshal(event.Params, &sent); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(sent.Request.URL, "file://") && !strings.HasPrefix(sent.Request.URL, "data:,") {
				t.Errorf("the page asks for %s", sent.Request.URL)
			}
		}
	}
}

// The page can be read in the light and in the dark, by who sees few colours, and on a telephone.
func TestReportColoursInBrowser(t *testing.T) {
	b := openReport(t)
	for _, scheme := range []string{"light", "dark"} {
		b.Prefer(scheme)
		style := func(selector, property string) [3]float64 {
			return colour(t, browser.Eval[string](b, "getComputedStyle(document.querySelector('"+selector+"')).getPropertyValue('"+property+"')"))
		}
		ground := style("body", "background-color")
		if dark := contrast(ground, [3]float64{255, 255, 255}) > contrast(ground, [3]float64{}); dark != (scheme == "dark") {
			t.Errorf("%s: the ground is %v", scheme, ground)
		}
		for _, test := range []struct {
			selector, property string
			least              float64
		}{
			{"body", "color", 7}, {"td.MISSED", "color", 4.5}, {"td.ok", "color", 4.5}, {"a[href^=\"#f1\"]", "color", 4.5}, {"caption", "color", 4.5},
			{"svg text.label", "fill", 4.5}, {"svg text.tick", "fill", 4.5},
			{"svg .k.dot", "fill", 3}, {"svg .n.dot", "stroke", 3}, {"svg .target", "fill", 3},
		} {
			if got := contrast(style(test.selector, test.property), ground); got < test.least {
				t.Errorf("%s: the contrast of %s %s is %.1f, want %.1f", scheme, test.selector, test.property, got, test.least)
			}
		}
		if got := contrast(style(".kind.simulated", "color"), style(".kind.simulated", "background-color")); got < 7 {
			t.Errorf("%s: SIMULATED has a contrast of %.1f", scheme, got)
		}
	}
	// Not by colour alone.
	if dashes := browser.Eval[string](b, "getComputedStyle(document.querySelector('svg .n.span')).strokeDasharray"); dashes == "none" {
		t.Error("native and Kerf differ by colour alone")
	}
	b.Width(360)
	if over := browser.Eval[int](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); over > 0 {
		t.Errorf("on a screen of 360 pixels the page is %d too wide", over)
	}
}

// Whatever scrolls, opens or leads somewhere is reached by the Tab key, and shows that it has been.
func TestReportByKeyboardInBrowser(t *testing.T) {
	b := openReport(t)
	wanted := browser.Eval[int](b, "document.querySelectorAll('a, summary, [tabindex=\"0\"]').length")
	if wanted < 10 {
		t.Fatalf("%d places to go to", wanted)
	}
	for i := range wanted {
		b.Press("Tab", 9)
		if i == 0 && browser.Eval[string](b, "document.activeElement.className") != "skip" {
			t.Error("the first place is not the link that skips the contents")
		}
		if style := browser.Eval[string](b, "getComputedStyle(document.activeElement).outlineStyle"); style == "none" {
			t.Errorf("place %d, %s, does not show that it has the focus", i+1, browser.Eval[string](b, "document.activeElement.outerHTML.slice(0, 80)"))
		}
	}
	reached := browser.Eval[bool](b, "document.activeElement === [...document.querySelectorAll('a, summary, [tabindex=\"0\"]')].at(-1)")
	if !reached {
		t.Errorf("after %d times Tab not at the last place", wanted)
	}
	browser.Eval[bool](b, "document.querySelector('summary').focus(), true")
	b.Call("Input.dispatchKeyEvent", map[string]string{"type": "char", "text": "\r", "key": "Enter"}, nil)
	if browser.Eval[bool](b, "document.querySelector('details').open") {
		t.Error("the Enter key does not fold a table")
	}
}

// colour is the red, green and blue of a computed style's "rgb(1, 2, 3)".
func colour(t *testing.T, text string) (rgb [3]float64) {
	t.Helper()
	if _, err := fmt.Sscanf(text, "rgb(%f, %f, %f)", &rgb[0], &rgb[1], &rgb[2]); err != nil {
		t.Fatalf("colour '%s': %v", text, err)
	}
	return rgb
}
