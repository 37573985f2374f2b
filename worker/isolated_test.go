package worker

import (
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// isolatedClient is a client of the isolated types, and what they log.
func isolatedClient(t *testing.T, d *dbtest.DB) (*tasking.Client, *dbtest.Output) {
	t.Helper()
	log := &dbtest.Output{}
	c, err := tasking.New(d.Pool, tasking.Config{Registry: isolatedRegistry(), Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return c, log
}

func TestIsolatedTaskReportsThroughItsWorker(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c, log := isolatedClient(t, d)
	group, err := c.NewGroup(t.Context(), "a family")
	if err != nil {
		t.Fatal(err)
	}
	start(t, c, Config{Log: d.Log})
	task := wait(t, c, dispatch(t, c, isolated.Request(order{Do: "report", Number: 3}, tasking.Options{Group: &group, CorrelationID: "cid-1"})))
	if task.State != tasking.Completed {
		t.Fatalf("it is %s: %v", task.State, task.Error)
	}
	if len(task.Progress) != 2 || task.Progress[0].Done != 3 || *task.Progress[0].Total != 3 || task.Progress[1].Total != nil ||
		task.Progress[0].State != tasking.Completed || task.Progress[1].Suffix != "things" {
		t.Errorf("progress: %+v", task.Progress)
	}
	if len(task.Created) != 1 || len(task.Children) != 2 {
		t.Errorf("created %v, children %v", task.Created, task.Children)
	}
	for _, id := range task.Children {
		child := wait(t, c, tasking.Dispatched{ID: id})
		if child.State != tasking.Completed || child.CorrelationID != "cid-1" || *child.Parent != task.ID || *child.Group != group {
			t.Errorf("child: %+v", child)
		}
	}
	var args string
	if err := d.Direct.QueryRow(t.Context(), `SELECT args::text FROM task WHERE args::text LIKE '%big%'`).Scan(&args); err != nil || !strings.Contains(args, "9007199254740993") {
		t.Errorf("arguments of the child: %s, %v", args, err)
	}
	if g, err := c.GetGroup(t.Context(), group); err != nil || !g.AllTasksDispatched {
		t.Errorf("group: %+v, %v", g, err)
	}
	if task.Usage == nil || task.Usage.PeakMemory < 1<<20 || task.Usage.PeakMemory > 1<<30 || task.Usage.CPUSeconds <= 0 {
		t.Errorf("usage: %+v", task.Usage)
	}
	for _, want := range []string{"said in the child", "number=3", "printed in the child", "task=" + task.ID.String()} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, log)
		}
	}
}

func TestOnlyIsolatedTasksHaveUsage(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c, _ := isolatedClient(t, d)
	start(t, c, Config{Concurrency: 4, Log: d.Log})
	here := dispatch(t, c, echo.Request(echoArgs{"here"}, tasking.Options{}))
	apart := dispatch(t, c, isolatedEcho.Request(echoArgs{"apart"}, tasking.Options{}))
	if task := wait(t, c, here); task.Usage != nil {
		t.Errorf("one in the worker: %+v", task.Usage)
	}
	task := wait(t, c, apart)
	if got, err := isolatedEcho.Result(task); err != nil || got != "apart" || task.Usage == nil {
		t.Errorf("one apart: %q, %v, %+v", got, err, task.Usage)
	}
}

func TestEndOfAnIsolatedTaskIsRecorded(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c, log := isolatedClient(t, d)
	start(t, c, Config{Concurrency: 20, Log: d.Log})
	for _, test := range []struct {
		typ                 *tasking.Type[order, string]
		order               order
		reason, description string
		attempt             int
		result              string
	}{
		{typ: isolated, order: order{Do: "client"}, result: `"true"`},
		{typ: isolated, order: order{Do: "fail", Text: "on purpose"}, description: "wrapped: on purpose"},
		{typ: isolated, order: order{Do: "panic", Text: "on purpose"}, description: "panic: on purpose"},
		{typ: isolated, order: order{Do: "panic elsewhere", Text: "on purpose"}, reason: "Task process died unexpectedly with exitcode 2."},
		{typ: isolated, order: order{Do: "exit", Number: 3}, reason: "Task process died unexpectedly with exitcode 3."},
		{typ: isolated, order: order{Do: "kill", Number: 9}, reason: "Killed by signal 9."},
		{typ: limited, order: order{Do: "allocate", Number: 1000}, reason: "Out of memory: the task may have 100 MiB.", attempt: 2},
		{typ: timed, order: order{Do: "hang"}, reason: "Timed out: the task may take 100ms."},
		{typ: timed, order: order{Do: "heed"}, reason: "Timed out: the task may take 100ms."},
	} {
		task := wait(t, c, dispatch(t, c, test.typ.Request(test.order, tasking.Options{Exclusive: []string{"r"}})))
		var reason, description string
		if task.Error != nil {
			reason, description = task.Error.Reason, task.Error.Description
		}
		want := tasking.Failed
		if test.result != "" {
			want = tasking.Completed
		}
		if task.State != want || reason != test.reason || description != test.description || string(task.Result) != test.result ||
			task.Attempt != max(test.attempt, 1) || task.Usage == nil {
			t.Errorf("%+v: %s %s, attempt %d, error %+v, usage %+v", test.order, task.State, task.Result, task.Attempt, task.Error, task.Usage)
		}
	}
	if !strings.Contains(log.String(), "goroutine ") {
		t.Errorf("the log does not have what a process said that died:\n%s", log)
	}
}

func TestIsolatedTaskThatIgnoresItsCancellationIsKilled(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c, _ := isolatedClient(t, d)
	start(t, c, Config{Log: d.Log})
	file, runs := beacon(t)
	gooey := dispatch(t, c, hasty.Request(order{Do: "hang", Text: file}, tasking.Options{Exclusive: []string{"r"}}))
	next := dispatch(t, c, isolatedEcho.Request(echoArgs{}, tasking.Options{Exclusive: []string{"r"}}))
	pid := runs()
	if _, err := c.Cancel(t.Context(), gooey.ID); err != nil {
		t.Fatal(err)
	}
	if task := wait(t, c, gooey); task.State != tasking.Canceled || task.Error != nil {
		t.Errorf("it is %s: %v", task.State, task.Error)
	}
	dbtest.Until(t, "its process has ended", dbtest.Dead(pid))
	if task := wait(t, c, next); task.State != tasking.Completed {
		t.Errorf("the next one is %s", task.State)
	}
}

func TestShutdownEndsIsolatedTasks(t *testing.T) {
	t.Parallel()
	for _, do := range []string{"heed", "hang"} {
		d := dbtest.New(t)
		c, _ := isolatedClient(t, d)
		w, _, ended := start(t, c, Config{Log: d.Log})
		file, runs := beacon(t)
		task := dispatch(t, c, hasty.Request(order{Do: do, Text: file}, tasking.Options{}))
		pid := runs()
		w.Abort()
		if err := ended(); err != nil {
			t.Fatal(err)
		}
		if task := wait(t, c, task); task.State != tasking.Failed || task.Error.Reason != tasking.ReasonShutdown {
			t.Errorf("%s: it is %s: %+v", do, task.State, task.Error)
		}
		dbtest.Until(t, do+": its process has ended", dbtest.Dead(pid))
	}
}

func TestManyIsolatedSlotsShareTwoConnections(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	p, process := wired(t, d, &watch{}, 1) // and the beats' own
	c, err := tasking.New(p, tasking.Config{Registry: isolatedRegistry(), Log: d.Log})
	if err != nil {
		t.Fatal(err)
	}
	start(t, c, Config{Concurrency: 20, Log: d.Log})
	outside, _ := isolatedClient(t, d)
	group, err := outside.NewGroup(t.Context(), "a family")
	if err != nil {
		t.Fatal(err)
	}
	var requests []tasking.Request
	for range 60 {
		requests = append(requests, isolatedEcho.Request(echoArgs{"x"}, tasking.Options{Group: &group}))
	}
	tasks, err := outside.DispatchMany(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if task := wait(t, outside, task); task.State != tasking.Completed {
			t.Errorf("%s: %v", task.State, task.Error)
		}
	}
	process.mu.Lock()
	defer process.mu.Unlock()
	if n := len(process.conns); n > 2 {
		t.Errorf("the worker has %d connections", n)
	}
}

// TestStoppedWorkerIsFencedAndGoesOn stops a worker's process for longer than its lease.
func TestStoppedWorkerIsFencedAndGoesOn(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c, _ := isolatedClient(t, d)
	process := alone(t, d.URL)
	file, runs := beacon(t)
	doomed := dispatch(t, c, isolated.Request(order{Do: "hang", Text: file}, tasking.Options{Exclusive: []string{"r"}}))
	child := runs()
	var before uuid.UUID
	if err := d.Direct.QueryRow(t.Context(), `SELECT id FROM app_status`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	if err := process.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The child ends before others may take over, though its parent cannot do anything.
	dbtest.Until(t, "the child has ended", dbtest.Dead(child))
	var leased bool
	if err := d.Direct.QueryRow(t.Context(), `SELECT last_heartbeat + ttl > clock_timestamp() FROM app_status`).Scan(&leased); err != nil {
		t.Fatal(err)
	}
	if !leased {
		t.Error("the lease had ended before the child did")
	}
	// Others take over.
	only := newClient(t, d.Pool, d, echo)
	start(t, only, Config{TTL: time.Second, Log: d.Log})
	if task := wait(t, c, doomed); task.State != tasking.Failed || task.Error.Reason != tasking.ReasonMissing || task.Usage != nil {
		t.Errorf("it is %s: %v, %+v", task.State, task.Error, task.Usage)
	}
	if err := process.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if task := wait(t, c, dispatch(t, c, isolatedEcho.Request(echoArgs{"on"}, tasking.Options{Exclusive: []string{"r"}}))); task.State != tasking.Completed {
		t.Errorf("after that a task is %s: %v", task.State, task.Error)
	}
	var now uuid.UUID
	if err := d.Direct.QueryRow(t.Context(), `SELECT id FROM app_status WHERE name = 'alone'`).Scan(&now); err != nil || now == before {
		t.Errorf("the worker goes on as %s, was %s: %v", now, before, err)
	}
	if task := wait(t, c, doomed); task.State != tasking.Failed || task.Error.Reason != tasking.ReasonMissing {
		t.Errorf("its late end changed the task: %s, %v", task.State, task.Error)
	}
}

func TestChildDiesWithItsWorker(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c, _ := isolatedClient(t, d)
	process := alone(t, d.URL)
	file, runs := beacon(t)
	dispatch(t, c, isolated.Request(order{Do: "hang", Text: file}, tasking.Options{}))
	child := runs()
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dbtest.Until(t, "the child has ended", dbtest.Dead(child))
}

func TestWorkerOfIsolatedTypesNeedsItsDirectory(t *testing.T) {
	t.Parallel()
	p, err := pool.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none", pool.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c, err := tasking.New(p, tasking.Config{Registry: isolatedRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/does/not/exist", file} {
		if _, err := New(c, Config{WorkDir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
