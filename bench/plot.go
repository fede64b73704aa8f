package bench

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"
)

// Plots are SVG that stands in the page and takes its colours from there. Shape tells the baseline from Kerf as colour does: it
// is hollow and dashed, Kerf filled and solid. Each has a title and a description for who does not see it, and the page has
// every number in a table too.

const (
	plotWidth  = 720.0
	plotMargin = 12.0
	plotRow    = 46.0 // a label, and the line below it
	plotHead   = 30.0 // the legend
	plotFoot   = 34.0 // the axis
)

// Figure is a plot with its caption.
type Figure struct {
	Caption string
	SVG     template.HTML
}

// axis maps values to x. A logarithmic one begins at a decade.
type axis struct {
	low, high float64
	log       bool
	unit      string
}

func linear(values []float64, unit string) axis {
	a := axis{unit: unit}
	for _, v := range values {
		a.low, a.high = max(min(a.low, v), -1e300), min(max(a.high, v), 1e300)
	}
	if a.high == a.low {
		a.high = a.low + 1
	}
	return a
}

// decades is for values over 0; others are drawn at its begin.
func decades(values []float64, unit string) axis {
	a := axis{low: math.Inf(1), high: math.Inf(-1), log: true, unit: unit}
	for _, v := range values {
		if v > 0 {
			a.low, a.high = min(a.low, v), max(a.high, v)
		}
	}
	if math.IsInf(a.low, 1) {
		a.low, a.high = 1, 10
	}
	a.low, a.high = math.Pow(10, math.Floor(math.Log10(a.low))), math.Pow(10, math.Ceil(math.Log10(a.high)))
	// Beyond what floats have decades for there is no axis to draw, but a page to write.
	a.low, a.high = min(max(a.low, 1e-300), 1e299), min(a.high, 1e300)
	if a.high <= a.low {
		a.high = a.low * 10
	}
	return a
}

func (a axis) x(value float64) float64 {
	part := (value - a.low) / (a.high - a.low)
	if a.log {
		part = (math.Log10(max(value, a.low)) - math.Log10(a.low)) / (math.Log10(a.high) - math.Log10(a.low))
	}
	if math.IsNaN(part) {
		part = 0
	}
	return plotMargin + min(max(part, 0), 1)*(plotWidth-2*plotMargin)
}

// ticks are some eight at most.
func (a axis) ticks() (at []float64) {
	if a.log {
		from, to := math.Round(math.Log10(a.low)), math.Round(math.Log10(a.high))
		step := max(1, math.Ceil((to-from)/8))
		for i := range 9 {
			if decade := from + float64(i)*step; decade <= to {
				at = append(at, math.Pow(10, decade))
			}
		}
		return at
	}
	step := math.Pow(10, math.Floor(math.Log10((a.high-a.low)/2)))
	if a.unit == "B" { // in powers of two
		step = math.Pow(2, math.Ceil(math.Log2((a.high-a.low)/6)))
	}
	for _, more := range []float64{2, 2.5} { // 1, 2, 5 times a power of ten
		if (a.high-a.low)/step > 6 {
			step *= more
		}
	}
	for i := range 16 {
		if tick := (math.Ceil(a.low/step) + float64(i)) * step; tick <= a.high {
			at = append(at, tick)
		}
	}
	return at
}

// canvas collects an SVG. Its rows follow each other.
type canvas struct {
	strings.Builder
	axis   axis
	height float64
	y      float64 // of the row's line
}

func newCanvas(a axis, rows int, title, about string) *canvas {
	c := &canvas{axis: a, height: plotHead + float64(rows)*plotRow + plotFoot, y: plotHead - plotRow + 30}
	fmt.Fprintf(c, `<svg viewBox="0 0 %.0f %.0f" role="img" aria-label="%s"><title>%s</title><desc>%s</desc>`, plotWidth, c.height,
		html.EscapeString(title), html.EscapeString(title), html.EscapeString(about))
	bottom := c.height - plotFoot
	for _, tick := range a.ticks() {
		x := a.x(tick)
		fmt.Fprintf(c, `<line class="grid" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, x, plotHead, x, bottom)
		anchor := "middle"
		switch {
		case x < 3*plotMargin:
			anchor = "start"
		case x > plotWidth-3*plotMargin:
			anchor = "end"
		}
		c.text(x, bottom+18, anchor, "tick", short(tick, a.unit))
	}
	return c
}

// short is a quantity for an axis: without digits that say nothing.
func short(value float64, unit string) string {
	switch {
	case unit == "ns" && math.Abs(value) >= 1e9:
		value, unit = value/1e9, "s"
	case unit == "ns" && math.Abs(value) >= 1e6:
		value, unit = value/1e6, "ms"
	case unit == "ns" && math.Abs(value) >= 1e3:
		value, unit = value/1e3, "µs"
	case unit == "B" && math.Abs(value) >= 1<<20:
		value, unit = value/(1<<20), "MiB"
	case unit == "B" && math.Abs(value) >= 1<<10:
		value, unit = value/(1<<10), "KiB"
	}
	if size := math.Abs(value); size >= 100 && size < 1e5 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.3g %s", value, unit)
}

func (c *canvas) text(x, y float64, anchor, class, text string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`, x, y, anchor, class, html.EscapeString(text))
}

// next begins a row with a label, and what is said of it at the right.
func (c *canvas) next(label, said string) {
	c.y += plotRow
	c.text(plotMargin, c.y-14, "start", "label", clip(strings.TrimSpace(label), 88))
	c.text(plotWidth-plotMargin, c.y-14, "end", "said", said)
}

// clip shortens a label that would run into what is said of it. The table has it whole.
func clip(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}

// span draws from one value to another: a percentile to a higher one, with an end at the higher.
func (c *canvas) span(class string, from, to, dy float64) {
	x1, x2, y := c.axis.x(from), c.axis.x(to), c.y+dy
	fmt.Fprintf(c, `<line class="%s span" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/><line class="%s end" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`,
		class, x1, y, x2, y, class, x2, y-4, x2, y+4)
}

func (c *canvas) dot(class string, value, dy float64) {
	fmt.Fprintf(c, `<circle class="%s dot" cx="%.1f" cy="%.1f" r="4"/>`, class, c.axis.x(value), c.y+dy)
}

// bar draws from 0 to the value.
func (c *canvas) bar(class string, value, dy, height float64) {
	zero, x := c.axis.x(0), c.axis.x(value)
	fmt.Fprintf(c, `<rect class="%s bar" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, class, min(zero, x), c.y+dy, math.Abs(x-zero), height)
}

// box draws the middle half of the samples.
func (c *canvas) box(class string, spread []float64, dy float64) {
	if len(spread) == len(SpreadAt) {
		x1, x2 := c.axis.x(spread[1]), c.axis.x(spread[3])
		fmt.Fprintf(c, `<rect class="%s box" x="%.1f" y="%.1f" width="%.1f" height="8"/>`, class, x1, c.y+dy-4, max(x2-x1, 1))
	}
}

// target draws where a promise ends.
func (c *canvas) target(value float64) {
	x := c.axis.x(value)
	fmt.Fprintf(c, `<path class="target" d="M%.1f %.1f v20 M%.1f %.1f l4 -6 h-8 z"/>`, x, c.y-6, x, c.y-2)
}

// legend says what the shapes are, in the head.
func (c *canvas) legend(entries ...legendEntry) {
	x := plotMargin
	for _, entry := range entries {
		fmt.Fprintf(c, `<g transform="translate(%.1f 14)">%s</g>`, x, entry.mark)
		c.text(x+26, 18, "start", "tick", entry.text)
		x += 40 + 7*float64(len([]rune(entry.text)))
	}
}

type legendEntry struct{ mark, text string }

var (
	legendNative = legendEntry{`<line class="n span" x1="4" y1="0" x2="20" y2="0"/><line class="n end" x1="20" y1="-4" x2="20" y2="4"/><circle class="n dot" cx="4" cy="0" r="4"/>`, "baseline: p50, p99"}
	legendKerf   = legendEntry{`<line class="k span" x1="4" y1="0" x2="20" y2="0"/><line class="k end" x1="20" y1="-4" x2="20" y2="4"/><circle class="k dot" cx="4" cy="0" r="4"/>`, "Kerf: p50, p99"}
	legendBox    = legendEntry{`<rect class="k box" x="2" y="-4" width="20" height="8"/>`, "middle half"}
	legendTarget = legendEntry{`<path class="target" d="M10 -8 v16 M10 -6 l4 -6 h-8 z"/>`, "target"}
	legendValue  = legendEntry{`<rect class="k bar" x="0" y="-5" width="20" height="10"/>`, "Kerf"}
	legendDue    = legendEntry{`<rect class="n bar" x="0" y="-5" width="20" height="10"/>`, "due"}
	legendGot    = legendEntry{`<rect class="k bar" x="0" y="-5" width="20" height="10"/>`, "got"}
)

func (c *canvas) figure(caption string) Figure {
	c.WriteString("</svg>")
	return Figure{caption, template.HTML(c.String())} // every text in it was escaped when it was drawn
}
