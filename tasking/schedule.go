package tasking

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/adhocore/gronx"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

// codeNotDue is what the database raises when another process has dispatched a schedule.
const codeNotDue = "PT002"

// Schedule dispatches tasks by the clock. With neither Interval nor Cron it does so once.
//
// What was missed is not caught up on, and nothing is dispatched while the last task is unfinished.
// Each due time is dispatched exactly once, by any worker that knows the task type.
type Schedule struct {
	ID uuid.UUID `json:"id"`
	// Name is unique.
	Name string `json:"name"`
	// Task, Args, Exclusive, Shared and Priority are those of the request that is dispatched.
	Task      string          `json:"task_name"`
	Args      json.RawMessage `json:"args,omitempty"`
	Exclusive []string        `json:"exclusive_resources,omitempty"`
	Shared    []string        `json:"shared_resources,omitempty"`
	Priority  int             `json:"priority,omitempty"`
	// Interval between due times, at least a second.
	Interval time.Duration `json:"dispatch_interval,omitempty"`
	// Cron is an expression of five fields, in UTC. Not together with Interval.
	Cron string `json:"cron,omitempty"`
	// Next due time; zero when saving: after Delay, or what Cron says.
	Next *time.Time `json:"next_dispatch"`
	// Delay before the first due time where Next is not given, on the database's clock.
	Delay time.Duration `json:"-"`
	// LastTask is the task dispatched last; nil if none is known.
	LastTask *uuid.UUID `json:"last_task"`
}

// SaveSchedule adds a schedule, or replaces the one of its name, and returns it with a new ID and Next.
func (c *Client) SaveSchedule(ctx context.Context, s Schedule) (Schedule, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return s, fmt.Errorf("save schedule %q: %w", s.Name, err)
	}
	s.ID = id
	return c.saveSchedule(ctx, "save", s, true)
}

// AddSchedule adds a schedule, and returns it with Next, or ErrTaken if there is one of its name. An ID that is given must be
// new; by default it is made.
func (c *Client) AddSchedule(ctx context.Context, s Schedule) (Schedule, error) {
	if s.ID == uuid.Nil {
		id, err := uuid.NewV7()
		if err != nil {
			return s, fmt.Errorf("add schedule %q: %w", s.Name, err)
		}
		s.ID = id
	}
	return c.saveSchedule(ctx, "add", s, false)
}

// CheckSchedule returns the ErrInvalid that saving or adding a schedule would return. It sends nothing.
func (c *Client) CheckSchedule(s Schedule) error {
	if _, err := c.prepareSchedule(s); err != nil {
		return fmt.Errorf("schedule %q: %w", s.Name, err)
	}
	return nil
}

// prepareSchedule checks a schedule and lays it out, but for a first due time that is as Cron says.
func (c *Client) prepareSchedule(s Schedule) (p db.TaskScheduleSaveParams, err error) {
	if _, ok := c.cfg.Registry.types[s.Task]; !ok {
		return p, fmt.Errorf("%q: %w", s.Task, ErrUnknownType)
	}
	errs := s.problems()
	if s.Args == nil {
		s.Args = json.RawMessage("null")
	}
	args, err := encodeArgs(s.Args)
	if err == nil { // each dispatch would refuse what is reserved
		args, err = withDiagnostics(args, nil)
	}
	if err == nil {
		args, err = c.keys.seal(args)
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return p, err
	}
	p = db.TaskScheduleSaveParams{
		ID: pgUUID(s.ID), Name: s.Name, TaskName: s.Task, Args: string(args), Priority: int32(s.Priority),
		Exclusive: append([]string{}, s.Exclusive...), Shared: append([]string{}, s.Shared...), DelaySeconds: s.Delay.Seconds(),
		IntervalSeconds: pgtype.Float8{Float64: s.Interval.Seconds(), Valid: s.Interval > 0},
		Cron:            pgtype.Text{String: s.Cron, Valid: s.Cron != ""},
	}
	if s.Next != nil {
		p.NextDispatch = pgtype.Timestamptz{Time: *s.Next, Valid: true}
	}
	return p, nil
}

// problems are all that is wrong with a schedule, but for its arguments, each an InvalidError.
func (s Schedule) problems() (errs []error) {
	switch {
	case s.Name == "" || len(s.Name) > 255:
		errs = append(errs, invalidIn("name", "a name of 1 to 255 bytes is required"))
	case !utf8.ValidString(s.Name) || strings.ContainsRune(s.Name, 0):
		errs = append(errs, invalidIn("name", "a name must be UTF-8 without zero bytes"))
	}
	switch {
	case s.Interval != 0 && s.Cron != "":
		errs = append(errs, invalid("interval and cron expression exclude each other"))
	case s.Interval != 0 && s.Interval < time.Second:
		errs = append(errs, invalidIn("dispatch_interval", "interval %s: at least a second is needed", s.Interval))
	}
	if s.Delay < 0 {
		errs = append(errs, invalid("delay %s is negative", s.Delay))
	}
	if s.Cron != "" {
		// Whether it is ever due does not depend on the clock.
		if _, err := cronNext(s.Cron, time.Now()); err != nil {
			errs = append(errs, err)
		}
	}
	return append(errs, s.request().problems()...)
}

// saveSchedule saves a schedule under its id, in place of one of its name only if it may replace that.
func (c *Client) saveSchedule(ctx context.Context, verb string, s Schedule, replace bool) (Schedule, error) {
	what := fmt.Sprintf("%s schedule %q", verb, s.Name)
	p, err := c.prepareSchedule(s)
	if err != nil {
		return s, fmt.Errorf("%s: %w", what, err)
	}
	p.Replace = replace
	if s.Cron != "" && s.Next == nil && s.Delay == 0 {
		now, err := send(ctx, what, func(ctx context.Context) (pgtype.Timestamptz, error) { return c.q.Now(ctx, c.db) })
		if err != nil {
			return s, err
		}
		next, err := cronNext(s.Cron, now.Time)
		if err != nil {
			return s, fmt.Errorf("%s: %w", what, err)
		}
		p.NextDispatch = pgtype.Timestamptz{Time: next, Valid: true}
	}
	row, err := send(ctx, what, func(ctx context.Context) (db.TaskScheduleSaveRow, error) {
		row, err := c.q.TaskScheduleSave(ctx, c.db, p)
		if errors.Is(err, pgx.ErrNoRows) {
			// An earlier send was under way, and has been committed since this one began; or another schedule has the name.
			row, err = c.q.TaskScheduleSave(ctx, c.db, p)
		}
		if errors.Is(err, pgx.ErrNoRows) && !replace {
			err = ErrTaken
		}
		return row, err
	})
	if err != nil {
		return s, err
	}
	s.ID, s.Next = row.ID.Bytes, timePtr(row.NextDispatch)
	return s, nil
}

func (s Schedule) request() Request {
	return Request{Name: s.Task, Args: s.Args, Options: Options{Exclusive: s.Exclusive, Shared: s.Shared, Priority: s.Priority}}
}

// cronNext is the first time after a time at which an expression is due.
func cronNext(expr string, after time.Time) (time.Time, error) {
	// gronx would also take seconds, years and names such as @daily.
	fields := strings.Fields(expr)
	if len(fields) != len(cronFields) {
		return time.Time{}, invalidIn("cron", "cron expression %q has %d fields: five fields are needed, such as \"30 4 * * *\"", expr, len(fields))
	}
	for i, field := range fields {
		alone := []string{"*", "*", "*", "*", "*"}
		alone[i] = field
		if !gronx.IsValid(strings.Join(alone, " ")) {
			return time.Time{}, invalidIn("cron", "cron expression %q: %q is no %s", expr, field, cronFields[i])
		}
	}
	next, err := gronx.NextTickAfter(expr, after.UTC(), false)
	if err != nil { // it tells no more than that it found none
		return time.Time{}, invalidIn("cron", "cron expression %q is never due: give a day that its month has", expr)
	}
	return next, nil
}

// cronFields are the fields of a cron expression, in order.
var cronFields = [...]string{
	"minute (0 to 59)", "hour (0 to 23)", "day of the month (1 to 31)", "month (1 to 12, or JAN to DEC)", "day of the week (0 to 7, or SUN to SAT)",
}

// RemoveSchedule deletes the schedule of that name, or returns ErrNotFound. Its tasks stay.
func (c *Client) RemoveSchedule(ctx context.Context, name string) error {
	sends := 0
	n, err := send(ctx, "remove schedule", func(ctx context.Context) (int64, error) {
		sends++
		return c.q.TaskScheduleRemove(ctx, c.db, name)
	})
	// If it had to be sent again, an earlier send may have removed it.
	if err == nil && n == 0 && sends == 1 {
		err = fmt.Errorf("remove schedule %q: %w", name, ErrNotFound)
	}
	return err
}

// Schedules lists schedules by name.
func (c *Client) Schedules(ctx context.Context, limit, offset int) ([]Schedule, error) {
	return send(ctx, "list schedules", func(ctx context.Context) ([]Schedule, error) {
		rows, err := c.q.TaskScheduleList(ctx, c.db, db.TaskScheduleListParams{Most: clamp(limit), Skip: clamp(offset)})
		list := make([]Schedule, 0, len(rows))
		for _, r := range rows {
			list = append(list, Schedule{
				ID: r.ID.Bytes, Name: r.Name, Task: r.TaskName, Args: r.Args, Exclusive: r.Exclusive, Shared: r.Shared,
				Priority: int(r.Priority), Interval: time.Duration(r.IntervalSeconds * float64(time.Second)), Cron: r.Cron.String,
				Next: timePtr(r.NextDispatch), LastTask: uuidPtr(r.LastTask),
			})
		}
		return list, err
	})
}

// DispatchDue dispatches the schedules that are due, of the task types in the registry, and answers
// how many. Any number of processes may call it at once: who comes second finds that the due time has
// moved, and dispatches nothing.
func (c *Client) DispatchDue(ctx context.Context) (int, error) {
	due, err := send(ctx, "read due schedules", func(ctx context.Context) ([]db.TaskScheduleDueRow, error) {
		return c.q.TaskScheduleDue(ctx, c.db, db.TaskScheduleDueParams{TaskNames: c.cfg.Registry.Names(), Most: 100})
	})
	if err != nil {
		return 0, err
	}
	dispatched := 0
	var errs []error
	for _, row := range due {
		switch err := c.fire(ctx, row); {
		case err == nil:
			dispatched++
		case !errors.Is(err, errNotDue):
			errs = append(errs, fmt.Errorf("schedule %q: %w", row.Name, err))
		}
	}
	if dispatched > 0 {
		c.wake()
	}
	return dispatched, errors.Join(errs...)
}

var errNotDue = errors.New("dispatched by another process")

func (c *Client) fire(ctx context.Context, row db.TaskScheduleDueRow) error {
	args, err := c.keys.open(row.Args)
	if err != nil {
		return err
	}
	s := Schedule{Task: row.TaskName, Args: args, Exclusive: row.Exclusive, Shared: row.Shared, Priority: int(row.Priority)}
	p, err := c.prepare(caller{}, []Request{s.request()})
	if err != nil {
		return err
	}
	p.Schedule, p.ScheduleDue, p.ScheduleNext = row.ID, row.NextDispatch, row.NextByInterval
	if row.Cron.Valid {
		next, err := cronNext(row.Cron.String, row.Now.Time)
		if err != nil {
			return err
		}
		p.ScheduleNext = pgtype.Timestamptz{Time: next, Valid: true}
	}
	_, _, err = c.sendDispatch(ctx, resendLimit, nil, p)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == codeNotDue {
		return errNotDue
	}
	return err
}
