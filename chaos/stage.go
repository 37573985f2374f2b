package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/pithworks/pith/chaos/judge"
	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/internal/rdsproxy"
	"github.com/pithworks/pith/pool"
)

const (
	database    = "chaos"
	serverConns = 20
	standInUser = "standin"
)

// stage is a PostgreSQL, what stands before it, and the networks of the fleet.
type stage struct {
	server  *localpg.Server
	bouncer *localpg.Bouncer
	standIn *standIn
	// small is where the server's data are, if that is a file system of their own; else "".
	small string
	// direct goes past everything, for what looks and breaks.
	direct *pgxpool.Pool
	began  time.Time // by the database's clock, when the witness's was 0

	networks *toxiproxy.ApiServer
	pins     []rdsproxy.Finding
	mu       sync.Mutex
}

// standIn is the stand-in for Amazon RDS Proxy, which can crash and come back.
type standIn struct {
	cfg rdsproxy.Config

	mu      sync.Mutex
	running *rdsproxy.Running
	addr    string
}

func (s *standIn) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return nil
	}
	r, err := rdsproxy.Start(ctx, s.addr, s.cfg)
	if err != nil {
		return err
	}
	s.running, s.addr = r, r.Addr().String()
	return nil
}

func (s *standIn) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		_ = s.running.Stop() // it crashes
		s.running = nil
	}
}

// smallSpace is the size of the file system for the server's data, in bytes.
const smallSpace = 1 << 30

// openStage starts everything.
func openStage(ctx context.Context, progress io.Writer) (_ *stage, err error) {
	s := &stage{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	cfg := localpg.Config{Progress: progress, Settings: map[string]string{
		"max_connections": "120", "max_wal_size": "96MB", "min_wal_size": "32MB", "wal_keep_size": "0", "log_min_messages": "warning",
	}}
	if s.small, err = mountSmall(); err != nil {
		fmt.Fprintf(progress, "chaos: the disk will not be filled: %v\n", err)
	}
	cfg.RunDir = s.small // or the usual one
	if s.server, err = localpg.Start(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.server.CreateDatabase(ctx, database); err != nil {
		return nil, err
	}
	if s.direct, err = pool.Open(ctx, s.server.URL(database), pool.Config{MaxConns: 30}); err != nil {
		return nil, err
	}
	if err := migrate.Up(ctx, s.direct, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	for _, statement := range append(history, fmt.Sprintf("CREATE ROLE %s LOGIN SUPERUSER PASSWORD '%s'", standInUser, standInUser)) {
		if _, err := s.direct.Exec(ctx, statement); err != nil {
			return nil, fmt.Errorf("prepare database: %w", err)
		}
	}
	if s.bouncer, err = s.server.StartBouncer(ctx, localpg.BouncerConfig{PoolSize: serverConns}); err != nil {
		return nil, err
	}
	s.standIn = &standIn{cfg: rdsproxy.Config{
		Upstream: s.server.URL(database), Users: map[string]string{standInUser: standInUser}, PoolSize: serverConns,
		OnFinding: func(f rdsproxy.Finding) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.pins = append(s.pins, f)
		},
	}}
	if err := s.standIn.start(ctx); err != nil {
		return nil, err
	}
	zerolog.SetGlobalLevel(zerolog.Disabled) // the toxics log each packet
	s.networks = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	return s, nil
}

// history has the database keep each change of a task's state, and what schedules have dispatched for when.
var history = []string{
	`CREATE TABLE chaos_change (n bigint GENERATED ALWAYS AS IDENTITY, task uuid NOT NULL, old text NOT NULL, new text NOT NULL,
		at timestamptz NOT NULL DEFAULT clock_timestamp())`,
	`CREATE FUNCTION chaos_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO chaos_change (task, old, new) VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.state::text ELSE '' END, NEW.state::text);
		RETURN NULL;
	END $$`,
	`CREATE TABLE chaos_fired (task uuid NOT NULL, due timestamptz NOT NULL)`,
	`CREATE FUNCTION chaos_fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO chaos_fired VALUES (NEW.last_task, OLD.next_dispatch);
		RETURN NULL;
	END $$`,
	`CREATE TRIGGER chaos_fired AFTER UPDATE ON task_schedule FOR EACH ROW WHEN (OLD.last_task IS DISTINCT FROM NEW.last_task) EXECUTE FUNCTION chaos_fired()`,
	`CREATE TRIGGER chaos_insert AFTER INSERT ON task FOR EACH ROW EXECUTE FUNCTION chaos_change()`,
	`CREATE TRIGGER chaos_update AFTER UPDATE OF state ON task FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION chaos_change()`,
}

// mountSmall makes a file system of its own, which root alone can, and answers where it is.
func mountSmall() (dir string, err error) {
	if os.Geteuid() != 0 {
		return "", errors.New("only root can make a small file system")
	}
	if dir, err = os.MkdirTemp("", "pith-chaos-data-"); err != nil {
		return "", err
	}
	err = os.Chmod(dir, 0o755) // the server runs as another user
	if err == nil {
		err = syscall.Mount("pith-chaos", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", smallSpace))
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("mount %s: %w", dir, err), os.Remove(dir))
	}
	return dir, nil
}

func (s *stage) close() error {
	var err error
	if s.direct != nil {
		s.direct.Close()
	}
	if s.standIn != nil {
		s.standIn.stop()
	}
	if s.server != nil {
		err = s.server.Stop()
	}
	if s.small != "" {
		err = errors.Join(err, syscall.Unmount(s.small, syscall.MNT_DETACH), os.Remove(s.small))
	}
	return err
}

// way is the address of the database through one of the poolers, which stays the same, and the settings of URL
// that clients need for it.
func (s *stage) way(standIn bool) (host, user string) {
	if standIn {
		return s.standIn.addr, standInUser + ":" + standInUser
	}
	return fmt.Sprintf("127.0.0.1:%d", s.bouncer.Port()), "pith"
}

// found reads what there is to judge by in the database.
func (s *stage) found(ctx context.Context, r *judge.Run) error {
	rows, err := s.direct.Query(ctx, `SELECT t.id, t.state::text, t.attempt, k.max_attempts::int, t.created_at, coalesce(t.args->>'schedule', ''), f.due,
			t.seq, t.reserved_resources_record, coalesce(extract(epoch FROM t.not_before - $1::timestamptz), 0)::float8
		FROM task t JOIN task_kind k ON k.id = t.kind LEFT JOIN chaos_fired f ON f.task = t.id ORDER BY t.id`, s.began)
	if err != nil {
		return fmt.Errorf("read tasks: %w", err)
	}
	for rows.Next() {
		var t judge.Task
		var id [16]byte
		var due *time.Time
		var after float64
		if err := rows.Scan(&id, &t.State, &t.Attempt, &t.MaxAttempts, &t.CreatedAt, &t.Schedule, &due, &t.Place, &t.Reserved, &after); err != nil {
			rows.Close()
			return fmt.Errorf("read tasks: %w", err)
		}
		t.ID = uuid.UUID(id)
		if due != nil {
			t.Due = *due
		}
		t.NotBefore = time.Duration(after * float64(time.Second))
		r.Tasks = append(r.Tasks, t)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read tasks: %w", err)
	}
	rows, err = s.direct.Query(ctx, `SELECT task, old, new, extract(epoch FROM at - $1::timestamptz)::float8 FROM chaos_change ORDER BY n`, s.began)
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	for rows.Next() {
		var c judge.Change
		var id [16]byte
		var at float64
		if err := rows.Scan(&id, &c.From, &c.To, &at); err != nil {
			rows.Close()
			return fmt.Errorf("read changes: %w", err)
		}
		c.Task, c.At = uuid.UUID(id), time.Duration(at*float64(time.Second))
		r.Changes = append(r.Changes, c)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	return nil
}
