package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/tasking"
)

type taskCmd struct {
	Dispatch dispatchCmd `cmd:"" help:"Hand out a task."`
	List     listCmd     `cmd:"" help:"List tasks, newest first."`
	Show     showCmd     `cmd:"" help:"Show a task."`
	Cancel   cancelCmd   `cmd:"" help:"Cancel a task, or all tasks of a group."`
	Wait     waitCmd     `cmd:"" help:"Wait until tasks are final; fails if one did not complete."`
	Purge    purgeCmd    `cmd:"" help:"Delete tasks that ended some time ago."`
	Explain  explainCmd  `cmd:"" help:"Say why a task is not running."`
}

func href(id uuid.UUID) string { return "/pulp/api/v3/tasks/" + id.String() + "/" }

// taskView is a task as it is printed.
type taskView struct {
	Href string `json:"pulp_href"`
	tasking.Task
}

func views(tasks []tasking.Task) []taskView {
	out := make([]taskView, 0, len(tasks))
	for _, t := range tasks {
		out = append(out, taskView{href(t.ID), t})
	}
	return out
}

type listCmd struct {
	State         []string  `help:"Only in these states."`
	Name          string    `help:"Only of this type."`
	Group         *objectID `placeholder:"ID" help:"Only of this group."`
	Parent        *objectID `placeholder:"ID" help:"Only children of this task."`
	CorrelationID string    `name:"correlation-id" help:"Only with this correlation id."`
	Resource      string    `help:"Only those that reserve this resource."`
	Limit         int       `default:"100" help:"List no more than that."`
	Offset        int       `help:"Skip that many."`
}

// Run runs the command.
func (c listCmd) Run(ctx context.Context, s *session) error {
	if c.Limit < 1 || c.Offset < 0 {
		return usage("--limit must be positive and --offset not negative")
	}
	filter := tasking.Filter{
		Name: c.Name, Group: (*uuid.UUID)(c.Group), Parent: (*uuid.UUID)(c.Parent), CorrelationID: c.CorrelationID,
		Resource: c.Resource, Limit: c.Limit, Offset: c.Offset,
	}
	for _, state := range c.State {
		filter.States = append(filter.States, tasking.State(state))
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		tasks, err := client.List(ctx, filter)
		if err != nil {
			return err
		}
		return s.print(views(tasks), func(w io.Writer) {
			row(w, "ID", "NAME", s.colored(plainColor, "STATE"), "CREATED", "WAITED", "RAN")
			for _, t := range tasks {
				waited := t.StartedAt
				if waited == nil {
					waited = t.FinishedAt
				}
				ran := between(t.StartedAt, t.FinishedAt)
				row(w, t.ID.String(), t.Name, s.state(t.State), ago(t.CreatedAt), between(&t.CreatedAt, waited), ran)
			}
		})
	})
}

type showCmd struct {
	ID objectID `arg:"" help:"The task's id or href."`
}

// Run runs the command.
func (c showCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		t, err := client.Get(ctx, uuid.UUID(c.ID))
		if err != nil {
			return err
		}
		return s.print(taskView{href(t.ID), t}, func(w io.Writer) { s.show(w, t) })
	})
}

func (s *session) show(w io.Writer, t tasking.Task) {
	line := func(name, value string) {
		if value != "" {
			row(w, name, value)
		}
	}
	id := func(name string, id *uuid.UUID) {
		if id != nil {
			line(name, id.String())
		}
	}
	line("task", t.ID.String())
	line("name", t.Name)
	line("state", s.state(t.State))
	if t.Error != nil {
		line("error", t.Error.Error())
	}
	line("created", when(&t.CreatedAt))
	if t.NotBefore != nil {
		line("not before", when(t.NotBefore))
	}
	if t.StartedAt != nil {
		line("started", fmt.Sprintf("%s, after %s", when(t.StartedAt), between(&t.CreatedAt, t.StartedAt)))
	}
	if t.FinishedAt != nil {
		text := when(t.FinishedAt)
		if t.StartedAt != nil {
			text += ", ran " + between(t.StartedAt, t.FinishedAt)
		}
		line("finished", text)
	}
	if t.MaxAttempts > 1 {
		line("attempt", fmt.Sprintf("%d of %d", t.Attempt, t.MaxAttempts))
	}
	if t.Priority != 0 {
		line("priority", strconv.Itoa(t.Priority))
	}
	if t.Immediate {
		line("immediate", "yes")
	}
	id("worker", t.Holder)
	id("group", t.Group)
	id("parent", t.Parent)
	line("correlation id", t.CorrelationID)
	line("resources", strings.Join(t.Reserved, ", "))
	for _, child := range t.Children {
		line("child", child.String())
	}
	for _, p := range t.Progress {
		line("progress", progressText(p))
	}
	for _, created := range t.Created {
		line("created resource", created)
	}
	if u := t.Usage; u != nil {
		line("memory", fmt.Sprintf("%d MiB at most", (u.PeakMemory+1<<20-1)>>20))
		line("cpu", fmt.Sprintf("%.2f s", u.CPUSeconds))
	}
	line("result", string(t.Result))
}

type dispatchCmd struct {
	Name string `arg:"" help:"The task type's name; - reads the whole request as one JSON object from standard input."`
	Wait bool   `help:"Wait until the task is final; fail if it did not complete."`

	requestFlags `embed:""`
}

// requestFlags are what a JSON request says too.
type requestFlags struct {
	Args          string            `aliases:"arg" placeholder:"JSON" help:"Arguments of the task."`
	Exclusive     []string          `sep:"none" placeholder:"RESOURCE" help:"Reserve a resource exclusively; may be given again."`
	Shared        []string          `sep:"none" placeholder:"RESOURCE" help:"Share a resource; may be given again."`
	Immediate     bool              `help:"Run it in this process at once if its resources are free."`
	NoDeferred    bool              `name:"no-deferred" help:"Don't leave it to a worker: cancel it if it cannot run at once."`
	Group         *objectID         `placeholder:"ID" help:"Task group that it belongs to."`
	Versions      map[string]string `aliases:"version" mapsep:"," placeholder:"LABEL=VERSION" help:"Least versions that its worker must have. Default: the type's."`
	Priority      int               `help:"Order among what can run, higher first."`
	NotBefore     *moment           `name:"not-before" placeholder:"TIME" help:"Queue it then: a time, or a duration from now."`
	CorrelationID string            `name:"correlation-id" help:"Id in the logs. Default: a new one."`
}

// dispatched is what is printed of a new task.
type dispatched struct {
	Task   string          `json:"task"`
	ID     uuid.UUID       `json:"id"`
	State  tasking.State   `json:"state"`
	Error  *tasking.Error  `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Run runs the command.
func (c dispatchCmd) Run(ctx context.Context, s *session) error {
	request, err := c.request(s.in)
	if err != nil {
		return err
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		if c.NotBefore != nil {
			if request.NotBefore, err = c.NotBefore.after(ctx, client); err != nil {
				return err
			}
		}
		d, err := s.dispatch(ctx, client, request)
		if err != nil {
			return err
		}
		out := dispatched{Task: href(d.ID), ID: d.ID, State: d.State, Error: d.Error}
		if !c.Wait {
			return s.printJSON(out)
		}
		tasks, err := client.Wait(ctx, d.ID)
		if err != nil {
			// It goes on, so whoever asked gets to know its id.
			return errors.Join(s.printJSON(out), err)
		}
		out.State, out.Error, out.Result = tasks[0].State, tasks[0].Error, tasks[0].Result
		return errors.Join(s.printJSON(out), unfinished(tasks))
	})
}

// request makes the request, from the flags or from standard input.
func (c dispatchCmd) request(in io.Reader) (tasking.Request, error) {
	if c.Name == "-" {
		if !reflect.DeepEqual(c.requestFlags, requestFlags{}) {
			return tasking.Request{}, usage("a request from standard input is whole: no other flags than --wait")
		}
		return readRequest(in)
	}
	r := tasking.Request{Name: c.Name, Options: tasking.Options{
		Exclusive: c.Exclusive, Shared: c.Shared, Immediate: c.Immediate, NotDeferred: c.NoDeferred, Group: (*uuid.UUID)(c.Group),
		Versions: c.Versions, Priority: c.Priority, CorrelationID: c.CorrelationID,
	}}
	if c.Args != "" {
		r.Args = json.RawMessage(c.Args)
	}
	return r, nil
}

// requestLimit bounds a request on standard input.
const requestLimit = 64 << 20

func readRequest(in io.Reader) (tasking.Request, error) {
	var r tasking.Request
	text, err := io.ReadAll(io.LimitReader(in, requestLimit+1))
	switch {
	case err != nil:
		return r, fmt.Errorf("read request: %w", err)
	case len(text) > requestLimit:
		return r, usage("read request: more than %d bytes", requestLimit)
	case len(bytes.TrimSpace(text)) == 0:
		return r, usage("read request: standard input is empty")
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, usage("read request: not a request in JSON: %v", err)
	}
	if r.Name == "" {
		return r, usage("read request: no name is given")
	}
	return r, nil
}

// dispatch hands out a request. An immediate one needs an app status that holds it while it runs.
func (s *session) dispatch(ctx context.Context, client *tasking.Client, r tasking.Request) (tasking.Dispatched, error) {
	if !r.Immediate {
		return client.Dispatch(ctx, r)
	}
	var d tasking.Dispatched
	err := s.asAPI(ctx, client, func(client *tasking.Client) error {
		var err error
		d, err = client.Dispatch(ctx, r)
		return err
	})
	return d, err
}

// after is the moment on the database's clock.
func (m *moment) after(ctx context.Context, client *tasking.Client) (time.Time, error) {
	return m.on(ctx, client, m.span)
}

// before is the moment, with the distance into the past.
func (m *moment) before(ctx context.Context, client *tasking.Client) (time.Time, error) {
	return m.on(ctx, client, -m.span)
}

func (m *moment) on(ctx context.Context, client *tasking.Client, span time.Duration) (time.Time, error) {
	if !m.at.IsZero() {
		return m.at, nil
	}
	now, err := db.New().Now(ctx, client.Pool())
	if err != nil {
		return time.Time{}, fmt.Errorf("read the database's clock: %w", err)
	}
	return now.Time.Add(span), nil
}

// unfinished is an error about those that did not complete.
func unfinished(tasks []tasking.Task) error {
	var texts []string
	for _, t := range tasks {
		if t.State == tasking.Completed {
			continue
		}
		text := fmt.Sprintf("task %s is %s", t.ID, t.State)
		if t.Error != nil {
			text += ": " + t.Error.Error()
		}
		texts = append(texts, text)
	}
	if texts == nil {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

type cancelCmd struct {
	ID    []objectID `arg:"" optional:"" help:"The tasks' ids or hrefs."`
	Group *objectID  `placeholder:"ID" help:"Cancel what waits or runs in this group."`
}

// canceled is what came of a cancellation.
type canceled struct {
	ID    uuid.UUID     `json:"id"`
	State tasking.State `json:"state"`
}

// Run runs the command.
func (c cancelCmd) Run(ctx context.Context, s *session) error {
	if (len(c.ID) == 0) == (c.Group == nil) {
		return usage("give the ids of tasks, or --group")
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		if c.Group != nil {
			return s.cancelGroup(ctx, client, *c.Group)
		}
		out := []canceled{}
		var errs []error
		for _, id := range c.ID {
			state, err := client.Cancel(ctx, uuid.UUID(id))
			if err != nil {
				errs = append(errs, err)
				continue
			}
			out = append(out, canceled{uuid.UUID(id), state})
		}
		if len(out) > 0 {
			errs = append(errs, s.print(out, func(w io.Writer) {
				for _, t := range out {
					row(w, t.ID.String(), s.state(t.State))
				}
			}))
		}
		return errors.Join(errs...)
	})
}

type waitCmd struct {
	ID      []objectID    `arg:"" help:"The tasks' ids or hrefs."`
	Timeout time.Duration `help:"Give up after that long. Default, and 0: never."`
}

// Run runs the command.
func (c waitCmd) Run(ctx context.Context, s *session) error {
	if c.Timeout < 0 {
		return usage("--timeout %s is negative", c.Timeout)
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		waiting := ctx
		if c.Timeout > 0 {
			var cancel context.CancelFunc
			waiting, cancel = context.WithTimeout(ctx, c.Timeout)
			defer cancel()
		}
		ids := make([]uuid.UUID, 0, len(c.ID))
		for _, id := range c.ID {
			ids = append(ids, uuid.UUID(id))
		}
		tasks, err := client.Wait(waiting, ids...)
		switch {
		case err != nil && ctx.Err() == nil && waiting.Err() != nil:
			return fmt.Errorf("not all of these tasks are final after %s", c.Timeout)
		case err != nil:
			return err
		}
		err = s.print(views(tasks), func(w io.Writer) {
			for _, t := range tasks {
				row(w, t.ID.String(), s.state(t.State), t.Name)
			}
		})
		return errors.Join(err, unfinished(tasks))
	})
}

type purgeCmd struct {
	State          []string `default:"completed" help:"Final states of the tasks to delete."`
	FinishedBefore moment   `name:"finished-before" default:"720h" placeholder:"TIME" help:"Delete what ended before: a time, or a duration ago."`
}

// Run runs the command.
func (c purgeCmd) Run(ctx context.Context, s *session) error {
	var states []tasking.State
	for _, state := range c.State {
		states = append(states, tasking.State(state))
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		before, err := c.FinishedBefore.before(ctx, client)
		if err != nil {
			return err
		}
		n, err := client.Purge(ctx, before, states...)
		if err != nil {
			return err
		}
		return s.print(map[string]int{"deleted": n}, func(w io.Writer) { fmt.Fprintf(w, "%d tasks deleted\n", n) })
	})
}

type explainCmd struct {
	ID objectID `arg:"" help:"The task's id or href."`
}

// Run runs the command.
func (c explainCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		e, err := client.Explain(ctx, uuid.UUID(c.ID))
		if err != nil {
			return err
		}
		return s.print(e, func(w io.Writer) {
			fmt.Fprintf(w, "%s %s is %s.\n%s\n", e.Name, e.ID, s.state(e.State), e.Why)
			fmt.Fprintf(w, "%d workers are online, %d of them can run it.\n", e.WorkersOnline, e.WorkersCapable)
			if len(e.Places) == 0 {
				return
			}
			fmt.Fprintln(w)
			row(w, "RESOURCE", "MODE", "GRANTED", "AHEAD", "FIRST IN QUEUE", "STATE", "WORKER", "SINCE")
			for _, p := range e.Places {
				mode, granted := "shared", "no"
				if p.Exclusive {
					mode = "exclusive"
				}
				if p.Granted {
					granted = "yes"
				}
				row(w, p.Resource, mode, granted, strconv.Itoa(p.Ahead), p.HolderName+" "+p.Holder.String(), string(p.HolderState),
					orDash(p.Worker), when(p.Since))
			}
		})
	})
}
