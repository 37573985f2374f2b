package main

import (
	"context"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/doctor"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// careful are the settings that the deployment guide asks for.
var careful = map[string]string{
	"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
	"statement_timeout": "60s", "idle_in_transaction_session_timeout": "30s",
}

// volatile is what differs from run to run.
var volatile = regexp.MustCompile(`the database's clock is .* machine's|PostgreSQL 1\d.*|\d+ of \d+ in use|at version \d+|\d+/\d+|nobody holds a snapshot|the oldest of .* transactions old`)

func TestDoctorTellsSeverityByItsStatus(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, careful)
	db := s.New(t)
	if r := pith(t, db.DirectURL, "doctor"); r.code != exitOK || r.err != "" || !strings.Contains(r.out, "1 note\n") {
		t.Errorf("status %d, error %q:\n%s", r.code, r.err, r.out)
	}
	if _, err := db.Direct.Exec(t.Context(), "ALTER DATABASE "+db.Name+" SET statement_timeout = 0"); err != nil {
		t.Fatal(err)
	}
	r := pith(t, db.DirectURL, "doctor")
	if r.code != exitWarnings || r.err != "" {
		t.Errorf("status %d, error %q", r.code, r.err)
	}
	contains(t, r.out, "\nwarning  timeouts       statement_timeout is not set", "\n                          ALTER ROLE pith SET statement_timeout = '60s'", "\n1 warning, 1 note\n")
	if _, err := db.Direct.Exec(t.Context(), "DROP INDEX task_ready"); err != nil {
		t.Fatal(err)
	}
	r = pith(t, db.DirectURL, "doctor")
	if r.code != exitFailure || r.err != "" {
		t.Errorf("status %d, error %q", r.code, r.err)
	}
	contains(t, r.out, "\nerror    drift          index task_ready is missing", "\n1 error, 1 warning, 1 note\n")
	pith(t, "postgres://pith@127.0.0.1:1/pith", "doctor").wants(t, exitFailure, "database pith at 127.0.0.1:1 cannot be used")
	pith(t, db.DirectURL, "doctor", "--check-timeout=1us").wants(t, exitFailure, "cannot be used: no answer within 1µs")
	pith(t, db.DirectURL, "doctor", "--check-timeout=0s").wants(t, exitUsage, "--check-timeout must be positive")
}

func TestDoctorPrintsStableJSON(t *testing.T) {
	t.Parallel()
	db := dbtest.Private(t, careful).New(t)
	report := decode[doctor.Report](t, must(t, db.DirectURL, "doctor", "--output=json"))
	report.Target.Address, report.Target.Database, report.Target.Version = "", "", ""
	for i, f := range report.Findings {
		report.Findings[i].Message = volatile.ReplaceAllString(f.Message, "…")
	}
	var got strings.Builder
	s := &session{out: &got, cli: &cli{Output: "json"}}
	if err := s.print(report, func(io.Writer) {}); err != nil {
		t.Fatal(err)
	}
	ok := func(check, message string) string {
		return "    {\n      \"check\": \"" + check + "\",\n      \"severity\": \"ok\",\n      \"message\": \"" + message + "\"\n    },\n"
	}
	want := `{
  "target": {
    "address": "",
    "database": "",
    "role": "pith",
    "version": "",
    "connection": "direct"
  },
  "severity": "note",
  "findings": [
` + ok("connection", "direct: each of 2 client connections is a server connection") +
		ok("version", "…") +
		ok("statements", "unnamed: safe behind any pooler") +
		ok("visibility", "role pith sees all sessions") +
		ok("encoding", "UTF8") +
		ok("transactions", "read committed, and can be written") +
		ok("timeouts", "statement_timeout 1m0s, idle_in_transaction_session_timeout 30s") +
		ok("durability", "what is committed survives a crash") +
		ok("leaks", "no settings of others were met") +
		ok("clock", "…") +
		ok("schema", "…, as this binary needs it") +
		ok("drift", "as the migrations made it") +
		ok("privileges", "role pith may use all tables and functions") +
		ok("capacity", "…, 0 processes online") +
		ok("dead_rows", "live/dead rows: app_status …, resource_lock …, task …, task_reservation …") +
		ok("old_snapshots", "…") +
		`    {
      "check": "workers",
      "severity": "note",
      "message": "no worker is online",
      "remedy": "start one: ` + "`pith worker`" + `"
    },
` + ok("missing", "nobody is missing") +
		strings.TrimSuffix(ok("unrunnable", "nothing waits for a worker"), ",\n") + `
  ]
}
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestDoctorLooksThroughThePooler(t *testing.T) {
	t.Parallel()
	if !dbtest.Pooled() {
		t.Skip("this run has no pooler")
	}
	db := dbtest.New(t)
	r := pith(t, db.URL, "doctor")
	if r.code != exitWarnings {
		t.Errorf("status %d: %s", r.code, r.err)
	}
	contains(t, r.out, "through a pooler that multiplexes", "note     connection     a pooler multiplexes: 2 client connections")
}

// asRole makes a role that may log in and no more, and returns it with the address of the database for it.
func asRole(t *testing.T, d *dbtest.DB) (role, address string) {
	t.Helper()
	role = "role_" + d.Name[:min(len(d.Name), 50)]
	if _, err := d.Direct.Exec(t.Context(), "CREATE ROLE "+role+" LOGIN"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, sql := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := d.Direct.Exec(context.WithoutCancel(t.Context()), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return role, strings.Replace(d.DirectURL, "//pith@", "//"+role+"@", 1)
}

func TestGrantsThatTheDoctorAdvisesAreEnoughToWork(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	role, as := asRole(t, d)
	pith(t, as, "worker", "--burst").wants(t, exitFailure, "permission denied for table goose_db_version")
	r := pith(t, as, "doctor", "--output=json")
	if r.code != exitFailure {
		t.Errorf("status %d", r.code)
	}
	granted := 0
	for _, f := range decode[doctor.Report](t, r.out).Findings {
		if f.Severity == doctor.Error {
			if _, err := d.Direct.Exec(t.Context(), f.Remedy); err != nil {
				t.Fatalf("%s: %v", f.Remedy, err)
			}
			granted++
		}
	}
	if granted < 10 {
		t.Errorf("%d grants", granted)
	}
	r = pith(t, as, "doctor")
	if r.code != exitWarnings { // of the test's server
		t.Errorf("status %d: %s%s", r.code, r.out, r.err)
	}
	contains(t, r.out, "role "+role+" may use all tables and functions")

	group := mustJSON[newGroup](t, as, "group", "create", "group").ID.String()
	done := decode[dispatched](t, must(t, as, "task", "dispatch", dummyTask, "--exclusive=a", "--shared=b", "--group", group)).ID.String()
	must(t, as, "task", "dispatch", dummyTask, "--exclusive="+tasking.Domain)
	must(t, as, "task", "dispatch", dummyTask, "--exclusive=a", "--not-before=1ms")
	must(t, as, "task", "dispatch", asleepTask, "--args", `{"interval": 0}`, "--immediate")
	canceled := decode[dispatched](t, must(t, as, "task", "dispatch", dummyTask, "--exclusive=a")).ID.String()
	must(t, as, "task", "cancel", canceled)
	must(t, as, "task", "explain", done)
	must(t, as, "schedule", "add", "s", dummyTask, "--first=1ms")
	if _, err := d.Direct.Exec(t.Context(), `INSERT INTO app_status (id, app_type, name, ttl, last_heartbeat)
		VALUES (gen_random_uuid(), 'worker', 'gone', '1 s', now() - interval '1 h')`); err != nil {
		t.Fatal(err)
	}
	must(t, as, "worker", "--burst", "--log-level=error")
	must(t, as, "task", "wait", done)
	must(t, as, "schedule", "remove", "s")
	must(t, as, "group", "close", group)
	must(t, as, "workers")
	if got := mustJSON[map[string]int](t, as, "task", "purge", "--finished-before=0s", "--state=completed,canceled"); got["deleted"] < 4 {
		t.Errorf("purged %v", got)
	}
	p, err := pool.Open(t.Context(), as, pool.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := db.New().ProgressReportSave(t.Context(), p, db.ProgressReportSaveParams{State: "running"}); err != nil {
		t.Error(err)
	}
	if _, err := db.New().CreatedResourceSave(t.Context(), p, db.CreatedResourceSaveParams{}); err != nil {
		t.Error(err)
	}
}

func TestDoctorNeedsOneConnectionAtLeast(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	role, as := asRole(t, d)
	if _, err := d.Direct.Exec(t.Context(), "ALTER ROLE "+role+" CONNECTION LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	contains(t, pith(t, as, "doctor").out, "a second client connection was refused", "unnamed: safe behind any pooler")
}

func TestDoctorColorsTheSeverities(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	s := &session{out: &out, cli: &cli{Output: "text"}, color: true}
	r := doctor.Report{Findings: []doctor.Finding{
		{Check: "a", Severity: doctor.OK, Message: "m"},
		{Check: "bb", Severity: doctor.Error, Message: "m", Remedy: "r"},
	}}
	if err := s.print(r, func(w io.Writer) { s.report(w, r) }); err != nil {
		t.Fatal(err)
	}
	contains(t, out.String(), "\x1b[32mok\x1b[0m     a   m\n", "\x1b[31merror\x1b[0m  bb  m\n", "\x1b[39m\x1b[0m             r\n", "\n1 error\n")
	out.Reset()
	r.Findings = r.Findings[:1]
	if err := s.print(r, func(w io.Writer) { s.report(w, r) }); err != nil {
		t.Fatal(err)
	}
	contains(t, out.String(), "\nall is well\n")
}
