package rdsproxy

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/url"
)

// A Running proxy serves in the background until it is stopped.
type Running struct {
	*Proxy

	addr  net.Addr
	stop  context.CancelFunc
	ended chan struct{}
	err   error
}

// Start makes a proxy and serves clients at addr, host:port; an empty one is a free
// port on 127.0.0.1. The context bounds the start only: Stop ends it.
func Start(ctx context.Context, addr string, cfg Config) (*Running, error) {
	p, err := New(cfg)
	if err != nil {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cmp.Or(addr, "127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("rdsproxy: %w", err)
	}
	r := &Running{Proxy: p, addr: l.Addr(), ended: make(chan struct{})}
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(r.ended)
		r.err = p.Serve(ctx, l)
	}()
	return r, nil
}

// Addr is where it serves.
func (r *Running) Addr() net.Addr { return r.addr }

// URL is the address of a database through the proxy for one of its users, without
// TLS.
func (r *Running) URL(user, database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword(user, r.cfg.Users[user]), Host: r.addr.String(), Path: "/" + database, RawQuery: "sslmode=disable",
	}).String()
}

// Done is closed when it has ended.
func (r *Running) Done() <-chan struct{} { return r.ended }

// Stop ends it, cutting off its clients, and waits. Stopping twice is no error.
func (r *Running) Stop() error {
	r.stop()
	<-r.ended
	return r.err
}
