package dbtest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/internal/migrate"
)

func TestMain(m *testing.M) { Main(m) }

func TestDatabasesAreIndependent(t *testing.T) {
	t.Parallel()
	a, b := New(t), New(t)
	for _, db := range []*DB{a, b} {
		if err := migrate.Check(t.Context(), db.Pool); err != nil {
			t.Error(err)
		}
		if _, err := db.Pool.Exec(t.Context(), "CREATE TABLE mine (db text)"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Pool.Exec(t.Context(), "INSERT INTO mine VALUES ($1)", db.Name); err != nil {
			t.Fatal(err)
		}
	}
	for _, db := range []*DB{a, b} {
		var name, zone string
		if err := db.Direct.QueryRow(t.Context(), "SELECT db, current_setting('TimeZone') FROM mine").Scan(&name, &zone); err != nil {
			t.Fatal(err)
		}
		if name != db.Name || zone != TimeZone {
			t.Errorf("database %s holds the row of %s, in time zone %s", db.Name, name, zone)
		}
	}
}

// poolsOf reads the pooler's SHOW POOLS for one database.
func poolsOf(t *testing.T, s *Services, database string) (pools []map[string]any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.Pooler.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	rows, err := conn.Query(t.Context(), "SHOW POOLS")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToMap)
	if err != nil {
		t.Fatal(err)
	}
	for _, pool := range all {
		if pool["database"] == database {
			pools = append(pools, pool)
		}
	}
	return pools
}

func TestPoolGoesThroughPoolerAndDirectDoesNot(t *testing.T) {
	t.Parallel()
	if !Pooled() {
		t.Skip("this run has no pooler")
	}
	db := New(t)
	if db.Services.Pooler.AdminURL() == "" {
		t.Skip("this run has no PgBouncer, whose console the test reads")
	}
	if _, err := db.Direct.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	if pools := poolsOf(t, db.Services, db.Name); len(pools) != 0 {
		t.Errorf("the direct pool shows in the pooler: %v", pools)
	}
	if _, err := db.Pool.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	pools := poolsOf(t, db.Services, db.Name)
	mode := "transaction"
	if !Transactions() {
		mode = "statement"
	}
	if len(pools) != 1 || pools[0]["pool_mode"] != mode {
		t.Errorf("the pool shows in the pooler as %v", pools)
	}
}

func TestClientsShareServerConnections(t *testing.T) {
	t.Parallel()
	if !Pooled() || !Transactions() {
		t.Skip("this run has no pooler, or one without transactions")
	}
	if size, err := poolSize(); err == nil && size < 2 {
		t.Skip("this run's pooler has one server connection, the test needs two")
	}
	db := New(t)
	// A transaction held open keeps its server connection from the others.
	backend := func(tx interface {
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	},
	) (pid int) {
		if err := tx.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Release()
	before := backend(first)
	second, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Rollback(context.WithoutCancel(t.Context())) }()
	held := backend(second)
	if held != before {
		t.Fatalf("an idle server connection was not reused: %d, then %d", before, held)
	}
	if after := backend(first); after == held {
		t.Errorf("both clients are on server connection %d", after)
	}
}

func TestPrivateServicesCanBeStoppedAndStarted(t *testing.T) {
	t.Parallel()
	s := Private(t, map[string]string{"max_connections": "50"})
	db := s.New(t)
	var limit string
	if err := db.Direct.QueryRow(t.Context(), "SHOW max_connections").Scan(&limit); err != nil || limit != "50" {
		t.Errorf("max_connections is %q, %v", limit, err)
	}
	if err := s.Server.Restart(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if s.Pooler != nil {
		s.Pooler.Kill()
		if err := s.Pooler.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	db.Pool.Reset()
	db.Direct.Reset()
	if err := migrate.Check(t.Context(), db.Pool); err != nil {
		t.Errorf("after the restarts: %v", err)
	}
	if Shared(t) == s {
		t.Error("private services are the shared ones")
	}
}

// recorder is a test that notes its errors and does not fail.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func TestBrokenInvariantsAreReported(t *testing.T) {
	t.Parallel()
	db := New(t)
	if _, err := db.Direct.Exec(t.Context(), "UPDATE goose_lock SET locked = true, locked_by = 'somebody'"); err != nil {
		t.Fatal(err)
	}
	r := &recorder{TB: t}
	checkInvariants(t.Context(), r, db.Direct)
	if len(r.errors) != 1 || !strings.Contains(r.errors[0], "somebody") {
		t.Errorf("reported %q", r.errors)
	}
	if _, err := db.Direct.Exec(t.Context(), "UPDATE goose_lock SET locked = false"); err != nil {
		t.Fatal(err)
	}
}

func TestLateLogGoesNowhere(t *testing.T) {
	t.Parallel()
	var db *DB
	t.Run("inner", func(t *testing.T) {
		db = New(t)
		db.Log.Info("in time")
	})
	db.Log.Info("too late")
}

func TestDatabaseNames(t *testing.T) {
	t.Parallel()
	t.Run("Ünïcode and Spaces/and a very long name that does not fit into PostgreSQL's limit", func(t *testing.T) {
		name := databaseName(t)
		if len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Errorf("name %q", name)
		}
	})
}

// BenchmarkClone tells which strategy makes and drops a database faster.
func BenchmarkClone(b *testing.B) {
	s := Shared(b)
	if err := s.makeTemplate(b.Context()); err != nil {
		b.Fatal(err)
	}
	for _, strategy := range []string{"file_copy", "wal_log"} {
		b.Run(strategy, func(b *testing.B) {
			if s.Server.Major() < 15 {
				b.Skip("PostgreSQL has one strategy before 15")
			}
			for b.Loop() {
				name := databaseName(b)
				if err := s.admin(b.Context(), fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s STRATEGY %s", name, templateName, strategy)); err != nil {
					b.Fatal(err)
				}
				if err := s.admin(b.Context(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
