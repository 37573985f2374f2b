package tasking_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// The task types that most tests use.
var (
	plain = tasking.NewType("test.plain", func(context.Context, *tasking.Run, any) (any, error) { return nil, nil },
		tasking.TypeConfig{Immediate: true})
	retried = tasking.NewType("test.retried", func(context.Context, *tasking.Run, any) (any, error) { return nil, nil },
		tasking.TypeConfig{MaxAttempts: 3, Backoff: time.Minute})
)

// harness drives the tasking system step by step: the client for what a program does, the statements
// of a worker one at a time for everything else.
type harness struct {
	*dbtest.DB
	t *testing.T
	q *db.Queries
	c *tasking.Client
}

func newHarness(t *testing.T, types ...tasking.AnyType) *harness {
	t.Helper()
	d := dbtest.New(t)
	h := &harness{DB: d, t: t, q: db.New()}
	h.c = h.client(d.Pool, tasking.Config{}, types...)
	return h
}

// in is the same harness for a subtest.
func (h *harness) in(t *testing.T) *harness {
	sub := *h
	sub.t = t
	return &sub
}

// client makes a client that knows plain, retried and these types.
func (h *harness) client(pool *pgxpool.Pool, cfg tasking.Config, types ...tasking.AnyType) *tasking.Client {
	h.t.Helper()
	reg, err := tasking.NewRegistry(append(types, plain, retried)...)
	if err != nil {
		h.t.Fatal(err)
	}
	cfg.Registry, cfg.Log = reg, h.Log
	c, err := tasking.New(pool, cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// process registers a process of this type that lives for an hour.
func (h *harness) process(typ appstatus.Type) *appstatus.App {
	h.t.Helper()
	app, err := appstatus.New(h.Pool, appstatus.Config{Type: typ, TTL: time.Hour, TaskNames: h.c.Registry().Runnable(), Log: h.Log})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := app.Register(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return app
}

// worker registers a worker.
func (h *harness) worker() uuid.UUID { h.t.Helper(); return h.process(appstatus.Worker).ID() }

// vanish deletes the row of a process, as a sweep does.
func (h *harness) vanish(app uuid.UUID) {
	h.t.Helper()
	if n, err := h.q.AppStatusUnregister(h.t.Context(), h.Pool, pg(app)); err != nil || n != 1 {
		h.t.Fatalf("%d rows, %v", n, err)
	}
}

func (h *harness) dispatch(r tasking.Request) uuid.UUID {
	h.t.Helper()
	d, err := h.c.Dispatch(h.t.Context(), r)
	if err != nil {
		h.t.Fatal(err)
	}
	return d.ID
}

// reserve dispatches a plain task with these resources.
func (h *harness) reserve(exclusive, shared []string) uuid.UUID {
	h.t.Helper()
	return h.dispatch(plain.Request(nil, tasking.Options{Exclusive: exclusive, Shared: shared}))
}

func (h *harness) kinds() []int32 {
	h.t.Helper()
	return query[int32](h, "SELECT id FROM task_kind ORDER BY id")
}

// turn sends a worker's statement that finishes nothing.
func turnParams(worker uuid.UUID, kinds []int32, wanted int32) db.TaskTurnParams {
	return db.TaskTurnParams{
		Worker: pg(worker), Known: kinds, Runnable: kinds, Wanted: wanted, Holding: []pgtype.UUID{},
		IDs: []pgtype.UUID{}, Attempts: []int32{}, States: []string{}, Results: []string{}, Errors: []string{},
	}
}

func (h *harness) turn(p db.TaskTurnParams) []tasking.TurnEvent {
	h.t.Helper()
	rows, err := tasking.Turn(h.t.Context(), h.Pool, p)
	if err != nil {
		h.t.Fatal(err)
	}
	return rows
}

// claim claims up to wanted tasks and returns them in the order that the database gave.
func (h *harness) claim(worker uuid.UUID, wanted int32) []tasking.Claim {
	h.t.Helper()
	return claims(h.turn(turnParams(worker, h.kinds(), wanted)))
}

func claims(rows []tasking.TurnEvent) []tasking.Claim {
	var out []tasking.Claim
	for _, r := range rows {
		if r.Event == "claim" {
			out = append(out, tasking.Claim{
				ID: r.ID.Bytes, Attempt: int(r.Attempt), Args: json.RawMessage(r.Arguments), CorrelationID: r.Cid,
				Immediate: r.Immediate, Reserved: r.Reserved, Name: "test.plain",
			})
		}
	}
	return out
}

// claimOnly claims tasks and fails unless they are exactly these, in any order.
func (h *harness) claimOnly(worker uuid.UUID, want ...uuid.UUID) {
	h.t.Helper()
	var got []uuid.UUID
	for _, c := range h.claim(worker, 1000) {
		got = append(got, c.ID)
	}
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		h.t.Errorf("claimed (-want +got):\n%s", diff)
	}
}

// finishParams lays out the end of one attempt; failure is the error as JSON.
func finishParams(holder *uuid.UUID, id uuid.UUID, attempt int32, state tasking.State, result, failure string) db.TaskTurnParams {
	p := turnParams(uuid.Nil, []int32{}, 0)
	p.Worker = pgtype.UUID{}
	if holder != nil {
		p.Worker = pg(*holder)
	}
	p.IDs, p.Attempts, p.States = []pgtype.UUID{pg(id)}, []int32{attempt}, []string{string(state)}
	p.Results, p.Errors = []string{result}, []string{failure}
	return p
}

// finish ends the current attempt of a task for its holder.
func (h *harness) finish(holder, id uuid.UUID, state tasking.State) {
	h.t.Helper()
	failure := ""
	if state == tasking.Failed {
		failure = `{"description": "boom"}`
	}
	attempt := one[int32](h, "SELECT attempt FROM task WHERE id = $1", id)
	for _, r := range h.turn(finishParams(&holder, id, attempt, state, "", failure)) {
		if r.Event == "finish" && !r.Recorded {
			h.t.Fatalf("finish of %s was not recorded: %+v", id, r)
		}
	}
}

// run claims one task, which must be this one, and completes it.
func (h *harness) run(worker, id uuid.UUID) {
	h.t.Helper()
	got := h.claim(worker, 1)
	if len(got) != 1 || got[0].ID != id {
		h.t.Fatalf("claimed %v, want %s", got, id)
	}
	h.finish(worker, id, tasking.Completed)
}

func (h *harness) cancel(id uuid.UUID) tasking.State {
	h.t.Helper()
	s, err := h.c.Cancel(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// sweep ends what nobody holds any more.
func (h *harness) sweep() {
	h.t.Helper()
	if _, err := h.q.TaskAbandonedFinish(h.t.Context(), h.Pool, db.TaskAbandonedFinishParams{
		Most: 100, Error: `{"reason": "` + tasking.ReasonMissing + `"}`,
	}); err != nil {
		h.t.Fatal(err)
	}
}

// enqueue gives tasks that are due their place and answers how many.
func (h *harness) enqueue() int32 {
	h.t.Helper()
	n, err := h.q.TaskEnqueueDue(h.t.Context(), h.Pool, 1000)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// makeDue moves the not-before time of a task into the past; a greater age is due earlier.
func (h *harness) makeDue(id uuid.UUID, age time.Duration) {
	h.t.Helper()
	h.exec("UPDATE task SET not_before = clock_timestamp() - make_interval(secs => $2) WHERE id = $1", id, age.Seconds())
}

func (h *harness) get(id uuid.UUID) tasking.Task {
	h.t.Helper()
	t, err := h.c.Get(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return t
}

func (h *harness) state(id uuid.UUID) tasking.State { h.t.Helper(); return h.get(id).State }

// blockedOn answers how many resources tasks wait for; -1: not queued.
func (h *harness) blockedOn(ids ...uuid.UUID) []int {
	h.t.Helper()
	out := make([]int, len(ids))
	for i, id := range ids {
		out[i] = one[int](h, "SELECT coalesce(blocked_on, -1) FROM task WHERE id = $1", id)
	}
	return out
}

// wantBlockedOn checks what tasks wait for.
func (h *harness) wantBlockedOn(want []int, ids ...uuid.UUID) {
	h.t.Helper()
	if diff := cmp.Diff(want, h.blockedOn(ids...)); diff != "" {
		h.t.Errorf("blocked_on (-want +got):\n%s", diff)
	}
}

// row is the whole row of a task, column by column.
func (h *harness) row(id uuid.UUID) map[string]any {
	h.t.Helper()
	var row map[string]any
	if err := json.Unmarshal([]byte(one[string](h, "SELECT row_to_json(t)::text FROM task t WHERE id = $1", id)), &row); err != nil {
		h.t.Fatal(err)
	}
	return row
}

// exec changes the database behind the back of everything.
func (h *harness) exec(sql string, args ...any) {
	h.t.Helper()
	if _, err := h.Direct.Exec(h.t.Context(), sql, args...); err != nil {
		h.t.Fatal(err)
	}
}

// one reads one value with the test's own eyes.
func one[T any](h *harness, sql string, args ...any) T {
	h.t.Helper()
	var out T
	if err := h.Direct.QueryRow(h.t.Context(), sql, args...).Scan(&out); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// query reads a column.
func query[T any](h *harness, sql string, args ...any) []T {
	h.t.Helper()
	rows, err := h.Direct.Query(h.t.Context(), sql, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			h.t.Fatal(err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		h.t.Fatal(err)
	}
	return out
}

// changed names the columns in which two rows differ, sorted.
func changed(before, after map[string]any) []string {
	var out []string
	for column := range before {
		if !cmp.Equal(before[column], after[column]) {
			out = append(out, column)
		}
	}
	slices.Sort(out)
	return out
}

func sorted(ids []uuid.UUID) []uuid.UUID {
	return slices.SortedFunc(slices.Values(ids), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
}

func pg(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }
