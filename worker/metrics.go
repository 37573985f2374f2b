package worker

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/metric"

	"github.com/pithworks/pith/db"
)

// stalled is for how many seconds nobody must have claimed a runnable task for it to count: Pulp's
// THRESHOLD_UNBLOCKED_WAITING_TIME.
const stalled = 5

// gauges are Pulp's of the tasks that wait for nothing but a worker. All are the whole fleet's, whichever worker records them.
type gauges struct {
	queue   metric.Int64Gauge
	longest metric.Float64Gauge
}

// newGauges makes the gauges; with a nil meter there are none.
func newGauges(meter metric.Meter) (*gauges, error) {
	if meter == nil {
		return nil, nil //nolint:nilnil // nobody asks for them
	}
	queue, err := meter.Int64Gauge("tasks_unblocked_queue",
		metric.WithUnit("tasks"), metric.WithDescription("Number of unblocked tasks waiting in the queue."))
	if err != nil {
		return nil, fmt.Errorf("make gauge: %w", err)
	}
	longest, err := meter.Float64Gauge("tasks_longest_unblocked_time",
		metric.WithUnit("seconds"), metric.WithDescription("The age of the longest waiting task."))
	if err != nil {
		return nil, fmt.Errorf("make gauge: %w", err)
	}
	return &gauges{queue: queue, longest: longest}, nil
}

func (g *gauges) record(ctx context.Context, dbtx db.DBTX) error {
	now, err := db.New().TaskUnblocked(ctx, dbtx, stalled)
	if err != nil {
		return fmt.Errorf("measure the queue: %w", err)
	}
	g.queue.Record(ctx, now.Tasks)
	g.longest.Record(ctx, now.LongestSeconds)
	return nil
}
