package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/sql/schema"
	"github.com/pithworks/pith/tasking"
)

// patience bounds what a test waits for.
const patience = 30 * time.Second

// future is a version that no migration has.
const future = 99999

// with are the migrations and one more, the newest.
func with(t *testing.T, up, down string) fs.FS {
	t.Helper()
	files := fstest.MapFS{fmt.Sprintf("%d_future.sql", future): {Data: []byte("-- +goose Up\n" + up + "\n-- +goose Down\n" + down + "\n")}}
	names, err := fs.Glob(schema.FS, "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := schema.FS.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	return files
}

// A column on the table that everything goes through.
const addColumn, dropColumn = "ALTER TABLE task ADD COLUMN future int;", "ALTER TABLE task DROP COLUMN future;"

// lines are what was logged, in JSON.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// await returns the next line that holds a text.
func (l lines) await(t *testing.T, text string) string {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case line := <-l:
			if strings.Contains(line, text) {
				return line
			}
		case <-late:
			t.Fatalf("%q was not logged within %s", text, patience)
		}
	}
}

// waiting is a migrator whose waits are short, and what it logs.
func waiting(t *testing.T, p *pgxpool.Pool, cfg migrate.Config, files fs.FS) (*migrate.Migrator, lines) {
	t.Helper()
	log := make(lines, 10000)
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = 300 * time.Millisecond
	}
	cfg.Log = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	m, err := migrate.New(p, cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.Use(files)
	return m, log
}

// through is how the tests' migrators reach a database.
func through(db *dbtest.DB) *pgxpool.Pool {
	if dbtest.Transactions() {
		return db.Pool
	}
	return db.Direct
}

// neighbor writes to task in a transaction that it leaves open until it is released.
func neighbor(t *testing.T, db *dbtest.DB) (pid int32, release func()) {
	t.Helper()
	tx, err := db.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	if err := tx.QueryRow(t.Context(), "UPDATE task SET priority = 0 WHERE false RETURNING 1").Scan(nil); !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	if err := tx.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid, func() {
		t.Helper()
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// untilBlocked returns when somebody waits for a lock on task.
func untilBlocked(t *testing.T, db *dbtest.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for waits := false; !waits; {
		err := db.Direct.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'task'::regclass AND NOT granted AND
			database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
		if !waits && resend.Sleep(ctx, 5*time.Millisecond) != nil {
			t.Fatal("nobody waits for a lock on task")
		}
	}
}

func hasColumn(t *testing.T, db *dbtest.DB) (has bool) {
	t.Helper()
	err := db.Direct.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'task'::regclass AND attname = 'future' AND NOT attisdropped)`).Scan(&has)
	if err != nil {
		t.Fatal(err)
	}
	return has
}

func TestBlockedMigrationLetsOthersPassAndTriesAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		way, via string
	}{{"up", "direct"}, {"up", "pooled"}, {"down", "direct"}} {
		t.Run(tt.way+", "+tt.via, func(t *testing.T) {
			t.Parallel()
			db := dbtest.New(t)
			p := db.Direct
			if tt.via == "pooled" {
				p = through(db)
			}
			m, log := waiting(t, p, migrate.Config{}, with(t, addColumn, dropColumn))
			change := m.Up
			if tt.way == "down" {
				if err := m.Up(t.Context()); err != nil {
					t.Fatal(err)
				}
				change = m.Down
			}
			typ := tasking.NewType[struct{}, any]("test.any", nil, tasking.TypeConfig{})
			registry, err := tasking.NewRegistry(typ)
			if err != nil {
				t.Fatal(err)
			}
			client, err := tasking.New(db.Pool, tasking.Config{Registry: registry})
			if err != nil {
				t.Fatal(err)
			}
			dispatch := func() time.Duration {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				begin := time.Now()
				if _, err := client.Dispatch(ctx, typ.Request(struct{}{}, tasking.Options{})); err != nil {
					t.Fatalf("dispatch: %v", err)
				}
				return time.Since(begin)
			}
			dispatch() // later ones do what this one does

			pid, release := neighbor(t, db)
			changed := make(chan error, 1)
			go func() { changed <- change(t.Context()) }()
			for range 3 {
				untilBlocked(t, db)
				// The timeout is 300 ms; the rest is for a busy machine.
				if took := dispatch(); took > 3*time.Second {
					t.Errorf("a dispatch behind the migration took %s", took)
				}
			}
			line := log.await(t, "trying again")
			wants := []string{`"level":"WARN"`, `"file":"99999_future.sql"`, `"tries":1`, `"tried_for":`, "lock timeout"}
			if tt.via == "direct" { // a pooler's connections may all wait
				wants = append(wants, fmt.Sprintf(`"blocked_by":"pid %d (role pith, idle in transaction, its transaction open for `, pid), "SELECT pg_backend_pid()")
			}
			for _, want := range wants {
				if !strings.Contains(line, want) {
					t.Errorf("%s is not logged: %s", want, line)
				}
			}
			log.await(t, `"tries":2`)
			if has := hasColumn(t, db); has != (tt.way == "down") {
				t.Errorf("while it is blocked the column is there: %t", has)
			}
			release()
			if err := <-changed; err != nil {
				t.Fatal(err)
			}
			if has := hasColumn(t, db); has != (tt.way == "up") {
				t.Errorf("at the end the column is there: %t", has)
			}
			log.await(t, map[string]string{"up": "migration applied", "down": "migration undone"}[tt.way])
		})
	}
}

func TestMigrationThatStaysBlockedNamesWhoAndTheRemedy(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	m, _ := waiting(t, db.Direct, migrate.Config{RetryFor: time.Nanosecond}, with(t, addColumn, dropColumn))
	pid, release := neighbor(t, db)
	err := m.Up(t.Context())
	var blocked *migrate.BlockedError
	if !errors.As(err, &blocked) || blocked.Tries != 1 || blocked.File != "99999_future.sql" || len(blocked.By) != 1 || blocked.By[0].PID != pid {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		"migrate up: 99999_future.sql is blocked for ", "1 tries", fmt.Sprintf("by pid %d (role pith", pid),
		fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid), "--retry-for", "lock timeout",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %q", want, err)
		}
	}
	var locked bool
	if err := db.Direct.QueryRow(t.Context(), "SELECT bool_or(locked) FROM goose_lock").Scan(&locked); err != nil || locked {
		t.Errorf("the row of the migrators is held: %t, %v", locked, err)
	}
	wantCheck(t, db, nil, 0)
	release()
	if err := m.Up(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestIndexThatIsBuiltConcurrentlySaysForWhomItWaits(t *testing.T) {
	t.Parallel()
	for _, via := range []string{"direct", "pooled"} {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			db := dbtest.New(t)
			p := db.Direct
			if via == "pooled" {
				p = through(db)
			}
			m, log := waiting(t, p, migrate.Config{}, with(t,
				"-- +goose NO TRANSACTION\nCREATE INDEX CONCURRENTLY future ON task (priority);", "DROP INDEX CONCURRENTLY future;"))
			for _, change := range []func(context.Context) error{m.Up, m.Down} {
				pid, release := neighbor(t, db)
				ended := make(chan error, 1)
				go func() { ended <- change(t.Context()) }()
				line := log.await(t, "waits for older transactions")
				if !strings.Contains(line, fmt.Sprintf("pid %d (role pith", pid)) || !strings.Contains(line, "INDEX CONCURRENTLY future") {
					t.Errorf("neither %d nor the statement is named: %s", pid, line)
				}
				release()
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestDeadlockedMigrationTriesAgain(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	// It stumbles twice; a sequence counts in what is rolled back, too.
	if _, err := db.Direct.Exec(t.Context(), `CREATE SEQUENCE stumbles; CREATE FUNCTION stumble() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
		IF nextval('stumbles') <= 2 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END IF; END $$`); err != nil {
		t.Fatal(err)
	}
	m, log := waiting(t, through(db), migrate.Config{LockTimeout: 10 * time.Millisecond}, with(t, addColumn+"\nSELECT stumble();", dropColumn))
	if err := m.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	log.await(t, `"tries":2`)
	if !hasColumn(t, db) {
		t.Error("it is not applied")
	}
}

func TestMigrationThatFailsIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	m, log := waiting(t, through(db), migrate.Config{}, with(t, "ALTER TABLE task ADD COLUMN seq int;", ""))
	err := m.Up(t.Context())
	var blocked *migrate.BlockedError
	if err == nil || errors.As(err, &blocked) || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("%v", err)
	}
	if len(log) > 0 {
		t.Errorf("logged: %s", <-log)
	}
}

func TestMigrationsWaitWithoutLimitNowhere(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	// What holds in a migration's transaction, and what is left of it.
	m, _ := waiting(t, through(db), migrate.Config{LockTimeout: 777 * time.Millisecond}, with(t,
		"CREATE TABLE held (kept text);\nINSERT INTO held SELECT current_setting('lock_timeout');", "DROP TABLE held;"))
	if err := m.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	var held, after string
	if err := through(db).QueryRow(t.Context(), "SELECT kept, current_setting('lock_timeout') FROM held").Scan(&held, &after); err != nil || held != "777ms" || after != "0" {
		t.Errorf("the lock timeout was %s in the migration, and is %s after it: %v", held, after, err)
	}
}

func TestTwoBlockedMigratorsBothSucceed(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	_, release := neighbor(t, db)
	errs := make(chan error, 2)
	var logs []lines
	for range 2 {
		m, log := waiting(t, through(db), migrate.Config{LockTimeout: 50 * time.Millisecond}, with(t, addColumn, dropColumn))
		logs = append(logs, log)
		go func() { errs <- m.Up(t.Context()) }()
	}
	for _, log := range logs {
		log.await(t, "trying again") // so neither keeps the row while it pauses
	}
	release()
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	var applied int
	if err := db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM goose_db_version WHERE version_id = $1", future).Scan(&applied); err != nil || applied != 1 {
		t.Errorf("applied %d times, %v", applied, err)
	}
}

func TestMigratorSaysThatItWaitsForAnother(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	set := func(statement string) {
		t.Helper()
		if tag, err := db.Direct.Exec(t.Context(), statement); err != nil || tag.RowsAffected() != 1 {
			t.Fatalf("%s, %v", tag, err)
		}
	}
	set("UPDATE goose_lock SET locked = true, locked_by = 'somebody', locked_at = now() - interval '3 min', lease_expires_at = now() + interval '1 h'")
	m, log := waiting(t, through(db), migrate.Config{}, with(t, addColumn, dropColumn))
	up := make(chan error, 1)
	go func() { up <- m.Up(t.Context()) }()
	if line := log.await(t, "another migrator is at work"); !strings.Contains(line, `"migrator":"somebody"`) || !strings.Contains(line, `"since":18`) {
		t.Error(line)
	}
	set("UPDATE goose_lock SET locked = false, locked_by = NULL")
	if err := <-up; err != nil {
		t.Error(err)
	}
}

func TestMigratorThatMayNotTakeTheRowSaysSo(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	m, _ := waiting(t, stranger(t, db), migrate.Config{}, with(t, addColumn, dropColumn))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.Up(ctx); err == nil || !strings.Contains(err.Error(), "permission denied for table goose_lock") {
		t.Errorf("%v", err)
	}
}

// stranger is a pool of a role that may read the schema's version, and owns nothing.
func stranger(t *testing.T, db *dbtest.DB) *pgxpool.Pool {
	t.Helper()
	role := db.Name + "_stranger"
	role = role[:min(len(role), 63)]
	if _, err := db.Direct.Exec(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN; GRANT SELECT ON goose_db_version TO %[1]s", role)); err != nil {
		t.Fatal(err)
	}
	cfg := db.Direct.Config()
	cfg.ConnConfig.User = role
	p, err := pool.OpenConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		ctx := context.WithoutCancel(t.Context())
		if _, err := db.Direct.Exec(ctx, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s", role)); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestWaitsMustBePositive(t *testing.T) {
	t.Parallel()
	for _, cfg := range []migrate.Config{{LockTimeout: -1}, {LockTimeout: time.Microsecond}, {RetryFor: -1}} {
		if m, err := migrate.New(nil, cfg); err == nil || m != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestPausesLetTheOthersPass(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		n           int
		timeout     time.Duration
		least, most time.Duration
	}{
		{1, 1500 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second},
		{2, 1500 * time.Millisecond, 2250 * time.Millisecond, 4500 * time.Millisecond},
		{6, 1500 * time.Millisecond, 10 * time.Second, 20 * time.Second},
		{1000000, 1500 * time.Millisecond, 10 * time.Second, 20 * time.Second},
		{1, time.Minute, time.Minute, 2 * time.Minute},
		{9, time.Minute, time.Minute, 2 * time.Minute},
		{1, time.Millisecond, time.Millisecond, 2 * time.Millisecond},
	} {
		for range 20 {
			if d := migrate.PauseAfter(tt.n, tt.timeout); d < tt.least || d > tt.most {
				t.Errorf("after try %d of %s: %s, want %s to %s", tt.n, tt.timeout, d, tt.least, tt.most)
			}
		}
	}
}

func TestNewerSchemaSaysWhomItServes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		up     string
		then   string // done by hand
		oldest int64
		serves bool
	}{
		{name: "it only adds", up: addColumn, oldest: 1, serves: true},
		{name: "it takes away what this one does without", up: fmt.Sprintf("-- +pith Oldest %d\n", newest(t)) + addColumn, oldest: newest(t), serves: true},
		{name: "it takes away", up: fmt.Sprintf("-- +pith Oldest %d\n", future) + addColumn, oldest: future},
		{name: "what it says cannot be read", up: "-- +pith Oldest of all\n" + addColumn},
		{name: "it says nothing", up: addColumn, then: "COMMENT ON TABLE goose_db_version IS NULL"},
		{name: "it says so of another version", up: addColumn, then: "INSERT INTO goose_db_version (version_id, is_applied) VALUES (100000, true)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.New(t)
			m, _ := waiting(t, through(db), migrate.Config{}, with(t, tt.up, dropColumn))
			if err := m.Up(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tt.then != "" {
				if _, err := db.Direct.Exec(t.Context(), tt.then); err != nil {
					t.Fatal(err)
				}
			}
			err := migrate.Check(t.Context(), db.Pool)
			var differ *migrate.VersionError
			if !errors.As(err, &differ) || !errors.Is(err, migrate.ErrTooNew) || differ.Oldest != tt.oldest || differ.Serves() != tt.serves {
				t.Errorf("%+v: serves: %t; want oldest %d", differ, differ.Serves(), tt.oldest)
			}
			if tt.then == "" {
				if err := m.Down(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantCheck(t, db, nil, 0)
			}
		})
	}
	old := &migrate.VersionError{Have: 1, Need: 2, Oldest: 1}
	if old.Serves() {
		t.Error("an older schema serves")
	}
}

func TestMarksOfTheMigrationsCanBeRead(t *testing.T) {
	t.Parallel()
	if least, err := migrate.Oldest(schema.FS, newest(t)); err != nil || least < 1 {
		t.Errorf("the schema serves binaries from version %d on, %v", least, err)
	}
	for _, mark := range []string{"-- +pith Oldest 0", "-- +pith Oldest 100000", "-- +pith Oldest"} {
		least, err := migrate.Oldest(with(t, mark+" \n"+addColumn, ""), future)
		if strings.HasSuffix(mark, "Oldest") {
			mark += " " // with nothing behind it
		}
		if err == nil {
			t.Errorf("%q passes as %d", mark, least)
		}
	}
}

func TestWhoDoesNotOwnTheSchemaFindsItUpToDateAllTheSame(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	if _, err := db.Direct.Exec(t.Context(), "COMMENT ON TABLE goose_db_version IS NULL"); err != nil {
		t.Fatal(err)
	}
	m, log := waiting(t, stranger(t, db), migrate.Config{}, schema.FS)
	if err := m.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	log.await(t, "could not write which binaries the schema serves")
}
