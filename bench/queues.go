package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// onePithProcess works off a backlog as in the scenario noop.
func onePithProcess() func(context.Context, *trial) error {
	return pithWorks(clientConns, worker.Config{Concurrency: pithSlots})
}

// withResources has tasks take some of many resources.
func withResources(pace pace) []contest {
	const none, exclusive, mixed = "no resources", "exclusive", "exclusive or shared"
	c := contest{
		name: fmt.Sprintf("1 to 3 of %d resources", resources), latency: "statement", reference: none,
		contestants: []contestant{
			{name: none, fill: emptyTasks},
			{name: exclusive, fill: pithBacklog(exclusive, workload.SomeOf(resources, false))},
			{name: mixed, fill: pithBacklog(mixed, workload.SomeOf(resources, true))},
		},
	}
	for i := range c.contestants {
		one := &c.contestants[i]
		one.backlog, one.drive, one.recorded, one.timed = pace.size(50_000, 1000), onePithProcess(), pithCompleted, true
	}
	for _, name := range []string{exclusive, mixed} {
		c.targets = append(c.targets,
			target{of: name, figure: tasksPerSecond, least: 8000},
			target{of: name, figure: tasksPerSecond, against: none, least: 0.5})
	}
	return []contest{c}
}

// chain has each task wait for the one before.
func chain(pace pace) []contest {
	const commit = "commit of one row"
	n := pace.size(2000, 100)
	return []contest{{
		name: fmt.Sprintf("%d tasks, one after the other", n), latency: "task to task", reference: commit,
		contestants: []contestant{
			{
				name: pith, fill: tasksInChain, backlog: n, recorded: pithCompleted,
				drive: pithChain(clientConns, worker.Config{Concurrency: pithSlots}),
			},
			{name: commit, base: baseFloor, drive: floorInserts(1, 1), recorded: floorDispatched},
		},
		targets: []target{
			{of: pith, figure: timePerTask, against: commit, most: 1.3},
			// The worker's own beats and housekeeping are statements, too.
			{of: pith, figure: statementCount, most: 1.01},
		},
	}}
}

// headName is the type of the task that blocks the others.
const headName = "pith.bench.head"

// headType makes it; a nil function is for those that only dispatch it.
func headType(fn tasking.Func[struct{}, struct{}]) *tasking.Type[struct{}, struct{}] {
	return tasking.NewType(headName, fn, tasking.TypeConfig{})
}

// blocked has tasks run beside many that wait for one resource.
func blocked(pace pace) []contest {
	const none = "none blocked"
	n, many := pace.size(50_000, 1000), 1_000_000
	if pace.quick {
		many = 5_000 // they are dispatched first
	}
	c := contest{name: fmt.Sprintf("%d others flow", n), latency: "statement", reference: none}
	c.contestants = append(c.contestants, contestant{name: none, fill: emptyTasks})
	for _, b := range []struct {
		tasks int
		least float64
	}{{pace.size(17_000, 500), 0.95}, {many, 0.9}} {
		name := fmt.Sprintf("%d blocked", b.tasks)
		c.contestants = append(c.contestants, contestant{name: name, fill: blockedBacklog(b.tasks), begin: holdHead})
		c.targets = append(c.targets, target{of: name, figure: tasksPerSecond, against: none, least: b.least})
	}
	for i := range c.contestants {
		one := &c.contestants[i]
		one.backlog, one.drive, one.recorded, one.timed = n, onePithProcess(), pithCompleted, true
	}
	return []contest{c}
}

// blockedBacklog dispatches a head, so many tasks that wait for it, and then those that need not.
func blockedBacklog(waiting int) filling {
	return filling{fmt.Sprintf("%d blocked", waiting), func(ctx context.Context, p *pgxpool.Pool, n int) error {
		head := headType(nil)
		registry, err := tasking.NewRegistry(head, workload.NewType(workload.Nothing))
		if err != nil {
			return err
		}
		c, err := tasking.New(p, tasking.Config{Registry: registry})
		if err != nil {
			return err
		}
		if _, err := c.Dispatch(ctx, head.Request(struct{}{}, workload.OneResource(0))); err != nil {
			return err
		}
		if err := workload.Fill(ctx, c, waiting, workload.OneResource, nil); err != nil {
			return err
		}
		return workload.Fill(ctx, c, n, nil, nil)
	}}
}

// holdHead runs the head until it is ended.
func holdHead(ctx context.Context, p *pgxpool.Pool) (func(context.Context) error, error) {
	runs := make(chan struct{})
	registry, err := tasking.NewRegistry(headType(func(ctx context.Context, _ *tasking.Run, _ struct{}) (struct{}, error) {
		close(runs)
		<-ctx.Done()
		return struct{}{}, context.Cause(ctx)
	}))
	if err != nil {
		return nil, err
	}
	c, err := tasking.New(p, tasking.Config{Registry: registry})
	if err != nil {
		return nil, err
	}
	w, err := worker.New(c, worker.Config{Auxiliary: true})
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(context.WithoutCancel(ctx)) }()
	end := func(context.Context) error {
		w.Abort()
		return <-ended
	}
	select {
	case <-runs:
		return end, nil
	case err := <-ended:
		return nil, fmt.Errorf("the head's worker has ended: %w", err)
	case <-ctx.Done():
		_ = end(ctx)
		return nil, context.Cause(ctx)
	}
}

// lastPart is the rate between eight tenths of the backlog and the window's end, at nine tenths: when most
// of the dead rows are there.
const lastPart = "tasks/s from 80 to 90 %"

// snapshot works off a backlog while an old snapshot keeps vacuum from its dead rows.
func snapshot(pace pace) []contest {
	const without, held = "without", "old snapshot held"
	n := pace.size(500_000, 25_000) // a tenth of it is more than there are slots
	c := contest{name: fmt.Sprintf("%d waiting", n), latency: "statement", reference: without, contestants: []contestant{
		{name: without},
		{name: held, begin: holdSnapshot},
	}}
	for i := range c.contestants {
		one := &c.contestants[i]
		one.fill, one.backlog, one.recorded, one.timed = emptyTasks, n, pithCompleted, true
		one.drive = timesLastPart(onePithProcess())
		one.warmUp, one.window = 5*time.Minute, 30*time.Minute // until nine tenths are done
	}
	c.targets = []target{
		{of: held, figure: tasksPerSecond, against: without, least: 0.7},
		{of: held, figure: own(lastPart), against: without, least: 0.7},
	}
	return []contest{c}
}

// timesLastPart reports the rate in the last part of the window.
func timesLastPart(drive func(context.Context, *trial) error) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		n := t.contestant.backlog
		from, to := t.Mark(n*8/10), t.Mark(n-n/10)
		timed := make(chan struct{})
		go func() {
			defer close(timed)
			if err := await(ctx, 0, from, nil, nil); err != nil {
				return
			}
			start, before := time.Now(), t.Counts().Tasks
			if err := await(ctx, 0, to, nil, nil); err != nil {
				return
			}
			t.report(lastPart, per(float64(t.Counts().Tasks-before), time.Since(start).Seconds()))
		}()
		err := drive(ctx, t)
		stop() // it may have failed
		<-timed
		return err
	}
}

// holdSnapshot begins a transaction whose snapshot is kept until it is ended.
func holdSnapshot(ctx context.Context, p *pgxpool.Pool) (func(context.Context) error, error) {
	tx, err := p.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, err
	}
	var n int
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM app_status").Scan(&n); err != nil {
		_ = tx.Rollback(ctx)
		return nil, err
	}
	return tx.Rollback, nil
}
