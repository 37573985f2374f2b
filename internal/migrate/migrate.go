// Package migrate brings a database to the schema that this binary needs, and
// tells whether it has it.
//
// It applies the migrations of package schema with goose. Everything works through
// a pooler in transaction mode: nothing lives longer on a server connection than a
// transaction, and what keeps two migrators apart is a row in the table goose_lock,
// leased and renewed, not an advisory lock. A migrator that is killed leaves its
// lease; the next one waits until it has run out, half a minute at most.
//
// No lock_timeout is set. SET would outlive the transaction and stay behind on a
// connection that the pooler gives to others. It belongs to the role that
// migrates: ALTER ROLE … SET lock_timeout.
package migrate

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

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

// sources returns the migrations that this binary has, in order.
func sources() ([]Migration, error) {
	names, err := fs.Glob(schema.FS, "*.sql")
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

// Up applies all migrations that the database of p lacks. A database that is
// newer than this binary is left as it is. Each migration is logged.
func Up(ctx context.Context, p *pgxpool.Pool, log *slog.Logger) error {
	return withProvider(ctx, p, func(g *goose.Provider) error {
		done, err := g.Up(ctx)
		for _, m := range done {
			if log != nil {
				log.Info("migration applied", "version", m.Source.Version, "file", path.Base(m.Source.Path), "took", m.Duration)
			}
		}
		if err != nil {
			return fmt.Errorf("migrate up: %w", err)
		}
		return nil
	})
}

// Down undoes the migration that was applied last.
//
// The error matches [ErrTooNew] if this binary does not have that migration.
func Down(ctx context.Context, p *pgxpool.Pool) error {
	return withProvider(ctx, p, func(g *goose.Provider) error {
		if _, err := g.Down(ctx); err != nil {
			return downError(ctx, g, err)
		}
		return nil
	})
}

// DownTo undoes, newest first, all migrations after the given version; 0 undoes
// them all. The order of failure is that of the steps: what was undone stays so.
//
// The error matches [ErrTooNew] if this binary lacks one of the migrations.
func DownTo(ctx context.Context, p *pgxpool.Pool, version int64) error {
	return withProvider(ctx, p, func(g *goose.Provider) error {
		if _, err := g.DownTo(ctx, version); err != nil {
			return downError(ctx, g, err)
		}
		return nil
	})
}

func downError(ctx context.Context, g *goose.Provider, err error) error {
	if errors.Is(err, goose.ErrVersionNotFound) {
		if have, need, verr := g.GetVersions(ctx); verr == nil {
			err = &VersionError{Have: have, Need: need}
		}
	}
	return fmt.Errorf("migrate down: %w", err)
}

// withProvider calls do with a goose provider for the database of p.
func withProvider(ctx context.Context, p *pgxpool.Pool, do func(*goose.Provider) error) (err error) {
	// Not the pool's own connections: they may be too few for the lock and the work.
	cfg := p.Config()
	var options []stdlib.OptionOpenDB
	if cfg.BeforeConnect != nil {
		options = append(options, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
	}
	db := stdlib.OpenDB(*cfg.ConnConfig, options...)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	g, err := provider(db)
	if err != nil {
		return err
	}
	return do(g)
}

func provider(db *sql.DB) (*goose.Provider, error) {
	// The lease of 30 s is renewed every 5 s. The lock is tried for long enough
	// that a migrator survives a long migration of another one.
	locker, err := lock.NewPostgresTableLocker(
		lock.WithTableLockTimeout(200*time.Millisecond, 5*60*60),
		lock.WithTableUnlockTimeout(500*time.Millisecond, 20),
		lock.WithTableLogger(slog.New(slog.DiscardHandler)),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, schema.FS,
		goose.WithLocker(locker),
		goose.WithDisableGlobalRegistry(true),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare migrations: %w", err)
	}
	return p, nil
}
