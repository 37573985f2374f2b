package tasking_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

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
		if _, err := tasking.Turn(t.Context(), tx, finishParams(&w, holders[0], 1, tasking.Completed, "", "")); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := tasking.Turn(t.Context(), h.Pool, finishParams(&w, holders[1], 1, tasking.Completed, "", ""))
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
