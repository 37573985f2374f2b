package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

func TestTaskOfAMissingWorkerFailsAndItsResourceIsFreed(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	g := newGate("test.gate")
	p, process := wired(t, d, &watch{}, 4)
	doomed := newClient(t, p, d, g)
	_, stop, _ := start(t, doomed, Config{TTL: time.Second, Log: d.Log})
	c := newClient(t, d.Pool, d, g, echo)
	id := dispatch(t, c, g.Request("x", tasking.Options{Exclusive: []string{"r"}}))
	next := dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{Exclusive: []string{"r"}}))
	receive(t, "start", g.started)
	process.cut()
	only := newClient(t, d.Pool, d, echo)
	start(t, only, Config{TTL: time.Second, Log: d.Log})
	if task := wait(t, c, id); task.State != tasking.Failed || task.Error.Reason != tasking.ReasonMissing {
		t.Errorf("task is %s, %v", task.State, task.Error)
	}
	if task := wait(t, c, next); task.State != tasking.Completed {
		t.Errorf("the next task is %s", task.State)
	}
	stop()
}

func TestWorkerStopsItsTasksBeforeItCountsAsMissing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	started := make(chan struct{}, 1)
	causes := make(chan error, 1)
	hold := tasking.NewType("test.hold", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		started <- struct{}{}
		<-ctx.Done()
		// Now, by the database's clock, the lease must still last.
		var online bool
		err := d.Direct.QueryRow(context.WithoutCancel(ctx),
			`SELECT last_heartbeat + ttl > clock_timestamp() FROM app_status a JOIN task t ON t.app_lock = a.id WHERE t.id = $1`, run.ID).Scan(&online)
		if err == nil && !online {
			err = errors.New("the lease had ended before the task was stopped")
		}
		if err == nil && !errors.Is(context.Cause(ctx), tasking.ErrLeaseLost) {
			err = context.Cause(ctx)
		}
		causes <- err
		return nil, nil
	}, tasking.TypeConfig{})
	p, process := wired(t, d, &watch{}, 4)
	c := newClient(t, d.Pool, d, hold)
	// A tenth of the TTL is left for stopping: enough for the question on a machine that is busy.
	_, stop, _ := start(t, newClient(t, p, d, hold), Config{TTL: 10 * time.Second, Log: d.Log})
	dispatch(t, c, hold.Request(nil, tasking.Options{}))
	receive(t, "start", started)
	process.cut()
	if err := receive(t, "stop", causes); err != nil {
		t.Error(err)
	}
	stop()
}

func TestWorkerThatWasDeclaredMissingStartsOver(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	g := newGate("test.gate")
	c := newClient(t, d.Pool, d, g)
	start(t, c, Config{TTL: time.Second, Auxiliary: true, Log: d.Log})
	first := dispatch(t, c, g.Request("x", tasking.Options{}))
	receive(t, "start", g.started)
	apps, err := appstatus.List(t.Context(), d.Pool, appstatus.Worker, 10, 0)
	if err != nil || len(apps) != 1 {
		t.Fatalf("apps = %v, %v", apps, err)
	}
	// Somebody else's sweep, as after a pause of the process.
	if n, err := db.New().AppStatusUnregister(t.Context(), d.Pool, pgUUID(apps[0].ID)); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	second := dispatch(t, c, g.Request("y", tasking.Options{}))
	if got := receive(t, "start under a new identity", g.started); got.ID != second.ID {
		t.Errorf("started %s", got.ID)
	}
	close(g.release)
	if task := wait(t, c, second); task.State != tasking.Completed {
		t.Errorf("task is %s", task.State)
	}
	// The first one belongs to nobody, and the fenced run has changed nothing.
	task, err := c.Get(t.Context(), first.ID)
	if err != nil || task.State != tasking.Running || task.Holder != nil {
		t.Errorf("the fenced task is %s, held by %v, %v", task.State, task.Holder, err)
	}
}
