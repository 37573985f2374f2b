// Package pool opens a pgxpool that keeps to the contract with a transaction pooler.
//
// Behind Amazon RDS Proxy or PgBouncer two statements of one client may run on two server
// connections. A pool from here sends unnamed statements (they are parsed where they are executed),
// no startup parameter beyond user and database, and no statement of its own when it connects.
// It never sends SET: limits such as statement_timeout belong to the role.
//
// Where passwords are tokens that expire, as with IAM authentication, a [TokenSource] makes them.
package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config adds to what the URL says. The zero value is right behind any pooler.
type Config struct {
	// MaxConns bounds the client connections. Default: pool_max_conns of the URL, else pgx's own, the
	// greater of 4 and the number of CPUs.
	MaxConns int32
	// NamedStatements turns pgx's statement cache on. Only for a direct connection, or a pooler that
	// tracks named statements (PgBouncer from 1.21 with max_prepared_statements above 0).
	NamedStatements bool
	// Tracer sees every statement. Default: none.
	Tracer pgx.QueryTracer
	// BeforeConnect may change a connection's settings before it is made. Default: none.
	BeforeConnect func(context.Context, *pgx.ConnConfig) error
	// Token makes the password of each new connection, in place of the URL's, for the host, port and
	// user that BeforeConnect leaves. It goes out over TLS or a Unix socket only, else the error is
	// [ErrTokenUnsafe]. Default: none.
	Token TokenSource
}

// Open makes a pool for a PostgreSQL URL or keyword string. It connects lazily: an error means that
// the URL cannot be used, not that the database is away.
func Open(ctx context.Context, url string, cfg Config) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(url)
	if err == nil {
		err = mislaid(url, c.ConnConfig)
	}
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %s", withoutURL(err))
	}
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	if cfg.NamedStatements {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	}
	for name := range c.ConnConfig.RuntimeParams {
		return nil, fmt.Errorf("parse database URL: startup parameter %s is not possible behind a pooler: set it for the role (ALTER ROLE … SET)", known(name))
	}
	if cfg.MaxConns > 0 {
		c.MaxConns = cfg.MaxConns
	}
	c.ConnConfig.Tracer = cfg.Tracer
	c.BeforeConnect = cfg.BeforeConnect
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	if cfg.Token != nil {
		own := newTokens(cfg.Token).beforeConnect
		c.BeforeConnect = own
		if cfg.BeforeConnect == nil {
			// Nothing can change this any more, so it is said at once.
			if err := carriesToken(c.ConnConfig); err != nil {
				return nil, err
			}
		} else {
			c.BeforeConnect = func(ctx context.Context, c *pgx.ConnConfig) error {
				if err := cfg.BeforeConnect(ctx, c); err != nil {
					return err
				}
				return own(ctx, c)
			}
		}
	}
	return OpenConfig(ctx, c)
}

// OpenConfig makes a pool from a pgx configuration as it is.
func OpenConfig(ctx context.Context, c *pgxpool.Config) (*pgxpool.Pool, error) {
	p, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	return p, nil
}

// Single opens a second pool to the same database, of one connection, for what must never wait
// behind the first one's work. Both share their tokens. Its connection is not tried before use: what is sent
// on it must be safe to send again.
func Single(ctx context.Context, p *pgxpool.Pool) (*pgxpool.Pool, error) {
	c := p.Config()
	c.MaxConns, c.MinConns, c.MinIdleConns = 1, 0, 0
	// pgx would send a statement before each use of a connection that was idle for a second.
	c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	return OpenConfig(ctx, c)
}
