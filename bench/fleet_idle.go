package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/internal/workload"
)

var idleColumns = []column{databaseShare, poolerShare, clientShare, statementRate, serverConnects, own(missed)}

// idles has fleets do nothing.
func idles(pace pace) []contest {
	type size struct {
		workers int
		window  time.Duration
		most    float64 // percent of a core that the database may take; 0: no target
		runs    int
	}
	const long = 10 * time.Minute
	sizes := []size{{50, 30 * time.Second, 0, 3}, {250, 30 * time.Second, 0, 3}, {1000, long, 5, 1}, {10_000, long, 30, 1}}
	if pace.quick {
		sizes = []size{{10, time.Second, 0, 1}, {50, time.Second, 0, 1}}
	}
	var contests []contest
	for _, s := range sizes {
		c := contest{
			name: fmt.Sprintf("%d workers without tasks, for %s", s.workers, s.window), latency: noLatency, most: s.runs,
			contestants: []contestant{{name: pith, drive: pithIdle(s.workers), idle: true, window: s.window}},
			targets:     []target{noneMissed(pith)},
		}
		if s.most > 0 {
			c.targets = append(c.targets, target{of: pith, figure: databaseShare, most: s.most})
		}
		c.contestants = append(c.contestants, contestant{
			name: "floor: a bare update per worker and beat", base: baseFloor, drive: floorBeats(s.workers), idle: true,
			window: min(s.window, time.Minute),
		})
		if s.workers < 10_000 {
			one := riverDefaults.contestant()
			one.drive, one.idle, one.window, one.recorded = riverDefaults.idle(s.workers), true, min(s.window, time.Minute), ""
			if one.window < s.window {
				one.name += fmt.Sprintf(", for %s", one.window)
			}
			c.contestants = append(c.contestants, one)
			c.reference = one.name
		}
		contests = append(contests, c)
	}
	return contests
}

func pithIdle(workers int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		return staffed(ctx, t, workers, workload.Nothing, func(ctx context.Context) error {
			t.Done(1)
			<-ctx.Done()
			return nil
		})
	}
}

// floorBeats updates as many rows per second, one at a time and at random, as the workers send beats.
func floorBeats(workers int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, workerConns)
		if err != nil {
			return err
		}
		if err := emptyRows.do(ctx, p, workers); err != nil {
			return err
		}
		t.Done(1)
		all, ctx := errgroup.WithContext(ctx)
		for ctx.Err() == nil {
			apart := time.Duration(rand.ExpFloat64() * float64(beatsApart) / float64(workers))
			if t.pace.quick {
				apart = 20 * time.Millisecond
			}
			if resend.Sleep(ctx, apart) != nil {
				break
			}
			all.Go(func() error {
				_, err := p.Exec(context.WithoutCancel(ctx), "UPDATE floor SET started_at = now() WHERE id = $1", 1+rand.IntN(workers))
				return err
			})
		}
		return all.Wait()
	}
}

func (w riverWay) idle(clients int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, workerConns)
		if err != nil {
			return err
		}
		life := context.WithoutCancel(ctx)
		all, err := w.crew(life, p, clients, func(uuid.UUID) {})
		if err != nil {
			return err
		}
		if !t.pace.quick {
			err = resend.Sleep(ctx, settling)
		}
		if err == nil {
			t.Done(1)
			<-ctx.Done()
		}
		return stopRiver(life, all)
	}
}

// wakeups has fleets wait for the first task after a minute without any.
func wakeups(pace pace) []contest {
	sizes, silence := []int{1, 20, 200}, time.Minute
	if pace.quick {
		sizes, silence = []int{1, 10}, time.Second
	}
	c := contest{
		name: fmt.Sprintf("the first task after %s", silence), latency: "dispatch to start",
		contestants: []contestant{{name: pith, measure: func(ctx context.Context, b *bench, c contestant) (Sample, error) {
			return b.wakeup(ctx, c, sizes, silence)
		}, warmUp: settling, window: silence, when: "with the one task that is dispatched after the silence"}},
	}
	for _, n := range sizes {
		c.targets = append(c.targets, target{of: pith, figure: own(wakeupOf(n)), most: wakeupLimit})
	}
	return []contest{c}
}

// longestWakeup is the figure of the fleet that took the longest.
const longestWakeup = "longest of all fleets: ms"

func wakeupOf(workers int) string { return fmt.Sprintf("%d workers: ms", workers) }

// wakeup runs fleets of several sizes at the same time, each on a database of its own, so that their
// silences cost one.
func (b *bench) wakeup(ctx context.Context, c contestant, sizes []int, silence time.Duration) (s Sample, err error) {
	trials := make([]*trial, len(sizes))
	var ends []func(error) error
	defer func() {
		for _, end := range ends {
			err = end(err)
		}
	}()
	for i := range trials {
		var end func(error) error
		if trials[i], end, err = b.stage.trial(ctx, b.pace, c); err != nil {
			return s, err
		}
		ends = append(ends, end)
	}
	from, err := b.stage.read(ctx, trials[0])
	if err != nil {
		return s, err
	}
	took := make([]time.Duration, len(sizes))
	all, running := errgroup.WithContext(ctx)
	for i, n := range sizes {
		all.Go(func() (err error) {
			took[i], err = firstTask(running, trials[i], n, silence)
			return err
		})
	}
	if err := errors.Join(all.Wait(), ctx.Err()); err != nil { // fleets that are told to end do so without an error
		return s, err
	}
	to, err := b.stage.read(ctx, trials[0])
	if err != nil {
		return s, err
	}
	s = Sample{Others: from.until(to, trials[0]).Others, More: map[string]float64{}}
	for i, n := range sizes {
		ms := took[i].Seconds() * 1e3
		s.More[wakeupOf(n)] = ms
		s.More[longestWakeup] = max(s.More[longestWakeup], ms)
	}
	return s, nil
}

// firstTask is how long the first task waits after a silence.
func firstTask(ctx context.Context, t *trial, workers int, silence time.Duration) (took time.Duration, err error) {
	times := workload.Pickup{Meter: &t.Meter}
	err = staffed(ctx, t, workers, times.Started, func(ctx context.Context) error {
		c, err := dispatcher(ctx, t)
		if err != nil {
			return err
		}
		one := func(nth int) error {
			task, err := c.Dispatch(ctx, workload.Requests(0, 1, nil)[0])
			if err != nil {
				return err
			}
			times.Dispatched(task.ID)
			select {
			case <-t.Mark(nth):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		// The first task makes the connection, and begins the silence.
		if err := one(1); err != nil {
			return err
		}
		before := t.Counts()
		if err := resend.Sleep(ctx, silence); err != nil {
			return err
		}
		if err := one(2); err != nil {
			return err
		}
		took = t.Latencies(before, t.Counts())[0]
		return nil
	})
	return took, err
}
