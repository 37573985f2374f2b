package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// TaskName is the type of the tasks of this package: they do nothing but be counted.
const TaskName = "pith.bench.empty"

// Batch is how many tasks of a backlog one statement dispatches.
const Batch = 1000

// NewType makes the type TaskName; each of its tasks calls fn.
func NewType(fn func(context.Context, *tasking.Run)) *tasking.Type[struct{}, struct{}] {
	return tasking.NewType(TaskName, func(ctx context.Context, run *tasking.Run, _ struct{}) (struct{}, error) {
		fn(ctx, run)
		return struct{}{}, nil
	}, tasking.TypeConfig{Immediate: true})
}

// NewClient makes a client that knows NewType(fn) and nothing else. The rest of the configuration may
// be given.
func NewClient(p *pgxpool.Pool, fn func(context.Context, *tasking.Run), cfg tasking.Config) (*tasking.Client, error) {
	registry, err := tasking.NewRegistry(NewType(fn))
	if err != nil {
		return nil, err
	}
	cfg.Registry = registry
	return tasking.New(p, cfg)
}

// Nothing is what a task does that is not counted.
func Nothing(context.Context, *tasking.Run) {}

// Counted is a task function that counts itself.
func (m *Meter) Counted(context.Context, *tasking.Run) { m.Done(1) }

// OneByOne makes a task function for tasks that run one after the other: it counts itself, and the time
// from one to the next is a latency.
func (m *Meter) OneByOne() func(context.Context, *tasking.Run) {
	var last atomic.Pointer[time.Time]
	return func(context.Context, *tasking.Run) {
		now := time.Now()
		if before := last.Swap(&now); before != nil {
			m.Took(now.Sub(*before))
		}
		m.Done(1)
	}
}

// Requests makes n requests; options says how the i-th of all is dispatched, nil: plainly.
func Requests(from, n int, options func(i int) tasking.Options) []tasking.Request {
	requests := make([]tasking.Request, n)
	for i := range requests {
		requests[i].Name = TaskName
		if options != nil {
			requests[i].Options = options(from + i)
		}
	}
	return requests
}

// Fill dispatches n tasks, Batch to a statement. Before each one it calls tell, unless that is nil, with how
// many were dispatched.
func Fill(ctx context.Context, c *tasking.Client, n int, options func(i int) tasking.Options, tell func(done int)) error {
	for from := 0; from < n; from += Batch {
		if tell != nil {
			tell(from)
		}
		if _, err := c.DispatchMany(ctx, Requests(from, min(n-from, Batch), options)); err != nil {
			return err
		}
	}
	return nil
}

// OneResource has every task take the same resource exclusively, so that they run one after the other.
func OneResource(int) tasking.Options {
	return tasking.Options{Exclusive: []string{"pith-bench:chain"}}
}

// InTurn has each task take the next of so many resources exclusively.
func InTurn(resources int) func(i int) tasking.Options {
	return func(i int) tasking.Options { return tasking.Options{Exclusive: []string{resource(i % resources)}} }
}

func resource(i int) string { return fmt.Sprintf("pith-bench:%d", i) }

// SomeOf has each task take one to three of so many resources: exclusively or, if mixed, each of them
// exclusively or shared. Which ones depends on i alone.
func SomeOf(resources int, mixed bool) func(i int) tasking.Options {
	return func(i int) tasking.Options {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		var o tasking.Options
		taken := map[int]bool{}
		for range 1 + random.IntN(min(3, resources)) {
			n := random.IntN(resources)
			for taken[n] {
				n = random.IntN(resources)
			}
			taken[n] = true
			if mixed && random.IntN(2) == 0 {
				o.Shared = append(o.Shared, resource(n))
			} else {
				o.Exclusive = append(o.Exclusive, resource(n))
			}
		}
		return o
	}
}

// Work runs a worker until ctx ends.
func Work(ctx context.Context, c *tasking.Client, cfg worker.Config) error {
	w, err := worker.New(c, cfg)
	if err != nil {
		return err
	}
	return w.Run(ctx)
}
