package tasking

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
)

// Get reads one task with its children, progress and created resources, or returns ErrNotFound.
func (c *Client) Get(ctx context.Context, id uuid.UUID) (Task, error) {
	found, err := c.GetMany(ctx, id)
	switch {
	case err != nil:
		return Task{}, fmt.Errorf("read task %s: %w", id, err)
	case len(found) == 0:
		return Task{}, fmt.Errorf("read task %s: %w", id, ErrNotFound)
	}
	return found[0], nil
}

// GetMany reads those of these tasks that exist, in this order, as Get does.
func (c *Client) GetMany(ctx context.Context, ids ...uuid.UUID) ([]Task, error) {
	return send(ctx, "read tasks", func(ctx context.Context) ([]Task, error) {
		keys := pgUUIDs(ids)
		rows, err := c.q.TaskRead(ctx, c.db, keys)
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		found := make(map[uuid.UUID]*Task, len(rows))
		for _, row := range rows {
			t, err := taskFromRow(row)
			if err != nil {
				return nil, err
			}
			found[t.ID] = &t
		}
		if err := c.complete(ctx, keys, found); err != nil {
			return nil, err
		}
		list := make([]Task, 0, len(found))
		for _, id := range ids {
			if t := found[id]; t != nil {
				list = append(list, *t)
			}
		}
		return list, nil
	})
}

// complete adds what other tables have of these tasks. What has come to another table since they were read is left out.
func (c *Client) complete(ctx context.Context, ids []pgtype.UUID, tasks map[uuid.UUID]*Task) error {
	children, err := c.q.TaskChildren(ctx, c.db, ids)
	if err != nil {
		return err
	}
	for _, r := range children {
		if t := tasks[r.Parent.Bytes]; t != nil {
			t.Children = append(t.Children, r.ID.Bytes)
		}
	}
	reports, err := c.q.ProgressReportList(ctx, c.db, ids)
	if err != nil {
		return err
	}
	for _, r := range reports {
		if t := tasks[r.TaskID.Bytes]; t != nil {
			t.Progress = append(t.Progress, Report{
				Message: r.Message, Code: r.Code, State: State(r.State), Total: int64Ptr(r.Total), Done: r.Done, Suffix: r.Suffix.String,
			})
		}
	}
	used, err := c.q.TaskUsageList(ctx, c.db, ids)
	if err != nil {
		return err
	}
	for _, r := range used {
		if t := tasks[r.TaskID.Bytes]; t != nil {
			t.Usage = &Usage{PeakMemory: r.PeakMemory, CPUSeconds: r.CpuSeconds}
		}
	}
	created, err := c.q.CreatedResourceList(ctx, c.db, ids)
	for _, r := range created {
		if t := tasks[r.TaskID.Bytes]; t != nil {
			t.Created = append(t.Created, r.Resource)
		}
	}
	return err
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
			t, err := taskFromRow(r)
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
