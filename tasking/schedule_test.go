package tasking_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

// fire dispatches what is due and answers how many.
func (h *harness) fire() int {
	h.t.Helper()
	n, err := h.c.DispatchDue(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// overdue makes all schedules due since some time ago.
func (h *harness) overdue(since time.Duration) {
	h.t.Helper()
	h.exec("UPDATE task_schedule SET next_dispatch = date_trunc('second', now()) - make_interval(secs => $1)", since.Seconds())
}

func (h *harness) scheduled(name string) tasking.Schedule {
	h.t.Helper()
	list, err := h.c.Schedules(h.t.Context(), 100, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, s := range list {
		if s.Name == name {
			return s
		}
	}
	h.t.Fatalf("no schedule %q among %v", name, list)
	return tasking.Schedule{}
}

func TestScheduleDispatchesItsRequest(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	saved := h.schedule(tasking.Schedule{
		Name: "s", Task: "test.plain", Args: json.RawMessage(`{"a": 1}`), Exclusive: []string{"a"}, Shared: []string{"b"}, Priority: 7, Interval: time.Hour,
	})
	if n := h.fire(); n != 1 {
		t.Fatalf("%d dispatched", n)
	}
	task := h.get(one[uuid.UUID](h, "SELECT id FROM task"))
	if task.Name != "test.plain" || task.Priority != 7 || len(task.Reserved) != 3 || task.Reserved[0] != "a" || task.Reserved[1] != "shared:b" || len(task.CorrelationID) != 32 {
		t.Errorf("dispatched %+v", task)
	}
	if got := one[string](h, "SELECT args::text FROM task"); got != `{"a":1}` && got != `{"a": 1}` {
		t.Errorf("arguments %s", got)
	}
	if s := h.scheduled("s"); s.LastTask == nil || *s.LastTask != task.ID || s.ID != saved.ID {
		t.Errorf("schedule %+v", s)
	}
}

func TestRecurringScheduleGoesOnByWholeIntervalsAndCatchesUpOnNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
	h.overdue(5*time.Hour + 10*time.Minute)
	due := *h.scheduled("s").Next
	if n := h.fire(); n != 1 {
		t.Fatalf("%d dispatched", n)
	}
	if next := *h.scheduled("s").Next; !next.Equal(due.Add(6 * time.Hour)) {
		t.Errorf("was due %s, next is %s", due, next)
	}
	if n := h.fire(); n != 0 {
		t.Errorf("%d more dispatched", n)
	}
	h.wantRows("task", 1)
}

func TestScheduleDueAtThisVeryTimeGoesOnAnInterval(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: 90 * time.Second})
	h.overdue(90 * time.Second)
	h.fire()
	if !one[bool](h, "SELECT next_dispatch > now() AND next_dispatch <= now() + interval '90 s' FROM task_schedule") {
		t.Errorf("next is %s", h.scheduled("s").Next)
	}
}

func TestCronScheduleGoesOnByItsExpressionInUTC(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Cron: "30 4 * * *"})
	now := one[time.Time](h, "SELECT now()").UTC()
	check := func(next time.Time) {
		t.Helper()
		if next = next.UTC(); next.Hour() != 4 || next.Minute() != 30 || next.Second() != 0 || !next.After(now) || next.Sub(now) > 24*time.Hour+time.Minute {
			t.Errorf("next after %s is %s", now, next)
		}
	}
	check(*s.Next)
	h.overdue(50 * time.Hour)
	if n := h.fire(); n != 1 {
		t.Fatalf("%d dispatched", n)
	}
	check(*h.scheduled("s").Next)
}

func TestScheduleWithoutARhythmDispatchesOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "s", Task: "test.plain"})
	if n := h.fire(); n != 1 {
		t.Fatalf("%d dispatched", n)
	}
	h.run(h.worker(), one[uuid.UUID](h, "SELECT id FROM task"))
	if s := h.scheduled("s"); s.Next != nil || s.LastTask == nil {
		t.Errorf("schedule %+v", s)
	}
	if n := h.fire(); n != 0 {
		t.Errorf("%d more dispatched", n)
	}
}

func TestScheduleWaitsForItsLastTask(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
	h.fire()
	w := h.worker()
	last := one[uuid.UUID](h, "SELECT id FROM task")
	for _, state := range []string{"waiting", "running", "canceling"} {
		h.overdue(time.Minute)
		if n := h.fire(); n != 0 {
			t.Errorf("%d dispatched while the last one is %s", n, state)
		}
		switch state {
		case "waiting":
			h.claimOnly(w, last)
		case "running":
			h.cancel(last)
		}
	}
	h.finish(w, last, tasking.Failed)
	if n := h.fire(); n != 1 {
		t.Errorf("%d dispatched after the last one ended", n)
	}
	// A purged one is no hindrance either.
	h.cancel(one[uuid.UUID](h, "SELECT last_task FROM task_schedule"))
	if _, err := h.c.Purge(t.Context(), time.Now().Add(time.Hour), tasking.Canceled); err != nil {
		t.Fatal(err)
	}
	h.overdue(time.Minute)
	if n := h.fire(); n != 1 {
		t.Errorf("%d dispatched after the last one was purged", n)
	}
}

func TestScheduleIsNotDispatchedBeforeItsTime(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	next := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	for i, s := range []tasking.Schedule{
		{Delay: time.Hour}, {Delay: time.Hour, Interval: time.Minute}, {Next: &next}, {Next: &next, Cron: "* * * * *"}, {Delay: time.Hour, Cron: "* * * * *"},
	} {
		s.Name, s.Task = fmt.Sprint(i), "test.plain"
		saved := h.schedule(s)
		if d := time.Until(*saved.Next); d < 59*time.Minute || d > 61*time.Minute {
			t.Errorf("%+v is due in %s", s, d)
		}
	}
	if n := h.fire(); n != 0 {
		t.Errorf("%d dispatched", n)
	}
}

func TestEachDueTimeIsDispatchedExactlyOnceHoweverManyTry(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const schedules, processes = 5, 12
	for i := range schedules {
		h.schedule(tasking.Schedule{Name: fmt.Sprint(i), Task: "test.plain", Interval: time.Hour, Exclusive: []string{"a"}})
	}
	for round := 1; round <= 3; round++ {
		h.overdue(time.Minute)
		var wg sync.WaitGroup
		counts := make(chan int, processes)
		for range processes {
			wg.Go(func() {
				n, err := h.client(h.Pool, tasking.Config{}).DispatchDue(t.Context())
				if err != nil {
					t.Error(err)
				}
				counts <- n
			})
		}
		wg.Wait()
		close(counts)
		sum := 0
		for n := range counts {
			sum += n
		}
		if sum != schedules {
			t.Errorf("round %d: %d were told to be dispatched, of %d", round, sum, schedules)
		}
		h.wantRows("task", round*schedules)
		w := h.worker()
		for range schedules {
			h.finish(w, h.claim(w, 1)[0].ID, tasking.Completed)
		}
	}
}

func TestProcessThatLosesTheRaceForADueTimeDispatchesNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
	h.overdue(time.Minute)
	pool, faults := h.faulty(h.Pool)
	// It has read that the schedule is due; before it dispatches, another does.
	faults.arm("TaskDispatch", cut, func() {
		if n := h.fire(); n != 1 {
			t.Errorf("the other dispatched %d", n)
		}
	})
	n, err := h.client(pool, tasking.Config{}).DispatchDue(t.Context())
	if err != nil || n != 0 {
		t.Errorf("told %d, %v", n, err)
	}
	h.wantRows("task", 1)
}

func TestOneBadScheduleDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "bad", Task: "test.plain", Cron: "* * * * *"})
	h.schedule(tasking.Schedule{Name: "good", Task: "test.plain", Interval: time.Hour})
	h.exec("UPDATE task_schedule SET cron = 'nonsense' WHERE name = 'bad'")
	h.overdue(time.Minute)
	n, err := h.c.DispatchDue(t.Context())
	if n != 1 || err == nil || !strings.Contains(err.Error(), `"bad"`) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("%d, %v", n, err)
	}
	h.wantRows("task", 1)
}

func TestScheduleOfAnUnknownTypeIsLeftToOthers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.schedule(tasking.Schedule{Name: "s", Task: "test.plain"})
	h.exec("UPDATE task_schedule SET task_name = 'test.unheard'")
	if n := h.fire(); n != 0 {
		t.Errorf("%d dispatched", n)
	}
}

func TestSchedulesAreReplacedByNameAndRemoved(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	first := h.schedule(tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour, Exclusive: []string{"a"}})
	second := h.schedule(tasking.Schedule{Name: "s", Task: "test.retried", Cron: "0 0 * * *", Delay: time.Hour})
	if first.ID == second.ID {
		t.Errorf("both have the id %s", first.ID)
	}
	got := h.scheduled("s")
	if got.Task != "test.retried" || got.Cron != "0 0 * * *" || got.Interval != 0 || len(got.Exclusive) != 0 || string(got.Args) != "null" {
		t.Errorf("it is %+v", got)
	}
	if err := h.c.RemoveSchedule(t.Context(), "s"); err != nil {
		t.Error(err)
	}
	if err := h.c.RemoveSchedule(t.Context(), "s"); !errors.Is(err, tasking.ErrNotFound) || !strings.Contains(err.Error(), `"s"`) {
		t.Errorf("the second time: %v", err)
	}
}

func TestAddedScheduleReplacesNone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := uuid.Must(uuid.NewV7())
	first, err := h.c.AddSchedule(t.Context(), tasking.Schedule{ID: id, Name: "s", Task: "test.plain", Interval: time.Hour})
	if err != nil || first.ID != id || first.Next == nil {
		t.Fatalf("%+v, %v", first, err)
	}
	for _, second := range []tasking.Schedule{{}, {ID: uuid.Must(uuid.NewV7())}, {Cron: "0 0 * * *"}} {
		second.Name, second.Task = "s", "test.retried"
		if _, err := h.c.AddSchedule(t.Context(), second); !errors.Is(err, tasking.ErrTaken) || !strings.Contains(err.Error(), `"s"`) {
			t.Errorf("%+v: %v", second, err)
		}
	}
	if got := h.scheduled("s"); got.ID != id || got.Task != "test.plain" || got.Interval != time.Hour || got.Cron != "" {
		t.Errorf("it became %+v", got)
	}
	if other, err := h.c.AddSchedule(t.Context(), tasking.Schedule{Name: "t", Task: "test.plain"}); err != nil || other.ID == uuid.Nil || h.scheduled("t").ID != other.ID {
		t.Errorf("another one: %+v, %v", other, err)
	}
	// Saving replaces what was added.
	if saved := h.schedule(tasking.Schedule{ID: id, Name: "s", Task: "test.retried"}); saved.ID == id || h.scheduled("s").ID != saved.ID {
		t.Errorf("saved as %+v", saved)
	}
}

func TestScheduleThatAnEarlierSendIsAddingIsAdded(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := tasking.Schedule{ID: uuid.Must(uuid.NewV7()), Name: "s", Task: "test.plain", Interval: time.Hour}
	// It stands for a send whose connection broke, and that the server still works at.
	tx, err := h.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO task_schedule (id, name, task_name, args) VALUES ($1, $2, $3, 'null')", s.ID, s.Name, s.Task); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.c.AddSchedule(t.Context(), s)
		done <- err
	}()
	h.untilBlocked()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := h.scheduled("s").ID; got != s.ID {
		t.Errorf("added under %s, is %s", s.ID, got)
	}
}

func TestOneOfManyWhoAddAScheduleAtOnceDoes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var wg sync.WaitGroup
	added := make(chan uuid.UUID, 12)
	for range cap(added) {
		wg.Go(func() {
			s, err := h.c.AddSchedule(t.Context(), tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour})
			if err == nil {
				added <- s.ID
			} else if !errors.Is(err, tasking.ErrTaken) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(added)
	if id := h.scheduled("s").ID; len(added) != 1 || <-added != id {
		t.Errorf("%d more were told that they added it; it is %s", len(added), id)
	}
}

func TestScheduleRoundTrips(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i, interval := range []time.Duration{time.Second, 1500 * time.Millisecond, 36 * time.Hour, 30 * 24 * time.Hour} {
		name := fmt.Sprint(i)
		h.schedule(tasking.Schedule{Name: name, Task: "test.plain", Interval: interval})
		if got := h.scheduled(name).Interval; got != interval {
			t.Errorf("%s became %s", interval, got)
		}
	}
	list, err := h.c.Schedules(t.Context(), 2, 1)
	if err != nil || len(list) != 2 || list[0].Name != "1" || list[1].Name != "2" {
		t.Errorf("%v, %v", list, err)
	}
}

func TestSchedulesThatCanNeverRunAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	later := time.Now().Add(time.Hour)
	for _, tt := range []struct {
		s    tasking.Schedule
		says string
	}{
		{tasking.Schedule{Task: "test.plain"}, "a name"},
		{tasking.Schedule{Name: strings.Repeat("n", 256), Task: "test.plain"}, "a name"},
		{tasking.Schedule{Name: "s", Task: "test.unheard"}, "test.unheard"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Hour, Cron: "* * * * *"}, "exclude"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Interval: time.Millisecond}, "1ms"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Interval: -time.Hour}, "-1h"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Delay: -time.Hour}, "-1h"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "61 4 * * *"}, `"61 4 * * *": "61" is no minute (0 to 59)`},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "0 0 * * MONKEY", Delay: time.Hour}, `"MONKEY" is no day of the week`},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "0 0 30 2 *"}, `"0 0 30 2 *" is never due`},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "0 0 31 2 *", Delay: time.Hour}, `"0 0 31 2 *" is never due`},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "* * *"}, `"* * *" has 3 fields: five fields are needed`},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "*/5 * * * * *"}, "five fields"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Exclusive: []string{""}}, "empty"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Priority: 99999}, "99999"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Args: json.RawMessage("{oops")}, "a syntax error at byte 2"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Args: json.RawMessage(`{"$diagnostics": ["cpu"], "args": 1}`)}, "$diagnostics"},
		{tasking.Schedule{Name: "s", Task: "test.plain", Cron: "0 0 31 2 *", Next: &later}, `"0 0 31 2 *" is never due`},
		{tasking.Schedule{Name: "s\x00", Task: "test.plain"}, `"s\x00"`},
		{tasking.Schedule{Name: "s\xff", Task: "test.plain"}, `"s\xff"`},
	} {
		_, saved := h.c.SaveSchedule(t.Context(), tt.s)
		_, added := h.c.AddSchedule(t.Context(), tt.s)
		for _, err := range []error{saved, added, h.c.CheckSchedule(tt.s)} {
			if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("%+v: got %v, should be invalid and say %q", tt.s, err, tt.says)
			}
		}
	}
	h.wantRows("task_schedule", 0)
}
