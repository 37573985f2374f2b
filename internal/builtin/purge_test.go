package builtin_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

func TestPurgeReportsTheRowsOfEachKind(t *testing.T) {
	t.Parallel()
	client := connected(t, dbtest.New(t))
	end := func(requests ...tasking.Request) tasking.Task {
		t.Helper()
		made, err := client.DispatchMany(t.Context(), requests)
		if err != nil {
			t.Fatal(err)
		}
		drain(t, client)
		task, err := client.Get(t.Context(), made[len(made)-1].ID)
		if err != nil {
			t.Fatal(err)
		}
		return task
	}
	dummy, failing := tasking.Request{Name: module + "dummy_task"}, tasking.Request{Name: module + "failing_task"}
	kept := end(dummy, dummy, failing)
	all := tasking.Request{Name: builtin.Purge, Args: tasking.Purge{FinishedBefore: time.Now().Add(time.Hour), States: []tasking.State{tasking.Completed}}}
	for _, want := range []map[string]int64{
		{"purge.tasks.key.core.Task": 2, "purge.tasks.total": 2, "purge.tasks.error": 0},
		// The purge before, with what it reported.
		{"purge.tasks.key.core.Task": 1, "purge.tasks.key.core.ProgressReport": 3, "purge.tasks.total": 4, "purge.tasks.error": 0},
	} {
		task, got := end(all), map[string]int64{}
		for _, p := range task.Progress {
			got[p.Code] = p.Done
			if p.State != tasking.Completed || p.Message == "" || (p.Total != nil && *p.Total != p.Done) {
				t.Errorf("report: %+v", p)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || task.State != tasking.Completed {
			t.Errorf("the purge is %s, %v, and reports (-want +got):\n%s", task.State, task.Error, diff)
		}
	}
	if _, err := client.Get(t.Context(), kept.ID); err != nil {
		t.Errorf("what is in another state: %v", err)
	}
}

func TestPurgeOfNothingFails(t *testing.T) {
	t.Parallel()
	client := detached(t)
	for args, says := range map[string]string{
		`null`:                                "no states are named",
		`{}`:                                  "no states are named",
		`{"states": ["completed","running"]}`: `state "running" is not final`,
		`{"states": "completed"}`:             "decode arguments",
	} {
		out := client.Execute(t.Context(), tasking.Holder{ID: uuid.New()}, tasking.Claim{Name: builtin.Purge, Args: json.RawMessage(args)})
		if out.State != tasking.Failed || !strings.Contains(out.Error.Description, says) {
			t.Errorf("%s: %s, %v", args, out.State, out.Error)
		}
	}
}
