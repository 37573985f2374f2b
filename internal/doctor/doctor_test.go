package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// examine runs all checks once; tweak may change the limits.
func examine(t *testing.T, p *pgxpool.Pool, tweak func(*Doctor)) Report {
	t.Helper()
	d, err := New(p, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if tweak != nil {
		tweak(d)
	}
	r, err := d.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// of returns the findings of one check.
func of(r Report, check string) (list []Finding) {
	for _, f := range r.Findings {
		if f.Check == check {
			list = append(list, f)
		}
	}
	return list
}

// only returns the one finding of a check.
func only(t *testing.T, r Report, check string) Finding {
	t.Helper()
	list := of(r, check)
	if len(list) != 1 {
		t.Fatalf("%s has %d findings: %+v", check, len(list), list)
	}
	return list[0]
}

func wantFinding(t *testing.T, f Finding, severity Severity, message, remedy string) {
	t.Helper()
	if f.Severity != severity || !strings.Contains(f.Message, message) || !strings.Contains(f.Remedy, remedy) {
		t.Errorf("got %s: %q, remedy %q\nwant %s: %q, remedy %q", f.Severity, f.Message, f.Remedy, severity, message, remedy)
	}
}

// wantSome wants one of a check's findings to be so.
func wantSome(t *testing.T, r Report, check string, severity Severity, message, remedy string) {
	t.Helper()
	for _, f := range of(r, check) {
		if f.Severity == severity && strings.Contains(f.Message, message) && strings.Contains(f.Remedy, remedy) {
			return
		}
	}
	t.Errorf("no finding is %s: %q, remedy %q, among %+v", severity, message, remedy, of(r, check))
}

// execute runs statements of the test's own, as the database's owner.
func execute(t *testing.T, d *dbtest.DB, sql string) {
	t.Helper()
	conn, err := d.Direct.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Conn().PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// lock locks a table until the test ends.
func lock(t *testing.T, d *dbtest.DB, table string) {
	t.Helper()
	tx, err := d.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	if _, err := tx.Exec(t.Context(), "LOCK TABLE "+table); err != nil {
		t.Fatal(err)
	}
}

// newRole makes a role that may log in, and no more.
func newRole(t *testing.T, d *dbtest.DB) string {
	t.Helper()
	role := "role_" + d.Name[:min(len(d.Name), 50)]
	execute(t, d, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() {
		if _, err := d.Direct.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+role); err != nil {
			t.Error(err)
		}
		if _, err := d.Direct.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	return role
}

// open makes a pool as the program does.
func open(t *testing.T, address string, cfg pool.Config) *pgxpool.Pool {
	t.Helper()
	p, err := pool.Open(t.Context(), address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// as is a pool of another role, without a pooler between.
func as(t *testing.T, d *dbtest.DB, role string) *pgxpool.Pool {
	t.Helper()
	address, err := url.Parse(d.DirectURL)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User(role)
	return open(t, address.String(), pool.Config{})
}

// careful are the settings of an operator who has read the guide; other tests have none of them.
var careful = map[string]string{
	"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
	"statement_timeout": "60s", "idle_in_transaction_session_timeout": "30s",
}

func TestHealthyDatabaseHasNoWarning(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, careful)
	for _, way := range []string{"direct", "pooled"} {
		t.Run(way, func(t *testing.T) {
			d := s.New(t)
			execute(t, d, workerRow("w", 0, true, dummy))
			p, connection := d.Direct, OK
			if way == "pooled" && dbtest.Pooled() {
				p, connection = d.Pool, Note
			}
			r := examine(t, p, nil)
			type line struct {
				check    string
				severity Severity
			}
			var got, want []line
			for _, f := range r.Findings {
				got = append(got, line{f.Check, f.Severity})
				if f.Severity != OK && f.Check != "connection" {
					t.Errorf("%+v", f)
				}
			}
			for _, name := range []string{
				"connection", "version", "statements", "visibility", "encoding", "transactions", "timeouts", "durability",
				"leaks", "clock", "schema", "drift", "privileges", "capacity", "dead_rows", "old_snapshots", "workers", "missing", "unrunnable",
			} {
				want = append(want, line{name, OK})
			}
			want[0].severity = connection
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(line{})); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if r.Severity != connection || r.Target.Database != d.Name || r.Target.Role == "" || r.Target.Address == "" || r.Target.Version == "" {
				t.Errorf("%s of %+v", r.Severity, r.Target)
			}
		})
	}
}

func TestReportIsStableJSON(t *testing.T) {
	t.Parallel()
	r := Report{
		Target:   Target{Address: "db:5432", Database: "pith", Role: "pith", Version: "18.1", Connection: Transaction},
		Severity: Warning,
		Findings: []Finding{{Check: "version", Severity: OK, Message: "PostgreSQL 18.1"}, {Check: "timeouts", Severity: Warning, Message: "m", Remedy: "r"}},
	}
	got, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
 "target": {
  "address": "db:5432",
  "database": "pith",
  "role": "pith",
  "version": "18.1",
  "connection": "transaction"
 },
 "severity": "warning",
 "findings": [
  {
   "check": "version",
   "severity": "ok",
   "message": "PostgreSQL 18.1"
  },
  {
   "check": "timeouts",
   "severity": "warning",
   "message": "m",
   "remedy": "r"
  }
 ]
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestFailingCheckIsAFindingAndNotTheEnd(t *testing.T) {
	t.Parallel()
	t.Run("forbidden", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		role := newRole(t, d)
		execute(t, d, "GRANT SELECT ON goose_db_version, app_status TO "+role)
		r := examine(t, as(t, d, role), nil)
		wantFinding(t, only(t, r, "unrunnable"), Note, "could not be looked at: permission denied", "role")
		wantFinding(t, of(r, "drift")[0], Note, "could not be looked at: permission denied for table resource_lock", "")
		wantFinding(t, only(t, r, "dead_rows"), OK, "", "")
	})
	t.Run("locked", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		lock(t, d, "task_kind")
		r := examine(t, d.Pool, func(d *Doctor) { d.cfg.Timeout = 4 * time.Second })
		wantFinding(t, only(t, r, "unrunnable"), Warning, "could not be looked at within 4s", "pg_locks")
		wantFinding(t, only(t, r, "missing"), OK, "", "")
	})
	t.Run("unreachable", func(t *testing.T) {
		t.Parallel()
		d, err := New(open(t, "postgres://nobody@127.0.0.1:1/none", pool.Config{}), Config{})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := d.Run(t.Context()); err == nil {
			t.Errorf("no error, but %+v", r)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		d, err := New(dbtest.New(t).Pool, Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("negative timeout", func(t *testing.T) {
		t.Parallel()
		if _, err := New(nil, Config{Timeout: -1}); err == nil {
			t.Error("accepted")
		}
	})
}

// in is a pool to another database of the server.
func in(t *testing.T, d *dbtest.DB, database string) *pgxpool.Pool {
	t.Helper()
	return open(t, d.Services.Server.URL(database), pool.Config{})
}

func dropDatabase(t *testing.T, d *dbtest.DB, name string) {
	t.Helper()
	if _, err := d.Direct.Exec(context.WithoutCancel(t.Context()), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
		t.Error(err)
	}
}
