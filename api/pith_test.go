package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
)

// serve puts another server in the place of the harness's one, on the same database.
func (h *harness) serve(newClient func(*appstatus.App) (*tasking.Client, error), cfg api.Config) {
	h.t.Helper()
	cfg.Version = builtin.Version
	if cfg.Log == nil {
		cfg.Log = h.db.Log
	}
	server, err := api.New(h.db.Pool, newClient, cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.server, h.client, h.http = server, server.Tasks(), httptest.NewServer(server.Handler())
	h.t.Cleanup(h.http.Close)
}

// goOnline gives the harness a server that runs immediate tasks itself.
func (h *harness) goOnline() {
	h.t.Helper()
	app, err := appstatus.New(h.db.Pool, appstatus.Config{Type: appstatus.API, TTL: time.Hour, Log: h.db.Log})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := app.Register(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.serve(func(*appstatus.App) (*tasking.Client, error) { return h.newClient(app) }, api.Config{})
}

// ended is a task as far as tests look at how it ended.
type ended struct {
	State    string
	Error    *tasking.Error
	Result   json.RawMessage
	Reserved []string `json:"reserved_resources_record"`
	Group    *string  `json:"task_group"`
	Children []string `json:"child_tasks"`
	Created  []string `json:"created_resources"`
}

func (h *harness) ended(href string) (task ended) {
	h.t.Helper()
	h.get(href, &task)
	return task
}

func TestDispatchedTaskRunsInAWorker(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	task := h.accepted(request{path: pithRoot + "tasks/", body: `{"name": "` + testModule + `sleep", "args": {"interval": 0}}`})
	if got := h.ended(task); got.State != "waiting" {
		t.Errorf("at first it is %s", got.State)
	}
	failing := h.accepted(request{path: pithRoot + "tasks/", body: `{"name": "` + testModule + `failing_task", "args": {"error_message": "no luck"}}`})
	h.drain()
	if got := h.ended(task); got.State != "completed" || got.Error != nil || string(got.Result) != "null" {
		t.Errorf("it is %s with %s, %v", got.State, got.Result, got.Error)
	}
	if got := h.ended(failing); got.State != "failed" || got.Error.Description != "no luck" {
		t.Errorf("it is %s, %v", got.State, got.Error)
	}
}

func TestArgumentsOfADispatchedTaskAreAnyJSON(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, args := range []string{
		`null`, `true`, `"text"`, `[]`, `[1, [2]]`, `12345678901234567890.5`, `{"a": {"b": null}}`, `"ü \u00fc \" <&>"`, `{"$diagnostics": ["memory"]}`,
	} {
		task := h.accepted(request{path: pithRoot + "tasks/", body: `{"name": "` + testModule + `dummy_task", "args": ` + args + `}`})
		var stored string
		if err := h.db.Direct.QueryRow(t.Context(), "SELECT args::text FROM task WHERE id = $1", keyIn(task)).Scan(&stored); err != nil || stored != args {
			t.Errorf("%s is stored as %s, %v", args, stored, err)
		}
	}
	h.answers(request{method: http.MethodPost, path: pithRoot + "tasks/", body: `{"name": "` + testModule + `dummy_task", "args": "\u0000"}`},
		http.StatusBadRequest, `{"args": ["Null characters are not allowed."]}`)
}

func TestResourcesAreNamedByHrefPRNOrFreeText(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, href := h.dispatch("dummy_task", nil, tasking.Options{})
	saved := h.schedule("s")
	task := h.accepted(request{path: pithRoot + "tasks/", body: map[string]any{
		"name": testModule + "dummy_task",
		"exclusive_resources": []string{
			h.http.URL + href, "free text", "/no/href/of/ours/", "https://example.org/x", root + "tasks/", "prn:file.filerepository:1",
		},
		"shared_resources": []string{saved, "prn:core.worker:2", root + "users/7/"},
	}})
	want := []string{
		"prn:core.task:" + id.String(), "free text", "/no/href/of/ours/", "https://example.org/x", root + "tasks/", "prn:file.filerepository:1",
		"shared:prn:core.taskschedule:" + keyIn(saved), "shared:prn:core.worker:2", "shared:prn:auth.user:7", "shared:" + tasking.Domain,
	}
	if diff := cmp.Diff(want, h.ended(task).Reserved); diff != "" {
		t.Errorf("reserved (-want +got):\n%s", diff)
	}
	for _, filter := range []string{"exclusive_resources=" + href, "reserved_resources=prn:core.task:" + id.String(), "shared_resources=" + saved} {
		h.sees("tasks/?"+filter, "admin", task)
	}
}

func TestOnlyDispatchableTypesAreDispatched(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var types struct {
		List []struct {
			Name      string
			Immediate bool
			Versions  map[string]string
		} `json:"task_types"`
	}
	h.newUser("lena")
	h.want(request{path: pithRoot + "task-types/", user: "lena"}, http.StatusOK, &types)
	got := map[string]bool{}
	for _, typ := range types.List {
		got[strings.TrimPrefix(typ.Name, testModule)] = typ.Immediate
		if !cmp.Equal(typ.Versions, builtin.Versions()) {
			t.Errorf("%s needs %v", typ.Name, typ.Versions)
		}
	}
	if diff := cmp.Diff(map[string]bool{
		"afailing_task": true, "asleep": true, "dummy_group_task": false, "dummy_task": false, "failing_task": false, "gooey_task": false,
		"group_finalizer_task": false, "group_task_with_finalizer": false, "sleep": false,
	}, got); diff != "" {
		t.Errorf("types (-want +got):\n%s", diff)
	}
	for _, name := range []string{testModule + "missing_worker", builtin.Purge, "nothing", "5"} {
		text := `["\"` + name + `\" is no task type that can be dispatched: see /pith/api/task-types/."]`
		h.answers(request{method: http.MethodPost, path: pithRoot + "tasks/", body: `{"name": "` + name + `"}`}, http.StatusBadRequest, `{"name": `+text+`}`)
		h.answers(request{method: http.MethodPost, path: pithRoot + "task-schedules/", body: `{"name": "s", "task_name": "` + name + `"}`},
			http.StatusBadRequest, `{"task_name": `+text+`}`)
	}
	h.sees("tasks/", "admin")
	h.sees("task-schedules/", "admin")
}

func TestImmediateTaskRunsBeforeTheReplyWhileTheServerIsRegistered(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	immediate := func(more string) string {
		t.Helper()
		return h.accepted(request{path: pithRoot + "tasks/", body: `{"name": "` + testModule + `asleep", "args": {"interval": 0}, "immediate": true` + more + `}`})
	}
	if got := h.ended(immediate("")); got.State != "waiting" {
		t.Errorf("before it is %s", got.State)
	}
	h.answers(request{
		method: http.MethodPost, path: pithRoot + "tasks/", body: `{"name": "` + testModule + `asleep", "immediate": true, "deferred": false}`,
	}, http.StatusBadRequest, `{"non_field_errors": ["a task that may not be deferred runs in this process, which needs Config.App and the type's function"]}`)

	h.goOnline()
	for _, more := range []string{"", `, "deferred": true`, `, "deferred": false`, `, "exclusive_resources": ["free"]`} {
		if got := h.ended(immediate(more)); got.State != "completed" {
			t.Errorf("with%s it is %s, %v", more, got.State, got.Error)
		}
	}
	h.dispatch("sleep", map[string]int{"interval": 0}, tasking.Options{Exclusive: []string{"busy"}})
	left := immediate(`, "exclusive_resources": ["busy"]`)
	if got := h.ended(left); got.State != "waiting" {
		t.Errorf("with busy resources it is %s", got.State)
	}
	refused := h.ended(immediate(`, "exclusive_resources": ["busy"], "deferred": false`))
	if refused.State != "canceled" || refused.Error == nil || refused.Error.Reason != "Resources temporarily unavailable." {
		t.Errorf("with busy resources and not deferred it is %s, %v", refused.State, refused.Error)
	}
	wrong := h.ended(h.accepted(request{path: pithRoot + "tasks/", body: `{"name": "` + testModule + `dummy_task", "immediate": true}`}))
	if wrong.State != "failed" || !strings.Contains(wrong.Error.Description, "Immediate tasks must be async functions") {
		t.Errorf("one that is not declared immediate is %s, %v", wrong.State, wrong.Error)
	}
	h.drain()
	if got := h.ended(left); got.State != "completed" {
		t.Errorf("after a worker it is %s, %v", got.State, got.Error)
	}
}

func TestBadDispatchesAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.goOnline()
	const typ = testModule + "asleep"
	for rest, want := range map[string]string{
		`"priority": "high"`: `{"priority": ["A valid integer is required."]}`,
		`"exclusive_resources": ["a", ""], "shared_resources": "b"`: `{"exclusive_resources": {"1": ["This field may not be blank."]},
			"shared_resources": ["Expected a list of items but got type \"str\"."]}`,
		`"task_group": "nonsense"`:                                 `{"task_group": ["URI not valid: nonsense"]}`,
		`"task_group": "` + root + `tasks/` + nowhere + `/"`:       `{"task_group": ["URI not valid: ` + root + `tasks/` + nowhere + `/"]}`,
		`"task_group": "` + root + `task-groups/` + nowhere + `/"`: `{"task_group": ["Object does not exist."]}`,
		`"versions": ["core"]`:                                     `{"versions": ["Expected a dictionary of items but got type \"list\"."]}`,
		`"immediate": "perhaps"`:                                   `{"immediate": ["Must be a valid boolean."]}`,
		`"priorty": 5`:                                             `{"priorty": ["Unexpected field"]}`,
		`"not_before": "soon"`:                                     `{"not_before": ["Datetime has wrong format. Use one of these formats instead: YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z]."]}`,
	} {
		h.answers(request{method: http.MethodPost, path: pithRoot + "tasks/", body: `{"name": "` + typ + `", ` + rest + `}`}, http.StatusBadRequest, want)
	}
	const (
		priority = `"priority": ["priority 99999999999: must be between -10000 and 10000"]`
		version  = `"versions": ["versions: core: \"abc\" is not a PEP 440 version such as 3.117.0"]`
		name     = `["resource \"shared:x\": a name must not begin with \"shared:\"; list it among the shared resources"]`
		never    = `"non_field_errors": ["neither immediate nor deferred: such a task could never run; allow one of them"]`
	)
	for rest, want := range map[string]string{
		`"priority": 99999999999`:                         priority,
		`"priority": -10001`:                              `"priority": ["priority -10001: must be between -10000 and 10000"]`,
		`"deferred": false`:                               never,
		`"versions": {"core": "abc"}`:                     version,
		`"exclusive_resources": ["shared:x"]`:             `"exclusive_resources": ` + name,
		`"shared_resources": ["a", "shared:x"]`:           `"shared_resources": ` + name,
		`"args": {"$encrypted": "gAAAA"}`:                 `"args": ["arguments must not be an object with the one key \"$encrypted\""]`,
		`"args": {"$diagnostics": ["memory"], "args": 1}`: `"args": ["arguments must not be an object with the keys \"$diagnostics\" and \"args\""]`,
		`"immediate": true, "deferred": false, "not_before": "2100-01-01T00:00:00Z"`: `"non_field_errors": [
			"not before 2100-01-01T00:00:00Z, and not deferred: such a task could never run"]`,
		`"priority": 99999999999, "exclusive_resources": ["shared:x"], "versions": {"core": "abc"}, "deferred": false`: priority + `,
			"exclusive_resources": ` + name + `, ` + version + `, ` + never,
	} {
		h.answers(post(pithRoot+"tasks/", `{"name": "`+typ+`", `+rest+`}`), http.StatusBadRequest, `{`+want+`}`)
	}
	h.answers(request{method: http.MethodPost, path: pithRoot + "tasks/", body: `{}`}, http.StatusBadRequest, `{"name": ["This field is required."]}`)
	h.sees("tasks/", "admin")
}

func TestTaskIsDispatchedIntoAGroup(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, err := h.client.NewGroup(t.Context(), "a family")
	if err != nil {
		t.Fatal(err)
	}
	href := root + "task-groups/" + id.String() + "/"
	for _, name := range []string{href, h.http.URL + href, "prn:core.taskgroup:" + id.String()} {
		task := h.ended(h.accepted(request{path: pithRoot + "tasks/", body: map[string]string{"name": testModule + "dummy_task", "task_group": name}}))
		if task.Group == nil || *task.Group != href {
			t.Errorf("by %s it is in %v", name, task.Group)
		}
	}
	var group struct{ Waiting int }
	if h.get(href, &group); group.Waiting != 3 {
		t.Errorf("%d tasks wait", group.Waiting)
	}
}

func TestTaskIsDispatchedIntoAGroupByWhoMayChangeAllItsTasks(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	eve := h.newUser("eve", "core.task_user_dispatcher")
	h.newUser("olga", "core.task_user_dispatcher", "core.task_owner")
	id, group := h.newGroup("a family")
	_, first := h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
	_, second := h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
	join := func(group string) request {
		return post(pithRoot+"tasks/", map[string]string{"name": testModule + "dummy_task", "task_group": group}).by("eve")
	}
	const missing = `{"task_group": ["Object does not exist."]}`
	h.answers(join(root+"task-groups/"+nowhere+"/"), http.StatusBadRequest, missing)
	h.answers(join(group), http.StatusBadRequest, missing)
	for _, role := range []struct{ name, on string }{{"core.task_viewer", first}, {"core.task_owner", first}, {"core.task_viewer", second}} {
		h.give(eve, role.name, role.on)
		h.answers(join(group), http.StatusForbidden, denied)
	}
	h.sees("tasks/", "admin", first, second)
	h.give(eve, "core.task_owner", second)
	third := h.accepted(join(group))
	h.sees("tasks/?task_group="+group, "admin", first, second, third)
	h.accepted(join("prn:core.taskgroup:" + id.String()).by("olga"))
}

func TestPriorityVersionsAndTimeOfADispatchAreKept(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	cid := strings.ReplaceAll(uuid.NewString(), "-", "")
	href := h.accepted(request{path: pithRoot + "tasks/", header: http.Header{"Correlation-Id": {cid}}, body: map[string]any{
		"name": testModule + "dummy_task", "priority": -10000, "versions": map[string]string{"core": "4.0", "file": "1.2"}, "not_before": "2100-01-02T03:04:05.678901Z",
	}})
	task, err := h.client.Get(t.Context(), uuid.MustParse(keyIn(href)))
	if err != nil {
		t.Fatal(err)
	}
	if task.Priority != -10000 || task.NotBefore == nil || !task.NotBefore.Equal(time.Date(2100, 1, 2, 3, 4, 5, 678901000, time.UTC)) ||
		!cmp.Equal(task.Versions, map[string]string{"core": "4.0", "file": "1.2"}) || task.CorrelationID != cid {
		t.Errorf("it is %+v", task)
	}
	task, err = h.client.Get(t.Context(), uuid.MustParse(keyIn(h.dispatchAs("admin"))))
	if err != nil || task.Priority != 0 || task.NotBefore != nil || !cmp.Equal(task.Versions, builtin.Versions()) {
		t.Errorf("with nothing given it is %+v, %v", task, err)
	}
}

func TestOnlyWhoMayDispatchDispatches(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("dora", "core.task_user_dispatcher")
	eve := h.newUser("eve", "core.task_owner", "core.taskschedule_owner")
	h.give(eve, "core.task_user_dispatcher", h.dispatchAs("admin")) // on one task: nothing for others
	for i, r := range []request{
		{method: http.MethodPost, path: pithRoot + "tasks/", body: `{"name": "` + testModule + `dummy_task"}`},
		{method: http.MethodPost, path: pithRoot + "task-schedules/", body: `{"name": "s", "task_name": "` + testModule + `dummy_task"}`},
	} {
		want := []int{http.StatusAccepted, http.StatusCreated}[i]
		r.user = "eve"
		h.answers(r, http.StatusForbidden, denied)
		r.user = "dora"
		h.want(r, want, nil)
		r.body, r.user = strings.Replace(r.body.(string), `"s"`, `"another"`, 1), "admin"
		h.want(r, want, nil)
	}
	h.answers(request{path: pithRoot + "task-types/", user: "-"}, http.StatusUnauthorized, `{"detail": "Authentication credentials were not provided."}`)
}

func TestImmediateTaskGoesOnWhenItsClientHangsUp(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	runs, goOn := make(chan struct{}), make(chan struct{})
	patient := tasking.NewType("test.patient", func(ctx context.Context, _ *tasking.Run, _ any) (any, error) {
		close(runs)
		<-goOn
		return nil, ctx.Err()
	}, tasking.TypeConfig{Immediate: true, Dispatchable: true})
	app, err := appstatus.New(h.db.Pool, appstatus.Config{Type: appstatus.API, TTL: time.Hour, Log: h.db.Log})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.serve(func(*appstatus.App) (*tasking.Client, error) {
		registry, err := tasking.NewRegistry(patient)
		if err != nil {
			return nil, err
		}
		return tasking.New(h.db.Pool, tasking.Config{Registry: registry, App: app, Log: h.db.Log})
	}, api.Config{})
	ctx, hangUp := context.WithCancel(t.Context())
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, pithRoot+"tasks/", strings.NewReader(`{"name": "test.patient", "immediate": true}`))
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth("admin", "password")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		h.server.Handler().ServeHTTP(httptest.NewRecorder(), req)
	}()
	<-runs
	hangUp()
	close(goOn)
	<-answered
	if states := column[string](h, "SELECT state::text || coalesce(error::text, '') FROM task"); !slices.Equal(states, []string{"completed"}) {
		t.Errorf("the task is %v", states)
	}
}

func TestOnlySuperusersHoldUpEverybodyOrGoBeforeOthers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("dora", "core.task_user_dispatcher")
	const (
		domain   = `["Only superusers may name domains."]`
		priority = `["Only superusers may dispatch before others: must be 0 or less."]`
	)
	for i, tt := range []struct{ more, want string }{
		{`"exclusive_resources": ["a", "` + tasking.Domain + `"]`, `{"exclusive_resources": ` + domain + `}`},
		{`"exclusive_resources": ["prn:core.domain:` + nowhere + `"]`, `{"exclusive_resources": ` + domain + `}`},
		{`"shared_resources": ["` + tasking.Domain + `"], "priority": 1`, `{"shared_resources": ` + domain + `, "priority": ` + priority + `}`},
		{`"priority": 10000`, `{"priority": ` + priority + `}`},
		{`"exclusive_resources": ["prn:core.task:1"], "priority": 0`, ""},
		{`"priority": -10000`, ""},
	} {
		for _, r := range []request{
			post(pithRoot+"tasks/", `{"name": "`+testModule+`dummy_task", `+tt.more+`}`),
			plan("dora's "+strconv.Itoa(i), ", "+tt.more),
		} {
			good := http.StatusAccepted
			if strings.Contains(r.path, "schedules") {
				good = http.StatusCreated
			}
			if tt.want == "" {
				h.want(r.by("dora"), good, nil)
				continue
			}
			h.answers(r.by("dora"), http.StatusBadRequest, tt.want)
			r.body = strings.Replace(r.body.(string), "dora's", "admin's", 1)
			h.want(r, good, nil)
		}
	}
}
