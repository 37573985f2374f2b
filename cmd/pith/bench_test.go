package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

// tasksOf counts the tasks of a database by their type.
func tasksOf(t *testing.T, db *dbtest.DB) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, task := range mustJSON[[]tasking.Task](t, db.URL, "task", "list", "--limit", "1000") {
		counts[task.Name]++
	}
	return counts
}

func TestBenchMeasuresAndLeavesNothing(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	must(t, db.URL, "task", "dispatch", dummyTask)
	for _, s := range workload.Scenarios {
		r := mustJSON[workload.Result](t, db.URL, "bench", s.Name, "--tasks", "40", "--duration", "30s", "--slots", "7")
		if r.Scenario != s.Name || r.Tasks != 40 || r.Deleted != 40 || r.Rate <= 0 || r.Seconds <= 0 || r.Statements <= 0 ||
			r.P50 < 0 || r.P95 < r.P50 || r.P99 < r.P95 || r.P99 <= 0 {
			t.Errorf("%s: %+v", s.Name, r)
		}
		if got := tasksOf(t, db); len(got) != 1 || got[dummyTask] != 1 {
			t.Errorf("%s has left %v", s.Name, got)
		}
	}
	contains(t, must(t, db.URL, "bench", "chain", "--tasks", "20"), "TASKS/S", "chain", "task to task")
	// Most of the backlog is not reached.
	r := mustJSON[workload.Result](t, db.URL, "bench", "chain", "--tasks", "900", "--duration", "1ms")
	if r.Tasks >= 900 || r.Deleted != 900 {
		t.Errorf("cut short: %+v", r)
	}
	if got := tasksOf(t, db); len(got) != 1 {
		t.Errorf("one that was cut short has left %v", got)
	}
}

func TestBenchRemovesWhatAKilledOneHasLeft(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	c, err := workload.NewClient(db.Pool, workload.Nothing, tasking.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := workload.Fill(t.Context(), c, 30, workload.OneResource, nil); err != nil {
		t.Fatal(err)
	}
	if r := mustJSON[workload.Result](t, db.URL, "bench", "dispatch", "--tasks", "10"); r.Tasks != 10 || r.Deleted != 10 {
		t.Errorf("%+v", r)
	}
	if got := tasksOf(t, db); len(got) != 0 {
		t.Errorf("there are still %v", got)
	}
}

// An interrupting writer interrupts when it reads a word.
type interruptingWriter struct {
	bytes.Buffer
	at        string
	interrupt context.CancelFunc
}

func (w *interruptingWriter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.at) {
		w.interrupt()
	}
	return w.Buffer.Write(p)
}

func TestBenchCleansUpAfterAnInterrupt(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"dispatching", "measuring"} {
		db := dbtest.New(t)
		ctx, cancel := context.WithCancel(t.Context())
		errOut := &interruptingWriter{at: at, interrupt: cancel}
		var out bytes.Buffer
		code := run(ctx, []string{"bench", "chain", "--tasks", "5000", "--duration", "1h"}, strings.NewReader(""), &out, errOut, environ(db.URL))
		cancel()
		if code != exitFailure || out.Len() > 0 || !strings.Contains(errOut.String(), "pith: interrupted; ") {
			t.Errorf("at %s: status %d, %q, %q", at, code, out.String(), errOut.String())
		}
		if got := tasksOf(t, db); len(got) != 0 {
			t.Errorf("at %s: there are still %v", at, got)
		}
	}
}

func TestBenchTellsOfWhatItHasLeftAfterAnInterrupt(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	rename := func(from, to string) {
		if _, err := db.Direct.Exec(t.Context(), "ALTER TABLE "+from+" RENAME TO "+to); err != nil {
			t.Error(err)
		}
	}
	interrupt := &interruptingWriter{at: "dispatching", interrupt: cancel}
	breaks := &interruptingWriter{at: "cleaning up", interrupt: func() { rename("task_kind", "kinds") }}
	var out bytes.Buffer
	code := run(ctx, []string{"bench", "chain", "--tasks", "5000", "--duration", "1h"}, strings.NewReader(""), &out, io.MultiWriter(interrupt, breaks), environ(db.URL))
	rename("kinds", "task_kind")
	if code != exitFailure || !strings.Contains(interrupt.String(), "pith: interrupted; 0 tasks were deleted; clean up: ") {
		t.Errorf("status %d, %q", code, interrupt.String())
	}
}

func TestBenchRefusesWhatItCannotMeasure(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	for args, want := range map[string]string{
		"bench everything":           "must be one of",
		"bench noop --tasks 0":       "--tasks 0",
		"bench noop --duration 0s":   "--duration 0s",
		"bench noop --slots -1":      "--slots -1",
		"bench noop --connections 0": "--connections 0",
	} {
		pith(t, db.URL, strings.Fields(args)...).wants(t, exitUsage, want)
	}
}
