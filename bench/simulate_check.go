package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pithworks/pith/bench/simulate"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/internal/workload"
)

// The scenario check compares the simulator with real fleets.

// checkedRates are what a fleet did under a task every workload.PickupEvery.
type checkedRates struct {
	polls, beats float64 // per second
	p50, p99     float64 // ms
	missing      int
}

// checks runs real fleets and simulated ones, and sets them side by side.
func checks(ctx context.Context, b *bench) (string, error) {
	if none := b.stage.path(viaPooler).none; none != "" {
		return none, nil
	}
	sizes, window := []int{10, 200, 1000}, time.Minute
	if b.pace.quick {
		sizes, window = []int{10, 20}, time.Second
	}
	var out strings.Builder
	fmt.Fprintf(&out, "Fleets of workers of one slot get a task every %s: real ones through PgBouncer for %s, in one process and each worker "+
		"under an identity of its own, after all know the fleet's size; and simulated ones for ten minutes. One run each. A real wait "+
		"begins when the dispatch has returned, a simulated one when the database has the task.\n\n", workload.PickupEvery, window)
	table(&out, "workers", "polls/s, simulated", "real", "p50 ms, simulated", "real", "p99 ms, simulated", "real", "beats/s, simulated", "real",
		"declared missing")
	for _, n := range sizes {
		fleet, err := b.checkReal(ctx, n, window)
		if err != nil {
			return "", fmt.Errorf("%d workers: %w", n, err)
		}
		model := checkSimulated(n)
		tableRow(&out, thousands(float64(n)), figure(model.polls), figure(fleet.polls), figure(model.p50), figure(fleet.p50),
			figure(model.p99), figure(fleet.p99), figure(model.beats), figure(fleet.beats), fmt.Sprint(fleet.missing))
		fmt.Fprintf(b.progress, "checked %s workers: %s polls/s, %s simulated\n", thousands(float64(n)), figure(fleet.polls), figure(model.polls))
	}
	return out.String(), nil
}

func checkSimulated(workers int) checkedRates {
	const length = 10 * time.Minute
	r := simulate.Run(simulate.Steady(simulationSeed, workers, length))
	p50, _ := r.Waited(50, 0, length)
	p99, _ := r.Waited(99, 0, length)
	return checkedRates{
		polls: r.Per(0, length, simulate.Poll), beats: r.Per(0, length, simulate.Beat), p50: inMS(p50), p99: inMS(p99), missing: r.Lost,
	}
}

// checkReal has a real fleet do what checkSimulated simulates.
func (b *bench) checkReal(ctx context.Context, workers int, window time.Duration) (_ checkedRates, err error) {
	c := contestant{name: pith, recorded: pithCompleted}
	t, end, err := b.stage.trial(ctx, b.pace, c)
	if err != nil {
		return checkedRates{}, err
	}
	defer func() { err = end(err) }()
	crew, counts, times, err := countedCrew(ctx, c, t, func(context.Context) {})
	if err != nil {
		return checkedRates{}, err
	}
	rates, err := b.watch(ctx, t, crew, counts, times, workers, window)
	counts.stop()
	gone, endErr := crew.end()
	if err := errors.Join(err, endErr); err != nil {
		return checkedRates{}, err
	}
	rates.missing = gone
	return rates, b.stage.verify(ctx, t)
}

// watch starts the workers of a crew, gives them tasks, and tells what they did in a window.
func (b *bench) watch(ctx context.Context, t *trial, crew *crew, counts *tally, times *workload.Pickup, workers int, window time.Duration) (checkedRates, error) {
	err := crew.add(ctx, workers, time.Duration(workers)*apart)
	if err == nil {
		err = crew.ready(ctx, t.direct)
	}
	settle, warmUp := settling, 2*time.Second
	if b.pace.quick {
		settle, warmUp = 0, tenth
	}
	if err == nil {
		err = resend.Sleep(ctx, settle)
	}
	if err != nil {
		return checkedRates{}, err
	}
	c, err := dispatcher(ctx, t)
	if err != nil {
		return checkedRates{}, err
	}
	dispatch := func(length time.Duration) error {
		limited, cancel := context.WithTimeout(ctx, length)
		defer cancel()
		err := every(limited, workload.PickupEvery, func(ctx context.Context) error {
			done, err := c.Dispatch(ctx, workload.Requests(0, 1, nil)[0])
			if err == nil {
				times.Dispatched(done.ID)
			}
			return err
		})
		return errors.Join(err, ctx.Err())
	}
	if err := dispatch(warmUp); err != nil {
		return checkedRates{}, err
	}
	before, from := t.Counts(), time.Since(counts.start)
	if err := dispatch(window); err != nil {
		return checkedRates{}, err
	}
	after, to := t.Counts(), time.Since(counts.start)
	took := t.Latencies(before, after)
	counts.stop()
	rate := func(of []int) float64 { return rateOf(of, from, to) }
	// Each task was ended by a turn; the others are polls.
	return checkedRates{
		polls: rate(counts.sent[0]) - rate(counts.ended), beats: rate(counts.sent[1]),
		p50: inMS(workload.Percentile(took, 50)), p99: inMS(workload.Percentile(took, 99)),
	}, nil
}

// rateOf is how many of a tally's counts came per second between two times, to a tenth of a second.
func rateOf(of []int, from, to time.Duration) float64 {
	first, last := int(from/tenth), int(to/tenth)
	sum := 0
	for _, n := range of[min(first, len(of)):min(last, len(of))] {
		sum += n
	}
	return per(float64(sum), (time.Duration(last-first) * tenth).Seconds())
}
