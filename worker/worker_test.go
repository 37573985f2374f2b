package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

const patience = 30 * time.Second

func newClient(t *testing.T, p *pgxpool.Pool, d *dbtest.DB, types ...tasking.AnyType) *tasking.Client {
	t.Helper()
	reg, err := tasking.NewRegistry(types...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tasking.New(p, tasking.Config{Registry: reg, Log: d.Log})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs a worker until the test ends, or until ended is called, which returns Run's error.
func start(t *testing.T, c *tasking.Client, cfg Config) (w *Worker, stop context.CancelFunc, ended func() error) {
	t.Helper()
	w, err := New(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	ended = sync.OnceValue(func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return errors.New("the worker did not end")
		}
	})
	t.Cleanup(func() {
		cancel()
		w.Abort()
		if err := ended(); err != nil {
			t.Errorf("worker: %v", err)
		}
	})
	return w, cancel, ended
}

func dispatch(t *testing.T, c *tasking.Client, r tasking.Request) tasking.Dispatched {
	t.Helper()
	d, err := c.Dispatch(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func wait(t *testing.T, c *tasking.Client, d tasking.Dispatched) tasking.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ts, err := c.Wait(ctx, d.ID)
	if err != nil {
		t.Fatal(err)
	}
	return ts[0]
}

func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

type echoArgs struct {
	Text string `json:"text"`
}

var echo = tasking.NewType("test.echo", func(_ context.Context, _ *tasking.Run, a echoArgs) (string, error) {
	return a.Text, nil
}, tasking.TypeConfig{})

// gate makes a task type whose tasks tell that they have started and run until they are released or
// their context ends, whose cause is then their error.
type gate struct {
	*tasking.Type[string, string]
	started chan tasking.Claim
	release chan struct{}
}

func newGate(name string) *gate {
	g := &gate{started: make(chan tasking.Claim, 1000), release: make(chan struct{})}
	g.Type = tasking.NewType(name, func(ctx context.Context, run *tasking.Run, a string) (string, error) {
		g.started <- run.Claim
		select {
		case <-g.release:
			return a, nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}, tasking.TypeConfig{})
	return g
}

func TestTaskRunsAndReturnsItsResult(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d.Pool, d, echo)
	start(t, c, Config{Log: d.Log})
	task := wait(t, c, dispatch(t, c, echo.Request(echoArgs{"hello"}, tasking.Options{Exclusive: []string{"a"}, Shared: []string{"b"}})))
	if got, err := echo.Result(task); err != nil || got != "hello" {
		t.Fatalf("result = %q, %v", got, err)
	}
	if task.Attempt != 1 || task.StartedAt == nil || task.UnblockedAt == nil || task.Holder != nil {
		t.Errorf("task = %+v", task)
	}
}

func TestManyTasksOnManySlotsAllRun(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	var ran atomic.Int64
	count := tasking.NewType("test.count", func(context.Context, *tasking.Run, int) (any, error) {
		ran.Add(1)
		return nil, nil
	}, tasking.TypeConfig{})
	c := newClient(t, d.Pool, d, count)
	start(t, c, Config{Concurrency: 50, Log: d.Log})
	const n = 2000
	rs := make([]tasking.Request, n)
	for i := range rs {
		rs[i] = count.Request(i, tasking.Options{Shared: []string{fmt.Sprint("r", i%7)}})
	}
	last := rs[n-1]
	last.Options = tasking.Options{Exclusive: []string{tasking.Domain}} // after all the others
	ds, err := c.DispatchMany(t.Context(), append(rs[:n-1], last))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, c, ds[n-1])
	if ran.Load() != n {
		t.Errorf("%d of %d tasks ran", ran.Load(), n)
	}
}

func TestRunningTaskIsCanceled(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	g := newGate("test.gate")
	c := newClient(t, d.Pool, d, g)
	start(t, c, Config{Log: d.Log})
	id := dispatch(t, c, g.Request("", tasking.Options{}))
	receive(t, "start", g.started)
	if s, err := c.Cancel(t.Context(), id.ID); err != nil || s != tasking.Canceling {
		t.Fatalf("cancel = %s, %v", s, err)
	}
	task := wait(t, c, id)
	if task.State != tasking.Canceled || task.Error != nil {
		t.Errorf("task is %s with error %v", task.State, task.Error)
	}
}

func TestWorkerClaimsOnlyWhatItCanRun(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	other := tasking.NewType[any, any]("test.other", nil, tasking.TypeConfig{})
	c := newClient(t, d.Pool, d, echo, other)
	start(t, c, Config{Versions: map[string]string{"core": "3.10.0"}, Concurrency: 4, Log: d.Log})
	unknown := dispatch(t, c, other.Request(nil, tasking.Options{Priority: 10}))
	later := dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{Versions: map[string]string{"core": "3.10.1"}}))
	label := dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{Versions: map[string]string{"file": "1"}}))
	// PEP 440, not text: 3.9 is earlier than 3.10.
	fits := wait(t, c, dispatch(t, c, echo.Request(echoArgs{"x"}, tasking.Options{Versions: map[string]string{"core": "3.9"}})))
	if fits.State != tasking.Completed {
		t.Errorf("the task that fits is %s", fits.State)
	}
	for _, id := range []tasking.Dispatched{unknown, later, label} {
		if task, err := c.Get(t.Context(), id.ID); err != nil || task.State != tasking.Waiting {
			t.Errorf("task %s needs %v and is %s, %v", task.Name, task.Versions, task.State, err)
		}
	}
	// A worker that can comes online, and they run.
	able := tasking.NewType("test.other", func(context.Context, *tasking.Run, any) (any, error) { return nil, nil }, tasking.TypeConfig{})
	c2 := newClient(t, d.Pool, d, echo, able)
	start(t, c2, Config{Versions: map[string]string{"core": "3.11", "file": "1.0"}, Log: d.Log})
	for _, id := range []tasking.Dispatched{unknown, later, label} {
		if task := wait(t, c, id); task.State != tasking.Completed {
			t.Errorf("task %s is %s", task.Name, task.State)
		}
	}
}

func TestImmediateThenPriorityThenOrder(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	var mu sync.Mutex
	var order []string
	note := tasking.NewType("test.note", func(_ context.Context, _ *tasking.Run, s string) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, s)
		return nil, nil
	}, tasking.TypeConfig{Immediate: true})
	c := newClient(t, d.Pool, d, note)
	var last tasking.Dispatched
	for _, r := range []tasking.Request{
		note.Request("second", tasking.Options{Priority: 5}),
		note.Request("third", tasking.Options{Priority: 5}),
		note.Request("last", tasking.Options{Priority: -1}),
		note.Request("fourth", tasking.Options{}),
		note.Request("first", tasking.Options{Immediate: true}),
	} {
		id := dispatch(t, c, r)
		if r.Args == "last" {
			last = id
		}
	}
	start(t, c, Config{Log: d.Log})
	wait(t, c, last)
	mu.Lock()
	defer mu.Unlock()
	if got := fmt.Sprint(order); got != "[first second third fourth last]" {
		t.Errorf("order = %s", got)
	}
}

func TestBurstDrainsAndEnds(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d.Pool, d, echo)
	var ids []tasking.Dispatched
	for range 5 {
		ids = append(ids, dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{Exclusive: []string{"one"}})))
	}
	_, _, ended := start(t, c, Config{Burst: true, Log: d.Log})
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if task, err := c.Get(t.Context(), id.ID); err != nil || task.State != tasking.Completed {
			t.Errorf("task is %s, %v", task.State, err)
		}
	}
	if apps, err := appstatus.List(t.Context(), d.Pool, "", 10, 0); err != nil || len(apps) != 0 {
		t.Errorf("apps left = %v, %v", apps, err)
	}
}

func TestBurstEndsInAFleetWhoseBeatsServeAsPolls(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	// A fleet of a thousand, as nobody counts it anew.
	if _, err := d.Direct.Exec(t.Context(), "INSERT INTO app_fleet VALUES ('worker', 1000, 1000, 0, now() + interval '1 hour')"); err != nil {
		t.Fatal(err)
	}
	_, _, ended := start(t, newClient(t, d.Pool, d, echo), Config{Burst: true, Log: d.Log})
	if err := ended(); err != nil {
		t.Fatal(err)
	}
}

func TestStoppingWorkerLetsItsTaskEnd(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"context", "drain"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			g := newGate("test.gate")
			c := newClient(t, d.Pool, d, g)
			w, stop, ended := start(t, c, Config{Log: d.Log})
			running := dispatch(t, c, g.Request("x", tasking.Options{Exclusive: []string{"r"}}))
			waiting := dispatch(t, c, g.Request("y", tasking.Options{Exclusive: []string{"r"}}))
			receive(t, "start", g.started)
			if how == "drain" {
				w.Drain()
			} else {
				stop()
			}
			g.release <- struct{}{}
			if err := ended(); err != nil {
				t.Fatal(err)
			}
			if task := wait(t, c, running); task.State != tasking.Completed {
				t.Errorf("the running task is %s", task.State)
			}
			if task, err := c.Get(t.Context(), waiting.ID); err != nil || task.State != tasking.Waiting || *task.BlockedOn != 0 {
				t.Errorf("the next task is %s, %v", task.State, err)
			}
		})
	}
}

func TestAbortedTaskFailsWithTheReason(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	g := newGate("test.gate")
	c := newClient(t, d.Pool, d, g)
	w, stop, ended := start(t, c, Config{Grace: -1, Log: d.Log})
	id := dispatch(t, c, g.Request("x", tasking.Options{}))
	receive(t, "start", g.started)
	stop()
	w.Abort()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	if task := wait(t, c, id); task.State != tasking.Failed || task.Error.Reason != tasking.ReasonShutdown {
		t.Errorf("task is %s, %v", task.State, task.Error)
	}
}

func TestGraceEndsInAbort(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	g := newGate("test.gate")
	c := newClient(t, d.Pool, d, g)
	_, stop, ended := start(t, c, Config{Grace: time.Nanosecond, Log: d.Log})
	id := dispatch(t, c, g.Request("x", tasking.Options{}))
	receive(t, "start", g.started)
	stop()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	if task := wait(t, c, id); task.State != tasking.Failed || task.Error.Reason != tasking.ReasonShutdown {
		t.Errorf("task is %s, %v", task.State, task.Error)
	}
}

func TestFailedAttemptIsRetriedOnTheSameRecord(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	flaky := tasking.NewType("test.flaky", func(_ context.Context, run *tasking.Run, _ any) (int, error) {
		if run.Attempt < 3 {
			return 0, errors.New("not yet")
		}
		return run.Attempt, nil
	}, tasking.TypeConfig{MaxAttempts: 3, Backoff: time.Millisecond})
	c := newClient(t, d.Pool, d, flaky)
	start(t, c, Config{Log: d.Log})
	task := wait(t, c, dispatch(t, c, flaky.Request(nil, tasking.Options{Exclusive: []string{"r"}})))
	if n, err := flaky.Result(task); err != nil || n != 3 || task.Attempt != 3 {
		t.Errorf("result = %d after %d attempts, %v", n, task.Attempt, err)
	}
}

func TestChildrenInheritAndProgressIsRecorded(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	parent := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, n int) (any, error) {
		p, err := run.Progress(ctx, "Dispatching", "test.dispatch", int64(n), "tasks")
		if err != nil {
			return nil, err
		}
		for range n {
			if _, err := run.Dispatch(ctx, echo.Request(echoArgs{"child"}, tasking.Options{})); err != nil {
				return nil, err
			}
			if err := p.Add(ctx, 1); err != nil {
				return nil, err
			}
		}
		if err := run.AddCreatedResource(ctx, "prn:file.filerepository:1"); err != nil {
			return nil, err
		}
		return nil, run.AddCreatedResource(ctx, "prn:file.filerepository:2")
	}, tasking.TypeConfig{})
	c := newClient(t, d.Pool, d, parent, echo)
	group, err := c.NewGroup(t.Context(), "a family")
	if err != nil {
		t.Fatal(err)
	}
	start(t, c, Config{Concurrency: 2, Log: d.Log})
	task := wait(t, c, dispatch(t, c, parent.Request(3, tasking.Options{Group: &group, CorrelationID: "cid-1"})))
	if len(task.Children) != 3 || fmt.Sprint(task.Created) != "[prn:file.filerepository:1 prn:file.filerepository:2]" {
		t.Errorf("children %v, created %v", task.Children, task.Created)
	}
	if len(task.Progress) != 1 || task.Progress[0].Done != 3 || task.Progress[0].State != tasking.Completed {
		t.Errorf("progress = %+v", task.Progress)
	}
	for _, id := range task.Children {
		child := wait(t, c, tasking.Dispatched{ID: id})
		if child.CorrelationID != "cid-1" || child.Parent == nil || *child.Parent != task.ID || child.Group == nil || *child.Group != group {
			t.Errorf("child = %+v", child)
		}
	}
	g, err := c.GetGroup(t.Context(), group)
	if err != nil || g.Completed != 4 || g.Unfinished() != 0 {
		t.Errorf("group = %+v, %v", g, err)
	}
}

func TestScheduleIsDispatchedByWorkersOncePerDueTime(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	ran := make(chan tasking.Claim, 100)
	tick := tasking.NewType("test.tick", func(_ context.Context, run *tasking.Run, _ any) (any, error) {
		ran <- run.Claim
		return nil, nil
	}, tasking.TypeConfig{})
	c := newClient(t, d.Pool, d, tick)
	if _, err := c.SaveSchedule(t.Context(), tasking.Schedule{Name: "tick", Task: tick.Name(), Interval: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		start(t, c, Config{Log: d.Log})
	}
	receive(t, "scheduled task", ran)
	list, err := c.Schedules(t.Context(), 10, 0)
	if err != nil || len(list) != 1 || list[0].LastTask == nil || list[0].Next == nil || time.Until(*list[0].Next) < 50*time.Minute {
		t.Fatalf("schedules = %+v, %v", list, err)
	}
	wait(t, c, tasking.Dispatched{ID: *list[0].LastTask})
	if tasks, err := c.List(t.Context(), tasking.Filter{}); err != nil || len(tasks) != 1 {
		t.Errorf("%d tasks, %v", len(tasks), err)
	}
}

func TestWorkerSurvivesAnOutageOfDatabaseAndPooler(t *testing.T) {
	t.Parallel()
	if !dbtest.Pooled() {
		t.Skip("needs the pooler")
	}
	services := dbtest.Private(t, nil)
	d := services.New(t)
	c := newClient(t, d.Pool, d, echo)
	start(t, c, Config{TTL: 20 * time.Second, Log: d.Log})
	wait(t, c, dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{})))
	if err := services.Pooler.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(t, c, dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{})))
	if err := services.Server.Restart(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	wait(t, c, dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{})))
}

func TestOutcomeThatTheDatabaseRefusesFailsItsTaskOnly(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	odd := tasking.NewType("test.odd", func(_ context.Context, _ *tasking.Run, depth int) (any, error) {
		// The database's parser gives up at a depth that Go's encoder still writes.
		var v any
		for range depth {
			v = []any{v}
		}
		return v, nil
	}, tasking.TypeConfig{})
	c := newClient(t, d.Pool, d, odd)
	start(t, c, Config{Concurrency: 4, Log: d.Log})
	bad := dispatch(t, c, odd.Request(200_000, tasking.Options{}))
	good := dispatch(t, c, odd.Request(3, tasking.Options{}))
	if task := wait(t, c, good); task.State != tasking.Completed {
		t.Errorf("the good task is %s", task.State)
	}
	if task := wait(t, c, bad); task.State != tasking.Failed || !strings.Contains(task.Error.Description, "refused the outcome") {
		t.Errorf("the bad task is %s, %v", task.State, task.Error)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	declared := tasking.NewType[any, any]("test.declared", nil, tasking.TypeConfig{})
	for name, tc := range map[string]struct {
		types []tasking.AnyType
		cfg   Config
	}{
		"negative concurrency": {[]tasking.AnyType{echo}, Config{Concurrency: -1}},
		"nothing to run":       {[]tasking.AnyType{declared}, Config{}},
		"negative ttl":         {[]tasking.AnyType{echo}, Config{TTL: -time.Second}},
	} {
		if _, err := New(newClient(t, d.Pool, d, tc.types...), tc.cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(nil, Config{}); err == nil {
		t.Error("no client: no error")
	}
}
