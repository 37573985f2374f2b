package worker

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// overlap is a tracer that counts the turns under way.
type overlap struct {
	mu        sync.Mutex
	now, most int
}

type overlapKey struct{}

func (o *overlap) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if !strings.Contains(data.SQL, "task_turn(") {
		return ctx
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now++
	o.most = max(o.most, o.now)
	return context.WithValue(ctx, overlapKey{}, true)
}

func (o *overlap) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(overlapKey{}) == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.now--
}

func TestTwoTurnsUnderWayRunEachTaskOnceThoughAnswersAreLost(t *testing.T) {
	t.Parallel()
	for _, lossy := range []int64{0, 40} {
		t.Run(fmt.Sprintf("lossy=%d", lossy), func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			w := &wire{conns: map[net.Conn]bool{}}
			turns := &overlap{}
			cfg := d.Pool.Config()
			cfg.MaxConns = 8
			cfg.ConnConfig.DialFunc, cfg.ConnConfig.Tracer = w.dial, turns
			p, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)

			var mu sync.Mutex
			runs := map[uuid.UUID]int{}
			count := tasking.NewType("test.count", func(_ context.Context, run *tasking.Run, _ int) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				runs[run.ID]++
				return 0, nil
			}, tasking.TypeConfig{})
			const tasks = 8 * pairLeast
			var requests []tasking.Request
			for range tasks {
				requests = append(requests, count.Request(0, tasking.Options{}))
			}
			if _, err := newClient(t, d.Pool, d, count).DispatchMany(t.Context(), requests); err != nil {
				t.Fatal(err)
			}
			w.lossy.Store(lossy)
			worker, err := New(newClient(t, p, d, count), Config{Concurrency: 3 * pairLeast, Auxiliary: true, Burst: true})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			if err := worker.Run(ctx); err != nil || ctx.Err() != nil {
				t.Fatal(err, ctx.Err())
			}
			if len(runs) != tasks {
				t.Errorf("%d of %d tasks have run", len(runs), tasks)
			}
			for id, n := range runs {
				if n != 1 {
					t.Errorf("task %s has run %d times", id, n)
				}
			}
			if turns.most > mostTurns || lossy == 0 && turns.most != mostTurns {
				t.Errorf("up to %d turns were under way", turns.most)
			}
			var completed int
			if err := d.Direct.QueryRow(t.Context(), "SELECT count(*) FROM task WHERE state = 'completed'").Scan(&completed); err != nil || completed != tasks {
				t.Errorf("%d of %d tasks are completed, %v", completed, tasks, err)
			}
		})
	}
}

func TestPartOfTheSlotsIsClaimedAtOnce(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for slots, want := range map[int]int{
		1: 1, partLeast: partLeast, 100: partLeast, 200: 100, 3*pairLeast - 2: 374,
		3 * pairLeast: pairLeast, 2000: 666, 100_000: turnMost,
	} {
		s := idleShift(t, d, slots)
		if got := min(s.free(), s.part()); got != want {
			t.Errorf("of %d slots a turn claims %d, not %d", slots, got, want)
		}
	}
}

func TestSecondTurnNeedsAFullOneAndNothingLost(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for _, tt := range []struct {
		name   string
		slots  int
		change func(*shift)
		want   bool
	}{
		{"full", 3 * pairLeast, func(*shift) {}, true},
		{"no turn is under way", 3 * pairLeast, func(s *shift) { s.turning = 0 }, false},
		{"two turns are under way", 3 * pairLeast, func(s *shift) { s.turning = 2 }, false},
		{"less was found", 3 * pairLeast, func(s *shift) { s.full = false }, false},
		{"few slots", 3*pairLeast - 1, func(*shift) {}, false},
		{"an answer is lost", 3 * pairLeast, func(s *shift) { s.failures = 1 }, false},
		{"a lost one may still be committed", 3 * pairLeast, func(s *shift) { s.recovering = time.Now().Add(time.Hour) }, false},
		{"endings go singly", 3 * pairLeast, func(s *shift) { s.singly = true }, false},
		{"most is asked for", 3 * pairLeast, func(s *shift) { s.asked = 2*pairLeast + 1 }, false},
		{"the slots that have ended are free with it", 3 * pairLeast, func(s *shift) { s.unsent = make([]*slot, 3*pairLeast) }, true},
	} {
		s := idleShift(t, d, tt.slots)
		s.turning, s.full = 1, true
		tt.change(s)
		if got := s.another(); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// idleShift is that of a worker that is not registered.
func idleShift(t *testing.T, d *dbtest.DB, slots int) *shift {
	t.Helper()
	w, err := New(newClient(t, d.Pool, d, echo), Config{Concurrency: slots})
	if err != nil {
		t.Fatal(err)
	}
	app, err := w.newApp()
	if err != nil {
		t.Fatal(err)
	}
	return newShift(w, app)
}

func TestBeatWakesAWorkerThatWouldSleepOn(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	// In a fleet of this size its next poll is days away.
	if _, err := d.Direct.Exec(t.Context(), `INSERT INTO app_fleet (app_type, online, housekeepers, registered, counted_at)
		VALUES ('worker', 100000000, 1, 1000, now() + interval '1 day')`); err != nil {
		t.Fatal(err)
	}
	start(t, newClient(t, d.Pool, d, echo), Config{TTL: 2 * time.Second, Log: d.Log})
	c := newClient(t, d.Pool, d, echo) // another process: it wakes nobody
	if task := wait(t, c, dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{}))); task.State != tasking.Completed {
		t.Errorf("it is %s", task.State)
	}
}
