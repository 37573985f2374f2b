package clients_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

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
