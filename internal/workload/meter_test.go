package workload

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pithworks/pith/tasking"
)

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestMarkIsReachedByItsTask(t *testing.T) {
	t.Parallel()
	var m Meter
	three, two := m.Mark(3), m.Mark(2)
	m.Done(1)
	if closed(two) {
		t.Error("one task has reached two")
	}
	m.Done(1)
	if !closed(two) || closed(three) {
		t.Error("the second task has not reached two, or has reached three")
	}
	if !closed(m.Mark(2)) || !closed(m.Mark(0)) {
		t.Error("what was reached before is not reached")
	}
	five := m.Mark(5)
	m.Done(10)
	if !closed(three) || !closed(five) {
		t.Error("several tasks at once have passed a mark by")
	}
}

func TestNoMarkIsMissed(t *testing.T) {
	t.Parallel()
	const n = 2000
	var m Meter
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range n / 4 {
				m.Done(1)
			}
		})
	}
	for i := 1; i <= n; i++ {
		all.Go(func() { <-m.Mark(i) })
	}
	all.Wait()
	if got := m.Counts().Tasks; got != n {
		t.Errorf("%d tasks", got)
	}
}

func TestPercentileIsOneOfTheValues(t *testing.T) {
	t.Parallel()
	var m Meter
	for i := range 100 {
		m.Took(time.Duration(100 - i))
	}
	hundred := m.Latencies(Counts{}, m.Counts())
	for _, test := range []struct {
		of   []time.Duration
		p    int
		want time.Duration
	}{
		{hundred, 0, 1},
		{hundred, 50, 50},
		{hundred, 95, 95},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred[:1], 99, 1},
		{hundred[:3], 50, 2},
		{nil, 50, 0},
	} {
		if got := Percentile(test.of, test.p); got != test.want {
			t.Errorf("p%d of %d: %d, want %d", test.p, len(test.of), got, test.want)
		}
	}
}

func TestTracerCountsAndTimesFlights(t *testing.T) {
	t.Parallel()
	for _, timed := range []bool{false, true} {
		var m Meter
		tr := m.Tracer(timed).(tracer)
		ctx := tr.TraceQueryStart(t.Context(), nil, pgx.TraceQueryStartData{})
		prepared := tr.TracePrepareStart(ctx, nil, pgx.TracePrepareStartData{})
		tr.TracePrepareEnd(prepared, nil, pgx.TracePrepareEndData{})
		tr.TraceQueryEnd(ctx, nil, pgx.TraceQueryEndData{})
		ctx = tr.TraceQueryStart(t.Context(), nil, pgx.TraceQueryStartData{})
		tr.TraceQueryEnd(ctx, nil, pgx.TraceQueryEndData{Err: pgx.ErrTxClosed}) // what fails is not timed
		var b pgx.Batch
		b.Queue("SELECT 1")
		b.Queue("SELECT 2")
		ctx = tr.TraceBatchStart(t.Context(), nil, pgx.TraceBatchStartData{Batch: &b})
		tr.TraceBatchEnd(ctx, nil, pgx.TraceBatchEndData{})
		want := Counts{Statements: 5, Prepared: 1}
		if timed {
			want.Latencies = 2
		}
		if diff := cmp.Diff(want, m.Counts()); diff != "" {
			t.Errorf("timed %v: %s", timed, diff)
		}
	}
}

func TestResourcesDependOnTheNumberAlone(t *testing.T) {
	t.Parallel()
	for _, mixed := range []bool{false, true} {
		counts := map[int]int{}
		shared := 0
		for i := range 3000 {
			o := SomeOf(1000, mixed)(i)
			if diff := cmp.Diff(o, SomeOf(1000, mixed)(i)); diff != "" {
				t.Fatal(diff)
			}
			all := map[string]bool{}
			for _, name := range append(append([]string{}, o.Exclusive...), o.Shared...) {
				all[name] = true
			}
			n := len(o.Exclusive) + len(o.Shared)
			if len(all) != n {
				t.Errorf("%d: a resource twice in %+v", i, o)
			}
			counts[n]++
			shared += len(o.Shared)
		}
		if len(counts) != 3 || min(counts[1], counts[2], counts[3]) < 800 {
			t.Errorf("numbers of resources: %v", counts)
		}
		if mixed != (shared > 2000) {
			t.Errorf("mixed is %v, and %d are shared", mixed, shared)
		}
	}
	if o := SomeOf(1, true)(0); len(o.Exclusive)+len(o.Shared) != 1 {
		t.Errorf("of one resource: %+v", o)
	}
}

func TestRequestsGoOnWhereTheLastOnesEnded(t *testing.T) {
	t.Parallel()
	got := Requests(3, 2, InTurn(4))
	want := []tasking.Request{
		{Name: TaskName, Options: tasking.Options{Exclusive: []string{"pith-bench:3"}}},
		{Name: TaskName, Options: tasking.Options{Exclusive: []string{"pith-bench:0"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPickupIsFromTheEndOfTheDispatchToTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		k := Pickup{Meter: &m}
		late, early := uuid.New(), uuid.New()
		k.Dispatched(late)
		k.Started(t.Context(), &tasking.Run{Claim: tasking.Claim{ID: early}})
		if n := m.Counts().Tasks; n != 0 {
			t.Errorf("%d tasks of which half is known were counted", n)
		}
		<-time.After(7 * time.Millisecond)
		k.Started(t.Context(), &tasking.Run{Claim: tasking.Claim{ID: late}})
		k.Dispatched(early) // its task has started before
		want := []time.Duration{0, 7 * time.Millisecond}
		if diff := cmp.Diff(want, m.Latencies(Counts{}, m.Counts())); diff != "" || m.Counts().Tasks != 2 {
			t.Errorf("%d tasks: %s", m.Counts().Tasks, diff)
		}
	})
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
