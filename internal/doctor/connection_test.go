package doctor

import (
	"errors"
	"slices"
	"testing"

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
		wantFinding(t, only(t, r, "connection"), OK, "direct: each of 4", "")
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
		{"transaction", localpg.BouncerConfig{}, Transaction, "a pooler multiplexes: 4 client connections took turns on 1 server connections"},
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
		wantSome(t, r, "capacity", Warning, "2 of the 2 connections of the role are in use", "ALTER ROLE "+role+" CONNECTION LIMIT")
	})
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
