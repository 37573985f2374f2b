package clients_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// pulp is Pulp's command line with a configuration of its own, for the user admin.
type pulp struct {
	t         *testing.T
	path, dir string
}

// withPulp deploys, and makes a command line for it.
func withPulp(t *testing.T, cfg worker.Config, workers ...string) (*deployment, pulp) {
	t.Helper()
	p := pulp{t, program(t, "pulp"), t.TempDir()}
	d := deploy(t, cfg, workers...)
	p.ok("config", "create", "--base-url", d.url, "--username", "admin", "--password", "password")
	p.ok("--refresh-api", "status") // the document is in the cache from here on
	return d, p
}

// in is the same command line in a part of the test.
func (p pulp) in(t *testing.T) pulp {
	p.t = t
	return p
}

func (p pulp) run(args ...string) result {
	p.t.Helper()
	return run(p.t, p.dir, nil, p.path, args...)
}

// done runs what is to succeed.
func (p pulp) done(args ...string) result {
	p.t.Helper()
	r := p.run(args...)
	if r.code != 0 {
		p.t.Fatalf("pulp %s: status %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r
}

// ok is what a command prints that is to succeed.
func (p pulp) ok(args ...string) string {
	p.t.Helper()
	return p.done(args...).out
}

// fails runs what is to fail, and to say why; Python's own traces are no such thing.
func (p pulp) fails(why string, args ...string) {
	p.t.Helper()
	r := p.run(args...)
	if r.code == 0 || !strings.Contains(r.err, why) || strings.Contains(r.err, "Traceback") {
		p.t.Errorf("pulp %s: status %d, want a failure with %q\n%s%s", strings.Join(args, " "), r.code, why, r.out, r.err)
	}
}

var startedTask = regexp.MustCompile(`Started background task (/pulp/api/v3/tasks/[-0-9a-f]+/)`)

// starts runs what starts a task, and answers the task's href.
func (p pulp) starts(args ...string) string {
	p.t.Helper()
	r := p.done(args...)
	found := startedTask.FindStringSubmatch(r.err)
	if found == nil {
		p.t.Fatalf("pulp %s names no task: %s", strings.Join(args, " "), r.err)
	}
	return found[1]
}

// entity is as much of an object as the tests look at.
type entity struct {
	Href     string            `json:"pulp_href"`
	PRN      string            `json:"prn"`
	Name     string            `json:"name"`
	State    string            `json:"state"`
	CID      string            `json:"logging_cid"`
	Started  *string           `json:"started_at"`
	Creator  *string           `json:"created_by"`
	Versions map[string]string `json:"versions"`
	Progress []report          `json:"progress_reports"`
}

type report struct {
	Code string `json:"code"`
	Done int    `json:"done"`
}

// show reads one object.
func (p pulp) show(args ...string) entity {
	p.t.Helper()
	return decode[entity](p.t, p.ok(args...))
}

func (p pulp) task(href string) entity {
	p.t.Helper()
	return p.show("task", "show", "--href", href)
}

// list reads objects, by the names that hrefs have in the test.
func (p pulp) list(names map[string]string, args ...string) []string {
	p.t.Helper()
	found := []string{}
	for _, e := range decode[[]entity](p.t, p.ok(args...)) {
		name, ok := names[e.Href]
		if !ok {
			name = e.Name
		}
		found = append(found, name)
	}
	return found
}

func TestPulpReadsTheStatus(t *testing.T) {
	t.Parallel()
	_, p := withPulp(t, worker.Config{}, "one@test", "two@test")
	type app struct{ Name string }
	type status struct {
		Versions []struct{ Component, Version, Package, Module string }
		Workers  []app                    `json:"online_workers"`
		APIs     []app                    `json:"online_api_apps"`
		Database struct{ Connected bool } `json:"database_connection"`
		Domains  bool                     `json:"domain_enabled"`
	}
	r := p.done("status")
	got := decode[status](t, r.out)
	for i, v := range got.Versions { // what is after it changes with the document
		got.Versions[i].Version, _, _ = strings.Cut(v.Version, "+pith.")
	}
	slices.SortFunc(got.Workers, func(a, b app) int { return strings.Compare(a.Name, b.Name) })
	want := status{Workers: []app{{"one@test"}, {"two@test"}}, APIs: []app{{"api@test"}}}
	want.Versions = append(want.Versions, struct{ Component, Version, Package, Module string }{"core", builtin.Version, "pulpcore", "pulpcore.app"})
	want.Database.Connected = true
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if r.err != "" {
		t.Errorf("it says %s", r.err)
	}
	p.ok("status", "--retries", "1")
	p.ok("config", "validate")
}

func TestPulpNoticesThatItsDocumentIsOld(t *testing.T) {
	t.Parallel()
	_, p := withPulp(t, worker.Config{})
	found, err := filepath.Glob(filepath.Join(p.dir, "cache", "squeezer", "*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("cached documents are %v, error %v", found, err)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(found[0], []byte(strings.ReplaceAll(string(text), builtin.Version+"+pith.", builtin.Version+"+other.")), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := p.done("status"); !strings.Contains(r.err, "Cached api is outdated") {
		t.Errorf("it does not say so: %s", r.err)
	}
	if r := p.done("status"); r.err != "" {
		t.Errorf("it says again: %s", r.err)
	}
}

func TestPulpIsRefused(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{})
	d.addUser(t, "bob", false)
	unknown := root + "tasks/00000000-0000-7000-8000-000000000000/"
	for _, tt := range []struct {
		name, why string
		args      []string
	}{
		{"a wrong password", "Authentication failed for tasks_list", []string{"--password", "wrong", "task", "list"}},
		{"an unknown user", "Authentication failed for tasks_list", []string{"--username", "nobody", "task", "list"}},
		{"who may not", "Operation users_list is not authorized", []string{"--username", "bob", "user", "list"}},
		{"what is not there", "No Task matches the given query", []string{"task", "show", "--href", unknown}},
		{"what is not there, to cancel", "No Task matches the given query", []string{"task", "cancel", "--href", unknown}},
		{"what is not there, by its UUID", "No Task matches the given query", []string{"task", "show", "--uuid", id(t, unknown).String()}},
		{"what is not there, by its PRN", "Could not find task", []string{"task", "show", "--href", prn(t, "core.task", unknown)}},
		{"what is no href", "not a valid HREF", []string{"task", "show", "--href", "nowhere"}},
		{"what is no UUID", "Not found", []string{"task", "show", "--uuid", "nothing"}},
		{"a path that is none", "Not Found", []string{"show", "--href", root + "nothing/"}},
		{"nothing named", "A task must be specified", []string{"task", "show"}},
		{"a model that it does not know", "unknown", []string{"show", "--prn", "prn:core.nothing:" + id(t, unknown).String()}},
		{"a malformed correlation id", "Correlation ID returned from server did not match", []string{"--cid", "malformed", "status"}},
		{"a state that is none", "Invalid value for '--state'", []string{"task", "list", "--state", "nonsense"}},
		{"a created resource that is none", "URI not valid", []string{"task", "list", "--created-resource", "/nowhere/"}},
		{"a parent that is none", "Either an href or a UUID must be provided", []string{"task", "list", "--parent-task", "nobody"}},
		{"a group that is none", "Either an href or a UUID must be provided", []string{"task", "list", "--task-group", "nobody"}},
		{"a time that is none", "does not match", []string{"task", "list", "--started-after", "yesterday"}},
		{"an order that is none", "expected to be one of", []string{"task", "list", "--ordering", "nonsense"}},
		{"a worker that is none", "Could not find worker", []string{"task", "list", "--worker", "nobody"}},
		{"a page of nothing", "not in the range", []string{"task", "list", "--limit", "0"}},
		{"to purge what runs", "Invalid value for '--state'", []string{"task", "purge", "--state", "running"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p.in(t).fails(tt.why, tt.args...)
		})
	}
}

func TestPulpShowsGroups(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{}, "one@test")
	empty, err := d.client.NewGroup(t.Context(), "empty")
	if err != nil {
		t.Fatal(err)
	}
	none := root + "task-groups/" + empty.String() + "/"
	group, _ := d.group(t, 0, 0.5)
	names := map[string]string{none: "empty", group: "group"}
	if diff := cmp.Diff([]string{"group", "empty"}, p.list(names, "task-group", "list")); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"empty"}, p.list(names, "task-group", "list", "--limit", "1", "--offset", "1", "--field", "pulp_href")); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	p.ok("task-group", "show", "--wait", "--href", group)
	type shown struct {
		Href        string `json:"pulp_href"`
		Description string
		Dispatched  bool `json:"all_tasks_dispatched"`
		Completed   int
		Tasks       []entity
	}
	for _, args := range [][]string{
		{"task-group", "show", "--href", group},
		{"task-group", "show", "--uuid", id(t, group).String()},
		{"show", "--href", group},
	} {
		got := decode[shown](t, p.ok(args...))
		if got.Href != group || got.Description != "of a test" || !got.Dispatched || got.Completed != 3 || len(got.Tasks) != 3 {
			t.Errorf("pulp %s: %+v", strings.Join(args, " "), got)
		}
	}
	p.fails("No TaskGroup matches", "task-group", "show", "--uuid", "00000000-0000-7000-8000-000000000000")
	bad, _ := d.group(t, -1)
	p.ok("--background", "task-group", "show", "--wait", "--href", none)
	dbtest.Until(t, "the group ends", func(ctx context.Context) (bool, error) {
		g, err := d.client.GetGroup(ctx, id(t, bad))
		return g.Unfinished() == 0 && g.Failed > 0, err
	})
	p.fails("sleep length must be non-negative", "task-group", "show", "--wait", "--href", bad)
}

func TestPulpShowsWorkers(t *testing.T) {
	t.Parallel()
	// Nobody keeps house: the one that is missing stays.
	d, p := withPulp(t, worker.Config{Auxiliary: true}, "one@test", "Two@test")
	lost, err := appstatus.New(d.db.Pool, appstatus.Config{Type: appstatus.Worker, NameTemplate: "lost@test", TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.db.Direct.Exec(t.Context(), "UPDATE app_status SET last_heartbeat = now() - interval '1 hour' WHERE id = $1", lost.ID()); err != nil {
		t.Fatal(err)
	}
	running := d.dispatch(t, helpers+"sleep", sleep(600), tasking.Options{})
	d.reaches(t, tasking.Running, running)
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"Two@test", "lost@test", "one@test"}},
		{[]string{"--online"}, []string{"Two@test", "one@test"}},
		{[]string{"--not-online"}, []string{"lost@test"}},
		{[]string{"--missing"}, []string{"lost@test"}},
		{[]string{"--not-missing"}, []string{"Two@test", "one@test"}},
		{[]string{"--name", "one@test"}, []string{"one@test"}},
		{[]string{"--name", "two@test"}, []string{}},
		{[]string{"--name-contains", "t@"}, []string{"lost@test"}},
		{[]string{"--name-icontains", "TWO"}, []string{"Two@test"}},
		{[]string{"--online", "--name-contains", "lost"}, []string{}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			got := p.in(t).list(nil, append([]string{"worker", "list"}, tt.args...)...)
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("workers (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("show", func(t *testing.T) {
		t.Parallel()
		p := p.in(t)
		one := p.show("worker", "show", "--name", "one@test")
		if one.Name != "one@test" || one.Versions["core"] != builtin.Version {
			t.Errorf("worker %+v", one)
		}
		for _, args := range [][]string{
			{"worker", "show", "--href", one.Href},
			{"worker", "show", "--href", one.PRN},
			{"show", "--href", one.Href},
		} {
			if got := p.show(args...); got.Href != one.Href {
				t.Errorf("pulp %s: %+v", strings.Join(args, " "), got)
			}
		}
		type worker struct {
			Task *string `json:"current_task"`
		}
		busy := 0
		for _, name := range []string{"one@test", "Two@test"} {
			if task := decode[worker](t, p.ok("worker", "show", "--name", name)).Task; task != nil && *task == running {
				busy++
			}
		}
		if busy != 1 {
			t.Errorf("%d workers run the task", busy)
		}
		p.fails("Could not find worker", "worker", "show", "--name", "nobody")
	})
}

func TestPulpManagesUsersAndRoles(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{}, "one@test")
	type user struct {
		Href     string `json:"pulp_href"`
		Username string
		First    string `json:"first_name"`
		Active   bool   `json:"is_active"`
	}
	bob := decode[user](t, p.ok("user", "create", "--username", "bob", "--password", "geheim ä", "--email", "bob@example.org"))
	p.fails("This field must be unique.", "user", "create", "--username", "bob")
	p.fails("Enter a valid username.", "user", "create", "--username", "not bob")
	as := func(args ...string) []string {
		return append([]string{"--username", "bob", "--password", "geheim ä"}, args...)
	}
	list := decode[[]user](t, p.ok("user", "list"))
	if len(list) != 2 || list[0] != bob || bob.Username != "bob" || !bob.Active {
		t.Errorf("users are %+v, one is %+v", list, bob)
	}
	p.ok("user", "update", "--username", "bob", "--first-name", "Bob", "--inactive")
	p.fails("Authentication failed", as("task", "list")...)
	p.ok("user", "update", "--href", bob.Href, "--active")
	for _, args := range [][]string{{"user", "show", "--username", "bob"}, {"user", "show", "--href", bob.Href}, {"show", "--href", bob.Href}} {
		if got := decode[user](t, p.ok(args...)); got.Href != bob.Href || got.First != "Bob" || !got.Active {
			t.Errorf("pulp %s: %+v", strings.Join(args, " "), got)
		}
	}

	// On one object.
	sleeper := d.dispatch(t, helpers+"sleep", sleep(600), tasking.Options{})
	names := map[string]string{sleeper: "sleeper"}
	p.fails("No Task matches", as("task", "show", "--href", sleeper)...)
	p.ok("task", "role", "add", "--href", sleeper, "--role", "core.task_viewer", "--user", "bob")
	if diff := cmp.Diff([]string{"sleeper"}, p.list(names, as("task", "list")...)); diff != "" {
		t.Errorf("tasks that bob sees (-want +got):\n%s", diff)
	}
	p.fails("Operation tasks_cancel is not authorized", as("task", "cancel", "--href", sleeper)...)
	type roles struct {
		Roles []struct {
			Role  string
			Users []string
		}
		Permissions []string
	}
	if got := decode[roles](t, p.ok("task", "role", "list", "--href", sleeper)).Roles; len(got) != 1 || got[0].Role != "core.task_viewer" || !slices.Equal(got[0].Users, []string{"bob"}) {
		t.Errorf("roles are %+v", got)
	}
	if diff := cmp.Diff([]string{"core.view_task"}, decode[roles](t, p.ok(as("task", "role", "my-permissions", "--href", sleeper)...)).Permissions); diff != "" {
		t.Errorf("permissions (-want +got):\n%s", diff)
	}
	p.fails("does not exist", "task", "role", "add", "--href", sleeper, "--role", "core.nothing", "--user", "bob")
	p.fails("does not exist", "task", "role", "add", "--href", sleeper, "--role", "core.task_owner", "--user", "nobody")
	p.ok("task", "role", "remove", "--href", sleeper, "--role", "core.task_viewer", "--user", "bob")
	p.fails("No Task matches", as("task", "show", "--href", sleeper)...)

	// By the user.
	assignment := func(verb string, args ...string) []string {
		return append([]string{"user", "role-assignment", verb, "--username", "bob"}, args...)
	}
	p.ok(assignment("add", "--role", "core.task_owner", "--object", sleeper)...)
	p.ok(assignment("add", "--role", "core.task_viewer", "--object", "")...)
	p.fails("does not exist", assignment("add", "--role", "core.nothing", "--object", "")...)
	p.fails("--object must be set", assignment("add", "--role", "core.task_viewer")...)
	type assigned struct {
		Role   string
		Object *string `json:"content_object"`
	}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"core.task_owner", "core.task_viewer"}},
		{[]string{"--role", "core.task_owner"}, []string{"core.task_owner"}},
		{[]string{"--role-in", "core.task_owner", "--role-in", "core.nothing"}, []string{"core.task_owner"}},
		{[]string{"--role-contains", "task_v"}, []string{"core.task_viewer"}},
		{[]string{"--role-icontains", "TASK_V"}, []string{"core.task_viewer"}},
		{[]string{"--role-startswith", "core.task_o"}, []string{"core.task_owner"}},
		{[]string{"--object", sleeper}, []string{"core.task_owner"}},
		{[]string{"--object", ""}, []string{"core.task_viewer"}},
	} {
		got := []string{}
		for _, each := range decode[[]assigned](t, p.ok(assignment("list", tt.args...)...)) {
			got = append(got, each.Role)
			if (each.Role == "core.task_owner") != (each.Object != nil && *each.Object == sleeper) {
				t.Errorf("%s is on %v", each.Role, each.Object)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("roles by %v (-want +got):\n%s", tt.args, diff)
		}
	}
	p.ok(as("task", "cancel", "--href", sleeper)...)
	p.ok(assignment("remove", "--role", "core.task_owner", "--object", sleeper)...)
	p.ok(assignment("remove", "--role", "core.task_viewer", "--object", "")...)
	if got := p.ok(assignment("list")...); got != "[]\n" {
		t.Errorf("roles are left: %s", got)
	}
	p.ok("user", "destroy", "--username", "bob")
	p.fails("Could not find user", "user", "show", "--username", "bob")
	p.fails("Authentication failed", as("task", "list")...)
}

func TestPulpDebugsTheDocument(t *testing.T) {
	t.Parallel()
	_, p := withPulp(t, worker.Config{})
	openapi := func(args ...string) string { return p.ok(append([]string{"debug", "openapi"}, args...)...) }
	type spec struct {
		OpenAPI string
		Info    struct {
			Versions map[string]string `json:"x-pulp-app-versions"`
		}
		Paths      map[string]any
		Components struct{ Schemas map[string]any }
	}
	got := decode[spec](t, openapi("spec"))
	if !strings.HasPrefix(got.OpenAPI, "3.") || !strings.HasPrefix(got.Info.Versions["core"], builtin.Version+"+pith.") || got.Paths["{task_href}"] == nil || len(got.Components.Schemas) == 0 {
		t.Errorf("document of OpenAPI %s, versions %v, %d paths, %d schemas", got.OpenAPI, got.Info.Versions, len(got.Paths), len(got.Components.Schemas))
	}
	ids := decode[[]string](t, openapi("operation-ids"))
	for _, want := range []string{
		"status_read", "tasks_list", "tasks_read", "tasks_cancel", "tasks_delete", "tasks_purge", "tasks_profile_artifacts", "task_groups_list", "task_groups_read",
		"workers_list", "workers_read", "users_list", "users_roles_create", "task_schedules_list", "artifacts_read", "pith_tasks_dispatch",
	} {
		if !slices.Contains(ids, want) {
			t.Errorf("there is no operation %s", want)
		}
	}
	type operation struct{ Method, Path string }
	if got := decode[operation](t, openapi("operation", "--id", "tasks_cancel")); got != (operation{"patch", "{task_href}"}) {
		t.Errorf("tasks_cancel is %+v", got)
	}
	names := decode[[]string](t, openapi("schema-names"))
	if !slices.Contains(names, "TaskResponse") || !slices.Contains(names, "Purge") {
		t.Errorf("schemas are %v", names)
	}
	openapi("schema", "--name", "TaskResponse")
	openapi("info")
	if got := openapi("security-schemes"); !strings.Contains(got, "basic") {
		t.Errorf("security schemes are %s", got)
	}
	p.fails("No operation with id", "debug", "openapi", "operation", "--id", "nothing")
	p.fails("No schema component", "debug", "openapi", "schema", "--name", "Nothing")
	for _, tt := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"has-plugin", "--name", "core"}, 0, "true\n"},
		{[]string{"has-plugin", "--name", "core", "--specifier", ">=3.100"}, 0, "true\n"},
		{[]string{"has-plugin", "--name", "core", "--specifier", ">=4"}, 1, "false\n"},
		{[]string{"has-plugin", "--name", "nothing"}, 1, "false\n"},
		{[]string{"has-cli-plugin", "--name", "core"}, 0, "true\n"},
	} {
		if r := p.run(append([]string{"debug"}, tt.args...)...); r.code != tt.code || r.out != tt.out {
			t.Errorf("%v: status %d, %s%s", tt.args, r.code, r.out, r.err)
		}
	}
}
