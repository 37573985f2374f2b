package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/isolate"
	"github.com/pithworks/pith/tasking"
)

// Config configures a Worker. The zero value is Pulp's worker: one slot, housekeeping, no end.
type Config struct {
	// Concurrency is the number of slots: tasks that run at the same time. Default: 1.
	Concurrency int
	// Auxiliary workers only run tasks; they do no housekeeping. Default: false.
	Auxiliary bool
	// Burst ends the worker when it finds nothing to claim and runs nothing. Default: false.
	Burst bool
	// NameTemplate makes the worker's name; see appstatus.Config. Default: {pid}@{hostname}.
	NameTemplate string
	// Versions of the components in this process, label to PEP 440 version; a task that needs a label
	// that is not here, or a later version, is not claimed. Default: none.
	Versions map[string]string
	// TTL is how long after its last beat the worker counts as online. Default: 30 s.
	TTL time.Duration
	// Grace is how long tasks may go on when Run's context has ended. Default: 600 s; negative: as
	// long as they like.
	Grace time.Duration
	// WorkDir is where isolated tasks get their working directories. Default: os.TempDir().
	WorkDir string
	// Meter gets Pulp's gauges tasks_unblocked_queue (tasks that nobody has claimed for 5 s or more, though they
	// wait for nothing else) and tasks_longest_unblocked_time (seconds), both of the whole fleet: about once per
	// beat one of its workers records them. Auxiliary workers do not. Default: none.
	Meter metric.Meter
	// Log gets what the worker does. Default: none.
	Log *slog.Logger
}

// Pulp's TASK_GRACE_INTERVAL.
const defaultGrace = 600 * time.Second

// Worker claims and runs tasks.
type Worker struct {
	client *tasking.Client
	db     *pgxpool.Pool
	cfg    Config
	gauges *gauges
	// children run isolated tasks under the present identity.
	children *isolate.Pool

	drain chan struct{} // closed by Drain
	abort chan struct{} // closed by Abort
	once  struct{ drain, abort sync.Once }
	name  string
}

// New validates the configuration; it sends nothing and starts nothing.
func New(client *tasking.Client, cfg Config) (*Worker, error) {
	if client == nil {
		return nil, errors.New("worker: a tasking client is required")
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 1
	}
	if cfg.Concurrency < 0 || cfg.Concurrency > 100_000 {
		return nil, fmt.Errorf("worker: concurrency %d: must be 1 to 100000", cfg.Concurrency)
	}
	if len(client.Registry().Runnable()) == 0 {
		return nil, errors.New("worker: the client's registry has no task type with a function")
	}
	if cfg.WorkDir != "" {
		if info, err := os.Stat(cfg.WorkDir); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("worker: working directory %s: make it, and let the worker write there", cfg.WorkDir)
		}
	}
	if names := client.Registry().Isolated(); len(names) > 0 && !isolate.Served() {
		return nil, fmt.Errorf("worker: task type %s runs in child processes: call tasking.RunChild with the registry at the beginning of main, and of TestMain", names[0])
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Worker{client: client, db: client.Pool(), cfg: cfg, drain: make(chan struct{}), abort: make(chan struct{})}
	var err error
	if w.gauges, err = newGauges(cfg.Meter); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	app, err := w.newApp() // for its errors, and the name before Run
	if err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	w.name = app.Name()
	return w, nil
}

// newApp makes an identity, and the children that work under its lease.
func (w *Worker) newApp() (*appstatus.App, error) {
	children := isolate.New(isolate.Config{Dir: w.cfg.WorkDir})
	w.children = children
	return appstatus.New(w.db, appstatus.Config{
		Type: appstatus.Worker, NameTemplate: w.cfg.NameTemplate, Versions: w.cfg.Versions,
		TaskNames: w.client.Registry().Runnable(), Housekeeping: !w.cfg.Auxiliary, TTL: w.cfg.TTL, Log: w.cfg.Log,
		Prolonged: children.Extend,
	})
}

// Name is the worker's expanded name template.
func (w *Worker) Name() string { return w.name }

// Drain makes the worker claim no more; Run returns when the tasks that run have ended, however long
// that takes.
func (w *Worker) Drain() { w.once.drain.Do(func() { close(w.drain) }) }

// Abort cancels the running tasks; those that do not complete are recorded as failed with
// ReasonShutdown. Run returns when their functions have returned, or after ten seconds with
// ErrStillRunning.
func (w *Worker) Abort() {
	w.Drain()
	w.once.abort.Do(func() { close(w.abort) })
}

// ErrStillRunning means that functions of tasks went on for ten seconds after they were aborted. Their
// goroutines cannot be ended but with the process, which has until the lease ends; then a sweep fails
// their tasks.
var ErrStillRunning = errors.New("aborted tasks are still running: end the process")

// Messages of the log that tell of a worker that was declared missing: who sweeps says MessageSwept, who was
// swept, or fears it, says MessageLost.
const (
	MessageSwept = "process has gone missing"
	MessageLost  = "worker was declared missing, starting over"
)

// Run works until ctx ends, Drain or Abort is called, or, with Burst, nothing is left to do. When ctx
// ends, it claims no more; after Config.Grace it aborts what still runs. The results are recorded in
// any case. A worker that was declared missing goes on under a new identity.
func (w *Worker) Run(ctx context.Context) error {
	for {
		app, err := w.newApp()
		if err != nil {
			return fmt.Errorf("worker: %w", err)
		}
		err = w.session(ctx, app)
		w.children.Close()
		switch {
		case errors.Is(err, appstatus.ErrLost):
			w.cfg.Log.Warn(MessageLost, "worker", app.Name(), "app", app.ID())
		default:
			return err
		}
	}
}

// session is the life of one identity: from registration until the end, or until it is lost.
func (w *Worker) session(ctx context.Context, app *appstatus.App) error {
	if w.stopped(ctx) {
		return nil
	}
	if err := w.register(ctx, app); err != nil {
		// An answer may have got lost; if this does not arrive either, the sweep removes the row.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := app.Unregister(last); err != nil {
			w.cfg.Log.Debug("unregister failed", "worker", app.Name(), "err", err)
		}
		if !w.stopped(ctx) {
			return fmt.Errorf("worker: %w", err)
		}
		return nil
	}
	w.cfg.Log.Info("worker is online", "worker", app.Name(), "app", app.ID(), "slots", w.cfg.Concurrency, "fleet", app.Online())

	// The parts outlive ctx: what is running must be recorded, under a lease that goes on.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	parts, life := errgroup.WithContext(life)
	parts.Go(func() error { return app.Run(life) })
	if !w.cfg.Auxiliary {
		parts.Go(func() error { newHousekeeper(w, app).run(life); return nil })
	}
	parts.Go(func() error {
		defer end()
		return newShift(w, app).run(ctx, life)
	})
	err := parts.Wait()
	// While functions go on, the lease keeps others away from their tasks for as long as it lasts.
	if !errors.Is(err, appstatus.ErrLost) && !errors.Is(err, ErrStillRunning) {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if uerr := app.Unregister(last); uerr != nil {
			// The sweep will do it.
			w.cfg.Log.Warn("worker could not unregister", "worker", app.Name(), "err", uerr)
		}
		w.cfg.Log.Info("worker is offline", "worker", app.Name(), "app", app.ID())
	}
	return err
}

// register registers the App, until the worker is told to stop.
func (w *Worker) register(ctx context.Context, app *appstatus.App) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-w.drain:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := app.Connect(ctx); err != nil {
		return err
	}
	return app.Register(ctx)
}

func (w *Worker) stopped(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	case <-w.drain:
		return true
	default:
		return false
	}
}
