package pool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrTokenUnsafe means that a connection cannot be made with a token: it has no TLS, may go on
// without it, or has several hosts to choose from.
var ErrTokenUnsafe = errors.New("token not sent")

// Endpoint is what a token is for.
type Endpoint struct {
	// Host is the name as the database URL has it, not an address that it stands for.
	Host string
	Port uint16
	User string
}

// String is user@host:port.
func (e Endpoint) String() string {
	return e.User + "@" + net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

// TokenSource makes a password that expires, such as an IAM token. The token is kept and used for all
// connections to the endpoint until a fifth of its life is left; then the next connection asks for
// another, and the old one serves on to its end if the source fails. With the zero time as expires it
// is not kept. A connection that was made outlives its token.
//
// There is one call at a time for an endpoint, however many connections wait for it. ctx ends after
// the connection's connect timeout. An error must not contain the token.
type TokenSource func(ctx context.Context, to Endpoint) (token string, expires time.Time, err error)

// tokenError is a failure of the source. The connection was not made, so nothing was sent on it.
type tokenError struct {
	to  Endpoint
	err error
}

func (e *tokenError) Error() string { return fmt.Sprintf("token for %s: %s", e.to, e.err) }
func (e *tokenError) Unwrap() error { return e.err }

// SafeToRetry is how [pgconn.SafeToRetry] asks.
func (*tokenError) SafeToRetry() bool { return true }

// tokens keeps the tokens of one source.
type tokens struct {
	source TokenSource

	mu    sync.Mutex // guards what follows
	kept  map[Endpoint]kept
	calls map[Endpoint]*call
}

// kept is a token that may be used again.
type kept struct {
	token          string
	renew, expires time.Time
}

// call is a call of the source that others may wait for.
type call struct {
	done  chan struct{}
	token string
	err   error
	// left means that the caller's own connection was given up, which says nothing about the source.
	left bool
}

func newTokens(source TokenSource) *tokens {
	return &tokens{source: source, kept: map[Endpoint]kept{}, calls: map[Endpoint]*call{}}
}

// beforeConnect puts a token into a connection's settings.
func (t *tokens) beforeConnect(ctx context.Context, c *pgx.ConnConfig) error {
	if err := carriesToken(c); err != nil {
		return err
	}
	to := Endpoint{Host: c.Host, Port: c.Port, User: c.User}
	if c.ConnectTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.ConnectTimeout)
		defer cancel()
	}
	token, err := t.get(ctx, to)
	if err != nil {
		return &tokenError{to, err}
	}
	c.Password = token
	before := c.OnPgError
	c.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		// A token that was refused is not tried again. Class 28 is invalid authorization; PgBouncer calls
		// it a protocol violation.
		if strings.HasPrefix(err.Code, "28") || err.Code == protocolViolation {
			t.drop(to, token)
		}
		if before != nil {
			return before(conn, err)
		}
		return !strings.EqualFold(err.Severity, "FATAL")
	}
	return nil
}

// protocolViolation is an SQLSTATE.
const protocolViolation = "08P01"

// carriesToken checks where a token would go. pgx has one password for all hosts of a URL, but a
// token is good for one of them. With sslmode allow and prefer it has an attempt without TLS.
func carriesToken(c *pgx.ConnConfig) error {
	hosts := append([]*pgconn.FallbackConfig{{Host: c.Host, Port: c.Port, TLSConfig: c.TLSConfig}}, c.Fallbacks...)
	for _, h := range hosts {
		if h.Host != c.Host || h.Port != c.Port {
			return fmt.Errorf("%w: the database URL has several hosts, and a token is for one", ErrTokenUnsafe)
		}
		// A Unix socket stays on the machine.
		if h.TLSConfig == nil && !filepath.IsAbs(h.Host) {
			return fmt.Errorf("%w: TLS is needed: add sslmode=verify-full, or at least sslmode=require, to the database URL", ErrTokenUnsafe)
		}
	}
	return nil
}

// get returns a token that the source made now or before.
func (t *tokens) get(ctx context.Context, to Endpoint) (string, error) {
	for {
		// Tokens expire by the clock on the wall, also while the machine is suspended.
		now := time.Now().Round(0)
		t.mu.Lock()
		old := t.kept[to]
		if now.Before(old.renew) {
			t.mu.Unlock()
			return old.token, nil
		}
		c, waiting := t.calls[to]
		if !waiting {
			c = &call{done: make(chan struct{})}
			t.calls[to] = c
		}
		t.mu.Unlock()
		if !waiting {
			return t.ask(ctx, to, c)
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		if !c.left {
			return c.token, c.err
		}
	}
}

// ask calls the source and tells those who wait.
func (t *tokens) ask(ctx context.Context, to Endpoint, c *call) (string, error) {
	asked := time.Now().Round(0)
	defer func() { // also when the source panics
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.calls, to)
		close(c.done)
	}()
	c.left = true
	token, expires, err := t.source(ctx, to)
	now := time.Now().Round(0)
	expires = expires.Round(0)
	switch {
	case err != nil:
	case token == "":
		err = errors.New("the token source gave an empty token")
	case strings.ContainsRune(token, 0):
		err = errors.New("the token source gave a token with a zero byte")
	case !expires.IsZero() && !now.Before(expires):
		err = fmt.Errorf("the token source gave a token that has expired, by this machine's clock, %s ago", now.Sub(expires).Round(time.Second))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		if old, ok := t.kept[to]; ok && now.Before(old.expires) {
			token, err = old.token, nil
		} else {
			token = ""
		}
	} else if !expires.IsZero() {
		t.kept[to] = kept{token: token, renew: expires.Add(-expires.Sub(asked) / 5), expires: expires}
	}
	c.token, c.err = token, err
	c.left = err != nil && errors.Is(ctx.Err(), context.Canceled)
	return c.token, c.err
}

// drop forgets a token, unless another one has taken its place.
func (t *tokens) drop(to Endpoint, token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kept[to].token == token {
		delete(t.kept, to)
	}
}
