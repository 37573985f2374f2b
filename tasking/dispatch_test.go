package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

// reserving makes options from one word per resource: "x:a" reserves a exclusively, "s:a" shares it.
func reserving(words string) tasking.Options {
	var o tasking.Options
	for w := range strings.FieldsSeq(words) {
		mode, name, _ := strings.Cut(w, ":")
		if name == "domain" {
			name = tasking.Domain
		}
		if mode == "x" {
			o.Exclusive = append(o.Exclusive, name)
		} else {
			o.Shared = append(o.Shared, name)
		}
	}
	return o
}

// grants are queues as they grow: what each task reserves, and how many resources it then waits for.
var grants = []struct {
	name  string
	queue []string
	want  []int
}{
	{"exclusive ones stand in line", []string{"x:a", "x:a", "x:a"}, []int{0, 1, 1}},
	{"shared ones go together", []string{"s:a", "s:a", "s:a"}, []int{0, 0, 0}},
	{"shared waits for exclusive", []string{"x:a", "s:a", "s:a"}, []int{0, 1, 1}},
	{"exclusive waits for shared", []string{"s:a", "s:a", "x:a"}, []int{0, 0, 1}},
	{"shared does not overtake a waiting exclusive", []string{"s:a", "x:a", "s:a", "x:a", "s:a"}, []int{0, 1, 1, 1, 1}},
	{"other resources are free", []string{"x:a", "x:b", "s:c"}, []int{0, 0, 0}},
	{"each resource counts", []string{"x:a", "x:b", "s:c", "x:a x:b x:c", "x:a s:b s:c x:d"}, []int{0, 0, 0, 3, 3}},
	{"a granted share next to a wait", []string{"s:a", "x:b", "s:a s:b"}, []int{0, 0, 1}},
	{"named both ways it is exclusive", []string{"s:a", "x:a s:a", "s:a"}, []int{0, 1, 1}},
	{"named twice it counts once", []string{"x:a", "x:a x:a", "s:a s:a"}, []int{0, 1, 1}},
	{"nothing reserved", []string{"x:a", "", ""}, []int{0, 0, 0}},
	{"the domain waits for all before it", []string{"x:a", "s:b", "", "x:domain"}, []int{0, 0, 0, 1}},
	{"all wait behind the domain", []string{"x:domain", "x:a", "s:b", ""}, []int{0, 1, 1, 1}},
	{"the domain between", []string{"x:a", "x:domain", "x:a", "s:b", ""}, []int{0, 1, 2, 1, 1}},
	{"two domains", []string{"", "x:domain", "", "x:domain", ""}, []int{0, 1, 1, 1, 1}},
	{"the domain and another resource", []string{"x:a", "x:domain x:a"}, []int{0, 2}},
	{"a share of the domain is what every task has", []string{"s:domain", "s:domain x:a", "s:a"}, []int{0, 0, 1}},
	{"a domain named both ways is exclusive", []string{"", "x:domain s:domain", ""}, []int{0, 1, 1}},
	{"another domain shared", []string{"s:prn:core.domain:other", "s:prn:core.domain:other"}, []int{0, 0}},
	{"another domain exclusively", []string{"s:prn:core.domain:other", "x:prn:core.domain:other", "s:prn:core.domain:other", ""}, []int{0, 1, 1, 0}},
}

func TestGrantsFollowTheQueues(t *testing.T) {
	t.Parallel()
	for _, tt := range grants {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			requests := make([]tasking.Request, len(tt.queue))
			for i, words := range tt.queue {
				requests[i] = plain.Request(nil, reserving(words))
			}
			// At once, one by one, and each half in one way.
			h := newHarness(t)
			for round, many := range []int{0, len(requests), len(requests) / 2} {
				t.Run(fmt.Sprintf("%d in one statement", many), func(t *testing.T) {
					h := h.in(t)
					ds, err := h.c.DispatchMany(t.Context(), requests[:many])
					if err != nil {
						t.Fatal(err)
					}
					var ids []uuid.UUID
					for _, d := range ds {
						ids = append(ids, d.ID)
					}
					for _, r := range requests[many:] {
						ids = append(ids, h.dispatch(r))
					}
					h.wantBlockedOn(tt.want, ids...)
					// Whatever waits, the end of what is before it lets it run: nobody is left over.
					w := h.worker()
					for got := h.claim(w, 100); len(got) > 0; got = h.claim(w, 100) {
						for _, c := range got {
							h.finish(w, c.ID, tasking.Completed)
						}
					}
					h.wantRows("task_reservation", 0)
					if n := one[int](h, "SELECT count(*) FROM task WHERE state = 'completed'"); n != (round+1)*len(requests) {
						t.Errorf("%d of %d completed", n, (round+1)*len(requests))
					}
				})
			}
		})
	}
}

func TestDispatchManyKeepsItsOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	requests := make([]tasking.Request, 2000)
	for i := range requests {
		o := tasking.Options{}
		if i%3 == 0 {
			o.Shared = []string{"a"}
		}
		requests[i] = plain.Request(i, o)
	}
	ds, err := h.c.DispatchMany(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	got := query[string](h, "SELECT id::text || ' ' || args FROM task ORDER BY seq")
	for i, d := range ds {
		if want := fmt.Sprintf("%s %d", d.ID, i); i >= len(got) || got[i] != want {
			t.Fatalf("place %d has %s, want %s", i, got[i], want)
		}
		if d.State != tasking.Waiting || d.CreatedAt.IsZero() {
			t.Fatalf("told %+v", d)
		}
	}
}

func TestDispatchManyOfNothingIsNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if ds, err := h.c.DispatchMany(t.Context(), nil); err != nil || ds != nil {
		t.Errorf("%v, %v", ds, err)
	}
}

func TestDispatchManyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, last := range map[string]tasking.Request{
		"invalid":      {Name: "test.plain", Options: tasking.Options{Priority: 1_000_000}},
		"unknown type": {Name: "test.unheard"},
		"no group":     {Name: "test.plain", Options: tasking.Options{Group: &uuid.Max}},
	} {
		t.Run(name, func(t *testing.T) {
			h := h.in(t)
			if _, err := h.c.DispatchMany(t.Context(), []tasking.Request{plain.Request(nil, tasking.Options{}), last}); err == nil {
				t.Error("no error")
			}
			h.wantRows("task", 0)
		})
	}
}

func TestRecordListsExclusiveThenSharedThenDomain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const domain = "shared:" + tasking.Domain
	for _, tt := range []struct {
		words string
		want  []string
	}{
		{"", []string{domain}},
		{"x:b x:a", []string{"b", "a", domain}},
		{"s:b s:a", []string{"shared:b", "shared:a", domain}},
		{"s:c x:b s:a x:d", []string{"b", "d", "shared:c", "shared:a", domain}},
		{"x:a s:a s:b", []string{"a", "shared:b", domain}},
		{"x:a x:a s:b s:b", []string{"a", "shared:b", domain}},
		{"s:domain", []string{domain}},
		{"s:domain x:a", []string{"a", domain}},
		{"x:domain", []string{tasking.Domain}},
		{"x:domain s:domain s:a", []string{tasking.Domain, "shared:a"}},
		{"x:a x:domain s:b", []string{"a", tasking.Domain, "shared:b"}},
	} {
		t.Run(tt.words, func(t *testing.T) {
			h := h.in(t)
			task := h.get(h.dispatch(plain.Request(nil, reserving(tt.words))))
			if diff := cmp.Diff(tt.want, task.Reserved); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLaterTasksFlowAgainAfterTheDomainIsFree(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	a, b := h.reserve([]string{"a"}, nil), h.reserve(nil, []string{"b"})
	all := h.reserve([]string{tasking.Domain}, nil)
	c, d := h.reserve([]string{"a"}, nil), h.reserve(nil, nil)
	h.claimOnly(w, a, b)
	h.finish(w, a, tasking.Completed)
	h.claimOnly(w)
	h.finish(w, b, tasking.Failed)
	h.claimOnly(w, all)
	h.wantBlockedOn([]int{1, 1}, c, d)
	h.finish(w, all, tasking.Completed)
	e := h.reserve(nil, nil)
	h.claimOnly(w, c, d, e)
}

func TestTwoTasksThatReserveTheDomainRunOneAfterTheOther(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	before := h.reserve(nil, nil)
	first, second := h.reserve([]string{tasking.Domain}, nil), h.reserve([]string{tasking.Domain}, nil)
	after := h.reserve(nil, nil)
	for _, id := range []uuid.UUID{before, first, second, after} {
		h.claimOnly(w, id)
		h.finish(w, id, tasking.Completed)
	}
}

func TestDomainReservationCanceledWhileItWaitsLetsOthersPass(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	running := h.reserve([]string{"a"}, nil)
	h.claimOnly(w, running)
	all := h.reserve([]string{tasking.Domain}, nil)
	b, c := h.reserve([]string{"b"}, nil), h.reserve(nil, nil)
	h.wantBlockedOn([]int{1, 1, 1}, all, b, c)
	if got := h.cancel(all); got != tasking.Canceled {
		t.Errorf("it is %s", got)
	}
	h.claimOnly(w, b, c)
}

func TestDomainReservationIgnoresWhatIsNotDue(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	later := h.dispatch(plain.Request(nil, tasking.Options{NotBefore: time.Now().Add(time.Hour)}))
	again := held(h, retried.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
	all := h.reserve([]string{tasking.Domain}, nil)
	h.wantBlockedOn([]int{-1, 1}, later, all)
	// A retry gives up its place, so the domain is free.
	h.finish(again.holder, again.id, tasking.Failed)
	h.wantBlockedOn([]int{-1, -1, 0}, later, again.id, all)
	// Whose time comes then stands behind.
	h.makeDue(later, time.Second)
	h.makeDue(again.id, 2*time.Second)
	if n := h.enqueue(); n != 2 {
		t.Errorf("%d queued", n)
	}
	h.wantBlockedOn([]int{1, 1}, later, again.id)
	h.run(w, all)
	h.claimOnly(w, later, again.id)
}

func TestDomainReservationThatIsNotDueTakesItsPlaceWhenItIs(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := h.worker()
	all := h.dispatch(plain.Request(nil, tasking.Options{Exclusive: []string{tasking.Domain}, NotBefore: time.Now().Add(time.Hour)}))
	a, b := h.reserve([]string{"a"}, nil), h.reserve(nil, nil)
	h.wantBlockedOn([]int{-1, 0, 0}, all, a, b)
	h.makeDue(all, time.Second)
	h.enqueue()
	c := h.reserve(nil, nil)
	h.wantBlockedOn([]int{1, 1}, all, c)
	h.claimOnly(w, a, b)
	h.finish(w, b, tasking.Completed)
	h.wantBlockedOn([]int{1}, all)
	h.finish(w, a, tasking.Completed)
	h.run(w, all)
	h.claimOnly(w, c)
}

func TestWaitingExclusiveThatIsCanceledLetsTheSharedBehindItPass(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	first := h.reserve(nil, []string{"a"})
	second := h.reserve([]string{"a"}, nil)
	third, fourth := h.reserve(nil, []string{"a"}), h.reserve(nil, []string{"a"})
	last := h.reserve([]string{"a"}, nil)
	h.wantBlockedOn([]int{0, 1, 1, 1, 1}, first, second, third, fourth, last)
	h.cancel(second)
	h.wantBlockedOn([]int{0, 0, 0, 1}, first, third, fourth, last)
}

func TestTasksLeaveFromAnyPlaceInTheQueue(t *testing.T) {
	t.Parallel()
	queue := []string{"x:a", "s:a", "s:a", "x:a", "s:a", "x:a x:b", "s:a s:b"}
	for leaving := range queue {
		t.Run(strconv.Itoa(leaving), func(t *testing.T) {
			t.Parallel()
			h := newHarness(t) // its invariants are checked at the end: who should be granted is
			var ids []uuid.UUID
			for _, words := range queue {
				ids = append(ids, h.dispatch(plain.Request(nil, reserving(words))))
			}
			h.cancel(ids[leaving])
		})
	}
}

func TestOneReleaseGrantsAllSharedOnesBehindIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	first := h.reserve([]string{"a"}, nil)
	requests := make([]tasking.Request, 500)
	for i := range requests {
		requests[i] = plain.Request(nil, tasking.Options{Shared: []string{"a"}})
	}
	if _, err := h.c.DispatchMany(t.Context(), requests); err != nil {
		t.Fatal(err)
	}
	last := h.reserve([]string{"a"}, nil)
	if n := one[int](h, "SELECT count(*) FROM task WHERE blocked_on = 1"); n != len(requests)+1 {
		t.Fatalf("%d blocked", n)
	}
	h.run(h.worker(), first)
	if n := one[int](h, "SELECT count(*) FROM task WHERE state = 'waiting' AND blocked_on = 0 AND unblocked_at IS NOT NULL"); n != len(requests) {
		t.Errorf("%d granted", n)
	}
	h.wantBlockedOn([]int{1}, last)
}

func TestTaskIsUnblockedByTheSecondOfTwoReleasesInEitherOrder(t *testing.T) {
	t.Parallel()
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			w := h.worker()
			holders := []uuid.UUID{h.reserve([]string{"a"}, nil), h.reserve([]string{"b"}, nil)}
			h.claimOnly(w, holders...)
			both := h.reserve([]string{"a", "b"}, nil)
			h.finish(w, holders[order[0]], tasking.Completed)
			h.wantBlockedOn([]int{1}, both)
			if h.get(both).UnblockedAt != nil {
				t.Error("unblocked by the first release")
			}
			h.finish(w, holders[order[1]], tasking.Completed)
			h.wantBlockedOn([]int{0}, both)
			if h.get(both).UnblockedAt == nil {
				t.Error("not unblocked by the second release")
			}
		})
	}
	t.Run("in one statement", func(t *testing.T) {
		t.Parallel()
		h := newHarness(t)
		w := h.worker()
		holders := sorted([]uuid.UUID{h.reserve([]string{"a"}, nil), h.reserve([]string{"b"}, nil)})
		h.claimOnly(w, holders...)
		both := h.reserve([]string{"a", "b"}, nil)
		p := finishParams(&w, holders[0], 1, tasking.Completed, "", "")
		q := finishParams(&w, holders[1], 1, tasking.Completed, "", "")
		p.IDs, p.Attempts, p.States = append(p.IDs, q.IDs...), append(p.Attempts, 1), append(p.States, "completed")
		p.Results, p.Errors = append(p.Results, ""), append(p.Errors, "")
		p.Wanted, p.Known, p.Runnable = 1, h.kinds(), h.kinds()
		if got := claims(h.turn(p)); len(got) != 1 || got[0].ID != both {
			t.Errorf("the turn that freed it claimed %v", got)
		}
	})
	t.Run("at the same time", func(t *testing.T) {
		t.Parallel()
		h := newHarness(t)
		w := h.worker()
		holders := []uuid.UUID{h.reserve([]string{"a"}, nil), h.reserve([]string{"b"}, nil)}
		h.claimOnly(w, holders...)
		both := h.reserve([]string{"a", "b"}, nil)
		// The first release is not committed when the second one comes to the task's row.
		tx, err := h.Direct.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		if _, err := h.q.TaskTurn(t.Context(), tx, finishParams(&w, holders[0], 1, tasking.Completed, "", "")); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := h.q.TaskTurn(t.Context(), h.Pool, finishParams(&w, holders[1], 1, tasking.Completed, "", ""))
			done <- err
		}()
		h.untilBlocked()
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		h.wantBlockedOn([]int{0}, both)
	})
}

// untilBlocked returns when some statement in this database waits for another's lock.
func (h *harness) untilBlocked() {
	h.t.Helper()
	for one[int](h, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0") == 0 {
		if err := h.t.Context().Err(); err != nil {
			h.t.Fatal(err)
		}
	}
}

func TestClaimsComeImmediateFirstThenByPriorityThenInOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	low := h.dispatch(plain.Request(nil, tasking.Options{Priority: -5}))
	first := h.dispatch(plain.Request(nil, tasking.Options{}))
	second := h.dispatch(plain.Request(nil, tasking.Options{}))
	high := h.dispatch(plain.Request(nil, tasking.Options{Priority: tasking.MaxPriority}))
	immediate := h.dispatch(plain.Request(nil, tasking.Options{Immediate: true, Priority: -tasking.MaxPriority}))
	w := h.worker()
	for i, want := range []uuid.UUID{immediate, high, first, second, low} {
		if got := h.claim(w, 1); len(got) != 1 || got[0].ID != want {
			t.Errorf("claim %d: %v, want %s", i, got, want)
		}
	}
}

func TestPriorityDoesNotOvertakeInAQueue(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	first := h.reserve([]string{"a"}, nil)
	h.dispatch(plain.Request(nil, tasking.Options{Exclusive: []string{"a"}, Priority: 100}))
	h.claimOnly(h.worker(), first)
}

func TestRequestsThatCanNeverRunAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	long := strings.Repeat("r", tasking.MaxResourceName+1)
	many := make([]string, tasking.MaxResources+1)
	for i := range many {
		many[i] = strconv.Itoa(i)
	}
	app := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, tasking.NewType[any, any]("test.elsewhere", nil, tasking.TypeConfig{Immediate: true}))
	for _, tt := range []struct {
		name string
		r    tasking.Request
		says string
	}{
		{"unknown type", tasking.Request{Name: "test.unheard"}, `"test.unheard"`},
		{"no type", tasking.Request{}, `""`},
		{"empty resource", plain.Request(nil, tasking.Options{Exclusive: []string{"a", ""}}), "resource name is empty"},
		{"empty shared resource", plain.Request(nil, tasking.Options{Shared: []string{""}}), "resource name is empty"},
		{"long resource", plain.Request(nil, tasking.Options{Shared: []string{long}}), "513 bytes"},
		{"zero byte in a resource", plain.Request(nil, tasking.Options{Exclusive: []string{"a\x00b"}}), `"a\x00b"`},
		{"resource not UTF-8", plain.Request(nil, tasking.Options{Exclusive: []string{"a\xff"}}), `"a\xff"`},
		{"resource with prefix", plain.Request(nil, tasking.Options{Exclusive: []string{"shared:a"}}), `"shared:a"`},
		{"too many resources", plain.Request(nil, tasking.Options{Shared: many}), "1001 resources"},
		{"neither immediate nor deferred", plain.Request(nil, tasking.Options{NotDeferred: true}), "neither immediate nor deferred"},
		{"priority too high", plain.Request(nil, tasking.Options{Priority: 10001}), "10001"},
		{"priority too low", plain.Request(nil, tasking.Options{Priority: -10001}), "-10001"},
		{"long correlation id", plain.Request(nil, tasking.Options{CorrelationID: strings.Repeat("c", 256)}), "cccc"},
		{"correlation id with a zero byte", plain.Request(nil, tasking.Options{CorrelationID: "c\x00"}), `"c\x00"`},
		{"not before and not deferred", plain.Request(nil, tasking.Options{Immediate: true, NotDeferred: true, NotBefore: time.Unix(4e9, 0).UTC()}), "2096-10-02"},
		{"version", plain.Request(nil, tasking.Options{Versions: map[string]string{"core": "three"}}), `core: "three"`},
		{"version without a label", plain.Request(nil, tasking.Options{Versions: map[string]string{"": "3"}}), "label is empty"},
		{"zero byte in a label", plain.Request(nil, tasking.Options{Versions: map[string]string{"co\x00re": "3"}}), `"co\x00re"`},
		{"arguments not JSON", plain.Request(json.RawMessage("{oops"), tasking.Options{}), "{oops"},
		{"arguments not UTF-8", plain.Request(json.RawMessage("\"\xff\""), tasking.Options{}), `\xff`},
		{"arguments with something not UTF-8 inside", plain.Request([]json.RawMessage{json.RawMessage("\"\xff\"")}, tasking.Options{}), `\xff`},
		{"arguments that cannot be encoded", plain.Request(func() {}, tasking.Options{}), "func()"},
		{"arguments that look encrypted", plain.Request(map[string]string{"$encrypted": "x"}, tasking.Options{}), `"$encrypted"`},
		{"not deferred, without a function here", tasking.Request{Name: "test.elsewhere", Options: tasking.Options{Immediate: true, NotDeferred: true}}, "the type's function"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := app.Dispatch(t.Context(), tt.r)
			if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("got %v, should be invalid and say %q", err, tt.says)
			}
		})
	}
	t.Run("not deferred, without an app", func(t *testing.T) {
		_, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Immediate: true, NotDeferred: true}))
		if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "Config.App") {
			t.Error(err)
		}
	})
	t.Run("not deferred, with others", func(t *testing.T) {
		_, err := app.DispatchMany(t.Context(), []tasking.Request{plain.Request(nil, tasking.Options{Immediate: true, NotDeferred: true})})
		if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "test.plain") {
			t.Error(err)
		}
	})
	t.Run("all errors at once", func(t *testing.T) {
		_, err := app.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Exclusive: []string{""}, Priority: 99999, NotDeferred: true}))
		for _, part := range []string{"empty", "99999", "neither"} {
			if !strings.Contains(fmt.Sprint(err), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	})
	h.wantRows("task", 0)
	h.wantRows("task_kind", 0)
}

func TestUnknownTypeIsInvalidAndNamesTheKnownOnes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, err := h.c.Dispatch(t.Context(), tasking.Request{Name: "test.unheard"})
	if !errors.Is(err, tasking.ErrUnknownType) || !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "test.plain, test.retried") {
		t.Error(err)
	}
}

func TestUnknownGroupIsNotFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, dispatch := range map[string]func(tasking.Request) error{
		"one": func(r tasking.Request) error { _, err := h.c.Dispatch(t.Context(), r); return err },
		"many": func(r tasking.Request) error {
			_, err := h.c.DispatchMany(t.Context(), []tasking.Request{r, r})
			return err
		},
	} {
		if err := dispatch(plain.Request(nil, tasking.Options{Group: &uuid.Max})); !errors.Is(err, tasking.ErrNotFound) || !strings.Contains(fmt.Sprint(err), "group") {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.wantRows("task", 0)
}

func TestDispatchInATransactionExistsExactlyIfItCommits(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)})
	for _, commit := range []bool{false, true} {
		tx, err := h.Pool.BeginTx(t.Context(), pgx.TxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ds, err := c.DispatchTx(t.Context(), tx,
			plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}),
			plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}),
			plain.Request(nil, tasking.Options{Immediate: true}))
		if err != nil || len(ds) != 3 {
			t.Fatal(ds, err)
		}
		h.wantRows("task", 0)
		end := tx.Rollback
		if commit {
			end = tx.Commit
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !commit {
			h.wantRows("task", 0)
			h.wantRows("task_reservation", 0)
			continue
		}
		for _, d := range ds {
			if got := h.state(d.ID); got != tasking.Waiting || d.State != tasking.Waiting {
				t.Errorf("told %s, is %s", d.State, got)
			}
		}
		h.wantBlockedOn([]int{0, 1, 0}, ds[0].ID, ds[1].ID, ds[2].ID)
	}
}

func TestDispatchInATransactionThatIsTooStrictIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		tx, err := h.Direct.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.c.DispatchTx(t.Context(), tx, plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		if err == nil || !strings.Contains(err.Error(), "READ COMMITTED") {
			t.Errorf("%s: %v", level, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestGroupAndCorrelationIDAreInherited(t *testing.T) {
	t.Parallel()
	var one, own tasking.Dispatched
	var many []tasking.Dispatched
	typ := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (_ any, err error) {
		var errs [3]error
		one, errs[0] = run.Dispatch(ctx, plain.Request(nil, tasking.Options{}))
		many, errs[1] = run.DispatchMany(ctx, []tasking.Request{plain.Request(nil, tasking.Options{}), plain.Request(nil, tasking.Options{Immediate: true})})
		own, errs[2] = run.Dispatch(ctx, plain.Request(nil, tasking.Options{CorrelationID: "own"}))
		return nil, errors.Join(errs[:]...)
	}, tasking.TypeConfig{})
	h := newHarness(t, typ)
	group, err := h.c.NewGroup(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	s := held(h, typ.Request(nil, tasking.Options{Group: &group, CorrelationID: "cid"}))
	out := h.c.Execute(t.Context(), s.holder, tasking.Claim{ID: s.id, Attempt: 1, Name: "test.parent", Args: json.RawMessage("null"), CorrelationID: "cid", Group: &group})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	for _, d := range append(many, one, own) {
		task := h.get(d.ID)
		cid := "cid"
		if d.ID == own.ID {
			cid = "own"
		}
		if task.Parent == nil || *task.Parent != s.id || task.Group == nil || *task.Group != group || task.CorrelationID != cid {
			t.Errorf("parent %v, group %v, correlation id %s", task.Parent, task.Group, task.CorrelationID)
		}
	}
	if got := h.get(s.id).Children; len(got) != 4 {
		t.Errorf("children: %v", got)
	}
}

func TestOutsideATaskEachDispatchHasItsOwnCorrelationID(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a, b := h.get(h.reserve(nil, nil)), h.get(h.reserve(nil, nil))
	if len(a.CorrelationID) != 32 || a.CorrelationID == b.CorrelationID {
		t.Errorf("%q and %q", a.CorrelationID, b.CorrelationID)
	}
}

func TestStatementTextsAreShortAndGrowWithNothing(t *testing.T) {
	t.Parallel()
	const limit = 16 << 10
	t.Run("as written", func(t *testing.T) {
		files, err := filepath.Glob("../db/*.sql.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%v, %v", files, err)
		}
		seen := 0
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Error(err)
				}
				seen++
				if len(text) >= limit {
					t.Errorf("%s: %d bytes: %.60s", file, len(text), text)
				}
				return true
			})
		}
		if seen < 20 {
			t.Errorf("only %d texts were found", seen)
		}
	})
	t.Run("as sent", func(t *testing.T) {
		h := newHarness(t)
		pool, faults := h.faulty(h.Pool)
		c := h.client(pool, tasking.Config{})
		huge := strings.Repeat("x", 1<<20)
		d, err := c.Dispatch(t.Context(), plain.Request(huge, tasking.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		requests := make([]tasking.Request, 3000)
		for i := range requests {
			requests[i] = plain.Request(huge[:100], tasking.Options{Shared: []string{huge[:500], strconv.Itoa(i)}})
		}
		if _, err := c.DispatchMany(t.Context(), requests); err != nil {
			t.Fatal(err)
		}
		if got := faults.longestText(); got == 0 || got >= limit {
			t.Errorf("the longest text has %d bytes", got)
		}
		got := h.claim(h.worker(), 1)
		if len(got) != 1 || got[0].ID != d.ID || string(got[0].Args) != `"`+huge+`"` {
			t.Errorf("the arguments of %d bytes came back as %d claims", len(huge), len(got))
		}
	})
}

func TestResourceNamesOfEveryKindAreKept(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, name := range []string{
		"a", strings.Repeat("r", tasking.MaxResourceName), "ünïcode ☃", `quote " ' \ {},`, "NULL", " ", "\n", "shared", "%s", "prn:core.domain:",
	} {
		id := h.reserve([]string{name}, []string{name + "2"}[:min(1, tasking.MaxResourceName/(len(name)+1))])
		if got := h.get(id).Reserved[0]; got != name {
			t.Errorf("%q became %q", name, got)
		}
		h.cancel(id)
	}
	most := make([]string, tasking.MaxResources)
	for i := range most {
		most[i] = fmt.Sprintf("%0*d", tasking.MaxResourceName, i)
	}
	id := h.reserve(most, nil)
	next := h.reserve(most, nil)
	h.wantBlockedOn([]int{0, len(most)}, id, next)
	h.run(h.worker(), id)
	h.wantBlockedOn([]int{0}, next)
}
