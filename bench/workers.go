package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

// workerConns is the pool that the workers of a fleet in one process share.
const workerConns = 20

// manyWorkers has empty tasks run by many workers of one slot each.
func manyWorkers(pace pace) []contest {
	few, many := pace.size(20, 4), pace.size(200, 12)
	// Clients with River's defaults fetch ten jobs per second each: enough for them to end soon.
	n := 100_000
	if pace.quick {
		n = 200
	}
	c := contest{name: fmt.Sprintf("empty tasks, %d and %d workers", few, many), latency: "statement", reference: ofWorkers(riverTuned.name, few)}
	for _, workers := range []int{few, many} {
		all := []contestant{{name: pith, fill: emptyTasks, drive: pithFleet(workers), recorded: pithCompleted}}
		for _, w := range []riverWay{riverTuned, riverDefaults} {
			one := w.contestant()
			one.fill, one.drive = emptyJobs, w.works(workers, 1, workerConns, riverCounts)
			all = append(all, one)
		}
		for _, one := range all {
			one.name, one.backlog, one.timed, one.many = ofWorkers(one.name, workers), n, true, true
			one.warmUp, one.window = 3*pace.warmUp, 2*pace.window
			c.contestants = append(c.contestants, one)
		}
		c.targets = append(c.targets,
			target{of: ofWorkers(pith, workers), figure: tasksPerSecond, against: ofWorkers(riverTuned.name, workers), least: 1.5},
			target{of: ofWorkers(pith, workers), figure: tasksPerSecond, against: ofWorkers(riverDefaults.name, workers), least: 3},
		)
	}
	c.targets = append(c.targets, target{of: ofWorkers(pith, many), figure: tasksPerSecond, against: ofWorkers(pith, few), least: 0.9})
	return []contest{c}
}

// ofWorkers names a contestant of so many workers.
func ofWorkers(name string, workers int) string { return fmt.Sprintf("%s × %d", name, workers) }

// pithFleet runs so many workers of one slot, each under an identity of its own.
func pithFleet(workers int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, workerConns)
		if err != nil {
			return err
		}
		registry, err := tasking.NewRegistry(workload.NewType(t.Counted))
		if err != nil {
			return err
		}
		c, err := newCrew(ctx, p, registry)
		if err != nil {
			return err
		}
		if err = c.add(ctx, workers, 0); err == nil {
			err = c.ready(ctx, t.direct)
		}
		if err == nil {
			t.assembled()
			<-ctx.Done()
		}
		missing, ended := c.end()
		if missing > 0 {
			err = errors.Join(err, fmt.Errorf("%d workers were declared missing", missing))
		}
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil // it was told to end before all were there
		}
		return errors.Join(err, ended)
	}
}
