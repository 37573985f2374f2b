package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
)

// proxy is what the tests' password commands are asked for.
var proxy = pool.Endpoint{Host: "proxy.example", Port: 5432, User: "app"}

// asker is a session with a password command.
func asker(command string, lifetime time.Duration) *session {
	return &session{cli: &cli{PasswordCommand: command, PasswordLifetime: lifetime}, environ: append(environ(""), "SECRET=sesame")}
}

func TestPasswordCommandPrintsThePassword(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{
		"echo sesame":                         "sesame",
		`printf 'with blanks \r\n'`:           "with blanks ",
		`echo "$SECRET"; echo noise >&2`:      "sesame",
		`echo "$PGUSER@$PGHOST:$PGPORT"`:      "app@proxy.example:5432",
		`printf '%s' "$SECRET" | tr a-z b-za`: "tftbnf",
	} {
		began := time.Now()
		got, expires, err := asker(command, time.Minute).password(t.Context(), proxy)
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", command, got, err, want)
		}
		if life := expires.Sub(began); life < time.Minute {
			t.Errorf("%s: lives %s, want a minute from now", command, life)
		}
	}
	if _, expires, err := asker("echo sesame", 0).password(t.Context(), proxy); err != nil || !expires.IsZero() {
		t.Errorf("without a lifetime: expires %s, %v", expires, err)
	}
}

func TestPasswordCommandThatFailsShowsItsComplaintAlone(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{
		"echo sesame; exit 3": "password command: exit status 3",
		"echo sesame; printf 'first\\nno \\033[31mcredentials; none\\n\\n' >&2; exit 1": "password command: exit status 1: no [31mcredentials; none",
		"true":                                 "password command: it printed nothing",
		"echo sesame; echo sesame":             "password command: it printed more than one line",
		"head -c 70000 /dev/zero | tr '\\0' s": "password command: it printed more than 65536 bytes",
		"kill -9 $$":                           "password command: signal: killed",
	} {
		got, _, err := asker(command, time.Minute).password(t.Context(), proxy)
		if err == nil || err.Error() != want || got != "" {
			t.Errorf("%s: got %q, %v, want %s", command, got, err, want)
		}
	}
	if _, _, err := asker("no-such-command-here", time.Minute).password(t.Context(), proxy); err == nil || !strings.Contains(err.Error(), "no-such-command-here: not found") {
		t.Errorf("unknown command: %v", err)
	}
}

// A fifo is open for writing for as long as one of the command's processes lives.
func TestPasswordCommandEndsWithAllThatItStarted(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "alive")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, _, err := asker(fmt.Sprintf("exec 3>'%s'; echo up >&3; sleep 1000 & wait", fifo), time.Minute).password(ctx, proxy)
		ended <- err
	}()
	reader, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := io.ReadFull(reader, make([]byte, len("up\n"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if rest, err := io.ReadAll(reader); err != nil || len(rest) != 0 {
		t.Errorf("read %q, %v", rest, err)
	}
}

// guarded is a database that the role app gets into with a password, over a Unix socket.
func guarded(t *testing.T) (db *dbtest.DB, url string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pith") // a socket's path is short, and the server must read the file
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rules := filepath.Join(dir, "hba")
	if err := os.WriteFile(rules, []byte("host all pith 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	services := dbtest.Private(t, map[string]string{"hba_file": rules})
	db = services.New(t)
	if _, err := db.Direct.Exec(t.Context(), "CREATE ROLE app LOGIN SUPERUSER PASSWORD 'sesame'"); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	go forward(socket, services.Server.Port())
	t.Cleanup(func() { _ = socket.Close() })
	return db, fmt.Sprintf("postgres:///%s?host=%s&user=app&sslmode=disable", db.Name, dir)
}

// forward copies what comes over a listener to a local port and back.
func forward(from net.Listener, port int) {
	for {
		client, err := from.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			_ = client.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
				_ = pair[1].Close()
			}()
		}
	}
}

func TestMigrationsUseThePasswordCommand(t *testing.T) {
	t.Parallel()
	_, url := guarded(t)
	for _, args := range [][]string{{"migrate", "down"}, {"migrate", "down-to", "0"}, {"migrate", "up"}, {"migrate", "status"}} {
		must(t, url, append([]string{"--password-command", "echo sesame"}, args...)...)
	}
}

func TestChildrenInheritThePasswordCommand(t *testing.T) {
	t.Parallel()
	s := asker("echo sesame", time.Minute)
	command, err := s.child("postgres://app@proxy.example/pith", 0, "version")
	if err != nil {
		t.Fatal(err)
	}
	child := session{environ: command().Env}
	if got := child.env("PITH_PASSWORD_COMMAND"); got != "echo sesame" {
		t.Errorf("command %q", got)
	}
	if got := child.env("PITH_PASSWORD_LIFETIME"); got != "1m0s" {
		t.Errorf("lifetime %q", got)
	}
}

func TestCommandsConnectWithThePasswordCommand(t *testing.T) {
	t.Parallel()
	_, url := guarded(t)
	for name, tt := range map[string]struct {
		args []string
		code int
		want string // of what goes to standard error
	}{
		"right":    {[]string{"--password-command", "echo sesame", "workers"}, exitOK, ""},
		"none":     {[]string{"workers"}, exitFailure, "database"},
		"wrong":    {[]string{"--password-command", "echo mellon", "workers"}, exitFailure, `password authentication failed for user "app"`},
		"failing":  {[]string{"--password-command", "echo mellon; echo no credentials >&2; exit 1", "workers"}, exitFailure, "cannot be used: password command: exit status 1: no credentials\n"},
		"negative": {[]string{"--password-command", "echo sesame", "--password-lifetime", "-1s", "workers"}, exitUsage, "negative"},
		"no TLS":   {[]string{"--database-url", "postgres://app@127.0.0.1:1/x?sslmode=prefer", "--password-command", "echo mellon", "workers"}, exitUsage, "TLS is needed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := pith(t, url, tt.args...)
			if r.code != tt.code || !strings.Contains(r.err, tt.want) {
				t.Errorf("status %d, %q, want %d and %q", r.code, r.err, tt.code, tt.want)
			}
			if strings.Contains(r.err, "mellon") {
				t.Errorf("the password is shown: %s", r.err)
			}
			if r.code != exitOK && strings.Count(r.err, "\n") != 1 {
				t.Errorf("not in one line: %q", r.err)
			}
		})
	}
}
