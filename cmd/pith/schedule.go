package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

type scheduleCmd struct {
	List   scheduleListCmd   `cmd:"" help:"List the schedules by name."`
	Add    scheduleAddCmd    `cmd:"" help:"Add a schedule, or replace the one of that name."`
	Remove scheduleRemoveCmd `cmd:"" help:"Remove a schedule."`
}

// scheduleView is a schedule as it is printed.
type scheduleView struct {
	ID        uuid.UUID       `json:"id"`
	Name      string          `json:"name"`
	Task      string          `json:"task_name"`
	Args      json.RawMessage `json:"args,omitempty"`
	Exclusive []string        `json:"exclusive_resources,omitempty"`
	Shared    []string        `json:"shared_resources,omitempty"`
	Priority  int             `json:"priority,omitempty"`
	// Every is how often: a duration, or a cron expression; empty for once.
	Interval string     `json:"dispatch_interval,omitempty"`
	Cron     string     `json:"cron,omitempty"`
	Next     *time.Time `json:"next_dispatch"`
	LastTask *uuid.UUID `json:"last_task"`
}

func viewSchedule(sched tasking.Schedule) scheduleView {
	v := scheduleView{
		ID: sched.ID, Name: sched.Name, Task: sched.Task, Args: sched.Args, Exclusive: sched.Exclusive, Shared: sched.Shared,
		Priority: sched.Priority, Cron: sched.Cron, Next: sched.Next, LastTask: sched.LastTask,
	}
	if sched.Interval > 0 {
		v.Interval = sched.Interval.String()
	}
	return v
}

func (s *session) printSchedules(list ...scheduleView) error {
	return s.print(list, func(w io.Writer) {
		row(w, "NAME", "TASK", "EVERY", "NEXT", "LAST TASK")
		for _, v := range list {
			every, last := "once", "-"
			switch {
			case v.Interval != "":
				every = v.Interval
			case v.Cron != "":
				every = "cron " + v.Cron
			}
			if v.LastTask != nil {
				last = v.LastTask.String()
			}
			row(w, v.Name, v.Task, every, when(v.Next), last)
		}
	})
}

type scheduleListCmd struct {
	Limit  int `default:"100" help:"List no more than that."`
	Offset int `help:"Skip that many."`
}

// Run runs the command.
func (c scheduleListCmd) Run(ctx context.Context, s *session) error {
	if c.Limit < 1 || c.Offset < 0 {
		return usage("--limit must be positive and --offset not negative")
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		list, err := client.Schedules(ctx, c.Limit, c.Offset)
		if err != nil {
			return err
		}
		out := make([]scheduleView, 0, len(list))
		for _, sched := range list {
			out = append(out, viewSchedule(sched))
		}
		return s.printSchedules(out...)
	})
}

type scheduleAddCmd struct {
	Name      string        `arg:"" help:"The schedule's name."`
	Task      string        `arg:"" help:"The task type's name."`
	Args      string        `aliases:"arg" placeholder:"JSON" help:"Arguments of the tasks."`
	Exclusive []string      `sep:"none" placeholder:"RESOURCE" help:"Reserve a resource exclusively; may be given again."`
	Shared    []string      `sep:"none" placeholder:"RESOURCE" help:"Share a resource; may be given again."`
	Priority  int           `help:"Order among what can run, higher first."`
	Every     time.Duration `placeholder:"DURATION" help:"Dispatch again and again. Default: once."`
	Cron      string        `placeholder:"EXPRESSION" help:"Dispatch when this is due, in UTC, such as \"30 4 * * *\"."`
	First     *moment       `placeholder:"TIME" help:"Due for the first time: a time, or a duration from now. Default: at once, or what --cron says."`
}

// Run runs the command.
func (c scheduleAddCmd) Run(ctx context.Context, s *session) error {
	sched := tasking.Schedule{
		Name: c.Name, Task: c.Task, Exclusive: c.Exclusive, Shared: c.Shared, Priority: c.Priority, Interval: c.Every, Cron: c.Cron,
	}
	if c.Args != "" {
		sched.Args = json.RawMessage(c.Args)
	}
	if c.First != nil {
		if sched.Delay = c.First.span; !c.First.at.IsZero() {
			sched.Next = &c.First.at
		}
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		saved, err := client.SaveSchedule(ctx, sched)
		if err != nil {
			return err
		}
		return s.printSchedules(viewSchedule(saved))
	})
}

type scheduleRemoveCmd struct {
	Name string `arg:"" help:"The schedule's name."`
}

// Run runs the command.
func (c scheduleRemoveCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		if err := client.RemoveSchedule(ctx, c.Name); err != nil {
			return err
		}
		return s.print(map[string]string{"removed": c.Name}, func(w io.Writer) { fmt.Fprintf(w, "schedule %s removed\n", c.Name) })
	})
}
