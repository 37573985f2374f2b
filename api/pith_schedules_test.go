package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/tasking"
)

// scheduled is a schedule as the API tells of one.
type scheduled struct {
	PulpHref string `json:"pulp_href"`
	PRN      string
	Name     string
	TaskName string     `json:"task_name"`
	Interval *string    `json:"dispatch_interval"`
	Next     *time.Time `json:"next_dispatch"`
	LastTask *string    `json:"last_task"`
}

// plan asks for a schedule of this name, with more members of its body.
func plan(name, more string) request {
	return request{
		method: http.MethodPost, path: pithRoot + "task-schedules/",
		body: `{"name": "` + name + `", "task_name": "` + testModule + `dummy_task"` + more + `}`,
	}
}

func TestScheduleIsCreatedReadAndDeleted(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, task := h.dispatch("dummy_task", nil, tasking.Options{})
	var made scheduled
	got := h.want(plan("nightly", `, "args": {"a": [1]}, "priority": 7, "exclusive_resources": ["`+task+`"], "shared_resources": ["free text"],
		"dispatch_interval": "1 00:00:00", "next_dispatch": "2100-02-03T04:05:06Z"`), http.StatusCreated, &made)
	want := []string{"pulp_href", "prn", "pulp_created", "pulp_last_updated", "name", "task_name", "dispatch_interval", "next_dispatch", "last_task"}
	if diff := cmp.Diff(want, members(t, got.body)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	if got.header.Get("Location") != made.PulpHref || made.PRN != "prn:core.taskschedule:"+keyIn(made.PulpHref) || made.Name != "nightly" ||
		made.TaskName != testModule+"dummy_task" || !strings.Contains(string(got.body), `"next_dispatch":"2100-02-03T04:05:06.000000Z"`) || made.LastTask != nil {
		t.Errorf("created: %s, Location %q", got.body, got.header.Get("Location"))
	}
	if read := h.want(request{path: made.PulpHref}, http.StatusOK, nil); string(read.body) != string(got.body) {
		t.Errorf("created as\n%s and read as\n%s", got.body, read.body)
	}
	list, err := h.client.Schedules(t.Context(), 10, 0)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if s := list[0]; string(s.Args) != `{"a": [1]}` || s.Priority != 7 || !cmp.Equal(s.Exclusive, []string{"prn:core.task:" + id.String()}) ||
		!cmp.Equal(s.Shared, []string{"free text"}) || s.Interval != 24*time.Hour {
		t.Errorf("saved: %+v", s)
	}
	if n := h.rolesOn(made.PulpHref); n != 1 {
		t.Errorf("%d roles on it", n)
	}

	own := request{method: http.MethodDelete, path: strings.Replace(made.PulpHref, root, pithRoot, 1)}
	h.answers(own, http.StatusNoContent, "")
	h.answers(own, http.StatusNotFound, noSchedule)
	h.answers(request{path: made.PulpHref}, http.StatusNotFound, noSchedule)
	if n := h.rolesOn(made.PulpHref); n != 0 {
		t.Errorf("%d roles on what is deleted", n)
	}
	h.want(plan("nightly", ""), http.StatusCreated, nil) // the name is free again
}

func TestIntervalOfAScheduleIsTextOfSeveralForms(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for text, want := range map[string]string{
		"1 00:00:00":       "1 00:00:00",
		"26:00:00":         "1 02:00:00",
		"00:05:00":         "00:05:00",
		"01:30":            "00:01:30",
		"90":               "00:01:30",
		"1":                "00:00:01",
		"00:00:02.300000":  "00:00:02.300000",
		"1.000001":         "00:00:01.000001",
		" 3 1:2:3.5 ":      "3 01:02:03.500000",
		"365 23:59:59.999": "365 23:59:59.999000",
		"2 5":              "2 00:00:05",
	} {
		var got scheduled
		h.want(plan("every "+text, `, "dispatch_interval": "`+text+`"`), http.StatusCreated, &got)
		if got.Interval == nil || *got.Interval != want {
			t.Errorf("%q is told as %s", text, value(t, h.send(request{path: got.PulpHref}).body).(map[string]any)["dispatch_interval"])
		}
	}
}

func TestScheduleByCronOrOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var got scheduled
	h.want(plan("cron", `, "cron": "30 4 * * *"`), http.StatusCreated, &got)
	if got.Interval != nil || got.Next == nil || got.Next.UTC().Hour() != 4 || got.Next.Minute() != 30 {
		t.Errorf("by cron: %+v", got)
	}
	h.want(plan("once", ""), http.StatusCreated, &got)
	var passed bool
	if err := h.db.Direct.QueryRow(t.Context(), "SELECT now() - $1::timestamptz BETWEEN '0' AND '1 hour'", got.Next).Scan(&passed); err != nil || !passed || got.Interval != nil {
		t.Errorf("once: %+v, %v", got, err)
	}
	if n, err := h.client.DispatchDue(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	h.get(got.PulpHref, &got)
	if got.Next != nil || got.LastTask == nil {
		t.Fatalf("once, afterwards: %+v", got)
	}
	if task := h.ended(*got.LastTask); task.State != "waiting" {
		t.Errorf("its task: %+v", task)
	}
	h.want(request{method: http.MethodDelete, path: strings.Replace(got.PulpHref, root, pithRoot, 1)}, http.StatusNoContent, nil)
	if task := h.ended(*got.LastTask); task.State != "waiting" {
		t.Errorf("its task after the schedule: %+v", task)
	}
}

func TestBadSchedulesAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.want(plan("taken", `, "cron": "0 0 * * *"`), http.StatusCreated, nil)
	h.answers(plan("taken", ""), http.StatusBadRequest, `{"name": ["This field must be unique."]}`)
	h.answers(plan("", ""), http.StatusBadRequest, `{"name": ["This field may not be blank."]}`)
	h.answers(plan(strings.Repeat("n", 256), ""), http.StatusBadRequest, `{"name": ["Ensure this field has no more than 255 characters."]}`)
	h.answers(request{method: http.MethodPost, path: pithRoot + "task-schedules/", body: `{"shared_resources": [""]}`}, http.StatusBadRequest,
		`{"name": ["This field is required."], "task_name": ["This field is required."], "shared_resources": {"0": ["This field may not be blank."]}}`)
	for _, text := range []string{"abc", "-1", "1 -1", "1:2:3:4", "1 2 3", "1e3", "0x10", "NaN", "Inf", "1.5:00", "1 day", "00:", "70000 00:00:00", "65535 1000000:00:00"} {
		h.answers(plan("s", `, "dispatch_interval": "`+text+`"`), http.StatusBadRequest,
			`{"dispatch_interval": ["Duration has wrong format. Use one of these formats instead: [DD] [HH:[MM:]]ss[.uuuuuu]."]}`)
	}
	for _, text := range []string{"0", "00:00:00", "0.999", "0 00:00:00.000001"} {
		h.answers(plan("s", `, "dispatch_interval": "`+text+`"`), http.StatusBadRequest, `{"dispatch_interval": ["Ensure this value is at least a second."]}`)
	}
	const (
		cron     = `"cron": ["cron expression \"x\" has 1 fields: five fields are needed, such as \"30 4 * * *\""]`
		priority = `"priority": ["priority 10001: must be between -10000 and 10000"]`
		name     = `"exclusive_resources": ["resource \"shared:a\": a name must not begin with \"shared:\"; list it among the shared resources"]`
		args     = `"args": ["arguments must not be an object with the one key \"$encrypted\""]`
	)
	for more, want := range map[string]string{
		`, "dispatch_interval": "60", "cron": "0 0 * * *"`: `"non_field_errors": ["interval and cron expression exclude each other"]`,
		`, "cron": "x"`:                                  cron,
		`, "cron": "60 0 * * *"`:                         `"cron": ["cron expression \"60 0 * * *\": \"60\" is no minute (0 to 59)"]`,
		`, "cron": "0 0 31 2 *"`:                         `"cron": ["cron expression \"0 0 31 2 *\" is never due: give a day that its month has"]`,
		`, "priority": 10001`:                            priority,
		`, "exclusive_resources": ["shared:a"]`:          name,
		`, "args": {"$encrypted": "gAAAA"}`:              args,
		`, "args": {"$diagnostics": ["cpu"], "args": 1}`: `"args": ["arguments must not be an object with the keys \"$diagnostics\" and \"args\""]`,
		`, "cron": "x", "priority": 10001, "exclusive_resources": ["shared:a"], "args": {"$encrypted": "gAAAA"}`: cron + `, ` + priority + `, ` + name + `, ` + args,
	} {
		h.answers(plan("s", more), http.StatusBadRequest, `{`+want+`}`)
	}
	h.answers(plan(strings.Repeat("ü", 128), ""), http.StatusBadRequest, `{"name": ["a name of 1 to 255 bytes is required"]}`)
	if got := names(t, h.want(request{path: "task-schedules/"}, http.StatusOK, nil).body, "name"); !cmp.Equal(got, []string{"taken"}) {
		t.Errorf("schedules are %v", got)
	}
	if n := h.scheduleRoles(); n != 1 {
		t.Errorf("%d roles on schedules", n)
	}
}

// scheduleRoles counts the roles on schedules, there or not.
func (h *harness) scheduleRoles() int {
	h.t.Helper()
	return column[int](h, "SELECT count(*) FROM user_role WHERE model = 'core.taskschedule'")[0]
}

// whileOpen sends a request, and commits a transaction once the request waits for it.
func (h *harness) whileOpen(tx pgx.Tx, r request) reply {
	h.t.Helper()
	done := make(chan reply, 1)
	go func() { done <- h.send(r) }()
	h.db.UntilBlocked(h.t)
	if err := tx.Commit(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return <-done
}

// begin begins a transaction with a statement, beside the server.
func (h *harness) begin(sql string, args ...any) pgx.Tx {
	h.t.Helper()
	tx, err := h.db.Direct.Begin(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := tx.Exec(h.t.Context(), sql, args...); err != nil {
		h.t.Fatal(err)
	}
	return tx
}

func TestOfTwoSchedulesOfOneNameThatAreCreatedAtOnceTheFirstStays(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	rival := uuid.New()
	tx := h.begin("INSERT INTO task_schedule (id, name, task_name, args) VALUES ($1, 's', $2, '1')", rival, testModule+"dummy_task")
	got := h.whileOpen(tx, plan("s", `, "cron": "0 0 * * *"`))
	if got.status != http.StatusBadRequest || !strings.Contains(string(got.body), `{"name":["This field must be unique."]}`) {
		t.Errorf("the second is answered %d, %s", got.status, got.body)
	}
	list, err := h.client.Schedules(t.Context(), 10, 0)
	if err != nil || len(list) != 1 || list[0].ID != rival || list[0].Cron != "" || string(list[0].Args) != "1" {
		t.Errorf("%+v, %v", list, err)
	}
	if n := h.scheduleRoles(); n != 0 {
		t.Errorf("%d roles on schedules", n)
	}
}

func TestNoScheduleIsCreatedWithoutAnOwner(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$")
	h.exec("CREATE TRIGGER refuse BEFORE INSERT ON user_role EXECUTE FUNCTION refuse()")
	h.want(plan("s", ""), http.StatusInternalServerError, nil)
	h.sees("task-schedules/", "admin")
}

func TestDeleteOfAScheduleLeavesOneThatHasReplacedIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var made scheduled
	h.want(plan("s", ""), http.StatusCreated, &made)
	successor := root + "task-schedules/" + uuid.NewString() + "/"
	h.exec("INSERT INTO user_role (id, user_id, role, model, object) VALUES ($1, 1, 'core.taskschedule_owner', 'core.taskschedule', $2)", uuid.New(), keyIn(successor))
	tx := h.begin("UPDATE task_schedule SET id = $1", keyIn(successor))
	h.whileOpen(tx, send(http.MethodDelete, strings.Replace(made.PulpHref, root, pithRoot, 1), nil))
	h.sees("task-schedules/", "admin", successor)
	if old, successor := h.rolesOn(made.PulpHref), h.rolesOn(successor); old != 0 || successor != 1 {
		t.Errorf("%d roles on the one that was replaced, %d on its successor", old, successor)
	}
}

func TestScheduleIsDeletedByWhoOwnsIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("dora", "core.task_user_dispatcher")
	eve := h.newUser("eve", "core.task_user_dispatcher")
	r := plan("dora's", "")
	r.user = "dora"
	var made scheduled
	h.want(r, http.StatusCreated, &made)
	h.sees("task-schedules/", "dora", made.PulpHref)
	h.sees("task-schedules/", "eve")

	remove := request{method: http.MethodDelete, path: strings.Replace(made.PulpHref, root, pithRoot, 1), user: "eve"}
	h.answers(remove, http.StatusNotFound, noSchedule)
	h.give(eve, "core.taskschedule_viewer", made.PulpHref)
	h.answers(remove, http.StatusForbidden, denied)
	remove.user = "dora"
	h.answers(remove, http.StatusNoContent, "")
	h.sees("task-schedules/", "admin")
}
