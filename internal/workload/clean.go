package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

const (
	// cancelPage is how many tasks one statement cancels, and purgePage how many one looks at to delete.
	cancelPage = 500
	purgePage  = 5000
	// cleanTimeout bounds one statement of a cleaning, and cleanLimit its repetitions.
	cleanTimeout = 30 * time.Second
	cleanLimit   = time.Minute
)

// ErrLeftOver means that tasks could not be cleaned up, because something holds them: a worker that was
// killed, until it is swept.
var ErrLeftOver = errors.New("tasks of an earlier run are still held: try again in a minute")

// Clean cancels the tasks of this package that wait, and deletes those that are final, from an id on
// (uuid.Nil: all). It answers how many it has deleted. It may be called again after a failure.
func Clean(ctx context.Context, p *pgxpool.Pool, from uuid.UUID) (int, error) {
	held, err := cancel(ctx, p, from)
	if err != nil {
		return 0, err
	}
	deleted, err := purge(ctx, p, from)
	if err == nil && held > 0 {
		err = fmt.Errorf("%w: %d", ErrLeftOver, held)
	}
	return deleted, err
}

// send sends a statement that is safe to send again.
func send[T any](ctx context.Context, what string, statement func(context.Context) (T, error)) (T, error) {
	var out T
	err := resend.Do(ctx, cleanLimit, cleanTimeout, func(ctx context.Context) (err error) {
		out, err = statement(ctx)
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return out, err
}

// cancel answers how many tasks are not final afterwards.
func cancel(ctx context.Context, p *pgxpool.Pool, from uuid.UUID) (held int, err error) {
	after := pgtype.UUID{Bytes: from, Valid: true}
	for {
		ids, err := send(ctx, "list tasks", func(ctx context.Context) ([]pgtype.UUID, error) {
			return db.New().WorkloadUnfinished(ctx, p, db.WorkloadUnfinishedParams{Name: TaskName, After: after, Most: cancelPage})
		})
		if err != nil || len(ids) == 0 {
			return held, err
		}
		rows, err := send(ctx, "cancel tasks", func(ctx context.Context) ([]db.TaskCancelRow, error) {
			return db.New().TaskCancel(ctx, p, ids)
		})
		if err != nil {
			return held, err
		}
		for _, r := range rows {
			if r.State == string(tasking.Canceling) {
				held++
			}
		}
		after = ids[len(ids)-1]
	}
}

// purge answers how many it has deleted.
func purge(ctx context.Context, p *pgxpool.Pool, from uuid.UUID) (deleted int, err error) {
	after := pgtype.UUID{Bytes: from, Valid: true}
	for {
		page, err := send(ctx, "delete tasks", func(ctx context.Context) (db.WorkloadPurgeRow, error) {
			return db.New().WorkloadPurge(ctx, p, db.WorkloadPurgeParams{Name: TaskName, After: after, Most: purgePage})
		})
		if err != nil {
			return deleted, err
		}
		deleted += int(page.Deleted)
		if !page.Last.Valid {
			return deleted, nil
		}
		after = page.Last
	}
}

// others names the workers online that run tasks of this package.
func others(ctx context.Context, p *pgxpool.Pool) ([]string, error) {
	const page = 500
	var names []string
	for offset := 0; ; offset += page {
		apps, err := appstatus.List(ctx, p, appstatus.Worker, page, offset)
		if err != nil {
			return nil, err
		}
		for _, a := range apps {
			if a.Online && slices.Contains(a.TaskNames, TaskName) {
				names = append(names, a.Name)
			}
		}
		if len(apps) < page {
			return names, nil
		}
	}
}
