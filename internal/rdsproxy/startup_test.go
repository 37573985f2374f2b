package rdsproxy

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"
)

// rawClient connects and sends nothing.
func rawClient(t testing.TB, p *testProxy) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return &wire{t: t, conn: conn, in: &frameReader{r: conn, start: 4096, keep: 4096}}
}

func (w *wire) startup(parameters map[string]string) {
	w.t.Helper()
	w.send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: parameters})
}

// scram authenticates, and returns what the proxy said last.
func (w *wire) scram(password string) byte {
	w.t.Helper()
	client, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		w.t.Fatal(err)
	}
	conv := client.NewConversation()
	first, err := conv.Step("")
	if err != nil {
		w.t.Fatal(err)
	}
	w.answer('R', 1)
	w.send(&pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: []byte(first)})
	_, n, err := w.in.header()
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := w.in.frame(n)
	if err != nil {
		w.t.Fatal(err)
	}
	final, err := conv.Step(string(b[headerSize+4:]))
	if err != nil {
		w.t.Fatal(err)
	}
	w.send(&pgproto3.SASLResponse{Data: []byte(final)})
	typ, _, err := w.in.header()
	if err != nil {
		w.t.Fatal(err)
	}
	return typ
}

func serverTLS(testing.TB) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{shared.cert}, MinVersion: tls.VersionTLS12}
}

// verified is a URL's options that make the client check the proxy's certificate.
func verified() string { return "sslmode=verify-ca&sslrootcert=" + shared.dir + "/cert.pem" }

func TestAuthentication(t *testing.T) {
	t.Parallel()
	server(t) // makes the certificate
	users := map[string]string{"pith": "pith", "by_scram": "secret of by_scram", "by_tls": "secret of by_tls"}
	var valid atomic.Value
	valid.Store("token 1")
	token := func(user, password string) error {
		if user != "by_token" || password != valid.Load() {
			return errors.New("no")
		}
		return nil
	}
	scramOnly := startProxy(t, Config{Users: users})
	scramTLS := startProxy(t, Config{Users: users, TLS: serverTLS(t), RequireTLS: true})
	password := startProxy(t, Config{Users: users, TLS: serverTLS(t), Auth: AuthPassword})
	tokens := startProxy(t, Config{Users: map[string]string{"by_token": "secret of by_token"}, TLS: serverTLS(t), Auth: AuthPassword, VerifyPassword: token})
	for _, test := range []struct {
		name  string
		proxy *testProxy
		user  string
		pass  string
		opts  string
		code  string // of the FATAL; empty: it works
	}{
		{"scram", scramOnly, "pith", "pith", "sslmode=disable", ""},
		{"scram, wrong password", scramOnly, "pith", "wrong", "sslmode=disable", "28P01"},
		{"scram, empty password", scramOnly, "pith", "", "sslmode=disable", "28P01"},
		{"scram, another's password", scramOnly, "pith", "secret of by_scram", "sslmode=disable", "28P01"},
		{"scram, unknown user", scramOnly, "nobody", "pith", "sslmode=disable", "28P01"},
		{"scram over tls", scramTLS, "pith", "pith", "SSL", ""},
		{"scram over tls, wrong password", scramTLS, "pith", "wrong", "SSL", "28P01"},
		{"tls is required", scramTLS, "pith", "pith", "sslmode=disable", "28000"},
		{"password over tls", password, "pith", "pith", "SSL", ""},
		{"password over tls, wrong", password, "pith", "pit", "SSL", "28P01"},
		{"password over tls, empty", password, "pith", "", "SSL", "28P01"},
		{"password, unknown user", password, "nobody", "", "SSL", "28P01"},
		{"password without tls", password, "pith", "pith", "sslmode=disable", "28000"},
		{"token", tokens, "by_token", "token 1", "SSL", ""},
		{"expired token", tokens, "by_token", "token 0", "SSL", "28P01"},
		{"password instead of token", tokens, "by_token", "secret of by_token", "SSL", "28P01"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			opts := test.opts
			if opts == "SSL" {
				opts = verified()
			}
			cfg, err := pgconn.ParseConfig(test.proxy.url(test.user, opts))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Password = test.pass
			conn, err := pgconn.ConnectConfig(deadline(t), cfg)
			if test.code != "" {
				var e *pgconn.PgError
				if !errors.As(err, &e) || e.Code != test.code || e.Severity != "FATAL" {
					t.Errorf("got %v, want FATAL %s", err, test.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer hangUp(t, conn)
			if got := query(t, conn, "SELECT session_user")[0]; got != test.user {
				t.Errorf("logged in as %s", got)
			}
		})
	}
}

// TestTokenIsCheckedAtConnectOnly is how the original treats one that expires.
func TestTokenIsCheckedAtConnectOnly(t *testing.T) {
	t.Parallel()
	server(t)
	var expired atomic.Bool
	p := startProxy(t, Config{
		Users: map[string]string{"by_token": "secret of by_token"}, TLS: serverTLS(t), Auth: AuthPassword,
		VerifyPassword: func(string, string) error {
			if expired.Load() {
				return errors.New("expired")
			}
			return nil
		},
	})
	url := p.url("by_token", verified())
	conn := dial(t, url)
	expired.Store(true)
	query(t, conn, "SELECT 1")
	if _, err := pgconn.Connect(deadline(t), url); err == nil {
		t.Error("an expired token was accepted")
	}
	if n := p.Metrics().ClientConnectionsSetupFailedAuth; n != 1 {
		t.Errorf("%d clients failed to authenticate, want 1", n)
	}
}

// TestServerAuthentication logs in to the server by each method.
func TestServerAuthentication(t *testing.T) {
	t.Parallel()
	port := strings.TrimPrefix(server(t).URL("x"), "postgres://pith@127.0.0.1:")
	port = strings.Split(port, "/")[0]
	secure := "postgres://127.0.0.1:" + port + "/?sslmode=verify-full&sslrootcert=" + shared.dir + "/cert.pem"
	for _, test := range []struct {
		user, upstream string
		tls            int64
		code           string
	}{
		{"by_scram", "", 0, ""},
		{"by_md5", "", 0, ""},
		{"by_clear", "", 0, ""},
		{"by_tls", secure, 1, ""},
		{"by_tls", "", 0, "28000"}, // the server has no entry for it without TLS
		{"by_nobody", "", 0, "28000"},
	} {
		t.Run(test.user, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, Config{Upstream: test.upstream, Users: map[string]string{test.user: "secret of " + test.user}})
			conn, err := pgconn.Connect(deadline(t), p.url(test.user, "sslmode=disable"))
			if test.code != "" {
				var e *pgconn.PgError
				if !errors.As(err, &e) || e.Code != test.code {
					t.Errorf("got %v, want %s", err, test.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer hangUp(t, conn)
			if got := query(t, conn, "SELECT session_user")[0]; got != test.user {
				t.Errorf("logged in as %s", got)
			}
			if n := p.Metrics().DatabaseConnectionsWithTLS; n != test.tls {
				t.Errorf("%d server connections with TLS, want %d", n, test.tls)
			}
		})
	}
}

func TestWrongSecretIsToldToTheClient(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{Users: map[string]string{"by_scram": "not the secret"}})
	cfg, err := pgconn.ParseConfig(p.url("by_scram", "sslmode=disable"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Password = "not the secret"
	_, err = pgconn.ConnectConfig(deadline(t), cfg)
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != "28P01" {
		t.Errorf("got %v, want 28P01", err)
	}
}

// TestLibpqConnects is another implementation of the client's side.
func TestLibpqConnects(t *testing.T) {
	t.Parallel()
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("no psql")
	}
	server(t)
	plain := startProxy(t, Config{PoolSize: 1})
	secure := startProxy(t, Config{PoolSize: 1, TLS: serverTLS(t), RequireTLS: true})
	for _, url := range []string{plain.url("pith", "sslmode=prefer"), secure.url("pith", verified()), secure.url("pith", "gssencmode=prefer&sslmode=require")} {
		cmd := exec.CommandContext(deadline(t), psql, "-XAtc", "SELECT 'it works'", url)
		cmd.Env = append(cmd.Environ(), "PGCLIENTENCODING=UTF8")
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "it works\n" {
			t.Errorf("psql: %v: %s", err, out)
		}
	}
}

func TestStartupParameters(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{})
	for _, test := range []struct {
		name, value string
		code        string
	}{
		{"application_name", "me", ""},
		{"client_encoding", "UTF8", ""},
		{"client_encoding", "'utf-8'", ""},
		{"client_encoding", "unicode", ""},
		{"client_encoding", "LATIN1", "0A000"},
		{"options", "-c work_mem=1MB", "0A000"},
		{"options", "", "0A000"},
		{"replication", "true", "0A000"},
		{"search_path", "x", "0A000"},
		{"DateStyle", "German", "0A000"},
		{"user", "", "28000"},
	} {
		w := rawClient(t, p)
		parameters := map[string]string{"user": "pith", "database": p.database}
		parameters[test.name] = test.value
		w.startup(parameters)
		if test.code != "" {
			e := w.wantFatal(test.code)
			if test.name != "user" && !strings.Contains(e.Message, test.name) {
				t.Errorf("%s=%s: told %q", test.name, test.value, e.Message)
			}
			if test.code == "0A000" && e.Hint == "" {
				t.Errorf("%s=%s: no hint", test.name, test.value)
			}
			continue
		}
		if typ := w.scram("pith"); typ != 'R' {
			t.Errorf("%s=%s: answered %c", test.name, test.value, typ)
		}
	}
}

func TestParametersReportedAreTheServers(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{})
	proxied, direct := p.connect(t), p.direct(t)
	for _, name := range []string{"server_version", "client_encoding", "TimeZone", "DateStyle", "integer_datetimes", "standard_conforming_strings", "is_superuser", "session_authorization"} {
		if got, want := proxied.ParameterStatus(name), direct.ParameterStatus(name); got != want || got == "" {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestNewerProtocolIsNegotiated(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{})
	w := rawClient(t, p)
	b := encode(t, &pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersion32,
		Parameters:      map[string]string{"user": "pith", "database": p.database, "_pq_.some": "1"},
	})
	w.write(b)
	if typ, text, err := w.frame(); typ != 'v' || err != nil || text != `v "\x00\x03\x00\x00\x00\x00\x00\x01_pq_.some\x00"` {
		t.Fatalf("answered %s (%v)", text, err)
	}
	if typ := w.scram("pith"); typ != 'R' {
		t.Errorf("answered %c", typ)
	}
	conn := dial(t, p.url("pith", "sslmode=disable&max_protocol_version=3.2"))
	query(t, conn, "SELECT 1")
}

func TestEncryptionRequests(t *testing.T) {
	t.Parallel()
	server(t)
	plain, secure := startProxy(t, Config{}), startProxy(t, Config{TLS: serverTLS(t)})
	ssl, gss := request(sslCode), request(gssCode)
	for _, test := range []struct {
		name  string
		proxy *testProxy
		send  [][]byte
		want  string
	}{
		{"gss, then ssl, then plain", plain, [][]byte{gss, ssl}, "NN"},
		{"ssl", secure, [][]byte{ssl}, "S"},
		{"gss, then ssl", secure, [][]byte{gss, ssl}, "NS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := rawClient(t, test.proxy)
			for i, b := range test.send {
				w.write(b)
				var answer [1]byte
				if _, err := w.conn.Read(answer[:]); err != nil || answer[0] != test.want[i] {
					t.Fatalf("answered %q (%v), want %c", answer, err, test.want[i])
				}
			}
			if strings.HasSuffix(test.want, "N") {
				w.startup(map[string]string{"user": "pith", "database": test.proxy.database})
				if typ := w.scram("pith"); typ != 'R' {
					t.Errorf("answered %c", typ)
				}
			}
		})
	}
}

func request(code uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code)
}

// TestCancelRequestHasNoEffect cancels with the key that the client was given.
func TestCancelRequestHasNoEffect(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{})
	conn := p.connect(t)
	results := conn.Exec(deadline(t), "SELECT pg_sleep(0.3), 'not canceled'")
	w := rawClient(t, p)
	w.send(&pgproto3.CancelRequest{ProcessID: conn.PID(), SecretKey: conn.SecretKey()})
	w.wantEnd()
	if _, err := results.ReadAll(); err != nil {
		t.Errorf("query: %v", err)
	}
}

func TestMaxClients(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{MaxClients: 2})
	p.connect(t)
	p.connect(t)
	_, err := pgconn.Connect(deadline(t), p.url("pith", "sslmode=disable"))
	var e *pgconn.PgError
	if !errors.As(err, &e) || e.Code != "53300" {
		t.Errorf("got %v, want 53300", err)
	}
}
