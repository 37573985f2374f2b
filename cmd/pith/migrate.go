package main

import (
	"context"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/migrate"
)

type migrateCmd struct {
	Up     migrateUpCmd     `cmd:"" help:"Apply all migrations that are missing."`
	Down   migrateDownCmd   `cmd:"" help:"Undo the newest migration."`
	DownTo migrateDownToCmd `cmd:"" help:"Undo all migrations after a version; 0 undoes all."`
	Status migrateStatusCmd `cmd:"" help:"List the migrations."`
}

type (
	migrateUpCmd     struct{}
	migrateDownCmd   struct{}
	migrateDownToCmd struct {
		Version int64 `arg:"" help:"The version to keep."`
	}
	migrateStatusCmd struct{}
)

// Run runs the command.
func (migrateUpCmd) Run(ctx context.Context, s *session) error {
	return s.migrate(ctx, func(ctx context.Context, p *pgxpool.Pool) error { return migrate.Up(ctx, p, s.log) })
}

// Run runs the command.
func (migrateDownCmd) Run(ctx context.Context, s *session) error {
	return s.migrate(ctx, migrate.Down)
}

// Run runs the command.
func (c migrateDownToCmd) Run(ctx context.Context, s *session) error {
	if c.Version < 0 {
		return usage("version %d is negative", c.Version)
	}
	return s.migrate(ctx, func(ctx context.Context, p *pgxpool.Pool) error { return migrate.DownTo(ctx, p, c.Version) })
}

// Run runs the command.
func (migrateStatusCmd) Run(ctx context.Context, s *session) error {
	return s.migrate(ctx, func(context.Context, *pgxpool.Pool) error { return nil })
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
