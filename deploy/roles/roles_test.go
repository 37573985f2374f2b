// Package roles tests the groups of roles that roles.sql makes: a fleet works as them, and what a role need not do
// is refused.
package roles

import (
	"context"
	_ "embed" // the script
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

//go:embed roles.sql
var script string

func TestMain(m *testing.M) {
	registry, err := builtin.Registry()
	if err != nil {
		panic(err) // the types are known
	}
	tasking.RunChild(registry)
	dbtest.Main(m)
}

// site is a database as an operator sets it up: a role without particular rights owns it and has migrated it; each
// process logs in as a role of its own.
type site struct {
	*dbtest.DB
	t *testing.T
	// prefix begins the name of each role, since roles belong to the server.
	prefix string
}

// newSite makes a database and the roles, but does not run the script yet.
func newSite(t *testing.T) *site {
	t.Helper()
	d := dbtest.Empty(t)
	number, _, _ := strings.Cut(d.Name, "_")
	s := &site{DB: d, t: t, prefix: number + "_"}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		rows, _ := d.Direct.Query(ctx, "SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)", s.prefix)
		roles, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Error(err)
		}
		broken, err := dbtest.Broken(ctx, d.Direct)
		if err != nil || len(broken) > 0 {
			t.Errorf("broken %v, %v", broken, err)
		}
		for _, format := range []string{"REASSIGN OWNED BY %s TO pith", "DROP OWNED BY %s", "DROP ROLE %s"} {
			for _, r := range roles {
				if _, err := d.Direct.Exec(ctx, fmt.Sprintf(format, r)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	s.admin("CREATE ROLE " + s.role("owner") + " LOGIN CREATEROLE")
	s.admin("ALTER DATABASE " + d.Name + " OWNER TO " + s.role("owner"))
	s.admin("REVOKE ALL ON DATABASE " + d.Name + " FROM PUBLIC")
	if d.Services.Server.Major() < 15 { // where it belongs to nobody of ours
		s.admin("ALTER SCHEMA public OWNER TO " + s.role("owner"))
	}
	if err := migrate.Up(t.Context(), s.as("owner"), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// newFleetSite is a site with its groups, and members of them: reader, dispatcher, worker, account, and api, which is
// in all groups but that of readers.
func newFleetSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.apply()
	for member, groups := range map[string][]string{
		"reader": {"readers"}, "dispatcher": {"dispatchers"}, "worker": {"workers"}, "api": {"dispatchers", "workers", "accounts"},
		"account": {"accounts"},
	} {
		s.admin("CREATE ROLE " + s.role(member) + " LOGIN")
		for _, g := range groups {
			s.admin("GRANT " + s.role(g) + " TO " + s.role(member))
		}
	}
	return s
}

// role is the full name of a role.
func (s *site) role(name string) string { return s.prefix + name }

// admin runs statements as the superuser.
func (s *site) admin(sql string) {
	s.t.Helper()
	conn, err := s.Direct.Acquire(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Conn().PgConn().Exec(s.t.Context(), sql).ReadAll(); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func (s *site) url(role string) string {
	s.t.Helper()
	address, err := url.Parse(s.DirectURL)
	if err != nil {
		s.t.Fatal(err)
	}
	address.User = url.User(s.role(role))
	return address.String()
}

// as is a role's pool.
func (s *site) as(role string) *pgxpool.Pool {
	s.t.Helper()
	p, err := pool.Open(s.t.Context(), s.url(role), pool.Config{MaxConns: 4})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Close)
	return p
}

// run runs the script as a role.
func (s *site) run(role string) error {
	s.t.Helper()
	c, err := pgx.ParseConfig(s.url(role))
	if err != nil {
		s.t.Fatal(err)
	}
	c.RuntimeParams["options"] = fmt.Sprintf("-c pith.reader=%s -c pith.dispatcher=%s -c pith.worker=%s -c pith.accounts=%s",
		s.role("readers"), s.role("dispatchers"), s.role("workers"), s.role("accounts"))
	conn, err := pgx.ConnectConfig(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(s.t.Context())) }()
	_, err = conn.PgConn().Exec(s.t.Context(), script).ReadAll()
	return err
}

// apply runs the script as the owner.
func (s *site) apply() {
	s.t.Helper()
	if err := s.run("owner"); err != nil {
		s.t.Fatal(err)
	}
}

// client is a program's, which logs in as a role.
func (s *site) client(role string, cfg tasking.Config, types ...tasking.AnyType) *tasking.Client {
	s.t.Helper()
	var err error
	if cfg.Registry, err = tasking.NewRegistry(types...); err != nil {
		s.t.Fatal(err)
	}
	cfg.Log = s.Log
	c, err := tasking.New(s.as(role), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// one reads one value as the superuser.
func one[T any](s *site, sql string, args ...any) T {
	s.t.Helper()
	var v T
	if err := s.Direct.QueryRow(s.t.Context(), sql, args...).Scan(&v); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return v
}
