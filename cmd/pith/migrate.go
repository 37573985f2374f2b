package main

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/migrate"
)

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Apply all migrations that are missing."`
	Down   migrateDownCmd   `cmd:"" help:"Undo the newest migration."`
	DownTo migrateDownToCmd `cmd:"" help:"Undo all migrations after a version; 0 undoes all."`
	Status migrateStatusCmd `cmd:"" help:"List the migrations."`
}

// migrateWaits say how long a migration waits for others, and others for it.
type migrateWaits struct {
	LockTimeout time.Duration `name:"lock-timeout" default:"1500ms" help:"How long each wait for a lock may take, and others have to wait behind it, before the migration lets them pass and tries again."`
	RetryFor    time.Duration `name:"retry-for" default:"5m" help:"How long a migration that does not get its locks is tried again."`
}

type (
	migrateUpCmd struct {
		migrateWaits `embed:""`
	}
	migrateDownCmd struct {
		migrateWaits `embed:""`
	}
	migrateDownToCmd struct {
		Version      int64 `arg:"" help:"The version to keep."`
		migrateWaits `embed:""`
	}
	migrateStatusCmd struct{}
)

// Run runs the command.
func (c migrateUpCmd) Run(ctx context.Context, s *session) error {
	return s.migrating(ctx, c.migrateWaits, func(ctx context.Context, m *migrate.Migrator) error { return m.Up(ctx) })
}

// Run runs the command.
func (c migrateDownCmd) Run(ctx context.Context, s *session) error {
	return s.migrating(ctx, c.migrateWaits, func(ctx context.Context, m *migrate.Migrator) error { return m.Down(ctx) })
}

// Run runs the command.
func (c migrateDownToCmd) Run(ctx context.Context, s *session) error {
	if c.Version < 0 {
		return usage("version %d is negative", c.Version)
	}
	return s.migrating(ctx, c.migrateWaits, func(ctx context.Context, m *migrate.Migrator) error { return m.DownTo(ctx, c.Version) })
}

// Run runs the command.
func (migrateStatusCmd) Run(ctx context.Context, s *session) error {
	return s.migrate(ctx, func(context.Context, *pgxpool.Pool) error { return nil })
}

// migrating changes the schema.
func (s *session) migrating(ctx context.Context, waits migrateWaits, change func(context.Context, *migrate.Migrator) error) error {
	if waits.LockTimeout < time.Millisecond || waits.RetryFor <= 0 {
		return usage("--lock-timeout and --retry-for must be positive, the former a millisecond at least")
	}
	return s.migrate(ctx, func(ctx context.Context, p *pgxpool.Pool) error {
		m, err := migrate.New(p, migrate.Config{LockTimeout: waits.LockTimeout, RetryFor: waits.RetryFor, Log: s.log})
		if err != nil {
			return usage("%v", err)
		}
		return change(ctx, m)
	})
}

// migration is a step of the schema's history as it is printed.
type migration struct {
	Version   int64  `json:"version"`
	Name      string `json:"name"`
	AppliedAt string `json:"applied_at,omitempty"`
}

// migrate does something with the schema of a database that answers, and prints what it is then.
func (s *session) migrate(ctx context.Context, do func(context.Context, *pgxpool.Pool) error) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := do(ctx, p); err != nil {
		return err
	}
	list, err := migrate.Status(ctx, p)
	if err != nil {
		return err
	}
	out := make([]migration, 0, len(list))
	for _, m := range list {
		row := migration{Version: m.Version, Name: m.Name}
		if m.Name == "" {
			row.Name = "unknown to this binary"
		}
		if !m.AppliedAt.IsZero() {
			row.AppliedAt = m.AppliedAt.UTC().Format("2006-01-02T15:04:05Z")
		}
		out = append(out, row)
	}
	return s.print(out, func(w io.Writer) {
		row(w, "VERSION", "NAME", "APPLIED")
		for _, m := range out {
			row(w, strconv.FormatInt(m.Version, 10), m.Name, orDash(m.AppliedAt))
		}
	})
}
