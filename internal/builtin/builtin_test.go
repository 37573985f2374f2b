package builtin_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/isolate"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

func TestMain(m *testing.M) {
	registry, err := builtin.Registry()
	if err != nil {
		panic(err) // the types are the package's own
	}
	tasking.RunChild(registry)
	dbtest.Main(m)
}

const module = "pulpcore.app.tasks.test."

// detached returns a client whose database is nowhere: it can execute, not dispatch.
func detached(t *testing.T) *tasking.Client {
	t.Helper()
	p, err := pool.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none", pool.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	registry, err := builtin.Registry()
	if err != nil {
		t.Fatal(err)
	}
	client, err := tasking.New(p, tasking.Config{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestHelpersEndAsPulpsDo(t *testing.T) {
	t.Parallel()
	client := detached(t)
	tests := []struct {
		name, args string
		immediate  bool
		fails      string // empty: completes
	}{
		{name: "dummy_task", args: `null`},
		{name: "dummy_task", args: `null`, immediate: true, fails: "Immediate tasks must be async functions"},
		{name: "sleep", args: `{"interval": 0}`},
		{name: "sleep", args: `{"interval": 0.001}`},
		{name: "sleep", args: `{"interval": -1}`, fails: "sleep length must be non-negative"},
		{name: "sleep", args: `{}`, fails: "missing argument: interval"},
		{name: "sleep", args: `null`, fails: "missing argument: interval"},
		{name: "sleep", args: `{"interval": "5"}`, fails: "decode arguments"},
		{name: "sleep", args: `[1]`, fails: "decode arguments"},
		{name: "sleep", args: `{"interval": 0}`, immediate: true, fails: "Immediate tasks must be async functions"},
		{name: "asleep", args: `{"interval": 0}`},
		{name: "asleep", args: `{"interval": 0}`, immediate: true},
		{name: "asleep", args: `{"interval": -1}`, immediate: true, fails: "sleep length must be non-negative"},
		{name: "gooey_task", args: `{"interval": 0}`, fails: "only a worker can run it"},
		{name: "failing_task", args: `null`, fails: "Task intentionally failed"},
		{name: "failing_task", args: `{"error_message": "as told"}`, fails: "as told"},
		{name: "afailing_task", args: `{"error_message": "as told"}`, immediate: true, fails: "as told"},
		{name: "dummy_group_task", args: `null`, fails: "must be dispatched in a task group"},
		{name: "group_task_with_finalizer", args: `{"resource": "r"}`, fails: "must be dispatched in a task group"},
		{name: "group_finalizer_task", args: `null`, fails: "must be dispatched in a task group"},
	}
	for _, tt := range tests {
		out := client.Execute(t.Context(), tasking.Holder{ID: uuid.New()}, tasking.Claim{
			ID: uuid.New(), Name: module + tt.name, Args: json.RawMessage(tt.args), Immediate: tt.immediate,
		})
		switch {
		case tt.fails == "" && out.State != tasking.Completed:
			t.Errorf("%s(%s) is %s: %v", tt.name, tt.args, out.State, out.Error)
		case tt.fails == "" && out.Result != nil:
			t.Errorf("%s(%s) has the result %s, want null", tt.name, tt.args, out.Result)
		case tt.fails != "" && (out.State != tasking.Failed || !strings.Contains(out.Error.Description, tt.fails)):
			t.Errorf("%s(%s) is %s: %v, want failed: %s", tt.name, tt.args, out.State, out.Error, tt.fails)
		}
	}
}

func TestSleepStopsWithItsContext(t *testing.T) {
	t.Parallel()
	client := detached(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(tasking.ErrShutdown)
	out := client.Execute(ctx, tasking.Holder{ID: uuid.New()}, tasking.Claim{Name: module + "sleep", Args: json.RawMessage(`{"interval": 1e300}`)})
	if out.State != tasking.Failed || out.Error.Reason != tasking.ReasonShutdown {
		t.Errorf("sleep: %s %v, want failed %s", out.State, out.Error, tasking.ReasonShutdown)
	}
}

func TestGooeyTaskIgnoresItsContextButDiesOfIt(t *testing.T) {
	t.Parallel()
	client := detached(t)
	children := isolate.New(isolate.Config{Dir: t.TempDir()})
	defer children.Close()
	run := func(ctx context.Context, interval string) tasking.Outcome {
		return client.Execute(ctx, tasking.Holder{ID: uuid.New(), Children: children}, tasking.Claim{
			ID: uuid.New(), Name: module + "gooey_task", Args: json.RawMessage(`{"interval": ` + interval + `}`),
		})
	}
	if out := run(t.Context(), "0.01"); out.State != tasking.Completed {
		t.Errorf("undisturbed: %s %v, want completed", out.State, out.Error)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, tasking.ErrLeaseLost)
	defer cancel()
	if out := run(ctx, "1e300"); out.State != tasking.Failed || out.Error.Reason != "Killed by signal 9." {
		t.Errorf("at the end of its context: %s %v, want killed", out.State, out.Error)
	}
}

// connected returns a client on a database, with an app status of this process.
func connected(t *testing.T, db *dbtest.DB) *tasking.Client {
	t.Helper()
	registry, err := builtin.Registry()
	if err != nil {
		t.Fatal(err)
	}
	app, err := appstatus.New(db.Pool, appstatus.Config{Type: appstatus.API})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := app.Unregister(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	client, err := tasking.New(db.Pool, tasking.Config{Registry: registry, App: app, Log: db.Log})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestImmediateHelpersRunInTheDispatcher(t *testing.T) {
	t.Parallel()
	client := connected(t, dbtest.New(t))
	for _, tt := range []struct {
		name, args, fails string
	}{
		{name: "asleep", args: `{"interval": 0}`},
		{name: "afailing_task", args: `{"error_message": "as told"}`, fails: "as told"},
		{name: "sleep", args: `{"interval": 0}`, fails: "Immediate tasks must be async functions"},
	} {
		d, err := client.Dispatch(t.Context(), tasking.Request{
			Name: module + tt.name, Args: json.RawMessage(tt.args), Options: tasking.Options{Immediate: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		task, err := client.Get(t.Context(), d.ID)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case tt.fails == "" && (d.State != tasking.Completed || task.State != tasking.Completed):
			t.Errorf("%s: dispatched %s, is %s, want completed", tt.name, d.State, task.State)
		case tt.fails != "" && (task.State != tasking.Failed || !strings.Contains(task.Error.Description, tt.fails)):
			t.Errorf("%s is %s: %v, want failed: %s", tt.name, task.State, task.Error, tt.fails)
		}
	}
}

// drain runs a worker until nothing is left to do.
func drain(t *testing.T, client *tasking.Client) {
	t.Helper()
	w, err := worker.New(client, worker.Config{Burst: true, Concurrency: 4, Versions: builtin.Versions()})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestGroupHelpersFillAndCloseTheirGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, args string
		completed  int
	}{
		{name: "dummy_group_task", args: `{"inbetween": 0, "intervals": [0, 0.001]}`, completed: 3},
		{name: "group_task_with_finalizer", args: `{"resource": "some resource"}`, completed: 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client := connected(t, dbtest.New(t))
			group, err := client.NewGroup(t.Context(), tt.name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.Dispatch(t.Context(), tasking.Request{
				Name: module + tt.name, Args: json.RawMessage(tt.args), Options: tasking.Options{Group: &group},
			})
			if err != nil {
				t.Fatal(err)
			}
			drain(t, client)
			g, err := client.GetGroup(t.Context(), group)
			if err != nil {
				t.Fatal(err)
			}
			if g.Completed != tt.completed || g.Failed+g.Canceled > 0 || !g.AllTasksDispatched {
				t.Errorf("group is %+v, want %d completed tasks and closed", g, tt.completed)
			}
		})
	}
}

func TestFinalizerFailsIfASiblingFailed(t *testing.T) {
	t.Parallel()
	client := connected(t, dbtest.New(t))
	group, err := client.NewGroup(t.Context(), "siblings")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := client.DispatchMany(t.Context(), []tasking.Request{
		{Name: module + "failing_task", Options: tasking.Options{Group: &group, Exclusive: []string{"r"}}},
		{Name: module + "group_finalizer_task", Options: tasking.Options{Group: &group, Exclusive: []string{"r"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	drain(t, client)
	ended, err := client.Wait(t.Context(), tasks[1].ID)
	if err != nil {
		t.Fatal(err)
	}
	if e := ended[0].Error; e == nil || e.Description != "Not all sibling tasks have completed." {
		t.Errorf("finalizer is %s: %v", ended[0].State, e)
	}
}

func TestWorkerWithAnOlderCoreLeavesHelpersAlone(t *testing.T) {
	t.Parallel()
	registry, err := builtin.Registry()
	if err != nil {
		t.Fatal(err)
	}
	if registry.CanRun(module+"sleep", builtin.Versions(), map[string]string{"core": "3.116.9"}) {
		t.Error("an older core suffices")
	}
	if !registry.CanRun(module+"sleep", builtin.Versions(), builtin.Versions()) {
		t.Error("the own core does not suffice")
	}
}
