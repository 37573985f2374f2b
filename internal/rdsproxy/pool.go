package rdsproxy

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

type poolKey struct{ user, database string }

// A pool is the server connections of one user to one database, and the clients
// that use them in turn.
type pool struct {
	p   *Proxy
	key poolKey
	cfg *pgconn.Config

	clients int                // guarded by Proxy.mu
	unused  context.CancelFunc // ends the wait after the last client has left; likewise

	mu      sync.Mutex // guards what follows; taken after Proxy.mu, before serverConn.mu
	idle    []*serverConn
	all     map[*serverConn]struct{}
	dialing int
	waiters list.List // of *waiter; not empty only while idle is
	params  map[string]string
	lastErr error // of the last attempt to connect
}

// A waiter is a client that waits for a server connection.
type waiter struct {
	got chan struct{} // closed when it has got one of what follows
	sc  *serverConn
	err error
}

// enter returns the pool of a client, who must leave it.
func (p *Proxy) enter(key poolKey) *pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl := p.pools[key]
	if pl == nil {
		cfg := p.upstream.Copy()
		cfg.User, cfg.Password, cfg.Database = key.user, p.secrets.passwords[key.user], key.database
		cfg.RuntimeParams = map[string]string{"client_encoding": "UTF8"}
		pl = &pool{p: p, key: key, cfg: cfg, all: map[*serverConn]struct{}{}}
		p.pools[key] = pl
	}
	pl.clients++
	if pl.unused != nil {
		pl.unused()
		pl.unused = nil
	}
	return pl
}

func (pl *pool) leave() {
	pl.p.mu.Lock()
	defer pl.p.mu.Unlock()
	pl.clients--
	if pl.clients == 0 {
		ctx, cancel := context.WithCancel(pl.p.ctx)
		pl.unused = cancel
		pl.p.wg.Go(func() {
			defer cancel()
			for empty := false; !empty && wait(ctx, pl.p.cfg.IdleServerTimeout); {
				empty = pl.empty(ctx)
			}
		})
	}
	pl.forget()
}

// empty closes the connections of a pool that has had no client for long, and tells
// whether none can come any more. It does nothing once ctx has ended, as it does when
// a client comes.
func (pl *pool) empty(ctx context.Context) bool {
	pl.p.mu.Lock()
	if ctx.Err() != nil {
		pl.p.mu.Unlock()
		return true
	}
	pl.mu.Lock()
	idle, rest := pl.idle, len(pl.all)-len(pl.idle)+pl.dialing
	pl.idle = nil
	pl.mu.Unlock()
	pl.p.mu.Unlock()
	for _, sc := range idle {
		sc.farewell()
	}
	return rest == 0
}

// forget lets go of a pool that nothing uses. The caller holds Proxy.mu.
func (pl *pool) forget() {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if pl.clients == 0 && len(pl.all) == 0 && pl.dialing == 0 && pl.p.pools[pl.key] == pl {
		delete(pl.p.pools, pl.key)
		if pl.unused != nil {
			pl.unused()
		}
	}
}

// take returns an idle connection, or nil if there is none for a client that does
// not wait.
func (pl *pool) take() *serverConn {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	n := len(pl.idle)
	if n == 0 {
		return nil
	}
	sc := pl.idle[n-1]
	pl.idle = pl.idle[:n-1]
	return sc
}

// get waits for a connection, first come, first served. The error is ctx's cause,
// or a fatalError.
func (pl *pool) get(ctx context.Context) (*serverConn, error) {
	timer := time.NewTimer(pl.p.cfg.BorrowTimeout)
	defer timer.Stop()
	w := &waiter{got: make(chan struct{})}
	pl.mu.Lock()
	place := pl.waiters.PushBack(w)
	// A connection may have come back since the caller looked.
	if n := len(pl.idle); n > 0 {
		sc := pl.idle[n-1]
		pl.idle = pl.idle[:n-1]
		pl.deliver(sc)
	}
	pl.dial()
	pl.mu.Unlock()
	pl.p.signal()
	var err error
	select {
	case <-w.got:
		return w.sc, w.err
	case <-timer.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	defer pl.p.signal()
	pl.mu.Lock()
	defer pl.mu.Unlock()
	select {
	case <-w.got: // meanwhile
		if err != nil && w.sc != nil {
			pl.deliver(w.sc)
			return nil, err
		}
		return w.sc, w.err
	default:
	}
	pl.waiters.Remove(place)
	if err != nil {
		return nil, err
	}
	detail := fmt.Sprintf("All %d server connections of user %q to database %q were in use for %v.", pl.p.cfg.PoolSize, pl.key.user, pl.key.database, pl.p.cfg.BorrowTimeout)
	if pl.lastErr != nil {
		detail = "The last attempt to connect failed: " + oneLine(pl.lastErr)
	}
	return nil, fatal("53300", "timed out waiting to acquire a database connection", detail, "")
}

// oneLine is an error's text for a client.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// deliver gives a connection to who waits longest, or keeps it. The caller holds
// mu.
func (pl *pool) deliver(sc *serverConn) {
	first := pl.waiters.Front()
	if first == nil {
		pl.idle = append(pl.idle, sc)
		return
	}
	w := pl.waiters.Remove(first).(*waiter)
	w.sc = sc
	close(w.got)
}

// put takes back a connection that nobody uses.
func (pl *pool) put(sc *serverConn) {
	sc.mu.Lock()
	retired := sc.retired
	sc.mu.Unlock()
	if retired {
		// Its end makes room for another one.
		sc.farewell()
		return
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if _, ok := pl.all[sc]; ok {
		pl.deliver(sc)
	}
}

// remove drops a connection that has ended.
func (pl *pool) remove(sc *serverConn) {
	pl.mu.Lock()
	delete(pl.all, sc)
	if i := slices.Index(pl.idle, sc); i >= 0 {
		pl.idle = slices.Delete(pl.idle, i, i+1)
	}
	pl.dial()
	pl.mu.Unlock()
	pl.p.signal()

	pl.p.mu.Lock()
	defer pl.p.mu.Unlock()
	pl.forget()
}

// reported returns what a server connection of the pool reported at its start;
// nil: there was none yet.
func (pl *pool) reported() map[string]string {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.params
}

// dial starts as many attempts to connect as waiters need and the pool's size
// allows. The caller holds mu.
func (pl *pool) dial() {
	for pl.dialing < pl.waiters.Len() && len(pl.all)+pl.dialing < pl.p.cfg.PoolSize && pl.p.ctx.Err() == nil {
		pl.dialing++
		pl.p.wg.Go(func() { pl.connect(pl.p.ctx) })
	}
}

// connect connects, trying again while somebody waits and the server is not there.
func (pl *pool) connect(ctx context.Context) {
	const shortest, longest = 10 * time.Millisecond, time.Second
	pause := shortest
	for {
		sc, err := pl.attempt(ctx)
		if err == nil {
			pl.add(ctx, sc)
			return
		}
		if pl.failed(ctx, err) {
			break
		}
		wait(ctx, pause/2+rand.N(pause/2))
		pause = min(2*pause, longest)
	}
	pl.p.mu.Lock()
	defer pl.p.mu.Unlock()
	pl.forget()
}

// add takes in a new connection.
func (pl *pool) add(ctx context.Context, sc *serverConn) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.dialing--
	pl.lastErr = nil
	pl.params = sc.params
	pl.all[sc] = struct{}{}
	pl.p.wg.Go(func() { sc.run(ctx) })
	pl.deliver(sc)
}

// attempt connects once.
func (pl *pool) attempt(ctx context.Context) (*serverConn, error) {
	ctx, cancel := context.WithTimeout(ctx, pl.p.cfg.BorrowTimeout)
	defer cancel()
	c := &pl.p.counters
	c.dials.Add(1)
	if pl.cfg.TLSConfig != nil {
		c.dialsTLS.Add(1)
	}
	sc, err := connect(ctx, pl)
	if err != nil {
		c.dialsFailed.Add(1)
		return nil, err
	}
	c.dialsSucceeded.Add(1)
	return sc, nil
}

// failed looks at why a connection could not be made. What the server says goes to
// all who wait, unless it says that it is full or not ready. It returns true if
// nobody waits any more, or ctx has ended: the caller dials no more then, and who
// comes next must.
func (pl *pool) failed(ctx context.Context, err error) bool {
	defer pl.p.signal()
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.lastErr = err
	var refused *pgconn.PgError
	if ctx.Err() == nil && errors.As(err, &refused) && !strings.HasPrefix(refused.Code, "53") && !strings.HasPrefix(refused.Code, "57P") {
		pl.p.cfg.Log.WarnContext(ctx, "server refuses a connection", "user", pl.key.user, "database", pl.key.database, "err", err)
		// The next client must learn it when it connects.
		pl.params = nil
		for e := pl.waiters.Front(); e != nil; e = pl.waiters.Front() {
			w := pl.waiters.Remove(e).(*waiter)
			w.err = passOn(refused)
			close(w.got)
		}
	}
	if pl.waiters.Len() > 0 && ctx.Err() == nil {
		return false
	}
	pl.dialing--
	return true
}

// passOn makes the server's refusal the client's.
func passOn(e *pgconn.PgError) *fatalError {
	return &fatalError{pgproto3.ErrorResponse{
		Severity:            "FATAL",
		SeverityUnlocalized: "FATAL",
		Code:                e.Code,
		Message:             e.Message,
		Detail:              e.Detail,
		Hint:                e.Hint,
		File:                e.File,
		Line:                e.Line,
		Routine:             e.Routine,
	}}
}
