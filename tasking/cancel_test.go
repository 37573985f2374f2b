package tasking_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

func TestCancelAnswersTheStateThen(t *testing.T) {
	t.Parallel()
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			id := s.make(h).id
			want := s.state
			switch s.state {
			case tasking.Waiting:
				want = tasking.Canceled
			case tasking.Running:
				want = tasking.Canceling
			default: // stays
			}
			for range 2 { // canceling twice is canceling once
				if got, err := h.c.Cancel(t.Context(), id); err != nil || got != want {
					t.Errorf("told %s, %v; want %s", got, err, want)
				}
			}
		})
	}
}

func TestCancelOfNoTaskIsNotFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if s, err := h.c.Cancel(t.Context(), uuid.Max); !errors.Is(err, tasking.ErrNotFound) || s != "" {
		t.Errorf("%s, %v", s, err)
	}
}

func TestCancelLeavesChildrenAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	parent, child := h.reserve(nil, nil), h.reserve(nil, nil)
	h.exec("UPDATE task SET parent_task = $2 WHERE id = $1", child, parent)
	h.cancel(parent)
	if got := h.state(child); got != tasking.Waiting {
		t.Errorf("the child is %s", got)
	}
}

func TestHolderIsToldOfWhatItMustCancel(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	a, b := h.reserve(nil, nil), h.reserve(nil, nil)
	h.claimOnly(w, a, b)
	h.cancel(b)
	for range 2 { // until it has confirmed
		rows := h.turn(turnParams(w, h.kinds(), 1))
		if len(rows) != 1 || rows[0].Event != "cancel" || rows[0].ID.Bytes != b {
			t.Errorf("told %+v", rows)
		}
	}
	if rows := h.turn(turnParams(h.worker(), h.kinds(), 1)); len(rows) != 0 {
		t.Errorf("another worker is told %+v", rows)
	}
	h.finish(w, b, tasking.Failed)
	if rows := h.turn(turnParams(w, h.kinds(), 1)); len(rows) != 0 {
		t.Errorf("told %+v after the end", rows)
	}
	if task := h.get(b); task.State != tasking.Canceled || task.Error != nil {
		t.Errorf("it is %s with %v", task.State, task.Error)
	}
}

func TestGroupCountsItsTasksAndAddsUpTheirProgress(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	group, err := h.c.NewGroup(t.Context(), "a group")
	if err != nil {
		t.Fatal(err)
	}
	o := tasking.Options{Group: &group}
	w := h.worker()
	for _, ends := range []tasking.State{tasking.Completed, tasking.Completed, tasking.Failed} {
		id := h.dispatch(plain.Request(nil, o))
		h.claimOnly(w, id)
		h.exec("INSERT INTO progress_report VALUES ($1, 0, 'counting', 'count', 'running', 10, 4, NULL)", id)
		h.finish(w, id, ends)
	}
	h.claimOnly(w, h.dispatch(plain.Request(nil, o)))
	h.cancel(h.dispatch(plain.Request(nil, o)))
	h.dispatch(plain.Request(nil, o))
	h.dispatch(plain.Request(nil, tasking.Options{})) // of no group
	got, err := h.c.GetGroup(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(30)
	want := tasking.Group{
		ID: group, Description: "a group", CreatedAt: got.CreatedAt, Waiting: 1, Running: 1, Completed: 2, Failed: 1, Canceled: 1,
		Progress: []tasking.Report{{Message: "counting", Code: "count", Total: &total, Done: 12}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("group (-want +got):\n%s", diff)
	}
	if got.Unfinished() != 2 {
		t.Errorf("%d unfinished", got.Unfinished())
	}
	if err := h.c.CloseGroup(t.Context(), group); err != nil {
		t.Fatal(err)
	}
	if got, err = h.c.GetGroup(t.Context(), group); err != nil || !got.AllTasksDispatched {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestNoGroupIsNotFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, get := h.c.GetGroup(t.Context(), uuid.Max)
	_, cancel := h.c.CancelGroup(t.Context(), uuid.Max)
	for what, err := range map[string]error{"get": get, "cancel": cancel, "close": h.c.CloseGroup(t.Context(), uuid.Max)} {
		if !errors.Is(err, tasking.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCancelGroupCancelsAllThatWaitsOrRuns(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	group, err := h.c.NewGroup(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	done := h.dispatch(plain.Request(nil, tasking.Options{Group: &group}))
	h.run(h.worker(), done)
	running := held(h, plain.Request(nil, tasking.Options{Group: &group, Exclusive: []string{"a"}}))
	other := h.reserve([]string{"a"}, nil)
	// More than one batch of them.
	requests := make([]tasking.Request, 1200)
	for i := range requests {
		requests[i] = plain.Request(nil, tasking.Options{Group: &group, Exclusive: []string{"a"}, Shared: []string{fmt.Sprint(i % 7)}})
	}
	if _, err := h.c.DispatchMany(t.Context(), requests); err != nil {
		t.Fatal(err)
	}
	n, err := h.c.CancelGroup(t.Context(), group)
	if err != nil || n != len(requests)+1 {
		t.Errorf("%d canceled, %v", n, err)
	}
	g, err := h.c.GetGroup(t.Context(), group)
	if err != nil || g.Completed != 1 || g.Canceling != 1 || g.Canceled != len(requests) || !g.AllTasksDispatched {
		t.Errorf("%+v, %v", g, err)
	}
	if got := h.state(running.id); got != tasking.Canceling {
		t.Errorf("what ran is %s", got)
	}
	h.wantBlockedOn([]int{1}, other)
	if n, err := h.c.CancelGroup(t.Context(), group); err != nil || n != 0 {
		t.Errorf("the second time %d, %v", n, err)
	}
}

func TestPurgeDeletesOnlyWhatItsStatesAndTimeName(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ids := map[tasking.State]uuid.UUID{}
	w := h.worker()
	for _, s := range []tasking.State{tasking.Completed, tasking.Failed} {
		ids[s] = h.reserve(nil, nil)
		h.claimOnly(w, ids[s])
		h.exec("INSERT INTO progress_report VALUES ($1, 0, '', '', 'running', NULL, 0, NULL)", ids[s])
		h.exec("INSERT INTO created_resource VALUES ($1, 0, 'prn')", ids[s])
		h.finish(w, ids[s], s)
	}
	ids[tasking.Canceled] = h.reserve(nil, nil)
	h.cancel(ids[tasking.Canceled])
	ids[tasking.Running] = h.reserve(nil, nil)
	h.claimOnly(w, ids[tasking.Running])
	ids[tasking.Waiting] = h.reserve(nil, nil)
	child := h.reserve(nil, nil)
	h.exec("UPDATE task SET parent_task = $2 WHERE id = $1", child, ids[tasking.Completed])
	h.exec("UPDATE task SET finished_at = finished_at - interval '2 days' WHERE finished_at IS NOT NULL")
	young := h.reserve(nil, nil)
	h.cancel(young)

	for _, states := range [][]tasking.State{nil, {tasking.Running}, {tasking.Completed, tasking.Waiting}, {"gone"}} {
		if n, err := h.c.Purge(t.Context(), time.Now(), states...); !errors.Is(err, tasking.ErrInvalid) || n != 0 {
			t.Errorf("%v: %d, %v", states, n, err)
		}
	}
	if n, err := h.c.Purge(t.Context(), time.Now().Add(-72*time.Hour), tasking.Completed, tasking.Failed, tasking.Canceled, tasking.Skipped); err != nil || n != 0 {
		t.Errorf("older than three days: %d, %v", n, err)
	}
	if n, err := h.c.Purge(t.Context(), time.Now().Add(-24*time.Hour), tasking.Completed, tasking.Canceled, tasking.Completed); err != nil || n != 2 {
		t.Errorf("completed or canceled: %d, %v", n, err)
	}
	want := sorted([]uuid.UUID{ids[tasking.Failed], ids[tasking.Running], ids[tasking.Waiting], child, young})
	if diff := cmp.Diff(want, query[uuid.UUID](h, "SELECT id FROM task ORDER BY id")); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	h.wantRows("progress_report", 1)
	h.wantRows("created_resource", 1)
	if task := h.get(child); task.Parent != nil {
		t.Errorf("the child's parent is %s", task.Parent)
	}
}

func TestPurgeGoesThroughAllWindows(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.reserve(nil, nil)
	kept := h.reserve(nil, nil)
	h.exec(`INSERT INTO task (id, kind, state, finished_at, reserved_resources_record, logging_cid, args)
		SELECT gen_random_uuid(), 1, 'completed', now() - interval '1 day', '{}', '', 'null' FROM generate_series(1, 5000)`)
	if n, err := h.c.Purge(t.Context(), time.Now(), tasking.Completed); err != nil || n != 5000 {
		t.Errorf("%d, %v", n, err)
	}
	h.wantRows("task", 2)
	h.get(kept)
}
