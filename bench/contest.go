package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/pool"
)

// A scenario is a question, and the contests that answer it.
type scenario struct {
	name string
	// what is the question.
	what string
	// variants are the names of the two contestants of every contest, the base first, where the report
	// is to set them side by side. Default: a row for each contestant.
	variants [2]string
	// columns of the detailed table. Default: standardColumns.
	columns []column
	// contests, which the pace may make smaller.
	contests func(pace pace) []contest
	// custom answers in a way of its own, instead of contests: it returns markdown. It has no servers
	// unless servers is set.
	custom  func(ctx context.Context, b *bench) (string, error)
	servers bool
	// settings of PostgreSQL, besides those of all, that nothing else is to be measured with: it gets
	// servers of its own. Default: those that scenarios share.
	settings map[string]string
}

// shownColumns are those of its tables.
func (s scenario) shownColumns() []column {
	if len(s.columns) == 0 {
		return standardColumns
	}
	return s.columns
}

// needsServers reports whether it has something to measure on a stage.
func (s scenario) needsServers() bool { return s.custom == nil || s.servers }

// sharesServers reports whether that is the stage of all.
func (s scenario) sharesServers() bool { return s.needsServers() && s.settings == nil }

// A contest is measured as one: its contestants take turns.
type contest struct {
	// name says what they do, such as "50,000 waiting"; with path and load it is that of a line.
	name string
	// latency says what p50, p95 and p99 are of.
	latency string
	// reference is the contestant that the others are compared with. Default: none.
	reference   string
	contestants []contestant
	targets     []target
	// most bounds how often each contestant is measured, where a run takes long. Default: as often as asked for.
	most int
}

// runs is how often each contestant is measured where so many runs are asked for.
func (c contest) runs(asked int) int {
	if c.most > 0 {
		return min(c.most, asked)
	}
	return asked
}

// A contestant does the work in one way. Each of its runs has a database of its own.
type contestant struct {
	name string
	// path to the server: viaPooler (the default), direct or viaStandIn.
	path string
	// named turns pgx's statement cache on.
	named bool
	// base is what its databases hold before fill: basePith (the default), or a name in bases.
	base string
	// fill puts so many tasks into the database, past the pooler; backlog is how many. It is done once for
	// all of a contest that have the same base, filling and backlog: what came of it is cloned for each run.
	// Default: drive makes its own work.
	fill    filling
	backlog int
	// stock: the backlog is there to be looked at. Default: the run works it off.
	stock bool
	// begin prepares a run, past the pooler and before anything is measured. What it returns ends it.
	begin func(ctx context.Context, p *pgxpool.Pool) (end func(context.Context) error, err error)
	// drive does tasks until its context ends, lets those under way end, and then returns nil.
	drive func(ctx context.Context, t *trial) error
	// timed: the latencies are of the flights on the trial's pools, not of what drive reports.
	timed bool
	// recorded is SQL that counts the tasks which the database has as done. At the end of a run that
	// must be as many as drive has reported. Default: not checked.
	recorded string
	// warmUp and window are how long the run warms up and is measured, where they differ from the pace's.
	warmUp, window time.Duration
	// many: the warm-up begins when drive has called assembled.
	many bool
	// idle: there need not be any tasks in the window. Drive tells by one that it is ready for it.
	idle bool
	// observe is called after each reading: when the window begins, and when it ends. Default: nothing.
	observe func(ctx context.Context, t *trial, now reading) error
	// measure is the whole run, for what fits into no window. Default: what the fields above say.
	measure func(ctx context.Context, b *bench, c contestant) (Sample, error)
	// when tells when measure does so. Default: in the window, after the warm-up.
	when string
}

// A filling is a way to make a backlog. Fillings of one name do the same.
type filling struct {
	name string
	do   func(ctx context.Context, p *pgxpool.Pool, backlog int) error // nil: nothing
}

// A pace says how long a run takes, and how much there is to do.
type pace struct {
	// warmUp and window are those of a run without a backlog.
	warmUp, window time.Duration
	// longest bounds each of the two where there is one: the window is that between a tenth and nine
	// tenths of the backlog.
	longest time.Duration
	// quick runs are to show that everything works. They work off the whole backlog.
	quick bool
	// share of the size of things that scenarios should use.
	share float64
}

// size is n in a full run, and less in a quick one, but at least least.
func (p pace) size(n, least int) int {
	return max(int(float64(n)*p.share), min(n, least))
}

// A bench is what a scenario runs on.
type bench struct {
	stage    *stage // nil without servers
	runs     int
	pace     pace
	others   float64 // percent of the CPUs that others may take
	progress io.Writer
	plan     *plan
	// plots is the directory for SVG files; "" for none.
	plots string
}

// turn is which of n is measured as number i: A B C, C B A, A B C and so on, so that what drifts hits
// all.
func turn(i, n int) int {
	if (i/n)%2 == 0 {
		return i % n
	}
	return n - 1 - i%n
}

// How often one run is tried on a machine that others use, and how long they are waited for.
const (
	mostTries  = 30
	retryPause = 10 * time.Second
)

// undisturbed measures until others take no more than most percent of the CPUs. Runs are chosen by that
// alone, whatever came of them.
func undisturbed(ctx context.Context, most float64, pause time.Duration, measure func() (Sample, error)) (Sample, error) {
	for try := 1; ; try++ {
		s, err := measure()
		if err != nil || s.Others <= most {
			return s, err
		}
		if try == mostTries {
			return s, fmt.Errorf("others took %.0f %% of the CPUs, and too much in %d tries: wait for a quiet machine, or allow more by -others", s.Others, try)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return s, context.Cause(ctx)
		}
	}
}

// hold measures a contest. A contestant that cannot be measured here has a note instead of samples.
func (b *bench) hold(ctx context.Context, of scenario, c contest) (_ Contest, err error) {
	out := Contest{Name: c.name, Latency: c.latency, Reference: c.reference}
	defer func() {
		if b.stage != nil {
			err = b.stage.forget(ctx, err)
		}
	}()
	for _, one := range c.contestants {
		p := b.stage.path(one.path)
		line := Line{Contestant: one.name, Path: p.name, When: one.measured(b.pace), Note: p.none}
		if one.named && line.Note == "" {
			line.Note = p.noNamed
		}
		out.Lines = append(out.Lines, line)
	}
	for i := range c.runs(b.runs) * len(c.contestants) {
		n := turn(i, len(c.contestants))
		one, line := c.contestants[n], &out.Lines[n]
		step := planned{of.name, c.key(), one.name}
		if line.Note != "" {
			b.plan.took(step, 0)
			continue
		}
		began := time.Now()
		what := fmt.Sprintf("%s, %s, %s", of.name, c.name, one.name)
		s, err := undisturbed(ctx, b.others, retryPause, func() (Sample, error) {
			s, err := b.measure(ctx, one)
			if err == nil {
				err = c.verify(one.name, of.shownColumns(), s)
			}
			if err == nil && s.Others > b.others {
				fmt.Fprintf(b.progress, "%s: others took %.0f %% of the CPUs, once more\n", what, s.Others)
			}
			return s, err
		})
		if err != nil {
			return out, fmt.Errorf("%s: %w", what, err)
		}
		line.Samples = append(line.Samples, s)
		b.plan.took(step, time.Since(began))
		fmt.Fprintf(b.progress, "%s %s: %s tasks/s; others took %.0f %% of the CPUs\n", b.plan, what, figure(s.Tasks), s.Others)
	}
	for _, t := range c.targets {
		v := t.judge(out.Lines)
		if v.Note == notMeasured {
			return out, fmt.Errorf("%s, %s: the target %q was not measured", of.name, c.name, v.Target)
		}
		out.Targets = append(out.Targets, v)
	}
	return out, nil
}

func (b *bench) measure(ctx context.Context, c contestant) (Sample, error) {
	if c.measure != nil {
		return c.measure(ctx, b, c)
	}
	return b.stage.measure(ctx, b.pace, c)
}

// expected is about how long one run takes.
func (c contestant) expected(p pace) time.Duration {
	const (
		around = 2 * time.Second // a database is cloned, read and dropped
		rate   = 10_000          // tasks per second
	)
	warmUp, window := c.span(p)
	if !c.worksOff() {
		return around + warmUp + window
	}
	return around + min(warmUp+window, time.Duration(c.backlog)*time.Second/rate)
}

// worksOff reports whether a run works off a backlog.
func (c contestant) worksOff() bool { return c.fill.do != nil && !c.stock }

// span is how long a run warms up and is measured, at most.
func (c contestant) span(p pace) (warmUp, window time.Duration) {
	warmUp, window = p.warmUp, p.window
	if c.worksOff() {
		warmUp, window = p.longest, p.longest
	}
	if c.warmUp > 0 {
		warmUp = c.warmUp
	}
	if c.window > 0 {
		window = c.window
	}
	return warmUp, window
}

// measured says when in a run is measured.
func (c contestant) measured(p pace) string {
	warmUp, window := c.span(p)
	after := ""
	if c.many {
		after = ", when all are there,"
	}
	switch {
	case c.when != "":
		return c.when
	case c.worksOff() && p.quick:
		return fmt.Sprintf("until nine tenths of the backlog are done, for %s at most", window)
	case c.worksOff():
		return fmt.Sprintf("from a tenth of the backlog, or %s,%s until nine tenths, for %s at most", warmUp, after, window)
	}
	return fmt.Sprintf("for %s after a warm-up of %s", window, warmUp)
}

// A plan knows what there is to do, to tell how long it will take.
type plan struct {
	steps, done int
	// passed is what the runs were expected to take that were measured, and actual what they took.
	passed, actual time.Duration
	todo           map[planned]*work
}

// planned names a contestant of a plan.
type planned struct{ scenario, contest, contestant string }

// work is what is planned for a contestant.
type work struct {
	runs     int // that are left
	expected time.Duration
	last     time.Duration // what a run took; 0 before the first
}

// add plans the contests of a scenario, each contestant so many times.
func (p *plan) add(scenario string, contests []contest, pace pace, runs int) {
	if p.todo == nil {
		p.todo = map[planned]*work{}
	}
	for _, c := range contests {
		for _, one := range c.contestants {
			p.steps += c.runs(runs)
			p.todo[planned{scenario, c.key(), one.name}] = &work{runs: c.runs(runs), expected: one.expected(pace)}
		}
	}
}

// took notes what a run has taken; 0 if it was left out.
func (p *plan) took(step planned, actual time.Duration) {
	p.done++
	w := p.todo[step]
	w.runs--
	if actual > 0 {
		w.last = actual
		p.passed += w.expected
		p.actual += actual
	}
}

// left is about how long the rest will take: what a contestant took before, or what it is expected to
// take, by how right that was of the others.
func (p *plan) left() time.Duration {
	var known, guessed time.Duration
	for _, w := range p.todo {
		if w.last > 0 {
			known += time.Duration(w.runs) * w.last
		} else {
			guessed += time.Duration(w.runs) * w.expected
		}
	}
	if p.passed > 0 {
		guessed = time.Duration(float64(guessed) * float64(p.actual) / float64(p.passed))
	}
	return known + guessed
}

// String tells how far it is.
func (p *plan) String() string {
	return fmt.Sprintf("[%d/%d, about %s left]", p.done, p.steps, p.left().Round(time.Second))
}

// key tells a contest from the others of its scenario.
func (c contest) key() string {
	if len(c.contestants) == 0 {
		return c.name
	}
	return c.contestants[0].path + "/" + c.name
}

// poolConfig is that of a process with so many connections.
func (c contestant) poolConfig(conns int, t *trial) pool.Config {
	return pool.Config{MaxConns: int32(conns), NamedStatements: c.named, Tracer: t.Tracer(c.timed)}
}

// names of the contestants.
func (c contest) names() []string {
	var out []string
	for _, one := range c.contestants {
		out = append(out, one.name)
	}
	return out
}

// check finds what is wrong with the definition of a contest.
func (c contest) check() error {
	names := c.names()
	if c.reference != "" && !slices.Contains(names, c.reference) {
		return fmt.Errorf("%s: no contestant %q to compare with", c.name, c.reference)
	}
	for _, t := range c.targets {
		for _, name := range []string{t.of, t.against} {
			if name != "" && !slices.Contains(names, name) {
				return fmt.Errorf("%s: no contestant %q for a target", c.name, name)
			}
		}
	}
	return nil
}
