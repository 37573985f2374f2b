package localpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// role is the superuser of every cluster.
const role = "pith"

// startTimeout bounds the wait for a program to accept connections, which after
// a crash includes recovery.
const startTimeout = 60 * time.Second

// stopGrace is how long a program may take to follow a signal before a stronger
// one is sent.
const stopGrace = 30 * time.Second

// Config says which server to run and where. The zero value runs an ephemeral
// server of the system's version.
type Config struct {
	// CacheDir keeps what is made once and used often: template clusters and
	// fetched programs. Default: see [CacheDir].
	CacheDir string

	// RunDir is where the directories of ephemeral servers are made. Nothing else
	// may be kept in it: what no process holds is removed. Default: run in CacheDir.
	RunDir string

	// DataDir is where a persistent server lives: its lock, its log, and in the
	// subdirectory data its cluster, which is made at the first start. Empty: the
	// server is ephemeral, and its directory is removed when it stops.
	DataDir string

	// Version is the major version, from 14 to 18, or "newest". It is fetched if
	// the system does not have it. Default: that of DataDir's cluster, or else the
	// system's own.
	Version string

	// Settings are PostgreSQL's parameters, such as fsync. Default: PostgreSQL's
	// own defaults.
	Settings map[string]string

	// NoInstall forbids to install or fetch what the machine lacks.
	NoInstall bool

	// Log receives what happens. Default: nothing is logged.
	Log *slog.Logger

	// Progress receives one line of text before each step that takes long enough
	// to make a person wonder. Default: nothing is written.
	Progress io.Writer
}

// A Server is a running PostgreSQL. Its methods may be called concurrently.
type Server struct {
	cfg   Config
	cache string
	id    identity
	pg    installation
	home  *home
	port  int

	mu       sync.Mutex // guards what follows, held while the server changes
	log      logFile
	proc     *child
	bouncers []*Bouncer
	stopped  bool
}

// Start runs a PostgreSQL server and waits until it accepts connections. It must
// be stopped with [Server.Stop]. The context bounds the start only.
//
// The error is [ErrInUse] if another process runs a server in cfg.DataDir.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	major, err := parseMajor(cfg.Version)
	if err != nil {
		return nil, err
	}
	id, err := runAs()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir(cfg.CacheDir, id)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, cache: cache, id: id}
	if cfg.DataDir == "" {
		s.home, err = ephemeralHome(ctx, cmp.Or(cfg.RunDir, filepath.Join(cache, "run")), id)
	} else {
		s.home, err = persistentHome(cfg.DataDir, id)
	}
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, major); err != nil {
		return nil, errors.Join(err, s.home.close())
	}
	return s, nil
}

// parseMajor reads Config.Version; 0 stands for any.
func parseMajor(version string) (int, error) {
	switch version {
	case "":
		return 0, nil
	case "newest":
		return newest, nil
	}
	major, err := strconv.Atoi(version)
	if err != nil || major < oldest {
		return 0, fmt.Errorf("PostgreSQL version %q: use a number from %d to %d, or newest", version, oldest, newest)
	}
	return major, nil
}

// start brings the server up for the first time.
func (s *Server) start(ctx context.Context, major int) error {
	if made := s.home.major(); made != 0 {
		if major != 0 && major != made {
			return fmt.Errorf("data directory %s was made by PostgreSQL %d, not %d: remove it, or choose another directory", s.home.dir, made, major)
		}
		major = made
	}
	var err error
	if s.pg, err = findPostgres(ctx, s.cfg, major, s.cache, s.id); err != nil {
		return err
	}
	if err := s.home.prepare(ctx, s.cache, s.pg, s.id); err != nil {
		return err
	}
	s.log.path = filepath.Join(s.home.dir, "postgres.log")
	if err := os.Remove(s.log.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return onFreePort(func(port int) error {
		s.port = port
		return s.launch(ctx)
	})
}

// errPortTaken means that another program was faster to listen on a port.
var errPortTaken = errors.New("port is taken")

// onFreePort calls launch with a free port, and with another one when that was
// taken in the meantime.
func onFreePort(launch func(port int) error) error {
	for try := 1; ; try++ {
		port, err := freePort()
		if err != nil {
			return err
		}
		if err = launch(port); err == nil || !errors.Is(err, errPortTaken) || try == 10 {
			return err
		}
	}
}

// launch starts the postmaster and waits until it accepts connections. The
// caller holds mu.
func (s *Server) launch(ctx context.Context) error {
	out, err := s.log.open()
	if err != nil {
		return err
	}
	defer out.Close()
	args := []string{"-D", s.home.data()}
	for _, key := range slices.Sorted(maps.Keys(s.cfg.Settings)) {
		args = append(args, "-c", key+"="+s.cfg.Settings[key])
	}
	args = append(args,
		"-c", "listen_addresses=127.0.0.1",
		"-c", "port="+strconv.Itoa(s.port),
		"-c", "unix_socket_directories=",
		"-c", "logging_collector=off",
		"-c", "log_destination=stderr")
	cmd := exec.Command(s.pg.program("postgres"), args...)
	cmd.Dir = s.home.dir
	cmd.Stdout, cmd.Stderr = out, out
	// At our death the postmaster shuts down at once; the next start recovers.
	proc, err := spawn(cmd, s.id, syscall.SIGQUIT)
	if err != nil {
		return err
	}
	s.proc = proc
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.proc.awaitReady(ctx, s.probe); err != nil {
		s.proc.end(stopGrace, syscall.SIGQUIT)
		text := s.log.text()
		if strings.Contains(text, "Address already in use") {
			return fmt.Errorf("start PostgreSQL on port %d: %w", s.port, errPortTaken)
		}
		return fmt.Errorf("start PostgreSQL %s: %w%s", s.pg.version, err, lastLines(text))
	}
	s.cfg.Log.InfoContext(ctx, "postgresql started", "version", s.pg.version, "port", s.port, "pid", s.proc.pid(), "dir", s.home.dir)
	return nil
}

// probe looks whether our server, and not another one, answers on the port.
func (s *Server) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	var dir string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&dir); err != nil {
		return err
	}
	if dir != s.home.data() {
		return fmt.Errorf("another server answers on port %d", s.port)
	}
	return nil
}

// connect opens a connection that leaves nothing prepared on the server.
func connect(ctx context.Context, url string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	cfg.RuntimeParams = nil
	return pgx.ConnectConfig(ctx, cfg)
}

// hangUp closes a connection, politely if there is time.
func hangUp(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// URL returns the address of a database of the server, for its superuser pith.
func (s *Server) URL(database string) string { return address(s.port, database, "") }

func address(port int, database, query string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.User(role),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable" + query,
	}
	return u.String()
}

// Port returns the port on 127.0.0.1. It stays the same over restarts.
func (s *Server) Port() int { return s.port }

// Version returns the server's full version, such as 15.18.
func (s *Server) Version() string { return s.pg.version }

// Major returns the server's major version, such as 15.
func (s *Server) Major() int { return s.pg.major }

// LogFile returns the path of the server's log. It is gone once an ephemeral
// server has stopped.
func (s *Server) LogFile() string { return s.log.path }

// PID returns the process number of the postmaster, 0 while it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || s.proc.exited() {
		return 0
	}
	return s.proc.pid()
}

// Done returns a channel that is closed when the postmaster that now runs has
// exited, for whatever reason. A restart brings a new channel.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.done
}

// CreateDatabase makes an empty database. It is no error if it exists.
func (s *Server) CreateDatabase(ctx context.Context, name string) error {
	conn, err := connect(ctx, s.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	defer hangUp(ctx, conn)
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	return nil
}

// Restart stops the server, if it runs, and starts it on the same port and data.
// An immediate stop is what a crash looks like: no checkpoint, and a recovery.
func (s *Server) Restart(ctx context.Context, immediate bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("restart PostgreSQL: the server was stopped for good")
	}
	if immediate {
		s.proc.end(stopGrace, syscall.SIGQUIT)
	} else {
		s.proc.end(stopGrace, syscall.SIGINT, syscall.SIGQUIT)
	}
	return s.launch(ctx)
}

// Kill stops the server as a crash would, and keeps its data for a Restart.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc.end(stopGrace, syscall.SIGQUIT)
}

// Stop ends the server's poolers and then the server, cutting off its clients,
// and waits for both. An ephemeral server's data are removed. Stopping twice is
// no error.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	s.stopped = true
	for _, b := range s.bouncers {
		b.Stop()
	}
	if s.home.ephemeral {
		// There is nothing that a checkpoint could save.
		s.proc.end(stopGrace, syscall.SIGQUIT)
	} else {
		s.proc.end(stopGrace, syscall.SIGINT, syscall.SIGQUIT)
	}
	s.cfg.Log.Info("postgresql stopped", "port", s.port, "dir", s.home.dir)
	if err := s.home.close(); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return nil
}
