package migrate_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/pool"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// eachWay runs a test with an empty database, directly and as the tests' pooler
// is configured.
func eachWay(t *testing.T, test func(t *testing.T, db *dbtest.DB, p *pgxpool.Pool)) {
	t.Helper()
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		db := dbtest.Empty(t)
		test(t, db, db.Direct)
	})
	t.Run("pooled", func(t *testing.T) {
		t.Parallel()
		db := dbtest.Empty(t)
		test(t, db, db.Pool)
	})
}

// relations lists what the migrations made, goose's own tables left out.
func relations(t *testing.T, db *dbtest.DB) []string {
	t.Helper()
	var names []string
	err := db.Direct.QueryRow(t.Context(), `
		SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM (
			SELECT relname::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'goose%'
			UNION ALL
			SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
			UNION ALL
			SELECT typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typname NOT LIKE '%goose%'
		) AS made`).Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// wantCheck checks that the database differs as told; both zero: not at all.
func wantCheck(t *testing.T, db *dbtest.DB, sentinel error, have int64) {
	t.Helper()
	err := migrate.Check(t.Context(), db.Pool)
	if sentinel == nil {
		if err != nil {
			t.Errorf("check: %v", err)
		}
		return
	}
	var version *migrate.VersionError
	if !errors.Is(err, sentinel) || !errors.As(err, &version) || version.Have != have {
		t.Errorf("check: %v; want %v at version %d", err, sentinel, have)
	}
}

// migrator is one with the default waits.
func migrator(t *testing.T, p *pgxpool.Pool) *migrate.Migrator {
	t.Helper()
	m, err := migrate.New(p, migrate.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newest(t *testing.T) int64 {
	t.Helper()
	n, err := migrate.Newest()
	if err != nil || n == 0 {
		t.Fatalf("newest version %d, %v", n, err)
	}
	return n
}

func TestUpDownUp(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, db *dbtest.DB, p *pgxpool.Pool) {
		wantCheck(t, db, migrate.ErrTooOld, 0)
		if err := migrate.Up(t.Context(), p, db.Log); err != nil {
			t.Fatal(err)
		}
		wantCheck(t, db, nil, 0)
		first := relations(t, db)
		if len(first) == 0 {
			t.Error("the migrations made nothing")
		}
		if err := migrate.Up(t.Context(), p, db.Log); err != nil {
			t.Errorf("nothing to do: %v", err)
		}
		if err := migrator(t, p).DownTo(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		wantCheck(t, db, migrate.ErrTooOld, 0)
		if left := relations(t, db); len(left) != 0 {
			t.Errorf("undoing all migrations leaves %v", left)
		}
		if err := migrator(t, p).Down(t.Context()); err == nil {
			t.Error("undid a migration when none was applied")
		}
		if err := migrate.Up(t.Context(), p, db.Log); err != nil {
			t.Fatal(err)
		}
		if again := relations(t, db); !slices.Equal(first, again) {
			t.Errorf("up again made %v, the first time %v", again, first)
		}
	})
}

func TestEachStepCanBeUndoneAndRedone(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
		t.Fatal(err)
	}
	list, err := migrate.Status(t.Context(), db.Pool)
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		before := int64(0)
		if i > 0 {
			before = list[i-1].Version
		}
		if err := migrator(t, db.Pool).DownTo(t.Context(), list[i].Version); err != nil {
			t.Fatal(err)
		}
		at := relations(t, db)
		if err := migrator(t, db.Pool).Down(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantCheck(t, db, migrate.ErrTooOld, before)
		if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
			t.Fatal(err)
		}
		if err := migrator(t, db.Pool).DownTo(t.Context(), list[i].Version); err != nil {
			t.Fatal(err)
		}
		if again := relations(t, db); !slices.Equal(at, again) {
			t.Errorf("%s redone made %v, the first time %v", list[i].Name, again, at)
		}
		if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
			t.Fatal(err)
		}
	}
	wantCheck(t, db, nil, 0)
}

func TestTwoMigratorsAtOnceBothSucceed(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, db *dbtest.DB, p *pgxpool.Pool) {
		errs := make(chan error)
		for range 2 {
			go func() { errs <- migrate.Up(t.Context(), p, db.Log) }()
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		wantCheck(t, db, nil, 0)
		var rows int64
		if err := db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM goose_db_version").Scan(&rows); err != nil {
			t.Fatal(err)
		}
		list, err := migrate.Status(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if rows != int64(len(list))+1 {
			t.Errorf("%d versions are recorded for %d migrations", rows-1, len(list))
		}
	})
}

func TestMigratorsUseNoAdvisoryLockAndLeaveNoSetting(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
		t.Fatal(err)
	}
	var locks int
	if err := db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&locks); err != nil {
		t.Fatal(err)
	}
	if locks != 0 {
		t.Errorf("%d advisory locks are held", locks)
	}
	// The pooled connection is the one that migrated.
	var changed []string
	if err := db.Pool.QueryRow(t.Context(), "SELECT coalesce(array_agg(name), '{}') FROM pg_settings WHERE source = 'session'").Scan(&changed); err != nil {
		t.Fatal(err)
	}
	if len(changed) != 0 {
		t.Errorf("settings %v were left behind", changed)
	}
}

func TestNewerDatabaseIsToldApart(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
		t.Fatal(err)
	}
	const future = 99999
	if _, err := db.Direct.Exec(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)", future); err != nil {
		t.Fatal(err)
	}
	wantCheck(t, db, migrate.ErrTooNew, future)
	if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
		t.Errorf("up on a newer database: %v", err)
	}
	if err := migrator(t, db.Pool).Down(t.Context()); !errors.Is(err, migrate.ErrTooNew) {
		t.Errorf("down on a newer database: %v", err)
	}
	list, err := migrate.Status(t.Context(), db.Pool)
	if err != nil {
		t.Fatal(err)
	}
	if last := list[len(list)-1]; last.Version != future || last.Name != "" || last.AppliedAt.IsZero() {
		t.Errorf("status ends with %+v", last)
	}
}

func TestStatusTellsWhatIsApplied(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	list, err := migrate.Status(t.Context(), db.Pool)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 || list[len(list)-1].Version != newest(t) {
		t.Fatalf("status of an empty database: %+v", list)
	}
	for _, m := range list {
		if m.Name == "" || !m.AppliedAt.IsZero() {
			t.Errorf("pending migration: %+v", m)
		}
	}
	var tables int
	if err := db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if tables != 0 {
		t.Errorf("asking for the status made %d relations", tables)
	}
	if err := migrate.Up(t.Context(), db.Pool, db.Log); err != nil {
		t.Fatal(err)
	}
	if list, err = migrate.Status(t.Context(), db.Pool); err != nil {
		t.Fatal(err)
	}
	var now time.Time
	if err := db.Direct.QueryRow(t.Context(), "SELECT now()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if age := now.Sub(m.AppliedAt); age < 0 || age > time.Hour {
			t.Errorf("%s was applied %v ago", m.Name, age)
		}
	}
}

func TestVersionErrorsNameTheRemedy(t *testing.T) {
	t.Parallel()
	old := &migrate.VersionError{Have: 3, Need: 5}
	if got, want := old.Error(), "database schema is at version 3, this binary needs 5: run `pith migrate up`"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if errors.Is(old, migrate.ErrTooNew) || !errors.Is(old, migrate.ErrTooOld) {
		t.Error("an old schema is taken for a new one")
	}
	fresh := &migrate.VersionError{Have: 7, Need: 5}
	if !errors.Is(fresh, migrate.ErrTooNew) || errors.Is(fresh, migrate.ErrTooOld) {
		t.Error("a new schema is taken for an old one")
	}
	if !strings.Contains(fresh.Error(), "newer binary") {
		t.Errorf("no remedy in %q", fresh)
	}
}

func TestOneConnectionIsEnough(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	p, err := pool.Open(t.Context(), db.URL, pool.Config{MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := migrate.Up(t.Context(), p, db.Log); err != nil {
		t.Fatal(err)
	}
	wantCheck(t, db, nil, 0)
}

// A plan that is forbidden is priced so high that PostgreSQL would compile it, for tens of milliseconds.
func TestFunctionsThatForbidPlansForbidCompilation(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	rows, err := d.Direct.Query(t.Context(), `SELECT p.proname::text, 'jit=off' = ANY (p.proconfig) FROM pg_proc p
		WHERE EXISTS (SELECT FROM unnest(p.proconfig) c WHERE starts_with(c, 'enable_'))`)
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var off bool
	tag, err := pgx.ForEachRow(rows, []any{&name, &off}, func() error {
		if !off {
			t.Errorf("%s has no SET jit = off", name)
		}
		return nil
	})
	if err != nil || tag.RowsAffected() < 5 {
		t.Errorf("saw %d functions, error %v", tag.RowsAffected(), err)
	}
}
