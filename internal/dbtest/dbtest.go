// Package dbtest gives each test a PostgreSQL database of its own, behind a real
// pooler.
//
// When a test ends, the text of each statement that its pool has sent is inspected
// for what the pooler contract forbids, in every run but those with the race
// detector, which would make that slow.
//
// A test binary that needs it has one PostgreSQL and one pooler, started at the
// first call of [New] and stopped by [Main]. A database is a clone of a migrated
// template, lives in an odd time zone, and is dropped when its test ends, after the
// invariants were checked in it.
//
// The servers are quick, not safe: nothing is flushed to disk.
//
// The environment chooses what the tests run against:
//
//   - PITH_TEST_POOLER: pgbouncer (transaction mode, the default), statement
//     (PgBouncer's statement mode), rdsproxy (the stand-in for Amazon RDS Proxy,
//     where a pin fails the test), container (the image of deploy/pgbouncer, which
//     PITH_TEST_POOLER_PROGRAM runs), or direct to do without;
//   - PITH_TEST_POOL_SIZE: the pooler's server connections for each database,
//     default 4, few on purpose;
//   - PITH_TEST_POSTGRES: PostgreSQL's major version or newest, default the
//     system's;
//   - PITH_TEST_DIR: where the databases are kept, default memory if there is
//     plenty, else the user's cache directory.
package dbtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/internal/pinning"
	"github.com/pithworks/pith/pool"
)

// TimeZone is the servers' time zone: far from UTC, off by three quarters of an
// hour, and with daylight saving, so that code that leaves the zone to chance
// fails.
const TimeZone = "Pacific/Chatham"

// startTimeout bounds the start of the servers, which may have to be installed.
const startTimeout = 5 * time.Minute

// cleanupTimeout bounds what is done after a test.
const cleanupTimeout = 30 * time.Second

// serverSettings trade safety for speed.
var serverSettings = map[string]string{
	"fsync":              "off",
	"synchronous_commit": "off",
	"full_page_writes":   "off",
	"max_connections":    "400",
	"shared_buffers":     "128MB",
	"max_wal_size":       "512MB",
	"timezone":           TimeZone,
	"log_timezone":       "UTC",
}

// Services are a PostgreSQL server and the pooler before it.
type Services struct {
	// Server is the PostgreSQL server.
	Server *localpg.Server
	// Pooler stands before it; nil if the tests run without one.
	Pooler Pooler

	template sync.Mutex // held while the template is made
	migrated bool
}

// shared are the services of the test binary.
var shared struct {
	sync.Mutex
	services *Services
	err      error
}

// databases numbers the databases of the test binary.
var databases atomic.Int64

// Main is a package's TestMain: it runs the tests, stops the servers, and fails
// if goroutines are left over. It does not return.
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	s := shared.services
	shared.Unlock()
	if s != nil {
		if err := s.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "dbtest:", err)
			code = max(code, 1)
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "dbtest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// poolSize returns how many server connections the pooler has for each database.
func poolSize() (int, error) {
	v := cmp.Or(os.Getenv("PITH_TEST_POOL_SIZE"), "4")
	size, err := strconv.Atoi(v)
	if err != nil || size < 1 {
		return 0, fmt.Errorf("PITH_TEST_POOL_SIZE=%s: use a positive number", v)
	}
	return size, nil
}

// start runs a server and, if wanted, a pooler.
func start(settings map[string]string) (*Services, error) {
	all := maps.Clone(serverSettings)
	maps.Copy(all, settings)
	// The servers outlive the test that happens to start them.
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	server, err := localpg.Start(ctx, localpg.Config{
		Version:  os.Getenv("PITH_TEST_POSTGRES"),
		RunDir:   cmp.Or(os.Getenv("PITH_TEST_DIR"), memoryDir()),
		Settings: all,
		Progress: os.Stderr,
	})
	if err != nil {
		return nil, fmt.Errorf("start servers: %w", err)
	}
	s := &Services{Server: server}
	if s.Pooler, err = startPooler(ctx, server); err != nil {
		_ = server.Stop()
		return nil, fmt.Errorf("start servers: %w", err)
	}
	return s, nil
}

// stop ends both for good.
func (s *Services) stop() error {
	if s.Pooler == nil {
		return s.Server.Stop()
	}
	s.Pooler.Stop()
	var err error
	if p, ok := s.Pooler.(*proxy); ok {
		// What belongs to no test, or came after its end.
		err = p.findings.left()
	}
	return errors.Join(err, s.Server.Stop())
}

// memoryDir returns a directory in memory, or nothing if there is none with room
// for several servers. A clone consists of hundreds of files: in memory it takes
// a tenth of the time.
func memoryDir() string {
	const shm, enough = "/dev/shm", 4 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(shm, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < enough {
		return ""
	}
	return filepath.Join(shm, "pith-test-"+strconv.Itoa(os.Geteuid()))
}

// Shared returns the services of the test binary, for tests that look at them.
// A test must not stop them: see [Private].
func Shared(t testing.TB) *Services {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.services == nil && shared.err == nil {
		shared.services, shared.err = start(nil)
	}
	if shared.err != nil {
		t.Fatalf("dbtest: %v", shared.err)
	}
	return shared.services
}

// Private returns services of the test's own, which it may stop and start, with
// further PostgreSQL settings if it needs them (nil: none). They end with the
// test.
func Private(t testing.TB, settings map[string]string) *Services {
	t.Helper()
	s, err := start(settings)
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("dbtest: %v", err)
		}
	})
	return s
}

// A DB is the database of one test.
type DB struct {
	// Name is the database's name.
	Name string

	// URL is the address that code under test uses: through the pooler.
	URL string

	// DirectURL is the address that goes to PostgreSQL itself.
	DirectURL string

	// Pool is a pool on URL as production code would configure it: no named
	// statements, no startup parameters. It connects when it is used.
	Pool *pgxpool.Pool

	// Direct is a pool on DirectURL, for the test's own eyes and hands. It connects
	// when it is used.
	Direct *pgxpool.Pool

	// Log writes to the test's log, and to nowhere once the test has ended.
	Log *slog.Logger

	// Services are what the database lives on.
	Services *Services

	// sent is what went through Pool.
	sent pinning.Tracer
}

// New returns a migrated database on the shared services.
func New(t testing.TB) *DB {
	t.Helper()
	return Shared(t).New(t)
}

// Empty returns a database without a schema on the shared services. No
// invariants are checked in it. It is for migrations, which are transactions: past
// a pooler that allows none, its URL is the direct one.
func Empty(t testing.TB) *DB {
	t.Helper()
	return Shared(t).open(t, "template0", false)
}

// templateName is the database that the tests' ones are cloned from.
const templateName = "pith_template"

// New returns a migrated database on the services.
func (s *Services) New(t testing.TB) *DB {
	t.Helper()
	if err := s.makeTemplate(t.Context()); err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	return s.open(t, templateName, true)
}

// makeTemplate makes the template unless it has been made.
func (s *Services) makeTemplate(ctx context.Context) error {
	s.template.Lock()
	defer s.template.Unlock()
	if s.migrated {
		return nil
	}
	if err := s.Server.CreateDatabase(ctx, templateName); err != nil {
		return fmt.Errorf("make template: %w", err)
	}
	p, err := pool.Open(ctx, s.Server.URL(templateName), pool.Config{})
	if err != nil {
		return fmt.Errorf("make template: %w", err)
	}
	defer p.Close()
	if err := migrate.Up(ctx, p, nil); err != nil {
		return fmt.Errorf("make template: %w", err)
	}
	s.migrated = true
	return nil
}

// open clones a database from a template and drops it when the test ends.
func (s *Services) open(t testing.TB, template string, migrated bool) *DB {
	t.Helper()
	name := databaseName(t)
	clone := fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", name, template)
	if s.Server.Major() >= 15 {
		clone += " STRATEGY " + cloneStrategy
	}
	if err := s.admin(t.Context(), clone); err != nil {
		t.Fatalf("dbtest: clone database: %v", err)
	}
	out := &testOutput{t: t}
	db := &DB{
		Name:      name,
		DirectURL: s.Server.URL(name),
		Log:       slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Services:  s,
	}
	db.URL = db.DirectURL
	if s.Pooler != nil && (migrated || Transactions()) {
		db.URL = s.Pooler.URL(name)
	}
	t.Cleanup(func() {
		out.end()
		// The test's own context has ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupTimeout)
		defer cancel()
		if db.Pool != nil {
			db.Pool.Close()
		}
		db.checkSent(t)
		s.checkPins(t, name)
		if db.Direct != nil {
			if migrated {
				checkInvariants(ctx, t, db.Direct)
			}
			db.Direct.Close()
		}
		if err := s.admin(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("dbtest: drop database: %v", err)
		}
	})
	db.Pool = newPool(t, db.URL, &db.sent)
	db.Direct = newPool(t, db.DirectURL, nil)
	return db
}

// cloneStrategy copies files: with nothing flushed that takes less time than
// writing the blocks through the log.
const cloneStrategy = "file_copy"

// admin runs one statement outside of the tests' databases. The names in it are
// made here.
func (s *Services) admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.Server.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

// databaseName returns a name that needs no quoting and shows whose it is.
func databaseName(t testing.TB) string {
	const most = 63 // PostgreSQL's limit
	name := fmt.Sprintf("t%d_%s", databases.Add(1), strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, t.Name()))
	return name[:min(len(name), most)]
}

// newPool opens a pool as production code would.
func newPool(t testing.TB, url string, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	p, err := pool.Open(context.WithoutCancel(t.Context()), url, pool.Config{MaxConns: 16, Tracer: tracer})
	if err != nil {
		t.Fatalf("dbtest: %v", err)
	}
	return p
}

// testOutput writes to a test's log until the test ends; a late goroutine then
// writes to nowhere instead of crashing the test binary.
type testOutput struct {
	mu    sync.Mutex
	t     testing.TB
	ended bool
}

func (o *testOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return len(p), nil
	}
	return o.t.Output().Write(p)
}

func (o *testOutput) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
}

// UntilBlocked waits until a statement on the database of a test waits for a lock that another one holds.
func (db *DB) UntilBlocked(t testing.TB) {
	t.Helper()
	Until(t, "a statement waits for another", func(ctx context.Context) (blocked bool, err error) {
		const text = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0)"
		return blocked, db.Direct.QueryRow(ctx, text).Scan(&blocked)
	})
}
