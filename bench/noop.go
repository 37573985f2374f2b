package main

import (
	"fmt"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/worker"
)

const (
	pith  = "Pith"
	floor = "floor"

	// pithSlots are those of the one process that works off a backlog of empty tasks, riverWorkers those
	// of its peer.
	pithSlots    = 2000
	riverWorkers = 1000
)

// noops works off a backlog of empty tasks in one process.
func noops(pace pace) []contest {
	var out []contest
	for _, full := range []int{50_000, 200_000} {
		n := pace.size(full, full/50)
		contestants := []contestant{
			{name: pith, fill: emptyTasks, drive: pithWorks(clientConns, worker.Config{Concurrency: pithSlots}), recorded: pithCompleted},
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
