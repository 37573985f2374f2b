package worker

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
)

// wire makes the connections of one process, so that they can all be cut at once.
type wire struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
	dead  bool
	// lossy: one answer in so many is lost, and its connection with it; 0: none.
	lossy atomic.Int64
}

// tapped is one connection of a wire.
type tapped struct {
	net.Conn
	wire *wire
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if one := c.wire.lossy.Load(); err == nil && one > 0 && rand.Int64N(one) == 0 {
		_ = c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *tapped) Close() error {
	c.wire.mu.Lock()
	delete(c.wire.conns, c)
	c.wire.mu.Unlock()
	return c.Conn.Close()
}

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		_ = conn.Close()
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("the wire is cut")}
	}
	c := &tapped{conn, w}
	w.conns[c] = true
	return c, nil
}

// cut ends all connections for good.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
	for c := range w.conns {
		_ = c.(*tapped).Conn.Close()
	}
	clear(w.conns)
}

// watch sees the errors that a test has to know of.
type watch struct {
	conflicts atomic.Int64
	mu        sync.Mutex
	deadlocks []string
}

// check fails the test if a statement failed in a deadlock.
func (w *watch) check(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.deadlocks {
		t.Errorf("a statement failed in a deadlock: %s", d)
	}
}

func (w *watch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (w *watch) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	var pg *pgconn.PgError
	if !errors.As(data.Err, &pg) {
		return
	}
	switch pg.Code {
	case "40P01":
		w.mu.Lock()
		defer w.mu.Unlock()
		w.deadlocks = append(w.deadlocks, pg.Detail+"\n"+pg.Where)
	case "40001":
		w.conflicts.Add(1)
	}
}

// wired opens a pool like d.Pool on a wire of its own.
func wired(t *testing.T, d *dbtest.DB, watch *watch, conns int32) (*pgxpool.Pool, *wire) {
	t.Helper()
	w := &wire{conns: map[net.Conn]bool{}}
	cfg := d.Pool.Config()
	cfg.MaxConns = conns
	cfg.ConnConfig.DialFunc = w.dial
	cfg.ConnConfig.Tracer = watch
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, w
}

// noDeadlocks fails the test if the database has seen a deadlock. Server connections report when they
// end at the latest, so they are ended first.
func noDeadlocks(t *testing.T, d *dbtest.DB) {
	t.Helper()
	conn, err := d.Direct.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Direct.Reset()
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != 0 {
		t.Errorf("the database has broken %d deadlocks", n)
	}
}
