package main

import (
	"fmt"
	"slices"
)

// A column is a figure of a sample.
type column struct {
	title string
	of    func(Sample) float64
}

// The columns that a sample has by itself.
var (
	tasksPerSecond = column{"tasks/s", func(s Sample) float64 { return s.Tasks }}
	p50            = column{"p50 ms", func(s Sample) float64 { return s.P50 }}
	p95            = column{"p95 ms", func(s Sample) float64 { return s.P95 }}
	p99            = column{"p99 ms", func(s Sample) float64 { return s.P99 }}
	databaseCPU    = column{"database CPU µs", func(s Sample) float64 { return s.DatabaseCPU }}
	poolerCPU      = column{"pooler CPU µs", func(s Sample) float64 { return s.PoolerCPU }}
	clientCPU      = column{"client CPU µs", func(s Sample) float64 { return s.ClientCPU }}
	statementCount = column{"statements", func(s Sample) float64 { return s.Statements }}
	transactions   = column{"transactions", func(s Sample) float64 { return s.Transactions }}
	walBytes       = column{"WAL bytes", func(s Sample) float64 { return s.WAL }}
	serverConnects = column{"server connections", func(s Sample) float64 { return s.ServerConns }}
	statementRate  = column{"statements/s", func(s Sample) float64 { return s.StatementRate }}
	databaseShare  = column{"database, % of a core", func(s Sample) float64 { return s.DatabaseShare }}
	poolerShare    = column{"pooler, % of a core", func(s Sample) float64 { return s.PoolerShare }}
	clientShare    = column{"client, % of a core", func(s Sample) float64 { return s.ClientShare }}
	// timePerTask is not shown, but has targets.
	timePerTask = column{"time per task", func(s Sample) float64 { return per(1, s.Tasks) }}
)

// standardColumns are those of a scenario that does not name others.
var standardColumns = []column{
	tasksPerSecond, p50, p95, p99, databaseCPU, poolerCPU, clientCPU, statementCount, transactions, walBytes, serverConnects,
}

// own is a figure that a trial has reported by its name.
func own(name string) column {
	return column{name, func(s Sample) float64 { return s.More[name] }}
}

// median is the middle of a column in all samples.
func (c column) median(samples []Sample) float64 { return middle(c.values(samples)) }

func (c column) values(samples []Sample) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = c.of(s)
	}
	return out
}

// ratios are those of two contestants in each run: neighbors in time. A run in which there is nothing
// to divide by is left out.
func (c column) ratios(of, against []Sample) []float64 {
	var out []float64
	for i := range min(len(of), len(against)) {
		if by := c.of(against[i]); by != 0 {
			out = append(out, c.of(of[i])/by)
		}
	}
	return out
}

// A target is what a contestant must reach. It is shown, and fails nothing.
type target struct {
	of     string // a contestant
	figure column
	// against another contestant, run by run. Default: the figure itself.
	against string
	// least or most is the limit; the other is 0.
	least, most float64
	// none: the figure must be 0 in every run.
	none bool
}

// A Verdict is what has become of a target.
type Verdict struct {
	Of     string `json:"of"`
	Target string `json:"target"`
	// Reached is the median of the runs, and Lowest and Highest are those of them.
	Reached float64 `json:"reached"`
	Lowest  float64 `json:"lowest"`
	Highest float64 `json:"highest"`
	Met     bool    `json:"met"`
	// Note says why it was not measured.
	Note string `json:"note,omitempty"`
	// ratio: the values are of two contestants.
	ratio bool
}

// String is how the target reads in the report.
func (t target) String() string {
	sign, limit := "≥", t.least
	if t.none {
		return "nobody " + t.figure.title
	}
	if t.most > 0 {
		sign, limit = "≤", t.most
	}
	if t.against == "" {
		return fmt.Sprintf("%s %s %s", t.figure.title, sign, figure(limit))
	}
	return fmt.Sprintf("%s %s %g × %s", t.figure.title, sign, limit, t.against)
}

// judge compares the median of the runs with the limit.
func (t target) judge(lines []Line) Verdict {
	v := Verdict{Of: t.of, Target: t.String(), ratio: t.against != ""}
	samples := func(name string) []Sample {
		i := slices.IndexFunc(lines, func(l Line) bool { return l.Contestant == name })
		if i < 0 {
			return nil
		}
		if lines[i].Note != "" {
			v.Note = lines[i].Note
		}
		return lines[i].Samples
	}
	values := t.figure.values(samples(t.of))
	if v.ratio {
		values = t.figure.ratios(samples(t.of), samples(t.against))
	}
	if len(values) == 0 {
		if v.Note == "" {
			v.Note = "not measured"
		}
		return v
	}
	v.Reached, v.Lowest, v.Highest = middle(values), slices.Min(values), slices.Max(values)
	v.Met = v.Reached >= t.least && (t.most == 0 || v.Reached <= t.most) && (!t.none || v.Highest == 0)
	return v
}
