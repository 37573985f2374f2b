package main

import (
	"cmp"
	"fmt"
	"slices"
)

// A column is a figure of a sample.
type column struct {
	title string
	of    func(Sample) float64
	// can reports whether a run may have it so, and has whether a run has measured it. Default: always.
	can, has func(Sample) bool
}

// positive is a column that is above 0 in every run.
func positive(title string, of func(Sample) float64) column {
	return column{title: title, of: of, can: func(s Sample) bool { return of(s) > 0 }}
}

// The columns that a sample has by itself.
var (
	tasksPerSecond = positive("tasks/s", func(s Sample) float64 { return s.Tasks })
	statementCount = positive("statements", func(s Sample) float64 { return s.Statements })
	transactions   = positive("transactions", func(s Sample) float64 { return s.Transactions })
	walBytes       = positive("WAL bytes", func(s Sample) float64 { return s.WAL })
	serverConnects = positive("server connections", func(s Sample) float64 { return s.ServerConns })
	statementRate  = positive("statements/s", func(s Sample) float64 { return s.StatementRate })
	p99            = positive("p99 ms", func(s Sample) float64 { return s.P99 })
	// A task may have begun before its dispatcher knew of it.
	p50 = column{title: "p50 ms", of: func(s Sample) float64 { return s.P50 }}
	p95 = column{title: "p95 ms", of: func(s Sample) float64 { return s.P95 }}
	// CPU times may be below a tick.
	databaseCPU   = column{title: "database CPU µs", of: func(s Sample) float64 { return s.DatabaseCPU }}
	poolerCPU     = column{title: "pooler CPU µs", of: func(s Sample) float64 { return s.PoolerCPU }}
	clientCPU     = column{title: "client CPU µs", of: func(s Sample) float64 { return s.ClientCPU }}
	databaseShare = column{title: "database, % of a core", of: func(s Sample) float64 { return s.DatabaseShare }}
	poolerShare   = column{title: "pooler, % of a core", of: func(s Sample) float64 { return s.PoolerShare }}
	clientShare   = column{title: "client, % of a core", of: func(s Sample) float64 { return s.ClientShare }}
	// timePerTask is not shown, but has targets.
	timePerTask = positive("time per task", func(s Sample) float64 { return per(1, s.Tasks) })
)

// standardColumns are those of a scenario that does not name others.
var standardColumns = []column{
	tasksPerSecond, p50, p95, p99, databaseCPU, poolerCPU, clientCPU, statementCount, transactions, walBytes, serverConnects,
}

// own is a figure that a trial has reported by its name.
func own(name string) column {
	return column{
		title: name, of: func(s Sample) float64 { return s.More[name] },
		has: func(s Sample) bool { _, ok := s.More[name]; return ok },
	}
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

// noLatency is what the latencies are of in a contest that has none.
const noLatency = "–"

// verify finds a figure of a run that cannot be, or that a target needs and nobody has measured.
func (c contest) verify(contestant string, columns []column, s Sample) error {
	for _, f := range columns {
		if f.title == p99.title && c.latency == noLatency {
			continue
		}
		if f.can != nil && !f.can(s) {
			return fmt.Errorf("%s cannot be %v", f.title, f.of(s))
		}
	}
	if s.P50 > s.P95 || s.P95 > s.P99 {
		return fmt.Errorf("percentiles cannot be %v, %v, %v", s.P50, s.P95, s.P99)
	}
	for _, t := range c.targets {
		if (t.of == contestant || t.against == contestant) && t.figure.has != nil && !t.figure.has(s) {
			return fmt.Errorf("%s was not measured", t.figure.title)
		}
	}
	return nil
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

// notMeasured is the note of a target for which there is nothing to divide by.
const notMeasured = "not measured"

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
		v.Note = cmp.Or(v.Note, notMeasured)
		return v
	}
	v.Reached, v.Lowest, v.Highest = middle(values), slices.Min(values), slices.Max(values)
	v.Met = v.Reached >= t.least && (t.most == 0 || v.Reached <= t.most) && (!t.none || v.Highest == 0)
	return v
}
