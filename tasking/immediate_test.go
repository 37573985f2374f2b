package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

// Functions of immediate tasks.
var (
	answers = tasking.NewType("test.answers", func(context.Context, *tasking.Run, any) (int, error) { return 42, nil },
		tasking.TypeConfig{Immediate: true})
	fails = tasking.NewType("test.fails", func(context.Context, *tasking.Run, any) (any, error) { return nil, errors.New("no luck") },
		tasking.TypeConfig{Immediate: true})
	panics = tasking.NewType("test.panics", func(context.Context, *tasking.Run, any) (any, error) { panic("oh no") },
		tasking.TypeConfig{Immediate: true})
	hangs = tasking.NewType("test.hangs", func(ctx context.Context, _ *tasking.Run, _ any) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}, tasking.TypeConfig{Immediate: true})
	slow      = tasking.NewType("test.slow", func(context.Context, *tasking.Run, any) (any, error) { return nil, nil }, tasking.TypeConfig{})
	elsewhere = tasking.NewType[any, any]("test.elsewhere", nil, tasking.TypeConfig{Immediate: true})
)

// immediates is a harness whose client may run tasks itself.
func immediates(t *testing.T) *harness {
	t.Helper()
	types := []tasking.AnyType{answers, fails, panics, hangs, slow, elsewhere}
	h := newHarness(t, types...)
	h.c = h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, types...)
	return h
}

func TestImmediateTaskHasEndedWhenDispatchReturns(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	d, err := h.c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true, Exclusive: []string{"a"}}))
	if err != nil || d.State != tasking.Completed || d.Error != nil {
		t.Fatalf("told %+v, %v", d, err)
	}
	task := h.get(d.ID)
	if got, err := answers.Result(task); err != nil || got != 42 {
		t.Errorf("result %d, %v", got, err)
	}
	if task.State != tasking.Completed || task.Attempt != 1 || task.StartedAt == nil || task.UnblockedAt == nil || task.Holder != nil {
		t.Errorf("it is %+v", task)
	}
	h.wantRows("task_reservation", 0)
}

func TestImmediateTaskThatFailsTellsWhy(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	for _, tt := range []struct {
		name      string
		r         tasking.Request
		says      string
		code      string
		traceback string
	}{
		{"error", fails.Request(nil, tasking.Options{}), "no luck", "", "errorString"},
		{"panic", panics.Request(nil, tasking.Options{}), "oh no", "", "immediate_test.go"},
		{"arguments of another type", tasking.Request{Name: "test.typed", Args: "text"}, "decode arguments", "", ""},
		{"not declared immediate", slow.Request(nil, tasking.Options{}), "Immediate tasks must be async functions", "PLP0023", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := h.in(t)
			c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, fails, panics, slow,
				tasking.NewType("test.typed", func(context.Context, *tasking.Run, int) (any, error) { return nil, nil }, tasking.TypeConfig{Immediate: true}))
			tt.r.Immediate = true
			d, err := c.Dispatch(t.Context(), tt.r)
			if err != nil || d.State != tasking.Failed || !strings.Contains(d.Error.Description, tt.says) {
				t.Fatalf("told %+v, %v", d, err)
			}
			task := h.get(d.ID)
			if task.State != tasking.Failed || task.Error.Description != d.Error.Description || task.Error.Code != tt.code ||
				task.Error.Traceback == nil || !strings.Contains(*task.Error.Traceback, tt.traceback) {
				t.Errorf("it is %s with %+v", task.State, task.Error)
			}
		})
	}
}

// The slow one: it takes ImmediateTimeout.
func TestImmediateTaskThatHangsTimesOut(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	d, err := h.c.Dispatch(t.Context(), hangs.Request(nil, tasking.Options{Immediate: true}))
	if err != nil || d.State != tasking.Failed || !strings.Contains(d.Error.Description, "timed out after 5 seconds") || d.Error.Code != "PLP0024" {
		t.Errorf("told %+v, %v", d, err)
	}
	if task := h.get(d.ID); task.State != tasking.Failed || task.Error.Description != d.Error.Description {
		t.Errorf("it is %s with %v", task.State, task.Error)
	}
}

func TestImmediateTaskWhoseResourcesAreBusyWaitsOrIsCanceled(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	first := h.reserve([]string{"a"}, nil)
	d, err := h.c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true, Exclusive: []string{"a"}}))
	if err != nil || d.State != tasking.Waiting {
		t.Fatalf("told %+v, %v", d, err)
	}
	h.wantBlockedOn([]int{1}, d.ID)

	before := one[int](h, "SELECT count(*) FROM task_reservation")
	n, err := h.c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true, NotDeferred: true, Shared: []string{"a"}}))
	if err != nil || n.State != tasking.Canceled || n.Error == nil || n.Error.Reason != "Resources temporarily unavailable." {
		t.Fatalf("told %+v, %v", n, err)
	}
	task := h.get(n.ID)
	if task.State != tasking.Canceled || task.Error == nil || task.Error.Reason != "Resources temporarily unavailable." || task.StartedAt != nil || task.FinishedAt == nil {
		t.Errorf("it is %s with %v", task.State, task.Error)
	}
	h.wantRows("task_reservation", before)

	// What waits is a worker's, and comes first.
	w := h.worker()
	h.dispatch(plain.Request(nil, tasking.Options{}))
	h.run(w, first)
	if got := h.claim(w, 1); len(got) != 1 || got[0].ID != d.ID || !got[0].Immediate {
		t.Errorf("claimed %v", got)
	}
}

func TestImmediateTaskIsLeftToWorkersWhereItCannotRunHere(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	appless := h.client(h.Pool, tasking.Config{}, answers)
	for name, dispatch := range map[string]func() (tasking.Dispatched, error){
		"without an app": func() (tasking.Dispatched, error) {
			return appless.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true}))
		},
		"without a function": func() (tasking.Dispatched, error) {
			return h.c.Dispatch(t.Context(), elsewhere.Request(nil, tasking.Options{Immediate: true}))
		},
		"not due": func() (tasking.Dispatched, error) {
			return h.c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true, NotBefore: time.Now().Add(time.Hour)}))
		},
		"one of many": func() (tasking.Dispatched, error) {
			ds, err := h.c.DispatchMany(t.Context(), []tasking.Request{answers.Request(nil, tasking.Options{Immediate: true})})
			return ds[0], err
		},
	} {
		d, err := dispatch()
		if err != nil || d.State != tasking.Waiting || h.state(d.ID) != tasking.Waiting {
			t.Errorf("%s: told %+v, %v", name, d, err)
		}
	}
}

func TestImmediateChildrenDispatchedTogetherAreLeftToWorkers(t *testing.T) {
	t.Parallel()
	var ds []tasking.Dispatched
	typ := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (_ any, err error) {
		ds, err = run.DispatchMany(ctx, []tasking.Request{plain.Request(nil, tasking.Options{Immediate: true})})
		return nil, err
	}, tasking.TypeConfig{})
	h := newHarness(t, typ)
	s := held(h, typ.Request(nil, tasking.Options{}))
	if out := h.c.Execute(t.Context(), tasking.Holder{ID: s.holder}, tasking.Claim{ID: s.id, Attempt: 1, Name: "test.parent", Args: json.RawMessage("null")}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if got := h.state(ds[0].ID); ds[0].State != tasking.Waiting || got != tasking.Waiting {
		t.Errorf("told %s, is %s", ds[0].State, got)
	}
	h.claimOnly(h.worker(), ds[0].ID)
}

func TestImmediateTaskIsEndedAlsoIfItsCallerGoesAway(t *testing.T) {
	t.Parallel()
	for _, how := range []how{cut, lost} {
		t.Run("while it is dispatched, "+string(how), func(t *testing.T) {
			t.Parallel()
			h := immediates(t)
			pool, faults := h.faulty(h.Pool)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			faults.arm("TaskDispatch", how, cancel)
			c := h.client(pool, tasking.Config{App: h.process(appstatus.API)}, hangs)
			d, err := c.Dispatch(ctx, hangs.Request(nil, tasking.Options{Immediate: true}))
			if err != nil || d.State != tasking.Failed {
				t.Errorf("told %+v, %v", d, err)
			}
			if n := one[int](h, "SELECT count(*) FROM task WHERE finished_at IS NULL"); n != 0 {
				t.Errorf("%d tasks are left running, and nobody runs them", n)
			}
		})
	}
	t.Run("while it runs", func(t *testing.T) {
		t.Parallel()
		h := immediates(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		typ := tasking.NewType("test.leaves", func(ctx context.Context, _ *tasking.Run, _ any) (any, error) {
			cancel()
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}, tasking.TypeConfig{Immediate: true})
		c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, typ)
		d, err := c.Dispatch(ctx, typ.Request(nil, tasking.Options{Immediate: true}))
		if err != nil || d.State != tasking.Failed || h.state(d.ID) != tasking.Failed {
			t.Errorf("told %+v, %v; it is %s", d, err, h.state(d.ID))
		}
	})
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		h := immediates(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.c.Dispatch(ctx, answers.Request(nil, tasking.Options{Immediate: true})); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		h.wantRows("task", 0)
	})
}

func TestImmediateTaskCanceledWhileItRunsEndsCanceled(t *testing.T) {
	t.Parallel()
	var h *harness
	typ := tasking.NewType("test.canceled", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		_, err := h.c.Cancel(ctx, run.ID)
		return "done all the same", err
	}, tasking.TypeConfig{Immediate: true})
	h = newHarness(t, typ)
	c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, typ)
	d, err := c.Dispatch(t.Context(), typ.Request(nil, tasking.Options{Immediate: true}))
	if err != nil || d.State != tasking.Canceled {
		t.Errorf("told %+v, %v", d, err)
	}
	if task := h.get(d.ID); task.State != tasking.Canceled || task.Result != nil || task.Error != nil {
		t.Errorf("it is %s with %s, %v", task.State, task.Result, task.Error)
	}
}

func TestWorkerHasTheImmediateLimitToo(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	out := h.c.Execute(t.Context(), tasking.Holder{ID: uuid.Max}, tasking.Claim{ID: uuid.Max, Attempt: 1, Name: "test.slow", Args: json.RawMessage("null"), Immediate: true})
	if out.State != tasking.Failed || !strings.Contains(out.Error.Description, "Immediate tasks must be async functions") {
		t.Errorf("%+v", out)
	}
}

func TestCausesOfAnEndedContextBecomePulpsErrors(t *testing.T) {
	t.Parallel()
	h := immediates(t)
	for _, tt := range []struct {
		cause error
		want  tasking.Error
	}{
		{tasking.ErrShutdown, tasking.Error{Reason: "Aborted during worker shutdown."}},
		{tasking.ErrCanceled, tasking.Error{Description: "context canceled"}},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(tt.cause)
		out := h.c.Execute(ctx, tasking.Holder{ID: uuid.Max}, tasking.Claim{ID: uuid.Max, Attempt: 1, Name: "test.hangs", Args: json.RawMessage("null")})
		if out.State != tasking.Failed || out.Error.Reason != tt.want.Reason || out.Error.Description != tt.want.Description {
			t.Errorf("%v: %+v", tt.cause, out.Error)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(tasking.ErrShutdown)
	if out := h.c.Execute(ctx, tasking.Holder{ID: uuid.Max}, tasking.Claim{ID: uuid.Max, Attempt: 1, Name: "test.answers", Args: json.RawMessage("null")}); out.State != tasking.Completed {
		t.Errorf("what completes all the same is %s", out.State)
	}
}

func TestImmediateTaskEndsWithTheLeaseOfItsProcess(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	started := make(chan struct{})
	holds := tasking.NewType("test.holds", func(ctx context.Context, _ *tasking.Run, _ any) (any, error) {
		close(started)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}, tasking.TypeConfig{Immediate: true})
	app, err := appstatus.New(h.Pool, appstatus.Config{Type: appstatus.API})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := h.client(h.Pool, tasking.Config{App: app}, holds)
	done := make(chan error, 1)
	go func() {
		_, err := c.Dispatch(t.Context(), holds.Request(nil, tasking.Options{Immediate: true}))
		done <- err
	}()
	<-started
	if err := app.Unregister(t.Context()); err != nil { // its lease ends with it
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, tasking.ErrLockLost) {
		t.Errorf("Dispatch = %v", err)
	}
	// Without a lease nothing is run here: it is left to workers, or refused.
	d, err := c.Dispatch(t.Context(), holds.Request(nil, tasking.Options{Immediate: true}))
	if err != nil || d.State != tasking.Waiting {
		t.Errorf("after the lease Dispatch = %s, %v", d.State, err)
	}
	if _, err := c.Dispatch(t.Context(), holds.Request(nil, tasking.Options{Immediate: true, NotDeferred: true})); !errors.Is(err, appstatus.ErrLost) {
		t.Errorf("after the lease Dispatch without deferring = %v", err)
	}
}

func TestImmediateDispatchThatIsStuckEndsWithTheLease(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	app := h.process(appstatus.API)
	c := h.client(h.Pool, tasking.Config{App: app}, answers)
	taken := tasking.Options{Exclusive: []string{"r"}, Immediate: true}
	tx, err := h.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := c.DispatchTx(t.Context(), tx, answers.Request(nil, taken)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Dispatch(context.WithoutCancel(t.Context()), answers.Request(nil, taken))
		ended <- err
	}()
	h.UntilBlocked(t)
	if err := app.Unregister(t.Context()); err != nil { // its lease ends with it
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, appstatus.ErrLost) {
		t.Errorf("Dispatch = %v", err)
	}
}

func TestProcessThatWasSweptUnawaresLeavesImmediateTasksToWorkers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, answers)
	h.exec("DELETE FROM app_status")
	d, err := c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true}))
	if err != nil || d.State != tasking.Waiting {
		t.Errorf("Dispatch = %s, %v", d.State, err)
	}
	if _, err := c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true, NotDeferred: true})); !errors.Is(err, appstatus.ErrLost) {
		t.Errorf("without deferring Dispatch = %v", err)
	}
	h.wantRows("task", 1)
}

func TestImmediateOutcomeThatTheDatabaseRefusesIsAFailure(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN RAISE EXCEPTION 'too deep' USING ERRCODE = 'statement_too_complex'; END$$`)
	h.exec("CREATE TRIGGER refuse BEFORE UPDATE ON task FOR EACH ROW WHEN (NEW.result IS NOT NULL) EXECUTE FUNCTION refuse()")
	c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, answers)
	d, err := c.Dispatch(t.Context(), answers.Request(nil, tasking.Options{Immediate: true}))
	if err != nil {
		t.Fatal(err)
	}
	if d.State != tasking.Failed || d.Error == nil || !strings.Contains(d.Error.Description, "refused") {
		t.Errorf("the task is %s, %v", d.State, d.Error)
	}
}

func TestLongErrorsAreKeptInPart(t *testing.T) {
	t.Parallel()
	long := "x" + strings.Repeat("ü", 100_000)
	text, err := tasking.EncodeError(&tasking.Error{Description: long, Traceback: &long, Reason: "short"})
	if err != nil {
		t.Fatal(err)
	}
	var kept tasking.Error
	if err := json.Unmarshal([]byte(text), &kept); err != nil {
		t.Fatal(err)
	}
	want := "x" + strings.Repeat("ü", 32767) + "… (200001 bytes in all)"
	if kept.Description != want || *kept.Traceback != want || kept.Reason != "short" {
		t.Errorf("kept are %d and %d bytes, %q", len(kept.Description), len(*kept.Traceback), kept.Reason)
	}
}
