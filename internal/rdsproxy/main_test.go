package rdsproxy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/pinning"
)

// testTimeout bounds whatever a test waits for. It is longer than the proxy's own
// timeouts, so that these are told of.
const testTimeout = 3 * time.Minute

// hba lets the superuser in without a password, as localpg needs it, and each
// other role by the method that it is named for.
const hba = `
host    all pith       127.0.0.1/32 trust
host    all by_scram   127.0.0.1/32 scram-sha-256
host    all by_md5     127.0.0.1/32 md5
host    all by_clear   127.0.0.1/32 password
hostssl all by_tls     127.0.0.1/32 scram-sha-256
host    all by_token   127.0.0.1/32 scram-sha-256
`

// shared is the server of the test binary.
var shared struct {
	sync.Mutex
	dir    string
	server *localpg.Server
	pool   *x509.CertPool
	cert   tls.Certificate
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		if err := shared.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// warmed is what the parser's first use says, which takes seconds.
var warmed = sync.OnceValue(func() error {
	_, err := pinning.Inspect("SELECT 1")
	return err
})

// warm makes ready the parser, whose start must not count against a timeout.
func warm(t testing.TB) {
	t.Helper()
	if err := warmed(); err != nil {
		t.Fatal(err)
	}
}

// server returns the shared server.
func server(t testing.TB) *localpg.Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = startServer()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

func startServer() (*localpg.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*testTimeout)
	defer cancel()
	var err error
	if shared.dir, err = os.MkdirTemp("", "rdsproxy-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(shared.dir, 0o755); err != nil {
		return nil, err
	}
	if err := makeCert(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(shared.dir, "hba"), []byte(hba), 0o644); err != nil {
		return nil, err
	}
	s, err := localpg.Start(ctx, localpg.Config{
		RunDir: memoryDir(),
		Settings: map[string]string{
			"fsync":                     "off",
			"synchronous_commit":        "off",
			"max_connections":           "200",
			"max_prepared_transactions": "10",
			"shared_buffers":            "32MB",
			"hba_file":                  filepath.Join(shared.dir, "hba"),
			"ssl":                       "on",
			"ssl_cert_file":             filepath.Join(shared.dir, "cert.pem"),
			"ssl_key_file":              filepath.Join(shared.dir, "key.pem"),
		},
		Progress: os.Stderr,
	})
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return s, err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, `
		SET password_encryption = 'md5';
		CREATE ROLE by_md5 LOGIN PASSWORD 'secret of by_md5';
		SET password_encryption = 'scram-sha-256';
		CREATE ROLE by_scram LOGIN PASSWORD 'secret of by_scram';
		CREATE ROLE by_clear LOGIN PASSWORD 'secret of by_clear';
		CREATE ROLE by_tls LOGIN PASSWORD 'secret of by_tls';
		CREATE ROLE by_token LOGIN PASSWORD 'secret of by_token';`)
	return s, err
}

// memoryDir returns a directory in memory, where databases are made in no time, or
// nothing if there is none.
func memoryDir() string {
	const shm, enough = "/dev/shm", 2 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(shm, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < enough {
		return ""
	}
	return filepath.Join(shm, "pith-rdsproxy-test-"+strconv.Itoa(os.Geteuid()))
}

// makeCert makes a certificate for localhost that the server may read.
func makeCert() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "localhost"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if shared.cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return err
	}
	shared.pool = x509.NewCertPool()
	shared.pool.AppendCertsFromPEM(certPEM)
	if err := os.WriteFile(filepath.Join(shared.dir, "cert.pem"), certPEM, 0o644); err != nil {
		return err
	}
	keyFile := filepath.Join(shared.dir, "key.pem")
	if err := os.WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, err := strconv.Atoi(u.Uid)
			if err != nil {
				return err
			}
			return os.Chown(keyFile, uid, -1)
		}
	}
	return nil
}

var databases atomic.Int64

// newDatabase makes a database that ends with the test.
func newDatabase(t testing.TB) string {
	t.Helper()
	s := server(t)
	name := fmt.Sprintf("t%d", databases.Add(1))
	if err := s.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testTimeout)
		defer cancel()
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// A testProxy is a proxy that ends with its test.
type testProxy struct {
	*Proxy
	addr     string
	database string
	stop     func() // ends Serve and waits for it
}

// startProxy runs a proxy before a new database of the shared server. Config's
// Upstream and Users are filled in if they are empty: the user is pith with the
// password pith.
func startProxy(t testing.TB, cfg Config) *testProxy {
	t.Helper()
	p := &testProxy{database: newDatabase(t)}
	if cfg.Upstream == "" {
		cfg.Upstream = server(t).URL("postgres")
	}
	serve(t, p, cfg)
	return p
}

func serve(t testing.TB, p *testProxy, cfg Config) {
	t.Helper()
	warm(t)
	if cfg.Users == nil {
		cfg.Users = map[string]string{"pith": "pith"}
	}
	proxy, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	proxy.changed = make(chan struct{}, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- proxy.Serve(ctx, l) }()
	p.Proxy, p.addr = proxy, l.Addr().String()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(p.stop)
}

// url is the address of the proxy for a user whose password is as in startProxy, or
// "secret of " and the name.
func (p *testProxy) url(user, options string) string {
	password := "secret of " + user
	if user == "pith" {
		password = "pith"
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: p.addr, Path: "/" + p.database, RawQuery: options}
	return u.String()
}

// connect opens a connection through the proxy that sends nothing of its own.
func (p *testProxy) connect(t testing.TB) *pgconn.PgConn {
	t.Helper()
	return dial(t, p.url("pith", "sslmode=disable"))
}

func (p *testProxy) direct(t testing.TB) *pgconn.PgConn {
	t.Helper()
	return dial(t, server(t).URL(p.database))
}

func dial(t testing.TB, url string) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.Connect(deadline(t), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hangUp(t, conn) })
	return conn
}

// hangUp closes a connection and waits until it is closed.
func hangUp(t testing.TB, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}

// deadline is the test's context with the limit of whatever it waits for.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// query runs a simple query and returns the first column of its last result.
func query(t testing.TB, conn *pgconn.PgConn, sql string) []string {
	t.Helper()
	results, err := conn.Exec(deadline(t), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return column(results)
}

func column(results []*pgconn.Result) []string {
	var values []string
	if len(results) == 0 {
		return nil
	}
	for _, row := range results[len(results)-1].Rows {
		values = append(values, string(row[0]))
	}
	return values
}

// backend returns the process that serves a connection.
func backend(t testing.TB, conn *pgconn.PgConn) string {
	t.Helper()
	return query(t, conn, "SELECT pg_backend_pid()")[0]
}
