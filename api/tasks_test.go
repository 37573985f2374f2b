package api_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

// taskFields and minimalFields are the fields of a task in Pulp's order.
var (
	taskFields = []string{
		"pulp_href", "prn", "pulp_created", "pulp_last_updated", "state", "name", "logging_cid", "created_by", "unblocked_at", "started_at", "finished_at",
		"error", "worker", "parent_task", "child_tasks", "task_group", "progress_reports", "created_resources", "created_resource_prns",
		"reserved_resources_record", "result", "pulp_api_version",
	}
	minimalFields = []string{
		"pulp_href", "prn", "pulp_created", "pulp_last_updated", "pulp_api_version", "name", "state", "unblocked_at", "started_at", "finished_at", "worker",
	}
)

// times is how times are written.
var times = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)

func TestTaskHasPulpsFieldsInTheirOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.dispatch("dummy_task", nil, tasking.Options{})
	task := h.accepted(post("tasks/purge/", nil))
	h.drain()
	for _, path := range []string{"tasks/?limit=1", "tasks/?limit=1&offset=1", "tasks/?limit=1&minimal=true", task, task + "?minimal=1", task + "?minimal=no"} {
		body := h.want(get(path), http.StatusOK, nil).body
		if strings.Contains(path, "limit") {
			var page struct{ Results []json.RawMessage }
			h.get(path, &page)
			if diff := cmp.Diff([]string{"count", "next", "previous", "results"}, members(t, body)); diff != "" {
				t.Errorf("%s: page (-want +got):\n%s", path, diff)
			}
			body = page.Results[0]
		}
		want := taskFields
		if strings.Contains(path, "minimal=true") || strings.Contains(path, "minimal=1") {
			want = minimalFields
		}
		if diff := cmp.Diff(want, members(t, body)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}

func TestTaskTellsAllThatIsKnown(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	group, groupHref := h.newGroup("")
	const cid = "0123456789abcdef0123456789abcdef"
	id, task := h.dispatch("dummy_task", nil, tasking.Options{
		Exclusive: []string{"apple"}, Shared: []string{"pear"}, Group: &group, CorrelationID: cid,
	})
	parent, parentHref := h.dispatch("dummy_task", nil, tasking.Options{})
	child, childHref := h.dispatch("dummy_task", nil, tasking.Options{})
	h.exec("UPDATE task SET parent_task = $2 WHERE id = $1", id, parent)
	h.exec("UPDATE task SET parent_task = $2 WHERE id = $1", child, id)
	prns := []string{"prn:core.task:" + child.String(), "prn:file.filerepository:" + nowhere, "prn:auth.user:1"}
	for i, prn := range prns {
		h.exec("INSERT INTO created_resource VALUES ($1, $2, $3)", id, i, prn)
	}
	worker := h.register("a worker")
	h.claim(worker)
	h.exec("INSERT INTO progress_report VALUES ($1, 0, 'Counting', 'count', 'running', 10, 4, 'units'), ($1, 1, 'Weighing', 'weigh', 'completed', NULL, 0, NULL)", id)

	got := h.object(task)
	for _, name := range []string{"pulp_created", "unblocked_at", "started_at"} {
		if text, _ := got[name].(string); !times.MatchString(text) {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	want := map[string]any{
		"pulp_href": task, "prn": "prn:core.task:" + id.String(), "pulp_created": got["pulp_created"], "pulp_last_updated": got["pulp_created"],
		"state": "running", "name": testModule + "dummy_task", "logging_cid": cid, "created_by": nil, "unblocked_at": got["unblocked_at"],
		"started_at": got["started_at"], "finished_at": nil, "error": nil, "worker": nil, "parent_task": parentHref, "child_tasks": []any{childHref},
		"task_group": groupHref, "progress_reports": []any{
			map[string]any{"message": "Counting", "code": "count", "state": "running", "total": 10.0, "done": 4.0, "suffix": "units"},
			map[string]any{"message": "Weighing", "code": "weigh", "state": "completed", "total": nil, "done": 0.0, "suffix": nil},
		},
		"created_resources":         []any{childHref, "<unavailable>", root + "users/1/"},
		"created_resource_prns":     []any{prns[0], prns[1], prns[2]},
		"reserved_resources_record": []any{"apple", "shared:pear", "shared:" + tasking.Domain},
		"result":                    nil, "pulp_api_version": "v3",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("task (-want +got):\n%s", diff)
	}
	var page struct{ Results []map[string]any }
	h.get("tasks/?pulp_id__in="+id.String(), &page)
	if diff := cmp.Diff([]map[string]any{want}, page.Results); diff != "" {
		t.Errorf("in a list (-want +got):\n%s", diff)
	}
	if body := h.want(get(task), http.StatusOK, nil).body; !strings.Contains(string(body), `"<unavailable>"`) {
		t.Errorf("escaped: %s", body)
	}

	h.finish(worker, id, tasking.Completed, `{"b": [1, "ü<>&"], "a": null}`, "")
	want["state"], want["finished_at"], want["result"] = "completed", h.object(task)["finished_at"], map[string]any{"b": []any{1.0, "ü<>&"}, "a": nil}
	want["progress_reports"].([]any)[0].(map[string]any)["state"] = "completed"
	if text, _ := want["finished_at"].(string); !times.MatchString(text) {
		t.Errorf("finished_at is %v", want["finished_at"])
	}
	if diff := cmp.Diff(want, h.object(task)); diff != "" {
		t.Errorf("completed (-want +got):\n%s", diff)
	}
}

func TestErrorOfATaskIsAnObject(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, failed := h.dispatch("failing_task", map[string]string{"error_message": "no luck, <ü>"}, tasking.Options{})
	h.drain()
	worker := h.register("a worker")
	coded, codedHref := h.dispatch("dummy_task", nil, tasking.Options{})
	aborted, abortedHref := h.dispatch("dummy_task", nil, tasking.Options{})
	gone, goneHref := h.dispatch("dummy_task", nil, tasking.Options{})
	h.claim(worker)
	h.finish(worker, coded, tasking.Failed, "", `{"description": "[PLP0024] too long", "traceback": "here", "error_code": "PLP0024"}`)
	h.finish(worker, aborted, tasking.Failed, "", `{"reason": "Worker has gone missing."}`)
	h.cancel(gone)
	h.finish(worker, gone, tasking.Failed, "", `{"reason": "Aborted"}`)

	got, _ := h.object(failed)["error"].(map[string]any)
	if trace, ok := got["traceback"].(string); !ok || got["description"] != "no luck, <ü>" || len(got) != 2 {
		t.Errorf("error %v, traceback %q", got, trace)
	}
	for task, want := range map[string]any{
		codedHref:   map[string]any{"description": "[PLP0024] too long", "traceback": "here", "error_code": "PLP0024"},
		abortedHref: map[string]any{"reason": "Worker has gone missing."},
		goneHref:    nil,
	} {
		if diff := cmp.Diff(want, h.object(task)["error"]); diff != "" {
			t.Errorf("error (-want +got):\n%s", diff)
		}
	}
}

func TestFieldsAreSelected(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	without := func(fields []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(fields), func(f string) bool { return slices.Contains(names, f) })
	}
	for query, want := range map[string][]string{
		"fields=state":                                     {"state"},
		"fields=state,pulp_href":                           {"pulp_href", "state"},
		"fields=state&fields=pulp_href":                    {"pulp_href", "state"},
		"fields=%20state%20,,nothing":                      {"state"},
		"fields=nothing":                                   nil,
		"fields=":                                          taskFields,
		"exclude_fields=state,result":                      without(taskFields, "state", "result"),
		"exclude_fields=state&exclude_fields=result":       without(taskFields, "state", "result"),
		"exclude_fields=nothing":                           taskFields,
		"fields=state,name&exclude_fields=name":            {"state"},
		"minimal=true&fields=worker,result,prn":            {"prn", "worker"},
		"minimal=true&exclude_fields=prn,error":            without(minimalFields, "prn"),
		"exclude_fields=" + strings.Join(taskFields, ","):  nil,
		"fields=state&minimal=false&minimal=true":          {"state"},
		"fields=reserved_resources_record,progress_report": {"reserved_resources_record"},
	} {
		body := h.want(get(task+"?"+query), http.StatusOK, nil).body
		if diff := cmp.Diff(want, members(t, body)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
		var page struct{ Results []json.RawMessage }
		h.get("tasks/?"+query, &page)
		if len(page.Results) != 1 || string(page.Results[0]) != string(body) {
			t.Errorf("%s: in a list %s, alone %s", query, page.Results, body)
		}
	}
}

// end is what becomes of a task that is canceled, or deleted.
type end struct {
	state          string // before
	cancel, delete int    // the statuses
	after          string // the state after a cancel
	id             uuid.UUID
	task           string
}

// newEnds makes a task in each state.
func newEnds(h *harness) []end {
	h.t.Helper()
	list := []end{
		{state: "completed", cancel: 409, delete: 204, after: "completed"},
		{state: "failed", cancel: 409, delete: 204, after: "failed"},
		{state: "skipped", cancel: 409, delete: 204, after: "skipped"},
		{state: "canceled", cancel: 200, delete: 204, after: "canceled"},
		{state: "canceling", cancel: 200, delete: 409, after: "canceling"},
		{state: "running", cancel: 200, delete: 409, after: "canceling"},
		{state: "waiting", cancel: 200, delete: 409, after: "canceled"},
	}
	worker := h.register("a worker")
	for i := range list {
		e := &list[i]
		body := map[string]any{"name": testModule + "dummy_task"}
		if e.state == "waiting" {
			body["not_before"] = time.Now().Add(time.Hour)
		}
		e.task = h.accepted(post(pithRoot+"tasks/", body))
		e.id = uuid.MustParse(keyIn(e.task))
		h.claim(worker)
		switch e.state {
		case "completed":
			h.finish(worker, e.id, tasking.Completed, "", "")
		case "failed":
			h.finish(worker, e.id, tasking.Failed, "", `{"description": "no luck"}`)
		case "skipped":
			h.finish(worker, e.id, tasking.Completed, "", "")
			h.exec("UPDATE task SET state = 'skipped' WHERE id = $1", e.id)
		case "canceled":
			h.cancel(e.id)
			h.finish(worker, e.id, tasking.Failed, "", `{"description": "no luck"}`)
		case "canceling":
			h.cancel(e.id)
		}
		if got := h.state(e.task); got != e.state {
			h.t.Fatalf("a task is %s, not %s", got, e.state)
		}
	}
	return list
}

func TestCancelAnswersTheTaskAsItIsThen(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, e := range newEnds(h) {
		for range 2 { // canceling twice is canceling once
			before := h.object(e.task)
			if before["created_by"] != root+"users/1/" {
				t.Errorf("%s: created by %v", e.state, before["created_by"])
			}
			got := h.want(patch(e.task, canceled), e.cancel, nil)
			if diff := cmp.Diff(taskFields, members(t, got.body)); diff != "" {
				t.Errorf("%s: fields (-want +got):\n%s", e.state, diff)
			}
			want := h.object(e.task)
			if want["state"] != e.after {
				t.Errorf("%s: after a cancel %s, want %s", e.state, want["state"], e.after)
			}
			want["created_by"] = nil // as in Pulp
			if diff := cmp.Diff(any(want), value(t, got.body)); diff != "" {
				t.Errorf("%s: (-want +got):\n%s", e.state, diff)
			}
		}
	}
}

func TestCancelOfAWaitingTaskEndsIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	var got map[string]any
	h.want(patch(task, canceled), http.StatusOK, &got)
	if got["state"] != "canceled" || got["started_at"] != nil || got["finished_at"] == nil || got["error"] != nil {
		t.Errorf("%v", got)
	}
}

func TestCancelTakesForms(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for kind, body := range map[string]string{
		"application/x-www-form-urlencoded": "state=running&state=canceled",
		"multipart/form-data; boundary=b":   "--b\r\nContent-Disposition: form-data; name=\"state\"\r\n\r\ncanceled\r\n--b--\r\n",
		"application/json; charset=utf-8":   canceled,
		"APPLICATION/JSON":                  " { \"state\" : \"\\u0063anceled\" } ",
	} {
		_, task := h.dispatch("dummy_task", nil, tasking.Options{})
		h.want(patch(task, body).with("Content-Type", kind), http.StatusOK, nil)
		if got := h.state(task); got != "canceled" {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

func TestOnlyFinalTasksAreDeleted(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, e := range newEnds(h) {
		got := h.want(send(http.MethodDelete, e.task, nil), e.delete, nil)
		if len(got.body) > 0 || got.header.Get("Content-Type") != "" {
			t.Errorf("%s: %v %s", e.state, got.header, got.body)
		}
		if e.delete == http.StatusConflict {
			if after := h.state(e.task); after != e.state {
				t.Errorf("%s is %s after a delete", e.state, after)
			}
			continue
		}
		h.answers(get(e.task), http.StatusNotFound, noTask)
		h.answers(send(http.MethodDelete, e.task, nil), http.StatusNotFound, noTask)
	}
}

func TestCorrelationIDIsEchoedOrReplaced(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	fresh := regexp.MustCompile(`^[0-9a-f]{32}$`)
	for _, path := range []string{"tasks/", "tasks/x/", "status/", "livez/", "tasks", "nowhere/"} {
		for cid, echoed := range map[string]bool{
			"0123456789abcdef0123456789ABCDEF": true, "01234567-89ab-cdef-0123-456789ABCDEF": true,
			"": false, "x": false, "0123456789abcdef0123456789abcdeg": false, "{01234567-89ab-cdef-0123-456789abcdef}": false,
			"urn:uuid:01234567-89ab-cdef-0123-456789abcdef": false, "0123456789abcdef0123456789abcdef0": false,
		} {
			got := h.send(get(path).by("-").with("Correlation-ID", cid)).header["Correlation-Id"]
			if len(got) != 1 || echoed && got[0] != cid || !echoed && (got[0] == cid || !fresh.MatchString(got[0])) {
				t.Errorf("%s: %q became %q", path, cid, got)
			}
		}
		if one, two := h.send(get(path)).header.Get("Correlation-Id"), h.send(get(path)).header.Get("Correlation-Id"); !fresh.MatchString(one) || one == two {
			t.Errorf("%s: %q and %q", path, one, two)
		}
	}
}

func TestCorrelationIDIsThatOfTheDispatchedTask(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, cid := range []string{"", "0123456789abcdef0123456789ABCDEF", "01234567-89ab-cdef-0123-456789abcdef"} {
		var started struct{ Task string }
		got := h.want(post("tasks/purge/", nil).with("Correlation-ID", cid), http.StatusAccepted, &started)
		if told := got.header.Get("Correlation-Id"); h.object(started.Task)["logging_cid"] != told || cid != "" && told != cid {
			t.Errorf("%q: told %q, the task has %v", cid, told, h.object(started.Task)["logging_cid"])
		}
	}
}

// reports are the progress reports of a task, by code.
func reports(h *harness, task string) map[string]map[string]any {
	h.t.Helper()
	var got struct {
		State           string
		ProgressReports []map[string]any `json:"progress_reports"`
	}
	h.get(task, &got)
	if got.State != "completed" {
		h.t.Fatalf("the task is %s", got.State)
	}
	all := map[string]map[string]any{}
	for _, r := range got.ProgressReports {
		code, _ := r["code"].(string)
		delete(r, "message")
		delete(r, "code")
		all[code] = r
	}
	return all
}

func TestPurgeDeletesByStateAndTimeAndReports(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	tasks, ids := map[string]string{}, map[string]uuid.UUID{}
	for _, e := range newEnds(h) {
		tasks[e.state], ids[e.state] = e.task, e.id
	}
	ids["young"], tasks["young"] = h.dispatch("dummy_task", nil, tasking.Options{})
	h.cancel(ids["young"])
	h.exec("INSERT INTO progress_report VALUES ($1, 0, '', '', 'completed', NULL, 0, NULL), ($1, 1, '', '', 'completed', NULL, 0, NULL)", ids["completed"])
	h.exec("INSERT INTO created_resource VALUES ($1, 0, 'prn:auth.user:1')", ids["failed"])
	h.exec("UPDATE task SET finished_at = finished_at - interval '40 days' WHERE finished_at IS NOT NULL AND id <> $1", ids["young"])
	h.exec("UPDATE task SET finished_at = finished_at + interval '20 days' WHERE id = $1", ids["skipped"])
	h.exec("DELETE FROM user_role WHERE object = $1", ids["canceled"].String())

	count := func(n float64) map[string]any {
		return map[string]any{"state": "completed", "total": nil, "done": n, "suffix": nil}
	}
	sum := func(n float64) map[string]any {
		return map[string]any{"state": "completed", "total": n, "done": n, "suffix": nil}
	}
	for _, step := range []struct {
		body string
		gone []string
		want map[string]map[string]any
	}{
		{`{"finished_before": "1970-01-01T00:00"}`, nil, map[string]map[string]any{"purge.tasks.total": sum(0)}},
		{`{"states": []}`, nil, map[string]map[string]any{"purge.tasks.total": sum(0)}},
		{`{"surplus": 1}`, []string{"completed"}, map[string]map[string]any{ // with the roles of who dispatched it
			"purge.tasks.key.core.Task": count(1), "purge.tasks.key.core.ProgressReport": count(2), "purge.tasks.key.core.UserRole": count(2), "purge.tasks.total": sum(5),
		}},
		{`{"states": ["failed", "canceled", "failed"]}`, []string{"failed", "canceled"}, map[string]map[string]any{
			"purge.tasks.key.core.Task": count(2), "purge.tasks.key.core.CreatedResource": count(1), "purge.tasks.key.core.UserRole": count(2), "purge.tasks.total": sum(5),
		}},
		{`{"states": ["skipped"]}`, nil, map[string]map[string]any{"purge.tasks.total": sum(0)}},
		{`{"states": ["skipped"], "finished_before": "` + time.Now().UTC().Add(-19*24*time.Hour).Format(time.DateOnly) + `"}`, []string{"skipped"}, map[string]map[string]any{
			"purge.tasks.key.core.Task": count(1), "purge.tasks.key.core.UserRole": count(2), "purge.tasks.total": sum(3),
		}},
		{`{"states": ["canceled"], "finished_before": "` + time.Now().UTC().Add(24*time.Hour).Format("2006-01-02T15:04") + `"}`, []string{"young"}, map[string]map[string]any{
			"purge.tasks.key.core.Task": count(1), "purge.tasks.total": sum(1),
		}},
		// The purges so far have ended, this one has not.
		{`{"finished_before": "` + time.Now().UTC().Add(24*time.Hour).Format(time.RFC3339Nano) + `"}`, nil, map[string]map[string]any{
			"purge.tasks.key.core.Task": count(7), "purge.tasks.key.core.ProgressReport": count(23), "purge.tasks.key.core.UserRole": count(14), "purge.tasks.total": sum(44),
		}},
	} {
		task := h.accepted(post("tasks/purge/", step.body))
		h.drain()
		step.want["purge.tasks.error"] = sum(0)
		if diff := cmp.Diff(step.want, reports(h, task)); diff != "" {
			t.Errorf("%s: reports (-want +got):\n%s", step.body, diff)
		}
		for _, state := range step.gone {
			h.answers(get(tasks[state]), http.StatusNotFound, noTask)
			delete(tasks, state)
		}
		for _, left := range tasks {
			h.want(get(left), http.StatusOK, nil)
		}
	}
	if diff := cmp.Diff([]string{"canceling", "running", "waiting"}, slices.Sorted(maps.Keys(tasks))); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestTaskListIsEmptyAtFirst(t *testing.T) {
	t.Parallel()
	newHarness(t).answers(get("tasks/"), http.StatusOK, `{"count": 0, "next": null, "previous": null, "results": []}`)
}
