// Package migrate brings a database to the schema that this binary needs, and
// tells whether it has it.
//
// It applies the migrations of package schema with goose. Everything works through
// a pooler in transaction mode: nothing lives longer on a server connection than a
// transaction, and what keeps two migrators apart is a row in the table goose_lock,
// leased and renewed, not an advisory lock. A migrator that is killed leaves its
// lease; the next one waits until it has run out, half a minute at most.
//
// Work goes on meanwhile. Who waits for a strong lock on a table makes everybody
// wait who comes after, so a migration waits for each of its locks for a moment only,
// then lets the others pass and tries again. docs/upgrades.md says what a migration
// may do so that it holds its locks for no longer, and a test holds the migrations to
// it.
package migrate

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/sql/schema"
)

// A Migration is one step of the schema's history.
type Migration struct {
	// Version is the number that orders the migrations.
	Version int64
	// Name is the migration's file; empty if this binary does not know it.
	Name string
	// AppliedAt is when it was applied, by the database's clock; zero if it was not.
	AppliedAt time.Time
}

// sources returns the migrations among files, in order.
func sources(files fs.FS) ([]Migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	list := make([]Migration, 0, len(names))
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fmt.Errorf("list migrations: %w", err)
		}
		list = append(list, Migration{Version: version, Name: name})
	}
	slices.SortFunc(list, byVersion)
	return list, nil
}

func byVersion(a, b Migration) int { return cmp.Compare(a.Version, b.Version) }

// Config says how a migrator waits. The zero value is right.
type Config struct {
	// LockTimeout bounds each wait for a lock, and so the time that others wait behind it. It should be longer than the
	// server's deadlock_timeout (1 s), after which an autovacuum that is in the way gives up. Default: 1.5 s.
	LockTimeout time.Duration
	// RetryFor is how long a migration that does not get its locks is tried again. Between two tries is a pause, longer
	// than the wait and growing up to 20 s. Default: 5 min.
	RetryFor time.Duration
	// Log gets each migration that was applied or undone, and who is in the way of one. Default: none.
	Log *slog.Logger
}

// A Migrator changes the schema of a database.
type Migrator struct {
	pool  *pgxpool.Pool
	cfg   Config
	files fs.FS
	watch *watch
}

// New validates the configuration; it sends nothing.
func New(p *pgxpool.Pool, cfg Config) (*Migrator, error) {
	cfg.LockTimeout = cmp.Or(cfg.LockTimeout, 1500*time.Millisecond)
	cfg.RetryFor = cmp.Or(cfg.RetryFor, 5*time.Minute)
	switch {
	case cfg.LockTimeout < time.Millisecond:
		return nil, fmt.Errorf("lock timeout %s: must be positive, a millisecond at least", cfg.LockTimeout)
	case cfg.RetryFor < 0:
		return nil, fmt.Errorf("retry for %s: must be positive", cfg.RetryFor)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Migrator{pool: p, cfg: cfg, files: schema.FS, watch: &watch{pool: p, every: max(cfg.LockTimeout/30, 10*time.Millisecond)}}, nil
}

// Up applies all migrations that the database of p lacks, as [Migrator.Up] with
// the default waits. log may be nil.
func Up(ctx context.Context, p *pgxpool.Pool, log *slog.Logger) error {
	m, err := New(p, Config{Log: log})
	if err != nil {
		return err
	}
	return m.Up(ctx)
}

// Up applies all migrations that the database lacks. A database that is newer
// than this binary is left as it is.
//
// The error is a [BlockedError] if others were in the way for too long.
func (m *Migrator) Up(ctx context.Context) error {
	return m.run(ctx, "migrate up", func(g *goose.Provider) ([]*goose.MigrationResult, error) { return g.Up(ctx) })
}

// Down undoes the migration that was applied last.
//
// The error matches [ErrTooNew] if this binary does not have that migration, and
// is a [BlockedError] if others were in the way for too long.
func (m *Migrator) Down(ctx context.Context) error {
	return m.run(ctx, "migrate down", func(g *goose.Provider) ([]*goose.MigrationResult, error) {
		r, err := g.Down(ctx)
		if err != nil {
			return nil, downError(ctx, g, err)
		}
		return []*goose.MigrationResult{r}, nil
	})
}

// DownTo undoes, newest first, all migrations after the given version; 0 undoes
// them all. The order of failure is that of the steps: what was undone stays so.
//
// The error matches [ErrTooNew] if this binary lacks one of the migrations, and is
// a [BlockedError] if others were in the way for too long.
func (m *Migrator) DownTo(ctx context.Context, version int64) error {
	return m.run(ctx, "migrate down", func(g *goose.Provider) ([]*goose.MigrationResult, error) {
		done, err := g.DownTo(ctx, version)
		if err != nil {
			return done, downError(ctx, g, err)
		}
		return done, nil
	})
}

func downError(ctx context.Context, g *goose.Provider, err error) error {
	if errors.Is(err, goose.ErrVersionNotFound) {
		if have, need, verr := g.GetVersions(ctx); verr == nil {
			return &VersionError{Have: have, Need: need}
		}
	}
	return err
}

// run calls do with a goose provider until it succeeds, or fails for another reason than a lock, or RetryFor is over.
// Between two calls others may migrate.
func (m *Migrator) run(ctx context.Context, what string, do func(*goose.Provider) ([]*goose.MigrationResult, error)) (err error) {
	// Not the pool's own connections: they may be too few for the lock and the work.
	cfg := m.pool.Config()
	var options []stdlib.OptionOpenDB
	if cfg.BeforeConnect != nil {
		options = append(options, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
	}
	db := sql.OpenDB(bounded{stdlib.GetConnector(*cfg.ConnConfig, options...), m.cfg.LockTimeout, m.watch, m.cfg.Log})
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	g, err := m.provider(db)
	if err != nil {
		return err
	}
	var since time.Time // it is blocked; waits for other migrators don't count
	for n := 1; ; n++ {
		// For people only: the row itself decides.
		if name, busy, err := another(ctx, m.pool); err == nil && name != "" {
			m.cfg.Log.Info("another migrator is at work: waiting for it", "migrator", name, "since", busy.Round(time.Second/10))
		}
		done, err := do(g)
		file := m.report(done, err)
		if ctx.Err() == nil {
			m.declare(ctx)
		}
		if err == nil || !isBlocked(err) || ctx.Err() != nil {
			return wrap(what, err)
		}
		if n == 1 {
			since = time.Now().Add(-m.cfg.LockTimeout)
		}
		tried := time.Since(since)
		blocked := &BlockedError{File: file, Tried: tried, Tries: n, By: m.watch.last(), Err: err}
		if tried >= m.cfg.RetryFor {
			return wrap(what, blocked)
		}
		pause := pauseAfter(n, m.cfg.LockTimeout)
		m.cfg.Log.Warn("migration did not get its locks: trying again", "file", file, "tries", n, "tried_for", tried.Round(time.Second/10),
			"pause", pause.Round(time.Second/10), "blocked_by", describe(blocked.By), "err", err)
		if resend.Sleep(ctx, pause) != nil {
			return wrap(what, blocked)
		}
	}
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// pauseAfter is how long the others may pass after try n: once to twice as long as they had to wait, growing by half with
// each try up to 20 s.
func pauseAfter(n int, timeout time.Duration) time.Duration {
	most := max(20*time.Second, 2*timeout)
	d := 2 * timeout
	for range n - 1 {
		if d += d / 2; d >= most {
			d = most
			break
		}
	}
	return d/2 + rand.N(d/2)
}

// report logs what was done, and returns the file of the migration that failed.
func (m *Migrator) report(done []*goose.MigrationResult, err error) (file string) {
	if partial, ok := errors.AsType[*goose.PartialError](err); ok {
		done = partial.Applied
		file = path.Base(partial.Failed.Source.Path)
	}
	for _, r := range done {
		about := []any{"version", r.Source.Version, "file", path.Base(r.Source.Path), "took", r.Duration}
		if r.Direction == "down" {
			m.cfg.Log.Info("migration undone", about...)
		} else {
			m.cfg.Log.Info("migration applied", about...)
		}
	}
	return cmp.Or(file, "the migration")
}

// lockTries bounds the wait for another migrator: it survives a migration of an hour.
const (
	lockPause = 200 * time.Millisecond
	lockTries = 5 * 60 * 60
)

func (m *Migrator) provider(db *sql.DB) (*goose.Provider, error) {
	// The lease of 30 s is renewed every 5 s.
	locker, err := lock.NewPostgresTableLocker(
		lock.WithTableLockTimeout(lockPause, lockTries),
		lock.WithTableUnlockTimeout(500*time.Millisecond, 20),
		lock.WithTableLogger(slog.New(slog.DiscardHandler)),
		lock.WithTableRetryPolicy(maySucceed),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, m.files,
		goose.WithLocker(locker),
		goose.WithDisableGlobalRegistry(true),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare migrations: %w", err)
	}
	return p, nil
}

// maySucceed tells whether the row that keeps migrators apart may be had at the next try. That another one has it is an
// error of goose's own; what the server refuses, it refuses again.
func maySucceed(err error) bool {
	var pg *pgconn.PgError
	return !errors.As(err, &pg) || resend.Passing(err)
}
