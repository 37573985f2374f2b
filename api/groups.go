package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/tasking"
)

type taskGroupReply struct {
	PulpHref             string                     `json:"pulp_href"`
	PRN                  string                     `json:"prn" doc:"The Pulp Resource Name."`
	Description          string                     `json:"description"`
	AllTasksDispatched   bool                       `json:"all_tasks_dispatched" doc:"No task will be added any more."`
	Waiting              int                        `json:"waiting"`
	Skipped              int                        `json:"skipped"`
	Running              int                        `json:"running"`
	Completed            int                        `json:"completed"`
	Canceled             int                        `json:"canceled"`
	Failed               int                        `json:"failed"`
	Canceling            int                        `json:"canceling"`
	GroupProgressReports []groupProgressReportReply `json:"group_progress_reports"`
	Tasks                []minimalTaskReply         `json:"tasks" doc:"Those that the user may view; the counts are of all."`
}

type groupProgressReportReply struct {
	Message string  `json:"message"`
	Code    string  `json:"code"`
	Total   int64   `json:"total"`
	Done    int64   `json:"done"`
	Suffix  *string `json:"suffix"`
}

// maxGroups is how many groups a page has at most: each comes with all its tasks that the user may see.
const maxGroups = 100

// groupReplies reads groups with those of their tasks that the user may see, in the order of their ids.
func (r *Request) groupReplies(ctx context.Context, ids ...uuid.UUID) ([]taskGroupReply, error) {
	s := r.server
	groups, err := s.Tasks().GetGroups(ctx, ids...)
	if err != nil || len(groups) == 0 {
		return nil, err
	}
	p := db.TaskOfGroupsParams{UserID: pgtype.Int4{Int32: int32(r.User.ID), Valid: !r.User.Superuser}, Roles: s.rolesWith(viewTask)}
	for _, g := range groups {
		p.TaskGroups = append(p.TaskGroups, pgUUID(g.ID))
	}
	rows, err := query(ctx, func(ctx context.Context) ([]db.TaskOfGroupsRow, error) { return s.q.TaskOfGroups(ctx, s.db, p) })
	if err != nil {
		return nil, err
	}
	tasks := map[uuid.UUID][]minimalTaskReply{}
	for _, t := range rows {
		key := uuid.UUID(t.ID.Bytes).String()
		tasks[t.TaskGroup.Bytes] = append(tasks[t.TaskGroup.Bytes], minimalTaskReply{
			head: r.headOf(s.own.tasks, key, t.CreatedAt.Time, t.CreatedAt.Time), PulpAPIVersion: apiVersion, Name: t.Name, State: t.State,
			UnblockedAt: pgTime(t.UnblockedAt), StartedAt: pgTime(t.StartedAt), FinishedAt: pgTime(t.FinishedAt),
		})
	}
	list := make([]taskGroupReply, len(groups))
	for i, g := range groups {
		list[i] = r.taskGroupReply(g, tasks[g.ID])
	}
	return list, nil
}

func (r *Request) taskGroupReply(g tasking.Group, tasks []minimalTaskReply) taskGroupReply {
	res := r.server.own.groups
	reply := taskGroupReply{
		PulpHref: r.Href(res, g.ID.String()), PRN: res.PRN(g.ID.String()),
		Description: g.Description, AllTasksDispatched: g.AllTasksDispatched, Waiting: g.Waiting, Skipped: g.Skipped, Running: g.Running,
		Completed: g.Completed, Canceled: g.Canceled, Failed: g.Failed, Canceling: g.Canceling,
		GroupProgressReports: []groupProgressReportReply{}, Tasks: some(tasks),
	}
	for _, p := range g.Progress {
		report := groupProgressReportReply{Message: p.Message, Code: p.Code, Done: p.Done}
		if p.Total != nil {
			report.Total = *p.Total
		}
		if p.Suffix != "" {
			report.Suffix = &p.Suffix
		}
		reply.GroupProgressReports = append(reply.GroupProgressReports, report)
	}
	return reply
}

// aGroup reads the group that the path names.
func (r *Request) aGroup(ctx context.Context) (taskGroupReply, error) {
	list, err := r.groupReplies(ctx, r.UUID())
	switch {
	case err != nil:
		return taskGroupReply{}, err
	case len(list) == 0:
		return taskGroupReply{}, NotFound("TaskGroup")
	}
	return list[0], nil
}

func (s *Server) listGroups(ctx context.Context, r *Request) (Reply, error) {
	found, err := r.Page(ctx, s.own.groupList)
	if err != nil {
		return Reply{}, err
	}
	ids := make([]uuid.UUID, len(found.Keys))
	for i, key := range found.Keys {
		ids[i] = uuid.MustParse(key)
	}
	list, err := r.groupReplies(ctx, ids...)
	if err != nil {
		return Reply{}, err
	}
	return OK(NewPage(found, list))
}

// mayGroup tells whether the user has a permission on all tasks of a group, and may see one of them at least. A group whose
// tasks the user may not see is not there for the user.
func (s *Server) mayGroup(ctx context.Context, r *Request, id uuid.UUID, permission string) error {
	if r.User.Superuser {
		return nil
	}
	counts, err := query(ctx, func(ctx context.Context) (db.TaskGroupPermittedRow, error) {
		return s.q.TaskGroupPermitted(ctx, s.db, db.TaskGroupPermittedParams{
			TaskGroup: pgUUID(id), UserID: int32(r.User.ID), View: s.rolesWith(viewTask), Roles: s.rolesWith(permission),
		})
	})
	switch {
	case err != nil:
		return err
	case counts.Visible == 0:
		return NotFound("TaskGroup")
	case permission != viewTask && counts.Permitted < counts.Tasks:
		return errDenied
	}
	return nil
}

func (s *Server) readGroup(ctx context.Context, r *Request) (Reply, error) {
	if err := s.mayGroup(ctx, r, r.UUID(), viewTask); err != nil {
		return Reply{}, err
	}
	reply, err := r.aGroup(ctx)
	if err != nil {
		return Reply{}, err
	}
	return OK(reply)
}

func (s *Server) mayCancelGroup(ctx context.Context, r *Request) error {
	return s.mayGroup(ctx, r, r.UUID(), "core.change_task")
}

func (s *Server) cancelGroup(ctx context.Context, r *Request, _ patchedTaskCancelBody) (Reply, error) {
	if _, err := s.Tasks().CancelGroup(ctx, r.UUID()); errors.Is(err, tasking.ErrNotFound) {
		return Reply{}, NotFound("TaskGroup")
	} else if err != nil {
		return Reply{}, err
	}
	body, err := r.aGroup(ctx)
	if err != nil {
		return Reply{}, err
	}
	reply := Reply{Status: http.StatusOK, Body: body}
	if body.Waiting+body.Running > 0 {
		reply.Status = http.StatusConflict
	}
	return reply, nil
}
