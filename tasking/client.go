package tasking

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/internal/textwire"
)

// ImmediateTimeout bounds immediate tasks, wherever they run.
const ImmediateTimeout = 5 * time.Second

// statementTimeout bounds one statement on the client's side. Behind RDS Proxy an expired context
// closes the connection, so it is generous.
const statementTimeout = 30 * time.Second

// resendLimit is how long a call goes on sending a statement whose answer got lost.
const resendLimit = 30 * time.Second

// Config configures a Client.
type Config struct {
	// Registry holds the task types that may be dispatched. Required.
	Registry *Registry
	// App is the registered app status under which immediate tasks run in this process. Without one
	// they are left to the workers. Default: none.
	App *appstatus.App
	// Keys encrypt arguments at rest: Fernet keys, 32 bytes in base64. The first one encrypts, all of
	// them decrypt. A new key is added at the end in every process, then put in front in every process, and
	// the old one is removed once no task and no schedule needs it. Default: none, arguments are stored in plain.
	Keys []string
	// ProgressInterval is the least time between two saves of one progress report. Default: 2 s.
	ProgressInterval time.Duration
	// Diagnostics are the profiles that this process makes of tasks that were dispatched with the wish for them. They
	// cost the tasks time. Default: none.
	Diagnostics []string
	// Log gets what tasks log and what goes wrong. Default: none.
	Log *slog.Logger
}

// Client dispatches tasks and follows them. It holds no connection between calls, starts nothing, and
// may be used by many goroutines.
type Client struct {
	db     *pgxpool.Pool
	q      *db.Queries
	cfg    Config
	keys   keyring
	wakeup chan struct{}

	// What many goroutines ask for at the same time. Dispatches and ends of immediate tasks take turns, so that
	// those who go together stay together.
	plain, immediate *combiner
}

// New validates the configuration; it sends nothing.
func New(pool *pgxpool.Pool, cfg Config) (*Client, error) {
	if pool == nil {
		return nil, errors.New("tasking: a database pool is required")
	}
	if cfg.Registry == nil {
		return nil, errors.New("tasking: Config.Registry is required")
	}
	keys, err := newKeyring(cfg.Keys)
	if err != nil {
		return nil, fmt.Errorf("tasking: %w", err)
	}
	if err := checkProfiles(cfg.Diagnostics); err != nil {
		return nil, fmt.Errorf("tasking: Config.Diagnostics: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ProgressInterval == 0 {
		cfg.ProgressInterval = 2 * time.Second
	}
	c := &Client{db: pool, q: db.New(), cfg: cfg, keys: keys, wakeup: make(chan struct{}, 1)}
	c.plain = &combiner{connect: pool.Acquire, fit: fit, send: c.sendTogether}
	c.immediate = &combiner{connect: pool.Acquire, fit: fit, send: c.sendTogether}
	return c, nil
}

// Registry returns the task types that the client knows.
func (c *Client) Registry() *Registry { return c.cfg.Registry }

// Pool returns the pool that the client sends on.
func (c *Client) Pool() *pgxpool.Pool { return c.db }

// Dispatched gets a value when this client has dispatched something that a worker may run, so that a
// worker in the same process need not wait for its next poll.
func (c *Client) Dispatched() <-chan struct{} { return c.wakeup }

func (c *Client) wake() {
	select {
	case c.wakeup <- struct{}{}:
	default:
	}
}

// send sends a statement that is safe to send again until it succeeds, fails for good, or
// resendLimit has passed.
func send[T any](ctx context.Context, what string, statement func(context.Context) (T, error)) (T, error) {
	return sendFor(ctx, resendLimit, what, statement)
}

// sendFor is send with a limit of its own; 0 is none.
func sendFor[T any](ctx context.Context, limit time.Duration, what string, statement func(context.Context) (T, error)) (T, error) {
	var out T
	err := resend.Do(ctx, limit, statementTimeout, func(ctx context.Context) error {
		var err error
		out, err = statement(ctx)
		return err
	})
	if err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			err = ErrNotFound
		}
		return out, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}

// sendVia is sendFor on the pool, but for the first send, which goes by conn, if there is one. It gives it back.
func sendVia[T any](ctx context.Context, limit time.Duration, pool *pgxpool.Pool, conn *pgxpool.Conn, statement func(context.Context, db.DBTX) (T, error)) (T, error) {
	return sendFor(ctx, limit, "send", func(ctx context.Context) (T, error) {
		via := textwire.Over(pool)
		if conn != nil {
			via = textwire.Over(conn)
			defer func() { conn.Release(); conn = nil }()
		}
		return statement(ctx, via)
	})
}
