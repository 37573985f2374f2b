package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/internal/workload"
)

// baseRiver is the base of those that run River.
const baseRiver = "river"

// riverCompleted counts the jobs that are recorded as completed.
const riverCompleted = "SELECT count(*) FROM river_job WHERE state = 'completed'"

func init() { bases[baseRiver] = migrateRiver }

func migrateRiver(ctx context.Context, p *pgxpool.Pool) error {
	m, err := rivermigrate.New(riverpgxv5.New(p), &rivermigrate.Config{Logger: quiet})
	if err != nil {
		return err
	}
	_, err = m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

// quiet hears nothing of River, whose warnings are of lost jobs that the harness finds itself.
var quiet = slog.New(slog.DiscardHandler)

// riverArgs are those of an empty job.
type riverArgs struct{}

func (riverArgs) Kind() string { return "bench_empty" }

// riverWay is a way to configure River. The fields not set are River's defaults.
type riverWay struct {
	name           string
	path           string
	listen         bool
	cooldown, poll time.Duration
}

// The ways that are measured. Behind a transaction pooler River must poll, and send unnamed statements,
// as every pool here does unless it is told otherwise.
var (
	riverTuned    = riverWay{name: "River tuned", cooldown: 2 * time.Millisecond, poll: 20 * time.Millisecond}
	riverDefaults = riverWay{name: "River defaults"}
	riverListens  = riverWay{name: "River direct, LISTEN", path: direct, listen: true, cooldown: 2 * time.Millisecond, poll: 20 * time.Millisecond}
)

// contestant is one that runs River so; the rest is to be set.
func (w riverWay) contestant() contestant {
	return contestant{name: w.name, path: w.path, named: w.path == direct, base: baseRiver, recorded: riverCompleted}
}

// client makes one with so many workers; with none it only inserts.
func (w riverWay) client(p *pgxpool.Pool, workers int, work func()) (*river.Client[pgx.Tx], error) {
	registered := river.NewWorkers()
	river.AddWorker(registered, river.WorkFunc(func(context.Context, *river.Job[riverArgs]) error {
		work()
		return nil
	}))
	return w.clientOf(p, workers, registered)
}

// clientOf is client for jobs of other kinds.
func (w riverWay) clientOf(p *pgxpool.Pool, workers int, registered *river.Workers) (*river.Client[pgx.Tx], error) {
	cfg := &river.Config{Logger: quiet, PollOnly: !w.listen, FetchCooldown: w.cooldown, FetchPollInterval: w.poll, Workers: registered}
	if workers > 0 {
		cfg.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}
	}
	return river.NewClient(riverpgxv5.New(p), cfg)
}

// works runs so many clients, which share a pool, until ctx ends.
func (w riverWay) works(clients, workers, conns int, work func(*trial) func()) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) (err error) {
		p, err := t.open(ctx, conns)
		if err != nil {
			return err
		}
		all := make([]*river.Client[pgx.Tx], clients)
		for i := range all {
			if all[i], err = w.client(p, workers, work(t)); err != nil {
				return fmt.Errorf("make River's client: %w", err)
			}
		}
		// One after the other they would wait for the connections behind all those that work already.
		var starting errgroup.Group
		life := context.WithoutCancel(ctx) // Stop lets jobs end, and records them
		for _, c := range all {
			starting.Go(func() error { return c.Start(life) })
		}
		if err := starting.Wait(); err != nil {
			return errors.Join(fmt.Errorf("start River: %w", err), stopRiver(life, all))
		}
		if t.contestant.many {
			t.assembled()
		}
		<-ctx.Done()
		return stopRiver(life, all)
	}
}

// stopRiver stops clients at once, and waits for them.
func stopRiver(ctx context.Context, clients []*river.Client[pgx.Tx]) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	errs := make([]error, len(clients))
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() { errs[i] = c.Stop(ctx) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop River: %w", err)
	}
	return nil
}

// riverCounts is work that counts itself.
func riverCounts(t *trial) func() { return func() { t.Done(1) } }

// emptyJobs is River's filling.
var emptyJobs = filling{"empty jobs", insertJobs}

func insertJobs(ctx context.Context, p *pgxpool.Pool, n int) error {
	c, err := riverDefaults.client(p, 0, func() {})
	if err != nil {
		return err
	}
	for left := n; left > 0; left -= workload.Batch {
		if _, err := c.InsertManyFast(ctx, riverJobs(min(left, workload.Batch))); err != nil {
			return err
		}
	}
	return nil
}

func riverJobs(n int) []river.InsertManyParams {
	jobs := make([]river.InsertManyParams, n)
	for i := range jobs {
		jobs[i].Args = riverArgs{}
	}
	return jobs
}
