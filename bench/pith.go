package main

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// pithCompleted counts the tasks that are recorded as completed.
const pithCompleted = "SELECT count(*) FROM task WHERE state = 'completed'"

// The fillings of Pith.
var (
	emptyTasks   = pithBacklog("empty tasks", nil)
	tasksInChain = pithBacklog("a chain on one resource", workload.OneResource)
)

// pithBacklog dispatches a backlog of empty tasks.
func pithBacklog(name string, options func(i int) tasking.Options) filling {
	return filling{name, func(ctx context.Context, p *pgxpool.Pool, n int) error {
		c, err := workload.NewClient(p, workload.Nothing, tasking.Config{})
		if err != nil {
			return err
		}
		return workload.Fill(ctx, c, n, options, nil)
	}}
}

// pithWorks runs one worker on a pool of so many connections.
func pithWorks(conns int, cfg worker.Config) func(context.Context, *trial) error {
	return pithRuns(conns, cfg, func(t *trial) func(context.Context, *tasking.Run) { return t.Counted })
}

// pithChain does so too, and notes the time from one task to the next.
func pithChain(conns int, cfg worker.Config) func(context.Context, *trial) error {
	return pithRuns(conns, cfg, func(t *trial) func(context.Context, *tasking.Run) { return t.OneByOne() })
}

func pithRuns(conns int, cfg worker.Config, task func(*trial) func(context.Context, *tasking.Run)) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, conns)
		if err != nil {
			return err
		}
		c, err := workload.NewClient(p, task(t), tasking.Config{})
		if err != nil {
			return err
		}
		return workload.Work(ctx, c, cfg)
	}
}
