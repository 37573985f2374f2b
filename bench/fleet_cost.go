package main

import (
	"context"
	"fmt"
	"time"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

// costFlat is how much dearer a task may be for a larger fleet.
const costFlat = 1.2

// costs has fleets of several sizes work off empty tasks that come as fast as they end.
func costs(pace pace) []contest {
	sizes, window := []int{10, 100, 1000, 10_000}, 20*time.Second
	if pace.quick {
		sizes, window = []int{4, 16}, time.Second
	}
	c := contest{name: "empty tasks, never more than a few thousand waiting", latency: noLatency, reference: ofWorkers(pith, sizes[0]), most: 3}
	for _, n := range sizes {
		warmUp := 3 * pace.warmUp
		if !pace.quick {
			warmUp += settling + time.Duration(n)*2*apart
		}
		c.contestants = append(c.contestants, contestant{
			name: ofWorkers(pith, n), drive: pithBusy(n), recorded: pithCompleted, warmUp: warmUp, window: window,
		})
		c.targets = append(c.targets, noneMissed(ofWorkers(pith, n)))
		if n > sizes[0] {
			c.targets = append(c.targets, target{of: ofWorkers(pith, n), figure: databaseCPU, against: ofWorkers(pith, sizes[0]), most: costFlat})
		}
	}
	return []contest{c}
}

// pithBusy keeps some thousand tasks waiting before so many workers.
func pithBusy(workers int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		return staffed(ctx, t, workers, func(context.Context, *tasking.Run) { t.Done(1) }, func(ctx context.Context) error {
			c, err := dispatcher(ctx, t)
			if err != nil {
				return err
			}
			const low, high = 2, 4 // batches
			sent := 0
			for ctx.Err() == nil {
				for sent < t.Counts().Tasks+high*workload.Batch {
					if _, err := c.DispatchMany(context.WithoutCancel(ctx), workload.Requests(0, workload.Batch, nil)); err != nil {
						return fmt.Errorf("dispatch: %w", err)
					}
					sent += workload.Batch
				}
				select {
				case <-t.Mark(sent - low*workload.Batch):
				case <-ctx.Done():
				}
			}
			return nil
		})
	}
}
