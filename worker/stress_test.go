package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/queuecheck"
	"github.com/pithworks/pith/tasking"
)

// stress drives the statements themselves, without workers' manners: many at once, on few server
// connections.
type stress struct {
	t     *testing.T
	d     *dbtest.DB
	pool  *pgxpool.Pool
	q     *db.Queries
	log   *queuecheck.Log
	watch watch
	// sharing: nothing is reserved exclusively.
	sharing bool
	kinds   []int32 // tried once, and twice
	next    atomic.Int64
	ops     atomic.Int64

	mu      sync.Mutex
	ids     []pgtype.UUID
	holders []*holder
}

// holder is an app status that claims, and what it holds.
type holder struct {
	id   uuid.UUID
	name string
	held []heldTask

	mu   sync.Mutex
	dead bool
}

type heldTask struct {
	id      pgtype.UUID
	task    queuecheck.Task
	attempt int32
	sole    pgtype.Text
}

// send repeats a statement for as long as an exclusive reservation comes in between, and returns the
// error that is its own.
func (s *stress) send(ctx context.Context, statement func() error) error {
	s.ops.Add(1)
	for {
		err := statement()
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "40001" || ctx.Err() != nil {
			return err
		}
	}
}

func (s *stress) must(ctx context.Context, what string, statement func() error) {
	if err := s.send(ctx, statement); err != nil {
		s.t.Errorf("%s: %v", what, err)
	}
}

// register makes a new holder.
func (s *stress) register(ctx context.Context) *holder {
	h := &holder{id: uuid.Must(uuid.NewV7())}
	h.name = h.id.String()
	s.must(ctx, "register", func() error {
		_, err := s.q.AppStatusRegister(ctx, s.pool, db.AppStatusRegisterParams{
			ID: pgUUID(h.id), AppType: "worker", Name: h.name, Versions: "{}", TaskNames: []string{"test"}, TTLSeconds: 60,
		})
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders = append(s.holders, h)
	return h
}

// record adds an event of a holder that lives.
func (s *stress) record(h *holder, e queuecheck.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.dead {
		e.Holder = h.name
		s.log.Record(e)
	}
}

// stressed are the resources. The buckets of the last two come after that of the domains' queues, which is locked
// only where a domain is contended.
var stressed = []string{"r0", "r1", "r2", "r143", "r173"}

// dispatch dispatches a few tasks; a single one may be held by the dispatcher at once.
func (s *stress) dispatch(ctx context.Context, rng *rand.Rand, h *holder) {
	n := 1 + rng.IntN(4)
	p := db.TaskDispatchParams{
		Busy: `{"reason":"busy"}`, Dispatcher: pgUUID(h.id), RunHere: n == 1,
		KindNames: []string{"test", "test"}, KindVersions: []string{"{}", "{}"}, KindAttempts: []int32{1, 2}, KindBackoffs: []string{"0", "2 ms"},
		Reserving: []int32{}, Resources: []string{}, Exclusives: []bool{},
	}
	var tasks []queuecheck.Task
	for i := range n {
		task := queuecheck.Task(s.next.Add(1))
		kind := int32(1 + rng.IntN(2))
		q := &queuecheck.Request{MaxAttempts: int(kind)}
		immediate := rng.IntN(4) == 0
		var notBefore pgtype.Timestamptz
		if rng.IntN(6) == 0 {
			notBefore = pgtype.Timestamptz{Time: time.Now().Add(upTo(rng, 20*time.Millisecond)), Valid: true}
			q.Later = true
		}
		reserve := func(name string, exclusive bool) {
			p.Reserving, p.Resources, p.Exclusives = append(p.Reserving, int32(i+1)), append(p.Resources, name), append(p.Exclusives, exclusive)
			q.Resources = append(q.Resources, queuecheck.Resource{Name: name, Exclusive: exclusive})
		}
		for _, r := range rng.Perm(len(stressed))[:rng.IntN(4)] {
			reserve(stressed[r], !s.sharing && rng.IntN(2) == 0)
		}
		if !s.sharing && rng.IntN(60) == 0 {
			reserve(tasking.Domain, true)
		} else {
			q.Resources = append(q.Resources, queuecheck.Resource{Name: tasking.Domain})
		}
		p.IDs = append(p.IDs, pgUUID(uuid.Must(uuid.NewV7())))
		p.Kinds = append(p.Kinds, kind)
		p.Arguments = append(p.Arguments, strconv.FormatInt(int64(task), 10))
		p.Cids = append(p.Cids, "cid")
		p.Groups = append(p.Groups, pgtype.UUID{})
		p.Priorities = append(p.Priorities, rng.Int32N(3))
		p.Immediates = append(p.Immediates, immediate)
		p.Deferreds = append(p.Deferreds, !immediate || q.Later || n > 1 || rng.IntN(2) == 0)
		p.NotBefores = append(p.NotBefores, notBefore)
		tasks = append(tasks, task)
		s.log.Record(queuecheck.Event{Kind: queuecheck.Sent, Task: task, Request: q})
	}
	if parent := rng.IntN(4); parent == 0 && len(h.held) > 0 {
		held := h.held[rng.IntN(len(h.held))]
		p.Parent, p.ParentAttempt = held.id, held.attempt
	}
	var rows []string
	err := s.send(ctx, func() (err error) {
		rows, err = s.q.TaskDispatch(ctx, s.pool, p)
		return err
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "PT001" || pg.ConstraintName == "task_app_lock_fkey") {
		// The holder was declared missing.
		for _, task := range tasks {
			s.log.Record(queuecheck.Event{Kind: queuecheck.Withdrawn, Task: task})
		}
		return
	}
	if err != nil {
		s.t.Errorf("dispatch: %v", err)
		return
	}
	for i, task := range tasks {
		s.log.Record(queuecheck.Event{Kind: queuecheck.Acknowledged, Task: task})
		if strings.Contains(rows[i], ",running,") {
			s.record(h, queuecheck.Event{Kind: queuecheck.Started, Task: task, Attempt: 1})
			h.held = append(h.held, heldTask{id: p.IDs[i], task: task, attempt: 1})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids = append(s.ids, p.IDs...)
}

// turn ends some of what the holder holds and claims more; false: it was declared missing.
func (s *stress) turn(ctx context.Context, rng *rand.Rand, h *holder, wanted int, all bool) bool {
	p := db.TaskTurnParams{
		Worker: pgUUID(h.id), Known: s.kinds, Runnable: s.kinds, Wanted: int32(wanted), Holding: []pgtype.UUID{},
		IDs: []pgtype.UUID{}, Attempts: []int32{}, States: []string{}, Results: []string{}, Errors: []string{},
	}
	slices.SortFunc(h.held, func(a, b heldTask) int { return slices.Compare(a.id.Bytes[:], b.id.Bytes[:]) })
	var keep []heldTask
	for _, t := range h.held {
		if !all && rng.IntN(3) == 0 {
			keep = append(keep, t)
			continue
		}
		state, failed := "completed", ""
		if rng.IntN(4) == 0 {
			state, failed = "failed", `{"description":"as asked"}`
		}
		s.record(h, queuecheck.Event{Kind: queuecheck.Ended, Task: t.task, Attempt: int(t.attempt), Completed: state == "completed"})
		p.IDs, p.Attempts, p.States = append(p.IDs, t.id), append(p.Attempts, t.attempt), append(p.States, state)
		p.Results, p.Errors = append(p.Results, ""), append(p.Errors, failed)
		p.Sole = t.sole
	}
	if len(p.IDs) > 1 {
		p.Sole = pgtype.Text{}
	}
	h.held = keep
	var rows []tasking.TurnEvent
	err := s.send(ctx, func() (err error) {
		rows, err = tasking.Turn(ctx, s.pool, p)
		return err
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.ConstraintName == "task_app_lock_fkey" {
		return false
	}
	if err != nil {
		s.t.Errorf("turn: %v", err)
		return false
	}
	for _, r := range rows {
		switch {
		case r.Event == "claim":
			task, err := strconv.ParseInt(r.Arguments, 10, 64)
			if err != nil {
				s.t.Error(err)
			}
			s.record(h, queuecheck.Event{Kind: queuecheck.Started, Task: queuecheck.Task(task), Attempt: int(r.Attempt)})
			h.held = append(h.held, heldTask{r.ID, queuecheck.Task(task), r.Attempt, tasking.Claim{Reserved: r.Reserved}.Sole(tasking.Outcome{})})
		case r.Event == "finish" && !r.Recorded:
			h.mu.Lock()
			if !h.dead {
				s.t.Errorf("task %s was taken from a holder that lives", r.ID)
			}
			h.mu.Unlock()
		}
	}
	return true
}

// cancel cancels a few of the tasks dispatched last.
func (s *stress) cancel(ctx context.Context, rng *rand.Rand) {
	s.mu.Lock()
	var ids []pgtype.UUID
	for range min(len(s.ids), 1+rng.IntN(5)) {
		ids = append(ids, s.ids[max(0, len(s.ids)-1-rng.IntN(40))])
	}
	s.mu.Unlock()
	slices.SortFunc(ids, func(a, b pgtype.UUID) int { return slices.Compare(a.Bytes[:], b.Bytes[:]) })
	ids = slices.Compact(ids)
	s.must(ctx, "cancel", func() error {
		_, err := s.q.TaskCancel(ctx, s.pool, ids)
		return err
	})
}

// expire kills some holder, whatever it does at the moment, and has it swept.
func (s *stress) expire(ctx context.Context, rng *rand.Rand) {
	s.mu.Lock()
	h := s.holders[rng.IntN(len(s.holders))]
	s.mu.Unlock()
	h.mu.Lock()
	if !h.dead {
		h.dead = true
		s.log.Record(queuecheck.Event{Kind: queuecheck.Killed, Holder: h.name})
	}
	h.mu.Unlock()
	s.must(ctx, "expire", func() error {
		_, err := s.pool.Exec(ctx, "UPDATE app_status SET last_heartbeat = now() - interval '1 hour' WHERE id = $1", h.id)
		return err
	})
	s.must(ctx, "sweep", func() error {
		_, err := s.q.AppStatusSweep(ctx, s.pool)
		return err
	})
	s.abandoned(ctx, 1+rng.Int32N(20))
}

func (s *stress) abandoned(ctx context.Context, most int32) {
	s.must(ctx, "abandoned", func() error {
		_, err := s.q.TaskAbandonedFinish(ctx, s.pool, db.TaskAbandonedFinishParams{Most: most, Error: `{"reason":"missing"}`})
		return err
	})
}

func (s *stress) enqueue(ctx context.Context, most int32) {
	s.must(ctx, "enqueue", func() error {
		_, err := s.q.TaskEnqueueDue(ctx, s.pool, most)
		return err
	})
}

// work does a number of things at random as one client.
func (s *stress) work(ctx context.Context, seed uint64, ops int) {
	rng := rand.New(rand.NewPCG(seed, 11))
	h := s.register(ctx)
	for range ops {
		alive := true
		switch n := rng.IntN(100); {
		case n < 30:
			s.dispatch(ctx, rng, h)
		case n < 75:
			alive = s.turn(ctx, rng, h, rng.IntN(5), false)
		case n < 88:
			s.cancel(ctx, rng)
		case n < 96:
			s.enqueue(ctx, 1+rng.Int32N(20))
		default:
			s.expire(ctx, rng)
		}
		h.mu.Lock()
		alive = alive && !h.dead
		h.mu.Unlock()
		if !alive {
			h = s.register(ctx)
		}
		if s.t.Failed() {
			return
		}
	}
}

// drain ends everything that is left.
func (s *stress) drain(ctx context.Context) {
	s.mu.Lock()
	for _, h := range s.holders {
		h.mu.Lock()
		h.dead = true
		h.mu.Unlock()
		s.log.Record(queuecheck.Event{Kind: queuecheck.Killed, Holder: h.name})
	}
	s.mu.Unlock()
	if _, err := s.d.Direct.Exec(ctx, "DELETE FROM app_status"); err != nil {
		s.t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	h := s.register(ctx)
	for {
		// Everything is due.
		if _, err := s.d.Direct.Exec(ctx, "UPDATE task SET not_before = now() - interval '1 s' WHERE not_before > now() AND state = 'waiting'"); err != nil {
			s.t.Fatal(err)
		}
		s.abandoned(ctx, 1000)
		s.enqueue(ctx, 1000)
		before := len(h.held)
		s.turn(ctx, rng, h, 100, true)
		if before == 0 && len(h.held) == 0 {
			return
		}
	}
}

func TestStatementsAtOnceNeverDeadlock(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		sharing bool
	}{{"mixed", false}, {"shared only", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			seed := seeds(t)[0]
			s := &stress{t: t, d: dbtest.New(t), q: db.New(), log: queuecheck.NewLog(), sharing: tt.sharing}
			conns := int32(12)
			if !dbtest.Pooled() {
				conns = 4
			}
			s.pool, _ = wired(t, s.d, &s.watch, conns)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := s.d.Direct.QueryRow(ctx, "SELECT task_kinds(ARRAY['test', 'test'], ARRAY['{}', '{}'], ARRAY[1, 2], ARRAY['0', '2 ms']::interval[])").Scan(&s.kinds); err != nil {
				t.Fatal(err)
			}
			var clients sync.WaitGroup
			for i := range uint64(12) {
				clients.Go(func() { s.work(ctx, seed+i, 160) })
			}
			clients.Wait()
			loaded := time.Now()
			if !t.Failed() {
				s.drain(ctx)
			}
			drained := time.Since(loaded)

			rows, err := s.d.Direct.Query(ctx, "SELECT (args#>>'{}')::bigint, state::text, attempt FROM task")
			if err != nil {
				t.Fatal(err)
			}
			finals, err := pgx.CollectRows(rows, pgx.RowToStructByPos[queuecheck.Final])
			if err != nil {
				t.Fatal(err)
			}
			found := queuecheck.Check(s.log.Events(), finals)
			for _, v := range found[:min(len(found), 20)] {
				t.Error(v)
			}
			again := s.watch.conflicts.Load()
			if tt.sharing && again > 0 {
				t.Errorf("%d serialization failures, though nothing is reserved exclusively", again)
			}
			s.watch.check(t)
			noDeadlocks(t, s.d)
			t.Logf("seed %d: %d statements, %d tasks, %d sent again, drained in %s", seed, s.ops.Load(), len(finals), again, drained.Round(time.Millisecond))
		})
	}
}
