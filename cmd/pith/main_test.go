package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// asPith makes the test binary behave as pith, for the processes that commands start.
const asPith = "PITH_TEST_AS_PITH"

func TestMain(m *testing.M) {
	runChild()
	if os.Getenv(asPith) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
	}
	dbtest.Main(m)
}

// environ is what a command gets: nothing of the machine's settings.
func environ(url string) []string {
	env := []string{asPith + "=1", "HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH")}
	if url != "" {
		env = append(env, "PITH_DATABASE_URL="+url)
	}
	return env
}

// result is what came of a command.
type result struct {
	code     int
	out, err string
}

// pith runs a command against a database.
func pith(t *testing.T, url string, args ...string) result {
	t.Helper()
	return pithIn(t, url, "", args...)
}

func pithIn(t *testing.T, url, in string, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := run(t.Context(), args, strings.NewReader(in), &out, &errOut, environ(url))
	return result{code, out.String(), errOut.String()}
}

// must runs a command that is to succeed, and returns what it prints.
func must(t *testing.T, url string, args ...string) string {
	t.Helper()
	r := pith(t, url, args...)
	if r.code != exitOK {
		t.Fatalf("pith %s: status %d: %s", strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// mustJSON decodes what a command prints.
func mustJSON[T any](t *testing.T, url string, args ...string) T {
	t.Helper()
	return decode[T](t, must(t, url, append(args, "--output", "json")...))
}

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	return v
}

// wants fails the test unless a command ended so, with that in its one line of error.
func (r result) wants(t *testing.T, code int, text string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.err, text) || !strings.HasPrefix(r.err, "pith: ") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("status %d, want %d; error %q, want one line with %q", r.code, code, r.err, text)
	}
}

func contains(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

const (
	dummyTask   = "pulpcore.app.tasks.test.dummy_task"
	sleepTask   = "pulpcore.app.tasks.test.sleep"
	asleepTask  = "pulpcore.app.tasks.test.asleep"
	failingTask = "pulpcore.app.tasks.test.failing_task"
)

func TestHelpAndVersionNeedNoDatabase(t *testing.T) {
	t.Parallel()
	contains(t, must(t, "", "--help"), "migrate", "worker", "demo", "$PITH_DATABASE_URL")
	contains(t, must(t, "", "task", "dispatch", "--help"), "--not-before", "$PITH_PRIORITY")
	v := mustJSON[map[string]any](t, "", "version")
	if v["core"] != builtin.Version || v["schema"] == nil {
		t.Errorf("version is %v", v)
	}
	contains(t, must(t, "", "version"), builtin.Version)
}

func TestBadInputIsRefusedInOneLine(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	const nobody = "11111111-1111-1111-1111-111111111111"
	var versions []string
	for i := range 800 {
		versions = append(versions, fmt.Sprintf("--version=c%d=1.0", i))
	}
	for _, tt := range []struct {
		name string
		in   string
		args []string
		code int
		text string
	}{
		{name: "no command", code: exitUsage, text: `expected one of "migrate"`},
		{name: "unknown command", args: []string{"tusk"}, code: exitUsage, text: "unexpected argument tusk"},
		{name: "unknown flag", args: []string{"worker", "--slots=3"}, code: exitUsage, text: "unknown flag --slots"},
		{name: "bad output", args: []string{"workers", "--output=xml"}, code: exitUsage, text: "must be one of"},
		{name: "bad log level", args: []string{"workers", "--log-level=loud"}, code: exitUsage, text: "log-level"},
		{name: "bad key", args: []string{"workers", "--args-key=abc"}, code: exitUsage, text: "argument key 1"},
		{name: "unknown type", args: []string{"task", "dispatch", "no.such.task"}, code: exitUsage, text: `"no.such.task": unknown task type; known are: pulpcore.app.tasks.purge.purge, pulpcore.app.tasks.test.afailing_task`},
		{name: "unknown type, immediate", args: []string{"task", "dispatch", "no.such.task", "--immediate"}, code: exitUsage, text: "unknown task type"},
		{name: "neither immediate nor deferred", args: []string{"task", "dispatch", dummyTask, "--no-deferred"}, code: exitUsage, text: "neither immediate nor deferred"},
		{name: "empty resource", args: []string{"task", "dispatch", dummyTask, "--exclusive="}, code: exitUsage, text: "a resource name is empty"},
		{name: "long resource", args: []string{"task", "dispatch", dummyTask, "--shared=" + strings.Repeat("x", 513)}, code: exitUsage, text: "513 bytes: at most 512"},
		{name: "prefix in resource", args: []string{"task", "dispatch", dummyTask, "--exclusive=shared:x"}, code: exitUsage, text: "must not begin with"},
		{name: "arguments", args: []string{"task", "dispatch", dummyTask, "--args={"}, code: exitUsage, text: "arguments are not JSON"},
		{name: "priority", args: []string{"task", "dispatch", dummyTask, "--priority=-10001"}, code: exitUsage, text: "priority -10001"},
		{name: "version", args: []string{"task", "dispatch", dummyTask, "--version=core=new"}, code: exitUsage, text: "not a PEP 440 version"},
		{name: "many versions", args: append([]string{"task", "dispatch", dummyTask}, versions...), code: exitUsage, text: "800 labels, at most 50 are possible: name only"},
		{name: "not before", args: []string{"task", "dispatch", dummyTask, "--not-before=tomorrow"}, code: exitUsage, text: `"tomorrow" is neither a time`},
		{name: "negative distance", args: []string{"task", "dispatch", dummyTask, "--not-before=-3s"}, code: exitUsage, text: "is negative"},
		{name: "group that is none", args: []string{"task", "dispatch", dummyTask, "--group=mine"}, code: exitUsage, text: `"mine" is neither a UUID`},
		{name: "unknown group", args: []string{"task", "dispatch", dummyTask, "--group=" + nobody}, code: exitFailure, text: "task group: not found"},
		{name: "unknown group, immediate", args: []string{"task", "dispatch", asleepTask, "--immediate", "--group=" + nobody}, code: exitFailure, text: "task group: not found"},
		{name: "empty input", args: []string{"task", "dispatch", "-"}, code: exitUsage, text: "standard input is empty"},
		{name: "input is no JSON", in: "{", args: []string{"task", "dispatch", "-"}, code: exitUsage, text: "not a request in JSON"},
		{name: "input is a list", in: "[]", args: []string{"task", "dispatch", "-"}, code: exitUsage, text: "not a request in JSON"},
		{name: "two inputs", in: `{"name": "a"} {"name": "b"}`, args: []string{"task", "dispatch", "-"}, code: exitUsage, text: "not a request in JSON"},
		{name: "unknown field", in: `{"name": "x", "exclusive": ["r"]}`, args: []string{"task", "dispatch", "-"}, code: exitUsage, text: `unknown field "exclusive"`},
		{name: "no name", in: `{}`, args: []string{"task", "dispatch", "-"}, code: exitUsage, text: "no name is given"},
		{name: "input and flags", in: `{}`, args: []string{"task", "dispatch", "-", "--priority=1"}, code: exitUsage, text: "no other flags"},
		{name: "unknown state", args: []string{"task", "list", "--state=happy"}, code: exitUsage, text: `unknown state "happy"; known are`},
		{name: "limit", args: []string{"task", "list", "--limit=0"}, code: exitUsage, text: "--limit must be positive"},
		{name: "id", args: []string{"task", "show", "17"}, code: exitUsage, text: `"17" is neither a UUID`},
		{name: "negative timeout", args: []string{"task", "wait", "--timeout=-1s", nobody}, code: exitUsage, text: "--timeout -1s is negative"},
		{name: "no such group", args: []string{"group", "show", nobody}, code: exitFailure, text: nobody + ": not found"},
		{name: "close no such group", args: []string{"group", "close", nobody}, code: exitFailure, text: nobody + ": not found"},
		{name: "cancel no such group", args: []string{"group", "cancel", nobody}, code: exitFailure, text: nobody + ": not found"},
		{name: "unknown task", args: []string{"task", "show", nobody}, code: exitFailure, text: nobody + ": not found"},
		{name: "explain unknown task", args: []string{"task", "explain", nobody}, code: exitFailure, text: "not found"},
		{name: "wait for unknown task", args: []string{"task", "wait", nobody}, code: exitFailure, text: "not found"},
		{name: "cancel unknown task", args: []string{"task", "cancel", nobody}, code: exitFailure, text: "not found"},
		{name: "cancel nothing", args: []string{"task", "cancel"}, code: exitUsage, text: "or --group"},
		{name: "purge what runs", args: []string{"task", "purge", "--state=running"}, code: exitUsage, text: `"running" is not final`},
		{name: "interval and cron", args: []string{"schedule", "add", "s", dummyTask, "--every=1h", "--cron=* * * * *"}, code: exitUsage, text: "exclude each other"},
		{name: "cron", args: []string{"schedule", "add", "s", dummyTask, "--cron=often"}, code: exitUsage, text: `cron expression "often" has 1 fields: five fields are needed`},
		{name: "cron that is never due", args: []string{"schedule", "add", "s", dummyTask, "--cron=0 0 31 2 *"}, code: exitUsage, text: `cron expression "0 0 31 2 *" is never due`},
		{name: "schedule of unknown type", args: []string{"schedule", "add", "s", "no.such.task"}, code: exitUsage, text: "unknown task type"},
		{name: "unknown schedule", args: []string{"schedule", "remove", "s"}, code: exitFailure, text: `"s": not found`},
		{name: "online and missing", args: []string{"workers", "--online", "--missing"}, code: exitUsage, text: "can't be used together"},
		{name: "no slots", args: []string{"worker", "--concurrency=-1"}, code: exitUsage, text: "concurrency -1"},
		{name: "no workers", args: []string{"demo", "--workers=0", t.TempDir()}, code: exitUsage, text: "0 workers"},
		{name: "no directory", args: []string{"demo", "/no/such/directory"}, code: exitUsage, text: "/no/such/directory"},
		{name: "no place to write", args: []string{"demo", "--out=/no/such/OUT", t.TempDir()}, code: exitUsage, text: "/no/such"},
		{name: "short lease", args: []string{"demo", "--ttl=100ms", t.TempDir()}, code: exitUsage, text: "ttl 100ms: at least a second is needed"},
		{name: "short lease of a worker", args: []string{"worker", "--ttl=999ms"}, code: exitUsage, text: "ttl 999ms: at least a second is needed"},
		{name: "negative lease", args: []string{"worker", "--ttl=-1s"}, code: exitUsage, text: "ttl -1s"},
		{name: "negative version", args: []string{"migrate", "down-to", "--", "-3"}, code: exitUsage, text: "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pithIn(t, db.URL, tt.in, tt.args...).wants(t, tt.code, tt.text)
		})
	}
	for _, table := range []string{"task", "task_group", "task_schedule", "app_status"} {
		var rows int
		if err := db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&rows); err != nil {
			t.Fatal(err)
		}
		if rows > 0 {
			t.Errorf("%d rows are left in %s", rows, table)
		}
	}
}

func TestUnreachableDatabaseIsNamedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	// A port that nobody listens on, for as long as we hold it.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	silent := "postgres://me:s3cret@" + address + "/pulp"
	for _, args := range [][]string{
		{"task", "list"},
		{"worker"},
		{"migrate", "up"},
		{"migrate", "status"},
		{"task", "dispatch", dummyTask},
		{"demo", "--database-url", silent, t.TempDir()},
	} {
		r := pith(t, silent, args...)
		r.wants(t, exitFailure, "database pulp at "+address+" cannot be used: connect: connection refused")
		if strings.Contains(r.err, "s3cret") {
			t.Errorf("the password is shown: %s", r.err)
		}
	}
	for url, text := range map[string]string{
		"": "set PITH_DATABASE_URL",
		"postgres://me:s3cret@" + address + "/pulp?search_path=x":   `startup parameter "search_path"`,
		"postgres://me:s3cret@" + address + "/pulp?sslmode=perhaps": "parse database URL",
		"host=127.0.0.1 password=s3cret port=many":                  "parse database URL",
		"postgres://me:s3%zzcret@" + address + "/pulp":              "parse database URL",
	} {
		r := pith(t, url, "task", "list")
		if r.code != exitUsage || !strings.Contains(strings.ToLower(r.err), strings.ToLower(text)) {
			t.Errorf("%s: status %d, error %s, want %q", url, r.code, r.err, text)
		}
		if strings.Contains(r.err, "s3") {
			t.Errorf("the password is shown: %s", r.err)
		}
	}
}

func TestSilentDatabaseIsGivenUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // connections are accepted by the kernel, and never answered
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begun := time.Now()
	pith(t, "postgres://me:s3cret@"+l.Addr().String()+"/pulp?sslmode=disable", "task", "list").
		wants(t, exitFailure, l.Addr().String()+" cannot be used: no answer within 10s")
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestMigrateBringsTheSchemaUpAndDown(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	newest := len(mustJSON[[]migration](t, db.URL, "migrate", "status"))
	applied := func(list []migration) (n int) {
		for _, m := range list {
			if m.AppliedAt != "" {
				n++
			}
		}
		return n
	}
	pith(t, db.URL, "task", "list").wants(t, exitFailure, "version 0, this binary needs "+strconv.Itoa(newest)+": run `pith migrate up`")
	pith(t, db.URL, "worker").wants(t, exitFailure, "run `pith migrate up`")
	if n := applied(mustJSON[[]migration](t, db.URL, "migrate", "up", "--log-level=error")); n != newest {
		t.Errorf("%d migrations are applied, want %d", n, newest)
	}
	contains(t, must(t, db.URL, "migrate", "status"), "VERSION", "00001_tasking.sql")
	must(t, db.URL, "task", "list")
	if n := applied(mustJSON[[]migration](t, db.URL, "migrate", "down")); n != newest-1 {
		t.Errorf("%d migrations are applied after down, want %d", n, newest-1)
	}
	pith(t, db.URL, "task", "list").wants(t, exitFailure, "run `pith migrate up`")
	if n := applied(mustJSON[[]migration](t, db.URL, "migrate", "down-to", "0")); n != 0 {
		t.Errorf("%d migrations are applied after down-to 0", n)
	}
	must(t, db.URL, "migrate", "up", "--log-level=error")
	if _, err := db.Direct.Exec(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true)"); err != nil {
		t.Fatal(err)
	}
	pith(t, db.URL, "task", "list").wants(t, exitFailure, "version 99, this binary knows only up to")
	pith(t, db.URL, "migrate", "down").wants(t, exitFailure, "version 99")
}

func TestTasksAreDispatchedRunAndPurged(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	good := decode[dispatched](t, must(t, db.URL, "task", "dispatch", sleepTask, "--args", `{"interval": 0}`,
		"--exclusive", "one, two", "--exclusive", "three", "--shared", "four", "--priority", "-3", "--correlation-id", "abc", "--versions", "core=3.1"))
	if good.Task != "/pulp/api/v3/tasks/"+good.ID.String()+"/" || good.State != tasking.Waiting {
		t.Errorf("dispatched is %+v", good)
	}
	bad := decode[dispatched](t, must(t, db.URL, "task", "dispatch", failingTask, "--args", `{"error_message": "as told"}`))

	shown := mustJSON[tasking.Task](t, db.URL, "task", "show", good.Task)
	if !slices.Equal(shown.Reserved, []string{"one, two", "three", "shared:four", "shared:" + tasking.Domain}) ||
		shown.Priority != -3 || shown.CorrelationID != "abc" || shown.Versions["core"] != "3.1" {
		t.Errorf("task is %+v", shown)
	}
	contains(t, must(t, db.URL, "task", "explain", good.ID.String()), "No worker is online", "one, two")
	list := mustJSON[[]taskView](t, db.URL, "task", "list", "--state", "waiting,running", "--resource", "three")
	if len(list) != 1 || list[0].ID != good.ID || list[0].Href != good.Task {
		t.Errorf("list is %+v", list)
	}
	pith(t, db.URL, "task", "wait", "--timeout=1ms", good.ID.String()).wants(t, exitFailure, "not all of these tasks are final after 1ms")

	must(t, db.URL, "worker", "--burst", "--log-level=error")
	contains(t, must(t, db.URL, "task", "wait", good.ID.String()), "completed")
	r := pith(t, db.URL, "task", "wait", good.ID.String(), bad.ID.String())
	r.wants(t, exitFailure, "task "+bad.ID.String()+" is failed: as told")
	contains(t, r.out, "completed", "failed")
	contains(t, must(t, db.URL, "task", "list"), good.ID.String(), bad.ID.String(), "STATE")
	contains(t, must(t, db.URL, "task", "show", bad.ID.String()), "as told", failingTask)
	contains(t, must(t, db.URL, "task", "explain", good.ID.String()), "It is completed since")

	if got := mustJSON[map[string]int](t, db.URL, "task", "purge"); got["deleted"] != 0 {
		t.Errorf("a fresh task is purged: %v", got)
	}
	if got := mustJSON[map[string]int](t, db.URL, "task", "purge", "--finished-before=0s", "--state=completed,failed"); got["deleted"] != 2 {
		t.Errorf("purged %v, want 2", got)
	}
}

func TestImmediateTasksRunInTheCommand(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	done := decode[dispatched](t, must(t, db.URL, "task", "dispatch", asleepTask, "--arg", `{"interval": 0}`, "--immediate", "--no-deferred"))
	if done.State != tasking.Completed {
		t.Errorf("immediate task is %+v", done)
	}
	failed := decode[dispatched](t, must(t, db.URL, "task", "dispatch", dummyTask, "--immediate"))
	if failed.State != tasking.Failed || failed.Error == nil || !strings.Contains(failed.Error.Description, "Immediate tasks must be async functions") {
		t.Errorf("task that is not immediate is %+v", failed)
	}
	pith(t, db.URL, "task", "dispatch", dummyTask, "--immediate", "--wait").wants(t, exitFailure, "Immediate tasks must be async functions")

	must(t, db.URL, "task", "dispatch", dummyTask, "--exclusive=r")
	busy := decode[dispatched](t, must(t, db.URL, "task", "dispatch", asleepTask, "--exclusive=r", "--immediate", "--no-deferred"))
	if busy.State != tasking.Canceled || busy.Error == nil || busy.Error.Reason != tasking.ReasonBusy {
		t.Errorf("task without a free resource is %+v", busy)
	}
	left := decode[dispatched](t, must(t, db.URL, "task", "dispatch", asleepTask, "--exclusive=r", "--immediate"))
	if left.State != tasking.Waiting {
		t.Errorf("deferrable task without a free resource is %+v", left)
	}
	contains(t, must(t, db.URL, "task", "explain", left.ID.String()), "r (exclusive, 1 ahead)", dummyTask)
	if list := mustJSON[[]map[string]any](t, db.URL, "workers", "--type=all"); len(list) > 0 {
		t.Errorf("app statuses are left: %v", list)
	}
}

func TestRequestsAreReadFromStandardInput(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	r := pithIn(t, db.URL, `{"name": "`+sleepTask+`", "args": {"interval": 0}, "exclusive_resources": ["r"], "deferred": true,
		"not_before": "2100-01-01T00:00:00Z", "priority": 7}`, "task", "dispatch", "-")
	if r.code != exitOK {
		t.Fatal(r.err)
	}
	id := decode[dispatched](t, r.out).ID
	task := mustJSON[tasking.Task](t, db.URL, "task", "show", id.String())
	if task.Priority != 7 || task.NotBefore == nil || task.NotBefore.Year() != 2100 || task.BlockedOn != nil {
		t.Errorf("task is %+v", task)
	}
	contains(t, must(t, db.URL, "task", "explain", id.String()), "It is not queued before 2100-01-01")

	in := must(t, db.URL, "task", "dispatch", sleepTask, "--not-before=1h")
	soon := mustJSON[tasking.Task](t, db.URL, "task", "show", decode[dispatched](t, in).ID.String())
	if soon.NotBefore == nil || time.Until(*soon.NotBefore) > time.Hour || time.Until(*soon.NotBefore) < 50*time.Minute {
		t.Errorf("in an hour is %v", soon.NotBefore)
	}
	pithIn(t, db.URL, `{"name": "`+sleepTask+`", "deferred": false}`, "task", "dispatch", "-").wants(t, exitUsage, "neither immediate nor deferred")
}

func TestTasksAndGroupsAreCanceled(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	one := decode[dispatched](t, must(t, db.URL, "task", "dispatch", dummyTask))
	contains(t, must(t, db.URL, "task", "cancel", one.Task), "canceled")
	pith(t, db.URL, "task", "wait", one.ID.String()).wants(t, exitFailure, "is canceled")
	for _, cancel := range [][]string{{"task", "cancel", "--group"}, {"group", "cancel"}} {
		group := strings.TrimSpace(must(t, db.URL, "group", "create", "group"))
		for range 3 {
			must(t, db.URL, "task", "dispatch", dummyTask, "--group", group)
		}
		if got := mustJSON[map[string]int](t, db.URL, append(cancel, group)...); got["canceled"] != 3 {
			t.Errorf("canceled %v, want 3", got)
		}
		contains(t, must(t, db.URL, append(cancel, group)...), "0 tasks canceled")
		if g := mustJSON[groupView](t, db.URL, "group", "show", group); g.Canceled != 3 || !g.AllTasksDispatched {
			t.Errorf("group is %+v", g)
		}
	}
}

func TestGroupsAreCreatedShownAndClosed(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	made := mustJSON[newGroup](t, db.URL, "group", "create", "sync\tof all")
	if made.Group != "/pulp/api/v3/task-groups/"+made.ID.String()+"/" {
		t.Errorf("made %+v", made)
	}
	must(t, db.URL, "task", "dispatch", dummyTask, "--group", made.Group)
	must(t, db.URL, "task", "dispatch", failingTask, "--args", `{"error_message": "as told"}`, "--group", made.Group)
	must(t, db.URL, "worker", "--burst", "--log-level=error")
	must(t, db.URL, "task", "dispatch", dummyTask, "--group", made.ID.String())
	g := mustJSON[groupView](t, db.URL, "group", "show", made.Group)
	if g.Href != made.Group || g.ID != made.ID || g.Description != "sync\tof all" || g.AllTasksDispatched ||
		g.Completed != 1 || g.Failed != 1 || g.Waiting != 1 {
		t.Errorf("group is %+v", g)
	}
	contains(t, must(t, db.URL, "group", "show", made.ID.String()), made.ID.String(), "sync of all", "dispatched  no", "waiting", "completed", "failed")
	contains(t, must(t, db.URL, "group", "close", made.Group), "group "+made.ID.String()+" closed")
	if got := mustJSON[map[string]string](t, db.URL, "group", "close", made.Group); got["closed"] != made.ID.String() {
		t.Errorf("closed %v", got)
	}
	contains(t, must(t, db.URL, "group", "show", made.ID.String()), "dispatched  yes")
}

func TestSchedulesAreAddedListedAndRemoved(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	contains(t, must(t, db.URL, "schedule", "add", "often", dummyTask, "--every=90s", "--first=1h"), "often", "1m30s")
	contains(t, must(t, db.URL, "schedule", "add", "nightly", sleepTask, "--cron=30 4 * * *", "--args", `{"interval": 1}`, "--exclusive=r"), "cron 30 4 * * *")
	once := mustJSON[[]scheduleView](t, db.URL, "schedule", "add", "once", dummyTask, "--first=2100-01-01T00:00:00Z")
	if len(once) != 1 || once[0].Next == nil || once[0].Next.Year() != 2100 || once[0].ID == uuid.Nil {
		t.Errorf("schedule is %+v", once)
	}
	list := mustJSON[[]scheduleView](t, db.URL, "schedule", "list")
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	if !slices.Equal(names, []string{"nightly", "often", "once"}) || list[1].Interval != "1m30s" || !slices.Equal(list[0].Exclusive, []string{"r"}) {
		t.Errorf("schedules are %+v", list)
	}
	contains(t, must(t, db.URL, "schedule", "remove", "often"), "schedule often removed")
	contains(t, must(t, db.URL, "schedule", "list"), "nightly", "once")
}

func TestEnvironmentSetsFlagsAndTheCommandLineWins(t *testing.T) {
	t.Parallel()
	env := append(environ(""), "PITH_OUTPUT=text", "PITH_OUTPUT=json")
	var out bytes.Buffer
	if code := run(t.Context(), []string{"version"}, nil, &out, &out, env); code != exitOK || !json.Valid(out.Bytes()) {
		t.Errorf("status %d, output %s", code, &out)
	}
	out.Reset()
	if code := run(t.Context(), []string{"version", "-o", "text"}, nil, &out, &out, env); code != exitOK || json.Valid(out.Bytes()) {
		t.Errorf("status %d, output %s", code, &out)
	}
}

func TestTextsForPeople(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1500 * time.Microsecond: "2ms", 1540 * time.Millisecond: "1.5s", 61 * time.Second: "1m1s",
		25 * time.Hour: "1d1h", 119 * time.Minute: "1h59m",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%s) = %s, want %s", d, got, want)
		}
	}
	var buf bytes.Buffer
	row(&buf, "a\tb", "c\nd", "", "")
	if got := buf.String(); got != "a b\tc d\n" {
		t.Errorf("row is %q", got)
	}
	if got := oneLine("a:\n\tb\n\nc\n"); got != "a:; b; c" {
		t.Errorf("one line is %q", got)
	}
}
