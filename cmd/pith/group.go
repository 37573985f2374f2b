package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

type groupCmd struct {
	Create groupCreateCmd `cmd:"" help:"Make a group for tasks, and print its id."`
	Show   groupShowCmd   `cmd:"" help:"Show a group: its tasks by state, and their progress."`
	Close  groupCloseCmd  `cmd:"" help:"Mark that all tasks of a group are dispatched."`
	Cancel groupCancelCmd `cmd:"" help:"Close a group and cancel what waits or runs in it."`
}

func groupHref(id uuid.UUID) string { return "/pulp/api/v3/task-groups/" + id.String() + "/" }

type groupCreateCmd struct {
	Description string `arg:"" help:"What the group is for."`
}

// newGroup is what is printed of a new group.
type newGroup struct {
	Group string    `json:"task_group"`
	ID    uuid.UUID `json:"id"`
}

// Run runs the command.
func (c groupCreateCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		id, err := client.NewGroup(ctx, c.Description)
		if err != nil {
			return err
		}
		return s.print(newGroup{groupHref(id), id}, func(w io.Writer) { fmt.Fprintln(w, id) })
	})
}

// groupView is a group as it is printed.
type groupView struct {
	Href string `json:"pulp_href"`
	tasking.Group
}

type groupShowCmd struct {
	ID objectID `arg:"" help:"The group's id or href."`
}

// Run runs the command.
func (c groupShowCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		g, err := client.GetGroup(ctx, uuid.UUID(c.ID))
		if err != nil {
			return err
		}
		return s.print(groupView{groupHref(g.ID), g}, func(w io.Writer) { s.showGroup(w, g) })
	})
}

func (s *session) showGroup(w io.Writer, g tasking.Group) {
	closed := "no"
	if g.AllTasksDispatched {
		closed = "yes"
	}
	row(w, "group", g.ID.String())
	row(w, "description", g.Description)
	row(w, "created", when(&g.CreatedAt))
	row(w, "all tasks dispatched", closed)
	for _, count := range []struct {
		state tasking.State
		tasks int
	}{
		{tasking.Waiting, g.Waiting},
		{tasking.Running, g.Running},
		{tasking.Canceling, g.Canceling},
		{tasking.Completed, g.Completed},
		{tasking.Failed, g.Failed},
		{tasking.Canceled, g.Canceled},
		{tasking.Skipped, g.Skipped},
	} {
		if count.tasks > 0 {
			row(w, s.state(count.state), strconv.Itoa(count.tasks))
		}
	}
	for _, p := range g.Progress {
		row(w, "progress", progressText(p))
	}
}

func progressText(p tasking.Report) string {
	total := "?"
	if p.Total != nil {
		total = strconv.FormatInt(*p.Total, 10)
	}
	return strings.TrimSpace(fmt.Sprintf("%s: %d of %s %s", p.Message, p.Done, total, p.Suffix))
}

type groupCloseCmd struct {
	ID objectID `arg:"" help:"The group's id or href."`
}

// Run runs the command.
func (c groupCloseCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		id := uuid.UUID(c.ID)
		if err := client.CloseGroup(ctx, id); err != nil {
			return err
		}
		return s.print(map[string]uuid.UUID{"closed": id}, func(w io.Writer) { fmt.Fprintf(w, "group %s closed\n", id) })
	})
}

type groupCancelCmd struct {
	ID objectID `arg:"" help:"The group's id or href."`
}

// Run runs the command.
func (c groupCancelCmd) Run(ctx context.Context, s *session) error {
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		return s.cancelGroup(ctx, client, c.ID)
	})
}

// cancelGroup cancels what waits or runs in a group, and prints how much that was.
func (s *session) cancelGroup(ctx context.Context, client *tasking.Client, id objectID) error {
	n, err := client.CancelGroup(ctx, uuid.UUID(id))
	if err != nil {
		return err
	}
	return s.print(map[string]int{"canceled": n}, func(w io.Writer) { fmt.Fprintf(w, "%d tasks canceled\n", n) })
}
