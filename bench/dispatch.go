package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

const (
	dispatchers     = 16 // goroutines that dispatch one task at a time
	bulkDispatchers = 4  // goroutines that dispatch many
)

// SQL that counts what was dispatched.
const (
	pithDispatched  = "SELECT count(*) FROM task"
	riverDispatched = "SELECT count(*) FROM river_job"
	floorDispatched = "SELECT count(*) FROM floor"
)

// prepare makes what manyTimes calls.
type prepare = func(context.Context, *pgxpool.Pool) (func(context.Context, int) error, error)

// dispatching hands out tasks that nobody runs.
func dispatching(pace) []contest {
	const insert, insertMany, insertFast = "River Insert", "River InsertMany", "River InsertManyFast"
	single := contest{
		name: fmt.Sprintf("one at a time, %d goroutines", dispatchers), latency: "call", reference: insert,
		contestants: []contestant{
			{name: pith, drive: manyTimes(dispatchers, 1, pithDispatch(nil)), recorded: pithDispatched},
			{name: insert, base: baseRiver, recorded: riverDispatched, drive: manyTimes(dispatchers, 1,
				riverInserts(func(ctx context.Context, c *river.Client[pgx.Tx]) error {
					_, err := c.Insert(ctx, riverArgs{}, nil)
					return err
				}))},
			{name: floor, base: baseFloor, drive: floorInserts(dispatchers, 1), recorded: floorDispatched},
		},
		targets: []target{{of: pith, figure: tasksPerSecond, against: insert, least: 1}},
	}
	bulk := contest{
		name: fmt.Sprintf("%d at a time, %d goroutines", workload.Batch, bulkDispatchers), latency: "call", reference: insertMany,
		contestants: []contestant{
			{name: pith, drive: manyTimes(bulkDispatchers, workload.Batch, pithDispatchMany), recorded: pithDispatched},
			{name: insertMany, base: baseRiver, recorded: riverDispatched, drive: manyTimes(bulkDispatchers, workload.Batch,
				riverInserts(func(ctx context.Context, c *river.Client[pgx.Tx]) error {
					_, err := c.InsertMany(ctx, riverJobs(workload.Batch))
					return err
				}))},
			{name: insertFast, base: baseRiver, recorded: riverDispatched, drive: manyTimes(bulkDispatchers, workload.Batch,
				riverInserts(func(ctx context.Context, c *river.Client[pgx.Tx]) error {
					_, err := c.InsertManyFast(ctx, riverJobs(workload.Batch))
					return err
				}))},
			{name: floor, base: baseFloor, drive: floorInserts(bulkDispatchers, workload.Batch), recorded: floorDispatched},
		},
		targets: []target{
			{of: pith, figure: tasksPerSecond, against: insertMany, least: 1},
			{of: pith, figure: tasksPerSecond, against: insertFast, least: 1},
			{of: pith, figure: tasksPerSecond, least: 60_000},
		},
	}
	return []contest{single, bulk}
}

func pithDispatchMany(_ context.Context, p *pgxpool.Pool) (func(context.Context, int) error, error) {
	c, err := workload.NewClient(p, workload.Nothing, tasking.Config{})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ int) error {
		_, err := c.DispatchMany(ctx, workload.Requests(0, workload.Batch, nil))
		return err
	}, nil
}

// riverInserts makes a client that only inserts. It polls, as one behind a pooler must.
func riverInserts(insert func(context.Context, *river.Client[pgx.Tx]) error) prepare {
	return func(_ context.Context, p *pgxpool.Pool) (func(context.Context, int) error, error) {
		c, err := riverDefaults.client(p, 0, func() {})
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, _ int) error { return insert(ctx, c) }, nil
	}
}
