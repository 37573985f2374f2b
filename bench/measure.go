package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/pool"
)

// A Sample is what one run measured. Figures per task are those of the window, but for the
// transactions, which are those of the whole run.
type Sample struct {
	Tasks        float64 `json:"tasks_per_s"`
	P50          float64 `json:"p50_ms"`
	P95          float64 `json:"p95_ms"`
	P99          float64 `json:"p99_ms"`
	DatabaseCPU  float64 `json:"database_cpu_us_per_task"`
	PoolerCPU    float64 `json:"pooler_cpu_us_per_task"`
	ClientCPU    float64 `json:"client_cpu_us_per_task"`
	Statements   float64 `json:"statements_per_task"`
	Transactions float64 `json:"transactions_per_task"`
	WAL          float64 `json:"wal_bytes_per_task"`
	// ServerConns were open at the end; nothing closes one during a run.
	ServerConns float64 `json:"server_connections"`
	// Others is the percentage of the machine's CPU time that went elsewhere, the kernel's own threads
	// included.
	Others float64 `json:"others_cpu_percent"`
	// Prepared statements in the whole run.
	Prepared float64 `json:"prepared"`
}

// A load is a kind of work.
type load struct {
	name string
	// latency says what p50, p95 and p99 are of.
	latency string
	// timesTurns: they are of the worker's turns, not of what drive reports.
	timesTurns bool
	// fill dispatches the backlog that drive works off. Default: drive makes its own work.
	fill func(ctx context.Context, p *pgxpool.Pool, backlog int) error
	// fraction of the pace's backlog that is enough: one in so many. Default: 1.
	fraction int
	// drive does tasks until its context ends, and then returns nil.
	drive func(ctx context.Context, p *pgxpool.Pool, r *run) error
}

// A pace says how long a run takes, and how much there is to do.
type pace struct {
	warmUp, window time.Duration
	// backlog is how many tasks are dispatched before, for a load that only runs them. The window ends
	// with them.
	backlog int
}

// clientConns is the size of the client's pool, as in a worker process.
const clientConns = 4

// leastTasks is how many tasks a window holds, however long they take.
const leastTasks = 10

// A run counts what one run of a load does.
type run struct {
	statements, prepared atomic.Int64

	mu        sync.Mutex // guards what follows
	tasks     int
	latencies []time.Duration
	marks     map[int]chan struct{} // closed when there were so many tasks
}

// done counts a task.
func (r *run) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tasks++
	if mark, ok := r.marks[r.tasks]; ok {
		close(mark)
		delete(r.marks, r.tasks)
	}
}

// took notes a latency.
func (r *run) took(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latencies = append(r.latencies, d)
}

// mark returns a channel that is closed once there were so many tasks.
func (r *run) mark(tasks int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	mark := make(chan struct{})
	if r.tasks >= tasks {
		close(mark)
		return mark
	}
	if r.marks == nil {
		r.marks = map[int]chan struct{}{}
	}
	r.marks[tasks] = mark
	return mark
}

// turnText is how the text of a worker's turn begins.
const turnText = "-- name: TaskTurn "

type turnStart struct{}

// A tracer counts statements, and times the turns among them if it is told to.
type tracer struct {
	run   *run
	turns bool
}

func (t tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	t.run.statements.Add(1)
	if t.turns && strings.HasPrefix(data.SQL, turnText) {
		return context.WithValue(ctx, turnStart{}, time.Now())
	}
	return ctx
}

func (t tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if start, ok := ctx.Value(turnStart{}).(time.Time); ok && data.Err == nil {
		t.run.took(time.Since(start))
	}
}

func (t tracer) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	t.run.statements.Add(1)
	t.run.prepared.Add(1)
	return ctx
}

func (t tracer) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}

// measure runs a load once, on a database of its own.
func (s *stage) measure(ctx context.Context, pace pace, path path, l load, named bool) (sample Sample, err error) {
	database, drop, err := s.database(ctx)
	if err != nil {
		return Sample{}, err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	backlog := pace.backlog / max(l.fraction, 1)
	if l.fill != nil {
		if err := s.fill(ctx, l, database, backlog); err != nil {
			return Sample{}, fmt.Errorf("dispatch the backlog: %w", err)
		}
	}
	before, err := s.disconnect(ctx, database)
	if err != nil {
		return Sample{}, err
	}
	r := &run{}
	p, err := pool.Open(ctx, path.url(database), pool.Config{
		MaxConns: clientConns, NamedStatements: named, Tracer: tracer{run: r, turns: l.timesTurns},
	})
	if err != nil {
		return Sample{}, err
	}
	defer p.Close()
	var exhausted <-chan struct{}
	if l.fill != nil {
		exhausted = r.mark(backlog)
	}
	driving, stop := context.WithCancel(ctx)
	defer stop()
	var driveErr error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		driveErr = l.drive(driving, p, r)
	}()
	sample, err = s.window(ctx, pace, database, path, r, exhausted, ended)
	stop()
	<-ended
	if err := errors.Join(err, driveErr); err != nil {
		return Sample{}, err
	}
	after, err := s.disconnect(ctx, database)
	if err != nil {
		return Sample{}, err
	}
	sample.Transactions = float64(after-before) / float64(r.tasks)
	sample.Prepared = float64(r.prepared.Load())
	return sample, nil
}

// fill dispatches the backlog past the poolers.
func (s *stage) fill(ctx context.Context, l load, database string, backlog int) error {
	p, err := pool.Open(ctx, s.server.URL(database), pool.Config{})
	if err != nil {
		return err
	}
	defer p.Close()
	return l.fill(ctx, p, backlog)
}

// window waits for the warm-up to pass, and measures the time after it.
func (s *stage) window(ctx context.Context, pace pace, database string, path path, r *run, exhausted, ended <-chan struct{}) (Sample, error) {
	if err := await(ctx, pace.warmUp, r.mark(1), exhausted, ended); err != nil {
		return Sample{}, err
	}
	from, err := s.read(ctx, database, path, r)
	if err != nil {
		return Sample{}, err
	}
	if err := await(ctx, pace.window, r.mark(from.tasks+leastTasks), exhausted, ended); err != nil {
		return Sample{}, err
	}
	to, err := s.read(ctx, database, path, r)
	if err != nil {
		return Sample{}, err
	}
	if to.tasks < from.tasks+leastTasks {
		return Sample{}, errors.New("the backlog has ended too early: make it larger")
	}
	return from.until(to, r), nil
}

// await waits until the time has passed and least is closed, or the backlog is exhausted.
func await(ctx context.Context, d time.Duration, least, exhausted, ended <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for passed := false; !passed || least != nil; {
		select {
		case <-timer.C:
			passed = true
		case <-least:
			least = nil
		case <-exhausted:
			return nil
		case <-ended:
			return errors.New("the work has ended too early")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// A reading is the state of everything at the beginning or the end of a window.
type reading struct {
	at                       time.Time
	tasks, latencies         int
	statements               int64
	database, pooler, client time.Duration // CPU time
	allCPUs, busyCPUs        time.Duration // of the machine
	wal                      int64         // bytes since ever
	conns                    int
}

// read takes a reading.
func (s *stage) read(ctx context.Context, database string, path path, r *run) (reading, error) {
	var now reading
	err := s.admin.QueryRow(ctx, `SELECT (pg_current_wal_lsn() - '0/0')::bigint,
		(SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend')::int`,
		database).Scan(&now.wal, &now.conns)
	if err != nil {
		return now, fmt.Errorf("read the server's state: %w", err)
	}
	if now.database, err = familyTime(s.server.PID()); err != nil {
		return now, err
	}
	if now.pooler, err = processTime(path.pid); err != nil {
		return now, err
	}
	if now.client, err = processTime(os.Getpid()); err != nil {
		return now, err
	}
	if now.allCPUs, now.busyCPUs, err = cpuTimes(); err != nil {
		return now, err
	}
	now.statements = r.statements.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	now.at, now.tasks, now.latencies = time.Now(), r.tasks, len(r.latencies)
	return now, nil
}

// until is what happened from one reading to a later one.
func (from reading) until(to reading, r *run) Sample {
	tasks := float64(to.tasks - from.tasks)
	micros := func(d time.Duration) float64 { return d.Seconds() * 1e6 / tasks }
	ours := to.database + to.pooler + to.client - from.database - from.pooler - from.client
	others := to.busyCPUs - from.busyCPUs - ours
	r.mu.Lock()
	took := slices.Clone(r.latencies[from.latencies:to.latencies])
	r.mu.Unlock()
	slices.Sort(took)
	return Sample{
		Tasks:       tasks / to.at.Sub(from.at).Seconds(),
		P50:         percentile(took, 50),
		P95:         percentile(took, 95),
		P99:         percentile(took, 99),
		DatabaseCPU: micros(to.database - from.database),
		PoolerCPU:   micros(to.pooler - from.pooler),
		ClientCPU:   micros(to.client - from.client),
		Statements:  float64(to.statements-from.statements) / tasks,
		WAL:         float64(to.wal-from.wal) / tasks,
		ServerConns: float64(to.conns),
		// Ours are read in ticks, a little earlier.
		Others: 100 * max(0, others.Seconds()) / max((to.allCPUs-from.allCPUs).Seconds(), tick.Seconds()),
	}
}

// percentile is the smallest of the sorted values that p percent of them do not exceed, in ms.
func percentile(sorted []time.Duration, p int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p+99)/100-1].Seconds() * 1e3
}
