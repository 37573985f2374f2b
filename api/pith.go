package api

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/tasking"
)

// pithBase is where what Pulp has not is served.
const pithBase = "/pith/api/"

type dispatchBody struct {
	Name               string            `json:"name" api:"required" doc:"The name of a dispatchable task type: see task-types/."`
	Args               json.RawMessage   `json:"args" doc:"The arguments, of whatever type the task type takes."`
	ExclusiveResources []string          `json:"exclusive_resources" doc:"Hrefs, PRNs or other names of what the task takes for itself. Domains: superusers only."`
	SharedResources    []string          `json:"shared_resources" doc:"Hrefs, PRNs or other names of what the task shares."`
	Immediate          *bool             `json:"immediate" doc:"Run it before the reply, if its resources are free. Default: false."`
	Deferred           *bool             `json:"deferred" doc:"May be left to a worker. Default: true."`
	TaskGroup          *string           `json:"task_group" doc:"The href or PRN of the group that it belongs to."`
	Versions           map[string]string `json:"versions" doc:"Least version of each component that a worker must have. Default: the type's."`
	Priority           *int              `json:"priority" doc:"Higher is claimed first, from -10000 to 10000; superusers alone may ask for more than 0. Default: 0."`
	NotBefore          *Time             `json:"not_before" doc:"Not queued before this time."`
}

// mayDispatch tells whether the user may dispatch tasks.
func (s *Server) mayDispatch(ctx context.Context, r *Request) error {
	if r.User.Superuser {
		return nil
	}
	have, err := r.permissions(ctx, s.own.tasks, "")
	if err != nil {
		return err
	}
	if slices.Contains(have, "core.add_task") {
		return nil
	}
	return errDenied
}

// dispatchable is the problem that no such type may be dispatched, by the name of its field.
func (s *Server) dispatchable(field, name string) error {
	if cfg, ok := s.Tasks().Registry().Config(name); !ok || !cfg.Dispatchable {
		return FieldErrors{field: []string{fmt.Sprintf("%q is no task type that can be dispatched: see %stask-types/.", name, pithBase)}}
	}
	return nil
}

// reserve sets the names by which a task reserves what hrefs name.
func (s *Server) reserve(ctx context.Context, exclusive, shared []string) (names, sharedNames []string, err error) {
	texts := slices.Concat(exclusive, shared)
	objects, err := s.Resolve(ctx, texts...)
	if err != nil {
		return nil, nil, err
	}
	for i, text := range texts {
		texts[i] = resourceName(text, objects[i])
	}
	return texts[:len(exclusive):len(exclusive)], texts[len(exclusive):], nil
}

// domains is what the names of domains begin with. All tasks share the one that there is.
var domains = tasking.Domain[:strings.LastIndexByte(tasking.Domain, ':')+1]

// mayHinder refuses what holds up all others or goes before them, unless a superuser asks for it.
func (r *Request) mayHinder(exclusive, shared []string, priority *int) error {
	if r.User.Superuser {
		return nil
	}
	wrong := FieldErrors{}
	isDomain := func(name string) bool { return strings.HasPrefix(name, domains) }
	if slices.ContainsFunc(exclusive, isDomain) {
		wrong.Add("exclusive_resources", "Only superusers may name domains.")
	}
	if slices.ContainsFunc(shared, isDomain) {
		wrong.Add("shared_resources", "Only superusers may name domains.")
	}
	if priority != nil && *priority > 0 {
		wrong.Add("priority", "Only superusers may dispatch before others: must be 0 or less.")
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// errNoGroup is the problem that the group of a task is not there for the user.
var errNoGroup = FieldErrors{"task_group": []string{"Object does not exist."}}

func (s *Server) dispatchTask(ctx context.Context, r *Request, body dispatchBody) (Reply, error) {
	if err := s.dispatchable("name", body.Name); err != nil {
		return Reply{}, err
	}
	exclusive, shared, err := s.reserve(ctx, body.ExclusiveResources, body.SharedResources)
	if err != nil {
		return Reply{}, err
	}
	if err := r.mayHinder(exclusive, shared, body.Priority); err != nil {
		return Reply{}, err
	}
	req := tasking.Request{Name: body.Name, Args: body.Args, Options: tasking.Options{
		Exclusive: exclusive, Shared: shared, Versions: body.Versions,
		Immediate: body.Immediate != nil && *body.Immediate, NotDeferred: body.Deferred != nil && !*body.Deferred,
	}}
	if body.Args == nil {
		req.Args = nil
	}
	if body.Priority != nil {
		req.Priority = *body.Priority
	}
	if body.NotBefore != nil {
		req.NotBefore = body.NotBefore.Time
	}
	if body.TaskGroup != nil {
		key, err := s.keyOf(*body.TaskGroup, s.own.groups)
		if err != nil {
			return Reply{}, FieldErrors{"task_group": []string{err.Error()}}
		}
		id := uuid.MustParse(key)
		err = s.mayGroup(ctx, r, id, "core.change_task")
		if p, ok := problem(err); ok && p.Status == http.StatusNotFound {
			return Reply{}, errNoGroup
		} else if err != nil {
			return Reply{}, err
		}
		req.Group = &id
	}
	reply, err := r.Dispatch(ctx, req)
	switch {
	case errors.Is(err, tasking.ErrInvalid):
		return reply, invalidFields(err)
	case errors.Is(err, tasking.ErrNotFound):
		return reply, errNoGroup
	}
	return reply, err
}

// invalidFields are what package tasking finds wrong with a body, whose fields it names as the body does.
func invalidFields(err error) FieldErrors {
	list := []error{err}
	if several, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err); ok {
		list = several.Unwrap()
	}
	wrong := FieldErrors{}
	for _, err := range list {
		if e, ok := errors.AsType[*tasking.InvalidError](err); ok {
			wrong.Add(cmp.Or(e.Field, NonField), e.Text)
		}
	}
	return wrong
}

type explainReply struct {
	Task           string       `json:"task"`
	State          string       `json:"state"`
	Why            string       `json:"why" doc:"Why the task is not running, in one sentence."`
	Places         []placeReply `json:"places" doc:"Where it stands in the queues of its resources, those that it waits for first."`
	NotBefore      *Time        `json:"not_before" doc:"Set where it has no place in the queues yet."`
	Ahead          int          `json:"ahead" doc:"How many runnable tasks are claimed before it."`
	WorkersOnline  int          `json:"workers_online"`
	WorkersCapable int          `json:"workers_capable" doc:"How many of them can run it."`
}

type placeReply struct {
	Resource        string  `json:"resource"`
	Exclusive       bool    `json:"exclusive"`
	Granted         bool    `json:"granted"`
	Ahead           int     `json:"ahead"`
	Holder          *string `json:"holder" doc:"The href of the first task in the queue; null: the user may not view it."`
	HolderName      string  `json:"holder_name" doc:"Empty where the user may not view the holder."`
	HolderState     *string `json:"holder_state" doc:"Null where the user may not view the holder."`
	HolderExclusive *bool   `json:"holder_exclusive" doc:"Null where the user may not view the holder."`
	Since           *Time   `json:"since" doc:"When the holder was started; null also where the user may not view it."`
	Worker          *string `json:"worker" doc:"The name of the process that runs the holder; null also where the user may not view it."`
}

func (s *Server) explainTask(ctx context.Context, r *Request) (Reply, error) {
	if _, err := s.aTask(ctx, r, viewTask); err != nil {
		return Reply{}, err
	}
	e, err := s.Tasks().Explain(ctx, r.UUID())
	if errors.Is(err, tasking.ErrNotFound) {
		return Reply{}, NotFound("Task")
	} else if err != nil {
		return Reply{}, err
	}
	if err := r.redact(ctx, &e); err != nil {
		return Reply{}, err
	}
	reply := explainReply{
		Task: r.Href(s.own.tasks, r.ID), State: string(e.State), Why: e.Why, Places: []placeReply{}, NotBefore: timePtr(e.NotBefore),
		Ahead: e.Ahead, WorkersOnline: e.WorkersOnline, WorkersCapable: e.WorkersCapable,
	}
	for _, p := range e.Places {
		place := placeReply{Resource: p.Resource, Exclusive: p.Exclusive, Granted: p.Granted, Ahead: p.Ahead, HolderName: p.HolderName, Since: timePtr(p.Since)}
		if p.Holder != uuid.Nil {
			place.Holder = r.hrefOrNull(s.own.tasks, &p.Holder)
			place.HolderState, place.HolderExclusive = new(string(p.HolderState)), &p.HolderExclusive
		}
		if p.Worker != "" {
			place.Worker = &p.Worker
		}
		reply.Places = append(reply.Places, place)
	}
	return OK(reply)
}

// redact hides of an explanation the holders that the user may not view.
func (r *Request) redact(ctx context.Context, e *tasking.Explanation) error {
	if r.User.Superuser || len(e.Places) == 0 {
		return nil
	}
	holders := make([]string, len(e.Places))
	for i, p := range e.Places {
		holders[i] = p.Holder.String()
	}
	seen, err := query(ctx, func(ctx context.Context) ([]string, error) {
		return r.server.q.UserRoleHeldOn(ctx, r.server.db, db.UserRoleHeldOnParams{
			Objects: holders, UserID: int32(r.User.ID), Roles: r.server.rolesWith(viewTask), Model: taskModel,
		})
	})
	if err != nil {
		return err
	}
	e.Redact(func(holder uuid.UUID) bool { return !slices.Contains(seen, holder.String()) })
	return nil
}

type taskTypesReply struct {
	TaskTypes []taskType `json:"task_types"`
}

type taskType struct {
	Name      string            `json:"name"`
	Immediate bool              `json:"immediate" doc:"May be dispatched as an immediate task."`
	Versions  map[string]string `json:"versions" doc:"Least version of each component that a worker must have."`
}

func (s *Server) listTaskTypes(_ context.Context, _ *Request) (Reply, error) {
	reply := taskTypesReply{TaskTypes: []taskType{}}
	registry := s.Tasks().Registry()
	for _, name := range registry.Names() {
		if cfg, _ := registry.Config(name); cfg.Dispatchable {
			versions := cfg.Versions
			if versions == nil {
				versions = map[string]string{}
			}
			reply.TaskTypes = append(reply.TaskTypes, taskType{name, cfg.Immediate, versions})
		}
	}
	return OK(reply)
}

type scheduleBody struct {
	Name               string          `json:"name" api:"required" max:"255"`
	TaskName           string          `json:"task_name" api:"required" doc:"The name of a dispatchable task type: see task-types/."`
	Args               json.RawMessage `json:"args"`
	ExclusiveResources []string        `json:"exclusive_resources"`
	SharedResources    []string        `json:"shared_resources"`
	Priority           *int            `json:"priority" doc:"That of its tasks; superusers alone may ask for more than 0. Default: 0."`
	DispatchInterval   *string         `json:"dispatch_interval" doc:"[D ]HH:MM:SS[.ffffff] between due times. Neither this nor cron: once."`
	Cron               *string         `json:"cron" doc:"A cron expression of five fields, in UTC. Not together with dispatch_interval."`
	NextDispatch       *Time           `json:"next_dispatch" doc:"The first due time. Default: at once, or when cron says."`
}

// parseInterval reads what interval writes, and seconds alone.
func parseInterval(text string) (time.Duration, bool) {
	days, clock, ok := strings.Cut(strings.TrimSpace(text), " ")
	if !ok {
		days, clock = "0", days
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, false
	}
	parts := strings.Split(clock, ":")
	if len(parts) > 3 {
		return 0, false
	}
	total := time.Duration(n) * 24 * time.Hour
	for i, part := range parts {
		units := []time.Duration{time.Hour, time.Minute, time.Second}[3-len(parts)+i]
		v, err := strconv.ParseFloat(part, 64)
		if err != nil || v < 0 || v > 1e6 || strings.ContainsAny(part, "eExXnN+-_") || units != time.Second && strings.Contains(part, ".") {
			return 0, false
		}
		total += time.Duration(v * float64(units))
	}
	return total.Round(time.Microsecond), total >= 0 // it is less where there are too many
}

func (s *Server) createSchedule(ctx context.Context, r *Request, body scheduleBody) (Reply, error) {
	if err := s.dispatchable("task_name", body.TaskName); err != nil {
		return Reply{}, err
	}
	exclusive, shared, err := s.reserve(ctx, body.ExclusiveResources, body.SharedResources)
	if err != nil {
		return Reply{}, err
	}
	if err := r.mayHinder(exclusive, shared, body.Priority); err != nil {
		return Reply{}, err
	}
	schedule := tasking.Schedule{
		Name: body.Name, Task: body.TaskName, Args: body.Args, Exclusive: exclusive, Shared: shared, Cron: given(body.Cron),
	}
	if body.Priority != nil {
		schedule.Priority = *body.Priority
	}
	if body.NextDispatch != nil {
		schedule.Next = &body.NextDispatch.Time
	}
	if body.DispatchInterval != nil {
		every, ok := parseInterval(*body.DispatchInterval)
		if !ok {
			return Reply{}, FieldErrors{"dispatch_interval": []string{"Duration has wrong format. Use one of these formats instead: [DD] [HH:[MM:]]ss[.uuuuuu]."}}
		}
		if every < time.Second { // none at all would mean once
			return Reply{}, FieldErrors{"dispatch_interval": []string{"Ensure this value is at least a second."}}
		}
		schedule.Interval = every
	}
	err = s.Tasks().CheckSchedule(schedule)
	if errors.Is(err, tasking.ErrInvalid) {
		return Reply{}, invalidFields(err)
	} else if err != nil {
		return Reply{}, err
	}
	if schedule.ID, err = uuid.NewV7(); err != nil {
		return Reply{}, err
	}
	key := schedule.ID.String()
	if err := r.Grant(ctx, s.own.schedules, key, "core.taskschedule_owner"); err != nil {
		return Reply{}, err
	}
	// What ends here leaves no schedule without an owner, but a role on a schedule that is not there: as no other one gets this
	// id, it allows nothing. It goes with its user.
	_, err = s.Tasks().AddSchedule(ctx, schedule)
	if errors.Is(err, tasking.ErrTaken) {
		if err := r.Revoke(context.WithoutCancel(ctx), s.own.schedules, key); err != nil {
			return Reply{}, err
		}
		return Reply{}, errNameTaken
	} else if err != nil { // it may be there in spite of that, so the role stays
		return Reply{}, err
	}
	list, err := r.schedules(ctx, []string{key})
	switch {
	case err != nil:
		return Reply{}, err
	case len(list) == 0: // replaced meanwhile
		return Reply{}, errNameTaken
	}
	return Reply{Status: http.StatusCreated, Body: list[0], Header: http.Header{"Location": {list[0].PulpHref}}}, nil
}

// errNameTaken is the problem that there is a schedule of that name.
var errNameTaken = FieldErrors{"name": []string{"This field must be unique."}}

func (s *Server) deleteSchedule(ctx context.Context, r *Request) (Reply, error) {
	if _, err := s.aSchedule(ctx, r, "core.manage_roles_taskschedule"); err != nil {
		return Reply{}, err
	}
	_, err := query(ctx, func(ctx context.Context) (int64, error) { return s.q.TaskScheduleDelete(ctx, s.db, pgUUID(r.UUID())) })
	return Reply{Status: http.StatusNoContent}, err
}

// Profiles of tasks.

type profileArtifactReply struct {
	URLs map[string]string `json:"urls" doc:"Where each profile can be read for an hour, without credentials."`
}

// linkFor is how long a signed link is good.
const linkFor = time.Hour

// signature signs a link to a path until a time. The secret is read once: it never changes.
func (s *Server) signature(ctx context.Context, path, expires string) (string, error) {
	secret := s.secret.Load()
	if secret == nil {
		read, err := query(ctx, func(ctx context.Context) ([]byte, error) { return s.q.APISecretGet(ctx, s.db) })
		if err != nil {
			return "", err
		}
		secret = &read
		s.secret.Store(secret)
	}
	mac := hmac.New(sha256.New, *secret)
	_, _ = mac.Write([]byte(path + "?" + expires))
	return hex.EncodeToString(mac.Sum(nil)), nil
}

func (s *Server) listProfiles(ctx context.Context, r *Request) (Reply, error) {
	if _, err := s.aTask(ctx, r, "core.view_task_profile_artifacts"); err != nil {
		return Reply{}, err
	}
	names, err := s.Tasks().ProfileNames(ctx, r.UUID())
	if err != nil {
		return Reply{}, err
	}
	reply := profileArtifactReply{URLs: map[string]string{}}
	expires := strconv.FormatInt(time.Now().Add(linkFor).Unix(), 10)
	for _, name := range names {
		path := r.Href(s.own.profiles, r.ID) + name + "/"
		signed, err := s.signature(ctx, path, expires)
		if err != nil {
			return Reply{}, err
		}
		reply.URLs[name] = r.base() + path + "?" + url.Values{"expires": {expires}, "signature": {signed}}.Encode()
	}
	return OK(reply)
}

// errUnsigned is the problem that a link is not, or not any more, good.
var errUnsigned = detail(http.StatusForbidden, "The link is not signed, or was good for an hour only: ask for profile_artifacts again.")

func (s *Server) readProfile(ctx context.Context, r *Request) (Reply, error) {
	// Nobody needs credentials to come here: what cannot be good costs the database nothing.
	expires, signature := r.Query.Get("expires"), r.Query.Get("signature")
	until, err := strconv.ParseInt(expires, 10, 64)
	if err != nil || time.Now().Unix() > until || len(signature) != hex.EncodedLen(sha256.Size) {
		return Reply{}, errUnsigned
	}
	signed, err := s.signature(ctx, r.URL.Path, expires)
	if err != nil {
		return Reply{}, err
	}
	if !hmac.Equal([]byte(signed), []byte(signature)) {
		return Reply{}, errUnsigned
	}
	data, err := s.Tasks().Profile(ctx, r.UUID(), r.PathValue("name"))
	if errors.Is(err, tasking.ErrNotFound) {
		return Reply{}, NotFound("Profile")
	} else if err != nil {
		return Reply{}, err
	}
	return Reply{Status: http.StatusOK, raw: data, Header: http.Header{"Content-Type": {string(profileMedia)}}}, nil
}

const profileMedia media = "application/octet-stream"

// pithResources are those that Pulp has not.
func (s *Server) pithResources() []*Resource {
	s.own.profiles = &Resource{
		Base: pithBase, Path: "profiles/", Name: "pith_profiles", Key: "pith_profile", Tag: "Pith: Profiles",
		Operations: []Operation{{
			Method: http.MethodGet, Path: wildcard + "{name}/", Verb: "read", Summary: "Read a profile of a task by a signed link: see profile_artifacts.", Public: true,
			Parameters: []Parameter{{Name: "expires", Type: "string"}, {Name: "signature", Type: "string"}},
			Replies:    map[int]any{http.StatusOK: profileMedia, http.StatusForbidden: Detail{}}, Do: Bare(s.readProfile),
		}},
	}
	return []*Resource{
		s.own.profiles,
		{
			Base: pithBase, Path: "tasks/", Name: "pith_tasks", Key: "pith_task", Tag: "Pith: Tasks",
			Operations: []Operation{
				{Method: http.MethodPost, Verb: "dispatch", Summary: "Dispatch a task.", Replies: map[int]any{http.StatusAccepted: AsyncOperationReply{}}, Allow: s.mayDispatch, Do: With(s.dispatchTask)},
				{
					Method: http.MethodGet, Path: wildcard + "explain/", Verb: "explain", Summary: "Tell why a task is not running.",
					Replies: map[int]any{http.StatusOK: explainReply{}}, Do: Bare(s.explainTask),
				},
			},
		},
		{
			Base: pithBase, Path: "task-types/", Name: "pith_task_types", Key: "pith_task_type", Tag: "Pith: Tasks",
			Operations: []Operation{{
				Method: http.MethodGet, Verb: "list", Summary: "List the task types that can be dispatched.",
				Replies: map[int]any{http.StatusOK: taskTypesReply{}}, Do: Bare(s.listTaskTypes),
			}},
		},
		{
			Base: pithBase, Path: "task-schedules/", Name: "pith_task_schedules", Key: "pith_task_schedule", Tag: "Pith: Schedules",
			Operations: []Operation{
				{Method: http.MethodPost, Verb: "create", Summary: "Have a task dispatched by the clock.", Replies: map[int]any{http.StatusCreated: taskScheduleReply{}}, Allow: s.mayDispatch, Do: With(s.createSchedule)},
				{Method: http.MethodDelete, Path: wildcard, Verb: "delete", Summary: "Remove a schedule; its tasks stay.", Replies: map[int]any{http.StatusNoContent: nil}, Do: Bare(s.deleteSchedule)},
			},
		},
	}
}
