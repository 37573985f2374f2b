package rdsproxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pithworks/pith/internal/localpg"
)

func TestTerminatedBackendIsToldToItsClientOnly(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{"in a transaction": "BEGIN", "pinned": "SET work_mem = '1MB'"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, Config{PoolSize: 1})
			other := p.wire(t)
			w := p.wire(t)
			w.sql(before)
			pid := query(t, p.direct(t), fmt.Sprintf("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%s' AND pid <> pg_backend_pid()", p.database))
			if len(pid) != 1 {
				t.Fatalf("%d backends were terminated", len(pid))
			}
			w.wantFatal("57P01")
			other.wantOne("SELECT 1")
		})
	}
}

func TestTerminatedBackendIsReplacedWhileIdle(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	for range 3 {
		w.wantOne("SELECT 1")
		query(t, p.direct(t), fmt.Sprintf("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '%s' AND pid <> pg_backend_pid()", p.database))
		p.waitPool(t, func(pl *pool) bool { return len(pl.all) == 0 })
	}
	w.wantOne("SELECT 1")
}

// TestStatementThatLosesItsConnectionIsTold has no FATAL of the server to pass on.
func TestStatementThatLosesItsConnectionIsTold(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	// The server sends a notice at once.
	w.send(&pgproto3.Query{String: "DO $$ BEGIN RAISE NOTICE 'busy'; PERFORM pg_sleep(1000); END $$"})
	w.answer('N', 1)
	p.waitPool(t, func(pl *pool) bool {
		for sc := range pl.all {
			_ = sc.conn.Close() // as if the machine were gone
		}
		return true
	})
	w.wantFatal("08006")
	p.wire(t).wantOne("SELECT 1")
}

func TestServerRestart(t *testing.T) {
	t.Parallel()
	s, err := localpg.Start(deadline(t), localpg.Config{RunDir: memoryDir(), Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, immediate := range []bool{false, true} {
		p := &testProxy{database: "postgres"}
		serve(t, p, Config{Upstream: s.URL("postgres"), PoolSize: 2})
		idle, open := p.wire(t), p.wire(t)
		idle.wantOne("SELECT 1")
		open.sql("BEGIN")
		s.Kill()
		open.wantEnd()
		p.waitPool(t, func(pl *pool) bool { return len(pl.all) == 0 })
		// Nothing listens: the client waits for as long as it may.
		idle.send(&pgproto3.Query{String: "SELECT 2"})
		p.waitPool(t, func(pl *pool) bool { return pl.lastErr != nil })
		if err := s.Restart(deadline(t), immediate); err != nil {
			t.Fatal(err)
		}
		if got := idle.answer('Z', 1); len(got) != 4 {
			t.Errorf("got %q", got)
		}
		p.stop()
	}
}

func TestNoServerIsTold(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{Upstream: "postgres://127.0.0.1:1/?sslmode=disable", BorrowTimeout: 100 * time.Millisecond})
	w := rawClient(t, p)
	w.startup(map[string]string{"user": "pith", "database": "x"})
	w.scram("pith")
	w.wantFatal("53300")
}

func TestDroppedDatabase(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 2})
	w := p.wire(t)
	w.wantOne("SELECT 1")
	admin := dial(t, server(t).URL("postgres"))
	query(t, admin, "DROP DATABASE "+p.database+" WITH (FORCE)")
	w.send(&pgproto3.Query{String: "SELECT 1"})
	w.wantFatal("3D000")
	query(t, admin, "CREATE DATABASE "+p.database)
	p.wire(t).wantOne("SELECT 1")
}

func TestServeEndsEverything(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 2})
	idle, open, waiting, running := p.wire(t), p.wire(t), p.wire(t), p.wire(t)
	open.sql("BEGIN")
	running.send(&pgproto3.Query{String: "SELECT pg_sleep(1000)"})
	p.waitPool(t, func(pl *pool) bool { return len(pl.idle) == 0 && len(pl.all) == 2 })
	waiting.send(&pgproto3.Query{String: "SELECT 1"})
	p.waitQueued(t, 1)
	p.stop()
	for _, w := range []*wire{idle, open, waiting, running} {
		w.wantEnd()
	}
	m := p.Metrics()
	if m.ClientConnections != 0 || m.DatabaseConnections != 0 {
		t.Errorf("%d clients and %d server connections are left", m.ClientConnections, m.DatabaseConnections)
	}
	if n := len(p.pools); n != 0 {
		t.Errorf("%d pools are left", n)
	}
}
