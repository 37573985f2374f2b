package roles

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// refusal is PostgreSQL's code for a lack of privilege, and for what a policy refuses.
const refusal = "42501"

// calls are statements that call the functions of processes.
var calls = map[string]string{
	"task_dispatch": `SELECT task_dispatch(NULL, false, NULL, 0, '{}', NULL, NULL, NULL, '{test.child}', '{"{}"}', '{1}', '{0 s}',
		ARRAY[gen_random_uuid()], '{1}', '{null}', '{c}', '{NULL}', '{0}', '{f}', '{t}', '{NULL}', '{}', '{}', '{}', false)`,
	"task_cancel":           "SELECT task_cancel('{}')",
	"task_turn":             "SELECT task_turn(NULL, '{}', '{}', 0, false, '{}', '{}', '{}', '{}', '{}', '{}', NULL, true, false, '{}', '{}', '{}', false)",
	"task_own":              "SELECT task_own('{}', NULL, '{}')",
	"task_turn_used":        "SELECT task_turn_used('{}', '{}', '{}', NULL, '{}', '{}', 0, false, '{}', '{}', '{}', '{}', '{}', '{}', NULL, true, false, '{}', '{}', '{}', false)",
	"task_enqueue_due":      "SELECT task_enqueue_due(1)",
	"task_abandoned_finish": "SELECT task_abandoned_finish(1, '{}')",
	"app_register":          "SELECT app_register(gen_random_uuid(), 'worker', 'mine', '{}', '{}', '1 h', true)",
	"app_beat":              "SELECT app_beat(gen_random_uuid(), NULL, '{}')",
}

// nobodys are statements that no process sends, each of which would harm others.
var nobodys = []string{
	// The queues, past the functions.
	"UPDATE task SET state = 'completed'",
	"UPDATE task SET app_lock = NULL",
	"UPDATE task SET args = '{}'",
	"UPDATE task SET error = NULL WHERE false",
	"UPDATE task SET seq = DEFAULT",
	"UPDATE task SET deferred = deferred",
	"INSERT INTO task (id, kind, state, reserved_resources_record, logging_cid, args) VALUES (gen_random_uuid(), 1, 'waiting', '{}', '', '{}')",
	"INSERT INTO task_reservation VALUES ('r', 1, gen_random_uuid(), true, true)",
	"UPDATE task_reservation SET granted = true",
	"DELETE FROM task_reservation",
	"SELECT FROM task_reservation FOR UPDATE",
	"UPDATE resource_lock SET contended = true",
	"DELETE FROM resource_lock",
	"SELECT FROM resource_lock FOR SHARE",
	"INSERT INTO task_kind (name, versions, max_attempts, backoff) VALUES ('mine', '{}', 1, '0')",
	"UPDATE task_kind SET max_attempts = 1000",
	"DELETE FROM task_kind",
	"INSERT INTO task_usage VALUES (gen_random_uuid(), 1, 1, 1)",
	"DELETE FROM task_usage",
	"DELETE FROM task_profile",
	"UPDATE api_secret SET secret = ''",
	"UPDATE user_role SET role = 'core.task_owner'",
	"DELETE FROM task_group",
	"UPDATE task_group SET description = ''",
	"UPDATE task_schedule SET last_task = NULL",
	"DELETE FROM progress_report",
	"UPDATE progress_report SET task_id = NULL",
	"DELETE FROM created_resource",
	"TRUNCATE task CASCADE",
	"LOCK TABLE task_reservation",
	// The fleet.
	"INSERT INTO app_status (id, app_type, name, ttl) VALUES (gen_random_uuid(), 'worker', 'mine', '1 h')",
	"UPDATE app_status SET last_heartbeat = now()",
	"UPDATE app_status SET ttl = '1 d'",
	"SELECT * FROM app_fleet",
	"UPDATE app_fleet SET online = 1000000",
	"DELETE FROM app_fleet",
	// The steps of the functions, one by one.
	"SELECT task_finish(NULL, '{}', '{}', '{}', '{}', '{}', NULL, false)",
	"SELECT task_finish_sole(NULL, NULL, 1, '', '')",
	"SELECT task_queues_lock('{}', false)",
	"SELECT task_queues_leave('{}', '{}', '{}', '{}', '{}', NULL)",
	"SELECT resource_lock_all('{}', '{}', true)",
	"SELECT domain_shares_drop()",
	"SELECT domain_shares_write('prn:core.domain:x')",
	"SELECT task_kinds('{mine}', '{\"{}\"}', '{1}', '{0 s}')",
	"SELECT app_count('worker')",
	// The schema, and the way to more rights.
	"INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)",
	"DELETE FROM goose_db_version",
	"DROP TABLE task",
	"ALTER TABLE task DISABLE ROW LEVEL SECURITY",
	"CREATE POLICY mine ON task USING (true)",
	"ALTER FUNCTION task_turn SECURITY INVOKER",
	"CREATE TABLE mine (id int)",
	"CREATE FUNCTION power(int, int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
	"CREATE TEMPORARY TABLE task_kind (id int)",
	"CREATE SCHEMA mine",
	"SET ROLE $owner",
	"GRANT $workers TO $reader",
	"CREATE ROLE mine",
}

func TestWhatARoleNeedNotDoIsRefused(t *testing.T) {
	t.Parallel()
	s := newFleetSite(t)
	d := s.client("dispatcher", tasking.Config{}, types...)
	must[tasking.Dispatched](t)(d.Dispatch(t.Context(), child.Request("there", tasking.Options{Exclusive: []string{"r"}})))
	must[tasking.Schedule](t)(d.SaveSchedule(t.Context(), tasking.Schedule{Name: "s", Task: "test.child"}))
	_, err := d.NewGroup(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	const (
		group    = "INSERT INTO task_group (id, description) VALUES (gen_random_uuid(), '')"
		closed   = "UPDATE task_group SET all_tasks_dispatched = true"
		schedule = "INSERT INTO task_schedule (id, name, task_name, args) VALUES (gen_random_uuid(), 'mine', 'test.child', '{}')"
		lastTask = "INSERT INTO task_schedule (id, name, task_name, args, last_task) VALUES (gen_random_uuid(), 'mine', 'test.child', '{}', NULL)"
		argument = "UPDATE task_schedule SET args = '{}'"
		removed  = "DELETE FROM task_schedule"
		progress = "INSERT INTO progress_report VALUES (gen_random_uuid(), 0, '', '', 'running', 1, 1)"
		created  = "INSERT INTO created_resource VALUES (gen_random_uuid(), 0, 'prn:x')"
		purged   = "DELETE FROM task"
		locked   = "SELECT FROM task FOR SHARE"
		halted   = "LOCK TABLE task" // who may delete may do that, too
		missing  = "DELETE FROM app_status"
		renamed  = "UPDATE app_status SET name = ''"
		profiled = "INSERT INTO task_profile VALUES (gen_random_uuid(), 'x', '')"
		secret   = "SELECT secret FROM api_secret"
		hashes   = "SELECT password FROM auth_user"
		promoted = "UPDATE auth_user SET is_superuser = true"
		added    = "INSERT INTO auth_user (username, password) VALUES ('mine', '')"
		entitled = "INSERT INTO user_role (id, user_id, role) VALUES (gen_random_uuid(), 1, 'core.task_owner')"
		stripped = "DELETE FROM user_role"
		entitles = "SELECT role FROM user_role"
	)
	every := []string{group, closed, schedule, lastTask, argument, removed, progress, created, purged, locked, halted, missing, renamed, profiled, secret, hashes, promoted, added, entitled, stripped, entitles}
	for _, tt := range []struct {
		role  string
		calls []string // functions that it may call
		may   []string // of the other statements
	}{
		{"reader", nil, nil},
		{"dispatcher", []string{"task_dispatch", "task_cancel", "task_own"}, []string{group, closed, schedule, argument, removed}},
		{
			"worker",
			[]string{"task_dispatch", "task_turn", "task_turn_used", "task_enqueue_due", "task_abandoned_finish", "app_register", "app_beat", "task_own"},
			[]string{closed, purged, locked, halted, missing, renamed, progress, created, profiled, entitles},
		},
		{"account", nil, []string{locked, secret, hashes, promoted, added, entitled, stripped, entitles}},
		{
			"api",
			[]string{"task_dispatch", "task_cancel", "task_turn", "task_turn_used", "task_enqueue_due", "task_abandoned_finish", "app_register", "app_beat", "task_own"},
			slices.DeleteFunc(slices.Clone(every), func(sql string) bool { return sql == lastTask }),
		},
	} {
		t.Run(tt.role, func(t *testing.T) {
			conn, err := pgx.Connect(t.Context(), s.url(tt.role))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
			// try runs a statement and undoes it.
			try := func(sql string) error {
				sql = strings.ReplaceAll(sql, "$", s.prefix)
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback(t.Context()) }()
				_, err = tx.Exec(t.Context(), sql)
				return err
			}
			check := func(sql string, may bool) {
				t.Helper()
				err := try(sql)
				pg, _ := errors.AsType[*pgconn.PgError](err)
				refused := pg != nil && pg.Code == refusal
				if refused == may || !may && !refused {
					t.Errorf("%s: %v", sql, err)
				}
			}
			for _, sql := range nobodys {
				check(sql, false)
			}
			for _, sql := range every {
				check(sql, slices.Contains(tt.may, sql))
			}
			for name, sql := range calls {
				check(sql, slices.Contains(tt.calls, name))
			}
		})
	}
}

// A caller's own objects are first on its path, but not on that of the functions, which run as the owner.
func TestFunctionsDoNotFindWhatTheirCallerMakes(t *testing.T) {
	t.Parallel()
	s := newFleetSite(t)
	s.admin("GRANT TEMPORARY ON DATABASE " + s.Name + " TO " + s.role("dispatcher"))
	s.admin(fmt.Sprintf("CREATE SCHEMA %[1]s AUTHORIZATION %[1]s; ALTER ROLE %[1]s SET search_path = %[1]s, public", s.role("dispatcher")))
	p, err := pool.Open(t.Context(), s.url("dispatcher"), pool.Config{MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, sql := range []string{
		"CREATE TEMPORARY TABLE task_kind (LIKE public.task_kind INCLUDING ALL)",
		"CREATE TABLE task_reservation (LIKE public.task_reservation INCLUDING ALL)",
		"CREATE FUNCTION resource_bucket(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$as %$$, current_user; END'",
	} {
		if _, err := p.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	registry, err := tasking.NewRegistry(types...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tasking.New(p, tasking.Config{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	must[tasking.Dispatched](t)(c.Dispatch(t.Context(), child.Request("x", tasking.Options{Exclusive: []string{"r"}})))
	if n := one[int](s, "SELECT count(*) FROM public.task_kind") * one[int](s, "SELECT count(*) FROM public.task_reservation"); n != 1 {
		t.Errorf("%d rows", n)
	}
	var mine int
	if err := p.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_temp.task_kind) + (SELECT count(*) FROM task_reservation)").Scan(&mine); err != nil || mine != 0 {
		t.Errorf("%d rows are in the caller's tables, %v", mine, err)
	}
}

// state is all that the script sets, in words.
func (s *site) state() []string {
	s.t.Helper()
	rows, err := s.Direct.Query(s.t.Context(), `
		SELECT format('%s: %s', what, (SELECT string_agg(format('%s %s %s', a.grantee, a.privilege_type, a.is_grantable), ', ' ORDER BY 1) FROM aclexplode(acl) a)) FROM (
			SELECT c.oid::regclass::text AS what, c.relacl AS acl FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
			UNION ALL SELECT format('%s.%I', o.attrelid::regclass, o.attname), o.attacl FROM pg_attribute o JOIN pg_class c ON c.oid = o.attrelid
				WHERE c.relnamespace = 'public'::regnamespace AND o.attnum > 0
			UNION ALL SELECT p.oid::regprocedure::text, p.proacl FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
			UNION ALL SELECT 'schema', nspacl FROM pg_namespace WHERE nspname = 'public'
			UNION ALL SELECT 'database', datacl FROM pg_database WHERE datname = current_database()) acls
		UNION ALL SELECT format('%s %s %s', p.oid::regprocedure, p.prosecdef, p.proconfig) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
		UNION ALL SELECT format('%s %s %s', polname, pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) FROM pg_policy
		UNION ALL SELECT format('%s %s', relname, relrowsecurity) FROM pg_class WHERE relname = 'task'
		ORDER BY 1`)
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(list) == 0 {
		s.t.Fatalf("%d lines, %v", len(list), err)
	}
	return list
}

func TestTheScriptRunsAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.apply()
	first := s.state()
	s.apply()
	if diff := cmp.Diff(first, s.state()); diff != "" {
		t.Errorf("the second run (-first +second):\n%s", diff)
	}
	// What a migration may undo, and what somebody may have added, on the groups and on everybody.
	s.admin(`GRANT UPDATE ON task TO ` + s.role("workers") + `; GRANT SELECT (args), UPDATE (state) ON task TO ` + s.role("readers") + `;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC; GRANT EXECUTE ON FUNCTION task_finish TO ` + s.role("dispatchers") + `;
		REVOKE SELECT ON task_group FROM ` + s.role("dispatchers") + `; GRANT CREATE ON SCHEMA public TO PUBLIC;
		ALTER FUNCTION task_turn SECURITY INVOKER; ALTER FUNCTION task_turn RESET search_path; ALTER FUNCTION app_beat SET search_path = public;
		ALTER TABLE task DISABLE ROW LEVEL SECURITY; DROP POLICY task_lock ON task;
		DROP POLICY task_purge ON task; CREATE POLICY task_purge ON task FOR DELETE USING (true)`)
	s.apply()
	if diff := cmp.Diff(first, s.state()); diff != "" {
		t.Errorf("after changes by hand (-first +now):\n%s", diff)
	}
	// The superuser's run is as good.
	conn, err := s.Direct.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	set := fmt.Sprintf("SET pith.reader = %s; SET pith.dispatcher = %s; SET pith.worker = %s; SET pith.accounts = %s;",
		s.role("readers"), s.role("dispatchers"), s.role("workers"), s.role("accounts"))
	if _, err := conn.Conn().PgConn().Exec(t.Context(), set+script).ReadAll(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, s.state()); diff != "" {
		t.Errorf("as the superuser (-first +now):\n%s", diff)
	}
}

func TestTheScriptSaysWhatItNeeds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, before, role string
		message, hint      string
	}{
		{"no schema", "ALTER TABLE task RENAME TO chore", "owner", "there is no table task in", "pith migrate up"},
		{"not the owner", "CREATE ROLE $other LOGIN CREATEROLE; GRANT CONNECT ON DATABASE $db TO $other", "other", "role $other does not own Pith's tables", "Run this as $owner."},
		{"may make no roles", "ALTER ROLE $owner NOCREATEROLE", "owner", "role $readers is not there, and $owner may not make it", "An administrator makes it once: CREATE ROLE $readers NOLOGIN"},
		{"another release", "ALTER FUNCTION task_turn RENAME TO task_spin", "owner", "function task_turn of schema public is missing", "the same release"},
		{"a namesake", "CREATE FUNCTION task_turn(int) RETURNS int LANGUAGE sql AS 'SELECT 1'", "owner", "has a namesake", ""},
		{"somebody else's schema that is open", "ALTER SCHEMA public OWNER TO pith; GRANT CREATE ON SCHEMA public TO PUBLIC", "owner", "everybody may create objects in schema public", "REVOKE CREATE ON SCHEMA public FROM PUBLIC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			own := strings.NewReplacer("$db", s.Name, "$", s.prefix).Replace
			s.admin(own(tt.before))
			before := s.state()
			err := s.run(tt.role)
			pg, ok := errors.AsType[*pgconn.PgError](err)
			if !ok || !strings.Contains(pg.Message, own(tt.message)) || !strings.Contains(pg.Hint, own(tt.hint)) {
				t.Errorf("%v, hint %q", err, pg.Hint)
			}
			if diff := cmp.Diff(before, s.state()); diff != "" {
				t.Errorf("it has changed (-before +after):\n%s", diff)
			}
			s.admin("DROP FUNCTION IF EXISTS task_turn(int)")
			if tt.name == "no schema" {
				s.admin("ALTER TABLE chore RENAME TO task")
			}
		})
	}
}

// Who waits for a strong lock makes all others wait.
func TestTheScriptDoesNotWaitForLong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	before := s.state()
	tx, err := s.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "SELECT FROM task"); err != nil {
		t.Fatal(err)
	}
	err = s.run("owner")
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "55P03" {
		t.Errorf("while somebody reads: %v", err)
	}
	if diff := cmp.Diff(before, s.state()); diff != "" {
		t.Errorf("it has changed (-before +after):\n%s", diff)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.apply()
	// Later ones don't need that lock.
	if tx, err = s.Direct.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM task"); err != nil {
		t.Fatal(err)
	}
	s.apply()
}

func TestWhoElseMayCreateIsNamed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.admin("CREATE ROLE " + s.role("other") + "; GRANT CREATE ON SCHEMA public TO " + s.role("other"))
	var notices []string
	c, err := pgx.ParseConfig(s.url("owner"))
	if err != nil {
		t.Fatal(err)
	}
	c.RuntimeParams["options"] = fmt.Sprintf("-c pith.reader=%[1]sa -c pith.dispatcher=%[1]sb -c pith.worker=%[1]sc -c pith.accounts=%[1]sd", s.prefix)
	c.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Severity+" "+n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
		t.Fatal(err)
	}
	if len(notices) != 1 || !strings.HasPrefix(notices[0], "WARNING role "+s.role("other")+" may create objects in schema public") {
		t.Errorf("notices are %q", notices)
	}
}
