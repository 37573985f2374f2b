package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

func TestOnlyTheHolderOfTheAttemptEndsIt(t *testing.T) {
	t.Parallel()
	for _, canceling := range []bool{false, true} {
		name := "running"
		if canceling {
			name = "canceling"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
			next := h.reserve([]string{"a"}, nil)
			// The second attempt runs; the first one is over.
			h.finish(s.holder, s.id, tasking.Failed)
			h.run(s.holder, next)
			next = h.reserve([]string{"a"}, nil)
			h.run(s.holder, next)
			h.makeDue(s.id, time.Second)
			h.enqueue()
			h.claimOnly(s.holder, s.id)
			if canceling {
				h.cancel(s.id)
			}
			other := h.worker()
			for _, tt := range []struct {
				name    string
				holder  *uuid.UUID
				attempt int32
			}{
				{"another app", &other, 2},
				{"an app that does not exist", &uuid.Max, 2},
				{"nobody", nil, 2},
				{"the holder, of the attempt before", &s.holder, 1},
				{"the holder, of an attempt to come", &s.holder, 3},
				{"another app, of the attempt before", &other, 1},
			} {
				for _, asked := range []tasking.State{tasking.Completed, tasking.Failed} {
					t.Run(tt.name+"/"+string(asked), func(t *testing.T) {
						h := h.in(t)
						before := h.row(s.id)
						rows := h.turn(finishParams(tt.holder, s.id, tt.attempt, asked, "", ""))
						n := 0
						for _, r := range rows {
							if r.Event != "finish" {
								continue
							}
							n++
							if r.ID.Bytes != s.id || r.Recorded || r.State != name || r.Attempt != 2 {
								t.Errorf("told %+v", r)
							}
						}
						if n != 1 {
							t.Errorf("told %d times: %+v", n, rows)
						}
						if diff := cmp.Diff(before, h.row(s.id)); diff != "" {
							t.Errorf("changed:\n%s", diff)
						}
					})
				}
			}
		})
	}
}

func TestRecoveryReturnsOnlyWhatTheWorkerItselfHolds(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := held(h, plain.Request(nil, tasking.Options{}))
	p := turnParams(h.worker(), h.kinds(), 10)
	p.Recovering = true
	if got := claims(h.turn(p)); len(got) != 0 {
		t.Errorf("another worker is given %v", got)
	}
	p.Worker = pg(s.holder)
	if got := claims(h.turn(p)); len(got) != 1 || got[0].ID != s.id {
		t.Errorf("the holder is given %v", got)
	}
}

func TestWorkerThatWasSweptClaimsNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	id := h.reserve([]string{"a"}, nil)
	kinds := h.kinds()
	h.vanish(w)
	_, err := tasking.Turn(t.Context(), h.Pool, turnParams(w, kinds, 10))
	wantConstraint(t, err, "task_app_lock_fkey")
	if got := h.state(id); got != tasking.Waiting {
		t.Errorf("it is %s", got)
	}
}

// What a task function can write, each as a function of the run.
var writes = map[string]func(context.Context, *tasking.Run) error{
	"created resource": func(ctx context.Context, run *tasking.Run) error { return run.AddCreatedResource(ctx, "prn:x") },
	"progress": func(ctx context.Context, run *tasking.Run) error {
		_, err := run.Progress(ctx, "m", "c", 1, "")
		return err
	},
	"child": func(ctx context.Context, run *tasking.Run) error {
		_, err := run.Dispatch(ctx, plain.Request(nil, tasking.Options{}))
		return err
	},
	"immediate child": func(ctx context.Context, run *tasking.Run) error {
		_, err := run.Dispatch(ctx, plain.Request(nil, tasking.Options{Immediate: true}))
		return err
	},
	"children": func(ctx context.Context, run *tasking.Run) error {
		_, err := run.DispatchMany(ctx, []tasking.Request{plain.Request(nil, tasking.Options{}), plain.Request(nil, tasking.Options{})})
		return err
	},
}

func TestRunWritesNothingOnceTheLockIsLost(t *testing.T) {
	t.Parallel()
	for name, write := range writes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var result error
			typ := tasking.NewType("test.writes", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
				result = write(ctx, run)
				return nil, nil
			}, tasking.TypeConfig{MaxAttempts: 5, Backoff: time.Minute})
			h := newHarness(t, typ)
			s := held(h, typ.Request(nil, tasking.Options{}))
			h.finish(s.holder, s.id, tasking.Failed)
			h.makeDue(s.id, time.Second)
			h.enqueue()
			h.claimOnly(s.holder, s.id)
			execute := func(holder uuid.UUID, attempt int) error {
				h.c.Execute(t.Context(), tasking.Holder{ID: holder}, tasking.Claim{ID: s.id, Attempt: attempt, Name: "test.writes", Args: json.RawMessage("null"), CorrelationID: "c"})
				return result
			}
			wantNothing := func(name string, err error) {
				t.Helper()
				if !errors.Is(err, tasking.ErrLockLost) {
					t.Errorf("%s: %v, want %v", name, err, tasking.ErrLockLost)
				}
				if n := one[int](h, "SELECT (SELECT count(*) FROM task) + (SELECT count(*) FROM progress_report) + (SELECT count(*) FROM created_resource)"); n != 1 {
					t.Errorf("%s: something was written", name)
				}
			}
			wantNothing("another app", execute(h.worker(), 2))
			wantNothing("an app that does not exist", execute(uuid.Max, 2))
			wantNothing("the attempt before", execute(s.holder, 1))
			wantNothing("an attempt to come", execute(s.holder, 3))

			// The true holder may, also while it is asked to cancel.
			h.cancel(s.id)
			if err := execute(s.holder, 2); err != nil {
				t.Errorf("the holder: %v", err)
			}
			// Then it was swept, and nobody may.
			before := one[int](h, "SELECT count(*) FROM task")
			h.vanish(s.holder)
			if err := execute(s.holder, 2); !errors.Is(err, tasking.ErrLockLost) {
				t.Errorf("a swept holder: %v, want %v", err, tasking.ErrLockLost)
			}
			h.wantRows("task", before)
		})
	}
}

func TestProgressOfAFencedRunIsNotSaved(t *testing.T) {
	t.Parallel()
	var h *harness
	var s subject
	var add, complete error
	typ := tasking.NewType("test.fenced", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		p, err := run.Progress(ctx, "m", "c", 10, "")
		if err != nil {
			return nil, err
		}
		h.vanish(s.holder)
		add, complete = p.Add(ctx, 5), p.Complete(ctx)
		return nil, nil
	}, tasking.TypeConfig{})
	h = newHarness(t, typ)
	s = held(h, typ.Request(nil, tasking.Options{}))
	h.c.Execute(t.Context(), tasking.Holder{ID: s.holder}, tasking.Claim{ID: s.id, Attempt: 1, Name: "test.fenced", Args: json.RawMessage("null")})
	if add != nil {
		t.Errorf("a throttled save was sent: %v", add)
	}
	if !errors.Is(complete, tasking.ErrLockLost) {
		t.Errorf("complete: %v", complete)
	}
	h.sweep()
	if got := h.get(s.id); got.Progress[0].State != tasking.Failed || got.Progress[0].Done != 0 {
		t.Errorf("saved: %+v", got.Progress)
	}
}

func TestImmediateTaskWhoseLockIsLostIsToldSo(t *testing.T) {
	t.Parallel()
	var h *harness
	var app *appstatus.App
	typ := tasking.NewType("test.lost", func(context.Context, *tasking.Run, any) (any, error) { h.vanish(app.ID()); return nil, nil },
		tasking.TypeConfig{Immediate: true})
	h = newHarness(t, typ)
	app = h.process(appstatus.API)
	c := h.client(h.Pool, tasking.Config{App: app}, typ)
	d, err := c.Dispatch(t.Context(), typ.Request(nil, tasking.Options{Immediate: true}))
	if !errors.Is(err, tasking.ErrLockLost) {
		t.Errorf("told %+v, %v; want %v", d, err, tasking.ErrLockLost)
	}
	h.sweep()
	if got := h.get(d.ID); got.State != tasking.Failed || got.Error.Reason != tasking.ReasonMissing {
		t.Errorf("it is %s with %v", got.State, got.Error)
	}
}
