package tasking_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

// A second send may come when the world has moved on.

func TestDispatchWhoseAnswerIsLostIsNotRunByItsDispatcherOnceAWorkerHasIt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		immediate bool
		app       bool
	}{
		{"an ordinary task", false, false},
		{"an ordinary task, of a process with an app", false, true},
		{"an immediate task that was blocked", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			runs := 0
			typ := tasking.NewType("test.count", func(context.Context, *tasking.Run, any) (any, error) { runs++; return nil, nil },
				tasking.TypeConfig{Immediate: true})
			h.c = h.client(h.Pool, tasking.Config{}, typ)
			var cfg tasking.Config
			if tt.app {
				cfg.App = h.process(appstatus.API)
			}
			w := h.worker()
			first := h.reserve([]string{"a"}, nil)
			h.claimOnly(w, first)
			pool, faults := h.faulty(h.Pool)
			faults.arm("TaskDispatch", lost, func() {
				h.finish(w, first, tasking.Completed)
				if got := h.claim(w, 10); len(got) != 1 {
					t.Errorf("claimed %v", got)
				}
			})
			d, err := h.client(pool, cfg, typ).Dispatch(t.Context(), typ.Request(nil, tasking.Options{Exclusive: []string{"a"}, Immediate: tt.immediate}))
			if err != nil || d.State != tasking.Running {
				t.Errorf("told %s, %v", d.State, err)
			}
			if task := h.get(d.ID); runs != 0 || task.State != tasking.Running || *task.Holder != w {
				t.Errorf("after %d runs here it is %s, held by %v", runs, task.State, task.Holder)
			}
		})
	}
}

func TestImmediateChildWhoseAnswerIsLostIsNotRunTwiceByOneWorker(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	runs := 0
	child := tasking.NewType("test.child", func(context.Context, *tasking.Run, any) (any, error) { runs++; return nil, nil },
		tasking.TypeConfig{Immediate: true})
	parent := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		return run.Dispatch(ctx, child.Request(nil, tasking.Options{Immediate: true, Exclusive: []string{"a"}}))
	}, tasking.TypeConfig{})
	h.c = h.client(h.Pool, tasking.Config{}, child, parent)
	first := h.reserve([]string{"a"}, nil)
	other := h.worker()
	h.claimOnly(other, first)
	p := held(h, parent.Request(nil, tasking.Options{}))
	pool, faults := h.faulty(h.Pool)
	// The child was blocked when it was dispatched, so it was not given to its dispatcher. Meanwhile
	// the same worker has claimed it in the ordinary way.
	faults.arm("TaskDispatch", lost, func() {
		h.finish(other, first, tasking.Completed)
		if got := h.claim(p.holder, 10); len(got) != 1 {
			t.Errorf("claimed %v", got)
		}
	})
	out := h.client(pool, tasking.Config{}, child, parent).Execute(t.Context(), tasking.Holder{ID: p.holder},
		tasking.Claim{ID: p.id, Attempt: 1, Name: "test.parent", Args: json.RawMessage("null")})
	if out.Error != nil || runs != 0 {
		t.Errorf("%v; it ran %d times besides its claim", out.Error, runs)
	}
}

func TestRecoveringWorkerIsNotGivenWhatItsTasksRunImmediately(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	inside := make(chan uuid.UUID)
	goOn := make(chan struct{})
	child := tasking.NewType("test.child", func(_ context.Context, run *tasking.Run, _ any) (any, error) {
		inside <- run.ID
		<-goOn
		return nil, nil
	}, tasking.TypeConfig{Immediate: true})
	parent := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		return run.Dispatch(ctx, child.Request(nil, tasking.Options{Immediate: true}))
	}, tasking.TypeConfig{})
	h.c = h.client(h.Pool, tasking.Config{}, child, parent)
	id := h.dispatch(parent.Request(nil, tasking.Options{}))
	h.claimOnly(w, id)
	done := make(chan tasking.Outcome, 1)
	go func() {
		done <- h.c.Execute(t.Context(), tasking.Holder{ID: w}, tasking.Claim{ID: id, Attempt: 1, Name: "test.parent", Args: json.RawMessage("null")})
	}()
	run := <-inside
	p := turnParams(w, h.kinds(), 10)
	p.Recovering, p.Holding = true, []pgtype.UUID{pg(id)}
	for _, c := range claims(h.turn(p)) {
		t.Errorf("claimed %s, which runs in the process already (the child is %s)", c.ID, run)
	}
	close(goOn)
	if out := <-done; out.Error != nil {
		t.Error(out.Error)
	}
}

func TestFinishSentAgainAfterTheTaskRunsAnewChangesNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
	h.finish(s.holder, s.id, tasking.Failed)
	h.makeDue(s.id, time.Second)
	h.enqueue()
	h.claimOnly(s.holder, s.id)
	before := h.row(s.id)
	for _, r := range h.turn(finishParams(&s.holder, s.id, 1, tasking.Failed, "", `{"description": "boom"}`)) {
		if r.Event != "finish" || r.Recorded {
			t.Errorf("told %+v", r)
		}
	}
	if diff := cmp.Diff(before, h.row(s.id)); diff != "" {
		t.Error(diff)
	}
}
