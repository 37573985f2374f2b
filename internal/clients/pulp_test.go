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

func TestPulpListsTasksByEveryFilter(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{}, "one@test", "two@test")
	const cid = "0123456789abcdef0123456789abcdef"
	mine := tasking.Options{Exclusive: []string{"mine"}, Shared: []string{"ours"}, CorrelationID: cid}
	busy := tasking.Options{Exclusive: []string{"busy"}}
	done := d.dispatch(t, helpers+"dummy_task", nil, mine)
	failed := d.dispatch(t, helpers+"failing_task", nil, tasking.Options{})
	made := d.dispatch(t, maker, prn(t, "core.task", done), tasking.Options{})
	group, leader := d.group(t, 0)
	d.reaches(t, tasking.Completed, done, made, leader)
	d.reaches(t, tasking.Failed, failed)
	led, err := d.client.Get(t.Context(), id(t, leader))
	if err != nil || len(led.Children) != 1 {
		t.Fatalf("the group's first task has the children %v, error %v", led.Children, err)
	}
	follower := taskHref(led.Children[0])
	d.reaches(t, tasking.Completed, follower)
	running := d.dispatch(t, helpers+"sleep", sleep(600), busy)
	d.reaches(t, tasking.Running, running)
	waiting := d.dispatch(t, helpers+"dummy_task", nil, tasking.Options{Exclusive: busy.Exclusive, Shared: mine.Shared})
	canceled := d.dispatch(t, helpers+"dummy_task", nil, busy)
	p.ok("task", "cancel", "--href", canceled)
	names := map[string]string{
		done: "done", failed: "failed", made: "made", leader: "leader", follower: "follower", running: "running", waiting: "waiting", canceled: "canceled",
	}
	started := p.task(done).Started
	if started == nil {
		t.Fatal("a completed task has no start")
	}
	final := []string{"canceled", "done", "failed", "follower", "leader", "made"}

	for _, tt := range []struct {
		args []string
		want []string // sorted
	}{
		{nil, []string{"canceled", "done", "failed", "follower", "leader", "made", "running", "waiting"}},
		{[]string{"--state", "completed"}, []string{"done", "follower", "leader", "made"}},
		{[]string{"--state-in", "failed", "--state-in", "canceled"}, []string{"canceled", "failed"}},
		{[]string{"--state-in", "skipped"}, []string{}},
		{[]string{"--name", helpers + "failing_task"}, []string{"failed"}},
		{[]string{"--name", "failing_task"}, []string{}},
		{[]string{"--name-contains", "failing"}, []string{"failed"}},
		{[]string{"--cid", cid}, []string{"done"}},
		{[]string{"--cid", cid[3:17]}, []string{"done"}},
		{[]string{"--parent-task", leader}, []string{"follower"}},
		{[]string{"--parent-task", id(t, leader).String()}, []string{"follower"}},
		{[]string{"--task-group", group}, []string{"follower", "leader"}},
		{[]string{"--task-group", id(t, group).String()}, []string{"follower", "leader"}},
		{[]string{"--worker", "one@test"}, []string{}}, // as in Pulp, whose tasks name none any more
		{[]string{"--created-resource", done}, []string{"made"}},
		{[]string{"--created-resource", failed}, []string{}},
		{[]string{"--started-after", "2020-01-01"}, []string{"done", "failed", "follower", "leader", "made", "running"}},
		{[]string{"--started-before", "2020-01-01 12:00:00"}, []string{}},
		{[]string{"--started-after", *started, "--started-before", *started}, []string{"done"}},
		{[]string{"--finished-after", "2020-01-01T12:00:00"}, final},
		{[]string{"--finished-before", "2999-12-31"}, final},
		{[]string{"--finished-before", "2020-01-01"}, []string{}},
		{[]string{"--reserved-resource", "ours"}, []string{"done", "waiting"}},
		{[]string{"--reserved-resource-in", "ours", "--reserved-resource-in", "mine"}, []string{"done"}},
		{[]string{"--reserved-resource", "nobody's"}, []string{}},
		{[]string{"--exclusive-resource", "busy"}, []string{"canceled", "running", "waiting"}},
		{[]string{"--exclusive-resource", "ours"}, []string{}},
		{[]string{"--exclusive-resource-in", "busy"}, []string{"canceled", "running", "waiting"}},
		{[]string{"--exclusive-resource-in", "busy", "--exclusive-resource-in", "mine"}, []string{}},
		{[]string{"--shared-resource", "ours"}, []string{"done", "waiting"}},
		{[]string{"--shared-resource-in", "ours"}, []string{"done", "waiting"}},
		{[]string{"--shared-resource", "ours", "--state", "waiting"}, []string{"waiting"}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			got := p.in(t).list(names, append([]string{"task", "list"}, tt.args...)...)
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("tasks (-want +got):\n%s", diff)
			}
		})
	}
	newest := []string{"canceled", "waiting", "running", "follower", "leader", "made", "failed", "done"}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"--limit", "3"}, newest[:3]},
		{[]string{"--limit", "3", "--offset", "4"}, newest[4:7]},
		{[]string{"--offset", "9"}, []string{}},
		{[]string{"--ordering", "pulp_created", "--limit", "2"}, []string{"done", "failed"}},
		{[]string{"--ordering", "-name", "--ordering", "pulp_created", "--limit", "3"}, []string{"follower", "running", "failed"}},
		{[]string{"--field", "pulp_href", "--limit", "1"}, newest[:1]},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, p.in(t).list(names, append([]string{"task", "list"}, tt.args...)...)); diff != "" {
				t.Errorf("tasks (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("fields", func(t *testing.T) {
		t.Parallel()
		p := p.in(t)
		r := p.done("task", "list", "--limit", "1", "--field", "state", "--field", "name")
		want := `[{"state": "canceled", "name": "` + helpers + `dummy_task"}]` + "\n"
		if r.out != want || !strings.Contains(r.err, "Not all 8 entries were shown.") {
			t.Errorf("%s%s, want %s", r.out, r.err, want)
		}
		one := decode[[]map[string]any](t, p.ok("task", "list", "--limit", "1", "--exclude-field", "state"))
		if _, ok := one[0]["state"]; ok || one[0]["pulp_href"] == nil {
			t.Errorf("an excluded field is there, or another is not: %v", one)
		}
	})
}

func TestPulpShowsTasks(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{}, "one@test")
	failing := d.dispatch(t, helpers+"failing_task", map[string]string{"error_message": "as told"}, tasking.Options{})
	d.reaches(t, tasking.Failed, failing)
	name := prn(t, "core.task", failing)
	for _, args := range [][]string{
		{"task", "show", "--href", failing},
		{"task", "show", "--href", name},
		{"task", "show", "--uuid", id(t, failing).String()},
		{"task", "show", "--wait", "--href", failing}, // there is nothing to wait for
		{"show", "--href", failing},
		{"show", "--prn", name},
	} {
		if got := p.show(args...); got.Href != failing || got.PRN != name || got.State != "failed" {
			t.Errorf("pulp %s: %+v", strings.Join(args, " "), got)
		}
	}
	// The command line takes seconds to start, where others work as well.
	sleeper := d.dispatch(t, helpers+"sleep", sleep(12), tasking.Options{})
	if r := p.done("task", "show", "--wait", "--href", sleeper); !strings.Contains(r.err, "Waiting for task "+sleeper) || decode[entity](t, r.out).State != "completed" {
		t.Errorf("a task that was waited for: %s%s", r.err, r.out)
	}
	late := d.dispatch(t, helpers+"sleep", sleep(600), tasking.Options{})
	if r := p.done("--timeout", "1", "task", "show", "--wait", "--href", late); !strings.Contains(r.err, "timed out") {
		t.Errorf("waiting does not time out: %s", r.err)
	}
	if r := p.done("--background", "task", "show", "--wait", "--href", late); !strings.Contains(r.err, "Not waiting for task because --background was specified") {
		t.Errorf("it waits in the background: %s", r.err)
	}
}

// dispatchTask makes the arguments by which the command line dispatches a task.
func dispatchTask(body string, global ...string) []string {
	return append(global, "debug", "openapi", "call", "--id", "pith_tasks_dispatch", "--body", body)
}

func TestPulpDispatchesTasks(t *testing.T) {
	t.Parallel()
	_, p := withPulp(t, worker.Config{}, "one@test")
	const cid = "01234567-89ab-cdef-0123-456789abcdef"
	got := p.show(dispatchTask(`{"name": "`+helpers+`sleep", "args": {"interval": 0}, "exclusive_resources": ["mine"]}`, "--cid", cid)...)
	if got.State != "completed" || got.CID != cid || got.Creator == nil || *got.Creator != root+"users/1/" {
		t.Errorf("task: %+v", got)
	}
	p.fails("as told", dispatchTask(`{"name": "`+helpers+`failing_task", "args": {"error_message": "as told"}}`)...)
	p.fails("as told", dispatchTask(`{"name": "`+helpers+`afailing_task", "args": {"error_message": "as told"}, "immediate": true, "deferred": false}`)...)
	p.fails("no task type", dispatchTask(`{"name": "nothing"}`)...)
	p.fails("missing properties", dispatchTask(`{}`)...)
	href := p.starts(dispatchTask(`{"name": "`+helpers+`sleep", "args": {"interval": 600}, "exclusive_resources": ["mine"]}`, "--background")...)
	p.fails("canceled", dispatchTask(`{"name": "`+helpers+`asleep", "args": {"interval": 0}, "exclusive_resources": ["mine"], "immediate": true, "deferred": false}`)...)
	p.ok("task", "cancel", "--href", href)
	href = p.starts(dispatchTask(`{"name": "`+helpers+`dummy_task", "versions": {"catdog": "1.0"}}`, "--background")...)
	if got := p.task(href).State; got != "waiting" {
		t.Errorf("a task that no worker can run is %s", got)
	}
	p.ok("task", "cancel", "--href", href)
}

func TestPulpCancelsTasks(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{}, "one@test")
	busy := tasking.Options{Exclusive: []string{"busy"}}
	sleeper := func() string { return d.dispatch(t, helpers+"sleep", sleep(600), busy) }
	state := func(href, want string) {
		t.Helper()
		if got := p.task(href).State; got != want {
			t.Errorf("%s is %s, want %s", href, got, want)
		}
	}
	running, waiting := sleeper(), sleeper()
	d.reaches(t, tasking.Running, running)
	if r := p.done("task", "cancel", "--href", waiting); !strings.Contains(r.err, "Waiting to cancel task "+waiting) {
		t.Errorf("canceling says %s", r.err)
	}
	state(waiting, "canceled")
	p.ok("task", "cancel", "--uuid", id(t, running).String())
	state(running, "canceled")
	p.fails("is in state canceled and cannot be canceled", "task", "cancel", "--href", running)
	// Past the command line's own look at the state.
	done := p.starts(dispatchTask(`{"name": "`+helpers+`asleep", "args": {"interval": 0}, "immediate": true}`, "--background")...)
	p.fails(`"state":"completed"`, "debug", "openapi", "call", "--id", "tasks_cancel", "--parameter", "task_href="+done, "--body", `{"state": "canceled"}`)

	gooey := d.dispatch(t, helpers+"gooey_task", sleep(600), tasking.Options{})
	d.reaches(t, tasking.Running, gooey)
	p.ok("task", "cancel", "--href", prn(t, "core.task", gooey))
	state(gooey, "canceled")

	running = sleeper()
	d.reaches(t, tasking.Running, running)
	if r := p.done("--background", "task", "cancel", "--href", running); !strings.Contains(r.err, "Not waiting for task because --background was specified") {
		t.Errorf("canceling in the background says %s", r.err)
	}
	d.reaches(t, tasking.Canceled, running)

	running, waiting = sleeper(), sleeper()
	d.reaches(t, tasking.Running, running)
	p.ok("task", "cancel", "--waiting")
	state(waiting, "canceled")
	state(running, "running")
	p.ok("task", "cancel", "--running")
	state(running, "canceled")
	running, waiting = sleeper(), sleeper()
	d.reaches(t, tasking.Running, running)
	p.ok("task", "cancel", "--all")
	state(running, "canceled")
	state(waiting, "canceled")
	p.ok("task", "cancel", "--all") // none is left
}

func TestPulpDestroysAndPurgesTasks(t *testing.T) {
	t.Parallel()
	d, p := withPulp(t, worker.Config{}, "one@test")
	dummy := func() string { return d.dispatch(t, helpers+"dummy_task", nil, tasking.Options{}) }
	done, gone := dummy(), dummy()
	failed := d.dispatch(t, helpers+"failing_task", nil, tasking.Options{})
	running := d.dispatch(t, helpers+"sleep", sleep(600), tasking.Options{Exclusive: []string{"busy"}})
	waiting := d.dispatch(t, helpers+"dummy_task", nil, tasking.Options{Exclusive: []string{"busy"}})
	d.reaches(t, tasking.Completed, done, gone)
	d.reaches(t, tasking.Failed, failed)
	d.reaches(t, tasking.Running, running)

	p.ok("task", "destroy", "--href", gone)
	p.fails("No Task matches", "task", "show", "--href", gone)
	p.fails("", "task", "destroy", "--href", running) // Pulp gives no reason either

	if diff := cmp.Diff(map[string]int{"waiting": 1, "skipped": 0, "running": 1, "completed": 1, "failed": 1, "canceling": 0, "canceled": 0},
		decode[map[string]int](t, p.ok("task", "summary"))); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}

	names := map[string]string{done: "done", failed: "failed", running: "running", waiting: "waiting"}
	left := func(want ...string) {
		t.Helper()
		got := slices.DeleteFunc(p.list(names, "task", "list"), func(name string) bool { return name == builtin.Purge })
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("left are (-want +got):\n%s", diff)
		}
	}
	p.ok("task", "purge") // nothing is as old as that
	left("done", "failed", "running", "waiting")
	p.ok("task", "purge", "--finished-before", "2020-01-01", "--state", "failed", "--state", "completed")
	left("done", "failed", "running", "waiting")
	href := p.starts("task", "purge", "--finished-before", "2999-01-01T00:00:00", "--state", "failed", "--state", "canceled")
	left("done", "running", "waiting")
	purged := p.task(href)
	if purged.Name != builtin.Purge || !slices.Contains(purged.Progress, report{"purge.tasks.key.core.Task", 1}) {
		t.Errorf("the purge: %+v", purged)
	}
	href = p.starts("--background", "task", "purge", "--finished-before", "2999-01-01")
	d.reaches(t, tasking.Completed, href)
	left("running", "waiting")
}

func TestPulpDownloadsProfiles(t *testing.T) {
	t.Parallel()
	_, p := withPulp(t, worker.Config{}, "one@test")
	href := p.starts("--header", "X-Task-Diagnostics:memory", "task", "purge")
	urls := decode[map[string]string](t, p.ok("task", "profile-artifact-urls", "--href", href))
	if len(urls) != 1 || !strings.Contains(urls["memory_profile"], "signature=") {
		t.Errorf("profiles are at %v", urls)
	}
	out := p.ok("task", "profile-artifact-urls", "--uuid", id(t, href).String(), "--download")
	path := filepath.Join("task_profile-"+builtin.Purge+"-"+id(t, href).String(), "memory_profile")
	data, err := os.ReadFile(filepath.Join(p.dir, path))
	if err != nil || !strings.HasPrefix(string(data), "# seconds") || !strings.Contains(out, "Downloading "+path) {
		t.Errorf("profile %q, error %v, printed %s", data, err, out)
	}
	// Nobody has asked for one.
	if urls := decode[map[string]string](t, p.ok("task", "profile-artifact-urls", "--href", p.starts("task", "purge"))); len(urls) > 0 {
		t.Errorf("profiles are at %v", urls)
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
