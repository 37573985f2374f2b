package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/internal/rdsproxy"
	"github.com/pithworks/pith/pool"
)

// database is the name of the database in a server of our own.
const database = "pith"

// What may stand before the database.
const (
	PgBouncer = "pgbouncer" // in transaction mode
	RDSProxy  = "rdsproxy"  // the stand-in for Amazon RDS Proxy
	NoPooler  = "none"
)

// ServicesConfig says what to start.
type ServicesConfig struct {
	// DataDir keeps the database. Default: it is thrown away at the end.
	DataDir string
	// Pooler is PgBouncer, RDSProxy or NoPooler. Default: PgBouncer, or RDSProxy where that program
	// cannot be had.
	Pooler string
	// OnFinding gets each statement that RDS Proxy would pin for or does not promise to carry, under
	// RDSProxy. Default: nothing is called.
	OnFinding func(rdsproxy.Finding)
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
	// Pooler is what URL leads through: PgBouncer, RDSProxy or NoPooler.
	Pooler string
	// AdminURL is the pooler's console; empty if there is none.
	AdminURL string
	// Version is PostgreSQL's.
	Version string

	server *localpg.Server
	proxy  *rdsproxy.Running
}

// StartServices starts them and waits until they can be used. They must be stopped with Stop.
func StartServices(ctx context.Context, cfg ServicesConfig) (*Services, error) {
	server, err := localpg.Start(ctx, localpg.Config{
		DataDir: cfg.DataDir, Log: cfg.Log, Progress: cfg.Progress,
		// As the deployment guide sets them for a role.
		Settings: map[string]string{"statement_timeout": "60s", "idle_in_transaction_session_timeout": "30s"},
	})
	if err != nil {
		return nil, err
	}
	s := &Services{server: server, Pooler: cmp.Or(cfg.Pooler, PgBouncer), Version: server.Version(), DirectURL: server.URL(database), URL: server.URL(database)}
	if err := s.start(ctx, cfg); err != nil {
		_ = s.Stop() // the first error is the one that counts
		return nil, err
	}
	return s, nil
}

func (s *Services) start(ctx context.Context, cfg ServicesConfig) error {
	if err := s.server.CreateDatabase(ctx, database); err != nil {
		return err
	}
	if s.Pooler == PgBouncer {
		bouncer, err := s.server.StartBouncer(ctx, localpg.BouncerConfig{})
		switch {
		case err == nil:
			s.URL, s.AdminURL = bouncer.URL(database), bouncer.AdminURL()
		case errors.Is(err, localpg.ErrNoPgBouncer) && cfg.Pooler == "":
			s.Pooler = RDSProxy
			if cfg.Progress != nil {
				fmt.Fprintf(cfg.Progress, "going on with the stand-in for RDS Proxy: %v\n", err)
			}
		default:
			return err
		}
	}
	if s.Pooler == RDSProxy {
		const user = "pith"
		proxy, err := rdsproxy.Start(ctx, "", rdsproxy.Config{
			Upstream: s.DirectURL, Users: map[string]string{user: user}, Log: cfg.Log, OnFinding: cfg.OnFinding,
		})
		if err != nil {
			return err
		}
		s.proxy, s.URL = proxy, proxy.URL(user, database)
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
func (s *Services) Stop() error {
	if s.proxy == nil {
		return s.server.Stop()
	}
	return errors.Join(s.proxy.Stop(), s.server.Stop())
}
