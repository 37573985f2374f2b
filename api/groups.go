package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/tasking"
)

type groupReply struct {
	PulpHref             string                `json:"pulp_href"`
	PRN                  string                `json:"prn" doc:"The Pulp Resource Name."`
	Description          string                `json:"description"`
	AllTasksDispatched   bool                  `json:"all_tasks_dispatched" doc:"No task will be added any more."`
	Waiting              int                   `json:"waiting"`
	Skipped              int                   `json:"skipped"`
	Running              int                   `json:"running"`
	Completed            int                   `json:"completed"`
	Canceled             int                   `json:"canceled"`
	Failed               int                   `json:"failed"`
	Canceling            int                   `json:"canceling"`
	GroupProgressReports []groupProgressReport `json:"group_progress_reports"`
	Tasks                []minimalTask         `json:"tasks"`
}

type groupProgressReport struct {
	Message string  `json:"message"`
	Code    string  `json:"code"`
	Total   int64   `json:"total"`
	Done    int64   `json:"done"`
	Suffix  *string `json:"suffix"`
}

// groupReply reads a group with its tasks. A group whose tasks the user may not see is not there for the user.
func (r *Request) groupReply(ctx context.Context, id uuid.UUID) (groupReply, error) {
	s := r.server
	g, err := s.Tasks().GetGroup(ctx, id)
	if errors.Is(err, tasking.ErrNotFound) {
		return groupReply{}, NotFound("TaskGroup")
	} else if err != nil {
		return groupReply{}, err
	}
	reply := groupReply{
		PulpHref: r.Href(s.own.groups, id.String()), PRN: s.own.groups.PRN(id.String()),
		Description: g.Description, AllTasksDispatched: g.AllTasksDispatched, Waiting: g.Waiting, Skipped: g.Skipped, Running: g.Running,
		Completed: g.Completed, Canceled: g.Canceled, Failed: g.Failed, Canceling: g.Canceling,
		GroupProgressReports: []groupProgressReport{}, Tasks: []minimalTask{},
	}
	for _, p := range g.Progress {
		report := groupProgressReport{Message: p.Message, Code: p.Code, Done: p.Done}
		if p.Total != nil {
			report.Total = *p.Total
		}
		if p.Suffix != "" {
			report.Suffix = &p.Suffix
		}
		reply.GroupProgressReports = append(reply.GroupProgressReports, report)
	}
	tasks, err := query(ctx, func(ctx context.Context) ([]db.TaskOfGroupRow, error) {
		return s.q.TaskOfGroup(ctx, s.db, pgUUID(id))
	})
	for _, t := range tasks {
		key := uuid.UUID(t.ID.Bytes).String()
		reply.Tasks = append(reply.Tasks, minimalTask{
			head: r.headOf(s.own.tasks, key, t.CreatedAt.Time, t.CreatedAt.Time), PulpAPIVersion: apiVersion, Name: t.Name, State: t.State,
			UnblockedAt: pgTime(t.UnblockedAt), StartedAt: pgTime(t.StartedAt), FinishedAt: pgTime(t.FinishedAt),
		})
	}
	return reply, err
}

func (s *Server) listGroups(ctx context.Context, r *Request) (Reply, error) {
	found, err := s.own.groupList.page(ctx, r)
	if err != nil {
		return Reply{}, err
	}
	list := make([]groupReply, 0, len(found.keys))
	for _, key := range found.keys {
		reply, err := r.groupReply(ctx, uuid.MustParse(key))
		if _, gone := problem(err); gone {
			continue
		} else if err != nil {
			return Reply{}, err
		}
		list = append(list, reply)
	}
	return OK(newPage(found, list))
}

// mayGroup tells whether the user has a permission on all tasks of the group, and may see one of them at least.
func (s *Server) mayGroup(ctx context.Context, r *Request, permission string) error {
	if r.User.Superuser {
		return nil
	}
	counts, err := query(ctx, func(ctx context.Context) (db.TaskGroupPermittedRow, error) {
		return s.q.TaskGroupPermitted(ctx, s.db, db.TaskGroupPermittedParams{
			TaskGroup: pgUUID(r.UUID()), UserID: int32(r.User.ID), View: rolesWith("core.view_task"), Roles: rolesWith(permission),
		})
	})
	switch {
	case err != nil:
		return err
	case counts.Visible == 0:
		return NotFound("TaskGroup")
	case permission != "core.view_task" && counts.Permitted < counts.Tasks:
		return errDenied
	}
	return nil
}

func (s *Server) readGroup(ctx context.Context, r *Request) (Reply, error) {
	if err := s.mayGroup(ctx, r, "core.view_task"); err != nil {
		return Reply{}, err
	}
	reply, err := r.groupReply(ctx, r.UUID())
	if err != nil {
		return Reply{}, err
	}
	return OK(reply)
}

func (s *Server) cancelGroup(ctx context.Context, r *Request, _ cancelBody) (Reply, error) {
	if err := s.mayGroup(ctx, r, "core.change_task"); err != nil {
		return Reply{}, err
	}
	if _, err := s.Tasks().CancelGroup(ctx, r.UUID()); errors.Is(err, tasking.ErrNotFound) {
		return Reply{}, NotFound("TaskGroup")
	} else if err != nil {
		return Reply{}, err
	}
	body, err := r.groupReply(ctx, r.UUID())
	if err != nil {
		return Reply{}, err
	}
	reply := Reply{Status: http.StatusOK, Body: body}
	if body.Waiting+body.Running > 0 {
		reply.Status = http.StatusConflict
	}
	return reply, nil
}
