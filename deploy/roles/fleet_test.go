package roles

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// The types of the fleet's tasks.
var (
	child = tasking.NewType("test.child", func(_ context.Context, _ *tasking.Run, text string) (string, error) {
		return text, nil
	}, tasking.TypeConfig{Immediate: true})
	// parent uses all that a Run offers.
	parent = tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (string, error) {
		p, err := run.Progress(ctx, "Counting", "test.count", 2, "")
		if err != nil {
			return "", err
		}
		if err := p.Add(ctx, 2); err != nil {
			return "", err
		}
		if err := p.Complete(ctx); err != nil {
			return "", err
		}
		if _, err := run.Progress(ctx, "Going on", "test.on", -1, "things"); err != nil {
			return "", err
		}
		for _, prn := range []string{"prn:a", "prn:b"} {
			if err := run.AddCreatedResource(ctx, prn); err != nil {
				return "", err
			}
		}
		if _, err := run.Token(ctx); err != nil {
			return "", err
		}
		d, err := run.Dispatch(ctx, child.Request("one", tasking.Options{}))
		if err != nil {
			return "", err
		}
		if _, err := run.DispatchMany(ctx, []tasking.Request{child.Request("two", tasking.Options{}), child.Request("three", tasking.Options{})}); err != nil {
			return "", err
		}
		if _, err := run.GetGroup(ctx); err != nil {
			return "", err
		}
		if err := run.CloseGroup(ctx); err != nil {
			return "", err
		}
		done, err := run.Client().Wait(ctx, d.ID)
		if err != nil {
			return "", err
		}
		return child.Result(done[0])
	}, tasking.TypeConfig{})
	failing = tasking.NewType("test.failing", func(context.Context, *tasking.Run, any) (any, error) {
		return nil, errors.New("boom")
	}, tasking.TypeConfig{MaxAttempts: 2, Backoff: time.Hour})
	endless = tasking.NewType("test.endless", func(ctx context.Context, _ *tasking.Run, _ any) (any, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}, tasking.TypeConfig{})
)

var types = []tasking.AnyType{child, parent, failing, endless}

// process registers a process of its own for a client's database.
func (s *site) process(c *tasking.Client, typ appstatus.Type) *appstatus.App {
	s.t.Helper()
	app, err := appstatus.New(c.Pool(), appstatus.Config{Type: typ, TTL: time.Hour, TaskNames: c.Registry().Runnable(), Log: s.Log})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := app.Register(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return app
}

// must passes on a value that comes without an error, and ends the test otherwise.
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func pg(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// claim has a process take one task by a statement of its own.
func (s *site) claim(c *tasking.Client, app *appstatus.App, id uuid.UUID) tasking.Claim {
	s.t.Helper()
	kind := one[int32](s, "SELECT kind FROM task WHERE id = $1", id)
	events := must[[]tasking.TurnEvent](s.t)(tasking.Turn(s.t.Context(), c.Pool(), db.TaskTurnParams{
		Worker: pg(app.ID()), Known: []int32{kind}, Runnable: []int32{kind}, Wanted: 1, Searching: true,
	}))
	for _, e := range events {
		if e.Event == "claim" && e.ID.Bytes == id {
			return tasking.Claim{ID: id, Attempt: int(e.Attempt), Reserved: e.Reserved}
		}
	}
	s.t.Fatalf("%s was not claimed: %+v", id, events)
	return tasking.Claim{}
}

func TestAFleetWorksAsTheRoles(t *testing.T) {
	t.Parallel()
	s := newFleetSite(t)
	ctx := t.Context()
	d, w, r := s.client("dispatcher", tasking.Config{}, types...), s.client("worker", tasking.Config{}, types...), s.client("reader", tasking.Config{}, types...)
	for role, c := range map[string]*tasking.Client{"dispatcher": d, "worker": w, "reader": r} {
		if err := migrate.Check(ctx, c.Pool()); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}

	// A worker, which only runs tasks: the duties of the house are done one by one below.
	crew := must[*worker.Worker](t)(worker.New(w, worker.Config{Concurrency: 4, Auxiliary: true, Log: s.Log}))
	working := make(chan error, 1)
	go func() { working <- crew.Run(ctx) }()
	t.Cleanup(func() {
		crew.Abort()
		if err := <-working; err != nil {
			t.Error(err)
		}
	})

	group := must[uuid.UUID](t)(d.NewGroup(ctx, "a family"))
	first := must[tasking.Dispatched](t)(d.Dispatch(ctx, parent.Request(nil, tasking.Options{Exclusive: []string{"prn:r"}, Group: &group})))
	many := must[[]tasking.Dispatched](t)(d.DispatchMany(ctx, []tasking.Request{
		child.Request("a", tasking.Options{Exclusive: []string{"prn:r"}}), child.Request("b", tasking.Options{Shared: []string{"prn:r"}, Immediate: true}),
	}))
	done := must[[]tasking.Task](t)(d.Wait(ctx, first.ID, many[0].ID, many[1].ID))
	for _, task := range done {
		if task.State != tasking.Completed {
			t.Errorf("%s is %s: %v", task.Name, task.State, task.Error)
		}
	}

	// What a reader sees.
	got := must[tasking.Task](t)(r.Get(ctx, first.ID))
	if len(got.Children) != 3 || len(got.Progress) != 2 || len(got.Created) != 2 || string(got.Result) != `"one"` {
		t.Errorf("the parent is %+v", got)
	}
	if list := must[[]tasking.Task](t)(r.List(ctx, tasking.Filter{Resource: "prn:r"})); len(list) != 3 {
		t.Errorf("%d tasks reserve the resource", len(list))
	}
	if g := must[tasking.Group](t)(r.GetGroup(ctx, group)); g.Completed == 0 || !g.AllTasksDispatched {
		t.Errorf("the group is %+v", g)
	}
	if e := must[tasking.Explanation](t)(r.Explain(ctx, first.ID)); e.WorkersCapable != 1 {
		t.Errorf("explained as %+v", e)
	}
	if apps := must[[]appstatus.Status](t)(appstatus.List(ctx, r.Pool(), "", 10, 0)); len(apps) != 1 || !apps[0].Online {
		t.Errorf("processes are %+v", apps)
	}

	// Cancel: what runs, what waits behind it, and a group.
	running := must[tasking.Dispatched](t)(d.Dispatch(ctx, endless.Request(nil, tasking.Options{Exclusive: []string{"prn:e"}, Group: &group})))
	waiting := must[tasking.Dispatched](t)(d.Dispatch(ctx, child.Request("w", tasking.Options{Exclusive: []string{"prn:e"}})))
	later := must[tasking.Dispatched](t)(d.Dispatch(ctx, child.Request("l", tasking.Options{Exclusive: []string{"prn:e"}})))
	if state := must[tasking.State](t)(d.Cancel(ctx, waiting.ID)); state != tasking.Canceled {
		t.Errorf("the waiting task is %s", state)
	}
	if n := must[int](t)(d.CancelGroup(ctx, group)); n == 0 {
		t.Error("nothing of the group was canceled")
	}
	for i, task := range must[[]tasking.Task](t)(d.Wait(ctx, running.ID, later.ID)) {
		if want := []tasking.State{tasking.Canceled, tasking.Completed}[i]; task.State != want {
			t.Errorf("task %d is %s, want %s", i, task.State, want)
		}
	}
}

// TestDutiesOfTheHouseAreDoneAsAWorker drives the steps one by one, without a worker.
func TestDutiesOfTheHouseAreDoneAsAWorker(t *testing.T) {
	t.Parallel()
	s := newFleetSite(t)
	ctx := t.Context()
	d, w := s.client("dispatcher", tasking.Config{}, types...), s.client("worker", tasking.Config{}, types...)
	q := db.New()

	// Schedules are the dispatcher's; workers dispatch what is due.
	must[tasking.Schedule](t)(d.SaveSchedule(ctx, tasking.Schedule{Name: "s", Task: "test.child", Args: []byte(`"x"`), Interval: time.Hour}))
	saved := must[tasking.Schedule](t)(d.SaveSchedule(ctx, tasking.Schedule{Name: "s", Task: "test.child", Args: []byte(`"y"`), Interval: time.Hour}))
	if n := must[int](t)(w.DispatchDue(ctx)); n != 1 {
		t.Errorf("%d schedules were due", n)
	}
	list := must[[]tasking.Schedule](t)(s.client("reader", tasking.Config{}, types...).Schedules(ctx, 10, 0))
	if len(list) != 1 || list[0].ID != saved.ID || list[0].LastTask == nil {
		t.Fatalf("schedules are %+v", list)
	}
	scheduled := *list[0].LastTask
	if err := d.RemoveSchedule(ctx, "s"); err != nil {
		t.Error(err)
	}

	// What is not due yet gets its place later.
	delayed := must[tasking.Dispatched](t)(d.Dispatch(ctx, child.Request("d", tasking.Options{NotBefore: time.Now().Add(time.Hour)})))
	s.admin(fmt.Sprintf("UPDATE task SET not_before = now() - interval '1 s' WHERE id = '%s'", delayed.ID))
	if n := must[int32](t)(q.TaskEnqueueDue(ctx, w.Pool(), 10)); n != 1 {
		t.Errorf("%d tasks were queued", n)
	}

	// A process that holds tasks and vanishes, and one that ends well.
	gone, here := s.process(w, appstatus.Worker), s.process(w, appstatus.Worker)
	left := s.claim(w, gone, scheduled)
	s.admin(fmt.Sprintf("UPDATE app_status SET last_heartbeat = now() - interval '1 d' WHERE id = '%s'", gone.ID()))
	swept := must[[]appstatus.Status](t)(appstatus.Sweep(ctx, w.Pool()))
	if len(swept) != 1 || swept[0].ID != gone.ID() {
		t.Errorf("swept %+v", swept)
	}
	ended := must[[]db.TaskAbandonedFinishRow](t)(q.TaskAbandonedFinish(ctx, w.Pool(), db.TaskAbandonedFinishParams{Most: 10, Error: `{"reason": "gone"}`}))
	if len(ended) != 1 || ended[0].ID.Bytes != left.ID || ended[0].State != "failed" {
		t.Errorf("ended %+v", ended)
	}

	// An attempt that had a process of its own.
	claim := s.claim(w, here, delayed.ID)
	var p db.TaskTurnParams
	p.Worker = pg(here.ID())
	tasking.AddEnd(&p, claim, tasking.Outcome{State: tasking.Completed}, "")
	var used tasking.Used
	used.Add(claim.ID, tasking.Usage{PeakMemory: 1 << 20, CPUSeconds: 0.5})
	if events := must[[]tasking.TurnEvent](t)(tasking.TurnUsed(ctx, w.Pool(), p, used)); len(events) != 0 {
		t.Errorf("the turn says %+v", events)
	}
	if task := must[tasking.Task](t)(d.Get(ctx, claim.ID)); task.State != tasking.Completed || task.Usage == nil || task.Usage.PeakMemory != 1<<20 {
		t.Errorf("the task is %+v", task)
	}
	beating := must[[]int32](t)(q.AppStatusBeat(ctx, w.Pool(), db.AppStatusBeatParams{ID: pg(here.ID()), Patience: pgtype.Float8{Valid: true}, ForeignKinds: []int32{}}))
	if len(beating) != 3 {
		t.Errorf("a beat is told %v", beating)
	}
	if err := here.Unregister(ctx); err != nil {
		t.Error(err)
	}

	// Only final tasks can be purged, whatever the statement says.
	alive := must[tasking.Dispatched](t)(d.Dispatch(ctx, child.Request("alive", tasking.Options{Exclusive: []string{"prn:p"}})))
	if n := must[int](t)(w.Purge(ctx, time.Now().Add(time.Hour), tasking.Completed, tasking.Failed)); n != 2 {
		t.Errorf("%d tasks were purged", n)
	}
	tag, err := w.Pool().Exec(ctx, "DELETE FROM task")
	if err != nil || tag.RowsAffected() != 0 || one[int](s, "SELECT count(*) FROM task WHERE id = $1", alive.ID) != 1 {
		t.Errorf("%s, %v", tag, err)
	}
}

func TestRetriesAndImmediateTasksWorkAsTheRoles(t *testing.T) {
	t.Parallel()
	s := newFleetSite(t)
	ctx := t.Context()
	// Who runs immediate tasks itself does a worker's work.
	plain := s.client("api", tasking.Config{}, types...)
	app := s.process(plain, appstatus.API)
	api := s.client("api", tasking.Config{App: app}, types...)
	now := must[tasking.Dispatched](t)(api.Dispatch(ctx, child.Request("now", tasking.Options{Immediate: true, NotDeferred: true, Exclusive: []string{"prn:i"}})))
	if now.State != tasking.Completed {
		t.Errorf("the immediate task is %s: %v", now.State, now.Error)
	}

	// Within a transaction of the dispatcher's own.
	d := s.client("dispatcher", tasking.Config{}, types...)
	tx, err := d.Pool().Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	again := must[[]tasking.Dispatched](t)(d.DispatchTx(ctx, tx, failing.Request(nil, tasking.Options{Exclusive: []string{"prn:i"}})))[0]
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}

	w := s.client("worker", tasking.Config{}, types...)
	holder := s.process(w, appstatus.Worker)
	claim := s.claim(w, holder, again.ID)
	var p db.TaskTurnParams
	p.Worker = pg(holder.ID())
	tasking.AddEnd(&p, claim, tasking.Outcome{State: tasking.Failed}, `{"description": "boom"}`)
	must[[]tasking.TurnEvent](t)(tasking.Turn(ctx, w.Pool(), p))
	if task := must[tasking.Task](t)(d.Get(ctx, again.ID)); task.State != tasking.Waiting || task.NotBefore == nil {
		t.Errorf("after its first attempt the task is %s", task.State)
	}
}
