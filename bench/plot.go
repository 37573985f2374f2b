package main

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strconv"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A bar is one contestant's figure: the median of its runs, the lowest and the highest.
type bar struct {
	label             string
	median, low, high float64
}

// A barGroup is bars that belong together.
type barGroup struct {
	name string
	bars []bar
}

// A curve is points that a line connects.
type curve struct {
	name   string
	xs, ys []float64
}

// A limit is a value that is to be kept to, drawn across the chart.
type limit struct {
	label string
	y     float64
}

// A chart is curves over common axes, whose labels name the units. A logarithmic axis leaves out what is
// not above 0.
type chart struct {
	title, xLabel, yLabel string
	logX, logY            bool
	curves                []curve
	limits                []limit
}

// Colors that stay apart on white, also for people who see fewer of them (Okabe and Ito).
var palette = []color.RGBA{
	{R: 0x00, G: 0x72, B: 0xB2, A: 0xFF},
	{R: 0xD5, G: 0x5E, B: 0x00, A: 0xFF},
	{R: 0x00, G: 0x9E, B: 0x73, A: 0xFF},
	{R: 0xCC, G: 0x79, B: 0xA7, A: 0xFF},
	{R: 0xE6, G: 0x9F, B: 0x00, A: 0xFF},
	{R: 0x56, G: 0xB4, B: 0xE9, A: 0xFF},
	{R: 0x55, G: 0x55, B: 0x55, A: 0xFF},
}

var (
	ink     = color.RGBA{R: 0x22, G: 0x22, B: 0x22, A: 0xFF}
	grid    = color.RGBA{R: 0xDD, G: 0xDD, B: 0xDD, A: 0xFF}
	tooMuch = color.RGBA{R: 0xB0, G: 0x00, B: 0x20, A: 0xFF}
)

const (
	chartWidth  = 20 * vg.Centimeter
	chartHeight = 11 * vg.Centimeter
	rowHeight   = 0.62 * vg.Centimeter
	textSize    = 10 * vg.Length(1)
)

// newPlot is an empty chart in the common style, on white, so that it can be read on any page.
func newPlot(title string) *plot.Plot {
	p := plot.New()
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
	}
	p.BackgroundColor = color.White
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = 13
	p.Title.TextStyle.Color = ink
	p.Title.Padding = 8
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = 11
		axis.Label.TextStyle.Color = ink
		axis.Label.Padding = 4
		axis.Tick.Label.Font.Size = textSize
		axis.Tick.Label.Color = ink
		axis.Color = ink
		axis.Tick.Color = ink
		axis.Padding = 0
	}
	p.Legend.TextStyle.Font.Size = textSize
	p.Legend.TextStyle.Color = ink
	p.Legend.Padding = 3
	return p
}

// save writes a plot as SVG; the same plot makes the same bytes.
func save(p *plot.Plot, path string, width, height vg.Length) error {
	c := vgsvg.New(width, height)
	// A margin, so that the last tick's label is not cut off.
	p.Draw(draw.Crop(draw.New(c), 6, -14, 6, -6))
	var out bytes.Buffer
	if _, err := c.WriteTo(&out); err != nil {
		return fmt.Errorf("draw %s: %w", filepath.Base(path), err)
	}
	svg := onWhite(out.Bytes(), width, height)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory for plots: %w", err)
	}
	if err := os.WriteFile(path, svg, 0o644); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	return nil
}

// onWhite puts a white sheet below everything, for the plot's own background ends at the margin, and names
// fonts as wide as the one that was measured for where that is missing.
func onWhite(svg []byte, width, height vg.Length) []byte {
	svg = bytes.ReplaceAll(svg, []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arimo,Arial,Helvetica,sans-serif;"))
	sheet := fmt.Sprintf("<rect width=\"%g\" height=\"%g\" fill=\"#FFFFFF\"/>\n<g ", width.Points(), height.Points())
	return bytes.Replace(svg, []byte("<g "), []byte(sheet), 1)
}

// plotBars draws bars with whiskers from the lowest to the highest run, group by group from the top,
// over an axis of the unit.
func plotBars(path, title, unit string, groups []barGroup) error {
	rows := rowsOf(groups)
	most := 0.0
	for _, r := range rows {
		most = max(most, r.high, r.median)
	}
	if len(rows) == 0 || most <= 0 || math.IsInf(most, 0) || math.IsNaN(most) {
		return fmt.Errorf("plot %s: nothing to draw", filepath.Base(path))
	}
	p := newPlot(title)
	p.X.Label.Text = unit
	p.X.Min, p.X.Max = 0, most*1.16 // the figures stand right of the bars
	p.Y.Min, p.Y.Max = -0.5, float64(len(rows))-0.5
	p.X.Tick.Marker = plot.TickerFunc(readableTicks)
	p.Y.Tick.Width, p.Y.Tick.Length = 0, 4
	var ticks []plot.Tick
	for _, r := range rows {
		if r.label != "" {
			ticks = append(ticks, plot.Tick{Value: r.at, Label: r.label})
		}
	}
	p.Y.Tick.Marker = plot.ConstantTicks(ticks)
	g := plotter.NewGrid()
	g.Vertical.Color, g.Horizontal.Width = grid, 0
	p.Add(g, barRows{rows, p.X.Tick.Label})
	return save(p, path, chartWidth, rowHeight*vg.Length(len(rows))+2.6*vg.Centimeter)
}

// A barRow is a bar, or the name of a group.
type barRow struct {
	bar
	at     float64
	header string
	color  color.Color
}

// rowsOf lays out bars from the top; one label has one color in all groups.
func rowsOf(groups []barGroup) []barRow {
	var rows []barRow
	colors := map[string]color.Color{}
	for _, g := range groups {
		if len(g.bars) == 0 {
			continue
		}
		rows = append(rows, barRow{header: g.name})
		for _, b := range g.bars {
			if colors[b.label] == nil {
				colors[b.label] = palette[len(colors)%len(palette)]
			}
			rows = append(rows, barRow{bar: b, color: colors[b.label]})
		}
	}
	for i := range rows {
		rows[i].at = float64(len(rows) - 1 - i)
	}
	return rows
}

// barRows draws rows.
type barRows struct {
	rows  []barRow
	style text.Style
}

// Plot is gonum's interface of what can be drawn.
func (b barRows) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	style := b.style
	style.XAlign, style.YAlign = text.XLeft, text.YCenter
	bold := style
	bold.Font.Weight = xfont.WeightBold
	line := draw.LineStyle{Color: ink, Width: vg.Points(1)}
	const half, whisker = 0.3, 0.14
	for _, r := range b.rows {
		if r.header != "" {
			c.FillText(bold, vg.Point{X: x(0) + 4, Y: y(r.at) - 3}, r.header)
			continue
		}
		c.FillPolygon(r.color, []vg.Point{
			{X: x(0), Y: y(r.at - half)},
			{X: x(r.median), Y: y(r.at - half)},
			{X: x(r.median), Y: y(r.at + half)},
			{X: x(0), Y: y(r.at + half)},
		})
		end := x(r.median)
		if r.high > r.low {
			c.StrokeLine2(line, x(r.low), y(r.at), x(r.high), y(r.at))
			c.StrokeLine2(line, x(r.low), y(r.at-whisker), x(r.low), y(r.at+whisker))
			c.StrokeLine2(line, x(r.high), y(r.at-whisker), x(r.high), y(r.at+whisker))
			end = max(end, x(r.high))
		}
		c.FillText(style, vg.Point{X: end + 4, Y: y(r.at)}, shortFigure(r.median))
	}
}

// plotChart draws curves, with a point at each value where there are few.
func plotChart(path string, ch chart) error {
	p := newPlot(ch.title)
	p.X.Label.Text, p.Y.Label.Text = ch.xLabel, ch.yLabel
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.TickerFunc(readableTicks), plot.TickerFunc(readableTicks)
	g := plotter.NewGrid()
	g.Vertical.Color, g.Horizontal.Color = grid, grid
	p.Add(g)
	low, high := math.Inf(1), math.Inf(-1)
	for i, cv := range ch.curves {
		points := ch.points(cv)
		if len(points) == 0 {
			return fmt.Errorf("plot %s: curve %q has no points", filepath.Base(path), cv.name)
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("plot %s: %w", filepath.Base(path), err)
		}
		line.Color, line.Width = palette[i%len(palette)], vg.Points(1.6)
		dots.Color, dots.Shape, dots.Radius = line.Color, draw.CircleGlyph{}, vg.Points(2.6)
		p.Add(line)
		if len(points) <= 20 {
			p.Add(dots)
		}
		p.Legend.Add(cv.name, line)
		for _, xy := range points {
			low, high = min(low, xy.X), max(high, xy.X)
		}
	}
	if len(ch.curves) == 0 {
		return errors.New("plot without curves")
	}
	for _, l := range ch.limits {
		line, err := plotter.NewLine(plotter.XYs{{X: low, Y: l.y}, {X: high, Y: l.y}})
		if err != nil {
			return fmt.Errorf("plot %s: %w", filepath.Base(path), err)
		}
		line.Color, line.Width, line.Dashes = tooMuch, vg.Points(1.2), []vg.Length{5, 4}
		p.Add(line)
		p.Legend.Add(l.label, line)
	}
	if ch.logX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	}
	if ch.logY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
		p.Y.Min, p.Y.Max = p.Y.Min/1.3, p.Y.Max*1.3
	} else {
		p.Y.Min, p.Y.Max = min(0, p.Y.Min), p.Y.Max*1.05
	}
	p.Legend.Top = true
	// The legend stands above the curves, not on them.
	span := p.Y.Max - p.Y.Min
	entries := float64(len(ch.curves) + len(ch.limits))
	if ch.logY {
		p.Y.Max *= math.Pow(p.Y.Max/p.Y.Min, 0.07*entries)
	} else {
		p.Y.Max += span * 0.065 * entries
	}
	return save(p, path, chartWidth, chartHeight)
}

// points are those of a curve that the axes can show.
func (ch chart) points(cv curve) plotter.XYs {
	var out plotter.XYs
	for i, x := range cv.xs {
		if y := cv.ys[i]; (!ch.logX || x > 0) && (!ch.logY || y > 0) {
			out = append(out, plotter.XY{X: x, Y: y})
		}
	}
	return out
}

// readableTicks are the default ones, with thousands set apart.
func readableTicks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = thousands(ticks[i].Value)
		}
	}
	return ticks
}

// shortFigure shows three significant digits, or an integer with its thousands set apart.
func shortFigure(v float64) string {
	if v >= 1000 {
		return thousands(math.Round(v))
	}
	return figure(v)
}

// decades label each power of ten, with small ticks between.
func decades(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for exp := math.Floor(math.Log10(low)); exp <= math.Ceil(math.Log10(high)); exp++ {
		unit := math.Pow(10, exp)
		for n := 1.0; n < 10; n++ {
			if v := n * unit; v >= low*(1-1e-9) && v <= high*(1+1e-9) {
				t := plot.Tick{Value: v}
				if n == 1 || high/low < 30 && (n == 2 || n == 5) {
					t.Label = thousands(v)
				}
				ticks = append(ticks, t)
			}
		}
	}
	return ticks
}

// thousands shows a number with commas.
func thousands(v float64) string {
	s := strconv.FormatFloat(math.Abs(v), 'f', -1, 64)
	if math.Abs(v) < 1000 {
		return strconv.FormatFloat(v, 'g', 6, 64)
	}
	whole := s
	if i := bytes.IndexByte([]byte(s), '.'); i >= 0 {
		whole, s = s[:i], s[i:]
	} else {
		s = ""
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if v < 0 {
		whole = "-" + whole
	}
	return whole + s
}
