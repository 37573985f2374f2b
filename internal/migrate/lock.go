package migrate

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pithworks/pith/internal/resend"
)

// boundWaits has each wait for a lock end after so many milliseconds, until the transaction ends.
//
// It is no SET, for which Amazon RDS Proxy would pin the connection: what is local to a transaction needs no pin, and
// a proxy reads no bodies.
const boundWaits = `DO $$ BEGIN PERFORM set_config('lock_timeout', '%d', true); END $$`

// What a migrator asks about itself and others. These tables are the server's and goose's, which sqlc does not know.
const (
	selectPID = `SELECT pg_backend_pid()`

	selectBlockers = `SELECT coalesce(a.pid, 0), coalesce(a.usename, '')::text, coalesce(a.application_name, ''), coalesce(a.state, ''),
			coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8, coalesce(left(a.query, 200), '')
		FROM (
			SELECT DISTINCT u.pid
			FROM (SELECT $1::int AS pid UNION ALL SELECT pid FROM pg_stat_activity WHERE query = $2 AND state = 'active') m,
				unnest(pg_blocking_pids(m.pid)) u (pid)
		) b LEFT JOIN pg_stat_activity a ON a.pid = b.pid
		ORDER BY a.xact_start, a.pid LIMIT 5`

	selectMigrator = `SELECT locked_by, extract(epoch FROM now() - locked_at)::float8 FROM goose_lock WHERE locked AND lease_expires_at > now()`
)

// A Blocker is a session that keeps a migration from a lock.
type Blocker struct {
	// PID is the server process; 0 is a prepared transaction.
	PID int32
	// Role and Application are who that is, as far as it tells.
	Role, Application string
	// State is what pg_stat_activity says, such as idle in transaction, and For how long the transaction is open. Both are
	// empty where they are hidden from the migrator's role.
	State string
	For   time.Duration
	// Query is the beginning of its last statement.
	Query string
}

func (b Blocker) String() string {
	if b.PID == 0 {
		return "a prepared transaction (see pg_prepared_xacts)"
	}
	about := []string{"role " + cmp.Or(b.Role, "unknown")}
	if b.Application != "" {
		about = append(about, b.Application)
	}
	if b.State != "" {
		about = append(about, b.State)
	}
	if b.For > 0 {
		about = append(about, "its transaction open for "+b.For.Round(time.Second/10).String())
	}
	return fmt.Sprintf("pid %d (%s): %s", b.PID, strings.Join(about, ", "), strings.Join(strings.Fields(b.Query), " "))
}

// A BlockedError says that others kept a migration from its locks for as long as it was to try. The migration has
// changed nothing; those before it stay.
type BlockedError struct {
	// File is the migration.
	File string
	// Tried is for how long, Tries how often.
	Tried time.Duration
	Tries int
	// By are those who were in its way when it waited last. Nobody, if that could not be found out.
	By []Blocker
	// Err is the last error.
	Err error
}

// Error names who blocks and the remedy.
func (e *BlockedError) Error() string {
	by, remedy := "it could not be seen by whom", "look for old transactions in pg_stat_activity and end them (SELECT pg_terminate_backend(pid))"
	if len(e.By) > 0 {
		by = "by " + describe(e.By)
		if pid := e.By[0].PID; pid != 0 {
			remedy = fmt.Sprintf("end it (SELECT pg_terminate_backend(%d))", pid)
		}
	}
	return fmt.Sprintf("%s is blocked for %s, %d tries, %s: %s, or let it try for longer (--retry-for): %v",
		e.File, e.Tried.Round(time.Second/10), e.Tries, by, remedy, e.Err)
}

// Unwrap returns the last error.
func (e *BlockedError) Unwrap() error { return e.Err }

func describe(list []Blocker) string {
	texts := make([]string, 0, len(list))
	for _, b := range list {
		texts = append(texts, b.String())
	}
	return strings.Join(texts, "; ")
}

// PostgreSQL's codes for a lock that was not to be had.
const (
	lockNotAvailable = "55P03"
	deadlockDetected = "40P01"
)

// isBlocked tells whether an error says that a lock was not to be had.
func isBlocked(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == lockNotAvailable || pg.Code == deadlockDetected)
}

// bounded makes connections whose transactions wait for each lock for a limited time only, and are watched meanwhile.
type bounded struct {
	driver.Connector
	limit time.Duration
	watch *watch
	log   *slog.Logger
}

// Connect makes one.
func (b bounded) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := b.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	of, ok := conn.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connection is a %T", conn), conn.Close())
	}
	return &boundedConn{of, b}, nil
}

type boundedConn struct {
	*stdlib.Conn
	of bounded
}

// BeginTx begins a transaction. A watcher looks after it until it ends.
func (c *boundedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.Conn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	if _, err = c.Conn.Conn().Exec(ctx, fmt.Sprintf(boundWaits, c.of.limit.Milliseconds())); err == nil {
		var pid int32
		if err = c.Conn.Conn().QueryRow(ctx, selectPID).Scan(&pid); err == nil {
			return watchedTx{tx, c.of.watch.begin(ctx, pid, "", nil)}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("bound the waits for locks: %w", err), tx.Rollback())
}

// againAfter is the time between two words about a wait that goes on.
const againAfter = 30 * time.Second

// ExecContext executes a statement. One that works concurrently waits without a bound for transactions that are older
// than it, and blocks nobody meanwhile; a watcher tells for whom it waits.
func (c *boundedConn) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	if strings.Contains(text, " CONCURRENTLY ") {
		said := time.Now().Add(c.of.limit - againAfter)
		end := c.of.watch.begin(ctx, 0, text, func(by []Blocker) {
			if time.Since(said) >= againAfter {
				said = time.Now()
				c.of.log.Warn("migration waits for older transactions, and blocks nobody meanwhile", "waits_for", describe(by),
					"statement", strings.Join(strings.Fields(text), " "))
			}
		})
		defer end()
	}
	return c.Conn.ExecContext(ctx, text, args)
}

type watchedTx struct {
	driver.Tx
	end func()
}

// Commit ends the transaction, and with it the watch.
func (t watchedTx) Commit() error {
	defer t.end()
	return t.Tx.Commit()
}

// Rollback ends the transaction, and with it the watch.
func (t watchedTx) Rollback() error {
	defer t.end()
	return t.Tx.Rollback()
}

// watch looks, while a transaction or a statement runs, who keeps it from its locks. It looks often, for a pooler whose connections all
// wait behind the transaction soon has none left for a look: then nobody is seen.
type watch struct {
	pool  *pgxpool.Pool
	every time.Duration

	mu   sync.Mutex
	seen []Blocker // last
}

// lookTimeout bounds one look.
const lookTimeout = 5 * time.Second

// begin watches the transaction of a server process, or a statement that is outside of one and so of whatever process the
// pooler chose, until the answered function is called. Whom it sees goes to tell, too, unless that is nil.
func (w *watch) begin(ctx context.Context, pid int32, statement string, tell func([]Blocker)) (end func()) {
	w.saw(nil)
	waiting, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// The end of the watch breaks off a pause, not a look: that would cost its connection.
		for resend.Sleep(waiting, w.every) == nil {
			if list, err := w.look(ctx, pid, statement); err == nil && len(list) > 0 {
				w.saw(list)
				if tell != nil {
					tell(list)
				}
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (w *watch) look(ctx context.Context, pid int32, statement string) ([]Blocker, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	// An error of the query itself shows when its rows are read.
	rows, _ := w.pool.Query(ctx, selectBlockers, pid, statement)
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Blocker, err error) {
		var open float64
		err = row.Scan(&b.PID, &b.Role, &b.Application, &b.State, &open, &b.Query)
		b.For = time.Duration(open * float64(time.Second))
		return b, err
	})
}

func (w *watch) saw(list []Blocker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = list
}

// last returns who was in the way of the last transaction when it waited.
func (w *watch) last() []Blocker {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

// another returns the migrator that is at work, and for how long; empty if there is none.
func another(ctx context.Context, q Querier) (name string, since time.Duration, err error) {
	var seconds float64
	err = q.QueryRow(ctx, selectMigrator).Scan(&name, &seconds)
	if errors.Is(err, pgx.ErrNoRows) || isUnmigrated(err) {
		return "", 0, nil
	}
	return name, time.Duration(seconds * float64(time.Second)), err
}
