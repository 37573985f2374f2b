package main

import (
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/doctor"
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
` + ok("connection", "direct: each of 4 client connections is a server connection") +
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
	contains(t, r.out, "through a pooler that multiplexes", "note     connection     a pooler multiplexes: 4 client connections")
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
