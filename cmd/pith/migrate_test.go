package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
)

func TestBlockedMigrationEndsWithARemedy(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	must(t, db.URL, "migrate", "up", "--log-level=error")
	must(t, db.URL, "migrate", "down-to", "4", "--log-level=error") // indexes wait without a bound, for they block nobody
	tx, err := db.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "SELECT FROM task"); err != nil {
		t.Fatal(err)
	}
	r := pith(t, db.DirectURL, "migrate", "down-to", "0", "--lock-timeout=200ms", "--retry-for=1ms", "--log-level=error")
	r.wants(t, exitFailure, fmt.Sprintf("SELECT pg_terminate_backend(%d)", tx.Conn().PgConn().PID()))
	contains(t, r.err, "migrate down: ", "is blocked for", "--retry-for", "SELECT FROM task")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	r = pith(t, db.URL, "migrate", "down-to", "0", "--lock-timeout=200ms")
	if r.code != exitOK || strings.Count(r.err, "migration undone") == 0 {
		t.Errorf("status %d: %s", r.code, r.err)
	}
}

func TestMigrationsMustWaitForSomeTime(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	for _, flag := range []string{"--lock-timeout=0", "--lock-timeout=1us", "--lock-timeout=-1s", "--retry-for=0", "--retry-for=-1s"} {
		pith(t, db.URL, "migrate", "up", flag).wants(t, exitUsage, "must be positive")
	}
}

func TestProgramRunsOnANewerSchemaThatServesIt(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	serves := func(version, oldest int) {
		t.Helper()
		_, err := db.Direct.Exec(t.Context(), fmt.Sprintf("INSERT INTO goose_db_version (version_id, is_applied) VALUES (%[1]d, true); "+
			"COMMENT ON TABLE goose_db_version IS 'Version %[1]d of the schema serves the binaries of version %[2]d and newer.'", version, oldest))
		if err != nil {
			t.Fatal(err)
		}
	}
	serves(99, 2)
	must(t, db.URL, "task", "dispatch", dummyTask)
	must(t, db.URL, "worker", "--burst", "--log-level=error")
	if list := mustJSON[[]taskView](t, db.URL, "task", "list", "--state=completed"); len(list) != 1 {
		t.Errorf("completed are %+v", list)
	}
	serves(100, 99)
	pith(t, db.URL, "worker").wants(t, exitFailure, "version 100, this binary knows only up to")
	pith(t, db.URL, "task", "list").wants(t, exitFailure, "use a newer binary")
}
