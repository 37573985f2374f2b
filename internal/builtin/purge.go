package builtin

import (
	"context"
	"errors"

	"github.com/pithworks/pith/tasking"
)

// Purge is the type of the task that deletes old tasks. Its arguments are a tasking.Purge.
const Purge = "pulpcore.app.tasks.purge.purge"

// purge deletes tasks page by page, and reports how many rows of each kind.
func purge(ctx context.Context, run *tasking.Run, args tasking.Purge) (none, error) {
	client := run.Client()
	if client == nil {
		return nil, errors.New("to purge tasks takes a database")
	}
	kinds := []struct {
		model  string
		of     func(tasking.Purged) int
		report *tasking.Progress
	}{
		{model: "core.Task", of: func(p tasking.Purged) int { return p.Tasks }},
		{model: "core.ProgressReport", of: func(p tasking.Purged) int { return p.Reports }},
		{model: "core.CreatedResource", of: func(p tasking.Purged) int { return p.Created }},
		{model: "core.UserRole", of: func(p tasking.Purged) int { return p.Roles }},
	}
	total := 0
	for page, err := range client.Purging(ctx, args) {
		if err != nil {
			return nil, err
		}
		for i := range kinds {
			n := kinds[i].of(page)
			if n == 0 {
				continue
			}
			total += n
			if kinds[i].report == nil {
				if kinds[i].report, err = run.Progress(ctx, "Purged "+kinds[i].model, "purge.tasks.key."+kinds[i].model, -1, ""); err != nil {
					return nil, err
				}
			}
			if err := kinds[i].report.Add(ctx, int64(n)); err != nil {
				return nil, err
			}
		}
	}
	for _, k := range kinds {
		if k.report != nil {
			if err := k.report.Complete(ctx); err != nil {
				return nil, err
			}
		}
	}
	for _, sum := range []struct {
		code, message string
		n             int64
	}{
		{"purge.tasks.total", "Purged task-related objects in total", int64(total)},
		{"purge.tasks.error", "Errors while purging tasks", 0}, // an error ends the purge, but clients look for the report
	} {
		report, err := run.Progress(ctx, sum.message, sum.code, sum.n, "")
		if err != nil {
			return nil, err
		}
		if err := errors.Join(report.Add(ctx, sum.n), report.Complete(ctx)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}
