package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

// groupFields are the fields of a task group in Pulp's order.
var groupFields = []string{
	"pulp_href", "prn", "description", "all_tasks_dispatched", "waiting", "skipped", "running", "completed", "canceled", "failed", "canceling",
	"group_progress_reports", "tasks",
}

// newMembers makes a group with a task in each state, and answers its href and theirs.
func newMembers(h *harness) (group string, tasks map[string]string) {
	h.t.Helper()
	id, group := h.newGroup("a group")
	tasks = map[string]string{}
	for _, e := range newEnds(h) {
		h.exec("UPDATE task SET task_group = $2 WHERE id = $1", e.id, id)
		h.exec("INSERT INTO progress_report VALUES ($1, 0, 'Counting', 'count', 'completed', 10, 4, NULL)", e.id)
		tasks[e.state] = e.task
	}
	h.dispatch("dummy_task", nil, tasking.Options{}) // of no group
	return group, tasks
}

func TestGroupCountsItsTasks(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	group, tasks := newMembers(h)
	body := h.want(get(group), http.StatusOK, nil).body
	if diff := cmp.Diff(groupFields, members(t, body)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	got := h.object(group)
	list, _ := got["tasks"].([]any)
	var found []string
	for _, member := range list {
		m, _ := member.(map[string]any)
		href, _ := m["pulp_href"].(string)
		found = append(found, href)
		if diff := cmp.Diff(h.object(href+"?minimal=true"), m); diff != "" {
			t.Errorf("a task (-alone +in the group):\n%s", diff)
		}
	}
	want := []string{}
	for _, task := range tasks {
		want = append(want, task)
	}
	if diff := cmp.Diff(sorted(want), sorted(found)); diff != "" {
		t.Errorf("tasks (-want +got):\n%s", diff)
	}
	delete(got, "tasks")
	if diff := cmp.Diff(map[string]any{
		"pulp_href": group, "prn": "prn:core.taskgroup:" + keyIn(group), "description": "a group", "all_tasks_dispatched": false,
		"waiting": 1.0, "skipped": 1.0, "running": 1.0, "completed": 1.0, "canceled": 1.0, "failed": 1.0, "canceling": 1.0,
		"group_progress_reports": []any{map[string]any{"message": "Counting", "code": "count", "total": 70.0, "done": 28.0, "suffix": nil}},
	}, got); diff != "" {
		t.Errorf("group (-want +got):\n%s", diff)
	}

	var page struct{ Results []json.RawMessage }
	h.get("task-groups/", &page)
	if len(page.Results) != 1 || string(page.Results[0]) != string(body) {
		t.Errorf("in a list %s, alone %s", page.Results, body)
	}
	h.get("task-groups/?fields=failed,tasks,description", &page)
	if diff := cmp.Diff([]string{"description", "failed", "tasks"}, members(t, page.Results[0])); diff != "" {
		t.Errorf("selected (-want +got):\n%s", diff)
	}
	var member struct{ Tasks []json.RawMessage }
	h.get(group, &member)
	if diff := cmp.Diff(minimalFields, members(t, member.Tasks[0])); diff != "" {
		t.Errorf("fields of a task (-want +got):\n%s", diff)
	}
}

func TestGroupWithoutTasksIsThere(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, group := h.newGroup("")
	got := h.object(group)
	for _, name := range []string{"group_progress_reports", "tasks"} {
		if list, ok := got[name].([]any); !ok || len(list) > 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	h.want(patch(group, canceled), http.StatusOK, nil)
}

func TestCancelOfAGroupCancelsWhatWaitsOrRuns(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	group, tasks := newMembers(h)
	for range 2 { // canceling twice is canceling once
		var got map[string]any
		reply := h.want(patch(group, canceled), http.StatusOK, &got)
		if diff := cmp.Diff(groupFields, members(t, reply.body)); diff != "" {
			t.Errorf("fields (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(h.object(group), got); diff != "" {
			t.Errorf("group (-as it is then +told):\n%s", diff)
		}
		counts := map[string]any{}
		for _, name := range groupFields[3:11] {
			counts[name] = got[name]
		}
		if diff := cmp.Diff(map[string]any{
			"all_tasks_dispatched": true, "waiting": 0.0, "skipped": 1.0, "running": 0.0, "completed": 1.0, "canceled": 2.0, "failed": 1.0, "canceling": 2.0,
		}, counts); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
	}
	for before, task := range tasks {
		want := before
		switch before {
		case "waiting":
			want = "canceled"
		case "running":
			want = "canceling"
		}
		if got := h.state(task); got != want {
			t.Errorf("%s became %s", before, got)
		}
	}
}

// A task may come to a group while its other tasks are canceled; a trigger stands for who dispatches it.
func TestCancelOfAGroupThatATaskJoinsMeanwhileIsAConflict(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, group := h.newGroup("")
	h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
	h.exec(`CREATE FUNCTION join_group() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO task (id, kind, state, not_before, reserved_resources_record, logging_cid, task_group, args)
			VALUES ('` + uuid.Nil.String() + `', NEW.kind, 'waiting', now() + interval '1 hour', '{}', '', NEW.task_group, 'null');
			RETURN NULL;
		END
		$$`)
	h.exec("CREATE TRIGGER join_group AFTER UPDATE ON task FOR EACH ROW WHEN (NEW.state = 'canceled' AND OLD.state = 'waiting' AND NEW.id > '" + uuid.Nil.String() + "') EXECUTE FUNCTION join_group()")
	var got struct{ Waiting, Canceled int }
	h.want(patch(group, canceled), http.StatusConflict, &got)
	if got.Waiting != 1 || got.Canceled != 1 {
		t.Errorf("%+v", got)
	}
	h.want(patch(group, canceled), http.StatusConflict, nil)
	h.want(patch(root+"tasks/"+uuid.Nil.String()+"/", canceled), http.StatusOK, nil)
	h.want(patch(group, canceled), http.StatusOK, nil)
}

// statements counts what goes through a pool.
type statements struct {
	pgx.QueryTracer
	sent atomic.Int32
}

// TraceQueryStart counts a statement.
func (s *statements) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	s.sent.Add(1)
	return s.QueryTracer.TraceQueryStart(ctx, conn, data)
}

func TestListOfGroupsTakesAsManyStatementsForManyAsForOne(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	config := h.db.Pool.Config()
	counted := &statements{QueryTracer: config.ConnConfig.Tracer}
	config.ConnConfig.Tracer = counted
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	plain := h.db.Pool
	t.Cleanup(func() { h.db.Pool = plain; pool.Close() })
	h.db.Pool = pool
	h.serve(h.newClient, api.Config{})
	var counts []int32
	for n := range 3 {
		for range n {
			newMembers(h)
		}
		h.want(get("task-groups/"), http.StatusOK, nil) // the first time more may be asked
		before := counted.sent.Load()
		h.want(get("task-groups/"), http.StatusOK, nil)
		counts = append(counts, counted.sent.Load()-before)
	}
	if counts[2] != counts[1] || counts[1] > 6 {
		t.Errorf("statements for 0, 1 and 3 groups: %v", counts)
	}
}

func TestEachGroupOfAListHasItsOwnTasks(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var groups []string
	for i := range 3 {
		id, group := h.newGroup(fmt.Sprint(i))
		for range i {
			task, _ := h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
			h.exec("INSERT INTO progress_report VALUES ($1, 0, 'Counting', 'count', 'completed', 10, 4, NULL)", task)
		}
		groups = append(groups, group)
	}
	var page struct{ Results []json.RawMessage }
	h.get("task-groups/", &page)
	if len(page.Results) != len(groups) {
		t.Fatalf("%d groups are listed", len(page.Results))
	}
	for i, group := range groups {
		alone := h.want(get(group), http.StatusOK, nil).body
		if listed := page.Results[len(groups)-1-i]; string(listed) != string(alone) {
			t.Errorf("group %d is listed as %s, and alone is %s", i, listed, alone)
		}
	}
}

func TestPageOfGroupsIsShorterThanThoseOfOtherLists(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec("INSERT INTO task_group (id, description) SELECT gen_random_uuid(), n::text FROM generate_series(1, 201) n")
	seen := map[string]bool{}
	for query, want := range map[string]part{
		"limit=1000":            {201, "limit=100&offset=100", none, nil},
		"limit=1000&offset=100": {201, "limit=100&offset=200", "limit=100", nil},
		"limit=1000&offset=200": {201, none, "limit=100&offset=100", nil},
	} {
		got := h.partOf("task-groups/", query, "description")
		for _, name := range got.Names {
			seen[name] = true
		}
		got.Names = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	if len(seen) != 201 {
		t.Errorf("the pages have %d groups", len(seen))
	}
}

func TestGroupsAreNewestFirst(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, name := range []string{"b", "c", "a"} {
		h.newGroup(name)
	}
	got := names(t, h.want(get("task-groups/"), http.StatusOK, nil).body, "description")
	if !slices.Equal(got, strings.Fields("a c b")) {
		t.Errorf("%v", got)
	}
}

// tasksOf are the hrefs of the tasks that a group tells.
func tasksOf(group map[string]any) []string {
	list := []string{}
	for _, task := range group["tasks"].([]any) {
		list = append(list, task.(map[string]any)["pulp_href"].(string))
	}
	return list
}

func TestGroupTellsTheTasksThatTheUserMayViewAndCountsAll(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_user_dispatcher")
	h.newUser("vera", "core.task_viewer")
	h.newUser("olga", "core.task_owner")
	var groups, all []string
	for range 2 {
		id, group := h.newGroup("")
		_, first := h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
		_, second := h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
		h.give(lena, "core.task_owner", second)
		groups, all = append(groups, group), append(all, first, second)
	}
	h.give(lena, "core.task_user_dispatcher", all[0]) // which lets nobody view it
	told := func(user string, group map[string]any, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, tasksOf(group)); diff != "" || group["waiting"] != 2.0 {
			t.Errorf("%s is told of %v waiting tasks, and of these (-want +got):\n%s", user, group["waiting"], diff)
		}
	}
	for user, want := range map[string][][]string{"admin": {all[:2], all[2:]}, "vera": {all[:2], all[2:]}, "olga": {all[:2], all[2:]}, "lena": {all[1:2], all[3:]}} {
		var page struct{ Results []map[string]any }
		h.want(get("task-groups/").by(user), http.StatusOK, &page)
		if len(page.Results) != 2 {
			t.Fatalf("%s is told of %d groups", user, len(page.Results))
		}
		for i, group := range groups {
			told(user, page.Results[1-i], want[i]...)
			var alone map[string]any
			h.want(get(group).by(user), http.StatusOK, &alone)
			told(user, alone, want[i]...)
		}
	}
}
