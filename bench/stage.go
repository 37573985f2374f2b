package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/pool"
)

// serverConns is the size of the poolers' pools.
const serverConns = 20

// mostClients is how many clients PgBouncer takes: 10,000 workers, each of which beats on a connection of
// its own, and their pools.
const mostClients = 12_000

// The ways to the server, by the names that the reports show.
const (
	viaPooler  = "PgBouncer"
	direct     = "direct"
	viaStandIn = "stand-in for RDS Proxy"
)

// A stage is a PostgreSQL server and the poolers before it.
type stage struct {
	server *localpg.Server
	// admin is a direct connection for what is not measured.
	admin   *pgx.Conn
	paths   []path
	standIn *standInProcess
	// versions are those of the programs, for the report.
	versions []string

	databases int               // made so far
	bases     map[string]string // the database of each base that was made
	filled    map[string]string // what was filled for the contest that is on, by base, filling and backlog
}

// A path is a way to the server.
type path struct {
	name string
	url  func(database string) string
	pid  int // the pooler's process, 0 if there is none
	// noNamed says why named statements cannot be measured, none why nothing can; else empty.
	noNamed, none string
}

// openStage starts the servers. They end with close.
func openStage(ctx context.Context, settings map[string]string, bouncer string, progress io.Writer) (_ *stage, err error) {
	server, err := localpg.Start(ctx, localpg.Config{Settings: settings, Progress: progress})
	if err != nil {
		return nil, err
	}
	s := &stage{
		server: server, versions: []string{"PostgreSQL " + server.Version()},
		bases: map[string]string{}, filled: map[string]string{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.admin, err = pgx.Connect(ctx, server.URL("postgres")); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	pooled, err := s.openBouncer(ctx, bouncer)
	if err != nil {
		return nil, err
	}
	if s.standIn, err = startStandIn(server.URL("postgres"), progress); err != nil {
		return nil, err
	}
	s.paths = []path{{name: direct, url: server.URL}, pooled, s.standIn.path()}
	return s, nil
}

// preload restarts the server with a library, the extension of that name, which it makes in the database of
// admin. It reports whether the library is installed.
func (s *stage) preload(ctx context.Context, library string) (installed bool, err error) {
	err = s.admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", library).Scan(&installed)
	if err != nil || !installed {
		return false, err
	}
	if _, err := s.admin.Exec(ctx, "ALTER SYSTEM SET shared_preload_libraries = "+library); err != nil {
		return false, fmt.Errorf("preload %s: %w", library, err)
	}
	_ = s.admin.Close(ctx) // the server ends next
	if err := s.server.Restart(ctx, false); err != nil {
		return false, err
	}
	if s.admin, err = pgx.Connect(ctx, s.server.URL("postgres")); err != nil {
		return false, fmt.Errorf("connect: %w", err)
	}
	if _, err := s.admin.Exec(ctx, "CREATE EXTENSION "+library); err != nil {
		return false, fmt.Errorf("create extension: %w", err)
	}
	return true, nil
}

func (s *stage) close(ctx context.Context) error {
	if s.admin != nil {
		_ = s.admin.Close(context.WithoutCancel(ctx)) // the server ends next
	}
	var err error
	if s.standIn != nil {
		err = s.standIn.stop()
	}
	return errors.Join(err, s.server.Stop())
}

// openBouncer starts PgBouncer in transaction mode, tracking named statements where it can.
func (s *stage) openBouncer(ctx context.Context, program string) (path, error) {
	p := path{name: viaPooler}
	b, err := s.server.StartBouncer(ctx, localpg.BouncerConfig{Program: program, PoolSize: serverConns, MaxClients: mostClients})
	if errors.Is(err, localpg.ErrNoPgBouncer) {
		p.none = "needs PgBouncer"
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.url, p.pid = b.URL, b.PID()
	console, err := pgx.Connect(ctx, b.AdminURL())
	if err != nil {
		return p, fmt.Errorf("connect to PgBouncer's console: %w", err)
	}
	defer func() { _ = console.Close(context.WithoutCancel(ctx)) }()
	var version string
	if err := console.QueryRow(ctx, "SHOW VERSION").Scan(&version); err != nil {
		return p, fmt.Errorf("ask PgBouncer for its version: %w", err)
	}
	s.versions = append(s.versions, version)
	tracks, err := tracksNamed(version)
	switch {
	case err != nil:
		return p, err
	case !tracks:
		p.noNamed = "needs PgBouncer 1.21"
		return p, nil
	}
	if _, err := console.Exec(ctx, "SET max_prepared_statements = 200"); err != nil {
		return p, fmt.Errorf("make PgBouncer track statements: %w", err)
	}
	return p, nil
}

// tracksNamed tells whether a version of PgBouncer can track named statements.
func tracksNamed(version string) (bool, error) {
	var major, minor int
	if _, err := fmt.Sscanf(version, "PgBouncer %d.%d", &major, &minor); err != nil {
		return false, fmt.Errorf("version %q of PgBouncer: %w", version, err)
	}
	return major > 1 || major == 1 && minor >= 21, nil
}

// path is that of a name; "" is the pooler's.
func (s *stage) path(name string) path {
	for _, p := range s.paths {
		if p.name == cmp.Or(name, viaPooler) {
			return p
		}
	}
	panic("no path " + name)
}

// basePith is the base of those that run Pith.
const basePith = "pith"

// bases make what the databases of a contestant hold before they are filled.
var bases = map[string]func(ctx context.Context, p *pgxpool.Pool) error{
	basePith: func(ctx context.Context, p *pgxpool.Pool) error { return migrate.Up(ctx, p, nil) },
}

// create makes a database, empty or as a copy of another.
func (s *stage) create(ctx context.Context, template string) (string, error) {
	s.databases++
	name := fmt.Sprintf("bench_%d", s.databases)
	if _, err := s.admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		return "", fmt.Errorf("create database: %w", err)
	}
	return name, nil
}

func (s *stage) drop(ctx context.Context, name string) error {
	if _, err := s.admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	return nil
}

// make creates a database from another and does something there, past the pooler.
func (s *stage) make(ctx context.Context, template string, do func(context.Context, *pgxpool.Pool) error) (string, error) {
	name, err := s.create(ctx, template)
	if err != nil {
		return "", err
	}
	p, err := pool.Open(ctx, s.server.URL(name), pool.Config{})
	if err != nil {
		return "", err
	}
	defer p.Close()
	if err := do(ctx, p); err != nil {
		return "", errors.Join(err, s.drop(context.WithoutCancel(ctx), name))
	}
	return name, nil
}

// template is what the databases of a contestant are copied from.
func (s *stage) template(ctx context.Context, c contestant) (string, error) {
	base := cmp.Or(c.base, basePith)
	if s.bases[base] == "" {
		do, ok := bases[base]
		if !ok {
			return "", fmt.Errorf("no base %q", base)
		}
		name, err := s.make(ctx, "template0", do)
		if err != nil {
			return "", fmt.Errorf("make %s: %w", base, err)
		}
		s.bases[base] = name
	}
	if c.fill.do == nil {
		return s.bases[base], nil
	}
	key := fmt.Sprintf("%s/%s/%d", base, c.fill.name, c.backlog)
	if s.filled[key] == "" {
		name, err := s.make(ctx, s.bases[base], func(ctx context.Context, p *pgxpool.Pool) error {
			if err := c.fill.do(ctx, p, c.backlog); err != nil {
				return err
			}
			_, err := p.Exec(ctx, "VACUUM ANALYZE")
			return err
		})
		if err != nil {
			return "", fmt.Errorf("dispatch the backlog: %w", err)
		}
		s.filled[key] = name
	}
	return s.filled[key], nil
}

// forget drops what was filled for a contest.
func (s *stage) forget(ctx context.Context, err error) error {
	for key, name := range s.filled {
		err = errors.Join(err, s.drop(context.WithoutCancel(ctx), name))
		delete(s.filled, key)
	}
	return err
}

// database makes one for a run, and starts from a checkpoint: each run pays alike for the page images
// that follow one.
func (s *stage) database(ctx context.Context, c contestant) (name string, drop func(context.Context) error, err error) {
	template, err := s.template(ctx, c)
	if err != nil {
		return "", nil, err
	}
	if name, err = s.create(ctx, template); err != nil {
		return "", nil, err
	}
	drop = func(ctx context.Context) error { return s.drop(ctx, name) }
	if _, err := s.admin.Exec(ctx, "CHECKPOINT"); err != nil {
		return "", nil, errors.Join(fmt.Errorf("checkpoint: %w", err), drop(ctx))
	}
	return name, drop, nil
}

// disconnect ends the server connections of a database and answers how many transactions it has seen.
// They are complete only then: a server process tells them at its end, or once in a while.
func (s *stage) disconnect(ctx context.Context, database string) (transactions int, err error) {
	const limit = 10_000 // ms
	var gone bool
	err = s.admin.QueryRow(ctx, `SELECT coalesce(bool_and(pg_terminate_backend(pid, $2)), true) FROM pg_stat_activity
		WHERE datname = $1 AND backend_type = 'client backend'`, database, limit).Scan(&gone)
	if err != nil {
		return 0, fmt.Errorf("end server connections: %w", err)
	}
	err = s.admin.QueryRow(ctx, "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1", database).Scan(&transactions)
	if err != nil {
		return 0, fmt.Errorf("read transactions: %w", err)
	}
	return transactions, nil
}
