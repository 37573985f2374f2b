package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/doctor"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// reachTimeout is how long the database may take to answer for the first time.
const reachTimeout = 10 * time.Second

// maxConns bounds the pool of a process where the URL does not.
const maxConns = doctor.PoolConns

// open makes a pool and sees whether the database answers.
func (s *session) open(ctx context.Context) (*pgxpool.Pool, error) {
	if s.cli.DatabaseURL == "" {
		return nil, usage("which database? Set PITH_DATABASE_URL or --database-url, or start one with `pith dev`")
	}
	cfg := pool.Config{NamedStatements: s.cli.Statements == "named"}
	if !strings.Contains(s.cli.DatabaseURL, "pool_max_conns") {
		cfg.MaxConns = cmp.Or(s.conns, maxConns) // pgx's own default grows with the number of CPUs
	}
	if s.cli.PasswordLifetime < 0 {
		return nil, usage("--password-lifetime %s is negative", s.cli.PasswordLifetime)
	}
	if s.cli.PasswordCommand != "" {
		cfg.Token = s.password
	}
	p, err := pool.Open(ctx, s.cli.DatabaseURL, cfg)
	switch {
	case errors.Is(err, pool.ErrTokenUnsafe):
		return nil, usage("--password-command: %v", err)
	case err != nil:
		return nil, usage("%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if err := p.Ping(ctx); err != nil {
		p.Close()
		return nil, unreachable(p, err)
	}
	return p, nil
}

// unreachable names the host and the port; the driver's own text has the user, and several lines.
func unreachable(p *pgxpool.Pool, err error) error {
	var pg *pgconn.PgError
	var dns *net.DNSError
	var op *net.OpError
	var password *passwordError
	reason := err.Error()
	switch {
	case errors.As(err, &password):
		reason = password.Error()
	case errors.As(err, &pg):
		reason = pg.Message
	case errors.Is(err, context.DeadlineExceeded):
		reason = fmt.Sprintf("no answer within %s", reachTimeout)
	case errors.Is(err, context.Canceled):
		reason = "interrupted"
	case errors.As(err, &dns):
		reason = dns.Err
	case errors.As(err, &op):
		reason = op.Err.Error()
	default:
		for next := err; next != nil; next = errors.Unwrap(next) {
			reason = next.Error()
		}
	}
	return fmt.Errorf("database %s at %s cannot be used: %s", p.Config().ConnConfig.Database, address(p), reason)
}

// address is the host and the port of a pool's database.
func address(p *pgxpool.Pool) string {
	c := p.Config().ConnConfig
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// connect makes a pool to a database with the schema that this program needs, or a newer one that serves it.
func (s *session) connect(ctx context.Context) (*pgxpool.Pool, error) {
	p, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if err := migrate.Check(ctx, p); err != nil {
		differ, ok := errors.AsType[*migrate.VersionError](err)
		if !ok || !differ.Serves() {
			p.Close()
			return nil, err
		}
		s.log.Debug("database schema is newer than this program and serves it", "version", differ.Have, "own_version", differ.Need)
	}
	return p, nil
}

// newClient makes a client that knows the built-in types.
func (s *session) newClient(p *pgxpool.Pool, cfg tasking.Config) (*tasking.Client, error) {
	if cfg.Registry == nil {
		var err error
		if cfg.Registry, err = builtin.Registry(); err != nil {
			return nil, err
		}
	}
	cfg.Keys, cfg.Log = s.cli.ArgsKeys, s.log
	client, err := tasking.New(p, cfg)
	if err != nil {
		return nil, usage("%v", err)
	}
	return client, nil
}

// withClient calls do with a client for a database that was checked, until a signal to stop.
func (s *session) withClient(ctx context.Context, do func(context.Context, *tasking.Client) error) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	p, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	client, err := s.newClient(p, tasking.Config{})
	if err != nil {
		return err
	}
	err = do(ctx, client)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}
