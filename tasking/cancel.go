package tasking

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

// Cancel cancels a task and answers its state then: canceled if it waited; canceling if it runs, and
// its holder sees that within 1.5 s, in fleets of more than 150 workers later, at most 10 s; any other if
// it was final already. Children are not canceled.
func (c *Client) Cancel(ctx context.Context, id uuid.UUID) (State, error) {
	rows, err := c.cancel(ctx, []pgtype.UUID{pgUUID(id)})
	if err != nil {
		return "", fmt.Errorf("cancel task %s: %w", id, err)
	}
	if len(rows) == 0 {
		return "", fmt.Errorf("cancel task %s: %w", id, ErrNotFound)
	}
	return State(rows[0].State), nil
}

// cancel takes ids in ascending order.
func (c *Client) cancel(ctx context.Context, ids []pgtype.UUID) ([]db.TaskCancelRow, error) {
	return send(ctx, "send", func(ctx context.Context) ([]db.TaskCancelRow, error) {
		return c.q.TaskCancel(ctx, c.db, ids)
	})
}

// Group is a task group with the number of its tasks in each state.
type Group struct {
	ID                 uuid.UUID `json:"id"`
	Description        string    `json:"description"`
	AllTasksDispatched bool      `json:"all_tasks_dispatched"`
	CreatedAt          time.Time `json:"pulp_created"`
	Waiting            int       `json:"waiting"`
	Skipped            int       `json:"skipped"`
	Running            int       `json:"running"`
	Completed          int       `json:"completed"`
	Canceled           int       `json:"canceled"`
	Failed             int       `json:"failed"`
	Canceling          int       `json:"canceling"`
	// Progress is the sum of its tasks' reports by message and code.
	Progress []Report `json:"group_progress_reports"`
}

// Unfinished counts the tasks that are not final.
func (g Group) Unfinished() int { return g.Waiting + g.Running + g.Canceling }

// NewGroup makes a task group.
func (c *Client) NewGroup(ctx context.Context, description string) (uuid.UUID, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return id, fmt.Errorf("create task group: %w", err)
	}
	_, err = send(ctx, "create task group", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.q.TaskGroupCreate(ctx, c.db, db.TaskGroupCreateParams{ID: pgUUID(id), Description: description})
	})
	return id, err
}

// CloseGroup marks that all tasks of a group are dispatched.
func (c *Client) CloseGroup(ctx context.Context, id uuid.UUID) error {
	n, err := send(ctx, "close task group", func(ctx context.Context) (int64, error) {
		return c.q.TaskGroupClose(ctx, c.db, pgUUID(id))
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("close task group %s: %w", id, ErrNotFound)
	}
	return err
}

// GetGroup reads a group, or returns ErrNotFound.
func (c *Client) GetGroup(ctx context.Context, id uuid.UUID) (Group, error) {
	found, err := c.GetGroups(ctx, id)
	switch {
	case err != nil:
		return Group{}, fmt.Errorf("read task group %s: %w", id, err)
	case len(found) == 0:
		return Group{}, fmt.Errorf("read task group %s: %w", id, ErrNotFound)
	}
	return found[0], nil
}

// GetGroups reads those of these groups that exist, in this order, as GetGroup does.
func (c *Client) GetGroups(ctx context.Context, ids ...uuid.UUID) ([]Group, error) {
	return send(ctx, "read task groups", func(ctx context.Context) ([]Group, error) {
		keys := pgUUIDs(ids)
		rows, err := c.q.TaskGroupRead(ctx, c.db, keys)
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		found := make(map[uuid.UUID]*Group, len(rows))
		for _, r := range rows {
			found[r.ID.Bytes] = &Group{
				ID: r.ID.Bytes, Description: r.Description, AllTasksDispatched: r.AllTasksDispatched, CreatedAt: r.CreatedAt.Time.UTC(),
				Waiting: int(r.Waiting), Skipped: int(r.Skipped), Running: int(r.Running), Completed: int(r.Completed),
				Canceled: int(r.Canceled), Failed: int(r.Failed), Canceling: int(r.Canceling),
			}
		}
		sums, err := c.q.ProgressReportSum(ctx, c.db, keys)
		if err != nil {
			return nil, err
		}
		for _, s := range sums {
			if g := found[s.TaskGroup.Bytes]; g != nil {
				g.Progress = append(g.Progress, Report{Message: s.Message, Code: s.Code, Total: &s.Total, Done: s.Done, Suffix: s.Suffix.String})
			}
		}
		list := make([]Group, 0, len(found))
		for _, id := range ids {
			if g := found[id]; g != nil {
				list = append(list, *g)
			}
		}
		return list, nil
	})
}

// cancelBatch is how many tasks of a group are canceled in one statement.
const cancelBatch = 500

// CancelGroup closes a group and cancels those of its tasks that wait or run. It answers how many
// tasks it has changed.
func (c *Client) CancelGroup(ctx context.Context, id uuid.UUID) (int, error) {
	if err := c.CloseGroup(ctx, id); err != nil {
		return 0, err
	}
	changed := 0
	after := pgUUID(uuid.Nil)
	for {
		ids, err := send(ctx, "list tasks of group", func(ctx context.Context) ([]pgtype.UUID, error) {
			return c.q.TaskGroupUnfinished(ctx, c.db, db.TaskGroupUnfinishedParams{ID: pgUUID(id), After: after, Most: cancelBatch})
		})
		if err != nil || len(ids) == 0 {
			return changed, err
		}
		rows, err := c.cancel(ctx, ids)
		if err != nil {
			return changed, fmt.Errorf("cancel task group %s: %w", id, err)
		}
		for _, r := range rows {
			if r.Changed {
				changed++
			}
		}
		after = ids[len(ids)-1]
	}
}

// purgeWindow is how many tasks one statement of a purge looks at.
const purgeWindow = 2000

// Purge deletes final tasks in these states that finished before a time, with their progress reports
// and created-resource records, in bounded statements. It answers how many.
func (c *Client) Purge(ctx context.Context, finishedBefore time.Time, states ...State) (int, error) {
	deleted := 0
	for page, err := range c.Purging(ctx, Purge{FinishedBefore: finishedBefore, States: states}) {
		deleted += page.Tasks
		if err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// Purge says which tasks are to be purged.
type Purge struct {
	FinishedBefore time.Time `json:"finished_before"`
	// States of the tasks, all final; nil is an error, and none at all purge nothing.
	States []State `json:"states"`
	// Owner is the id of a user of the REST API: only tasks that the user owns are purged. Default: all.
	Owner int `json:"owner,omitempty"`
}

// Purged counts the rows that were deleted.
type Purged struct{ Tasks, Reports, Created, Roles int }

// Purging purges page by page, and tells of each. An error is the last that it tells.
func (c *Client) Purging(ctx context.Context, p Purge) iter.Seq2[Purged, error] {
	return func(yield func(Purged, error) bool) {
		var in []string
		for _, s := range p.States {
			if !s.Final() {
				yield(Purged{}, fmt.Errorf("purge: %w", invalid("state %q is not final", s)))
				return
			}
			in = append(in, string(s))
		}
		switch {
		case p.States == nil:
			yield(Purged{}, fmt.Errorf("purge: %w", invalid("no states are named")))
			return
		case len(in) == 0:
			return
		}
		slices.Sort(in)
		for after := pgUUID(uuid.Nil); after.Valid; {
			// A statement that is sent twice deletes the second time what the first one has left.
			page, err := send(ctx, "purge", func(ctx context.Context) (db.TaskPurgeRow, error) {
				return c.q.TaskPurge(ctx, c.db, db.TaskPurgeParams{
					After: after, Most: purgeWindow, FinishedBefore: pgtype.Timestamptz{Time: p.FinishedBefore, Valid: true}, States: in,
					Owner: pgtype.Int4{Int32: int32(p.Owner), Valid: p.Owner != 0},
				})
			})
			if !yield(Purged{Tasks: int(page.Deleted), Reports: int(page.Reports), Created: int(page.Created), Roles: int(page.Roles)}, err) || err != nil {
				return
			}
			after = page.Last
		}
	}
}

// Delete deletes a final task with its progress reports and created-resource records. ErrNotFound: there is none;
// ErrUnfinished: it is not final.
func (c *Client) Delete(ctx context.Context, id uuid.UUID) error {
	sends := 0
	deleted, err := send(ctx, "delete task "+id.String(), func(ctx context.Context) (bool, error) {
		sends++
		return c.q.TaskDelete(ctx, c.db, pgUUID(id))
	})
	switch {
	case errors.Is(err, ErrNotFound) && sends > 1:
		return nil // an earlier send has deleted it
	case err == nil && !deleted:
		return fmt.Errorf("delete task %s: %w", id, ErrUnfinished)
	}
	return err
}
