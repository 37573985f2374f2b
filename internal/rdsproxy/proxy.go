package rdsproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A Proxy stands between clients and one server. Its methods may be called
// concurrently.
type Proxy struct {
	cfg      Config
	upstream *pgconn.Config
	secrets  *secrets
	counters counters
	findings findingLog
	wg       sync.WaitGroup // what Serve started
	changed  chan struct{}  // for tests: see signal

	mu      sync.Mutex // guards what follows
	serving bool
	closed  bool            // connections are closed as they come
	ctx     context.Context // of Serve; set before anything that uses it starts
	pools   map[poolKey]*pool
	conns   map[net.Conn]struct{}
}

// Serve accepts clients on l until ctx ends or l fails. Then it closes the
// listener and all connections, and returns when all of its goroutines have ended.
// The error is nil if ctx ended. A proxy serves one listener at a time.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	p.mu.Lock()
	if p.serving {
		p.mu.Unlock()
		return errors.New("serve: the proxy serves already")
	}
	ctx, cancel := context.WithCancel(ctx)
	p.serving, p.closed, p.ctx = true, false, ctx
	p.mu.Unlock()

	p.wg.Go(func() {
		<-ctx.Done()
		_ = l.Close()
		p.closeAll()
	})
	err := p.accept(ctx, l)
	cancel()
	p.wg.Wait()

	p.mu.Lock()
	p.serving = false
	p.mu.Unlock()
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// accept starts a session for each client.
func (p *Proxy) accept(ctx context.Context, l net.Listener) error {
	const longest = time.Second
	var pause time.Duration
	for ctx.Err() == nil {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			p.wg.Go(func() { p.handle(ctx, conn) })
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			pause = min(max(2*pause, 5*time.Millisecond), longest)
			p.cfg.Log.WarnContext(ctx, "cannot accept a client", "err", err, "retry_in", pause)
			wait(ctx, pause)
		case ctx.Err() == nil:
			return err
		}
	}
	return nil
}

// wait returns false if ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// signal tells a test that a pool or a count has changed.
func (p *Proxy) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// register makes conn one that ends with Serve. It returns false if Serve ends
// already.
func (p *Proxy) register(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.Close()
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

// unregister closes conn.
func (p *Proxy) unregister(conn net.Conn) {
	_ = conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

func (p *Proxy) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}
