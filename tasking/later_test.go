package tasking_test

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/tasking"
)

func TestTaskThatIsNotDueHoldsNobodyUpAndIsNotClaimed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	later := h.dispatch(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}, NotBefore: time.Now().Add(time.Hour)}))
	overtaking := h.reserve([]string{"a"}, nil)
	if n := h.enqueue(); n != 0 {
		t.Errorf("%d queued before their time", n)
	}
	w := h.worker()
	rows := h.turn(turnParams(w, h.kinds(), 10))
	if got := claims(rows); len(got) != 1 || got[0].ID != overtaking {
		t.Errorf("claimed %v", got)
	}
	due := 0.0
	for _, r := range rows {
		if r.Event == "due" {
			due = r.DueIn
		}
	}
	if due < 3500 || due > 3600 {
		t.Errorf("due in %v s", due)
	}
	// Its time comes while the later one, which overtook it, runs: it stands behind that.
	h.makeDue(later, time.Second)
	if n := h.enqueue(); n != 1 {
		t.Errorf("%d queued", n)
	}
	h.wantBlockedOn([]int{1}, later)
	behind := h.reserve([]string{"a"}, nil)
	h.finish(w, overtaking, tasking.Completed)
	h.run(w, later)
	h.run(w, behind)
}

func TestTaskThatIsDueAtDispatchIsQueuedAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Now().Add(-time.Hour)}))
	h.wantBlockedOn([]int{0}, id)
	if h.get(id).NotBefore == nil {
		t.Error("its time is forgotten")
	}
}

func TestDueTasksAreQueuedInTheOrderOfTheirTimes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var ids []uuid.UUID
	for range 20 {
		ids = append(ids, h.dispatch(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}, NotBefore: time.Now().Add(time.Hour)})))
	}
	// The last dispatched is due first.
	for i, id := range ids {
		h.makeDue(id, time.Duration(i+1)*time.Minute)
	}
	if n := h.enqueue(); int(n) != len(ids) {
		t.Errorf("%d queued", n)
	}
	w := h.worker()
	for _, id := range slices.Backward(ids) {
		h.run(w, id)
	}
}

func TestOneStatementQueuesNoMoreThanItIsAskedTo(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for range 5 {
		h.makeDue(h.dispatch(plain.Request(nil, tasking.Options{Shared: []string{"a"}, NotBefore: time.Now().Add(time.Hour)})), time.Minute)
	}
	for _, want := range []int32{2, 2, 1, 0} {
		if n, err := h.q.TaskEnqueueDue(t.Context(), h.Pool, 2); err != nil || n != want {
			t.Errorf("%d queued, %v; want %d", n, err, want)
		}
	}
}

func TestManyMayQueueDueTasksAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const tasks = 40
	for i := range tasks {
		o := reserving([]string{"x:a", "s:a", "s:b x:c", "x:domain", ""}[i%5])
		o.NotBefore = time.Now().Add(time.Hour)
		h.makeDue(h.dispatch(plain.Request(nil, o)), time.Duration(i)*time.Second)
	}
	results := make(chan int32)
	for range 8 {
		go func() {
			n, err := h.q.TaskEnqueueDue(t.Context(), h.Pool, 1000)
			if err != nil {
				t.Error(err)
			}
			results <- n
		}()
	}
	sum := int32(0)
	for range 8 {
		sum += <-results
	}
	if sum += h.enqueue(); sum != tasks {
		t.Errorf("%d queued, should be %d", sum, tasks)
	}
}

func TestCancelThatMeetsATaskJustQueuedTakesItsReservationsAlong(t *testing.T) {
	t.Parallel()
	for _, words := range []string{"s:a", "x:a", "s:a x:b", "", "s:domain", "x:domain"} {
		for _, queue := range []string{"", "s:a", "x:a"} {
			t.Run(words+" behind "+queue, func(t *testing.T) {
				t.Parallel()
				h := newHarness(t)
				if queue != "" {
					h.dispatch(plain.Request(nil, reserving(queue)))
				}
				o := reserving(words)
				o.NotBefore = time.Now().Add(time.Hour)
				id := h.dispatch(plain.Request(nil, o))
				h.makeDue(id, time.Second)
				// It is queued, but that is not committed yet.
				tx, err := h.Direct.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
				if _, err := h.q.TaskEnqueueDue(t.Context(), tx, 10); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() {
					_, err := h.q.TaskCancel(t.Context(), h.Pool, []pgtype.UUID{pg(id)})
					done <- err
				}()
				h.untilBlocked()
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if got := h.state(id); got != tasking.Canceled {
					t.Errorf("it is %s", got)
				}
				if n := one[int](h, "SELECT count(*) FROM task_reservation WHERE task = $1", id); n != 0 {
					t.Errorf("%d reservations of the canceled task are left", n)
				}
			})
		}
	}
}

func TestFailedAttemptIsTriedAgainOnTheSameRecord(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	s := held(h, retried.Request("x", tasking.Options{Exclusive: []string{"a"}}))
	next := h.reserve([]string{"a"}, nil)
	behind := h.reserve([]string{"a"}, nil)
	for attempt := 1; attempt <= 2; attempt++ {
		before := one[time.Time](h, "SELECT clock_timestamp()")
		h.finish(s.holder, s.id, tasking.Failed)
		task := h.get(s.id)
		if task.State != tasking.Waiting || task.Attempt != attempt || task.MaxAttempts != 3 || task.Error == nil || task.Error.Description != "boom" ||
			task.BlockedOn != nil || task.UnblockedAt != nil || task.FinishedAt != nil || task.Holder != nil {
			t.Fatalf("after attempt %d: %+v", attempt, task)
		}
		// A minute, then two.
		pause := time.Minute << (attempt - 1)
		if due := task.NotBefore.Sub(before); due < pause || due > pause+30*time.Second {
			t.Errorf("after attempt %d: due after %s, want %s", attempt, due, pause)
		}
		// Its resources are free meanwhile, and it stands behind when it comes back.
		if attempt == 1 {
			h.run(w, next)
		}
		h.makeDue(s.id, time.Second)
		h.enqueue()
		if attempt == 1 {
			h.wantBlockedOn([]int{1}, s.id)
			h.run(w, behind)
		}
		h.claimOnly(s.holder, s.id)
	}
	h.finish(s.holder, s.id, tasking.Failed)
	if task := h.get(s.id); task.State != tasking.Failed || task.Attempt != 3 || task.Error.Description != "boom" {
		t.Errorf("after the last attempt: %+v", task)
	}
	h.wantRows("task", 3)
}

func TestRetryThatCompletesHasNoError(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := held(h, retried.Request(nil, tasking.Options{}))
	h.finish(s.holder, s.id, tasking.Failed)
	h.makeDue(s.id, time.Second)
	h.enqueue()
	h.run(s.holder, s.id)
	if task := h.get(s.id); task.State != tasking.Completed || task.Attempt != 2 || task.Error != nil {
		t.Errorf("%+v", task)
	}
}

func TestCanceledAttemptIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := held(h, retried.Request(nil, tasking.Options{}))
	h.cancel(s.id)
	h.finish(s.holder, s.id, tasking.Failed)
	if got := h.state(s.id); got != tasking.Canceled {
		t.Errorf("it is %s", got)
	}
}

func TestProgressOfAFailedAttemptSaysFailed(t *testing.T) {
	t.Parallel()
	typ := tasking.NewType("test.progress", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		done, err := run.Progress(ctx, "first", "a", 1, "")
		if err != nil {
			return nil, err
		}
		if err := done.Complete(ctx); err != nil {
			return nil, err
		}
		p, err := run.Progress(ctx, "second", "b", -1, "")
		if err != nil {
			return nil, err
		}
		return nil, p.Add(ctx, 7) // throttled: saved when the run ends
	}, tasking.TypeConfig{MaxAttempts: 2})
	h := newHarness(t, typ)
	s := held(h, typ.Request(nil, tasking.Options{}))
	h.c.Execute(t.Context(), tasking.Holder{ID: s.holder}, tasking.Claim{ID: s.id, Attempt: 1, Name: "test.progress", Args: json.RawMessage("null")})
	check := func(want ...tasking.State) {
		t.Helper()
		got := h.get(s.id).Progress
		if len(got) != 2 || got[0].State != want[0] || got[1].State != want[1] || got[1].Done != 7 || got[1].Total != nil {
			t.Errorf("reports: %+v, want states %v", got, want)
		}
	}
	check(tasking.Completed, tasking.Running)
	h.finish(s.holder, s.id, tasking.Failed)
	check(tasking.Completed, tasking.Failed)
	// The next attempt writes over them.
	h.makeDue(s.id, time.Second)
	h.enqueue()
	h.claimOnly(s.holder, s.id)
	h.c.Execute(t.Context(), tasking.Holder{ID: s.holder}, tasking.Claim{ID: s.id, Attempt: 2, Name: "test.progress", Args: json.RawMessage("null")})
	check(tasking.Completed, tasking.Running)
	h.finish(s.holder, s.id, tasking.Completed)
	check(tasking.Completed, tasking.Completed)
}

func TestLongestBackoffStaysWithinAnHour(t *testing.T) {
	t.Parallel()
	typ := tasking.NewType("test.patient", func(context.Context, *tasking.Run, any) (any, error) { return nil, nil },
		tasking.TypeConfig{MaxAttempts: 1000, Backoff: math.MaxInt64})
	h := newHarness(t, typ)
	s := held(h, typ.Request(nil, tasking.Options{}))
	for _, attempt := range []int{1, 21, 999} {
		h.exec("UPDATE task SET attempt = $2 WHERE id = $1", s.id, attempt)
		h.finish(s.holder, s.id, tasking.Failed)
		if due := time.Until(*h.get(s.id).NotBefore); due > time.Hour || due < 59*time.Minute {
			t.Errorf("after attempt %d: due in %s", attempt, due)
		}
		h.makeDue(s.id, time.Second)
		h.enqueue()
		h.claimOnly(s.holder, s.id)
	}
}

func TestAbandonedTaskWithAttemptsLeftWaitsAgain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
	next := h.reserve([]string{"a"}, nil)
	h.vanish(s.holder)
	h.wantBlockedOn([]int{1}, next)
	h.sweep()
	h.wantBlockedOn([]int{-1, 0}, s.id, next)
	task := h.get(s.id)
	if task.State != tasking.Waiting || task.Error.Reason != "Worker has gone missing." {
		t.Errorf("it is %s with %v", task.State, task.Error)
	}
	w := h.worker()
	h.run(w, next)
	h.makeDue(s.id, time.Second)
	h.enqueue()
	h.run(w, s.id)
}

func TestAbandonedTasksEndInBoundedBatches(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	for range 7 {
		h.reserve(nil, []string{"a"})
	}
	last := h.reserve([]string{"a"}, nil)
	if got := h.claim(w, 100); len(got) != 7 {
		t.Fatalf("claimed %d", len(got))
	}
	h.vanish(w)
	for range 3 {
		if _, err := h.Pool.Exec(t.Context(), "SELECT task_abandoned_finish(3, '{}')"); err != nil {
			t.Fatal(err)
		}
	}
	if n := one[int](h, "SELECT count(*) FROM task WHERE state = 'failed'"); n != 7 {
		t.Errorf("%d failed", n)
	}
	h.wantBlockedOn([]int{0}, last)
}

func TestNotBeforeOutsideOfWhatTheDatabaseHoldsIsAnError(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, at := range []time.Time{time.Date(300_000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-10_000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if _, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{NotBefore: at})); err == nil || !strings.Contains(err.Error(), "test.plain") {
			t.Errorf("%v: %v", at, err)
		}
	}
	h.wantRows("task", 0)
}
