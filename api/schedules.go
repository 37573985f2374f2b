package api

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
)

type taskScheduleReply struct {
	head
	Name             string  `json:"name"`
	TaskName         string  `json:"task_name" doc:"The name of the task type."`
	DispatchInterval *string `json:"dispatch_interval" doc:"[D ]HH:MM:SS[.ffffff]; null: once, or by a cron expression."`
	NextDispatch     *Time   `json:"next_dispatch" doc:"Null: never again."`
	LastTask         *string `json:"last_task"`
}

// interval writes a duration as Pulp does.
func interval(d time.Duration) string {
	days, rest := d/(24*time.Hour), d%(24*time.Hour)
	text := fmt.Sprintf("%02d:%02d:%02d", int(rest.Hours()), int(rest.Minutes())%60, int(rest.Seconds())%60)
	if micros := rest % time.Second / time.Microsecond; micros > 0 {
		text += fmt.Sprintf(".%06d", micros)
	}
	if days > 0 {
		text = fmt.Sprintf("%d %s", days, text)
	}
	return text
}

// schedules reads schedules in the order of their ids.
func (r *Request) schedules(ctx context.Context, keys []string) ([]taskScheduleReply, error) {
	s := r.server
	rows, err := query(ctx, func(ctx context.Context) ([]db.TaskScheduleReadRow, error) {
		return s.q.TaskScheduleRead(ctx, s.db, pgUUIDs(keys))
	})
	if err != nil {
		return nil, err
	}
	found := map[string]taskScheduleReply{}
	for _, row := range rows {
		key := uuid.UUID(row.ID.Bytes).String()
		reply := taskScheduleReply{
			head: r.headOf(s.own.schedules, key, row.CreatedAt.Time, row.CreatedAt.Time), Name: row.Name, TaskName: row.TaskName,
			NextDispatch: pgTime(row.NextDispatch),
		}
		if row.IntervalSeconds > 0 {
			text := interval(time.Duration(math.Round(row.IntervalSeconds*1e6)) * time.Microsecond)
			reply.DispatchInterval = &text
		}
		if row.LastTask.Valid {
			id := uuid.UUID(row.LastTask.Bytes)
			reply.LastTask = r.hrefOrNull(s.own.tasks, &id)
		}
		found[key] = reply
	}
	return inOrder(keys, found), nil
}

func (s *Server) listSchedules(ctx context.Context, r *Request) (Reply, error) {
	found, err := r.Page(ctx, s.own.scheduleList)
	if err != nil {
		return Reply{}, err
	}
	list, err := r.schedules(ctx, found.Keys)
	if err != nil {
		return Reply{}, err
	}
	return OK(NewPage(found, list))
}

// aSchedule reads the schedule that the path names, if the user may see it and do what needs a permission.
func (s *Server) aSchedule(ctx context.Context, r *Request, permission string) (reply taskScheduleReply, err error) {
	list, err := r.schedules(ctx, []string{r.ID})
	switch {
	case err != nil:
		return reply, err
	case len(list) == 0:
		return reply, NotFound("TaskSchedule")
	}
	return list[0], r.May(ctx, s.own.schedules, permission, "core.view_taskschedule")
}

func (s *Server) readSchedule(ctx context.Context, r *Request) (Reply, error) {
	reply, err := s.aSchedule(ctx, r, "core.view_taskschedule")
	if err != nil {
		return Reply{}, err
	}
	return OK(reply)
}
