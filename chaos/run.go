package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/chaos/judge"
	"github.com/pithworks/pith/chaos/witness"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// Limits of what comes after the faults.
const (
	leaveLimit = time.Minute     // for dispatchers to get their last answers
	drainLimit = 3 * time.Minute // for all tasks to end
)

// breakThings makes a run, and returns what there is to judge.
func breakThings(ctx context.Context, cfg config, progress io.Writer) (r judge.Run, err error) {
	r.TTL, r.Slots = cfg.ttl, cfg.workers*slots
	s, err := openStage(ctx, progress)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	socket := filepath.Join(cfg.dir, "witness")
	record, err := witness.Record(filepath.Join(cfg.dir, eventsFile), socket)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, record.Close()) }()
	if err := s.direct.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&s.began); err != nil {
		return r, fmt.Errorf("read the database's clock: %w", err)
	}
	r.Began = s.began

	f := &fleet{dir: cfg.dir, record: record}
	defer f.close()
	draw := rand.New(rand.NewPCG(cfg.seed, 0))
	for i := range cfg.workers + 4 {
		sp := spec{Name: "worker-" + strconv.Itoa(i), Role: roleWorker, Socket: socket, Seed: draw.Uint64(), TTL: cfg.ttl}
		if n := i - cfg.workers; n >= 0 {
			sp.Role = []role{roleDispatcher, roleAPI}[n%2]
			sp.Name = string(sp.Role) + "-" + strconv.Itoa(n/2)
			// Some clocks are behind by a minute, some behind or ahead by seconds.
			if sp.Skew = time.Duration(draw.IntN(7)-3) * time.Second; draw.IntN(4) == 0 {
				sp.Skew = -time.Minute
			}
		}
		if err := f.add(s, sp, i%2 == 1); err != nil {
			return r, err
		}
		r.Processes = append(r.Processes, sp.Name)
	}

	breaking, over := context.WithTimeout(ctx, cfg.duration)
	defer over()
	parts, breaking := errgroup.WithContext(breaking)
	for i, faults := range [][]fault{toOne(cfg.ttl), toOne(cfg.ttl), toOne(cfg.ttl), toAll(cfg.ttl)} {
		b := &breaker{
			stage: s, fleet: f, record: record, rand: rand.New(rand.NewPCG(cfg.seed, uint64(i+1))), ttl: cfg.ttl,
			out: progress, faults: faults, pause: 1500 * time.Millisecond,
		}
		parts.Go(func() error { return b.run(breaking) })
	}
	parts.Go(func() error { return schedule(breaking, s, record, rand.New(rand.NewPCG(cfg.seed, 100))) })
	if err := parts.Wait(); err != nil {
		return r, err
	}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	record.Add(witness.Event{Kind: witness.Calm})
	fmt.Fprintf(progress, "%s all faults are over\n", time.Now().Format(time.TimeOnly))

	// Dispatchers and schedules go on for longer than two TTLs, so that there is something to move.
	if err := resend.Sleep(ctx, 3*cfg.ttl); err != nil {
		return r, err
	}
	if err := f.leave(ctx, leaveLimit, roleDispatcher, roleAPI); err != nil {
		return r, err
	}
	if err := drain(ctx, s, record, progress); err != nil {
		return r, err
	}
	record.Add(witness.Event{Kind: witness.Still})
	if err := s.found(ctx, &r); err != nil {
		return r, err
	}
	if err := f.leave(ctx, leaveLimit, roleWorker); err != nil {
		return r, err
	}
	for _, p := range s.pins {
		fmt.Fprintf(progress, "behind RDS Proxy this pins: %s: %s\n", p.Construct, p.Statement)
	}
	r.Events = record.Events()
	return r, nil
}

// drain waits until no task is left, or nothing more can be expected: then the judge says so.
func drain(ctx context.Context, s *stage, record *witness.Recorder, progress io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if _, err := s.direct.Exec(ctx, "UPDATE task_schedule SET next_dispatch = NULL WHERE dispatch_interval IS NOT NULL"); err != nil {
		return fmt.Errorf("end schedules: %w", err)
	}
	record.Add(witness.Event{Kind: witness.Unscheduled})
	for {
		var left int
		if err := s.direct.QueryRow(ctx, `SELECT (SELECT count(*) FROM task WHERE finished_at IS NULL)
			+ (SELECT count(*) FROM task_schedule WHERE next_dispatch IS NOT NULL AND dispatch_interval IS NULL)`).Scan(&left); passing(err) != nil && ctx.Err() == nil {
			return fmt.Errorf("count what is left: %w", err)
		} else if err == nil && left == 0 {
			return nil
		}
		fmt.Fprintf(progress, "%s %d tasks and schedules are left\n", time.Now().Format(time.TimeOnly), left)
		if resend.Sleep(ctx, time.Second) != nil {
			return nil
		}
	}
}

// schedule makes schedules, most of which are due once, until ctx ends.
func schedule(ctx context.Context, s *stage, record *witness.Recorder, r *rand.Rand) error {
	known, err := registry()
	if err != nil {
		return err
	}
	c, err := tasking.New(s.direct, tasking.Config{Registry: known})
	if err != nil {
		return err
	}
	for n := 0; resend.Sleep(ctx, time.Duration(500+r.IntN(1500))*time.Millisecond) == nil; n++ {
		name := "schedule-" + strconv.Itoa(n)
		args, err := json.Marshal(work{Millis: r.IntN(50), Schedule: name})
		if err != nil {
			return err
		}
		sc := tasking.Schedule{Name: name, Task: plain.Name(), Args: args, Delay: time.Duration(r.IntN(5000)) * time.Millisecond}
		if n%10 == 0 {
			sc.Interval = time.Duration(1+r.IntN(3)) * time.Second
		}
		made, err := c.SaveSchedule(context.WithoutCancel(ctx), sc)
		if err != nil {
			continue // the database is away
		}
		record.Add(witness.Event{Kind: witness.Scheduled, Name: name, Due: *made.Next, Every: sc.Interval})
	}
	return nil
}
