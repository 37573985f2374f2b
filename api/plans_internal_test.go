package api

import (
	"context"
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// plan is a node of a plan, as PostgreSQL tells it.
type plan struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Rows     float64 `json:"Actual Rows"`
	Removed  float64 `json:"Rows Removed by Filter"`
	Loops    float64 `json:"Actual Loops"`
	Plans    []plan  `json:"Plans"`
}

// read is how many rows the nodes of a plan have read of tables task and user_role.
func (p plan) read() float64 {
	n := 0.0
	if p.Relation == "task" || p.Relation == "user_role" {
		n = (p.Rows + p.Removed) * max(p.Loops, 1)
	}
	for _, inner := range p.Plans {
		n += inner.read()
	}
	return n
}

// TestListsDoNotReadWhatIsCompleted counts the rows that lists and counts by state read beside many completed tasks.
func TestListsDoNotReadWhatIsCompleted(t *testing.T) {
	t.Parallel()
	const completed, most = 30000, 1500
	d := dbtest.New(t)
	s := newServer(t, d)
	group, err := s.Tasks().NewGroup(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	name := "pulpcore.app.tasks.test.dummy_task"
	waiting, err := s.Tasks().DispatchMany(t.Context(), []tasking.Request{
		{Name: name, Options: tasking.Options{Exclusive: []string{"r"}, Group: &group}}, {Name: name, Options: tasking.Options{Exclusive: []string{"r"}}}, {Name: name},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tasks().Cancel(t.Context(), waiting[2].ID); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`INSERT INTO task (id, created_at, unblocked_at, started_at, finished_at, kind, attempt, state, blocked_on, reserved_resources_record, logging_cid, args)
		 SELECT gen_random_uuid(), now(), now(), now(), now(), (SELECT min(id) FROM task_kind), 1, 'completed', 0, '{}', '', 'null' FROM generate_series(1, 30000)`,
		"ANALYZE task", "ANALYZE task_reservation",
	} {
		if _, err := d.Direct.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, asked := range []string{
		"", "limit=10&offset=20", "ordering=pulp_created", "ordering=-pk", "state=waiting", "state=running", "state=canceling", "state=failed", "state=canceled",
		"state__in=waiting,running", "state__in=failed,canceled", "q=state=failed AND NOT name=x", "state=completed",
		"task_group=/pulp/api/v3/task-groups/" + group.String() + "/", "parent_task=/pulp/api/v3/tasks/" + waiting[0].ID.String() + "/",
		"pulp_id__in=" + waiting[0].ID.String(), "created_resources=prn:core.task:" + waiting[0].ID.String(),
	} {
		query, err := url.ParseQuery(asked)
		if err != nil {
			t.Fatal(err)
		}
		r := &Request{Query: query, User: &User{Superuser: true}, server: s}
		scope, q, text, args, err := s.own.taskList.statement(t.Context(), r)
		if err != nil {
			t.Fatalf("%s: %v", asked, err)
		}
		statements := []struct {
			text string
			args []any
		}{{text, args}}
		if asked != "state=completed" && asked != "" && query.Get("ordering")+query.Get("limit") == "" { // which are counted otherwise
			statements = append(statements, struct {
				text string
				args []any
			}{"SELECT count(*) FROM " + s.own.taskList.Relation + " WHERE " + scope + " AND " + q.Where, q.Args})
		}
		for _, st := range statements {
			wantRead(t, d, most, st.text, st.args)
		}
	}
	for asked, want := range map[string]int{"": completed + 3, "state=completed": completed, "state=completed&limit=5": completed} {
		query, err := url.ParseQuery(asked)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok, err := s.countTasks(t.Context(), &Request{Query: query, server: s}, true); n != want || !ok || err != nil {
			t.Errorf("%q: %d %t %v, want %d", asked, n, ok, err, want)
		}
	}
}

// wantRead runs a statement, and checks how many rows it reads.
func wantRead(t *testing.T, d *dbtest.DB, most float64, text string, args []any) {
	t.Helper()
	tx, err := d.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }() // it may write, too
	var raw []byte
	if err := tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+text, args...).Scan(&raw); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var plans []struct{ Plan plan }
	if err := json.Unmarshal(raw, &plans); err != nil {
		t.Fatal(err)
	}
	if n := plans[0].Plan.read(); n > most {
		t.Errorf("%.0f rows are read: %s %v\n%s", n, text, args, raw)
	}
}

// TestListsOfOneUserReadAPage: neither all that the user may see, nor all that others own.
func TestListsOfOneUserReadAPage(t *testing.T) {
	t.Parallel()
	const most = 1500
	d := dbtest.New(t)
	s := newServer(t, d)
	for _, sql := range []string{
		`INSERT INTO task_kind (name, versions, max_attempts, backoff) VALUES ('k', '{}', 1, '0')`,
		`INSERT INTO task (id, created_at, unblocked_at, started_at, finished_at, kind, attempt, state, blocked_on, reserved_resources_record, logging_cid, args)
		 SELECT gen_random_uuid(), now(), now(), now(), now(), (SELECT min(id) FROM task_kind), 1, 'completed', 0, '{}', '', 'null' FROM generate_series(1, 30000)`,
		`INSERT INTO auth_user (username, password) VALUES ('all', '!'), ('few', '!'), ('none', '!')`,
		`INSERT INTO user_role (id, user_id, role, model, object)
		 SELECT gen_random_uuid(), 1, r, 'core.task', t.id::text FROM task t, (VALUES ('core.task_owner'), ('core.task_user_dispatcher')) v (r)`,
		`INSERT INTO user_role (id, user_id, role, model, object)
		 SELECT gen_random_uuid(), 2, 'core.task_owner', 'core.task', t.id::text FROM (SELECT id FROM task ORDER BY id LIMIT 10) t
		 UNION ALL SELECT gen_random_uuid(), 2, 'core.task_viewer', 'core.task', t.id::text FROM (SELECT id FROM task ORDER BY id LIMIT 8 OFFSET 5) t`,
		// Many have roles on all objects, which must not be read for each task.
		`INSERT INTO auth_user (username, password) SELECT 'u' || n, '!' FROM generate_series(1, 3000) n`,
		`INSERT INTO user_role (id, user_id, role)
		 SELECT gen_random_uuid(), u.id, r FROM auth_user u, (VALUES ('core.task_user_dispatcher'), ('things.thing_creator')) v (r) WHERE u.id > 3`,
		`INSERT INTO task_group (id, description) SELECT gen_random_uuid(), '' FROM generate_series(1, 100)`,
		`UPDATE task t SET task_group = g.id FROM (SELECT id, row_number() OVER () AS n FROM task_group) g
		 JOIN (SELECT id, row_number() OVER () AS n FROM task LIMIT 1000) m ON m.n % 100 = g.n % 100 WHERE t.id = m.id`,
		"ANALYZE task", "ANALYZE user_role", "ANALYZE task_kind",
	} {
		if _, err := d.Direct.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	var groups []string
	if err := d.Direct.QueryRow(t.Context(), "SELECT array_agg(id::text) FROM (SELECT id FROM task_group LIMIT 10) g").Scan(&groups); err != nil {
		t.Fatal(err)
	}
	for user := 1; user <= 3; user++ {
		for _, asked := range []string{"", "limit=10&offset=20", "ordering=pulp_created"} {
			query, err := url.ParseQuery(asked)
			if err != nil {
				t.Fatal(err)
			}
			_, _, text, args, err := s.own.taskList.statement(t.Context(), &Request{Query: query, User: &User{ID: user}, server: s})
			if err != nil {
				t.Fatal(err)
			}
			wantRead(t, d, most, text, args)
		}
		want := []int{30000, 13, 0}[user-1]
		if n, ok, err := s.countTasks(t.Context(), &Request{User: &User{ID: user}, server: s}, false); n != want || !ok || err != nil {
			t.Errorf("user %d sees %d tasks, %t %v, want %d", user, n, ok, err, want)
		}
		wantRead(t, d, most, db.TaskOfGroups, []any{groups, user, s.rolesWith(viewTask)})
		wantRead(t, d, most, db.TaskGroupPermitted, []any{user, s.rolesWith(viewTask), s.rolesWith("core.change_task"), groups[0]})
	}
	var ids []string
	if err := d.Direct.QueryRow(t.Context(), "SELECT array_agg(i.id::text) FROM (SELECT t.id FROM task t ORDER BY t.id LIMIT 200) i").Scan(&ids); err != nil {
		t.Fatal(err)
	}
	roles := []string{"core.task_owner", "core.task_viewer"}
	for user := range 4 {
		wantRead(t, d, 10, db.UserRoleHeld, []any{user, taskModel, ids[0]})
		wantRead(t, d, most, db.UserRoleHeldOn, []any{ids, user, roles, taskModel})
		wantRead(t, d, most, db.TaskPurge, []any{uuid.Nil, len(ids), time.Now().Add(time.Hour), []string{"completed"}, user})
	}
}
