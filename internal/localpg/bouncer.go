package localpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// BouncerConfig says how a PgBouncer pools.
type BouncerConfig struct {
	// Program is the path of the program. Default: the system's, which is installed
	// where there is none.
	Program string

	// PoolSize is the number of server connections for each database and user.
	// Default: 20.
	PoolSize int

	// MaxClients is the number of client connections. Default: 10000, or as many
	// as the process may have open files.
	MaxClients int

	// PoolMode is session, transaction or statement. Default: transaction.
	PoolMode string

	// Settings are further parameters of PgBouncer; they win over ours.
	Settings map[string]string
}

// A Bouncer is a running PgBouncer before a [Server]. It serves all databases of
// its server, tracks no prepared statements, and ignores no startup parameters.
// Its methods may be called concurrently.
type Bouncer struct {
	server *Server
	pooler pooler
	cfg    BouncerConfig
	port   int
	ini    string

	mu      sync.Mutex // guards what follows, held while the pooler changes
	log     logFile
	proc    *child
	stopped bool
}

// StartBouncer runs a PgBouncer before the server and waits until it accepts
// connections. It ends with the server, or earlier with [Bouncer.Stop]. The
// context bounds the start only.
func (s *Server) StartBouncer(ctx context.Context, cfg BouncerConfig) (*Bouncer, error) {
	p, err := s.bouncerProgram(ctx, cfg.Program)
	if err != nil {
		return nil, err
	}
	cfg.PoolSize = cmp.Or(cfg.PoolSize, 20)
	cfg.MaxClients = cmp.Or(cfg.MaxClients, maxClients())
	cfg.PoolMode = cmp.Or(cfg.PoolMode, "transaction")
	b := &Bouncer{server: s, pooler: p, cfg: cfg}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errors.New("start PgBouncer: the server was stopped for good")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := onFreePort(func(port int) error {
		b.port = port
		if err := b.launch(ctx); err != nil {
			b.discard()
			return err
		}
		return nil
	}); err != nil {
		return nil, err
	}
	s.bouncers = append(s.bouncers, b)
	return b, nil
}

// bouncerProgram looks at the given program, or for the system's if there is none.
func (s *Server) bouncerProgram(ctx context.Context, given string) (pooler, error) {
	if given == "" {
		return findBouncer(ctx, s.cfg, s.cache)
	}
	path, err := filepath.Abs(given)
	if err != nil {
		return pooler{}, fmt.Errorf("PgBouncer's program: %w", err)
	}
	_, major, minor, err := versionOf(ctx, path)
	if err != nil {
		return pooler{}, fmt.Errorf("PgBouncer's program: %w", err)
	}
	return pooler{path, major, minor}, nil
}

// maxClients leaves room in the limit of open files, which PgBouncer raises to
// the hard limit, for the server connections.
func maxClients() int {
	const most, reserve = 10000, 500
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Max >= most+reserve {
		return most
	}
	return max(int(limit.Max)-reserve, int(limit.Max)/2)
}

// users is PgBouncer's list of users; the password is not asked for.
func (b *Bouncer) users() string { return strings.TrimSuffix(b.ini, ".ini") + ".users" }

// configure writes the pooler's files.
func (b *Bouncer) configure() error {
	b.ini = filepath.Join(b.server.home.dir, fmt.Sprintf("pgbouncer-%d.ini", b.port))
	b.log.path = strings.TrimSuffix(b.ini, ".ini") + ".log"
	settings := map[string]string{
		"listen_addr":       "127.0.0.1",
		"listen_port":       strconv.Itoa(b.port),
		"unix_socket_dir":   "",
		"auth_type":         "trust",
		"auth_file":         b.users(),
		"admin_users":       role,
		"pool_mode":         b.cfg.PoolMode,
		"default_pool_size": strconv.Itoa(b.cfg.PoolSize),
		"max_client_conn":   strconv.Itoa(b.cfg.MaxClients),
		// After an outage connections are tried again at once, not after the
		// default of fifteen seconds.
		"server_login_retry":  "1",
		"server_idle_timeout": "30",
		"log_connections":     "0",
		"log_disconnections":  "0",
	}
	if b.pooler.atLeast(1, 21) {
		settings["max_prepared_statements"] = "0"
	}
	maps.Copy(settings, b.cfg.Settings)
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n* = host=127.0.0.1 port=%d\n\n[pgbouncer]\n", b.server.port)
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&text, "%s = %s\n", key, settings[key])
	}
	for path, text := range map[string]string{
		b.ini:     text.String(),
		b.users(): fmt.Sprintf("%q \"\"\n", role),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("configure PgBouncer: %w", err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("configure PgBouncer: %w", err)
		}
	}
	return nil
}

// launch starts the program and waits until it accepts connections. The caller
// holds mu.
func (b *Bouncer) launch(ctx context.Context) error {
	if err := b.configure(); err != nil {
		return err
	}
	out, err := b.log.open()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(b.pooler.path, b.ini)
	cmd.Dir = b.server.home.dir
	cmd.Stdout, cmd.Stderr = out, out
	proc, err := spawn(cmd, b.server.id, syscall.SIGKILL)
	if err != nil {
		return err
	}
	b.proc = proc
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := b.proc.awaitReady(ctx, b.probe); err != nil {
		b.proc.end(stopGrace)
		text := b.log.text()
		if strings.Contains(text, "Address already in use") {
			return fmt.Errorf("start PgBouncer on port %d: %w", b.port, errPortTaken)
		}
		return fmt.Errorf("start PgBouncer: %w%s", err, lastLines(text))
	}
	b.server.cfg.Log.InfoContext(ctx, "pgbouncer started", "port", b.port, "pid", b.proc.pid(), "pool_size", b.cfg.PoolSize)
	return nil
}

// probe looks whether our pooler, and not another one, answers on the port.
func (b *Bouncer) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := connect(ctx, b.AdminURL())
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	rows, err := conn.Query(ctx, "SHOW CONFIG")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return err
		}
		if len(values) > 1 && values[0] == "conffile" && values[1] == b.ini {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return fmt.Errorf("another pooler answers on port %d", b.port)
}

// URL returns the address of a database through the pooler, for the superuser
// pith.
func (b *Bouncer) URL(database string) string { return address(b.port, database, "") }

// AdminURL returns the address of the pooler's own console, for SHOW POOLS and
// the like. It understands the simple query protocol only, which the address
// tells pgx.
func (b *Bouncer) AdminURL() string {
	return address(b.port, "pgbouncer", "&default_query_exec_mode=simple_protocol")
}

// Port returns the port on 127.0.0.1. It stays the same over restarts.
func (b *Bouncer) Port() int { return b.port }

// PID returns the process number, 0 while the pooler does not run.
func (b *Bouncer) PID() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.proc.exited() {
		return 0
	}
	return b.proc.pid()
}

// end stops the program, cutting off its clients. The caller holds mu.
func (b *Bouncer) end() {
	if b.pooler.atLeast(1, 23) {
		b.proc.end(stopGrace, syscall.SIGQUIT)
	} else {
		b.proc.end(stopGrace, syscall.SIGTERM)
	}
}

// Kill ends the pooler as a crash would. Restart brings it back.
func (b *Bouncer) Kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.proc.end(stopGrace)
}

// Restart stops the pooler, if it runs, and starts it on the same port.
func (b *Bouncer) Restart(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return errors.New("restart PgBouncer: it was stopped for good")
	}
	b.end()
	return b.launch(ctx)
}

// Stop ends the pooler for good, cutting off its clients, and waits for it.
// Stopping twice is no error.
func (b *Bouncer) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return
	}
	b.stopped = true
	b.end()
	b.discard()
}

// discard removes the pooler's files, which are of no use without it.
func (b *Bouncer) discard() {
	for _, path := range []string{b.ini, b.users(), b.log.path} {
		_ = os.Remove(path)
	}
}
