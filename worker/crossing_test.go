package worker

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// crossing sends statements on connections of their own and knows when one waits for a lock.
type crossing struct {
	t   *testing.T
	d   *dbtest.DB
	q   *db.Queries
	all []<-chan error
}

// conn is a connection to PostgreSQL itself, with its server process.
func (c *crossing) conn() (conn *pgx.Conn, pid uint32) {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.d.DirectURL)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(c.t.Context())) })
	return conn, conn.PgConn().PID()
}

// send sends a statement in the background and returns when it waits for a lock.
func (c *crossing) send(statement func(*pgx.Conn) error) {
	c.t.Helper()
	conn, pid := c.conn()
	done := make(chan error, 1)
	go func() { done <- statement(conn) }()
	c.all = append(c.all, done)
	for waits := false; !waits; {
		select {
		case err := <-done:
			done <- err
			return // it need not wait
		default:
		}
		if err := c.d.Direct.QueryRow(c.t.Context(), "SELECT cardinality(pg_blocking_pids($1)) > 0", pid).Scan(&waits); err != nil {
			c.t.Fatal(err)
		}
	}
}

// end waits for all of them; none may have failed.
func (c *crossing) end() {
	c.t.Helper()
	for i, done := range c.all {
		if err := <-done; err != nil {
			c.t.Errorf("statement %d: %v", i, err)
		}
	}
}

// lock takes the lock of a row until it is released.
func (c *crossing) lock(sql string, args ...any) (release func()) {
	c.t.Helper()
	conn, _ := c.conn()
	tx, err := conn.Begin(c.t.Context())
	if err == nil {
		_, err = tx.Exec(c.t.Context(), sql, args...)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(c.t.Context()); err != nil {
			c.t.Error(err)
		}
	}
}

// newCrossing makes one with an app status whose lease has ended and that holds as many tasks, the last
// one claimed first, and with one runnable task more.
func newCrossing(t *testing.T, holds int) (c *crossing, app pgtype.UUID, held []pgtype.UUID) {
	t.Helper()
	c = &crossing{t: t, d: dbtest.New(t), q: db.New()}
	app = pgUUID(uuid.Must(uuid.NewV7()))
	if _, err := c.q.AppStatusRegister(t.Context(), c.d.Direct, db.AppStatusRegisterParams{
		ID: app, AppType: "worker", Name: "w", Versions: "{}", TaskNames: []string{echo.Name()}, TTLSeconds: 60,
	}); err != nil {
		t.Fatal(err)
	}
	client := newClient(t, c.d.Pool, c.d, echo)
	for i := range holds {
		task, err := client.Dispatch(t.Context(), echo.Request(echoArgs{}, tasking.Options{Priority: i}))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, pgUUID(task.ID))
	}
	for range holds {
		if _, err := c.turn(c.d.Direct, app, 1, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Dispatch(t.Context(), echo.Request(echoArgs{}, tasking.Options{})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.d.Direct.Exec(t.Context(), "UPDATE app_status SET last_heartbeat = now() - interval '1 hour'"); err != nil {
		t.Fatal(err)
	}
	return c, app, held
}

// turn ends tasks in their first attempt and claims others.
func (c *crossing) turn(dbtx db.DBTX, app pgtype.UUID, wanted int, ends []pgtype.UUID) ([]tasking.TurnEvent, error) {
	p := db.TaskTurnParams{
		Worker: app, Known: []int32{1}, Runnable: []int32{1}, Wanted: int32(wanted), Holding: []pgtype.UUID{},
		IDs: append([]pgtype.UUID{}, ends...), Attempts: []int32{}, States: []string{}, Results: []string{}, Errors: []string{},
	}
	for range ends {
		p.Attempts, p.States = append(p.Attempts, 1), append(p.States, "completed")
		p.Results, p.Errors = append(p.Results, ""), append(p.Errors, "")
	}
	return tasking.Turn(c.t.Context(), dbtx, p)
}

func (c *crossing) sweep(conn *pgx.Conn) error {
	_, err := c.q.AppStatusSweep(c.t.Context(), conn)
	return err
}

func TestTurnThatEndsAndClaimsDoesNotDeadlockWithSweepOfItsWorker(t *testing.T) {
	t.Parallel()
	c, app, held := newCrossing(t, 1)
	if _, err := c.d.Direct.Exec(t.Context(), `INSERT INTO progress_report (task_id, ordinal, message, code, state, done)
		VALUES ($1, 0, '', '', 'running', 0)`, held[0]); err != nil {
		t.Fatal(err)
	}
	release := c.lock("SELECT FROM progress_report FOR UPDATE")
	c.send(func(conn *pgx.Conn) error {
		_, err := c.turn(conn, app, 1, held)
		return err
	})
	c.send(c.sweep)
	release()
	c.end()
	noDeadlocks(t, c.d)
}

func TestCancelOfSeveralDoesNotDeadlockWithSweepOfTheirWorker(t *testing.T) {
	t.Parallel()
	c, _, held := newCrossing(t, 2)
	release := c.lock("SELECT FROM task WHERE id = $1 FOR UPDATE", held[0])
	c.send(func(conn *pgx.Conn) error {
		_, err := c.q.TaskCancel(t.Context(), conn, held)
		return err
	})
	c.send(c.sweep)
	release()
	c.end()
	noDeadlocks(t, c.d)
}

func TestChildThatRunsAtOnceDoesNotDeadlockWithSweepOfItsWorker(t *testing.T) {
	t.Parallel()
	c, app, held := newCrossing(t, 1)
	// The dispatch has the share of its parent's row when it comes to insert, and waits there for one
	// of the same id.
	id := pgUUID(uuid.Must(uuid.NewV7()))
	release := c.lock(`INSERT INTO task (id, kind, state, reserved_resources_record, logging_cid, args)
		VALUES ($1, 1, 'waiting', '{}', 'cid', 'null')`, id)
	c.send(func(conn *pgx.Conn) error {
		_, err := c.q.TaskDispatch(t.Context(), conn, db.TaskDispatchParams{
			Dispatcher: app, RunHere: true, Parent: held[0], ParentAttempt: 1, Busy: "{}",
			KindNames: []string{echo.Name()}, KindVersions: []string{"{}"}, KindAttempts: []int32{1}, KindBackoffs: []string{"0"},
			IDs: []pgtype.UUID{id}, Kinds: []int32{1}, Arguments: []string{"{}"}, Cids: []string{"cid"},
			Groups: []pgtype.UUID{{}}, Priorities: []int32{0}, Immediates: []bool{true}, Deferreds: []bool{true},
			NotBefores: []pgtype.Timestamptz{{}}, Reserving: []int32{}, Resources: []string{}, Exclusives: []bool{},
		})
		return err
	})
	c.send(c.sweep)
	release()
	c.end()
	noDeadlocks(t, c.d)
}

func TestDispatchesOfNewKindsInDifferentOrdersDoNotDeadlock(t *testing.T) {
	t.Parallel()
	c := &crossing{t: t, d: dbtest.New(t), q: db.New()}
	kinds := func(names ...string) func(*pgx.Conn) error {
		return func(conn *pgx.Conn) error {
			p := db.TaskDispatchParams{
				Busy: "{}", KindNames: names, Reserving: []int32{}, Resources: []string{}, Exclusives: []bool{},
				IDs: []pgtype.UUID{}, Kinds: []int32{}, Arguments: []string{}, Cids: []string{}, Groups: []pgtype.UUID{}, Priorities: []int32{},
				Immediates: []bool{}, Deferreds: []bool{}, NotBefores: []pgtype.Timestamptz{},
			}
			for range names {
				p.KindVersions, p.KindAttempts, p.KindBackoffs = append(p.KindVersions, "{}"), append(p.KindAttempts, 1), append(p.KindBackoffs, "0")
			}
			_, err := c.q.TaskDispatch(t.Context(), conn, p)
			return err
		}
	}
	release := c.lock("INSERT INTO task_kind (name, versions, max_attempts, backoff) VALUES ('b', '{}', 1, '0')")
	c.send(kinds("a", "b", "c"))
	c.send(kinds("c", "a"))
	release()
	c.end()
	noDeadlocks(t, c.d)
}

func TestCancelOfTaskThatIsBeingQueuedLeavesNoReservation(t *testing.T) {
	t.Parallel()
	c := &crossing{t: t, d: dbtest.New(t), q: db.New()}
	client := newClient(t, c.d.Pool, c.d, echo)
	task, err := client.Dispatch(t.Context(), echo.Request(echoArgs{}, tasking.Options{Shared: []string{"r"}, NotBefore: time.Now().Add(time.Hour)}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.d.Direct.Exec(t.Context(), "UPDATE task SET not_before = now()"); err != nil {
		t.Fatal(err)
	}
	conn, _ := c.conn()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.q.TaskEnqueueDue(t.Context(), tx, 10); err != nil || n != 1 {
		t.Fatalf("queued %d, %v", n, err)
	}
	c.send(func(conn *pgx.Conn) error {
		_, err := c.q.TaskCancel(t.Context(), conn, []pgtype.UUID{pgUUID(task.ID)})
		return err
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.end()
	// That no reservation is left, dbtest checks.
	if got, err := client.Get(t.Context(), task.ID); err != nil || got.State != tasking.Canceled {
		t.Errorf("the task is %s, %v", got.State, err)
	}
}
