package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// missed is a figure of the scenarios with fleets: workers that were declared missing.
const missed = "declared missing"

// settling is how long after the last worker's start a fleet needs until all know its size.
const settling = 13 * time.Second

// apart is the time from one worker's start to the next one's, where nothing else is asked for: ten thousand
// processes don't start in one moment.
const apart = 5 * time.Millisecond

// A crew is many workers of one slot in this process, each under an identity of its own, as if in a
// process of its own. They share a pool; each beats on its own connection.
type crew struct {
	client  *tasking.Client
	ctx     context.Context //nolint:containedctx // that of all its workers
	quit    context.CancelFunc
	missing missing

	all  sync.WaitGroup
	mu   sync.Mutex // guards errs
	errs []error
	size int
}

// newCrew makes one without workers, for the tasks of a registry.
func newCrew(ctx context.Context, p *pgxpool.Pool, registry *tasking.Registry) (*crew, error) {
	client, err := tasking.New(p, tasking.Config{Registry: registry})
	if err != nil {
		return nil, err
	}
	c := &crew{client: client}
	c.ctx, c.quit = context.WithCancel(context.WithoutCancel(ctx))
	return c, nil
}

// add starts workers, spread evenly over a time; it returns when the last one was started.
func (c *crew) add(ctx context.Context, n int, over time.Duration) error {
	for range n {
		if err := resend.Sleep(ctx, over/time.Duration(n)); err != nil {
			return err
		}
		c.size++
		w, err := worker.New(c.client, worker.Config{NameTemplate: fmt.Sprintf("%d", c.size), Log: slog.New(&c.missing)})
		if err != nil {
			return err
		}
		c.all.Go(func() {
			if err := w.Run(c.ctx); err != nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.errs = append(c.errs, err)
			}
		})
	}
	return nil
}

// ready waits until all are registered.
func (c *crew) ready(ctx context.Context, direct string) error {
	conn, err := pgx.Connect(ctx, direct)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for online := 0; online < c.size; {
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM app_status").Scan(&online); err != nil {
			return fmt.Errorf("count workers: %w", err)
		}
		if err := resend.Sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// end lets all workers go, and answers how many were declared missing meanwhile.
func (c *crew) end() (missing int, err error) {
	missing = c.missing.count() // a large fleet takes its time to leave
	c.quit()
	c.all.Wait()
	return missing, errors.Join(c.errs...)
}

// missing counts the workers of which a log tells that they were declared missing. It is a slog.Handler.
type missing struct{ swept, fenced atomic.Int64 }

func (m *missing) count() int { return int(max(m.swept.Load(), m.fenced.Load())) }

func (m *missing) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

func (m *missing) Handle(_ context.Context, r slog.Record) error {
	switch r.Message {
	case worker.MessageSwept:
		m.swept.Add(1)
	case worker.MessageLost:
		m.fenced.Add(1)
	}
	return nil
}

func (m *missing) WithAttrs([]slog.Attr) slog.Handler { return m }
func (m *missing) WithGroup(string) slog.Handler      { return m }

// staffed is staffedBy for workload's tasks, which call fn.
func staffed(ctx context.Context, t *trial, workers int, fn func(context.Context, *tasking.Run), work func(context.Context) error) error {
	registry, err := tasking.NewRegistry(workload.NewType(fn))
	if err != nil {
		return err
	}
	return staffedBy(ctx, t, workers, registry, work)
}

// staffedBy starts a crew of so many workers on a trial's pool, waits until they know of each other, and
// calls work; then it ends the crew, and reports who was missed.
func staffedBy(ctx context.Context, t *trial, workers int, registry *tasking.Registry, work func(context.Context) error) error {
	p, err := t.open(ctx, workerConns)
	if err != nil {
		return err
	}
	c, err := newCrew(ctx, p, registry)
	if err != nil {
		return err
	}
	err = c.add(ctx, workers, time.Duration(workers)*apart)
	if err == nil {
		err = c.ready(ctx, t.direct)
	}
	if err == nil && workers > 1 && !t.pace.quick {
		err = resend.Sleep(ctx, settling)
	}
	if err == nil {
		err = work(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil // told to end
	}
	gone, endErr := c.end()
	t.report(missed, float64(gone))
	return errors.Join(err, endErr)
}
