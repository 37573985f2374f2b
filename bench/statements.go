package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/workload"
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
func statements(pace pace) []contest {
	// Housekeeping would come at random into one run or the other.
	auxiliary := func(slots int) worker.Config { return worker.Config{Concurrency: slots, Auxiliary: true} }
	loads := []struct {
		name, latency string
		contestant
	}{
		{"insert of one row, for reference", "insert", contestant{base: baseFloor, drive: floorInserts(1, 1)}},
		{"dispatch, one at a time", "dispatch", contestant{drive: dispatches(nil)}},
		{"dispatch with a resource, one at a time", "dispatch", contestant{drive: dispatches(workload.InTurn(resources))}},
		{
			fmt.Sprintf("worker of %d slots, empty tasks", manySlots), "statement",
			contestant{timed: true, fill: emptyTasks, backlog: pace.size(40_000, 2_000), drive: pithWorks(clientConns, auxiliary(manySlots))},
		},
		{
			"chain on one exclusive resource", "task to task",
			contestant{fill: tasksInChain, backlog: pace.size(5_000, 100), drive: pithChain(clientConns, auxiliary(1))},
		},
	}
	var out []contest
	for _, path := range []string{direct, viaPooler, viaStandIn} {
		for _, l := range loads {
			c := contest{name: l.name, latency: l.latency, reference: unnamed}
			for _, variant := range []string{unnamed, named} {
				one := l.contestant
				one.name, one.path, one.named = variant, path, variant == named
				c.contestants = append(c.contestants, one)
			}
			out = append(out, c)
		}
	}
	return out
}

const (
	// resources is how many the tasks with resources choose from.
	resources = 1000
	// manySlots are those of the worker that is to be kept busy.
	manySlots = 200
	// clientConns is the size of the client's pool, as in a worker process.
	clientConns = 4
)

// dispatches dispatches one task at a time from one goroutine. Nobody runs them.
func dispatches(options func(int) tasking.Options) func(context.Context, *trial) error {
	return manyTimes(1, 1, pithDispatch(options))
}

// pithDispatch dispatches a task.
func pithDispatch(options func(int) tasking.Options) func(context.Context, *pgxpool.Pool) (func(context.Context, int) error, error) {
	return func(_ context.Context, p *pgxpool.Pool) (func(context.Context, int) error, error) {
		c, err := workload.NewClient(p, workload.Nothing, tasking.Config{})
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, i int) error {
			_, err := c.Dispatch(ctx, workload.Requests(i, 1, options)[0])
			return err
		}, nil
	}
}
