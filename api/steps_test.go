package api_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
)

// The steps of a worker, one at a time.

// registerAs registers a process that is online for an hour.
func (h *harness) registerAs(typ appstatus.Type, name string) uuid.UUID {
	h.t.Helper()
	app, err := appstatus.New(h.db.Pool, appstatus.Config{
		Type: typ, NameTemplate: name, TTL: time.Hour, Versions: builtin.Versions(), TaskNames: h.client.Registry().Runnable(), Log: h.db.Log,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := app.Register(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return app.ID()
}

// register registers a worker.
func (h *harness) register(name string) uuid.UUID {
	h.t.Helper()
	return h.registerAs(appstatus.Worker, name)
}

// turn is a worker's turn that does nothing yet.
func turn(worker uuid.UUID) db.TaskTurnParams {
	return db.TaskTurnParams{
		Worker: pg(worker), Known: []int32{}, Runnable: []int32{}, Holding: []pgtype.UUID{},
		IDs: []pgtype.UUID{}, Attempts: []int32{}, States: []string{}, Results: []string{}, Errors: []string{},
	}
}

// claim has a worker claim all that can be claimed.
func (h *harness) claim(worker uuid.UUID) {
	h.t.Helper()
	p := turn(worker)
	p.Known = column[int32](h, "SELECT id FROM task_kind ORDER BY id")
	p.Runnable, p.Wanted = p.Known, 1000
	if _, err := tasking.Turn(h.t.Context(), h.db.Pool, p); err != nil {
		h.t.Fatal(err)
	}
}

// finish has a worker end the first attempt of a task; result and failure are JSON or empty.
func (h *harness) finish(worker, task uuid.UUID, state tasking.State, result, failure string) {
	h.t.Helper()
	p := turn(worker)
	p.IDs, p.Attempts, p.States, p.Results, p.Errors = []pgtype.UUID{pg(task)}, []int32{1}, []string{string(state)}, []string{result}, []string{failure}
	events, err := tasking.Turn(h.t.Context(), h.db.Pool, p)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range events {
		if e.Event == "finish" && !e.Recorded {
			h.t.Fatalf("the end of %s is not recorded: %+v", task, e)
		}
	}
}

// cancel cancels a task past the API.
func (h *harness) cancel(task uuid.UUID) {
	h.t.Helper()
	if _, err := h.client.Cancel(h.t.Context(), task); err != nil {
		h.t.Fatal(err)
	}
}

// newGroup makes a task group and answers its href.
func (h *harness) newGroup(description string) (uuid.UUID, string) {
	h.t.Helper()
	id, err := h.client.NewGroup(h.t.Context(), description)
	if err != nil {
		h.t.Fatal(err)
	}
	return id, root + "task-groups/" + id.String() + "/"
}

// exec changes the database behind the back of everything.
func (h *harness) exec(sql string, args ...any) {
	h.t.Helper()
	if _, err := h.db.Direct.Exec(h.t.Context(), sql, args...); err != nil {
		h.t.Fatalf("%s: %v", sql, err)
	}
}

// column reads a column with the test's own eyes.
func column[T any](h *harness, sql string, args ...any) []T {
	h.t.Helper()
	rows, err := h.db.Direct.Query(h.t.Context(), sql, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	defer rows.Close()
	list := []T{}
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			h.t.Fatal(err)
		}
		list = append(list, v)
	}
	if err := rows.Err(); err != nil {
		h.t.Fatal(err)
	}
	return list
}

func pg(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

// object reads an object as admin.
func (h *harness) object(path string) map[string]any {
	h.t.Helper()
	var o map[string]any
	h.get(path, &o)
	return o
}

// state is that of the task of this href.
func (h *harness) state(task string) string {
	h.t.Helper()
	state, _ := h.object(task)["state"].(string)
	return state
}

// in is the same harness for a subtest.
func (h *harness) in(t *testing.T) *harness {
	sub := *h
	sub.t = t
	return &sub
}

func send(method, path string, body any) request {
	return request{method: method, path: path, body: body}
}

func get(path string) request { return request{path: path} }

func post(path string, body any) request { return send(http.MethodPost, path, body) }

func patch(path string, body any) request { return send(http.MethodPatch, path, body) }

// by is the request as another user sends it: see request.user.
func (r request) by(user string) request { r.user = user; return r }

// with is the request with one more header.
func (r request) with(name, value string) request {
	r.header = r.header.Clone()
	if r.header == nil {
		r.header = http.Header{}
	}
	r.header.Set(name, value)
	return r
}
