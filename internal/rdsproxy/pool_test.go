package rdsproxy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// waitQueued waits until n clients wait in the pool of the test's database.
func (p *testProxy) waitQueued(t testing.TB, n int) {
	t.Helper()
	p.waitPool(t, func(pl *pool) bool { return pl.waiters.Len() == n })
}

// waitPool waits until that pool is as it should be. One at a time may wait.
func (p *testProxy) waitPool(t testing.TB, is func(pl *pool) bool) {
	t.Helper()
	ctx := deadline(t)
	for {
		p.mu.Lock()
		pl := p.pools[poolKey{"pith", p.database}]
		p.mu.Unlock()
		if pl != nil {
			pl.mu.Lock()
			ok := is(pl)
			pl.mu.Unlock()
			if ok {
				return
			}
		}
		select {
		case <-p.changed:
		case <-ctx.Done():
			t.Fatal("the pool does not become as it should be")
		}
	}
}

func TestWaitingClientsAreServedInOrder(t *testing.T) {
	t.Parallel()
	const clients = 8
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), "CREATE TABLE arrivals (seq int GENERATED ALWAYS AS IDENTITY, client int)")
	holder := p.wire(t)
	var waiting []*wire
	for range clients {
		waiting = append(waiting, p.wire(t))
	}
	holder.sql("BEGIN")
	for i, w := range waiting {
		w.send(&pgproto3.Query{String: fmt.Sprintf("INSERT INTO arrivals (client) VALUES (%d)", i)})
		p.waitQueued(t, i+1)
	}
	holder.sql("COMMIT")
	// It comes again at once, and must queue up behind them.
	holder.sql("INSERT INTO arrivals (client) VALUES (-1)")
	for _, w := range waiting {
		w.answer('Z', 1)
	}
	got := query(t, p.direct(t), "SELECT string_agg(client::text, ' ' ORDER BY seq) FROM arrivals")[0]
	if want := "0 1 2 3 4 5 6 7 -1"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

func TestBorrowTimeout(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1, BorrowTimeout: 2 * time.Second})
	holder, waiter := p.wire(t), p.wire(t)
	holder.sql("BEGIN")
	waiter.send(&pgproto3.Query{String: "SELECT 1"})
	e := waiter.wantFatal("53300")
	if !strings.Contains(e.Message, "timed out waiting to acquire a database connection") || !strings.Contains(e.Detail, "1 server connections") {
		t.Errorf("told %q, %q", e.Message, e.Detail)
	}
	holder.sql("COMMIT")
	p.wire(t).wantOne("SELECT 1")
}

func TestClientThatLeavesTheQueueIsNotServed(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), "CREATE TABLE rows (id int)")
	holder, waiter := p.wire(t), p.wire(t)
	holder.sql("BEGIN")
	waiter.send(&pgproto3.Query{String: "INSERT INTO rows VALUES (1)"})
	p.waitQueued(t, 1)
	_ = waiter.conn.Close()
	p.waitQueued(t, 0)
	holder.sql("COMMIT")
	if got := query(t, p.connect(t), "SELECT count(*) FROM rows")[0]; got != "0" {
		t.Errorf("%s rows were inserted by a client that had left", got)
	}
}

func TestMessagesSentWhileWaitingArrive(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	holder, waiter := p.wire(t), p.wire(t)
	holder.sql("BEGIN")
	var want []string
	waiter.send(&pgproto3.Query{String: "SELECT 'first'"})
	p.waitQueued(t, 1)
	for i := range 300 {
		waiter.send(&pgproto3.Query{String: fmt.Sprintf("SELECT 'message %d'", i)})
		want = append(want, fmt.Sprintf("message %d", i))
	}
	holder.sql("COMMIT")
	waiter.answer('Z', 1)
	for i := range want {
		if got := waiter.answer('Z', 1); len(got) != 4 || !strings.Contains(got[1], want[i]) {
			t.Fatalf("got %q, want %s", got, want[i])
		}
	}
}

func TestServerConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const size, clients = 3, 20
	p := startProxy(t, Config{PoolSize: size})
	results := make(chan error, clients)
	for range clients {
		conn := p.connect(t)
		ctx := deadline(t)
		go func() {
			for range 10 {
				if _, err := conn.Exec(ctx, "BEGIN; SELECT pg_sleep(0.001); COMMIT").ReadAll(); err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	direct := p.direct(t)
	count := fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND pid <> pg_backend_pid()", p.database)
	for ended := 0; ended < clients; {
		select {
		case err := <-results:
			if err != nil {
				t.Fatal(err)
			}
			ended++
		default:
		}
		n, err := strconv.Atoi(query(t, direct, count)[0])
		if err != nil {
			t.Fatal(err)
		}
		if n < 1 || n > size {
			t.Fatalf("%d server connections, want 1 to %d", n, size)
		}
	}
}

// TestEachUserAndDatabaseHasAPool also shows that a client cannot get at another
// one's.
func TestEachUserAndDatabaseHasAPool(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1, Users: map[string]string{"pith": "pith", "by_scram": "secret of by_scram"}})
	for _, user := range []string{"pith", "by_scram"} {
		for _, database := range []string{p.database, "postgres"} {
			conn := dial(t, strings.Replace(p.url(user, "sslmode=disable"), "/"+p.database, "/"+database, 1))
			got := query(t, conn, "BEGIN; SELECT session_user || ' ' || current_database()")
			if diff := cmp.Diff([]string{user + " " + database}, got); diff != "" {
				t.Error(diff)
			}
		}
	}
}

func TestUnknownDatabaseIsToldAtConnect(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{})
	_, err := pgconn.Connect(deadline(t), strings.Replace(p.url("pith", "sslmode=disable"), "/"+p.database, "/nowhere", 1))
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != "3D000" || e.Severity != "FATAL" {
		t.Errorf("got %v, want FATAL 3D000", err)
	}
}

func TestClientThatLeavesATransactionRollsItBack(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(w *wire){
		"terminate": func(w *wire) { w.send(&pgproto3.Terminate{}) },
		"close":     func(w *wire) { _ = w.conn.Close() },
		"garbage":   func(w *wire) { w.write([]byte("what is this?")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, Config{PoolSize: 1})
			query(t, p.direct(t), "CREATE TABLE rows (id int)")
			w := p.wire(t)
			w.sql("BEGIN")
			w.sql("INSERT INTO rows VALUES (1)")
			leave(w)
			next := p.connect(t)
			if got := query(t, next, "SELECT count(*) FROM rows")[0]; got != "0" {
				t.Errorf("%s rows are left", got)
			}
			if status := next.TxStatus(); status != 'I' {
				t.Errorf("next client is in transaction status %c", status)
			}
		})
	}
}

func TestClientThatLeavesIdleGivesItsConnectionBack(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	a := p.connect(t)
	pid := backend(t, a)
	hangUp(t, a)
	if got := backend(t, p.connect(t)); got != pid {
		t.Errorf("next client is on process %s, want %s", got, pid)
	}
	if n := p.Metrics().DatabaseConnectionsSetupSucceeded; n != 1 {
		t.Errorf("%d server connections were made", n)
	}
}
