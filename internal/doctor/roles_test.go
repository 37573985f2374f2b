package doctor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
)

// hardened is a database with the groups of deploy/roles, and a role that may log in and is in none of them.
func hardened(t *testing.T) (d *dbtest.DB, role string, groups map[string]string) {
	t.Helper()
	d = dbtest.New(t)
	role = newRole(t, d)
	number, _, _ := strings.Cut(d.Name, "_")
	groups = map[string]string{}
	options := ""
	for _, g := range []string{"reader", "dispatcher", "worker", "accounts"} {
		groups[g] = number + "_" + g
		options += fmt.Sprintf(" -c pith.%s=%s", g, groups[g])
		t.Cleanup(func() {
			execute := func(sql string) {
				if _, err := d.Direct.Exec(context.WithoutCancel(t.Context()), sql); err != nil {
					t.Error(err)
				}
			}
			execute("DROP OWNED BY " + groups[g])
			execute("DROP ROLE " + groups[g])
		})
	}
	runRolesSQL(t, d, options)
	return d, role, groups
}

func runRolesSQL(t *testing.T, d *dbtest.DB, options string) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/roles/roles.sql")
	if err != nil {
		t.Fatal(err)
	}
	c, err := pgx.ParseConfig(d.DirectURL)
	if err != nil {
		t.Fatal(err)
	}
	c.RuntimeParams["options"] = options
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.PgConn().Exec(t.Context(), string(text)).ReadAll(); err != nil {
		t.Fatal(err)
	}
}

// privileges is the check of that name alone.
func privileges(t *testing.T, p *pgxpool.Pool) []Finding {
	t.Helper()
	d, err := New(p, Config{})
	if err != nil {
		t.Fatal(err)
	}
	f := &findings{}
	x := &examination{Doctor: d, q: db.New(), pool: p, failed: map[string]bool{}}
	if err := x.lookAtVersion(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	f.list, f.check = nil, "privileges"
	if err := x.lookAtPrivileges(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	return f.list
}

func TestRolesMayWhatTheirProcessesDo(t *testing.T) {
	t.Parallel()
	d, role, groups := hardened(t)
	for _, tt := range []struct {
		in   []string
		text string
	}{
		{[]string{"reader"}, "may read, and nothing else"},
		{[]string{"dispatcher"}, "may read, dispatch and cancel"},
		{[]string{"worker"}, "may read, run tasks"},
		{[]string{"dispatcher", "worker"}, "may read, dispatch and cancel, run tasks"},
		{[]string{"dispatcher", "worker", "accounts"}, "may read, dispatch and cancel, run tasks, know users"},
	} {
		for _, g := range tt.in {
			execute(t, d, fmt.Sprintf("GRANT %s TO %s", groups[g], role))
		}
		r := examine(t, as(t, d, role), nil)
		wantFinding(t, only(t, r, "drift"), OK, "as the migrations made it", "")
		wantFinding(t, only(t, r, "privileges"), OK, role+" "+tt.text, "")
		for _, f := range r.Findings {
			if f.Severity == Error || strings.Contains(f.Message, "could not be looked at") {
				t.Errorf("as %v: %+v", tt.in, f)
			}
		}
		for _, g := range tt.in {
			execute(t, d, fmt.Sprintf("REVOKE %s FROM %s", groups[g], role))
		}
	}
	wantFinding(t, only(t, examine(t, d.Pool, nil), "privileges"), OK, "may read, dispatch and cancel, run tasks, know users", "")
	wantFinding(t, only(t, examine(t, d.Pool, nil), "drift"), OK, "", "")
	// A role that is in none lacks it all.
	list := privileges(t, as(t, d, role))
	if len(list) != len(processes[0].privileges)+len(processes[0].more) {
		t.Errorf("%d findings: %+v", len(list), list)
	}
	for _, f := range list {
		wantFinding(t, f, Error, role+" lacks ", "run deploy/roles/roles.sql of this release as the owner of the tables, as after each migration, and grant the role one of its groups")
	}
}

// grants are what a group was granted in this database, as what GRANT names: table privileges with their columns, and functions.
func grants(t *testing.T, d *dbtest.DB, group string) []string {
	t.Helper()
	rows, err := d.Direct.Query(t.Context(), `
		SELECT format('%s ON %s', a.privilege_type, c.oid::regclass) FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = $1::regrole
		UNION ALL
		SELECT format('%s (%s) ON %s', a.privilege_type, quote_ident(o.attname), o.attrelid::regclass) FROM pg_attribute o, aclexplode(o.attacl) a WHERE a.grantee = $1::regrole
		UNION ALL
		SELECT format('%s ON FUNCTION %s', a.privilege_type, p.oid::regprocedure) FROM pg_proc p, aclexplode(p.proacl) a WHERE a.grantee = $1::regrole
		ORDER BY 1`, group)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(list) == 0 {
		t.Fatalf("%d grants, %v", len(list), err)
	}
	return list
}

// TestEachPrivilegeOfAGroupIsMissed: together with the check that a whole group lacks nothing, this says that
// roles.sql grants what the doctor takes to be needed, and nothing else.
func TestEachPrivilegeOfAGroupIsMissed(t *testing.T) {
	t.Parallel()
	d, role, groups := hardened(t)
	p := as(t, d, role)
	for name, group := range groups {
		execute(t, d, fmt.Sprintf("GRANT %s TO %s", group, role))
		for _, g := range grants(t, d, group) {
			if strings.Contains(g, " FUNCTION task_cancel(") || strings.Contains(g, " FUNCTION task_turn(") || g == "SELECT ON api_secret" {
				continue // what tells which process is meant
			}
			execute(t, d, fmt.Sprintf("REVOKE %s FROM %s", g, group))
			list := privileges(t, p)
			privilege, _, _ := strings.Cut(g, " ON ")
			if len(list) != 1 || list[0].Severity != Error || !strings.Contains(list[0].Message, "lacks "+privilege+" on ") {
				t.Errorf("%s without %s: %+v", name, g, list)
			}
			execute(t, d, fmt.Sprintf("GRANT %s TO %s", g, group))
		}
		execute(t, d, fmt.Sprintf("REVOKE %s FROM %s", group, role))
	}
}

func TestRolesThatAreNotMadeAnewAreDrift(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, sql       string
		severity        Severity
		message, remedy string
	}{
		{
			// What a migration that replaces a function leaves behind.
			"a function with its caller's rights", "ALTER FUNCTION task_turn SECURITY INVOKER; ALTER FUNCTION task_turn RESET search_path", Error,
			"function task_turn differs: its head", "run deploy/roles/roles.sql",
		},
		{"a path that callers choose", "ALTER FUNCTION task_turn RESET search_path", Error, "function task_turn differs: its head", "run deploy/roles/roles.sql"},
		{"a path with another schema", "ALTER FUNCTION task_turn SET search_path = public, extensions, pg_temp", Error, "function task_turn differs: its head", "run deploy/roles/roles.sql"},
		{"another schema", "ALTER FUNCTION task_turn SET search_path = public_too, pg_temp", Error, "function task_turn differs: its head", "run deploy/roles/roles.sql"},
		{"another setting", "ALTER FUNCTION task_turn SET jit = on", Error, "function task_turn differs: its head", ""},
		{"a function that should have its caller's rights", "ALTER FUNCTION task_finish SECURITY DEFINER", Error, "function task_finish differs: its head", "migrations"},
		{"no row security", "ALTER TABLE task DISABLE ROW LEVEL SECURITY", Error, "table task differs: it is table, not table, with row security", "run deploy/roles/roles.sql"},
		{"no policy", "DROP POLICY task_read ON task", Error, "policy task_read of table task is missing", "run deploy/roles/roles.sql"},
		{"a policy that lets change", "DROP POLICY task_lock ON task; CREATE POLICY task_lock ON task FOR UPDATE USING (true)", Error, "policy task_lock of table task differs", "run deploy/roles/roles.sql"},
		{"a policy of somebody", "CREATE POLICY mine ON task AS RESTRICTIVE FOR SELECT TO pg_monitor USING (priority > 0)", Warning, "unknown policy mine of table task: SELECT, restrictive TO pg_monitor USING ((priority > 0))", "hide rows"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d, _, _ := hardened(t)
			execute(t, d, tt.sql)
			wantFinding(t, only(t, examine(t, d.Direct, nil), "drift"), tt.severity, tt.message, tt.remedy)
		})
	}
}

func TestSchemaOfAnyNameIsOnTheFunctionsPath(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	execute(t, d, `ALTER SCHEMA public RENAME TO "Pith's"; ALTER DATABASE `+d.Name+` SET search_path = "Pith's"`)
	number, _, _ := strings.Cut(d.Name, "_")
	var options []string
	for _, g := range []string{"reader", "dispatcher", "worker", "accounts"} {
		options = append(options, fmt.Sprintf("-c pith.%s=%s_%s", g, number, g))
		t.Cleanup(func() {
			for _, sql := range []string{"DROP OWNED BY ", "DROP ROLE "} {
				if _, err := d.Direct.Exec(context.WithoutCancel(t.Context()), sql+number+"_"+g); err != nil {
					t.Error(err)
				}
			}
		})
	}
	runRolesSQL(t, d, strings.Join(options, " "))
	list := of(examine(t, d.Direct, nil), "drift")
	if len(list) != 1 || list[0].Severity != OK {
		t.Errorf("%+v", list)
	}
	execute(t, d, `ALTER SCHEMA "Pith's" RENAME TO later; ALTER DATABASE `+d.Name+` SET search_path = later`)
	d.Direct.Reset()
	if list = of(examine(t, d.Direct, nil), "drift"); !slices.ContainsFunc(list, func(f Finding) bool {
		return strings.Contains(f.Message, "function task_turn differs: its head") && strings.Contains(f.Remedy, "roles.sql")
	}) {
		t.Errorf("after the schema's name has changed: %+v", list)
	}
	execute(t, d, "ALTER SCHEMA later RENAME TO public; ALTER DATABASE "+d.Name+" RESET search_path")
	d.Direct.Reset()
}
