package worker

import (
	"context"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

type echoArgs struct {
	Text string `json:"text"`
}

func newClient(t *testing.T, d *dbtest.DB, types ...tasking.AnyType) *tasking.Client {
	t.Helper()
	reg, err := tasking.NewRegistry(types...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tasking.New(d.Pool, tasking.Config{Registry: reg, Log: d.Log})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs a worker until the test ends, or until the returned function is called.
func start(t *testing.T, c *tasking.Client, cfg Config) (w *Worker, stop func()) {
	t.Helper()
	w, err := New(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("worker: %v", err)
		}
	}
	t.Cleanup(stop)
	return w, stop
}

var echo = tasking.NewType("test.echo", func(_ context.Context, _ *tasking.Run, a echoArgs) (string, error) {
	return a.Text, nil
}, tasking.TypeConfig{})

func wait(t *testing.T, c *tasking.Client, ids ...tasking.Dispatched) []tasking.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out []tasking.Task
	for _, d := range ids {
		ts, err := c.Wait(ctx, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ts...)
	}
	return out
}

func TestTaskRunsAndReturnsItsResult(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d, echo)
	start(t, c, Config{Log: d.Log})
	id, err := c.Dispatch(t.Context(), echo.Request(echoArgs{"hello"}, tasking.Options{Exclusive: []string{"a"}, Shared: []string{"b"}}))
	if err != nil {
		t.Fatal(err)
	}
	task := wait(t, c, id)[0]
	got, err := echo.Result(task)
	if err != nil || got != "hello" {
		t.Fatalf("result = %q, %v", got, err)
	}
}
