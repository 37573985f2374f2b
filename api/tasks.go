package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
)

// head is what most replies begin with.
type head struct {
	PulpHref        string `json:"pulp_href"`
	PRN             string `json:"prn" doc:"The Pulp Resource Name."`
	PulpCreated     Time   `json:"pulp_created"`
	PulpLastUpdated Time   `json:"pulp_last_updated"`
}

// headOf is the head of an object that has never been changed since a time.
func (r *Request) headOf(res *Resource, key string, created, updated time.Time) head {
	return head{r.Href(res, key), res.PRN(key), Time{created}, Time{updated}}
}

type taskReply struct {
	head
	State                   string                `json:"state" doc:"One of waiting, skipped, running, completed, failed, canceled and canceling."`
	Name                    string                `json:"name" doc:"The name of the task type."`
	LoggingCID              string                `json:"logging_cid" doc:"The correlation id of the task's logs."`
	CreatedBy               *string               `json:"created_by" doc:"The href of the user who dispatched it."`
	UnblockedAt             *Time                 `json:"unblocked_at"`
	StartedAt               *Time                 `json:"started_at"`
	FinishedAt              *Time                 `json:"finished_at"`
	Error                   *tasking.Error        `json:"error"`
	Worker                  *string               `json:"worker" doc:"Deprecated: always null. See current_task of workers."`
	ParentTask              *string               `json:"parent_task"`
	ChildTasks              []string              `json:"child_tasks"`
	TaskGroup               *string               `json:"task_group"`
	ProgressReports         []progressReportReply `json:"progress_reports"`
	CreatedResources        []string              `json:"created_resources"`
	CreatedResourcePRNs     []string              `json:"created_resource_prns"`
	ReservedResourcesRecord []string              `json:"reserved_resources_record"`
	Result                  *json.RawMessage      `json:"result"`
	PulpAPIVersion          string                `json:"pulp_api_version"`
}

type minimalTaskReply struct {
	head
	PulpAPIVersion string  `json:"pulp_api_version"`
	Name           string  `json:"name"`
	State          string  `json:"state"`
	UnblockedAt    *Time   `json:"unblocked_at"`
	StartedAt      *Time   `json:"started_at"`
	FinishedAt     *Time   `json:"finished_at"`
	Worker         *string `json:"worker"`
}

type progressReportReply struct {
	Message string  `json:"message"`
	Code    string  `json:"code"`
	State   string  `json:"state"`
	Total   *int64  `json:"total"`
	Done    int64   `json:"done"`
	Suffix  *string `json:"suffix"`
}

const apiVersion = "v3"

// unavailable stands for what a task created and is gone.
const unavailable = "<unavailable>"

// taskReply is a task with who created it and the hrefs of what it has created.
func (r *Request) taskReply(t tasking.Task, creator *string, created map[string]string) taskReply {
	res := r.server.own.tasks
	reply := taskReply{
		head:  r.headOf(res, t.ID.String(), t.CreatedAt, t.CreatedAt),
		State: string(t.State), Name: t.Name, LoggingCID: t.CorrelationID, CreatedBy: creator,
		UnblockedAt: timePtr(t.UnblockedAt), StartedAt: timePtr(t.StartedAt), FinishedAt: timePtr(t.FinishedAt), Error: t.Error,
		ParentTask: r.hrefOrNull(res, t.Parent), ChildTasks: []string{}, TaskGroup: r.hrefOrNull(r.server.own.groups, t.Group),
		ProgressReports: []progressReportReply{}, CreatedResources: []string{}, CreatedResourcePRNs: some(t.Created),
		ReservedResourcesRecord: t.Reserved, PulpAPIVersion: apiVersion,
	}
	for _, child := range t.Children {
		reply.ChildTasks = append(reply.ChildTasks, r.Href(res, child.String()))
	}
	for _, p := range t.Progress {
		report := progressReportReply{Message: p.Message, Code: p.Code, State: string(p.State), Total: p.Total, Done: p.Done}
		if p.Suffix != "" {
			report.Suffix = &p.Suffix
		}
		reply.ProgressReports = append(reply.ProgressReports, report)
	}
	for _, prn := range t.Created {
		reply.CreatedResources = append(reply.CreatedResources, cmp.Or(created[prn], unavailable))
	}
	if t.Result != nil {
		reply.Result = &t.Result
	}
	return reply
}

func (r *Request) hrefOrNull(res *Resource, id *uuid.UUID) *string {
	if id == nil {
		return nil
	}
	href := r.Href(res, id.String())
	return &href
}

func (r *Request) minimalTaskReply(t tasking.Task) minimalTaskReply {
	return minimalTaskReply{
		head: r.headOf(r.server.own.tasks, t.ID.String(), t.CreatedAt, t.CreatedAt), PulpAPIVersion: apiVersion, Name: t.Name, State: string(t.State),
		UnblockedAt: timePtr(t.UnblockedAt), StartedAt: timePtr(t.StartedAt), FinishedAt: timePtr(t.FinishedAt),
	}
}

// created are the hrefs of what tasks have created, by PRN, as far as it is still there.
func (r *Request) created(ctx context.Context, tasks ...tasking.Task) (map[string]string, error) {
	var prns []string
	for _, t := range tasks {
		prns = append(prns, t.Created...)
	}
	return r.hrefs(ctx, prns, true)
}

// minimal reports whether the client wants the short form.
func (r *Request) minimal() bool {
	on, err := strconv.ParseBool(r.last("minimal"))
	return err == nil && on
}

// creators are the hrefs of those who dispatched these tasks.
func (r *Request) creators(ctx context.Context, ids []string) (map[string]string, error) {
	rows, err := query(ctx, func(ctx context.Context) ([]db.UserRoleOfObjectsRow, error) {
		return r.server.q.UserRoleOfObjects(ctx, r.server.db, db.UserRoleOfObjectsParams{Model: taskModel, Objects: ids})
	})
	out := map[string]string{}
	for _, row := range rows {
		if row.Role == roleDispatcher {
			out[row.Object] = r.Href(r.server.own.users, strconv.Itoa(int(row.UserID)))
		}
	}
	return out, err
}

const (
	taskModel      = "core.task"
	roleDispatcher = "core.task_user_dispatcher"
)

const (
	// maxPageBytes is about how long a page of tasks may be; one of a single task may be longer.
	maxPageBytes = 16 << 20
	// tasksPerRead bounds what is in memory of which maxPageBytes does not know yet: the names of other objects.
	tasksPerRead = 100
	// bytesPerName is about what the href or PRN of an object takes.
	bytesPerName = 80
)

// readTasks reads the tasks of a page in the order of their ids. It ends the page where they become too large: where results and
// errors do before it reads them.
func (r *Request) readTasks(ctx context.Context, found *Found) (all []tasking.Task, err error) {
	sizes, err := query(ctx, func(ctx context.Context) ([]db.TaskSizesRow, error) {
		return r.server.q.TaskSizes(ctx, r.server.db, pgUUIDs(found.Keys))
	})
	if err != nil {
		return nil, err
	}
	sizeOf := map[string]int{}
	for _, row := range sizes {
		sizeOf[uuid.UUID(row.ID.Bytes).String()] = int(row.Bytes)
	}
	bytes := 0
	for i, key := range found.Keys {
		if bytes += sizeOf[key]; bytes > maxPageBytes && i > 0 {
			r.end(found, i)
			break
		}
	}
	bytes = 0
	for keys := range slices.Chunk(found.Keys, tasksPerRead) {
		ids := make([]uuid.UUID, len(keys))
		for i, key := range keys {
			ids[i] = uuid.MustParse(key)
		}
		tasks, err := r.server.Tasks().GetMany(ctx, ids...)
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			key := t.ID.String()
			bytes += sizeOf[key] + bytesPerName*(len(t.Children)+len(t.Created)+len(t.Reserved))
			if bytes > maxPageBytes && len(all) > 0 {
				r.end(found, slices.Index(found.Keys, key))
				return all, nil
			}
			all = append(all, t)
		}
	}
	return all, nil
}

func (s *Server) listTasks(ctx context.Context, r *Request) (Reply, error) {
	found, err := r.Page(ctx, s.own.taskList)
	if err != nil {
		return Reply{}, err
	}
	tasks, err := r.readTasks(ctx, &found)
	if err != nil {
		return Reply{}, err
	}
	if r.minimal() {
		list := make([]minimalTaskReply, len(tasks))
		for i, t := range tasks {
			list[i] = r.minimalTaskReply(t)
		}
		return OK(NewPage(found, list))
	}
	creators, err := r.creators(ctx, found.Keys)
	if err != nil {
		return Reply{}, err
	}
	created, err := r.created(ctx, tasks...)
	if err != nil {
		return Reply{}, err
	}
	list := make([]taskReply, len(tasks))
	for i, t := range tasks {
		list[i] = r.taskReply(t, lookup(creators, t.ID.String()), created)
	}
	return OK(NewPage(found, list))
}

func lookup(m map[string]string, key string) *string {
	if v, ok := m[key]; ok {
		return &v
	}
	return nil
}

// aTask reads the task that the path names, if the user may see it and do what needs a permission.
func (s *Server) aTask(ctx context.Context, r *Request, permission string) (tasking.Task, error) {
	t, err := s.Tasks().Get(ctx, r.UUID())
	if errors.Is(err, tasking.ErrNotFound) {
		return t, NotFound("Task")
	}
	if err == nil {
		err = r.May(ctx, s.own.tasks, permission, viewTask)
	}
	return t, err
}

func (s *Server) readTask(ctx context.Context, r *Request) (Reply, error) {
	t, err := s.aTask(ctx, r, viewTask)
	if err != nil {
		return Reply{}, err
	}
	if r.minimal() {
		return OK(r.minimalTaskReply(t))
	}
	creators, err := r.creators(ctx, []string{r.ID})
	if err != nil {
		return Reply{}, err
	}
	created, err := r.created(ctx, t)
	if err != nil {
		return Reply{}, err
	}
	return OK(r.taskReply(t, lookup(creators, r.ID), created))
}

// canceledState is the one state that a client can ask for.
type canceledState string

// Choices is that state alone.
func (canceledState) Choices() []string { return []string{string(tasking.Canceled)} }

type patchedTaskCancelBody struct {
	State canceledState `json:"state" api:"required" doc:"The desired state; only canceled is possible."`
}

func (s *Server) mayCancelTask(ctx context.Context, r *Request) error {
	_, err := s.aTask(ctx, r, "core.change_task")
	return err
}

func (s *Server) cancelTask(ctx context.Context, r *Request, _ patchedTaskCancelBody) (Reply, error) {
	state, err := s.Tasks().Cancel(ctx, r.UUID())
	if err != nil && !errors.Is(err, tasking.ErrNotFound) {
		return Reply{}, err
	}
	t, err := s.aTask(ctx, r, "core.change_task")
	if err != nil {
		return Reply{}, err
	}
	created, err := r.created(ctx, t)
	if err != nil {
		return Reply{}, err
	}
	// Who created it is not told here, as in Pulp. What has been canceled may have failed since.
	reply := Reply{Status: http.StatusOK, Body: r.taskReply(t, nil, created)}
	if state != tasking.Canceling && state != tasking.Canceled {
		reply.Status = http.StatusConflict
	}
	return reply, nil
}

func (s *Server) deleteTask(ctx context.Context, r *Request) (Reply, error) {
	if _, err := s.aTask(ctx, r, "core.delete_task"); err != nil {
		return Reply{}, err
	}
	switch err := s.Tasks().Delete(ctx, r.UUID()); {
	case errors.Is(err, tasking.ErrNotFound):
		return Reply{}, NotFound("Task")
	case errors.Is(err, tasking.ErrUnfinished):
		return Reply{Status: http.StatusConflict}, nil
	case err != nil:
		return Reply{}, err
	}
	return Reply{Status: http.StatusNoContent}, nil
}

// finalState is a state in which a task can be purged.
type finalState string

// Choices are the states, in Pulp's order.
func (finalState) Choices() []string { return []string{"skipped", "completed", "failed", "canceled"} }

type purgeBody struct {
	IgnoreUnknown
	FinishedBefore *Time        `json:"finished_before" doc:"Purge tasks that finished earlier. Default: 30 days ago."`
	States         []finalState `json:"states" default:"[\"completed\"]" doc:"Purge tasks in these states only."`
}

// purgeAge is how old tasks must be that are purged, unless the client says otherwise.
const purgeAge = 30 * 24 * time.Hour

func (s *Server) purgeTasks(ctx context.Context, r *Request, body purgeBody) (Reply, error) {
	args := tasking.Purge{FinishedBefore: time.Now().UTC().Add(-purgeAge).Truncate(24 * time.Hour), States: []tasking.State{tasking.Completed}}
	if body.FinishedBefore != nil {
		args.FinishedBefore = body.FinishedBefore.Time
	}
	if body.States != nil {
		args.States = []tasking.State{}
		for _, state := range body.States {
			args.States = append(args.States, tasking.State(state))
		}
	}
	if !r.User.Superuser {
		args.Owner = r.User.ID
	}
	return r.Dispatch(ctx, tasking.Request{Name: builtin.Purge, Args: args})
}

// diagnostics are the profiles that the client wants of tasks. Those that Pulp has and Pith has not are passed over.
func (r *Request) diagnostics() (names []string) {
	for name := range strings.SplitSeq(strings.Join(r.Header.Values("X-Task-Diagnostics"), ","), ",") {
		if name = strings.TrimSpace(name); slices.Contains(tasking.Profiles, name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Dispatch hands out a task for the user who asks, and answers 202 with its href.
func (r *Request) Dispatch(ctx context.Context, req tasking.Request) (Reply, error) {
	req.CorrelationID, req.Diagnostics, req.Owner = correlationID(ctx), r.diagnostics(), r.User.ID
	if req.Immediate {
		ctx = context.WithoutCancel(ctx) // a client that hangs up does not end what runs for it
	}
	d, err := r.server.Tasks().Dispatch(ctx, req)
	switch {
	case errors.Is(err, tasking.ErrOwnerGone):
		return Reply{}, badCredentials(r.Request)
	case err != nil && d.ID == uuid.Nil:
		return Reply{}, err
	case err != nil: // it was dispatched: the sweep ends it, if nobody else does
		r.server.cfg.Log.Warn("end of an immediate task is not recorded", "task", d.ID, "correlation_id", req.CorrelationID, "err", err)
	}
	return Reply{Status: http.StatusAccepted, Body: AsyncOperationReply{r.Href(r.server.own.tasks, d.ID.String())}}, nil
}
