package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/pool"
)

// bouncer is a PgBouncer of the test's own.
func bouncer(t *testing.T, d *dbtest.DB, cfg localpg.BouncerConfig) string {
	t.Helper()
	b, err := d.Services.Server.StartBouncer(t.Context(), cfg)
	if errors.Is(err, localpg.ErrNoPgBouncer) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b.URL(d.Name)
}

func TestConnectionIsToldApart(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		r := examine(t, d.Direct, nil)
		wantFinding(t, only(t, r, "connection"), OK, "direct: each of 2", "")
		if r.Target.Connection != Direct {
			t.Errorf("it is %s", r.Target.Connection)
		}
	})
	for _, tt := range []struct {
		name    string
		cfg     localpg.BouncerConfig
		want    Connection
		message string
	}{
		{"transaction", localpg.BouncerConfig{}, Transaction, "a pooler multiplexes: 2 client connections took turns on 1 server connections"},
		{"round robin", localpg.BouncerConfig{Settings: map[string]string{"server_round_robin": "1"}}, Transaction, "a pooler multiplexes"},
		{"statement", localpg.BouncerConfig{PoolMode: "statement"}, Transaction, "a pooler multiplexes"},
		{"session", localpg.BouncerConfig{PoolMode: "session"}, Session, "session mode"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := examine(t, open(t, bouncer(t, d, tt.cfg), pool.Config{}), nil)
			wantFinding(t, only(t, r, "connection"), Note, tt.message, "")
			if r.Target.Connection != tt.want {
				t.Errorf("it is %s", r.Target.Connection)
			}
		})
	}
	t.Run("few connections", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		role := newRole(t, d)
		execute(t, d, "ALTER ROLE "+role+" CONNECTION LIMIT 2; GRANT SELECT ON ALL TABLES IN SCHEMA public TO "+role)
		r := examine(t, as(t, d, role), nil)
		wantFinding(t, only(t, r, "connection"), OK, "direct: each of 2", "")
		wantFinding(t, only(t, r, "capacity"), OK, "", "") // our own don't count
		until(t, d, "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = '"+role+"'")
		held := as(t, d, role)
		if err := held.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		r = examine(t, as(t, d, role), nil)
		wantFinding(t, only(t, r, "connection"), Warning, "a second client connection was refused: too many connections for role", "a worker may open 5")
		until(t, d, "SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = '"+role+"'")
		execute(t, d, "ALTER ROLE "+role+" CONNECTION LIMIT 3")
		other := as(t, d, role)
		if err := other.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		r = examine(t, as(t, d, role), nil)
		wantFinding(t, only(t, r, "connection"), Warning, "was refused", "")
		wantFinding(t, only(t, r, "capacity"), OK, "", "")
		execute(t, d, "ALTER ROLE "+role+" CONNECTION LIMIT 2")
		other.Close()
		until(t, d, "SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = '"+role+"'")
		execute(t, d, workerRow("w", 0, true, dummy))
		wantSome(t, examine(t, as(t, d, role), nil), "capacity", Warning, "may open 5 connections each, 5 in all; the role allows 2", "ALTER ROLE "+role+" CONNECTION LIMIT 5")
	})
	t.Run("others take them", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		execute(t, d, "ALTER DATABASE "+d.Name+" CONNECTION LIMIT 1") // does not bind a superuser
		d.Direct.Reset()
		until(t, d, "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = '"+d.Name+"'")
		r := examine(t, open(t, d.DirectURL, pool.Config{}), nil)
		wantFinding(t, only(t, r, "capacity"), Warning, "1 of the 1 connections of the database are in use", "ALTER DATABASE "+d.Name+" CONNECTION LIMIT 2,")
	})
	t.Run("several hosts", func(t *testing.T) {
		t.Parallel()
		port := d.Services.Server.Port()
		p := open(t, fmt.Sprintf("postgres://pith@127.0.0.1:1,localhost:%d/%s?sslmode=disable", port, d.Name), pool.Config{})
		if r, want := examine(t, p, nil), fmt.Sprintf("localhost:%d", port); r.Target.Address != want {
			t.Errorf("looked at %s, not %s", r.Target.Address, want)
		}
	})
}

// taken holds a server connection until the test ends, or until it is let go.
func taken(t *testing.T, p *pgxpool.Pool) (letGo func()) {
	t.Helper()
	tx, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	letGo = sync.OnceFunc(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	t.Cleanup(letGo)
	return letGo
}

// tracer is told of each query that has ended.
type tracer func(err error)

func (tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (f tracer) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	f(data.Err)
}

// refused is told of each connection that could not be made.
type refused struct{ tracer }

func (refused) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

func (r refused) TraceConnectEnd(_ context.Context, data pgx.TraceConnectEndData) {
	if data.Err != nil {
		r.tracer(data.Err)
	}
}

func TestConnectionThatIsJustBeingClosedIsWaitedFor(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	role := newRole(t, d)
	execute(t, d, "ALTER ROLE "+role+" CONNECTION LIMIT 1")
	held := as(t, d, role)
	if err := held.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := open(t, held.Config().ConnString(), pool.Config{Tracer: refused{func(err error) {
		if err != nil {
			held.Close()
		}
	}}})
	wantFinding(t, only(t, examine(t, p, nil), "version"), OK, "", "")
}

func TestPoolerWithoutAServerConnectionToSpareIsAFinding(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	two := localpg.BouncerConfig{PoolMode: "session", PoolSize: 2}
	t.Run("session mode", func(t *testing.T) {
		t.Parallel()
		url := bouncer(t, d, two)
		wantFinding(t, only(t, examine(t, open(t, url, pool.Config{}), nil), "connection"), Note, "session mode", "transaction mode")
	})
	t.Run("session mode, one left", func(t *testing.T) {
		t.Parallel()
		url := bouncer(t, d, two)
		taken(t, open(t, url, pool.Config{}))
		for _, named := range []bool{false, true} {
			r := examine(t, open(t, url, pool.Config{NamedStatements: named}), func(d *Doctor) { d.cfg.Timeout = 4 * time.Second })
			wantFinding(t, only(t, r, "connection"), Warning, "had no server connection for a second client within 1s", "transaction mode")
			wantFinding(t, only(t, r, "drift"), OK, "", "")
			if r.Target.Connection != Session {
				t.Errorf("it is %s", r.Target.Connection)
			}
			if named {
				wantFinding(t, only(t, r, "statements"), Note, "could not be probed", "")
			}
		}
	})
	t.Run("session mode, others are served meanwhile", func(t *testing.T) {
		t.Parallel()
		url := bouncer(t, d, two)
		others := open(t, url, pool.Config{})
		var queries int
		p := open(t, url, pool.Config{Tracer: tracer(func(err error) {
			// All but the first of the checks' own: the turns have ended.
			if queries++; queries <= clients*rounds || err != nil {
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := others.Ping(ctx); err != nil {
				t.Errorf("after %d queries: %v", queries, err)
			}
		})})
		examine(t, p, nil)
		if queries <= clients*rounds {
			t.Errorf("%d queries", queries)
		}
	})
	t.Run("session mode, none left", func(t *testing.T) {
		t.Parallel()
		url := bouncer(t, d, two)
		taken(t, open(t, url, pool.Config{}))
		taken(t, open(t, url, pool.Config{}))
		d, err := New(open(t, url, pool.Config{}), Config{Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Run(t.Context()); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("error %v", err)
		}
	})
	for _, tt := range []struct {
		name    string
		letGo   bool       // once a query has failed
		after   int        // queries that were answered
		want    Connection // empty: the first client alone may or may not have met two server connections
		message string
	}{
		{"transaction mode, all busy", true, 1, "", "had no server connection"},
		{"transaction mode, all busy later", true, 3, Transaction, "had no server connection within 1s: all are busy"},
		{"transaction mode, all busy from then on", false, 3, Transaction, "had no server connection within 1s: all are busy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url := bouncer(t, d, localpg.BouncerConfig{PoolSize: 1})
			others := open(t, url, pool.Config{})
			answered, letGo := 0, func() {}
			p := open(t, url, pool.Config{Tracer: tracer(func(err error) {
				if err != nil && tt.letGo {
					letGo()
				}
				if answered++; err == nil && answered == tt.after {
					letGo = taken(t, others)
				}
			})})
			r := examine(t, p, func(d *Doctor) { d.cfg.Timeout = 4 * time.Second })
			list := of(r, "connection")
			wantFinding(t, list[len(list)-1], Warning, tt.message, "more server connections")
			if tt.want != "" && r.Target.Connection != tt.want {
				t.Errorf("it is %s", r.Target.Connection)
			}
			if tt.letGo {
				wantFinding(t, only(t, r, "drift"), OK, "", "")
				return
			}
			wantFinding(t, only(t, r, "version"), Error, "could not be looked at within 4s", "")
			for _, check := range []string{"encoding", "schema", "privileges"} {
				wantFinding(t, only(t, r, check), Note, "was not looked at: see version", "")
			}
			wantFinding(t, only(t, r, "drift"), Note, "was not looked at: see schema", "")
			if len(r.Findings) < len(checks) || r.Severity != Error {
				t.Errorf("%s: %+v", r.Severity, r.Findings)
			}
		})
	}
}

func TestWhatClientConnectionsSawIsClassified(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		seen     []seen
		want     Connection
		backends int
	}{
		{"one each", []seen{{1, []uint32{1, 1}}, {2, []uint32{2, 2}}}, Direct, 2},
		{"one alone", []seen{{1, []uint32{1, 1}}}, Direct, 1},
		{"foreign keys", []seen{{7, []uint32{1, 1}}, {8, []uint32{2, 2}}}, Session, 2},
		{"one for two", []seen{{7, []uint32{1, 1}}, {8, []uint32{1, 1}}}, Transaction, 1},
		{"one for two, own keys", []seen{{1, []uint32{1, 1}}, {1, []uint32{1, 1}}}, Transaction, 1},
		{"two for one", []seen{{7, []uint32{1, 2}}}, Transaction, 2},
		{"nothing", nil, Direct, 0},
	} {
		if got, backends := classify(tt.seen); got != tt.want || backends != tt.backends {
			t.Errorf("%s: %s, %d", tt.name, got, backends)
		}
	}
}

func TestRDSProxyIsKnownByItsName(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"pith.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com":             true,
		"ro.endpoint.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com":      true,
		"pith.abcdefghijkl.eu-central-1.rds.amazonaws.com":                   false,
		"pith.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com.example.org": false,
		"localhost": false,
	} {
		if isRDSProxy(host) != want {
			t.Errorf("%s: %t", host, !want)
		}
	}
}

// prepared lists the named statements on the one server connection of a pool.
func prepared(t *testing.T, p *pgxpool.Pool) (names []string) {
	t.Helper()
	if err := p.QueryRow(t.Context(), "SELECT coalesce(array_agg(name), '{}') FROM pg_prepared_statements").Scan(&names); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestNamedStatementsAreProbedAndClosed(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	one := localpg.BouncerConfig{PoolSize: 1}
	robin := localpg.BouncerConfig{PoolSize: 3, Settings: map[string]string{"server_round_robin": "1"}}
	for _, tt := range []struct {
		name            string
		url             func(*testing.T) string
		named, probe    bool
		severity        Severity
		message, remedy string
	}{
		{"unnamed", func(t *testing.T) string { return bouncer(t, d, one) }, false, false, OK, "unnamed: safe", ""},
		{"named, direct", func(*testing.T) string { return d.DirectURL }, true, false, OK, "safe on a connection of one's own", ""},
		{"named, pooled", func(t *testing.T) string { return bouncer(t, d, one) }, true, false, Error, "not safe here: two clients that prepare the same statement meet", "--statements unnamed"},
		{"named, round robin", func(t *testing.T) string { return bouncer(t, d, robin) }, true, false, Error, "not safe here", "--statements unnamed"},
		{"asked for, pooled", func(t *testing.T) string { return bouncer(t, d, one) }, false, true, Note, "named statements are not safe here", "stay with"},
		{"asked for, direct", func(*testing.T) string { return d.DirectURL }, false, true, OK, "safe", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url := tt.url(t)
			p := open(t, url, pool.Config{NamedStatements: tt.named})
			r := examine(t, p, func(d *Doctor) { d.cfg.ProbeStatements = tt.probe })
			wantFinding(t, only(t, r, "statements"), tt.severity, tt.message, tt.remedy)
			if url == d.DirectURL {
				return // what was left went with its connection
			}
			unnamed := open(t, url, pool.Config{})
			for range 3 {
				if left := prepared(t, unnamed); len(left) > 0 {
					t.Errorf("left on the server connection: %v", left)
				}
			}
		})
	}
}

func TestSettingsLeftByOthersAreSeenAndNoneAreLeft(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	p := open(t, bouncer(t, d, localpg.BouncerConfig{PoolSize: 1}), pool.Config{})
	changed := func() (names []string) {
		if err := p.QueryRow(t.Context(), "SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM pg_settings WHERE source = 'session'").Scan(&names); err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := changed()
	wantFinding(t, only(t, examine(t, p, nil), "leaks"), OK, "", "")
	if after := changed(); !slices.Equal(before, after) {
		t.Errorf("settings %v have become %v", before, after)
	}
	for _, sql := range []string{"SET statement_timeout = '7s'", "SET jit = off"} {
		if _, err := p.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	r := examine(t, p, nil)
	wantFinding(t, only(t, r, "leaks"), Note, "jit, statement_timeout", "SET LOCAL")
	wantSome(t, r, "timeouts", Warning, "idle_in_transaction", "")
}
