package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/pool"
)

// database is the name of the database in a server of our own.
const database = "pith"

// ServicesConfig says what to start.
type ServicesConfig struct {
	// DataDir keeps the database. Default: it is thrown away at the end.
	DataDir string
	// Direct leaves the pooler out.
	Direct bool
	// Log gets what the servers do. Default: none.
	Log *slog.Logger
	// Progress gets a line before each step that takes long. Default: none.
	Progress io.Writer
}

// Services are a PostgreSQL server with a migrated database and a pooler before it.
type Services struct {
	// DirectURL leads to the server itself.
	DirectURL string
	// URL leads through the pooler, if there is one.
	URL string
	// AdminURL is the pooler's console; empty if there is none.
	AdminURL string
	// Version is PostgreSQL's.
	Version string

	server *localpg.Server
}

// StartServices starts them and waits until they can be used. They must be stopped with Stop.
func StartServices(ctx context.Context, cfg ServicesConfig) (*Services, error) {
	server, err := localpg.Start(ctx, localpg.Config{DataDir: cfg.DataDir, Log: cfg.Log, Progress: cfg.Progress})
	if err != nil {
		return nil, err
	}
	s := &Services{server: server, Version: server.Version(), DirectURL: server.URL(database), URL: server.URL(database)}
	if err := s.start(ctx, cfg); err != nil {
		_ = server.Stop() // the first error is the one that counts
		return nil, err
	}
	return s, nil
}

func (s *Services) start(ctx context.Context, cfg ServicesConfig) error {
	if err := s.server.CreateDatabase(ctx, database); err != nil {
		return err
	}
	if !cfg.Direct {
		bouncer, err := s.server.StartBouncer(ctx, localpg.BouncerConfig{})
		switch {
		case err == nil:
			s.URL, s.AdminURL = bouncer.URL(database), bouncer.AdminURL()
		case errors.Is(err, localpg.ErrNoPgBouncer):
			// All of it works without a pooler, too; only the figures are less telling.
			if cfg.Progress != nil {
				fmt.Fprintf(cfg.Progress, "going on without a pooler: %v\n", err)
			}
		default:
			return err
		}
	}
	p, err := pool.Open(ctx, s.URL, pool.Config{})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := migrate.Up(ctx, p, cfg.Log); err != nil {
		return fmt.Errorf("prepare database: %w", err)
	}
	return nil
}

// Done is closed when the database server has exited.
func (s *Services) Done() <-chan struct{} { return s.server.Done() }

// Stop ends the pooler and the server, cutting off their clients.
func (s *Services) Stop() error { return s.server.Stop() }
