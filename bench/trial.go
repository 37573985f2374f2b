package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/pool"
)

// A Sample is what one run measured. Figures per task are those of the window, but for the
// transactions, which are those of the whole run. Without tasks they are 0. Contestants that measure
// themselves, those of wakeup, scaleup and mixed, count no transactions and no preparations; wakeup reads
// nothing but its own figures and Others.
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
	// StatementRate is that of the statements sent, and the shares are percentages of one core.
	StatementRate float64 `json:"statements_per_s"`
	DatabaseShare float64 `json:"database_core_percent"`
	PoolerShare   float64 `json:"pooler_core_percent"`
	ClientShare   float64 `json:"client_core_percent"`
	// Others is the percentage of the machine's CPU time that went elsewhere, the kernel's own threads
	// included.
	Others float64 `json:"others_cpu_percent"`
	// Prepared statements in the whole run.
	Prepared float64 `json:"prepared"`
	// More are figures of the scenario's own.
	More map[string]float64 `json:"more,omitempty"`
}

// leastTasks is how many tasks a window holds, however long they take.
const leastTasks = 10

// A trial is one run of a contestant: the counters, and the way to its database.
type trial struct {
	workload.Meter
	database string
	path     path
	// url leads to the database by the contestant's path, and direct past any pooler.
	url, direct string
	contestant  contestant
	pace        pace
	complete    chan struct{} // closed by assembled

	mu        sync.Mutex // guards what follows
	pools     []*pgxpool.Pool
	processes []int
	more      map[string]float64
}

// trial makes one on a new database. It ends, and the database too, with end, which adds what fails then to
// an error. The stage has one connection for that: one goroutine may begin and end trials at a time.
func (s *stage) trial(ctx context.Context, pace pace, c contestant) (t *trial, end func(error) error, err error) {
	database, drop, err := s.database(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	way := s.path(c.path)
	t = &trial{
		database: database, path: way, url: way.url(database), direct: s.server.URL(database),
		contestant: c, pace: pace, complete: make(chan struct{}),
	}
	return t, func(err error) error {
		t.close()
		return errors.Join(err, drop(context.WithoutCancel(ctx)))
	}, nil
}

// open makes a pool of so many connections by the contestant's path, which counts what it sends. It is
// closed when the trial ends.
func (t *trial) open(ctx context.Context, conns int) (*pgxpool.Pool, error) {
	return t.openAs(ctx, t.contestant.poolConfig(conns, t))
}

// openAs is open with a configuration that was changed.
func (t *trial) openAs(ctx context.Context, cfg pool.Config) (*pgxpool.Pool, error) {
	p, err := pool.Open(ctx, t.url, cfg)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pools = append(t.pools, p)
	return p, nil
}

// clientProcess counts the CPU time of a process as the client's, from before the window to after it.
func (t *trial) clientProcess(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.processes = append(t.processes, pid)
}

// report notes a figure of the scenario's own.
func (t *trial) report(name string, value float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.more == nil {
		t.more = map[string]float64{}
	}
	t.more[name] = value
}

// assembled is what drive calls once where the contestant is many.
func (t *trial) assembled() { close(t.complete) }

func (t *trial) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pools {
		p.Close()
	}
}

// measure runs a contestant once, on a database of its own.
func (s *stage) measure(ctx context.Context, pace pace, c contestant) (sample Sample, err error) {
	t, drop, err := s.trial(ctx, pace, c)
	if err != nil {
		return Sample{}, err
	}
	defer func() { err = drop(err) }()
	before, err := s.disconnect(ctx, t.database)
	if err != nil {
		return Sample{}, err
	}
	end := func(context.Context) error { return nil }
	if c.begin != nil {
		if end, err = s.begin(ctx, c, t.database); err != nil {
			return Sample{}, err
		}
	}
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx))) }()
	var exhausted <-chan struct{}
	if c.worksOff() {
		exhausted = t.Mark(c.backlog)
	}
	var from *reading
	if exhausted != nil && pace.quick { // a reading alone can take longer than the whole backlog
		first, err := s.read(ctx, t)
		if err != nil {
			return Sample{}, err
		}
		from = &first
	}
	driving, stop := context.WithCancel(ctx)
	defer stop()
	var driveErr error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		driveErr = c.drive(driving, t)
	}()
	sample, err = s.window(ctx, t, from, exhausted, ended)
	if err == nil && c.worksOff() && pace.quick {
		err = await(ctx, 0, exhausted, nil, ended) // to see that nothing is lost
	}
	stop()
	<-ended
	if err := errors.Join(err, driveErr); err != nil {
		return Sample{}, err
	}
	t.close()
	if err := s.verify(ctx, t); err != nil {
		return Sample{}, err
	}
	err = end(ctx)
	end = func(context.Context) error { return nil }
	if err != nil {
		return Sample{}, err
	}
	after, err := s.disconnect(ctx, t.database)
	if err != nil {
		return Sample{}, err
	}
	counts := t.Counts()
	sample.Transactions = per(float64(after-before), float64(counts.Tasks))
	sample.Prepared = float64(counts.Prepared)
	sample.More = t.more
	return sample, nil
}

// begin runs the contestant's own preparation. What it returns closes the pool, too.
func (s *stage) begin(ctx context.Context, c contestant, database string) (func(context.Context) error, error) {
	p, err := pool.Open(ctx, s.server.URL(database), pool.Config{})
	if err != nil {
		return nil, err
	}
	end, err := c.begin(ctx, p)
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("prepare the run: %w", err)
	}
	return func(ctx context.Context) error {
		defer p.Close()
		return end(ctx)
	}, nil
}

// verify sees whether everything that was done is recorded, once.
func (s *stage) verify(ctx context.Context, t *trial) error {
	if t.contestant.recorded == "" {
		return nil
	}
	conn, err := pgx.Connect(ctx, t.direct)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var recorded int
	if err := conn.QueryRow(ctx, t.contestant.recorded).Scan(&recorded); err != nil {
		return fmt.Errorf("count what is recorded: %w", err)
	}
	if done := t.Counts().Tasks; recorded != done {
		return fmt.Errorf("%d tasks were done, %d are recorded", done, recorded)
	}
	return nil
}

// window waits for the warm-up to pass, unless from was read before, and measures the time after it.
func (s *stage) window(ctx context.Context, t *trial, from *reading, exhausted, ended <-chan struct{}) (Sample, error) {
	c := t.contestant
	warmUp, window := c.span(t.pace)
	least, first := leastTasks, t.Mark(1)
	if c.idle {
		least = 0
	}
	var enough, last <-chan struct{}
	if exhausted != nil {
		// The first and the last tenth are not like the rest: batches are growing, or short.
		first, enough, last = nil, t.Mark(c.backlog/10), t.Mark(c.backlog-c.backlog/10)
	}
	if from == nil {
		if c.many {
			if err := await(ctx, 0, t.complete, exhausted, ended); err != nil {
				return Sample{}, err
			}
		}
		if err := await(ctx, warmUp, first, enough, ended); err != nil {
			return Sample{}, err
		}
		now, err := s.read(ctx, t)
		if err != nil {
			return Sample{}, err
		}
		from = &now
	}
	if err := await(ctx, window, t.Mark(from.Tasks+least), last, ended); err != nil {
		return Sample{}, err
	}
	to, err := s.read(ctx, t)
	if err != nil {
		return Sample{}, err
	}
	if to.Tasks < from.Tasks+least {
		return Sample{}, errors.New("the backlog has ended too early: make it larger")
	}
	return from.until(to, t), nil
}

// await waits until the time has passed and least is closed, or enough is.
func await(ctx context.Context, d time.Duration, least, enough, ended <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for passed := false; !passed || least != nil; {
		select {
		case <-timer.C:
			passed = true
		case <-least:
			least = nil
		case <-enough:
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
	workload.Counts
	at                       time.Time
	database, pooler, client time.Duration // CPU time
	allCPUs, busyCPUs        time.Duration // of the machine
	wal                      int64         // bytes since ever
	conns                    int
}

// read takes a reading.
func (s *stage) read(ctx context.Context, t *trial) (reading, error) {
	var now reading
	err := s.admin.QueryRow(ctx, `SELECT (pg_current_wal_lsn() - '0/0')::bigint,
		(SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend')::int`,
		t.database).Scan(&now.wal, &now.conns)
	if err != nil {
		return now, fmt.Errorf("read the server's state: %w", err)
	}
	if now.database, err = familyTime(s.server.PID()); err != nil {
		return now, err
	}
	if now.pooler, err = processTime(t.path.pid); err != nil {
		return now, err
	}
	t.mu.Lock()
	processes := append([]int{os.Getpid()}, t.processes...)
	t.mu.Unlock()
	for _, pid := range processes {
		spent, err := processTime(pid)
		if err != nil {
			return now, err
		}
		now.client += spent
	}
	if now.allCPUs, now.busyCPUs, err = cpuTimes(); err != nil {
		return now, err
	}
	now.Counts = t.Counts()
	now.at = time.Now()
	if t.contestant.observe != nil {
		return now, t.contestant.observe(ctx, t, now)
	}
	return now, nil
}

// per is a/b, and 0 where there is no b.
func per(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// until is what happened from one reading to a later one.
func (from *reading) until(to reading, t *trial) Sample {
	tasks := float64(to.Tasks - from.Tasks)
	seconds := to.at.Sub(from.at).Seconds()
	statements := float64(to.Statements - from.Statements)
	database, pooler, client := to.database-from.database, to.pooler-from.pooler, to.client-from.client
	others := to.busyCPUs - from.busyCPUs - database - pooler - client
	micros := func(d time.Duration) float64 { return per(d.Seconds()*1e6, tasks) }
	core := func(d time.Duration) float64 { return per(100*d.Seconds(), seconds) }
	took := t.Latencies(from.Counts, to.Counts)
	ms := func(p int) float64 { return workload.Percentile(took, p).Seconds() * 1e3 }
	return Sample{
		Tasks: per(tasks, seconds),
		P50:   ms(50), P95: ms(95), P99: ms(99),
		DatabaseCPU: micros(database), PoolerCPU: micros(pooler), ClientCPU: micros(client),
		Statements: per(statements, tasks), WAL: per(float64(to.wal-from.wal), tasks), ServerConns: float64(to.conns),
		StatementRate: per(statements, seconds),
		DatabaseShare: core(database), PoolerShare: core(pooler), ClientShare: core(client),
		// Ours are read in ticks, a little earlier.
		Others: 100 * max(0, others.Seconds()) / max((to.allCPUs-from.allCPUs).Seconds(), tick.Seconds()),
	}
}
