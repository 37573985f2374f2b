// Package resend decides which failed statements may be sent again, and paces it.
//
// A server connection, or the pooler itself, may vanish between any two statements, and then nobody
// knows whether the last one was committed. Every statement of Pith is safe to send again; this
// package only tells the passing failures from those that would fail again.
package resend

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Passing reports whether an error is about the way to the database, or about a conflict that a
// second try avoids, and not about the statement.
func Passing(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case "40001", "40P01", // serialization failure, deadlock
			"55P03", "57014", // lock not available, statement timeout
			"57P01", "57P02", "57P03", // shutdown, crash, starting up
			"25006",                            // read-only, for a moment, after a failover
			"53300", "53200", "53100", "53400": // connections, memory, disk, configured limit
			return true
		}
		// 08: connection exceptions, which poolers raise on their own account. PgBouncer also uses
		// 08P01 for everything that it has to say.
		return strings.HasPrefix(pg.Code, "08")
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pgconn.ErrConnClosed)
}

// Backoff is the pause before try n (from 1): doubling from 50 ms up to 5 s, each with full jitter,
// so that a fleet spreads out after an outage.
func Backoff(n int) time.Duration { return BackoffBy(nil, n) }

// BackoffBy is Backoff with randomness of the caller's own; nil: the global one.
func BackoffBy(r *rand.Rand, n int) time.Duration {
	most := 50 * time.Millisecond << min(n-1, 7)
	most = min(most, 5*time.Second)
	if r == nil {
		return most/4 + rand.N(most*3/4)
	}
	return most/4 + time.Duration(r.Int64N(int64(most*3/4)))
}

// Do calls send until it succeeds, fails for good, ctx ends, or limit has passed since the start (no
// limit: 0). Each call gets timeout. It returns the last error.
func Do(ctx context.Context, limit, timeout time.Duration, send func(context.Context) error) error {
	start := time.Now()
	for n := 1; ; n++ {
		attempt, cancel := context.WithTimeout(ctx, timeout)
		err := send(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || !Passing(err) || (limit > 0 && time.Since(start) > limit) {
			return err
		}
		if Sleep(ctx, Backoff(n)) != nil {
			return err
		}
	}
}

// Sleep waits for d, or until ctx ends, and then returns its error.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
