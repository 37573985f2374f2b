package api

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/filter"
	"github.com/pithworks/pith/tasking"
)

// own are the core's resources and collections.
type own struct {
	tasks, groups, schedules, workers, users, userRoles, profiles *Resource

	taskList, groupList, scheduleList, workerList, userList, userRoleList *Collection
}

// coreLabel is the label of core.
const coreLabel = "core"

// core is the component of what every installation has.
func (s *Server) core() Component {
	o := &s.own
	o.taskList, o.groupList, o.scheduleList, o.workerList, o.userList = s.taskCollection(), s.groupCollection(), s.scheduleCollection(), s.workerCollection(), s.userCollection()
	o.userRoleList = s.userRoleCollection()
	o.tasks = &Resource{
		Path: "tasks/", Name: "tasks", Key: "task", Model: taskModel, Noun: "Task", Tag: "Tasks",
		Existing: existing(func(ctx context.Context, ids []pgtype.UUID) ([]db.TaskStatesRow, error) {
			return s.q.TaskStates(ctx, s.db, ids)
		},
			func(row db.TaskStatesRow) pgtype.UUID { return row.ID }),
		Operations: append([]Operation{
			list("List tasks, newest first.", o.taskList, Page[taskReply]{}, s.listTasks, minimalParameter).also(Page[minimalTaskReply]{}),
			read("Read a task.", taskReply{}, s.readTask, minimalParameter).also(minimalTaskReply{}),
			{
				Method: http.MethodPatch, Path: wildcard, Verb: "cancel", Summary: "Cancel a task: only its state can be changed, and only to canceled.",
				Replies: map[int]any{http.StatusOK: taskReply{}, http.StatusConflict: taskReply{}}, Allow: s.mayCancelTask, Do: With(s.cancelTask),
			},
			{
				Method: http.MethodDelete, Path: wildcard, Verb: "delete", Summary: "Delete a task that is final.",
				Replies: map[int]any{http.StatusNoContent: nil, http.StatusConflict: nil}, Do: Bare(s.deleteTask),
			},
			{
				Method: http.MethodGet, Path: wildcard + "profile_artifacts/", Verb: "profile_artifacts", Summary: "List where the profiles of a task can be read.",
				Replies: map[int]any{http.StatusOK: profileArtifactReply{}}, Do: Bare(s.listProfiles),
			},
			{
				Method: http.MethodPost, Path: "purge/", Verb: "purge", Summary: "Dispatch a task that deletes old tasks.",
				Replies: map[int]any{http.StatusAccepted: AsyncOperationReply{}}, Do: With(s.purgeTasks),
			},
		}, RoleOperations("core.manage_roles_task", viewTask)...),
	}
	o.groups = &Resource{
		Path: "task-groups/", Name: "task_groups", Key: "task_group", Model: "core.taskgroup", Noun: "TaskGroup", Tag: "Task-Groups",
		Existing: existing(func(ctx context.Context, ids []pgtype.UUID) ([]db.TaskGroupReadRow, error) {
			return s.q.TaskGroupRead(ctx, s.db, ids)
		},
			func(row db.TaskGroupReadRow) pgtype.UUID { return row.ID }),
		Operations: []Operation{
			list("List task groups, newest first.", o.groupList, Page[taskGroupReply]{}, s.listGroups),
			read("Read a task group.", taskGroupReply{}, s.readGroup),
			{
				Method: http.MethodPatch, Path: wildcard, Verb: "cancel", Summary: "Cancel the tasks of a group that are not final.",
				Replies: map[int]any{http.StatusOK: taskGroupReply{}, http.StatusConflict: taskGroupReply{}}, Allow: s.mayCancelGroup, Do: With(s.cancelGroup),
			},
		},
	}
	o.schedules = &Resource{
		Path: "task-schedules/", Name: "task_schedules", Key: "task_schedule", Model: "core.taskschedule", Noun: "TaskSchedule", Tag: "Task-Schedules",
		Existing: existing(func(ctx context.Context, ids []pgtype.UUID) ([]db.TaskScheduleReadRow, error) {
			return s.q.TaskScheduleRead(ctx, s.db, ids)
		},
			func(row db.TaskScheduleReadRow) pgtype.UUID { return row.ID }),
		Operations: append([]Operation{
			list("List task schedules.", o.scheduleList, Page[taskScheduleReply]{}, s.listSchedules),
			read("Read a task schedule.", taskScheduleReply{}, s.readSchedule),
		}, RoleOperations("core.manage_roles_taskschedule", "core.view_taskschedule")...),
	}
	o.workers = &Resource{
		Path: "workers/", Name: "workers", Key: "worker", Model: "core.appstatus", Noun: "AppStatus", Tag: "Workers",
		Existing: existing(func(ctx context.Context, ids []pgtype.UUID) ([]db.AppStatusReadRow, error) {
			return s.q.AppStatusRead(ctx, s.db, db.AppStatusReadParams{IDs: ids, AppType: "worker"})
		}, func(row db.AppStatusReadRow) pgtype.UUID { return row.ID }),
		Operations: []Operation{
			list("List workers.", o.workerList, Page[workerReply]{}, s.listWorkers),
			read("Read a worker.", workerReply{}, s.readWorker),
		},
	}
	o.users = &Resource{
		Path: "users/", Name: "users", Key: "auth_user", ID: "id", Numbered: true, Whole: true, Model: "auth.user", Noun: "User", Tag: "Users",
		Existing: s.existingUsers,
		Operations: []Operation{
			list("List users.", o.userList, Page[userReply]{}, s.listUsers).allow(s.maySuper),
			read("Read a user.", userReply{}, s.readUser).allow(s.maySuper),
			{Method: http.MethodPost, Verb: "create", Summary: "Create a user.", Replies: map[int]any{http.StatusCreated: userReply{}}, Allow: s.maySuper, Do: With(s.createUser)},
			{Method: http.MethodPut, Path: wildcard, Verb: "update", Summary: "Change a user.", Replies: map[int]any{http.StatusOK: userReply{}}, Allow: s.mayUser, Do: With(s.putUser)},
			{Method: http.MethodPatch, Path: wildcard, Verb: "partial_update", Summary: "Change some fields of a user.", Replies: map[int]any{http.StatusOK: userReply{}}, Allow: s.mayUser, Do: With(s.patchUser)},
			{Method: http.MethodDelete, Path: wildcard, Verb: "delete", Summary: "Delete a user.", Replies: map[int]any{http.StatusNoContent: nil}, Allow: s.mayUser, Do: Bare(s.deleteUser)},
		},
	}
	o.userRoles = &Resource{
		Path: "roles/", Parent: o.users, Name: "users_roles", Key: "auth_users_user_role", Model: "core.userrole", Noun: "UserRole", Tag: "Users: Roles",
		Locate: s.locateUserRoles, Identify: s.identifyUserRoles,
		Operations: []Operation{
			list("List the roles of a user.", o.userRoleList, Page[userRoleReply]{}, s.listUserRoles).allow(s.mayUser),
			read("Read a role of a user.", userRoleReply{}, s.readUserRole).allow(s.mayUser),
			{Method: http.MethodPost, Verb: "create", Summary: "Give a user a role.", Replies: map[int]any{http.StatusCreated: userRoleReply{}}, Allow: s.mayUser, Do: With(s.createUserRole)},
			{Method: http.MethodDelete, Path: wildcard, Verb: "delete", Summary: "Take a role from a user.", Replies: map[int]any{http.StatusNoContent: nil}, Allow: s.mayUser, Do: Bare(s.deleteUserRole)},
		},
	}
	return Component{
		Label: coreLabel, Version: s.cfg.Version, Roles: coreRoles, Package: "pulpcore", Module: "pulpcore.app",
		Resources: append([]*Resource{
			s.statusResource(), s.livezResource(), s.docsResource(), s.rootResource(), s.artifactsResource(),
			o.tasks, o.groups, o.schedules, o.workers, o.users, o.userRoles,
		}, s.pithResources()...),
	}
}

var minimalParameter = Parameter{Name: "minimal", Type: "boolean", Description: "Answer the short form of tasks."}

// existing makes a Resource's Existing of a query by ids.
func existing[T any](read func(context.Context, []pgtype.UUID) ([]T, error), id func(T) pgtype.UUID) func(context.Context, []string) ([]string, error) {
	return func(ctx context.Context, keys []string) (found []string, err error) {
		rows, err := query(ctx, func(ctx context.Context) ([]T, error) { return read(ctx, pgUUIDs(keys)) })
		for _, row := range rows {
			found = append(found, uuid.UUID(id(row).Bytes).String())
		}
		return found, err
	}
}

// list makes the operation that lists a collection.
func list(summary string, c *Collection, reply any, do func(context.Context, *Request) (Reply, error), more ...Parameter) Operation {
	return Operation{
		Method: http.MethodGet, Verb: "list", Summary: summary, Collection: c, Parameters: more,
		Replies: map[int]any{http.StatusOK: reply}, Do: Bare(do),
	}
}

// read makes the operation that reads one object.
func read(summary string, reply any, do func(context.Context, *Request) (Reply, error), more ...Parameter) Operation {
	return Operation{
		Method: http.MethodGet, Path: wildcard, Verb: "read", Summary: summary, Parameters: more,
		Replies: map[int]any{http.StatusOK: reply}, Do: Bare(do),
	}
}

// keyOf is the key of a resource's object that an href or a PRN names, for filters.
func (s *Server) keyOf(text string, res *Resource) (string, error) {
	o, ok := s.parse(text)
	switch {
	case !ok || o.Resource != res || o.Key == "" && len(o.Keys) == 0:
		return "", filter.ListError("URI not valid: " + text)
	case o.Key == "": // of an object whose path has keys of parents; the last is that in the PRN, too
		return o.Keys[len(o.Keys)-1], nil
	}
	return o.Key, nil
}

// referenceTo reads hrefs and PRNs of a resource's objects, for filters.
func (s *Server) referenceTo(res func() *Resource) func(string) (any, error) {
	return func(text string) (any, error) {
		key, err := s.keyOf(text, res())
		if err != nil {
			return nil, err
		}
		return uuid.Parse(key)
	}
}

// orNull reads the word null, too, which asks for objects that refer to nothing.
func orNull(parse func(string) (any, error)) func(string) (any, error) {
	return func(text string) (any, error) {
		if text == "null" {
			return filter.Null{}, nil
		}
		return parse(text)
	}
}

// anyOr reads the href of a whole collection, too, which asks for any object of the resource.
func (s *Server) anyOr(parse func(string) (any, error), res func() *Resource) func(string) (any, error) {
	return func(text string) (any, error) {
		if o, ok := s.parse(text); ok && o.Resource == res() && len(o.Keys) == 0 {
			return filter.OfType(o.Resource.Model), nil
		}
		return parse(text)
	}
}

var taskNames = []string{"", "in", "contains", "ne"}

// ids are the filters by id that all lists have.
func (s *Server) ids(column string, res func() *Resource) []filter.Field {
	parse := s.referenceTo(res)
	return []filter.Field{
		{Name: "pulp_id", Column: column, Kind: filter.UUID, Lookups: []string{"in"}},
		{Name: "pulp_href", Column: column, Kind: filter.UUID, Lookups: []string{"in"}, Parse: parse},
		{Name: "prn", Column: column, Kind: filter.UUID, Lookups: []string{"in"}, Parse: parse},
	}
}

func (s *Server) taskCollection() *Collection {
	states := make([]string, len(tasking.States))
	for i, state := range tasking.States {
		states[i] = string(state)
	}
	slices.Sort(states)
	rare := slices.DeleteFunc(slices.Clone(states), func(state string) bool { return state == string(tasking.Completed) })
	task := orNull(s.referenceTo(func() *Resource { return s.own.tasks }))
	group := orNull(s.referenceTo(func() *Resource { return s.own.groups }))
	reserved := func(prefix string) naming {
		return func(text string, o Object) (any, error) { return prefix + resourceName(text, o), nil }
	}
	either := "NOT EXISTS (SELECT FROM unnest(%s) v WHERE NOT (v = ANY (reserved) OR 'shared:' || v = ANY (reserved)))"
	return &Collection{
		Relation: "api_task",
		Filters: filter.Set{
			Key: "id", Newest: "id DESC",
			Orders: map[string]string{
				"pulp_created": "id", "pulp_last_updated": "id", "name": "name", "state": "state::text", "logging_cid": "logging_cid",
				"unblocked_at": "unblocked_at", "started_at": "started_at", "finished_at": "finished_at", "pulp_id": "id",
				"error": "error", "result": "result", "immediate": "immediate", "deferred": "deferred", "versions": "versions",
				"reserved_resources_record": "reserved",
				// What all tasks have alike here, or not at all.
				"profile_options": "(id IS NULL)", "pulp_api_version": "(id IS NULL)",
			},
			Fields: append(s.ids("id", func() *Resource { return s.own.tasks }), []filter.Field{
				{Name: "state", Column: "state", Enum: "task_state", Kind: filter.Choice, Choices: states, Rare: rare, ByRare: "id IN (SELECT s.id FROM api_task_state s WHERE s.state = ANY (%s))"},
				{Name: "name", Column: "name", Kind: filter.Text, Lookups: taskNames},
				{Name: "logging_cid", Column: "logging_cid", Kind: filter.Text, Lookups: []string{"", "contains"}},
				{Name: "pulp_created", Column: "created_at", Kind: filter.Time},
				{Name: "unblocked_at", Column: "unblocked_at", Kind: filter.Time},
				{Name: "started_at", Column: "started_at", Kind: filter.Time},
				{Name: "finished_at", Column: "finished_at", Kind: filter.Time},
				{Name: "parent_task", Column: "parent_task", Kind: filter.UUID, Parse: s.anyOr(task, func() *Resource { return s.own.tasks }), Lookups: []string{""}, ByType: "(parent_task IS NOT NULL AND cardinality(%s) > 0)"},
				{Name: "child_tasks", Column: "id", Kind: filter.UUID, Parse: task, Lookups: []string{""}, Condition: "id = (SELECT c.parent_task FROM task c WHERE c.id = %s)"},
				{Name: "task_group", Column: "task_group", Kind: filter.UUID, Parse: s.anyOr(group, func() *Resource { return s.own.groups }), Lookups: []string{""}, ByType: "(task_group IS NOT NULL AND cardinality(%s) > 0)"},
				{Name: "worker", Kind: filter.Text, Lookups: []string{"", "in"}, Condition: "false"},
				{Name: "created_resources", Kind: filter.Text, Lookups: []string{""}, Condition: "id IN (SELECT c.task_id FROM created_resource c WHERE c.resource = %s)"},
				{Name: "reserved_resources", Kind: filter.Array, Column: "reserved", Condition: either},
				{Name: "exclusive_resources", Kind: filter.Array, Column: "reserved"},
				{Name: "shared_resources", Kind: filter.Array, Column: "reserved"},
			}...),
		},
		names: map[string]naming{
			"created_resources": createdResource, "reserved_resources": reserved(""), "exclusive_resources": reserved(""), "shared_resources": reserved("shared:"),
		},
		Scope: func(ctx context.Context, r *Request) (string, []any, error) {
			return r.Visible(ctx, s.own.tasks, viewTask)
		},
		Count: s.countTasks,
	}
}

// countTasks counts all tasks that the user may see, or, as most are completed, all but those in the other states.
func (s *Server) countTasks(ctx context.Context, r *Request, all bool) (int, bool, error) {
	state := ""
	for name := range r.Query {
		switch {
		case name == "state":
			state = r.last(name)
		case name != "ordering" && !slices.Contains(general, name):
			return 0, false, nil
		}
	}
	switch {
	case state != "" && (state != string(tasking.Completed) || !all):
		return 0, false, nil
	case !all:
		n, err := query(ctx, func(ctx context.Context) (int64, error) {
			return s.q.UserRoleTaskCount(ctx, s.db, db.UserRoleTaskCountParams{UserID: int32(r.User.ID), Roles: s.rolesWith(viewTask)})
		})
		return int(n), true, err
	}
	count := s.q.TaskCount
	if state != "" {
		count = s.q.TaskCompletedCount
	}
	n, err := query(ctx, func(ctx context.Context) (int64, error) { return count(ctx, s.db) })
	return int(n), true, err
}

// Visible is a Collection's Scope: the objects of a resource on which the user has a permission by a role. They are known by
// the column id, a UUID.
func (r *Request) Visible(ctx context.Context, res *Resource, permission string) (condition string, args []any, err error) {
	if r.User.Superuser {
		return "true", nil, nil
	}
	roles := r.server.rolesWith(permission)
	held, err := query(ctx, func(ctx context.Context) ([]string, error) {
		return r.server.q.UserRoleHeld(ctx, r.server.db, db.UserRoleHeldParams{UserID: int32(r.User.ID)})
	})
	if err != nil {
		return "", nil, err
	}
	if slices.ContainsFunc(held, func(name string) bool { return slices.Contains(roles, name) }) { // on all objects
		return "true", nil, nil
	}
	return "id IN (SELECT a.object::uuid FROM user_role a WHERE a.user_id = $1::int AND a.role = ANY ($2::text[]) AND a.model = $3::text)",
		[]any{r.User.ID, roles, res.Model}, nil
}

// resourceName is the name by which tasks reserve what an href names; other texts are names already.
func resourceName(text string, o Object) string {
	if o.named() && !strings.HasPrefix(text, "prn:") {
		return o.PRN()
	}
	return text
}

// createdResource is the PRN of what an href or a PRN names, which is to be there.
func createdResource(text string, o Object) (any, error) {
	switch {
	case o.gone:
		_, model, _ := strings.Cut(o.Resource.Model, ".")
		return nil, filter.ListError("URI " + text + " not found for " + model + ".")
	case !o.named():
		return nil, filter.ListError("URI not valid: " + text)
	}
	return o.PRN(), nil
}

func (s *Server) groupCollection() *Collection {
	return &Collection{
		Relation: "task_group", Lax: true, MaxLimit: maxGroups,
		Filters: filter.Set{Key: "id", Newest: "id DESC"},
		Scope: func(ctx context.Context, r *Request) (string, []any, error) {
			condition, args, err := r.Visible(ctx, s.own.tasks, viewTask)
			if condition != "true" { // of one of its tasks at least
				condition = "id IN (SELECT v.task_group FROM task v WHERE v." + condition + ")"
			}
			return condition, args, err
		},
	}
}

func (s *Server) scheduleCollection() *Collection {
	return &Collection{
		Relation: "task_schedule",
		Filters: filter.Set{
			Key: "id", Newest: "created_at DESC, id",
			Orders: map[string]string{"pulp_created": "created_at", "pulp_last_updated": "created_at", "name": "name", "task_name": "task_name", "next_dispatch": "next_dispatch", "pulp_id": "id", "dispatch_interval": "dispatch_interval"},
			Fields: append(s.ids("id", func() *Resource { return s.own.schedules }), []filter.Field{
				{Name: "name", Column: "name", Kind: filter.Text, Lookups: []string{"", "contains"}},
				{Name: "task_name", Column: "task_name", Kind: filter.Text, Lookups: []string{"", "contains"}},
			}...),
		},
		Scope: func(ctx context.Context, r *Request) (string, []any, error) {
			return r.Visible(ctx, s.own.schedules, "core.view_taskschedule")
		},
	}
}

func (s *Server) workerCollection() *Collection {
	return &Collection{
		Relation: "api_worker",
		Filters: filter.Set{
			Key: "id", Newest: "created_at DESC, id",
			Orders: map[string]string{"pulp_created": "created_at", "pulp_last_updated": "last_heartbeat", "name": "name", "last_heartbeat": "last_heartbeat", "pulp_id": "id", "app_type": "app_type", "ttl": "ttl", "versions": "versions"},
			Fields: append(s.ids("id", func() *Resource { return s.own.workers }), []filter.Field{
				{Name: "name", Column: "name", Kind: filter.Text},
				{Name: "last_heartbeat", Column: "last_heartbeat", Kind: filter.Time},
				{Name: "online", Column: "online", Kind: filter.Bool},
				{Name: "missing", Column: "(NOT online)", Kind: filter.Bool},
			}...),
		},
	}
}

func (s *Server) userCollection() *Collection {
	parse := func(text string) (any, error) {
		key, err := s.keyOf(text, s.own.users)
		if err != nil {
			return nil, err
		}
		return strconv.ParseInt(key, 10, 64)
	}
	return &Collection{
		Relation: "auth_user",
		Filters: filter.Set{
			Key: "id", Newest: "id DESC",
			Orders: map[string]string{"id": "id", "username": "username", "first_name": "first_name", "last_name": "last_name", "email": "email", "is_active": "is_active", "is_staff": "is_staff", "date_joined": "date_joined"},
			Fields: []filter.Field{
				{Name: "id", Column: "id", Kind: filter.Int, Lookups: []string{"", "in"}},
				{Name: "pulp_id", Kind: filter.UUID, Lookups: []string{"in"}, Condition: "false"}, // no user's id is one
				{Name: "prn", Column: "id", Kind: filter.Int, Lookups: []string{"in"}, Parse: parse},
				{Name: "pulp_href", Column: "id", Kind: filter.Int, Lookups: []string{"in"}, Parse: parse},
				{Name: "username", Column: "username", Kind: filter.Text},
				{Name: "first_name", Column: "first_name", Kind: filter.Text},
				{Name: "last_name", Column: "last_name", Kind: filter.Text},
				{Name: "email", Column: "email", Kind: filter.Text},
				{Name: "is_active", Column: "is_active", Kind: filter.Bool},
				{Name: "is_staff", Column: "is_staff", Kind: filter.Bool},
			},
		},
	}
}
