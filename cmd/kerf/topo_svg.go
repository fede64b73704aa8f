package main

import (
	"bytes"
	"fmt"
	"html"

	"github.com/kerf-gpu/kerf/internal/node"
)

// Measures of the picture, in pixels.
const (
	svgBox    = 104 // width of a device
	svgGap    = 14
	svgHeight = 46 // of a device; less has fewer lines
	svgLevel  = 96 // from one level to the next
	svgMargin = 24
	svgTitle  = 34 // above the first level of a NUMA node
)

// box is a branch with its place: x is its middle.
type box struct {
	*branch
	x, y  int
	below []*box
}

// drawSVG draws NUMA nodes below each other, each with its trees from left to right.
func drawSVG(n node.Node, root string) []byte {
	var body bytes.Buffer
	width, y := 640, svgMargin+24
	trees := growTrees(n)
	var rows [][]*box
	for _, t := range trees {
		var row []*box
		x := 2 * svgMargin
		for _, r := range t.roots {
			row = append(row, layOut(r, &x, 0))
			x += svgGap
		}
		width = max(width, x+svgMargin)
		rows = append(rows, row)
	}
	for i, t := range trees {
		deepest := 0
		for _, b := range rows[i] {
			deepest = max(deepest, b.depth())
		}
		height := svgTitle + deepest*svgLevel + svgHeight + svgMargin
		fmt.Fprintf(&body, `<rect class="numa" x="%d" y="%d" width="%d" height="%d" rx="8"/><text class="title" x="%d" y="%d">%s</text>`+"\n",
			svgMargin, y, width-2*svgMargin, height, svgMargin+12, y+20, html.EscapeString(t.title()))
		for _, b := range rows[i] {
			b.lines(&body, y+svgTitle)
			b.boxes(&body, y+svgTitle)
		}
		y += height + svgMargin
	}
	if len(trees) == 0 {
		fmt.Fprintf(&body, `<text class="title" x="%d" y="%d">no GPU and no PCI NIC</text>`+"\n", svgMargin, y+20)
		y += 40
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, svgHead, width, y, width, y, width, y, svgMargin, svgMargin+8, html.EscapeString(caption(n, root)))
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

const svgHead = `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">
<style>
.numa{fill:#f6f7f9;stroke:#c3c9d2}.title{font-size:13px;font-weight:bold}.middle{text-anchor:middle}.first{font-weight:bold}
.k0{fill:#fff;stroke:#8a93a0}.k1{fill:#e9ecf1;stroke:#8a93a0}.k2{fill:#fdf1d8;stroke:#b98a2f}.k3{fill:#d8eed8;stroke:#3f8a4c}.k4{fill:#d7e5f8;stroke:#3a6fb0}
.line{stroke:#8a93a0;fill:none}.slow{stroke:#c22;stroke-dasharray:5 3}.rate{fill:#555;font-size:10px}.bad{fill:#c22;font-weight:bold}
</style>
<rect width="%d" height="%d" fill="#fff"/>
<text class="title" x="%d" y="%d">%s</text>
`

// layOut gives a branch and all below it their places from x on, and moves x to the right of them.
func layOut(b *branch, x *int, level int) *box {
	at := &box{branch: b, y: level * svgLevel}
	if len(b.below) == 0 {
		at.x = *x + svgBox/2
		*x += svgBox + svgGap
		return at
	}
	for _, child := range b.below {
		at.below = append(at.below, layOut(child, x, level+1))
	}
	at.x = (at.below[0].x + at.below[len(at.below)-1].x) / 2
	return at
}

func (b *box) depth() (deepest int) {
	for _, child := range b.below {
		deepest = max(deepest, 1+child.depth())
	}
	return deepest
}

func (b *box) height() int { return 16 + 13*(len(b.label)-1) + 4 }

// lines go from the bottom of a box to the top of those below it, thicker where they carry more.
func (b *box) lines(out *bytes.Buffer, top int) {
	for _, child := range b.below {
		from, to := top+b.y+b.height(), top+child.y
		middle := to - 22 // of the horizontal part, so that lines of one box run together
		class, text := "line", "rate"
		if child.slow() {
			class, text = "line slow", "rate bad"
		}
		thick := 1 + min(5, float64(child.up.Now.Rate())/16e9)
		fmt.Fprintf(out, `<path class="%s" stroke-width="%.1f" d="M%d %dV%dH%dV%d"/>`, class, thick, b.x, from, middle, child.x, to)
		if words := child.lineText(); words != "" {
			fmt.Fprintf(out, `<text class="%s" x="%d" y="%d">%s</text>`, text, child.x+5, to-6, html.EscapeString(words))
		}
		out.WriteByte('\n')
		child.lines(out, top)
	}
}

func (b *box) boxes(out *bytes.Buffer, top int) {
	fmt.Fprintf(out, `<rect class="k%d" x="%d" y="%d" width="%d" height="%d" rx="4"/>`, b.kind, b.x-svgBox/2, top+b.y, svgBox, b.height())
	for i, words := range b.label {
		class := "middle"
		if i == 0 {
			class += " first"
		}
		fmt.Fprintf(out, `<text class="%s" x="%d" y="%d">%s</text>`, class, b.x, top+b.y+14+13*i, html.EscapeString(words))
	}
	out.WriteByte('\n')
	for _, child := range b.below {
		child.boxes(out, top)
	}
}
