package tasking_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// subject is a task brought into a situation, with whom last held it.
type subject struct {
	id      uuid.UUID
	holder  uuid.UUID
	attempt int32
}

// situations are all places where a task can stand: its state, and what else decides.
var situations = []struct {
	name  string
	state tasking.State
	make  func(h *harness) subject
}{
	{"waiting, runnable", tasking.Waiting, func(h *harness) subject {
		return subject{h.reserve([]string{"a"}, nil), h.worker(), 0}
	}},
	{"waiting, blocked", tasking.Waiting, func(h *harness) subject {
		w := h.worker()
		first := h.reserve([]string{"a"}, nil)
		h.claimOnly(w, first)
		return subject{h.reserve([]string{"a"}, nil), w, 0}
	}},
	{"waiting, not due", tasking.Waiting, func(h *harness) subject {
		return subject{h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Now().Add(time.Hour)})), h.worker(), 0}
	}},
	{"waiting, due", tasking.Waiting, func(h *harness) subject {
		id := h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Now().Add(time.Hour)}))
		h.makeDue(id, time.Second)
		return subject{id, h.worker(), 0}
	}},
	{"waiting for a retry", tasking.Waiting, func(h *harness) subject {
		s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		h.finish(s.holder, s.id, tasking.Failed)
		return s
	}},
	{"running", tasking.Running, func(h *harness) subject {
		return held(h, plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
	}},
	{"running, attempts left", tasking.Running, func(h *harness) subject {
		return held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
	}},
	{"running, abandoned", tasking.Running, func(h *harness) subject {
		s := held(h, plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		h.vanish(s.holder)
		return s
	}},
	{"running, abandoned, attempts left", tasking.Running, func(h *harness) subject {
		s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		h.vanish(s.holder)
		return s
	}},
	{"canceling", tasking.Canceling, func(h *harness) subject {
		s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		h.cancel(s.id)
		return s
	}},
	{"canceling, abandoned", tasking.Canceling, func(h *harness) subject {
		s := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		h.cancel(s.id)
		h.vanish(s.holder)
		return s
	}},
	{"completed", tasking.Completed, func(h *harness) subject {
		s := held(h, plain.Request(nil, tasking.Options{}))
		h.finish(s.holder, s.id, tasking.Completed)
		return s
	}},
	{"failed", tasking.Failed, func(h *harness) subject {
		s := held(h, plain.Request(nil, tasking.Options{}))
		h.finish(s.holder, s.id, tasking.Failed)
		return s
	}},
	{"canceled", tasking.Canceled, func(h *harness) subject {
		s := held(h, plain.Request(nil, tasking.Options{}))
		h.cancel(s.id)
		h.finish(s.holder, s.id, tasking.Completed)
		return s
	}},
	{"skipped", tasking.Skipped, func(h *harness) subject {
		id := h.dispatch(plain.Request(nil, tasking.Options{}))
		h.exec("UPDATE task SET state = 'skipped', finished_at = now() WHERE id = $1", id)
		return subject{id, h.worker(), 0}
	}},
}

func held(h *harness, r tasking.Request) subject {
	h.t.Helper()
	s := subject{h.dispatch(r), h.worker(), 1}
	h.claimOnly(s.holder, s.id)
	return s
}

// operations are all that moves tasks.
var operations = []struct {
	name string
	do   func(h *harness, s subject)
}{
	{"claim", func(h *harness, _ subject) { h.claim(h.worker(), 100) }},
	{"complete", func(h *harness, s subject) {
		h.turn(finishParams(&s.holder, s.id, s.attempt, tasking.Completed, `"done"`, ""))
	}},
	{"fail", func(h *harness, s subject) {
		h.turn(finishParams(&s.holder, s.id, s.attempt, tasking.Failed, "", `{"description": "again"}`))
	}},
	{"cancel", func(h *harness, s subject) { h.cancel(s.id) }},
	{"sweep", func(h *harness, _ subject) { h.sweep() }},
	{"enqueue", func(h *harness, _ subject) { h.enqueue() }},
}

// moves are the only ones that there are: where an operation takes a task, and the columns it changes.
var moves = map[[2]string]struct {
	to      tasking.State
	columns []string
}{
	{"waiting, runnable", "claim"}:  {tasking.Running, []string{"app_lock", "attempt", "started_at", "state"}},
	{"waiting, runnable", "cancel"}: {tasking.Canceled, []string{"finished_at", "state"}},

	{"waiting, blocked", "cancel"}: {tasking.Canceled, []string{"finished_at", "state"}},

	{"waiting, not due", "cancel"}: {tasking.Canceled, []string{"finished_at", "state"}},

	{"waiting, due", "cancel"}:  {tasking.Canceled, []string{"finished_at", "state"}},
	{"waiting, due", "enqueue"}: {tasking.Waiting, []string{"blocked_on", "seq", "unblocked_at"}},

	{"waiting for a retry", "cancel"}: {tasking.Canceled, []string{"error", "finished_at", "state"}},

	{"running", "complete"}: {tasking.Completed, []string{"app_lock", "finished_at", "result", "state"}},
	{"running", "fail"}:     {tasking.Failed, []string{"app_lock", "error", "finished_at", "state"}},
	{"running", "cancel"}:   {tasking.Canceling, []string{"state"}},

	{"running, attempts left", "complete"}: {tasking.Completed, []string{"app_lock", "finished_at", "result", "state"}},
	{"running, attempts left", "fail"}: {
		tasking.Waiting,
		[]string{"app_lock", "blocked_on", "error", "not_before", "state", "unblocked_at"},
	},
	{"running, attempts left", "cancel"}: {tasking.Canceling, []string{"state"}},

	{"running, abandoned", "sweep"}:  {tasking.Failed, []string{"error", "finished_at", "state"}},
	{"running, abandoned", "cancel"}: {tasking.Canceling, []string{"state"}},

	{"running, abandoned, attempts left", "sweep"}: {
		tasking.Waiting,
		[]string{"blocked_on", "error", "not_before", "state", "unblocked_at"},
	},
	{"running, abandoned, attempts left", "cancel"}: {tasking.Canceling, []string{"state"}},

	{"canceling", "complete"}: {tasking.Canceled, []string{"app_lock", "finished_at", "state"}},
	{"canceling", "fail"}:     {tasking.Canceled, []string{"app_lock", "finished_at", "state"}},

	{"canceling, abandoned", "sweep"}: {tasking.Canceled, []string{"finished_at", "state"}},
}

// arrows are the graph of docs/states.md.
var arrows = [][2]tasking.State{
	{tasking.Waiting, tasking.Running},
	{tasking.Waiting, tasking.Canceled},
	{tasking.Running, tasking.Completed},
	{tasking.Running, tasking.Failed},
	{tasking.Running, tasking.Canceling},
	{tasking.Running, tasking.Waiting},
	{tasking.Canceling, tasking.Canceled},
}

func TestEveryOperationMovesEverySituationAsTheGraphSays(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[[2]tasking.State]bool{}
	try := func(h *harness, s subject, situation, operation string, state tasking.State) {
		h.t.Helper()
		before := h.row(s.id)
		if before["state"] != string(state) {
			h.t.Fatalf("before %s it is %s, should be %s", operation, before["state"], state)
		}
		for _, op := range operations {
			if op.name == operation {
				op.do(h, s)
			}
		}
		after := h.row(s.id)
		want, moves := moves[[2]string{situation, operation}]
		if !moves {
			want.to = state
		}
		if after["state"] != string(want.to) {
			h.t.Errorf("after %s it is %s, should be %s", operation, after["state"], want.to)
		}
		if diff := cmp.Diff(want.columns, changed(before, after)); diff != "" {
			h.t.Errorf("columns changed by %s (-want +got):\n%s\nbefore %v\nafter  %v", operation, diff, before, after)
		}
		if to := tasking.State(after["state"].(string)); to != state {
			mu.Lock()
			defer mu.Unlock()
			seen[[2]tasking.State{state, to}] = true
		}
	}
	t.Run("pairs", func(t *testing.T) {
		for _, s := range situations {
			t.Run(s.name+"/stays", func(t *testing.T) {
				t.Parallel()
				h := newHarness(t)
				subject := s.make(h)
				for _, op := range operations {
					if _, moves := moves[[2]string{s.name, op.name}]; !moves {
						try(h, subject, s.name, op.name, s.state)
					}
				}
			})
			for _, op := range operations {
				if _, moves := moves[[2]string{s.name, op.name}]; !moves {
					continue
				}
				t.Run(s.name+"/"+op.name, func(t *testing.T) {
					t.Parallel()
					h := newHarness(t)
					try(h, s.make(h), s.name, op.name, s.state)
				})
			}
		}
	})
	for _, from := range tasking.States {
		for _, to := range tasking.States {
			pair := [2]tasking.State{from, to}
			if allowed := slices.Contains(arrows, pair); allowed != seen[pair] {
				t.Errorf("%s to %s: allowed %t, seen %t", from, to, allowed, seen[pair])
			}
		}
	}
}

func TestEveryMoveNamesASituationAndAnOperation(t *testing.T) {
	t.Parallel()
	known := map[[2]string]bool{}
	states := map[tasking.State]bool{}
	for _, s := range situations {
		states[s.state] = true
		for _, op := range operations {
			known[[2]string{s.name, op.name}] = true
		}
	}
	for m := range moves {
		if !known[m] {
			t.Errorf("no such pair: %v", m)
		}
	}
	for _, s := range tasking.States {
		if !states[s] {
			t.Errorf("no situation is %s", s)
		}
	}
}

func TestFinalTasksStayAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, s := range tasking.States {
		leaves := slices.ContainsFunc(arrows, func(a [2]tasking.State) bool { return a[0] == s })
		if s.Final() == leaves {
			t.Errorf("%s: final is %t, and an arrow leaves it: %t", s, s.Final(), leaves)
		}
	}
}

func TestRowsThatTheGraphDoesNotKnowAreFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	waiting := h.reserve([]string{"waiting"}, nil)
	blocked := h.reserve([]string{"waiting"}, nil)
	later := h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Now().Add(time.Hour)}))
	w := h.worker()
	running := h.dispatch(plain.Request(nil, tasking.Options{Priority: 1}))
	if got := h.claim(w, 1); len(got) != 1 || got[0].ID != running {
		t.Fatalf("claimed %v", got)
	}
	done := h.dispatch(plain.Request(nil, tasking.Options{Priority: 1}))
	h.run(w, done)

	const (
		finished  = "final tasks have an end, and no others"
		holds     = "only running and canceling tasks are held"
		runs      = "running and canceling tasks are not blocked, and have a start"
		unblocked = "tasks were unblocked at some time if nothing blocks them, and no others"
	)
	tests := []struct {
		name      string
		id        uuid.UUID
		set       string
		invariant string
	}{
		{"completed without an end", running, "state = 'completed', app_lock = NULL", finished},
		{"failed without an end", running, "state = 'failed', app_lock = NULL", finished},
		{"canceled without an end", waiting, "state = 'canceled'", finished},
		{"skipped without an end", waiting, "state = 'skipped'", finished},
		{"waiting with an end", waiting, "finished_at = now()", finished},
		{"running with an end", running, "finished_at = now()", finished},
		{"canceling with an end", running, "state = 'canceling', finished_at = now()", finished},
		{"final task waits again, its end kept", done, "state = 'waiting'", finished},
		{"final task loses its end", done, "finished_at = NULL", finished},
		{"held while waiting", waiting, "app_lock = (SELECT id FROM app_status LIMIT 1)", holds},
		{"held while final", done, "app_lock = (SELECT id FROM app_status LIMIT 1)", holds},
		{"back to waiting, still held", running, "state = 'waiting'", holds},
		{"ended, still held", running, "state = 'failed', finished_at = now()", holds},
		{"running while blocked", blocked, "state = 'running', started_at = now()", runs},
		{"canceling while blocked", blocked, "state = 'canceling', started_at = now()", runs},
		{"running without a start", waiting, "state = 'running'", runs},
		{"canceling without a start", waiting, "state = 'canceling'", runs},
		{"start taken back", running, "started_at = NULL", runs},
		{"blocked and unblocked", waiting, "blocked_on = 1", unblocked},
		{"unblocked, nobody knows when", waiting, "unblocked_at = NULL", unblocked},
		{"unblocked, still blocked", blocked, "unblocked_at = now()", unblocked},
		{"unblocked outside the queues", later, "unblocked_at = now()", unblocked},
		{"neither immediate nor deferred", waiting, "deferred = false", "a task may run with its dispatcher or with a worker"},
		{"rank of an immediate task", waiting, "immediate = true", "rank puts immediate tasks first, then those of a higher priority"},
		{"rank of another priority", waiting, "priority = 3", "rank puts immediate tasks first, then those of a higher priority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tx, err := h.Direct.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			if tag, err := tx.Exec(t.Context(), fmt.Sprintf("UPDATE task SET %s WHERE id = $1", tt.set), tt.id); err != nil || tag.RowsAffected() != 1 {
				t.Fatalf("%s, %v", tag, err)
			}
			broken, err := dbtest.Broken(t.Context(), tx)
			if err != nil || broken[tt.invariant] == nil {
				t.Errorf("broken are %v, %v, want %q", broken, err, tt.invariant)
			}
		})
	}
}

func TestDatabaseRefusesRowsThatNothingWrites(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.dispatch(plain.Request(nil, tasking.Options{}))
	for name, insert := range map[string]string{
		"task_app_lock_fkey":              "UPDATE task SET app_lock = gen_random_uuid()",
		"task_parent_fkey":                "UPDATE task SET parent_task = gen_random_uuid()",
		"task_group_fkey":                 "UPDATE task SET task_group = gen_random_uuid()",
		"task_kind_name_not_empty":        "INSERT INTO task_kind (name, versions, max_attempts, backoff) VALUES ('', '{}', 1, '0')",
		"task_kind_attempts_positive":     "INSERT INTO task_kind (name, versions, max_attempts, backoff) VALUES ('x', '{}', 0, '0')",
		"task_kind_backoff_not_negative":  "INSERT INTO task_kind (name, versions, max_attempts, backoff) VALUES ('x', '{}', 1, '-1 s')",
		"task_schedule_one_rhythm":        "INSERT INTO task_schedule (id, name, task_name, args, dispatch_interval, cron) VALUES (gen_random_uuid(), 'x', 'x', '1', '1 s', '* * * * *')",
		"task_schedule_interval_positive": "INSERT INTO task_schedule (id, name, task_name, args, dispatch_interval) VALUES (gen_random_uuid(), 'x', 'x', '1', '0')",
		"task_schedule_last_task_fkey":    "INSERT INTO task_schedule (id, name, task_name, args, last_task) VALUES (gen_random_uuid(), 'x', 'x', '1', gen_random_uuid())",
		"progress_report_task_fkey":       "INSERT INTO progress_report VALUES (gen_random_uuid(), 0, '', '', 'running', NULL, 0)",
		"created_resource_task_fkey":      "INSERT INTO created_resource VALUES (gen_random_uuid(), 0, '')",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Direct.Exec(t.Context(), insert)
			wantConstraint(t, err, name)
		})
	}
}

func wantConstraint(t *testing.T, err error, name string) {
	t.Helper()
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.ConstraintName != name {
		t.Errorf("got %v, want constraint %s", err, name)
	}
}
