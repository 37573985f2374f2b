package tasking_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

func TestWaitReturnsFinalTasksInTheOrderAsked(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	a, b := h.reserve(nil, nil), h.reserve(nil, nil)
	h.cancel(b)
	ended := make(chan error, 1)
	var got []tasking.Task
	go func() {
		var err error
		got, err = h.c.Wait(t.Context(), b, a, b)
		ended <- err
	}()
	h.run(w, a)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].ID != b || got[1].ID != a || got[2].ID != b || got[0].State != tasking.Canceled || got[1].State != tasking.Completed {
		t.Errorf("got %+v", got)
	}
}

func TestWaitEndsWithItsContextAndKnowsWhatDoesNotExist(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.reserve(nil, nil)
	if _, err := h.c.Wait(t.Context(), id, uuid.Max); !errors.Is(err, tasking.ErrNotFound) || !strings.Contains(err.Error(), uuid.Max.String()) {
		t.Errorf("no such task: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.c.Wait(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too long: %v", err)
	}
	if got, err := h.c.Wait(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("for nothing: %v, %v", got, err)
	}
}

func TestGetOfNoTaskIsNotFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if _, err := h.c.Get(t.Context(), uuid.Max); !errors.Is(err, tasking.ErrNotFound) {
		t.Error(err)
	}
}

func TestListSelectsAndPages(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	group, err := h.c.NewGroup(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ids := []uuid.UUID{
		h.dispatch(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}, CorrelationID: "one"})),
		h.dispatch(plain.Request(nil, tasking.Options{Shared: []string{"a"}, Group: &group})),
		h.dispatch(retried.Request(nil, tasking.Options{Shared: []string{"b"}})),
		h.dispatch(plain.Request(nil, tasking.Options{})),
	}
	h.cancel(ids[3])
	h.exec("UPDATE task SET parent_task = $2 WHERE id = $1", ids[3], ids[0])
	for _, tt := range []struct {
		name string
		f    tasking.Filter
		want []int
	}{
		{"all", tasking.Filter{}, []int{3, 2, 1, 0}},
		{"by state", tasking.Filter{States: []tasking.State{tasking.Canceled, tasking.Failed}}, []int{3}},
		{"by name", tasking.Filter{Name: "test.retried"}, []int{2}},
		{"by correlation id", tasking.Filter{CorrelationID: "one"}, []int{0}},
		{"by group", tasking.Filter{Group: &group}, []int{1}},
		{"by parent", tasking.Filter{Parent: &ids[0]}, []int{3}},
		{"by resource, either way", tasking.Filter{Resource: "a"}, []int{1, 0}},
		{"the domain is everybody's", tasking.Filter{Resource: tasking.Domain}, []int{3, 2, 1, 0}},
		{"a page", tasking.Filter{Limit: 2, Offset: 1}, []int{2, 1}},
		{"beyond", tasking.Filter{Offset: 10}, nil},
		{"two at once", tasking.Filter{Resource: "a", States: []tasking.State{tasking.Waiting}, Group: &group}, []int{1}},
	} {
		got, err := h.c.List(t.Context(), tt.f)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var want, have []uuid.UUID
		for _, i := range tt.want {
			want = append(want, ids[i])
		}
		for _, task := range got {
			have = append(have, task.ID)
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if _, err := h.c.List(t.Context(), tasking.Filter{States: []tasking.State{"gone"}}); !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), `"gone"`) {
		t.Error(err)
	}
}

func TestExplainNamesTheReason(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	explain := func(id uuid.UUID, says ...string) tasking.Explanation {
		t.Helper()
		e, err := h.c.Explain(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range says {
			if !strings.Contains(e.Why, part) {
				t.Errorf("%q does not say %q", e.Why, part)
			}
		}
		return e
	}
	first := h.reserve([]string{"a"}, nil)
	explain(first, "No worker is online")
	second := h.reserve([]string{"a"}, nil)
	explain(second, "It waits for a (exclusive, 1 ahead), held by test.plain "+first.String()+", which is waiting", "No worker is online")

	w := h.process(appstatus.Worker)
	if e := explain(first, "Nothing blocks it", "one of 1 workers", "0 runnable tasks before it"); e.WorkersOnline != 1 || e.WorkersCapable != 1 {
		t.Errorf("%+v", e)
	}
	third := h.dispatch(plain.Request(nil, tasking.Options{Priority: -1}))
	if e := explain(third, "1 runnable tasks before it"); e.Ahead != 1 {
		t.Errorf("%+v", e)
	}
	if got := h.claim(w.ID(), 1); got[0].ID != first {
		t.Fatal(got)
	}
	explain(first, "It is running since")
	e := explain(second, "which runs on "+w.Name()+" since")
	want := []tasking.Place{{
		Resource: "a", Exclusive: true, Ahead: 1, Holder: first, HolderName: "test.plain", HolderState: tasking.Running,
		HolderExclusive: true, Since: h.get(first).StartedAt, Worker: w.Name(),
	}}
	if diff := cmp.Diff(want, e.Places); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
	shared := h.reserve([]string{"c"}, []string{"a", "b"})
	if e := explain(shared, "a (shared, 2 ahead)"); len(e.Places) != 3 || e.Places[0].Resource != "a" || e.Places[0].Granted || !e.Places[1].Granted || !e.Places[2].Granted {
		t.Errorf("places %+v", e.Places)
	}

	later := h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)}))
	if e := explain(later, "not queued before 2100-01-02T03:04:05Z"); e.NotBefore == nil {
		t.Errorf("%+v", e)
	}
	old := h.dispatch(plain.Request(nil, tasking.Options{Versions: map[string]string{"core": "9.0", "file": "1.0"}}))
	explain(old, "1 workers online know test.plain", "core >= 9.0, file >= 1.0")
	h.c = h.client(h.Pool, tasking.Config{}, tasking.NewType[any, any]("test.unheard", nil, tasking.TypeConfig{}))
	explain(h.dispatch(tasking.Request{Name: "test.unheard"}), "None of the 1 workers online knows the task type test.unheard")

	h.cancel(first)
	explain(first, "being canceled")
	h.finish(w.ID(), first, tasking.Completed)
	explain(first, "It is canceled since")

	s := subject{id: h.dispatch(retried.Request(nil, tasking.Options{Priority: 10000})), holder: h.worker()}
	if got := h.claim(s.holder, 1); len(got) != 1 || got[0].ID != s.id {
		t.Fatal(got)
	}
	h.finish(s.holder, s.id, tasking.Failed)
	explain(s.id, "Attempt 1 of 3 failed; the next one is not queued before")
	h.makeDue(s.id, time.Second)
	explain(s.id, "Attempt 1 of 3 failed; the next one is due since", "a worker that is not auxiliary queues it")
	h.enqueue()
	if got := h.claim(s.holder, 1); len(got) != 1 || got[0].ID != s.id {
		t.Fatal(got)
	}
	h.vanish(s.holder)
	explain(s.id, "has gone missing")

	if _, err := h.c.Explain(t.Context(), uuid.Max); !errors.Is(err, tasking.ErrNotFound) {
		t.Errorf("no such task: %v", err)
	}
}

func TestExplainSaysWhoQueuesWhatIsOverdue(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Now().Add(time.Hour)}))
	h.makeDue(id, time.Minute)
	const says = ", and a worker that is not auxiliary queues it."
	due := h.get(id).NotBefore
	for _, want := range []string{says + " No worker is online: start one with `pith worker`.", says} {
		e, err := h.c.Explain(t.Context(), id)
		if err != nil || e.Why != "It is due since "+due.Format(time.RFC3339)+want || !e.NotBefore.Equal(*due) {
			t.Errorf("%+v, %v, want %q", e, err, want)
		}
		h.process(appstatus.Worker)
	}
}

func TestExplainTellsWhoHoldsTheDomain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	all := h.reserve([]string{tasking.Domain}, nil)
	w := h.worker()
	h.claimOnly(w, all)
	id := h.reserve(nil, nil)
	e, err := h.c.Explain(t.Context(), id)
	if err != nil || !strings.Contains(e.Why, tasking.Domain+" (shared, 1 ahead), held by test.plain "+all.String()) {
		t.Errorf("%q, %v", e.Why, err)
	}
}
