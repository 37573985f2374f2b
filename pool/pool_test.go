package pool_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/pool"
)

// hba lets the tests' own role in without a password, and app with one over TLS.
const hba = `
hostnossl all pith 127.0.0.1/32 trust
hostssl   all app  127.0.0.1/32 password
`

// secured is a PostgreSQL that asks for TLS and for a password in clear text, as Amazon RDS Proxy does
// for IAM tokens. The role app has the password that the test gives it.
type secured struct {
	server *localpg.Server
	// url is app's, with the certificate verified.
	url string
}

func newSecured(t *testing.T) *secured {
	t.Helper()
	server, err := localpg.Start(t.Context(), localpg.Config{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := &secured{server: server}
	var dir string
	if err := s.admin(t).QueryRow(t.Context(), "SHOW data_directory").Scan(&dir); err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t)
	for name, text := range map[string][]byte{"server.crt": cert, "server.key": key, "pg_hba.conf": []byte(hba)} {
		give(t, dir, name, text)
	}
	s.exec(t, "ALTER SYSTEM SET ssl = on")
	s.exec(t, "CREATE ROLE app LOGIN")
	if err := server.Restart(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root.crt")
	if err := os.WriteFile(root, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	s.url = fmt.Sprintf("postgres://app@127.0.0.1:%d/postgres?sslmode=verify-full&sslrootcert=%s", server.Port(), url.QueryEscape(root))
	return s
}

// give writes a file that the server's own user may read.
func give(t *testing.T, dir, name string, text []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

// certificate makes one for 127.0.0.1 that is its own authority.
func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "pith test"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	bytes, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bytes})
}

func (s *secured) admin(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func (s *secured) exec(t *testing.T, statement string) {
	t.Helper()
	if _, err := s.admin(t).Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// rotating is a signer whose word is the server's: each token that it makes is app's password from then
// on, and the one before is refused.
type rotating struct {
	conn *pgx.Conn

	mu    sync.Mutex
	calls int
	last  string
	// stale makes the next token one that the server does not know.
	stale bool
}

func (r *rotating) token(ctx context.Context, to pool.Endpoint) (string, time.Time, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to.User != "app" || to.Host != "127.0.0.1" {
		return "", time.Time{}, fmt.Errorf("asked for %s", to)
	}
	r.calls++
	r.last = fmt.Sprintf("secret%d", r.calls)
	expires := time.Now().Add(15 * time.Minute)
	if r.stale {
		r.stale = false
		return r.last, expires, nil
	}
	_, err := r.conn.Exec(ctx, "ALTER ROLE app PASSWORD '"+r.last+"'")
	return r.last, expires, err
}

func (r *rotating) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

func TestPoolsLiveOnTokensThatChange(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	r := &rotating{conn: s.admin(t)}
	p, err := pool.Open(t.Context(), s.url, pool.Config{Token: r.token, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if r.count() != 0 {
		t.Error("a token was made before there is a connection")
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := p.Exec(t.Context(), "SELECT pg_sleep(0.1)"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	own, err := pool.Single(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := own.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.count(); n != 1 {
		t.Errorf("%d tokens for five connections, want 1", n)
	}

	// A connection outlives its token.
	s.exec(t, "ALTER ROLE app PASSWORD 'another'")
	if err := own.Ping(t.Context()); err != nil {
		t.Errorf("the connection has ended with its token: %v", err)
	}
	// A new one does not get in, once.
	own.Reset()
	var pg *pgconn.PgError
	if err := own.Ping(t.Context()); !errors.As(err, &pg) || pg.Code != "28P01" {
		t.Errorf("got %v, want 28P01", err)
	} else if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error shows the token: %v", err)
	}
	for _, p := range []interface{ Ping(context.Context) error }{own, p} {
		if err := p.Ping(t.Context()); err != nil {
			t.Errorf("after the refusal: %v", err)
		}
	}
	if n := r.count(); n != 2 {
		t.Errorf("%d tokens, want 2", n)
	}
}

func TestRefusedTokensAreAskedForAnew(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	r := &rotating{conn: s.admin(t), stale: true}
	p, err := pool.Open(t.Context(), s.url, pool.Config{Token: r.token})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Ping(t.Context()); err == nil {
		t.Error("the server has taken a token that it does not know")
	}
	if err := p.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// PgBouncer has an SQLSTATE of its own for a wrong password.
func TestTokenThatPgBouncerRefusesIsAskedForAnew(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	s.exec(t, "ALTER ROLE app PASSWORD 'right'")
	dir, err := os.MkdirTemp("", "pith") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"hba": "local all app scram-sha-256\nhost all pith 127.0.0.1/32 trust\n", "users": `"pith" ""` + "\n" + `"app" "right"` + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bouncer, err := s.server.StartBouncer(t.Context(), localpg.BouncerConfig{Settings: map[string]string{
		"auth_type": "hba", "auth_hba_file": filepath.Join(dir, "hba"), "auth_file": filepath.Join(dir, "users"),
		"unix_socket_dir": dir, "server_tls_sslmode": "prefer",
	}})
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	source := func(context.Context, pool.Endpoint) (string, time.Time, error) {
		asked++
		if asked == 1 {
			return "wrong", time.Now().Add(time.Hour), nil
		}
		return "right", time.Now().Add(time.Hour), nil
	}
	address := fmt.Sprintf("postgres://app@/postgres?host=%s&port=%d&sslmode=disable", url.QueryEscape(dir), bouncer.Port())
	p, err := pool.Open(t.Context(), address, pool.Config{Token: source, MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Ping(t.Context()); err == nil {
		t.Error("the pooler has taken a wrong password")
	}
	if err := p.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTokenIsForWhatBeforeConnectLeaves(t *testing.T) {
	t.Parallel()
	s := newSecured(t)
	r := &rotating{conn: s.admin(t)}
	target, err := pgx.ParseConfig(s.url)
	if err != nil {
		t.Fatal(err)
	}
	// The URL names no host that answers, no TLS, and another user.
	p, err := pool.Open(t.Context(), "postgres://nobody:x@127.0.0.1:1/postgres?sslmode=disable", pool.Config{
		Token: r.token,
		BeforeConnect: func(_ context.Context, c *pgx.ConnConfig) error {
			c.Host, c.Port, c.User, c.TLSConfig = target.Host, target.Port, target.User, target.TLSConfig
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	failing, err := pool.Open(t.Context(), s.url, pool.Config{
		Token:         r.token,
		BeforeConnect: func(context.Context, *pgx.ConnConfig) error { return errors.New("no such place") },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer failing.Close()
	if err := failing.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "no such place") {
		t.Errorf("got %v", err)
	}
	if n := r.count(); n != 1 {
		t.Errorf("%d tokens, want 1", n)
	}
}

func TestURLThatCannotBeReadIsNotShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"host=127.0.0.1 password = s3cret port=abc", "host=127.0.0.1 password='s3 cret' port=abc", "host=h password = s3cret sslmode=odd",
		"postgres://pith:s3cret@127.0.0.1:abc/pith", "postgres://pith:s3cret@127.0.0.1/pith?sslmode=odd",
	} {
		p, err := pool.Open(t.Context(), url, pool.Config{})
		if err == nil {
			p.Close()
			t.Errorf("%s was taken", url)
		} else if text := err.Error(); strings.Contains(text, "s3") || !strings.Contains(text, "port") && !strings.Contains(text, "sslmode") {
			t.Errorf("the error is %s", text)
		}
	}
}

func TestOpenRefusesStartupParameters(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://pith@127.0.0.1/pith?application_name=x",
		"postgres://pith@127.0.0.1/pith?options=-cstatement_timeout%3D1s",
		"host=127.0.0.1 statement_timeout=5s",
	} {
		if p, err := pool.Open(t.Context(), url, pool.Config{}); err == nil {
			p.Close()
			t.Errorf("%s was taken", url)
		} else if !strings.Contains(err.Error(), "ALTER ROLE") {
			t.Errorf("%s: %v names no remedy", url, err)
		}
	}
}
