package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// The variants of the scenario statements.
const (
	unnamed = "unnamed"
	named   = "named"
)

// statements compares unnamed statements, the default, with named ones, which pgx's cache prepares once
// for each connection.
func statements(ctx context.Context, b *bench) ([]Line, error) {
	return b.compare(ctx, b.stage.paths, []load{
		{name: "insert of one row, for reference", latency: "insert", drive: insertRows},
		{name: "dispatch, one at a time", latency: "dispatch", drive: dispatcher(0)},
		{name: "dispatch with a resource, one at a time", latency: "dispatch", drive: dispatcher(resources)},
		{
			name: fmt.Sprintf("worker of %d slots, empty tasks", manySlots), latency: "turn", timesTurns: true,
			fill: backlog(""), drive: works(manySlots, noop),
		},
		{
			name: "chain on one exclusive resource", latency: "task to task",
			fill: backlog("bench:chain"), fraction: 8, drive: works(1, chain),
		},
	})
}

const (
	// resources is how many the dispatches with a resource go round.
	resources = 1000
	// manySlots are those of the worker that is to be kept busy.
	manySlots = 200
	// batch is how many tasks of the backlog one statement dispatches.
	batch = 1000
)

// insertRows is the least that a task could cost: one commit of one row.
func insertRows(ctx context.Context, p *pgxpool.Pool, r *run) error {
	if _, err := p.Exec(ctx, "CREATE TABLE reference (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL)"); err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	return repeat(ctx, r, func(ctx context.Context, _ int) error {
		_, err := p.Exec(ctx, "INSERT INTO reference (note) VALUES ($1)", "note")
		return err
	})
}

// repeat calls once after the other until ctx ends. A call that is under way then is let finish: it
// belongs to no window.
func repeat(ctx context.Context, r *run, once func(ctx context.Context, i int) error) error {
	for i := 0; ctx.Err() == nil; i++ {
		start := time.Now()
		if err := once(context.WithoutCancel(ctx), i); err != nil {
			return err
		}
		r.took(time.Since(start))
		r.done()
	}
	return nil
}

// newClient makes a client for the one type of tasks.
func newClient(p *pgxpool.Pool, fn func()) (*tasking.Client, error) {
	registry, err := tasking.NewRegistry(tasking.NewType(taskName, func(context.Context, *tasking.Run, struct{}) (struct{}, error) {
		fn()
		return struct{}{}, nil
	}, tasking.TypeConfig{}))
	if err != nil {
		return nil, err
	}
	return tasking.New(p, tasking.Config{Registry: registry})
}

const taskName = "bench.empty"

// dispatcher dispatches one task at a time, each of which takes the next of so many resources (0: none)
// exclusively. Nobody runs them.
func dispatcher(resources int) func(context.Context, *pgxpool.Pool, *run) error {
	return func(ctx context.Context, p *pgxpool.Pool, r *run) error {
		c, err := newClient(p, func() {})
		if err != nil {
			return err
		}
		return repeat(ctx, r, func(ctx context.Context, i int) error {
			request := tasking.Request{Name: taskName}
			if resources > 0 {
				request.Exclusive = []string{fmt.Sprintf("bench:%d", i%resources)}
			}
			_, err := c.Dispatch(ctx, request)
			return err
		})
	}
}

// backlog dispatches tasks that take a resource ("": none) exclusively.
func backlog(resource string) func(context.Context, *pgxpool.Pool, int) error {
	return func(ctx context.Context, p *pgxpool.Pool, n int) error {
		c, err := newClient(p, func() {})
		if err != nil {
			return err
		}
		request := tasking.Request{Name: taskName}
		if resource != "" {
			request.Exclusive = []string{resource}
		}
		for left := n; left > 0; left -= batch {
			requests := make([]tasking.Request, min(left, batch))
			for i := range requests {
				requests[i] = request
			}
			if _, err := c.DispatchMany(ctx, requests); err != nil {
				return err
			}
		}
		_, err = p.Exec(ctx, "ANALYZE")
		return err
	}
}

// noop counts tasks.
func noop(r *run) func() { return r.done }

// chain counts tasks that run one after the other, and notes the time from one to the next.
func chain(r *run) func() {
	var last atomic.Pointer[time.Time]
	return func() {
		now := time.Now()
		if before := last.Swap(&now); before != nil {
			r.took(now.Sub(*before))
		}
		r.done()
	}
}

// works runs a worker until ctx ends.
func works(slots int, task func(*run) func()) func(context.Context, *pgxpool.Pool, *run) error {
	return func(ctx context.Context, p *pgxpool.Pool, r *run) error {
		c, err := newClient(p, task(r))
		if err != nil {
			return err
		}
		// Housekeeping would come at random into one run or the other.
		w, err := worker.New(c, worker.Config{Concurrency: slots, Auxiliary: true})
		if err != nil {
			return err
		}
		return w.Run(ctx)
	}
}
