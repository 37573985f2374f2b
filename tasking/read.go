package tasking

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
)

// Get reads one task with its children, progress and created resources, or returns ErrNotFound.
func (c *Client) Get(ctx context.Context, id uuid.UUID) (Task, error) {
	return send(ctx, "read task "+id.String(), func(ctx context.Context) (Task, error) {
		row, err := c.q.TaskGet(ctx, c.db, pgUUID(id))
		if err != nil {
			return Task{}, err
		}
		t, err := taskFromRow(row.Task, row.Name, row.Versions, row.MaxAttempts)
		if err != nil {
			return t, err
		}
		children, err := c.q.TaskChildren(ctx, c.db, pgUUID(id))
		if err != nil {
			return t, err
		}
		for _, child := range children {
			t.Children = append(t.Children, child.Bytes)
		}
		reports, err := c.q.ProgressReportList(ctx, c.db, []pgtype.UUID{pgUUID(id)})
		if err != nil {
			return t, err
		}
		for _, r := range reports {
			t.Progress = append(t.Progress, Report{
				Message: r.Message, Code: r.Code, State: State(r.State), Total: int64Ptr(r.Total), Done: r.Done, Suffix: r.Suffix.String,
			})
		}
		switch used, err := c.q.TaskUsageGet(ctx, c.db, pgUUID(id)); {
		case err == nil:
			t.Usage = &Usage{PeakMemory: used.PeakMemory, CPUSeconds: used.CpuSeconds}
		case !errors.Is(err, pgx.ErrNoRows):
			return t, err
		}
		created, err := c.q.CreatedResourceList(ctx, c.db, []pgtype.UUID{pgUUID(id)})
		for _, r := range created {
			t.Created = append(t.Created, r.Resource)
		}
		return t, err
	})
}

func int64Ptr(n pgtype.Int8) *int64 {
	if !n.Valid {
		return nil
	}
	return &n.Int64
}

// Filter selects tasks; the zero value selects all.
type Filter struct {
	States        []State
	Name          string
	CorrelationID string
	Group, Parent *uuid.UUID
	// Resource is reserved by the task, exclusively or shared.
	Resource string
	// Limit is the most tasks to return. Default: 100.
	Limit int
	// Offset skips that many.
	Offset int
}

// List reads tasks, newest first.
func (c *Client) List(ctx context.Context, f Filter) ([]Task, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	states := []string{}
	for _, s := range f.States {
		if !s.Valid() {
			return nil, fmt.Errorf("list tasks: %w", invalid("unknown state %q; known are: %v", s, States))
		}
		states = append(states, string(s))
	}
	return send(ctx, "list tasks", func(ctx context.Context) ([]Task, error) {
		rows, err := c.q.TaskList(ctx, c.db, db.TaskListParams{
			States: states, Name: f.Name, Cid: f.CorrelationID, InGroup: pgUUIDPtr(f.Group), Parent: pgUUIDPtr(f.Parent),
			Resource: f.Resource, Most: clamp(f.Limit), Skip: clamp(f.Offset),
		})
		if err != nil {
			return nil, err
		}
		tasks := make([]Task, 0, len(rows))
		for _, r := range rows {
			t, err := taskFromRow(r.Task, r.Name, r.Versions, r.MaxAttempts)
			if err != nil {
				return nil, err
			}
			tasks = append(tasks, t)
		}
		return tasks, nil
	})
}

// Wait waits until these tasks are final, and returns them in order. It looks again and again with
// growing, jittered pauses of up to a second, until ctx ends. ErrNotFound: one of them does not exist.
func (c *Client) Wait(ctx context.Context, ids ...uuid.UUID) ([]Task, error) {
	open := pgUUIDs(ids)
	for n := 0; len(open) > 0; n++ {
		rows, err := send(ctx, "wait", func(ctx context.Context) ([]db.TaskStatesRow, error) {
			return c.q.TaskStates(ctx, c.db, open)
		})
		if err != nil {
			return nil, err
		}
		state := make(map[[16]byte]State, len(rows))
		for _, r := range rows {
			state[r.ID.Bytes] = State(r.State)
		}
		var still []pgtype.UUID
		for _, id := range open {
			s, ok := state[id.Bytes]
			if !ok {
				return nil, fmt.Errorf("wait for task %s: %w", uuid.UUID(id.Bytes), ErrNotFound)
			}
			if !s.Final() {
				still = append(still, id)
			}
		}
		if open = still; len(open) > 0 {
			pause := waitPause(n)
			if err := resend.Sleep(ctx, pause/2+rand.N(pause)); err != nil {
				return nil, fmt.Errorf("wait for %d of %d tasks: %w", len(open), len(ids), err)
			}
		}
	}
	tasks := make([]Task, 0, len(ids))
	for _, id := range ids {
		t, err := c.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, t)
	}
	return tasks, nil
}
