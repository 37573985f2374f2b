package tasking

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
)

// wire stands for the way to the database: statements wait until the test lets them through.
type wire struct {
	combiner
	sent    chan []string // the arguments of the tasks of each statement
	ends    chan error    // how the next one ends
	connect chan error    // how the next connect ends
}

func newWire(t *testing.T) *wire {
	w := &wire{sent: make(chan []string, 100), ends: make(chan error), connect: make(chan error)}
	w.combiner = combiner{
		fit: fit,
		connect: func(ctx context.Context) (*pgxpool.Conn, error) {
			select {
			case err := <-w.connect:
				return nil, err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		send: func(ctx context.Context, _ *pgxpool.Conn, qs []question) ([]answer, error) {
			w.sent <- merged(qs).Arguments
			select {
			case err := <-w.ends:
				return make([]answer, len(qs)), err
			case <-ctx.Done():
				t.Log("nobody waits for", merged(qs).Arguments)
				return nil, ctx.Err()
			}
		},
	}
	return w
}

// call asks, and returns when it waits.
func (w *wire) call(ctx context.Context, name string) <-chan error {
	out := make(chan error, 1)
	go func() {
		_, err := w.do(ctx, ctx, request(name))
		out <- err
	}()
	synctest.Wait()
	return out
}

func request(name string, resources ...string) question {
	return question{dispatch: &db.TaskDispatchParams{
		KindNames: []string{"k"}, KindVersions: []string{"{}"}, Kinds: []int32{1}, IDs: []pgtype.UUID{{}}, Arguments: []string{name},
		Deferreds: []bool{true}, Resources: resources, Exclusives: make([]bool, len(resources)),
	}}
}

func (w *wire) wantSent(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-w.sent:
		if !slices.Equal(got, want) {
			t.Errorf("sent %v, want %v", got, want)
		}
	default:
		t.Errorf("nothing was sent, want %v", want)
	}
}

func TestCallsWaitForTheStatementUnderWayAndGoTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := w.call(t.Context(), "a")
		w.connect <- nil
		w.wantSent(t, "a")
		second, third := w.call(t.Context(), "b"), w.call(t.Context(), "c")
		w.ends <- nil
		w.connect <- nil
		w.wantSent(t, "b", "c")
		w.ends <- nil
		if err := errors.Join(<-first, <-second, <-third); err != nil {
			t.Error(err)
		}
	})
}

func TestStatementThatTakesLongHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		start := time.Now()
		first := w.call(t.Context(), "a")
		w.connect <- nil
		w.wantSent(t, "a")
		second, third := w.call(t.Context(), "b"), w.call(t.Context(), "c")
		w.connect <- nil
		w.wantSent(t, "b", "c")
		if took := time.Since(start); took != overdue {
			t.Errorf("it took %s", took)
		}
		w.ends <- nil
		w.ends <- nil
		if err := errors.Join(<-first, <-second, <-third); err != nil {
			t.Error(err)
		}
		// Afterwards there is one sender, as before.
		fourth := w.call(t.Context(), "d")
		w.connect <- nil
		w.wantSent(t, "d")
		w.ends <- nil
		if err := <-fourth; err != nil {
			t.Error(err)
		}
	})
}

func TestStatementEndsWhenNobodyWaitsForIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		ctx, cancel := context.WithCancel(t.Context())
		a, b := w.call(ctx, "a"), w.call(ctx, "b")
		w.connect <- nil
		w.wantSent(t, "a", "b")
		cancel()
		for _, call := range []<-chan error{a, b} {
			if err := <-call; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		// And so does the wait for a connection, for those who wait in the queue.
		ctx, cancel = context.WithCancel(t.Context())
		c := w.call(ctx, "c")
		cancel()
		if err := <-c; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		d := w.call(t.Context(), "d")
		w.connect <- nil
		w.wantSent(t, "d")
		w.ends <- nil
		if err := <-d; err != nil {
			t.Error(err)
		}
	})
}

func TestCallsThatFailTogetherAreSentOneByOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		a, b := w.call(t.Context(), "a"), w.call(t.Context(), "b")
		w.connect <- nil
		w.wantSent(t, "a", "b")
		bad := errors.New("bad")
		w.ends <- bad
		synctest.Wait()
		one, other := <-w.sent, <-w.sent
		if len(one) != 1 || len(other) != 1 || one[0] == other[0] {
			t.Errorf("sent %v and %v", one, other)
		}
		w.ends <- bad
		w.ends <- nil
		if x, y := <-a, <-b; (x == nil) == (y == nil) {
			t.Errorf("one is told %v, the other %v", x, y)
		}
		// What is worth another try was tried long enough.
		a, b = w.call(t.Context(), "a"), w.call(t.Context(), "b")
		w.connect <- nil
		w.wantSent(t, "a", "b")
		w.ends <- io.ErrUnexpectedEOF
		if x, y := <-a, <-b; x == nil || y == nil {
			t.Errorf("one is told %v, the other %v", x, y)
		}
	})
}

func TestEachCallWaitsForAConnectionInItsOwnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		go func() {
			for range 1000 {
				select {
				case w.connect <- io.ErrUnexpectedEOF:
				case <-t.Context().Done():
					return
				}
			}
		}()
		start := time.Now()
		first := w.call(t.Context(), "a")
		time.AfterFunc(resendLimit/2, func() {
			if _, err := w.do(t.Context(), t.Context(), request("b")); err == nil || time.Since(start) < resendLimit*3/2 {
				t.Errorf("the second: %v after %s", err, time.Since(start))
			}
		})
		if err := <-first; err == nil || time.Since(start) < resendLimit || time.Since(start) > resendLimit+10*time.Second {
			t.Errorf("the first: %v after %s", err, time.Since(start))
		}
		<-time.After(resendLimit)
	})
}

func TestOnlyWhatMayMeetGoesTogether(t *testing.T) {
	t.Parallel()
	fickle, owner, big := request("", "a"), request("", Domain), request(string(make([]byte, mostTogether<<10)))
	fickle.dispatch.Deferreds[0], owner.dispatch.Exclusives[0] = false, true
	plain := request("", "a")
	for i, tt := range []struct {
		qs   []question
		want int
	}{
		{[]question{plain, plain, plain}, 3},
		{[]question{plain, plain, owner, plain}, 2},
		{[]question{owner, plain}, 1},
		{[]question{plain, fickle, request("", "b"), request("", "b", "a"), plain}, 3},
		{[]question{big, plain}, 1},
		{[]question{plain, big}, 1},
		{slices.Repeat([]question{plain}, 99), mostTogether / 2},
		{slices.Repeat([]question{{party: party{end: true}, end: &end{outcome: Outcome{Result: make([]byte, 10<<10)}}}}, 99), 9},
	} {
		if got := fit(tt.qs); got != tt.want {
			t.Errorf("%d: %d go together, want %d", i, got, tt.want)
		}
	}
}
