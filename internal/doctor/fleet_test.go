package doctor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

const dummy = "pulpcore.app.tasks.test.dummy_task"

// workerRow writes a worker that has beaten that many minutes ago, with a TTL of an hour.
func workerRow(name string, ago int, housekeeping bool, types ...string) string {
	return fmt.Sprintf(`INSERT INTO app_status (id, app_type, name, versions, task_names, housekeeping, ttl, last_heartbeat)
		VALUES (gen_random_uuid(), 'worker', '%s', '{"core": "%s"}', '{%s}', %t, '1 h', now() - interval '%d min')`,
		name, builtin.Version, strings.Join(types, ","), housekeeping, ago)
}

// dispatch hands out n tasks of the dummy type.
func dispatch(t *testing.T, d *dbtest.DB, n int, o tasking.Options) {
	t.Helper()
	registry, err := builtin.Registry()
	if err != nil {
		t.Fatal(err)
	}
	c, err := tasking.New(d.Direct, tasking.Config{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if _, err := c.Dispatch(t.Context(), tasking.Request{Name: dummy, Args: struct{}{}, Options: o}); err != nil {
			t.Fatal(err)
		}
	}
}

// claimed lets a worker hold all tasks that wait.
func claimed(by string) string {
	return fmt.Sprintf(`UPDATE task SET state = 'running', attempt = 1, started_at = now(),
		app_lock = (SELECT id FROM app_status WHERE name = '%s')`, by)
}

func TestTasksThatNobodyCanRunAreCounted(t *testing.T) {
	t.Parallel()
	age := "UPDATE task SET unblocked_at = now() - interval '90 s' WHERE unblocked_at IS NOT NULL"
	for _, tt := range []struct {
		name            string
		sql             []string
		severity        Severity
		message, remedy string
	}{
		{"nobody online", nil, Warning, "2 tasks of 1 types wait, the oldest for 1m3", "pith worker"},
		{"only a missing one", []string{workerRow("w", 61, true, dummy)}, Warning, "no worker is online", "pith worker"},
		{"unknown type", []string{workerRow("w", 0, true, "other")}, Warning, dummy + ": 2 waiting, the oldest for 1m3", "pith task list --name " + dummy},
		{"old versions", []string{workerRow("w", 0, true, dummy), `UPDATE app_status SET versions = '{"core": "3.1"}'`}, Warning, "no worker online that knows the type has core >= " + builtin.Version, "newer release"},
		{"one of two can", []string{workerRow("v", 0, true, "other"), workerRow("w", 0, true, dummy)}, OK, "2 tasks wait for a free slot only", ""},
		{"nothing waits", []string{workerRow("w", 0, true, dummy), claimed("w")}, OK, "nothing waits for a worker", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			dispatch(t, d, 2, tasking.Options{})
			execute(t, d, age)
			for _, sql := range tt.sql {
				execute(t, d, sql)
			}
			wantFinding(t, only(t, examine(t, d.Pool, nil), "unrunnable"), tt.severity, tt.message, tt.remedy)
		})
	}
	t.Run("blocked", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		execute(t, d, workerRow("w", 0, true, "other"))
		dispatch(t, d, 2, tasking.Options{Exclusive: []string{"r"}})
		wantFinding(t, only(t, examine(t, d.Pool, nil), "unrunnable"), Warning, dummy+": 1 waiting", "")
	})
}

func TestMissingProcessesAndWhatTheyHoldAreTold(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		sql             []string
		severity        Severity
		message, remedy string
	}{
		{"just gone", []string{workerRow("w", 70, true, dummy), claimed("w"), workerRow("v", 0, true, dummy)}, Note, "holds 2 tasks; the next sweep frees them", ""},
		{"since when", []string{workerRow("w", 70, true, dummy)}, Warning, "worker w is missing since 10m", ""},
		{"nobody sweeps", []string{workerRow("w", 70, true, dummy), claimed("w"), workerRow("v", 0, false, dummy)}, Warning, "holds 2 tasks; nobody is online to sweep it", "without --auxiliary"},
		{"nobody is online", []string{workerRow("w", 70, true, dummy)}, Warning, "holds 0 tasks; nobody is online to sweep it", "without --auxiliary"},
		{"not swept for long", []string{workerRow("w", 140, true, dummy), claimed("w"), workerRow("v", 0, true, dummy)}, Warning, "it should have been swept", "logs"},
		{"left behind", []string{workerRow("w", 0, true, dummy), claimed("nobody")}, Note, "2 tasks were left behind by processes that went missing; the next sweep ends them", ""},
		{"left behind for good", []string{claimed("nobody")}, Warning, "2 tasks were left behind by processes that went missing, and nobody is online to end them", "without --auxiliary"},
		{"all there", []string{workerRow("w", 50, true, dummy), claimed("w")}, OK, "nobody is missing", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			dispatch(t, d, 2, tasking.Options{})
			for _, sql := range tt.sql {
				execute(t, d, sql)
			}
			wantFinding(t, only(t, examine(t, d.Pool, nil), "missing"), tt.severity, tt.message, tt.remedy)
		})
	}
	t.Run("short TTL", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		for _, sql := range []string{workerRow("w", 10, true, dummy), "UPDATE app_status SET ttl = '1 s'", workerRow("v", 0, true, dummy)} {
			execute(t, d, sql)
		}
		wantFinding(t, only(t, examine(t, d.Pool, nil), "missing"), Warning, "it should have been swept", "logs")
		r := examine(t, d.Pool, func(d *Doctor) { d.limits.late = time.Hour })
		wantFinding(t, only(t, r, "missing"), Note, "the next sweep frees them", "")
	})
	t.Run("many", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		dispatch(t, d, 1, tasking.Options{})
		for i := range listed + 2 {
			execute(t, d, workerRow(fmt.Sprintf("w%d", i), 80-i, true, dummy))
		}
		execute(t, d, claimed(fmt.Sprintf("w%d", listed)))
		list := of(examine(t, d.Pool, nil), "missing")
		if len(list) != listed+1 {
			t.Fatalf("%d findings", len(list))
		}
		wantFinding(t, list[listed], Warning, "2 more processes are missing and hold 1 tasks", "")
	})
}

func TestDutiesThatNobodyDoesAreTold(t *testing.T) {
	t.Parallel()
	const overdue = "UPDATE task SET not_before = now() - interval '60 s', blocked_on = NULL, unblocked_at = NULL"
	const schedule = "INSERT INTO task_schedule (id, name, task_name, args, next_dispatch) VALUES (gen_random_uuid(), 's', 't', '{}', now() - interval '90 s')"
	for _, tt := range []struct {
		name            string
		sql             []string
		severity        Severity
		message, remedy string
	}{
		{"no worker", nil, Note, "no worker is online", "pith worker"},
		{"auxiliary only", []string{workerRow("w", 0, false, dummy)}, Warning, "all 1 workers online are auxiliary", "without --auxiliary"},
		{"due", []string{overdue}, Warning, "1 tasks and 0 schedules are due, for 1m0", "without --auxiliary"},
		{"due, and somebody should", []string{overdue, workerRow("w", 0, true, dummy)}, Warning, "1 tasks and 0 schedules are due", "logs"},
		{"schedule", []string{schedule, workerRow("w", 0, true, dummy)}, Warning, "0 tasks and 1 schedules are due, for 1m3", "logs"},
		{"just due", []string{overdue, "UPDATE task SET not_before = now() - interval '3 s'", workerRow("w", 0, true, dummy)}, OK, "1 workers online, 1 of them keep house", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			dispatch(t, d, 1, tasking.Options{})
			for _, sql := range tt.sql {
				execute(t, d, sql)
			}
			wantSome(t, examine(t, d.Pool, nil), "workers", tt.severity, tt.message, tt.remedy)
		})
	}
}
