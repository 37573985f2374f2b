package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pithworks/pith/bench/simulate"
	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/internal/workload"
)

// The scenario simulate needs no database: fleets run on virtual time, see package simulate.

// simulationSeed makes all random numbers, so that the same code gives the same tables.
const simulationSeed = 1

// simulated is what was found for one size of fleets.
type simulated struct {
	workers              int
	p50, p99             time.Duration // a task every 50 ms
	wake50, wake99       time.Duration // the first one after a minute
	busy, idle, beats    float64       // polls, polls, beats per second
	house, all, longIdle float64
}

// simulations runs all simulations and writes their tables and plots.
func simulations(ctx context.Context, b *bench) (string, error) {
	sizes := []int{1, 10, 100, 1000, 10_000, 100_000}
	if b.pace.quick {
		sizes = sizes[:4]
	}
	var out strings.Builder
	fmt.Fprintf(&out, "Workers of one slot, on virtual time; their pauses are decided by the production code. The database answers after 1 to 2 ms "+
		"and is never slow. R is %.0f polls per second, falling to %.0f.\n\n", pacing.RateBusy, pacing.RateIdle)
	var rows []simulated
	for _, n := range sizes {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		rows = append(rows, simulateSize(n, b.pace.quick))
		fmt.Fprintf(b.progress, "simulated %s workers\n", thousands(float64(n)))
	}
	sizeTables(&out, rows)
	events, err := simulateEvents(ctx, b, &out)
	if err != nil {
		return "", err
	}
	if b.plots == "" {
		return out.String(), nil
	}
	files, err := drawSimulations(b.plots, rows, events)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		fmt.Fprintf(&out, "\n![%s](%s/%s)\n", strings.TrimSuffix(f, ".svg"), filepath.Base(b.plots), f)
	}
	return out.String(), nil
}

func simulateSize(n int, quick bool) simulated {
	steady, trials := 10*time.Minute, 300
	switch {
	case quick:
		steady, trials = time.Minute, 30
	case n > 1000: // a larger fleet has more events in a second of its life, and the same statistics
		steady, trials = time.Minute, 0
	}
	s := simulated{workers: n}
	c := simulate.Steady(simulationSeed, n, steady)
	r := simulate.Run(c)
	s.p50, _ = r.Waited(50, 0, steady)
	s.p99, _ = r.Waited(99, 0, steady)
	s.busy, s.beats, s.house = r.Per(0, steady, simulate.Poll), r.Per(0, steady, simulate.Beat), r.Per(0, steady, simulate.House)
	s.all = r.Per(0, steady, simulate.All...)
	c = simulate.Idle(simulationSeed, n, time.Minute, time.Minute)
	r = simulate.Run(c)
	s.idle = r.Per(0, time.Minute, simulate.Poll)
	r = simulate.Run(simulate.Idle(simulationSeed, n, 24*time.Hour, time.Minute))
	s.longIdle = r.Per(0, time.Minute, simulate.Poll)
	var waits []time.Duration
	if trials == 0 {
		// So few of the workers see a task that the others go on as in silence.
		const every = 200 * time.Millisecond
		c.Tasks = []simulate.Stream{{Every: every, Count: int(59 * time.Second / every)}}
		for _, w := range simulate.Run(c).Waits {
			waits = append(waits, w.Waited)
		}
	}
	for i := range trials {
		for _, w := range simulate.Run(simulate.Wakeup(uint64(i), n)).Waits {
			waits = append(waits, w.Waited)
		}
	}
	slices.Sort(waits)
	s.wake50, s.wake99 = workload.Percentile(waits, 50), workload.Percentile(waits, 99)
	return s
}

func inMS(d time.Duration) float64 { return d.Seconds() * 1e3 }

func sizeTables(out *strings.Builder, rows []simulated) {
	table(out, "workers", "p50 ms", "p99 ms", "after a minute of silence: p50 ms", "p99 ms", "polls/s", "after a minute", "after a day", "beats/s",
		"housekeeping/s", "all/s")
	for _, s := range rows {
		tableRow(out, thousands(float64(s.workers)), figure(inMS(s.p50)), figure(inMS(s.p99)), figure(inMS(s.wake50)), figure(inMS(s.wake99)),
			figure(s.busy), figure(s.idle), figure(s.longIdle), shortFigure(s.beats), figure(s.house), shortFigure(s.all))
	}
	fmt.Fprintf(out, "\nThe first columns are the wait of a task, one coming every 50 ms, until its function begins; the rates are statements per "+
		"second of the whole fleet, the housekeeping's four per time. Turns, which end a task, are not in them: they are the work.\n\n")
}

// An event is something that happens to a fleet.
type event struct {
	name     string
	workers  int // in the end
	config   simulate.Config
	from, to time.Duration // what counts of the rates
	waits    time.Duration // tasks that came since then count
	result   simulate.Result
}

func simulateEvents(ctx context.Context, b *bench, out *strings.Builder) ([]event, error) {
	const seed = simulationSeed
	minute, from := time.Minute, 10*time.Second
	down := func(workers int, length time.Duration) event {
		name := "a minute"
		if length < minute {
			name = fmt.Sprintf("%.0f s", length.Seconds())
		}
		return event{
			name: fmt.Sprintf("outage of %s, %s workers", name, thousands(float64(workers))), workers: workers,
			config: simulate.Down(seed, workers, length), from: from + length,
		}
	}
	events := []event{
		{name: "25 → 150 → 1000 workers in 7 s", workers: 1000, config: simulate.ScaleUp(seed, 0)},
		{name: "the same, 2000 tasks of 5 s waiting", workers: 1000, config: simulate.ScaleUp(seed, 2000)},
		{name: "0 → 1000 workers in 5 s", workers: 1000, config: simulate.ColdStart(seed, 1000)},
		{name: "1000 killed, 1000 started", workers: 1000, config: simulate.Restart(seed, 1000), from: from},
		{name: "900 of 1000 killed", workers: 100, config: simulate.ScaleDown(seed, 1000), from: from},
		down(1000, 10*time.Second), down(1000, 15*time.Second), down(1000, 20*time.Second), down(1000, 27*time.Second), down(1000, minute),
		down(10_000, 10*time.Second), down(10_000, minute),
		{name: "100 tasks for 100 idle workers", workers: 100, config: simulate.Burst(seed, 100, 3*minute)},
		{name: "1000 tasks for 1000 idle workers", workers: 1000, config: simulate.Burst(seed, 1000, 3*minute)},
		{name: "10,000 tasks for 10,000 idle workers", workers: 10_000, config: simulate.Burst(seed, 10_000, 3*minute)},
		{name: "1000 workers, 950 with long tasks", workers: 1000, config: simulate.MostlyBusy(seed, 1000, 20), from: 10 * minute, waits: 10 * minute},
		{name: "1000 workers, 990 with long tasks", workers: 1000, config: simulate.MostlyBusy(seed, 1000, 100), from: 10 * minute, waits: 10 * minute},
	}
	if b.pace.quick {
		events = slices.DeleteFunc(events, func(e event) bool { return e.workers > 1000 })
	}
	table(out, "what happens", "polls/s, highest second", "÷ R", "beats, looks, housekeeping/s, highest second", "registrations/s, highest second",
		"wait p50", "p99", "longest", "leases lost")
	for i := range events {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e := &events[i]
		e.to = e.config.Until
		e.result = simulate.Run(e.config)
		peak := func(of ...simulate.Kind) float64 { return e.result.Peak(time.Second, e.from, e.to, of...) }
		wait := func(p int) string {
			d, n := e.result.Waited(p, e.waits, e.to)
			if n == 0 {
				return "–"
			}
			return shortDuration(d)
		}
		tableRow(out, e.name, figure(peak(simulate.Poll)), ratio(peak(simulate.Poll)/pacing.RateBusy),
			shortFigure(peak(simulate.Beat, simulate.Look, simulate.House)), shortFigure(peak(simulate.Register)),
			wait(50), wait(99), wait(100), fmt.Sprint(e.result.Lost))
		fmt.Fprintf(b.progress, "simulated: %s\n", e.name)
	}
	fmt.Fprintf(out, "\nThere is a task every 50 ms, but for the bursts, whose tasks come all at once and take a minute each, and with long tasks, where "+
		"one per second comes for the others. The rates of an outage are those from its end on, those of a kill from the kill on, those with "+
		"long tasks from when the others' tasks come. The waits are of all tasks, also those that came before, but not of the long ones. "+
		"A lease is %s.\n", simulate.TTL)
	return events, nil
}

// shortDuration shows a wait with as many digits as matter.
func shortDuration(d time.Duration) string {
	if d < time.Second {
		return figure(inMS(d)) + " ms"
	}
	return figure(d.Seconds()) + " s"
}

func drawSimulations(dir string, rows []simulated, events []event) ([]string, error) {
	values := func(of func(simulated) float64) curve {
		var c curve
		for _, s := range rows {
			c.xs, c.ys = append(c.xs, float64(s.workers)), append(c.ys, of(s))
		}
		return c
	}
	named := func(name string, c curve) curve { c.name = name; return c }
	charts := map[string]chart{
		"simulate-pickup.svg": {
			title: "Simulated: wait of a task until its function begins", xLabel: "workers", yLabel: "ms", logX: true,
			curves: []curve{
				named("p50, a task every 50 ms", values(func(s simulated) float64 { return inMS(s.p50) })),
				named("p99", values(func(s simulated) float64 { return inMS(s.p99) })),
				named("p99 of the first task after a minute of silence", values(func(s simulated) float64 { return inMS(s.wake99) })),
			},
			limits: []limit{{"targets: p50 15 ms, p99 80 ms", 80}, {"after a minute 300 ms", 300}},
		},
		"simulate-rates.svg": {
			title: "Simulated: statements of a fleet", xLabel: "workers", yLabel: "statements/s", logX: true, logY: true,
			curves: []curve{
				named("polls", values(func(s simulated) float64 { return s.busy })),
				named("polls after a day of silence", values(func(s simulated) float64 { return s.longIdle })),
				named("beats", values(func(s simulated) float64 { return s.beats })),
			},
		},
	}
	for file, e := range map[string]event{"simulate-scaleup.svg": events[0], "simulate-outage.svg": find(events, "outage of a minute, 1,000")} {
		series := func(name string, of simulate.Kind) curve {
			c := curve{name: name, ys: e.result.Series(time.Second, of)}
			for i := range c.ys {
				c.xs = append(c.xs, float64(i))
			}
			return c
		}
		charts[file] = chart{
			title: "Simulated: " + e.name, xLabel: "s", yLabel: "statements/s",
			curves: []curve{series("polls", simulate.Poll), series("beats", simulate.Beat), series("registrations", simulate.Register)},
			limits: []limit{{"1.5 × the polls' budget", 1.5 * pacing.RateBusy}},
		}
	}
	bursts := chart{
		title: "Simulated: as many tasks as idle workers, all at once", xLabel: "s", yLabel: "% of the tasks running",
		limits: []limit{{"all", 100}},
	}
	for _, e := range events {
		if strings.Contains(e.name, "tasks for") {
			bursts.curves = append(bursts.curves, started(e))
		}
	}
	charts["simulate-burst.svg"] = bursts
	var files []string
	for file, c := range charts {
		if err := plotChart(filepath.Join(dir, file), c); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	slices.Sort(files)
	return files, nil
}

func find(events []event, name string) event {
	return events[slices.IndexFunc(events, func(e event) bool { return strings.HasPrefix(e.name, name) })]
}

// started is how much of a burst was begun after so many seconds, in its first minute.
func started(e event) curve {
	c := curve{name: e.name}
	for s := 0.0; s <= 60; s++ {
		n := 0
		for _, w := range e.result.Waits {
			if w.Waited.Seconds() <= s {
				n++
			}
		}
		c.xs, c.ys = append(c.xs, s), append(c.ys, math.Round(1e4*float64(n)/float64(e.workers))/100)
	}
	return c
}
