package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// rolledBack: the database has executed the statement and fails to commit it.
const rolledBack how = "rolled back at commit"

// A durable step is one statement whose effect must be there once, however often it had to be sent.
// Those of the client are sent again by it; those of a worker's loop are sent again here, as the loop
// does with the answer to a failed turn: what it has not heard of, it asks for (recovering).
var durableSteps = []struct {
	name  string
	query string // whose connection breaks
	table string // whose change is rolled back
	// make prepares the step and returns it, and a check of what it has done.
	make func(h *harness, pool *pgxpool.Pool) (do func(context.Context) error, check func())
}{
	{"dispatch", "TaskDispatch", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		c := h.client(pool, tasking.Config{})
		var d tasking.Dispatched
		return func(ctx context.Context) (err error) {
				d, err = c.Dispatch(ctx, plain.Request("x", tasking.Options{Exclusive: []string{"a"}, Shared: []string{"b"}}))
				return err
			}, func() {
				want := h.get(one[uuid.UUID](h, "SELECT id FROM task"))
				if diff := cmp.Diff(tasking.Dispatched{ID: want.ID, State: tasking.Waiting, CreatedAt: want.CreatedAt}, d); diff != "" {
					h.t.Errorf("dispatched (-database +answer):\n%s", diff)
				}
				h.wantRows("task_reservation", 2)
				h.claimOnly(h.worker(), d.ID)
			}
	}},
	{"dispatch many", "TaskDispatch", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		c := h.client(pool, tasking.Config{})
		var ds []tasking.Dispatched
		return func(ctx context.Context) (err error) {
				rs := make([]tasking.Request, 50)
				for i := range rs {
					rs[i] = plain.Request(i, tasking.Options{Exclusive: []string{"a"}})
				}
				ds, err = c.DispatchMany(ctx, rs)
				return err
			}, func() {
				var got []uuid.UUID
				for _, d := range ds {
					got = append(got, d.ID)
				}
				if diff := cmp.Diff(query[uuid.UUID](h, "SELECT id FROM task ORDER BY seq"), got); diff != "" {
					h.t.Errorf("order (-database +answer):\n%s", diff)
				}
				if diff := cmp.Diff(query[int](h, "SELECT g FROM generate_series(0, 49) g"), query[int](h, "SELECT args::text::int FROM task ORDER BY seq")); diff != "" {
					h.t.Error(diff)
				}
			}
	}},
	{"dispatch an immediate task", "TaskDispatch", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		runs := 0
		typ := tasking.NewType("test.count", func(context.Context, *tasking.Run, any) (int, error) { runs++; return runs, nil },
			tasking.TypeConfig{Immediate: true})
		c := h.client(pool, tasking.Config{App: h.process(appstatus.API)}, typ)
		var d tasking.Dispatched
		return func(ctx context.Context) (err error) {
				d, err = c.Dispatch(ctx, typ.Request(nil, tasking.Options{Immediate: true, NotDeferred: true}))
				return err
			}, func() {
				h.wantRows("task", 1)
				if task := h.get(d.ID); runs != 1 || d.State != tasking.Completed || task.State != tasking.Completed || string(task.Result) != "1" {
					h.t.Errorf("after %d runs: told %s, is %s with %s", runs, d.State, task.State, task.Result)
				}
			}
	}},
	{"finish an immediate task", "TaskTurn", "", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		typ := tasking.NewType("test.fails", func(context.Context, *tasking.Run, any) (any, error) { return nil, errors.New("no luck") },
			tasking.TypeConfig{Immediate: true})
		c := h.client(pool, tasking.Config{App: h.process(appstatus.API)}, typ)
		var d tasking.Dispatched
		return func(ctx context.Context) (err error) {
				d, err = c.Dispatch(ctx, typ.Request(nil, tasking.Options{Immediate: true}))
				return err
			}, func() {
				task := h.get(d.ID)
				if d.State != tasking.Failed || task.State != tasking.Failed || task.Error.Description != "no luck" {
					h.t.Errorf("told %s, is %s with %v", d.State, task.State, task.Error)
				}
			}
	}},
	{"claim", "TaskTurn", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		ids := []uuid.UUID{h.reserve([]string{"a"}, nil), h.reserve([]string{"b"}, nil), h.reserve([]string{"c"}, nil)}
		w := h.worker()
		known := h.claim(w, 1)[0].ID // the worker runs this one and knows it
		p := turnParams(w, h.kinds(), 2)
		var got []tasking.Claim
		return resending(func(ctx context.Context) error {
				rows, err := tasking.Turn(ctx, pool, p)
				got = claims(rows)
				p.Recovering, p.Holding = true, []pgtype.UUID{pg(known)}
				return err
			}), func() {
				told := []uuid.UUID{known}
				for _, c := range got {
					told = append(told, c.ID)
					if c.Attempt != 1 {
						h.t.Errorf("attempt %d", c.Attempt)
					}
				}
				if diff := cmp.Diff(sorted(ids), sorted(told)); diff != "" {
					h.t.Errorf("held (-want +told):\n%s", diff)
				}
				if held := query[uuid.UUID](h, "SELECT id FROM task WHERE app_lock = $1 AND attempt = 1 ORDER BY id", w); !cmp.Equal(held, sorted(ids)) {
					h.t.Errorf("in the database held: %v", held)
				}
			}
	}},
	{"claim a task that is canceled meanwhile", "TaskTurn", "", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		id := h.reserve([]string{"a"}, nil)
		w := h.worker()
		p := turnParams(w, h.kinds(), 1)
		var rows []tasking.TurnEvent
		return resending(func(ctx context.Context) (err error) {
				if p.Recovering {
					h.cancel(id)
				}
				rows, err = tasking.Turn(ctx, pool, p)
				p.Recovering = true
				return err
			}), func() {
				var events []string
				for _, r := range rows {
					events = append(events, r.Event)
				}
				switch h.state(id) {
				case tasking.Canceled:
					if len(events) != 0 {
						h.t.Errorf("told %v of a task that was canceled while it waited", events)
					}
				case tasking.Canceling:
					if !cmp.Equal(events, []string{"claim", "cancel"}) {
						h.t.Errorf("told %v of a task that it holds and that is to be canceled", events)
					}
				default:
					h.t.Errorf("it is %s", h.state(id))
				}
			}
	}},
	{"finish: completed", "TaskTurn", "task", finishing(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}), tasking.Completed, tasking.Completed)},
	{"finish: failed", "TaskTurn", "task", finishing(plain.Request(nil, tasking.Options{Shared: []string{"a"}}), tasking.Failed, tasking.Failed)},
	{"finish: to be tried again", "TaskTurn", "task", finishing(retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}), tasking.Failed, tasking.Waiting)},
	{"finish: completed, but canceled before", "TaskTurn", "task", finishingCanceled(tasking.Completed)},
	{"finish: failed, but canceled before", "TaskTurn", "task", finishingCanceled(tasking.Failed)},
	{"cancel what waits", "TaskCancel", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		first, second := h.reserve([]string{"a"}, nil), h.reserve([]string{"a"}, nil)
		c := h.client(pool, tasking.Config{})
		var s tasking.State
		return func(ctx context.Context) (err error) { s, err = c.Cancel(ctx, first); return err }, func() {
			if s != tasking.Canceled || h.state(first) != tasking.Canceled {
				h.t.Errorf("told %s, is %s", s, h.state(first))
			}
			h.wantBlockedOn([]int{0}, second)
		}
	}},
	{"cancel what runs", "TaskCancel", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		s := held(h, plain.Request(nil, tasking.Options{}))
		c := h.client(pool, tasking.Config{})
		var told tasking.State
		return func(ctx context.Context) (err error) { told, err = c.Cancel(ctx, s.id); return err }, func() {
			if told != tasking.Canceling || h.state(s.id) != tasking.Canceling {
				h.t.Errorf("told %s, is %s", told, h.state(s.id))
			}
		}
	}},
	{"cancel a group: close", "TaskGroupClose", "task_group", groupCanceling},
	{"cancel a group: list", "TaskGroupUnfinished", "", groupCanceling},
	{"cancel a group: cancel", "TaskCancel", "task", groupCanceling},
	{"purge", "TaskPurge", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		done, kept := h.reserve(nil, nil), h.reserve(nil, nil)
		h.run(h.worker(), done)
		c := h.client(pool, tasking.Config{})
		return func(ctx context.Context) error {
				_, err := c.Purge(ctx, time.Now().Add(time.Hour), tasking.Completed)
				return err
			}, func() {
				if got := query[uuid.UUID](h, "SELECT id FROM task"); !cmp.Equal(got, []uuid.UUID{kept}) {
					h.t.Errorf("left: %v", got)
				}
			}
	}},
	{"create a group", "TaskGroupCreate", "task_group", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		c := h.client(pool, tasking.Config{})
		var id uuid.UUID
		return func(ctx context.Context) (err error) { id, err = c.NewGroup(ctx, "g"); return err }, func() {
			if got := one[uuid.UUID](h, "SELECT id FROM task_group"); got != id {
				h.t.Errorf("told %s, is %s", id, got)
			}
		}
	}},
	{"register", "AppStatusRegister", "app_status", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		app, err := appstatus.New(pool, appstatus.Config{Type: appstatus.Worker, TTL: time.Hour})
		if err != nil {
			h.t.Fatal(err)
		}
		return app.Register, func() {
			if got := one[uuid.UUID](h, "SELECT id FROM app_status WHERE last_heartbeat + ttl > now()"); got != app.ID() || app.Online() != 1 {
				h.t.Errorf("told %s and %d online, is %s", app.ID(), app.Online(), got)
			}
			select {
			case <-app.Lost():
				h.t.Error("it is lost")
			default:
			}
		}
	}},
	{"unregister", "AppStatusUnregister", "app_status", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		app, err := appstatus.New(pool, appstatus.Config{Type: appstatus.Worker, TTL: time.Hour})
		if err != nil {
			h.t.Fatal(err)
		}
		if err := app.Register(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
		return app.Unregister, func() { h.wantRows("app_status", 0) }
	}},
	{"beat", "AppStatusBeat", "app_status", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		w := h.worker()
		h.exec("UPDATE app_status SET last_heartbeat = now() - interval '59 minutes'")
		return resending(func(ctx context.Context) error {
				_, err := h.q.AppStatusBeat(ctx, pool, db.AppStatusBeatParams{ID: pg(w), Patience: pgtype.Float8{Valid: true}, ForeignKinds: []int32{}})
				return err
			}), func() {
				if !one[bool](h, "SELECT last_heartbeat > now() - interval '1 minute' FROM app_status") {
					h.t.Error("the lease was not prolonged")
				}
			}
	}},
	{"sweep the missing", "AppStatusSweep", "app_status", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		s := held(h, plain.Request(nil, tasking.Options{}))
		h.exec("UPDATE app_status SET last_heartbeat = now() - interval '2 hours'")
		return resending(func(ctx context.Context) error { _, err := appstatus.Sweep(ctx, pool); return err }), func() {
			h.wantRows("app_status", 0)
			if task := h.get(s.id); task.State != tasking.Running || task.Holder != nil {
				h.t.Errorf("it is %s, held by %v", task.State, task.Holder)
			}
		}
	}},
	{"end the abandoned", "TaskAbandonedFinish", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		next := h.reserve([]string{"a"}, nil)
		h.vanish(s.holder)
		return resending(func(ctx context.Context) error {
				_, err := h.q.TaskAbandonedFinish(ctx, pool, db.TaskAbandonedFinishParams{Most: 10, Error: `{"reason": "gone"}`})
				return err
			}), func() {
				if task := h.get(s.id); task.State != tasking.Waiting || task.Attempt != 1 || task.Error.Reason != "gone" {
					h.t.Errorf("it is %s after attempt %d with %v", task.State, task.Attempt, task.Error)
				}
				h.wantBlockedOn([]int{-1, 0}, s.id, next)
			}
	}},
	{"queue what is due", "TaskEnqueueDue", "task", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		id := h.dispatch(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}, NotBefore: time.Now().Add(time.Hour)}))
		h.makeDue(id, time.Second)
		return resending(func(ctx context.Context) error { _, err := h.q.TaskEnqueueDue(ctx, pool, 10); return err }), func() {
			h.wantBlockedOn([]int{0}, id)
			h.wantRows("task_reservation", 1)
		}
	}},
	{"begin a progress report", "ProgressReportSave", "progress_report", within(func(ctx context.Context, run *tasking.Run) error {
		_, err := run.Progress(ctx, "m", "c", 10, "s")
		return err
	}, func(h *harness, id uuid.UUID) {
		total := int64(10)
		want := []tasking.Report{{Message: "m", Code: "c", State: tasking.Running, Total: &total, Suffix: "s"}}
		if diff := cmp.Diff(want, h.get(id).Progress); diff != "" {
			h.t.Error(diff)
		}
	})},
	{"record a created resource", "CreatedResourceSave", "created_resource", within(func(ctx context.Context, run *tasking.Run) error {
		return errors.Join(run.AddCreatedResource(ctx, "prn:a"), run.AddCreatedResource(ctx, "prn:b"))
	}, func(h *harness, id uuid.UUID) {
		if got := h.get(id).Created; !cmp.Equal(got, []string{"prn:a", "prn:b"}) {
			h.t.Errorf("recorded: %v", got)
		}
	})},
	{"dispatch a child", "TaskDispatch", "task", within(func(ctx context.Context, run *tasking.Run) error {
		_, err := run.Dispatch(ctx, plain.Request(nil, tasking.Options{}))
		return err
	}, func(h *harness, id uuid.UUID) {
		if got := h.get(id).Children; len(got) != 1 {
			h.t.Errorf("children: %v", got)
		}
	})},
	{"save a schedule", "TaskScheduleSave", "task_schedule", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		c := h.client(pool, tasking.Config{})
		var s tasking.Schedule
		return func(ctx context.Context) (err error) {
				s, err = c.SaveSchedule(ctx, tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
				return err
			}, func() {
				if got := one[uuid.UUID](h, "SELECT id FROM task_schedule"); got != s.ID {
					h.t.Errorf("told %s, is %s", s.ID, got)
				}
			}
	}},
	{"add a schedule", "TaskScheduleSave", "task_schedule", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		c := h.client(pool, tasking.Config{})
		id := uuid.Must(uuid.NewV7())
		return func(ctx context.Context) error {
				_, err := c.AddSchedule(ctx, tasking.Schedule{ID: id, Name: "s", Task: "test.plain", Interval: time.Hour})
				return err
			}, func() {
				if got := one[uuid.UUID](h, "SELECT id FROM task_schedule"); got != id {
					h.t.Errorf("asked for %s, is %s", id, got)
				}
			}
	}},
	{"remove a schedule", "TaskScheduleRemove", "task_schedule", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
		c := h.client(pool, tasking.Config{})
		return func(ctx context.Context) error { return c.RemoveSchedule(ctx, "s") }, func() { h.wantRows("task_schedule", 0) }
	}},
	{"dispatch a schedule", "TaskDispatch", "task_schedule", func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
		h.exec("UPDATE task_schedule SET next_dispatch = now() - interval '1 minute'")
		c := h.client(pool, tasking.Config{})
		var n int
		return func(ctx context.Context) (err error) { n, err = c.DispatchDue(ctx); return err }, func() {
			h.wantRows("task", 1)
			if !one[bool](h, "SELECT last_task = (SELECT id FROM task) AND next_dispatch > now() FROM task_schedule") || n != 1 {
				h.t.Errorf("told %d, and the schedule is not right", n)
			}
		}
	}},
}

// resending sends a statement that fails in passing again, once.
func resending(send func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := send(ctx)
		if err == nil {
			return errors.New("the first try succeeded")
		}
		if !resend.Passing(err) {
			return err
		}
		return send(ctx)
	}
}

type makeStep = func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func())

// finishing ends an attempt; a task that waits for its resource is granted it.
func finishing(r tasking.Request, asked, want tasking.State) makeStep {
	return func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		s := held(h, r)
		next := h.reserve([]string{"a"}, nil)
		failure := ""
		if asked == tasking.Failed {
			failure = `{"description": "no luck"}`
		}
		var rows []tasking.TurnEvent
		return resending(func(ctx context.Context) (err error) {
				rows, err = tasking.Turn(ctx, pool, finishParams(&s.holder, s.id, 1, asked, "", failure))
				return err
			}), func() {
				for _, row := range rows {
					if row.Event != "finish" || !row.Recorded || row.State != string(want) {
						h.t.Errorf("told %+v", row)
					}
				}
				if got := h.state(s.id); got != want {
					h.t.Errorf("it is %s, should be %s", got, want)
				}
				h.wantBlockedOn([]int{0}, next)
			}
	}
}

func finishingCanceled(asked tasking.State) makeStep {
	return func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		do, check := finishing(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}), asked, tasking.Canceled)(h, pool)
		h.cancel(one[uuid.UUID](h, "SELECT id FROM task WHERE state = 'running'"))
		return do, check
	}
}

func groupCanceling(h *harness, pool *pgxpool.Pool) (do func(context.Context) error, check func()) {
	group, err := h.c.NewGroup(h.t.Context(), "g")
	if err != nil {
		h.t.Fatal(err)
	}
	running := held(h, plain.Request(nil, tasking.Options{Group: &group}))
	waiting := h.dispatch(plain.Request(nil, tasking.Options{Group: &group}))
	c := h.client(pool, tasking.Config{})
	return func(ctx context.Context) error { _, err := c.CancelGroup(ctx, group); return err }, func() {
		if r, w := h.state(running.id), h.state(waiting); r != tasking.Canceling || w != tasking.Canceled {
			h.t.Errorf("they are %s and %s", r, w)
		}
		if g, err := h.c.GetGroup(h.t.Context(), group); err != nil || !g.AllTasksDispatched {
			h.t.Errorf("the group is open: %v", err)
		}
	}
}

// within is a step that a running task makes.
func within(step func(context.Context, *tasking.Run) error, check func(h *harness, id uuid.UUID)) makeStep {
	return func(h *harness, pool *pgxpool.Pool) (func(context.Context) error, func()) {
		typ := tasking.NewType("test.within", func(ctx context.Context, run *tasking.Run, _ any) (any, error) { return nil, step(ctx, run) },
			tasking.TypeConfig{})
		c := h.client(pool, tasking.Config{}, typ)
		h.c = h.client(h.Pool, tasking.Config{}, typ)
		s := held(h, typ.Request(nil, tasking.Options{}))
		return func(ctx context.Context) error {
				claim := tasking.Claim{ID: s.id, Attempt: 1, Name: "test.within", Args: json.RawMessage("null"), CorrelationID: "c"}
				if out := c.Execute(ctx, tasking.Holder{ID: s.holder}, claim); out.Error != nil {
					return out.Error
				}
				return nil
			}, func() {
				check(h, s.id)
			}
	}
}

func (h *harness) schedule(s tasking.Schedule) tasking.Schedule {
	h.t.Helper()
	s, err := h.c.SaveSchedule(h.t.Context(), s)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *harness) wantRows(table string, want int) {
	h.t.Helper()
	if got := one[int](h, "SELECT count(*) FROM "+table); got != want {
		h.t.Errorf("%s has %d rows, should have %d", table, got, want)
	}
}

func TestEachDurableStepHoldsOnceHoweverItFails(t *testing.T) {
	t.Parallel()
	for _, step := range durableSteps {
		for _, how := range []how{cut, rolledBack, lost} {
			if how == rolledBack && step.table == "" {
				continue
			}
			t.Run(step.name+"/"+string(how), func(t *testing.T) {
				t.Parallel()
				h := newHarness(t)
				pool, faults := h.faulty(h.Pool)
				do, check := step.make(h, pool)
				if how == rolledBack {
					h.rollBackOnce(step.table)
				} else {
					faults.arm(step.query, how, nil)
				}
				if err := do(t.Context()); err != nil {
					t.Fatal(err)
				}
				check()
			})
		}
	}
}
