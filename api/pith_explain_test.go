package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/tasking"
)

// explained is why a task is not running.
type explained struct {
	Task, State, Why string
	NotBefore        *time.Time `json:"not_before"`
	Ahead            int
	Online           int `json:"workers_online"`
	Capable          int `json:"workers_capable"`
	Places           []explainedPlace
}

type explainedPlace struct {
	Resource        string
	Exclusive       bool
	Granted         bool
	Ahead           int
	Holder          *string
	HolderName      string  `json:"holder_name"`
	HolderState     *string `json:"holder_state"`
	HolderExclusive *bool   `json:"holder_exclusive"`
	Since           *time.Time
	Worker          *string
}

func (h *harness) explained(href string) (e explained) {
	h.t.Helper()
	return h.explainedTo("admin", href)
}

// explainedTo is what a user is told.
func (h *harness) explainedTo(user, href string) (e explained) {
	h.t.Helper()
	h.want(get(strings.Replace(href, root, pithRoot, 1)+"explain/").by(user), http.StatusOK, &e)
	if e.Task != href {
		h.t.Errorf("asked of %s, told of %s", href, e.Task)
	}
	return e
}

func TestExplanationNamesTheTaskAhead(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, first := h.dispatch("sleep", map[string]int{"interval": 0}, tasking.Options{Shared: []string{"r"}})
	_, second := h.dispatch("dummy_task", nil, tasking.Options{Exclusive: []string{"r", "own"}})
	_, third := h.dispatch("dummy_task", nil, tasking.Options{Shared: []string{"r"}})
	got := h.explained(second)
	holder := explainedPlace{Holder: &first, HolderName: testModule + "sleep", HolderState: new("waiting"), HolderExclusive: new(false)}
	behind, own := holder, explainedPlace{Resource: "own", Exclusive: true, Granted: true, Holder: &second, HolderName: testModule + "dummy_task", HolderState: new("waiting"), HolderExclusive: new(true)}
	behind.Resource, behind.Exclusive, behind.Ahead = "r", true, 1
	if diff := cmp.Diff([]explainedPlace{behind, own}, got.Places); diff != "" || got.State != "waiting" ||
		!strings.HasPrefix(got.Why, "It waits for r (exclusive, 1 ahead), held by "+testModule+"sleep ") {
		t.Errorf("the second: %s, %q, places (-want +got):\n%s", got.State, got.Why, diff)
	}
	got, last := h.explained(third), holder
	last.Resource, last.Ahead = "r", 2
	if diff := cmp.Diff([]explainedPlace{last}, got.Places); diff != "" {
		t.Errorf("the third (-want +got):\n%s", diff)
	}
}

func TestExplanationNamesOnlyTasksThatTheUserMayView(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena")
	h.newUser("vera", "core.task_viewer")
	_, hidden := h.dispatch("sleep", map[string]int{"interval": 0}, tasking.Options{Exclusive: []string{"a", "b"}})
	h.claim(h.register("a worker"))
	_, shown := h.dispatch("sleep", map[string]int{"interval": 0}, tasking.Options{Exclusive: []string{"c"}})
	_, task := h.dispatch("dummy_task", nil, tasking.Options{Exclusive: []string{"a", "c", "own"}, Shared: []string{"b"}})
	h.give(lena, "core.task_owner", task)
	h.give(lena, "core.task_viewer", shown)
	whole := h.explained(task)
	for _, secret := range []string{keyIn(hidden), "a worker", keyIn(shown)} {
		if !strings.Contains(whole.Why, secret) {
			t.Errorf("admin is not told of %s: %s", secret, whole.Why)
		}
	}
	if diff := cmp.Diff(whole, h.explainedTo("vera", task)); diff != "" {
		t.Errorf("who may view all is told something else (-admin +vera):\n%s", diff)
	}
	got, want := h.explainedTo("lena", task), whole
	want.Places = slices.Clone(want.Places)
	for i, p := range want.Places {
		switch p.Resource {
		case "a", "b":
			if p.Holder == nil || *p.Holder != hidden || p.Worker == nil || *p.Worker != "a worker" || p.HolderState == nil ||
				*p.HolderState != "running" || p.HolderExclusive == nil || !*p.HolderExclusive || p.Since == nil {
				t.Errorf("admin is told %+v", p)
			}
			p = explainedPlace{Resource: p.Resource, Exclusive: p.Exclusive, Ahead: p.Ahead}
		case "c", "own":
			if p.Holder == nil || p.HolderName == "" {
				t.Errorf("admin is told %+v", p)
			}
		}
		want.Places[i] = p
	}
	want.Why = "It waits for a (exclusive, 1 ahead); and for b (shared, 1 ahead); and for c (exclusive, 1 ahead), held by " + testModule + "sleep " +
		keyIn(shown) + ", which is waiting."
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("who may not view the holder is told (-want +got):\n%s", diff)
	}
}

func TestExplanationCountsTheWorkersThatCould(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, before := h.dispatch("dummy_task", nil, tasking.Options{Priority: 1})
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	_, picky := h.dispatch("dummy_task", nil, tasking.Options{Versions: map[string]string{"file": "1"}})
	if got := h.explained(task); got.Why != "No worker is online: start one with `pith worker`." || got.Online != 0 || got.Capable != 0 {
		t.Errorf("with no worker: %+v", got)
	}
	h.register("a worker")
	if got := h.explained(before); !strings.HasPrefix(got.Why, "Nothing blocks it") || got.Online != 1 || got.Capable != 1 || got.Ahead != 0 || len(got.Places) != 0 {
		t.Errorf("with one: %+v", got)
	}
	if got := h.explained(task); got.Ahead != 1 || got.Capable != 1 {
		t.Errorf("behind another one: %+v", got)
	}
	if got := h.explained(picky); !strings.Contains(got.Why, "file >= 1") || got.Online != 1 || got.Capable != 0 {
		t.Errorf("with one that is too old: %+v", got)
	}
}

func TestExplanationTellsOfTimesAndEnds(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	due := time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)
	_, later := h.dispatch("dummy_task", nil, tasking.Options{NotBefore: due})
	if got := h.explained(later); got.NotBefore == nil || !got.NotBefore.Equal(due) || !strings.Contains(got.Why, "It is not queued before 2100-01-02T03:04:05Z.") {
		t.Errorf("later: %+v", got)
	}
	_, gone := h.dispatch("dummy_task", nil, tasking.Options{})
	h.want(request{method: http.MethodPatch, path: gone, body: `{"state": "canceled"}`}, http.StatusOK, nil)
	if got := h.explained(gone); got.State != "canceled" || !strings.HasPrefix(got.Why, "It is canceled since ") || len(got.Places) != 0 {
		t.Errorf("canceled: %+v", got)
	}
	h.answers(request{path: pithRoot + "tasks/" + nowhere + "/explain/"}, http.StatusNotFound, noTask)
	h.answers(request{path: pithRoot + "tasks/x/explain/"}, http.StatusNotFound, `{"detail": "Not found."}`)
	h.answers(request{method: http.MethodPost, path: strings.Replace(gone, root, pithRoot, 1) + "explain/"}, http.StatusMethodNotAllowed, `{"detail": "Method \"POST\" not allowed."}`)
}
