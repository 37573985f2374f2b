package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// A day as a busy Pulp service has it, a hundred times as fast: the tasks come and end so much sooner.
const (
	mixedCompressed = 100
	mixedTasks      = 250_000 // a day
	mixedRate       = mixedTasks * mixedCompressed / (24 * 60 * 60.0)
	mixedImmediate  = 0.7
	// mixedLong is the part of the other tasks that is long.
	mixedLong = 0.03
	// Repositories are chosen by the law of Zipf and Mandelbrot, the k-th of 0, 1, … in proportion to
	// (5 + k)^-1.01: the first gets 3 % of all tasks.
	mixedRepositories = 5000
	mixedExponent     = 1.01
	mixedOffset       = 5
	mixedWorkers      = 100
	mixedGoroutines   = 32
)

// How long the tasks take; compressed, like all.
const (
	immediateTakes = time.Millisecond      // 0.1 s of a day
	ordinaryTakes  = 20 * time.Millisecond // 2 s on average, exponentially distributed
	longTakes      = time.Second           // 100 s
)

// Figures of the scenario.
const (
	blockedP99 = "p99 ms with the wait for resources"
	backlogEnd = "waiting at the end"
	lateStarts = "late dispatches"
)

var mixedColumns = []column{
	tasksPerSecond, p50, p95, p99, own(blockedP99), own(backlogEnd), own(lateStarts), databaseCPU, poolerCPU, clientCPU, statementCount, walBytes,
	serverConnects, own(missed),
}

func mixed(pace pace) []contest {
	warmUp, length := 10*time.Second, time.Minute
	if pace.quick {
		warmUp, length = time.Second, 3*time.Second
	}
	return []contest{{
		name:    fmt.Sprintf("%d tasks a day, %d × as fast, for %s", mixedTasks, mixedCompressed, length),
		latency: "runnable to started", most: 3,
		contestants: []contestant{{name: pith, recorded: pithCompleted, warmUp: warmUp, window: length, measure: func(ctx context.Context, b *bench, c contestant) (Sample, error) {
			return b.mixed(ctx, c)
		}}},
		targets: []target{
			{of: pith, figure: tasksPerSecond, least: mixedRate * 0.97}, {of: pith, figure: p99, most: 1000}, noneMissed(pith),
		},
	}}
}

// The types of the tasks.
const (
	immediateTask = "pith.bench.immediate"
	ordinaryTask  = "pith.bench.ordinary"
)

// mixedRegistry knows the types; their tasks sleep as long as they are told, in nanoseconds.
func mixedRegistry(t *trial) (*tasking.Registry, error) {
	takes := func(ctx context.Context, _ *tasking.Run, d time.Duration) (struct{}, error) {
		err := resend.Sleep(ctx, d)
		t.Done(1)
		return struct{}{}, err
	}
	return tasking.NewRegistry(
		tasking.NewType(immediateTask, takes, tasking.TypeConfig{Immediate: true}),
		tasking.NewType(ordinaryTask, takes, tasking.TypeConfig{}),
	)
}

// mixedRequest is the next task.
func mixedRequest(random *rand.Rand, zipf *rand.Zipf) tasking.Request {
	r := tasking.Request{Options: tasking.Options{Exclusive: []string{fmt.Sprintf("pith-bench:repository:%d", zipf.Uint64())}}}
	takes := immediateTakes
	switch {
	case random.Float64() < mixedImmediate:
		r.Name, r.Immediate = immediateTask, true
	case random.Float64() < mixedLong:
		r.Name, takes = ordinaryTask, longTakes
	default:
		r.Name, takes = ordinaryTask, time.Duration(random.ExpFloat64()*float64(ordinaryTakes))
	}
	r.Args = takes
	return r
}

// mixed dispatches tasks as they come, and lets a crew run those that the dispatcher does not run itself.
func (b *bench) mixed(ctx context.Context, c contestant) (sample Sample, err error) {
	t, end, err := b.stage.trial(ctx, b.pace, c)
	if err != nil {
		return sample, err
	}
	defer func() { err = end(err) }()
	var late int
	registry, err := mixedRegistry(t)
	if err != nil {
		return sample, err
	}
	err = staffedBy(ctx, t, mixedWorkers, registry, func(ctx context.Context) error {
		var from reading
		warm := func() (err error) {
			from, err = b.stage.read(ctx, t)
			return err
		}
		if late, err = mixedDispatch(ctx, t, registry, warm); err != nil {
			return err
		}
		to, err := b.stage.read(ctx, t)
		if err != nil {
			return err
		}
		sample = from.until(to, t)
		return nil
	})
	if err = errors.Join(err, ctx.Err()); err != nil { // a fleet that is told to end does so without an error
		return sample, err
	}
	sample.More = t.more
	sample.More[lateStarts] = float64(late)
	if err := mixedWaits(ctx, t, &sample); err != nil {
		return sample, err
	}
	return sample, b.stage.verify(ctx, t)
}

// mixedDispatch dispatches in a Poisson process and calls warm after the warm-up. It answers how many
// dispatches had to wait for a goroutine after that: then the load was less than it should be.
func mixedDispatch(ctx context.Context, t *trial, registry *tasking.Registry, warm func() error) (late int, err error) {
	p, err := t.open(ctx, mixedGoroutines)
	if err != nil {
		return 0, err
	}
	app, err := appstatus.New(p, appstatus.Config{Type: appstatus.API})
	if err != nil {
		return 0, err
	}
	client, err := tasking.New(p, tasking.Config{Registry: registry, App: app})
	if err != nil {
		return 0, err
	}
	if err := app.Register(ctx); err != nil {
		return 0, err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	var beats errgroup.Group
	beats.Go(func() error { return app.Run(life) })

	requests := make(chan tasking.Request)
	var all errgroup.Group
	failed := make(chan struct{}, mixedGoroutines)
	for range mixedGoroutines {
		all.Go(func() error {
			for r := range requests {
				if _, err := client.Dispatch(life, r); err != nil {
					failed <- struct{}{}
					return err
				}
			}
			return nil
		})
	}
	random := rand.New(rand.NewPCG(1, 1))
	zipf := rand.NewZipf(random, mixedExponent, mixedOffset, mixedRepositories-1)
	start := time.Now()
	for next, warmed := time.Duration(0), false; next < t.contestant.warmUp+t.contestant.window && err == nil; {
		next += time.Duration(random.ExpFloat64() / mixedRate * float64(time.Second))
		if !warmed && next >= t.contestant.warmUp {
			warmed, late = true, 0
			err = warm()
		}
		if err = errors.Join(err, resend.Sleep(ctx, next-time.Since(start))); err != nil {
			break
		}
		r := mixedRequest(random, zipf)
		select {
		case requests <- r:
			continue
		default:
			late++
		}
		select {
		case requests <- r:
		case <-failed:
			err = errors.New("dispatch failed")
		}
	}
	close(requests)
	err = errors.Join(err, all.Wait())
	end()
	return late, errors.Join(err, beats.Wait(), app.Unregister(context.WithoutCancel(ctx)))
}

// mixedWaits reads from the database how long tasks waited: it is the only one to know when a task
// could have been begun.
func mixedWaits(ctx context.Context, t *trial, s *Sample) error {
	conn, err := pgx.Connect(ctx, t.direct)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var waiting int
	var blocked float64
	err = conn.QueryRow(ctx, `SELECT
		coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - unblocked_at) * 1000), 0)::float8,
		coalesce(percentile_disc(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - unblocked_at) * 1000), 0)::float8,
		coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - unblocked_at) * 1000), 0)::float8,
		coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at) * 1000), 0)::float8,
		(count(*) FILTER (WHERE started_at IS NULL))::int
		FROM task WHERE created_at >= (SELECT min(created_at) FROM task) + make_interval(secs => $1)`, t.contestant.warmUp.Seconds()).Scan(&s.P50, &s.P95, &s.P99, &blocked, &waiting)
	if err != nil {
		return fmt.Errorf("read the waits: %w", err)
	}
	s.More[blockedP99], s.More[backlogEnd] = blocked, float64(waiting)
	return nil
}
