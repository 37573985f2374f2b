package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

// What a pick-up may take.
const (
	pickupP50   = 15.0 // ms
	pickupP99   = 80.0
	wakeupLimit = 300.0
)

var pickupColumns = []column{p50, p95, p99, tasksPerSecond, statementRate, databaseShare, poolerShare, clientShare, serverConnects, own(missed)}

// pickups has fleets of several sizes wait for a task every workload.PickupEvery.
func pickups(pace pace) []contest {
	sizes := []int{1, 20, 200, 1000}
	window := 30 * time.Second
	if pace.quick {
		sizes, window = []int{1, 12}, 2*time.Second
	}
	var contests []contest
	for _, n := range sizes {
		c := contest{
			name: fmt.Sprintf("a task every %s, %d workers", workload.PickupEvery, n), latency: "dispatch to start", most: 3,
			contestants: []contestant{{name: pith, drive: pithPickup(n), recorded: pithCompleted}},
			targets:     []target{{of: pith, figure: p50, most: pickupP50}, {of: pith, figure: p99, most: pickupP99}, noneMissed(pith)},
		}
		if n > 1 && n < 1000 {
			for _, w := range []riverWay{riverTuned, riverDefaults} {
				one := w.contestant()
				one.drive = w.pickup(n)
				c.contestants = append(c.contestants, one)
			}
		}
		for i := range c.contestants {
			one := &c.contestants[i]
			// The first tasks come when the fleet has settled.
			one.warmUp, one.window = 2*time.Second, window
			if i == 0 && n > 1 && !pace.quick {
				one.warmUp += settling + time.Duration(n)*2*apart
			}
		}
		contests = append(contests, c)
	}
	return contests
}

// noneMissed is a target: nobody was declared missing.
func noneMissed(of string) target { return target{of: of, figure: own(missed), none: true} }

func pithPickup(workers int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		times := workload.Pickup{Meter: &t.Meter}
		return staffed(ctx, t, workers, times.Started, func(ctx context.Context) error {
			c, err := dispatcher(ctx, t)
			if err != nil {
				return err
			}
			return every(ctx, workload.PickupEvery, func(ctx context.Context) error {
				done, err := c.Dispatch(ctx, workload.Requests(0, 1, nil)[0])
				if err == nil {
					times.Dispatched(done.ID)
				}
				return err
			})
		})
	}
}

// dispatcher is a client with connections of its own, as in another process: the workers are not told.
func dispatcher(ctx context.Context, t *trial) (*tasking.Client, error) {
	p, err := t.open(ctx, 2)
	if err != nil {
		return nil, err
	}
	return workload.NewClient(p, workload.Nothing, tasking.Config{})
}

// every calls once at each tick until ctx ends; a call that is under way then is let finish.
func every(ctx context.Context, pause time.Duration, once func(context.Context) error) error {
	ticks := time.NewTicker(pause)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil
		}
		if err := once(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
}

// riverTimed are the arguments of a job that tells when it starts.
type riverTimed struct {
	ID uuid.UUID `json:"id"`
}

func (riverTimed) Kind() string { return "bench_timed" }

// crew starts so many clients of one worker each, which share a pool.
func (w riverWay) crew(ctx context.Context, p *pgxpool.Pool, clients int, started func(uuid.UUID)) ([]*river.Client[pgx.Tx], error) {
	var all []*river.Client[pgx.Tx]
	for range clients {
		registered := river.NewWorkers()
		river.AddWorker(registered, river.WorkFunc(func(_ context.Context, job *river.Job[riverTimed]) error {
			started(job.Args.ID)
			return nil
		}))
		c, err := w.clientOf(p, 1, registered)
		if err == nil {
			err = c.Start(ctx)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start River: %w", err), stopRiver(ctx, all))
		}
		all = append(all, c)
	}
	return all, nil
}

func (w riverWay) pickup(clients int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, workerConns)
		if err != nil {
			return err
		}
		times := workload.Pickup{Meter: &t.Meter}
		life := context.WithoutCancel(ctx)
		all, err := w.crew(life, p, clients, func(id uuid.UUID) { times.Started(life, &tasking.Run{Claim: tasking.Claim{ID: id}}) })
		if err != nil {
			return err
		}
		own, err := t.open(ctx, 2)
		if err != nil {
			return errors.Join(err, stopRiver(life, all))
		}
		inserts, err := river.NewClient(riverpgxv5.New(own), &river.Config{Logger: quiet})
		if err == nil {
			err = every(ctx, workload.PickupEvery, func(ctx context.Context) error {
				id, err := uuid.NewV7()
				if err != nil {
					return err
				}
				if _, err := inserts.Insert(ctx, riverTimed{id}, nil); err != nil {
					return err
				}
				times.Dispatched(id)
				return nil
			})
		}
		return errors.Join(err, stopRiver(life, all))
	}
}
