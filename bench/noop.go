package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/workload"
)

const (
	pith  = "Pith"
	floor = "floor"
	// pithLoose tells what the foreign key of app_lock costs: PostgreSQL checks it row by row.
	pithLoose     = "Pith, no foreign key of app_lock"
	basePithLoose = "Pith without the foreign key"

	// pithSlots are those of the one process that works off a backlog of empty tasks, riverWorkers those
	// of its peer.
	pithSlots    = 2000
	riverWorkers = 1000
)

func init() {
	bases[basePithLoose] = func(ctx context.Context, p *pgxpool.Pool) error {
		if err := bases[basePith](ctx, p); err != nil {
			return err
		}
		_, err := p.Exec(ctx, "ALTER TABLE task DROP CONSTRAINT task_app_lock_fkey")
		return err
	}
}

// noops works off a backlog of empty tasks in one process.
func noops(pace pace) []contest {
	var out []contest
	for _, full := range []int{50_000, 200_000} {
		n := pace.size(full, full/50)
		contestants := []contestant{
			{name: pith, fill: emptyTasks, drive: onePithProcess(), recorded: pithCompleted},
			{name: pithLoose, base: basePithLoose, fill: emptyTasks, drive: onePithProcess(), recorded: pithCompleted},
		}
		for _, w := range []riverWay{riverTuned, riverDefaults, riverListens} {
			one := w.contestant()
			one.fill, one.drive = emptyJobs, w.works(1, riverWorkers, clientConns, riverCounts)
			contestants = append(contestants, one)
		}
		contestants = append(contestants, contestant{
			name: floor, base: baseFloor, fill: emptyRows, drive: floorWorks(floorConns, workload.Batch), recorded: floorRecorded,
		})
		for i := range contestants {
			contestants[i].backlog, contestants[i].timed = n, true
		}
		out = append(out, contest{
			name: fmt.Sprintf("%d waiting", n), latency: "statement", reference: riverTuned.name, contestants: contestants,
			targets: []target{
				{of: pith, figure: tasksPerSecond, against: riverTuned.name, least: 2.5},
				{of: pith, figure: tasksPerSecond, against: floor, least: 0.5},
				{of: pith, figure: databaseCPU, against: riverTuned.name, most: 0.5},
				{of: pith, figure: walBytes, against: riverTuned.name, most: 0.5},
			},
		})
	}
	return out
}
