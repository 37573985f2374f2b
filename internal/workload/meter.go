// Package workload puts known loads on a database through tasking and worker, and counts what comes of
// them. pith bench and the benchmarks of the module bench run the same code.
//
// It dispatches tasks of its own types only, and its workers run no others.
package workload

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Meter counts tasks and statements, and keeps latencies. The zero value is ready; it may be used by
// many goroutines, and must not be copied.
type Meter struct {
	tasks, statements, prepared atomic.Int64

	mu        sync.Mutex // guards what follows
	latencies []time.Duration
	marks     map[int64]chan struct{} // closed when there were so many tasks
	lowest    atomic.Int64            // of the marks; 0 if there is none
}

// Done counts n tasks.
func (m *Meter) Done(n int) {
	now := m.tasks.Add(int64(n))
	if lowest := m.lowest.Load(); lowest > 0 && now >= lowest {
		m.reach()
	}
}

// reach closes the marks that the count has passed.
func (m *Meter) reach() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lowest int64
	for at, mark := range m.marks {
		if m.tasks.Load() >= at {
			close(mark)
			delete(m.marks, at)
		} else if lowest == 0 || at < lowest {
			lowest = at
		}
	}
	m.lowest.Store(lowest)
}

// Mark returns a channel that is closed once there were so many tasks.
func (m *Meter) Mark(tasks int) <-chan struct{} {
	at := int64(tasks)
	if at <= 0 {
		passed := make(chan struct{})
		close(passed)
		return passed
	}
	m.mu.Lock()
	mark, ok := m.marks[at]
	if !ok {
		mark = make(chan struct{})
		if m.marks == nil {
			m.marks = map[int64]chan struct{}{}
		}
		m.marks[at] = mark
		if lowest := m.lowest.Load(); lowest == 0 || at < lowest {
			m.lowest.Store(at)
		}
	}
	m.mu.Unlock()
	m.reach() // it may have been passed before lowest was set
	return mark
}

// Took notes latencies.
func (m *Meter) Took(d ...time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latencies = append(m.latencies, d...)
}

// AddStatements counts statements that another process has sent.
func (m *Meter) AddStatements(n int) { m.statements.Add(int64(n)) }

// Counts are what a Meter has counted so far.
type Counts struct {
	Tasks, Latencies int
	// Statements are those sent, preparations included; Prepared are the preparations among them.
	Statements, Prepared int
}

// Counts reads them all.
func (m *Meter) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Counts{
		Tasks: int(m.tasks.Load()), Latencies: len(m.latencies),
		Statements: int(m.statements.Load()), Prepared: int(m.prepared.Load()),
	}
}

// Latencies returns those between two counts, sorted.
func (m *Meter) Latencies(from, to Counts) []time.Duration {
	m.mu.Lock()
	took := slices.Clone(m.latencies[from.Latencies:to.Latencies])
	m.mu.Unlock()
	slices.Sort(took)
	return took
}

// Percentile is the smallest of the sorted values that p percent of them do not exceed (0: the least); 0 if
// there are none.
func Percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*p+99)/100-1, 0)]
}

// Tracer counts the statements of the connections that it is given to. If timed, the time of each
// flight is a latency: of a statement until its rows are read, or of a whole batch.
func (m *Meter) Tracer(timed bool) pgx.QueryTracer { return tracer{meter: m, timed: timed} }

type tracer struct {
	meter *Meter
	timed bool
}

var (
	_ pgx.BatchTracer    = tracer{}
	_ pgx.CopyFromTracer = tracer{}
	_ pgx.PrepareTracer  = tracer{}
)

type flightStart struct{}

func (t tracer) begin(ctx context.Context, statements int) context.Context {
	t.meter.statements.Add(int64(statements))
	if t.timed {
		return context.WithValue(ctx, flightStart{}, time.Now())
	}
	return ctx
}

func (t tracer) end(ctx context.Context, err error) {
	if start, ok := ctx.Value(flightStart{}).(time.Time); ok && err == nil {
		t.meter.Took(time.Since(start))
	}
}

func (t tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return t.begin(ctx, 1)
}

func (t tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	t.end(ctx, data.Err)
}

func (t tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	return t.begin(ctx, data.Batch.Len())
}

func (t tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (t tracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	t.end(ctx, data.Err)
}

func (t tracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return t.begin(ctx, 1)
}

func (t tracer) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	t.end(ctx, data.Err)
}

func (t tracer) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	t.meter.statements.Add(1)
	t.meter.prepared.Add(1)
	return ctx
}

func (t tracer) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}
