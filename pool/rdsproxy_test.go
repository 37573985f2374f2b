package pool_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/rdsproxy"
	"github.com/pithworks/pith/pool"
)

// iam signs tokens for the role pith, and knows which are good.
type iam struct {
	mu     sync.Mutex
	signed int
	good   map[string]bool
}

func (i *iam) sign(_ context.Context, to pool.Endpoint) (string, time.Time, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.signed++
	token := fmt.Sprintf("%s/?Action=connect&signature=%d", to, i.signed)
	i.good[token] = true
	return token, time.Now().Add(15 * time.Minute), nil
}

func (i *iam) verify(user, password string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if user != "pith" || !i.good[password] {
		return errors.New("no such token")
	}
	return nil
}

// expire ends all tokens.
func (i *iam) expire() {
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.good)
}

func TestTokensOpenTheStandInForRDSProxy(t *testing.T) {
	t.Parallel()
	server, err := localpg.Start(t.Context(), localpg.Config{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	cert, key := certificate(t)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	i := &iam{good: map[string]bool{}}
	proxy, err := rdsproxy.New(rdsproxy.Config{
		Upstream: server.URL("postgres"), Users: map[string]string{"pith": "the proxy's own secret"},
		Auth: rdsproxy.AuthPassword, VerifyPassword: i.verify,
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, RequireTLS: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- proxy.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	root := filepath.Join(t.TempDir(), "root.crt")
	if err := os.WriteFile(root, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("postgres://pith@%s/postgres", listener.Addr())
	p, err := pool.Open(t.Context(), url+"?sslmode=verify-full&sslrootcert="+root, pool.Config{Token: i.sign, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	own, err := pool.Single(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	// Connections that are held, so that each is a new one. No statement is sent: only its parser, which
	// judges what pins, takes the stand-in time.
	connect := func(p *pgxpool.Pool) error {
		conn, err := p.Acquire(t.Context())
		if err == nil {
			t.Cleanup(conn.Release)
		}
		return err
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := connect(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	i.expire()
	var pg *pgconn.PgError
	if err := connect(p); !errors.As(err, &pg) || !strings.HasPrefix(pg.Code, "28") {
		t.Errorf("got %v, want a refusal", err)
	} else if strings.Contains(err.Error(), "signature") {
		t.Errorf("the error shows the token: %v", err)
	}
	if err := connect(p); err != nil {
		t.Errorf("after the refusal: %v", err)
	}
	if err := connect(own); err != nil {
		t.Errorf("the pool of one: %v", err)
	}
	if i.signed != 2 {
		t.Errorf("%d tokens, want 2", i.signed)
	}

	received := proxy.Metrics().ClientConnectionsReceived
	if _, err := pool.Open(t.Context(), url+"?sslmode=prefer", pool.Config{Token: i.sign}); !errors.Is(err, pool.ErrTokenUnsafe) {
		t.Errorf("got %v, want %v", err, pool.ErrTokenUnsafe)
	}
	m := proxy.Metrics()
	if m.ClientConnectionsReceived != received {
		t.Error("the proxy was asked without TLS")
	}
	if m.ClientConnectionsSetupFailedAuth != 1 {
		t.Errorf("%d refusals, want 1", m.ClientConnectionsSetupFailedAuth)
	}
}
