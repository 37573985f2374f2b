package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// A Scenario is a load that Run puts on a database.
type Scenario struct {
	Name string
	// What it does, in a sentence.
	What string
	// Latency says what the latencies are of.
	Latency string

	// backlog says how each task of the backlog is dispatched; nil if there is none.
	backlog func(i int) tasking.Options
	// timed: the latencies are of the statements.
	timed bool
	drive func(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) error
}

// Scenarios are all that Run knows.
var Scenarios = []Scenario{
	{
		Name: "noop", What: "One worker works off empty tasks without resources.", Latency: "statement",
		backlog: func(int) tasking.Options { return tasking.Options{} }, timed: true,
		drive: func(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) error {
			return workOn(ctx, p, m.Counted, cfg)
		},
	},
	{
		Name: "dispatch", What: "Tasks are dispatched, one at a time from some goroutines, and nobody runs them.", Latency: "dispatch",
		drive: dispatch,
	},
	{
		Name: "chain", What: "One worker works off tasks that all take one resource exclusively.", Latency: "task to task",
		backlog: OneResource,
		drive: func(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) error {
			return workOn(ctx, p, m.OneByOne(), cfg)
		},
	},
	{
		Name: "resources", What: "One worker works off tasks that take 1 to 3 of 1000 resources, exclusively or shared.", Latency: "statement",
		backlog: SomeOf(1000, true), timed: true,
		drive: func(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) error {
			return workOn(ctx, p, m.Counted, cfg)
		},
	},
	{
		Name: "pickup", What: fmt.Sprintf("A task is dispatched every %s, for one worker in another connection.", PickupEvery), Latency: "from dispatch to start",
		drive: pickup,
	},
}

// Defaults of Config.
const (
	DefaultTasks      = 20_000
	DefaultDuration   = 10 * time.Second
	DefaultSlots      = 200
	DefaultGoroutines = 16
)

// Config says how much Run does. The zero value stands for the defaults.
type Config struct {
	// Tasks of the backlog; without one, the most that are dispatched. Default: DefaultTasks.
	Tasks int
	// Duration is how long is measured at most; a backlog may end before. Default: DefaultDuration.
	Duration time.Duration
	// Slots of the worker, or goroutines that dispatch. Default: DefaultSlots, DefaultGoroutines.
	Slots int
	// Progress is called now and then with what is being done, and how far it is: done of total, or total
	// 0. Default: none.
	Progress func(what string, done, total int)
}

// PickupEvery is the time from one task to the next where pick-ups are measured.
const PickupEvery = 50 * time.Millisecond

// A Result is what came of a Run.
type Result struct {
	Scenario string `json:"scenario"`
	// Tasks were done in so many seconds: from the first to the last; from the start of the run, if the
	// last one was seen as soon as the first.
	Tasks   int     `json:"tasks"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"tasks_per_s"`
	// Latency says what the percentiles are of, in milliseconds.
	Latency    string  `json:"latency_of"`
	P50        float64 `json:"p50_ms"`
	P95        float64 `json:"p95_ms"`
	P99        float64 `json:"p99_ms"`
	Statements float64 `json:"statements_per_task"`
	// Deleted is how many tasks were removed at the end.
	Deleted int `json:"tasks_deleted"`
}

// Find returns the scenario of that name.
func Find(name string) (Scenario, error) {
	var names []string
	for _, s := range Scenarios {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Scenario{}, fmt.Errorf("unknown scenario %q: there are %s", name, strings.Join(names, ", "))
}

// ErrBusy means that a worker is online that runs tasks of this package. Nobody sees a Run that has no
// worker: one that is still filling its backlog, or that only dispatches.
var ErrBusy = errors.New("another benchmark is running on this database")

// A CleanError is why tasks are left after a Run.
type CleanError struct{ Err error }

func (e *CleanError) Error() string { return "clean up: " + e.Err.Error() }
func (e *CleanError) Unwrap() error { return e.Err }

// Run puts a scenario on a database with Pith's schema, beside whatever else runs there, and measures
// until the duration has passed, the backlog is worked off, or ctx ends. Then it removes its tasks, also
// after a failure; only a row of task_kind stays. A failure to do so is a *CleanError, maybe joined with
// others. Those of an earlier run that was killed are removed first, and so are those of another Run at the
// same time, but for ErrBusy: let there be one. The pool's connections must have m's Tracer, timed where
// the scenario says so.
func (s Scenario) Run(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) (_ Result, err error) {
	cfg = cfg.orDefaults()
	busy, err := others(ctx, p)
	if err != nil {
		return Result{}, err
	}
	if len(busy) > 0 {
		return Result{}, fmt.Errorf("%w: %s", ErrBusy, strings.Join(busy, ", "))
	}
	cfg.Progress("looking for what an earlier run has left", 0, 0)
	if _, err := Clean(ctx, p, uuid.Nil); err != nil {
		return Result{}, err
	}
	first, err := uuid.NewV7() // less than those of all tasks that are dispatched from here on
	if err != nil {
		return Result{}, fmt.Errorf("make id: %w", err)
	}
	out, err := s.measure(ctx, p, m, cfg)
	cfg.Progress("cleaning up", 0, 0)
	var cleaning error
	if out.Deleted, cleaning = Clean(context.WithoutCancel(ctx), p, first); cleaning != nil {
		err = errors.Join(err, &CleanError{cleaning})
	}
	return out, err
}

// Timed reports whether the latencies are of the statements, which the pool's tracer is to time.
func (s Scenario) Timed() bool { return s.timed }

func (cfg Config) orDefaults() Config {
	if cfg.Tasks == 0 {
		cfg.Tasks = DefaultTasks
	}
	if cfg.Duration == 0 {
		cfg.Duration = DefaultDuration
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string, int, int) {}
	}
	return cfg
}

// orSlots is the number given, or another.
func (cfg Config) orSlots(n int) int {
	if cfg.Slots > 0 {
		return cfg.Slots
	}
	return n
}

// measure fills and drives.
func (s Scenario) measure(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) (Result, error) {
	if s.backlog != nil {
		if err := s.fill(ctx, p, cfg); err != nil {
			return Result{}, err
		}
	}
	before := m.Counts() // what was dispatched is not counted
	start, end := m.Mark(before.Tasks+1), m.Mark(before.Tasks+cfg.Tasks)
	driving, stop := context.WithTimeout(ctx, cfg.Duration)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.drive(driving, p, m, cfg) }()
	began := time.Now()
	ticks := time.NewTicker(time.Second / 4)
	defer ticks.Stop()
	var last time.Time
	var err error
	for running := true; running; {
		select {
		case <-start:
			began, start = time.Now(), nil
		case <-end:
			last, end = time.Now(), nil
			start = nil // it may be ready as well, and would put the beginning after the end
			stop()
		case <-ticks.C:
			cfg.Progress("measuring", m.Counts().Tasks-before.Tasks, cfg.Tasks)
		case <-driving.Done():
			running = false
		case err = <-ended:
			running = false
			ended <- nil
		}
	}
	after := m.Counts()
	if last.IsZero() {
		last = time.Now()
	}
	stop()
	err = errors.Join(err, <-ended)
	if err == nil {
		err = ctx.Err()
	}
	return s.result(m, before, after, last.Sub(began)), err
}

// result is what was counted in a time.
func (s Scenario) result(m *Meter, before, after Counts, took time.Duration) Result {
	out := Result{Scenario: s.Name, Latency: s.Latency, Tasks: after.Tasks - before.Tasks, Seconds: took.Seconds()}
	if out.Tasks > 0 && took > 0 {
		out.Rate = float64(out.Tasks) / took.Seconds()
		out.Statements = float64(after.Statements-before.Statements) / float64(out.Tasks)
	}
	sorted := m.Latencies(before, after)
	ms := func(p int) float64 { return Percentile(sorted, p).Seconds() * 1e3 }
	out.P50, out.P95, out.P99 = ms(50), ms(95), ms(99)
	return out
}

// fill dispatches the backlog.
func (s Scenario) fill(ctx context.Context, p *pgxpool.Pool, cfg Config) error {
	c, err := NewClient(p, Nothing, tasking.Config{})
	if err != nil {
		return err
	}
	return Fill(ctx, c, cfg.Tasks, s.backlog, func(done int) { cfg.Progress("dispatching", done, cfg.Tasks) })
}

// workOn runs a worker whose tasks call fn. The fleet that is there keeps house.
func workOn(ctx context.Context, p *pgxpool.Pool, fn func(context.Context, *tasking.Run), cfg Config) error {
	c, err := NewClient(p, fn, tasking.Config{})
	if err != nil {
		return err
	}
	return Work(ctx, c, worker.Config{Concurrency: cfg.orSlots(DefaultSlots), Auxiliary: true, NameTemplate: "bench {pid}@{hostname}"})
}

// dispatch dispatches one task at a time from some goroutines. A dispatch that is under way when ctx ends
// is let finish.
func dispatch(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) error {
	c, err := NewClient(p, Nothing, tasking.Config{})
	if err != nil {
		return err
	}
	goroutines := cfg.orSlots(DefaultGoroutines)
	all, ctx := errgroup.WithContext(ctx)
	for g := range goroutines {
		all.Go(func() error {
			for i := g; i < cfg.Tasks && ctx.Err() == nil; i += goroutines {
				start := time.Now()
				if _, err := c.Dispatch(context.WithoutCancel(ctx), Requests(i, 1, nil)[0]); err != nil {
					return err
				}
				m.Took(time.Since(start))
				m.Done(1)
			}
			return nil
		})
	}
	return all.Wait()
}

// pickup dispatches a task every PickupEvery, and has a worker run them that is not told.
func pickup(ctx context.Context, p *pgxpool.Pool, m *Meter, cfg Config) error {
	var times Pickup
	times.Meter = m
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return workOn(ctx, p, times.Started, cfg) })
	all.Go(func() error {
		// A client of its own: one that the worker shared would wake it.
		c, err := NewClient(p, Nothing, tasking.Config{})
		if err != nil {
			return err
		}
		ticks := time.NewTicker(PickupEvery)
		defer ticks.Stop()
		for i := range cfg.Tasks {
			select {
			case <-ticks.C:
			case <-ctx.Done():
				return nil
			}
			done, err := c.Dispatch(context.WithoutCancel(ctx), Requests(i, 1, nil)[0])
			if err != nil {
				return err
			}
			times.Dispatched(done.ID)
		}
		return nil
	})
	return all.Wait()
}

// A Pickup notes the time from the end of a dispatch to the start of its task, whichever it hears of
// first. It may be used by many goroutines.
type Pickup struct {
	Meter *Meter

	mu    sync.Mutex              // guards what follows
	early map[uuid.UUID]time.Time // dispatched and not started, or started and not dispatched
}

// Dispatched is to be called when the dispatch of a task has returned.
func (k *Pickup) Dispatched(id uuid.UUID) {
	if _, ok := k.other(id); ok {
		k.Meter.Took(0) // it had started before the dispatcher knew
		k.Meter.Done(1)
	}
}

// Started is a task function.
func (k *Pickup) Started(_ context.Context, run *tasking.Run) {
	if at, ok := k.other(run.ID); ok {
		k.Meter.Took(time.Since(at))
		k.Meter.Done(1)
	}
}

// other returns when the other of the two was called, if it was.
func (k *Pickup) other(id uuid.UUID) (time.Time, bool) {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.early[id]
	if ok {
		delete(k.early, id)
		return at, true
	}
	if k.early == nil {
		k.early = map[uuid.UUID]time.Time{}
	}
	k.early[id] = now
	return at, false
}
