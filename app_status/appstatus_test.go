package appstatus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
)

var types = []appstatus.Type{appstatus.API, appstatus.Content, appstatus.Worker}

func register(t *testing.T, pool *pgxpool.Pool, cfg appstatus.Config) *appstatus.App {
	t.Helper()
	app, err := appstatus.New(pool, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return app
}

func list(t *testing.T, d *dbtest.DB, typ appstatus.Type) []appstatus.Status {
	t.Helper()
	l, err := appstatus.List(t.Context(), d.Pool, typ, 100, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func exec(t *testing.T, d *dbtest.DB, sql string, args ...any) {
	t.Helper()
	if _, err := d.Direct.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// hold makes a task that this process runs.
func hold(t *testing.T, d *dbtest.DB, app uuid.UUID) uuid.UUID {
	t.Helper()
	var id uuid.UUID
	if err := d.Direct.QueryRow(t.Context(), `INSERT INTO task
		(id, kind, state, app_lock, started_at, unblocked_at, blocked_on, attempt, reserved_resources_record, logging_cid, args)
		VALUES (gen_random_uuid(), 1, 'running', $1, clock_timestamp(), now(), 0, 1, '{}', '', 'null') RETURNING id`, app).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestConfigIsCheckedAndHasPulpsDefaults(t *testing.T) {
	t.Parallel()
	for typ, ttl := range map[appstatus.Type]time.Duration{
		appstatus.API: 120 * time.Second, appstatus.Content: 30 * time.Second, appstatus.Worker: 30 * time.Second,
	} {
		a, err := appstatus.New(nil, appstatus.Config{Type: typ})
		if err != nil || a.TTL() != ttl || a.Online() != 1 {
			t.Errorf("%s: ttl %s, %d online, %v", typ, a.TTL(), a.Online(), err)
		}
	}
	for _, tt := range []struct {
		cfg  appstatus.Config
		says string
	}{
		{appstatus.Config{}, `""`},
		{appstatus.Config{Type: "resource_manager"}, `"resource_manager"`},
		{appstatus.Config{Type: appstatus.Worker, TTL: -time.Second}, "-1s"},
	} {
		if _, err := appstatus.New(nil, tt.cfg); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("got %v, should say %s", err, tt.says)
		}
	}
}

func TestNameTemplateIsExpanded(t *testing.T) {
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	short, _, _ := strings.Cut(host, ".")
	for template, want := range map[string]string{
		"":                    fmt.Sprintf("%d@%s", os.Getpid(), short),
		"w-{pid}":             fmt.Sprintf("w-%d", os.Getpid()),
		"{fqdn}/{hostname}":   host + "/" + short,
		"{pid}{pid}{unknown}": fmt.Sprintf("%d%d{unknown}", os.Getpid(), os.Getpid()),
		"plain":               "plain",
	} {
		a, err := appstatus.New(nil, appstatus.Config{Type: appstatus.Worker, NameTemplate: template})
		if err != nil || a.Name() != want {
			t.Errorf("%q became %q, want %q; %v", template, a.Name(), want, err)
		}
	}
}

func TestEachTypeIsRegisteredListedAndUnregistered(t *testing.T) {
	t.Parallel()
	for _, typ := range types {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			app := register(t, d.Pool, appstatus.Config{
				Type: typ, NameTemplate: "me", Versions: map[string]string{"core": "3.117.0"}, TaskNames: []string{"b", "a"}, TTL: 90 * time.Second,
			})
			got := list(t, d, typ)
			if len(got) != 1 {
				t.Fatalf("listed %v", got)
			}
			want := appstatus.Status{
				ID: app.ID(), Type: typ, Name: "me", Versions: map[string]string{"core": "3.117.0"}, TaskNames: []string{"b", "a"},
				TTL: 90 * time.Second, Online: true, CreatedAt: got[0].CreatedAt, LastHeartbeat: got[0].LastHeartbeat,
			}
			if diff := cmp.Diff(want, got[0]); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if time.Since(got[0].LastHeartbeat).Abs() > time.Minute || got[0].CreatedAt.Location() != time.UTC {
				t.Errorf("times %s, %s", got[0].CreatedAt, got[0].LastHeartbeat)
			}
			for _, other := range types {
				if l := list(t, d, other); (other == typ) != (len(l) == 1) {
					t.Errorf("among %s: %v", other, l)
				}
			}
			if l := list(t, d, ""); len(l) != 1 {
				t.Errorf("among all: %v", l)
			}
			// Registering again is the same registration.
			if err := app.Register(t.Context()); err != nil || len(list(t, d, typ)) != 1 || app.Online() != 1 {
				t.Errorf("again: %v, %d online", err, app.Online())
			}
			if err := app.Unregister(t.Context()); err != nil || len(list(t, d, "")) != 0 {
				t.Errorf("unregister: %v", err)
			}
			if err := app.Unregister(t.Context()); err != nil {
				t.Errorf("unregister again: %v", err)
			}
			select {
			case <-app.Lost():
			default:
				t.Error("an unregistered app is not lost")
			}
		})
	}
}

func TestZeroConfigIsStoredAsNothing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	register(t, d.Pool, appstatus.Config{Type: appstatus.Content})
	got := list(t, d, "")[0]
	if len(got.Versions) != 0 || len(got.TaskNames) != 0 || got.TTL != 30*time.Second {
		t.Errorf("%+v", got)
	}
}

func TestRegisterCountsItsTypeThatIsOnline(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for want := 1; want <= 3; want++ {
		if app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker}); app.Online() != want {
			t.Errorf("%d online, want %d", app.Online(), want)
		}
	}
	exec(t, d, "UPDATE app_status SET last_heartbeat = now() - interval '1 hour' WHERE id = (SELECT min(id::text)::uuid FROM app_status)")
	exec(t, d, "UPDATE app_fleet SET counted_at = now() - interval '2 s'")
	if app := register(t, d.Pool, appstatus.Config{Type: appstatus.API}); app.Online() != 1 {
		t.Errorf("%d api processes online", app.Online())
	}
	if app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker}); app.Online() != 3 {
		t.Errorf("%d workers online", app.Online())
	}
}

func TestListIsLatestFirstAndPages(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	var want []uuid.UUID
	for range 5 {
		want = append(want, register(t, d.Pool, appstatus.Config{Type: appstatus.Worker}).ID())
	}
	slices.Reverse(want)
	var got []uuid.UUID
	for offset := 0; offset < 6; offset += 2 {
		page, err := appstatus.List(t.Context(), d.Pool, appstatus.Worker, 2, offset)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page {
			got = append(got, s.ID)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestListTellsWhatAProcessHolds(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker})
	register(t, d.Pool, appstatus.Config{Type: appstatus.Worker})
	hold(t, d, app.ID())
	newest := hold(t, d, app.ID())
	canceling := hold(t, d, app.ID())
	exec(t, d, "UPDATE task SET state = 'canceling' WHERE id = $1", canceling)
	for _, s := range list(t, d, "") {
		switch {
		case s.ID == app.ID() && (s.Holding != 3 || s.CurrentTask == nil || *s.CurrentTask != newest):
			t.Errorf("holding %d, current %v, newest %s", s.Holding, s.CurrentTask, newest)
		case s.ID != app.ID() && (s.Holding != 0 || s.CurrentTask != nil):
			t.Errorf("the other holds %d, %v", s.Holding, s.CurrentTask)
		}
	}
}

func TestMissingProcessesOfEveryTypeAreSweptAndTheirTasksFreed(t *testing.T) {
	t.Parallel()
	for _, typ := range types {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			gone := register(t, d.Pool, appstatus.Config{Type: typ, NameTemplate: "gone", TTL: time.Minute})
			there := register(t, d.Pool, appstatus.Config{Type: typ, NameTemplate: "there", TTL: time.Hour})
			lost, kept := hold(t, d, gone.ID()), hold(t, d, there.ID())
			exec(t, d, "UPDATE app_status SET last_heartbeat = now() - interval '2 minutes'")
			for _, s := range list(t, d, typ) {
				if s.Online != (s.Name == "there") {
					t.Errorf("%s online: %t", s.Name, s.Online)
				}
			}
			swept, err := appstatus.Sweep(t.Context(), d.Pool)
			if err != nil || len(swept) != 1 || swept[0].ID != gone.ID() || swept[0].Name != "gone" || swept[0].Type != typ {
				t.Errorf("swept %+v, %v", swept, err)
			}
			var free, held bool
			if err := d.Direct.QueryRow(t.Context(), "SELECT (SELECT app_lock IS NULL AND state = 'running' FROM task WHERE id = $1), (SELECT app_lock = $3 FROM task WHERE id = $2)",
				lost, kept, there.ID()).Scan(&free, &held); err != nil || !free || !held {
				t.Errorf("freed %t, kept %t, %v", free, held, err)
			}
			if again, err := appstatus.Sweep(t.Context(), d.Pool); err != nil || again != nil {
				t.Errorf("swept again %v, %v", again, err)
			}
			// Freed tasks are ended by whoever sweeps; here nobody does.
			exec(t, d, "DELETE FROM task")
		})
	}
}

func TestManySweepersSweepEachProcessOnce(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	exec(t, d, `INSERT INTO app_status (id, app_type, name, ttl, last_heartbeat)
		SELECT gen_random_uuid(), 'worker', 'x', '1 s', now() - interval '1 hour' FROM generate_series(1, 250)`)
	var mu sync.Mutex
	seen := map[uuid.UUID]int{}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for {
				swept, err := appstatus.Sweep(t.Context(), d.Pool)
				if err != nil {
					t.Error(err)
					return
				}
				if len(swept) == 0 {
					return
				}
				mu.Lock()
				for _, s := range swept {
					seen[s.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// Those that stopped because others had all rows locked leave nothing behind either.
	if len(seen) != 250 || len(list(t, d, "")) != 0 {
		t.Errorf("%d swept, %d left", len(seen), len(list(t, d, "")))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was swept %d times", id, n)
		}
	}
}

func TestUnregisterFreesWhatTheAppHolds(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker})
	id := hold(t, d, app.ID())
	if err := app.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	var free bool
	if err := d.Direct.QueryRow(t.Context(), "SELECT app_lock IS NULL AND state = 'running' FROM task WHERE id = $1", id).Scan(&free); err != nil || !free {
		t.Errorf("freed %t, %v", free, err)
	}
}

func TestRegisterFailsForGoodWhereTheDatabaseRefuses(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	app, err := appstatus.New(d.Pool, appstatus.Config{Type: appstatus.Worker, NameTemplate: "a\x00b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err == nil {
		t.Error("no error")
	}
}

// tracer tells of beats that have succeeded.
type tracer struct{ beats chan struct{} }

type tracedQuery struct{}

func (tr tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, tracedQuery{}, strings.Contains(d.SQL, "-- name: AppStatusBeat "))
}

func (tr tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryEndData) {
	if beat, ok := ctx.Value(tracedQuery{}).(bool); ok && beat && d.Err == nil {
		select {
		case tr.beats <- struct{}{}:
		default:
		}
	}
}

// reopen opens the database again with a changed configuration.
func reopen(t *testing.T, d *dbtest.DB, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	c := d.Pool.Config()
	change(c)
	p, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// runFor runs a process until so many beats of it were seen.
func runFor(t *testing.T, app *appstatus.App, beats int, tr tracer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	for range beats {
		select {
		case <-tr.beats:
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("a clean end: %v", err)
	}
}

func TestBeatsGoOnWhileTheWorkFillsThePool(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	tr := tracer{make(chan struct{}, 1)}
	pool := reopen(t, d, func(c *pgxpool.Config) { c.MaxConns, c.ConnConfig.Tracer = 1, tr })
	app := register(t, pool, appstatus.Config{Type: appstatus.Worker, TTL: 2 * time.Second})
	busy, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Release()
	runFor(t, app, 2, tr)
	if s := list(t, d, "")[0]; !s.Online || !s.LastHeartbeat.After(s.CreatedAt) {
		t.Errorf("%+v", s)
	}
}

func TestRunEndsWhenTheProcessWasDeclaredMissing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker, TTL: 2 * time.Second})
	exec(t, d, "DELETE FROM app_status")
	if err := app.Run(t.Context()); !errors.Is(err, appstatus.ErrLost) {
		t.Error(err)
	}
	<-app.Lost()
	if l := list(t, d, ""); len(l) != 0 {
		t.Errorf("it is back: %v", l)
	}
}

// outage breaks the connections of a pool, and refuses new ones, while it is on.
type outage struct{ on atomic.Bool }

type unreliable struct {
	net.Conn
	outage *outage
}

func (c *unreliable) Write(b []byte) (int, error) {
	if c.outage.on.Load() {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: io.ErrClosedPipe}
	}
	return c.Conn.Write(b)
}

func (o *outage) through(c *pgxpool.Config) {
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if o.on.Load() {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: io.ErrClosedPipe}
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &unreliable{conn, o}, nil
	}
}

// It takes a TTL of real time: the database's clock decides.
func TestAppIsLostBeforeTheDatabaseConsidersItMissing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	var o outage
	app := register(t, reopen(t, d, o.through), appstatus.Config{Type: appstatus.Worker, TTL: 3 * time.Second, Log: d.Log})
	o.on.Store(true)
	ended := make(chan error, 1)
	go func() { ended <- app.Run(t.Context()) }()
	<-app.Lost()
	lost := time.Now() // the servers are on this host, so on this clock
	s := list(t, d, "")[0]
	if missing := s.LastHeartbeat.Add(s.TTL); !lost.Before(missing) {
		t.Errorf("lost at %s, missing at %s", lost.UTC(), missing)
	}
	if err := <-ended; !errors.Is(err, appstatus.ErrLost) {
		t.Error(err)
	}
}

func TestAppSurvivesAnOutageThatIsShorterThanItsLease(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	var o outage
	tr := tracer{make(chan struct{}, 1)}
	failed := make(chan struct{})
	app := register(t, reopen(t, d, func(c *pgxpool.Config) {
		o.through(c)
		c.ConnConfig.Tracer = tr
		dial := c.ConnConfig.DialFunc
		var once sync.Once
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if o.on.Load() {
				once.Do(func() { close(failed) })
			}
			return dial(ctx, network, addr)
		}
	}), appstatus.Config{Type: appstatus.Worker, TTL: 4 * time.Second})
	o.on.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	<-failed
	o.on.Store(false)
	select {
	case <-tr.beats:
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestBlockedRowEndsTheLeaseInTime has another program lock the process's row, for good or for a part of the lease.
func TestBlockedRowEndsTheLeaseInTime(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		released bool
	}{{"for good", false}, {"for a part of the lease", true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker, TTL: 3 * time.Second, Log: d.Log})
			neighbor, err := d.Direct.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = neighbor.Rollback(context.WithoutCancel(t.Context())) }() // or it was released
			if _, err := neighbor.Exec(t.Context(), "SELECT FROM app_status FOR UPDATE"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- app.Run(ctx) }()
			before := list(t, d, "")[0]
			if !test.released {
				<-app.Lost()
				lost := time.Now() // the servers are on this host, so on this clock
				if missing := before.LastHeartbeat.Add(before.TTL); !lost.Before(missing) {
					t.Errorf("lost at %s, missing at %s", lost.UTC(), missing)
				}
				if err := <-ended; !errors.Is(err, appstatus.ErrLost) {
					t.Error(err)
				}
				return
			}
			waits := time.NewTicker(5 * time.Millisecond)
			defer waits.Stop()
			for blocked := false; !blocked; <-waits.C {
				if err := d.Direct.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)").Scan(&blocked); err != nil {
					t.Fatal(err)
				}
			}
			if err := neighbor.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			for !list(t, d, "")[0].LastHeartbeat.After(before.LastHeartbeat) {
				select {
				case <-waits.C:
				case err := <-ended:
					t.Fatalf("it ended: %v", err)
				}
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}
