package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
)

// TestProgramTellsNobodyItsSecrets looks at all that the program prints and logs, in each way in which passwords, tokens,
// keys and arguments are right, wrong, or misspelled.
func TestProgramTellsNobodyItsSecrets(t *testing.T) {
	t.Parallel()
	db, plain := guarded(t)
	withPassword := func(password string) string {
		return strings.Replace(plain, "postgres:///", "postgres://app:"+password+"@/", 1)
	}
	right, wrong := withPassword("sesame"), withPassword("mellon")
	key := func(b string) string { return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(b, 32))) }
	secrets := []string{"sesame", "mellon", "hush", key("a"), key("b"), "c2hvcnQ", strings.Repeat("a", 32)}
	quiet := func(what, text string) {
		t.Helper()
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %s:\n%s", what, secret, text)
			}
		}
	}
	tell := func(url string, code int, args ...string) {
		t.Helper()
		r := pith(t, url, append(args, "--log-level=debug")...)
		if r.code != code {
			t.Errorf("%s: status %d, want %d: %s", args, r.code, code, r.err)
		}
		quiet(fmt.Sprintf("%v", args), r.out+r.err)
	}
	withKey, otherKey := "--args-key="+key("a"), "--args-key="+key("b")

	// Arguments that are refused, and those that do not fit the task, which fails.
	tell(right, exitUsage, "task", "dispatch", sleepTask, withKey, `--args={"interval": hush}`)
	tell(right, exitUsage, "schedule", "add", "s", sleepTask, withKey, `--args={"interval": hush}`)
	for _, args := range []string{`{"interval": "hush"}`, `["hush"]`, `"hush"`} {
		tell(right, exitOK, "task", "dispatch", sleepTask, withKey, "--args="+args)
		tell(right, exitFailure, "task", "dispatch", asleepTask, "--immediate", "--wait", withKey, "--args="+args)
	}
	tell(right, exitOK, "worker", "--burst", withKey)
	tell(right, exitOK, "task", "dispatch", sleepTask, withKey, `--args={"interval": "hush"}`)
	tell(right, exitOK, "worker", "--burst", otherKey)
	tell(right, exitOK, "task", "dispatch", sleepTask, withKey, `--args={"interval": "hush"}`)
	tell(right, exitOK, "worker", "--burst")
	tell(right, exitOK, "task", "list", "--output=json")
	tell(right, exitOK, "schedule", "list", "--output=json")
	tell(right, exitUsage, "worker", "--args-key=c2hvcnQ=")
	tell(right, exitUsage, "worker", withKey, "--args-key=c2hvcnQ=")

	// Passwords and tokens. A command's password is what a token is.
	commands := [][]string{{"worker", "--burst"}, {"task", "list"}, {"task", "dispatch", dummyTask}, {"workers"}, {"doctor"}, {"migrate", "status"}, {"migrate", "up"}}
	for _, args := range commands {
		for _, way := range []struct {
			url  string
			args []string
			code int
		}{
			{wrong, nil, exitFailure},
			{plain, []string{"--password-command=echo mellon"}, exitFailure},
			{plain, []string{"--password-command=echo mellon; echo mellon"}, exitFailure},
			{plain, []string{"--password-command=echo mellon; exit 1"}, exitFailure},
			{wrong, []string{"--password-command=true"}, exitFailure},
			{withPassword("sesame/mellon"), nil, exitUsage},
			{withPassword("sesame%"), nil, exitUsage},
			{strings.Replace(plain, "user=app", "user=app&password=sesame&mellon=1", 1), nil, exitUsage},
		} {
			tell(way.url, way.code, append(way.args, args...)...)
		}
	}

	// A password that changes under a worker: first what it sends fails, then it cannot connect.
	var said dbtest.Output
	ended := make(chan int)
	go func() {
		ended <- run(t.Context(), []string{"worker", "--ttl=1s", "--log-level=debug", withKey}, strings.NewReader(""), &said, &said, environ(right))
	}()
	dbtest.Until(t, "the worker is online", func(ctx context.Context) (online bool, err error) {
		err = db.Direct.QueryRow(ctx, "SELECT EXISTS (SELECT FROM app_status)").Scan(&online)
		return online, err
	})
	if _, err := db.Direct.Exec(t.Context(), "ALTER ROLE app PASSWORD 'another'"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Direct.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"); err != nil {
		t.Fatal(err)
	}
	if code := <-ended; code != exitFailure {
		t.Errorf("the worker ended with %d", code)
	}
	contains(t, said.String(), "password authentication failed for user", "beat failed")
	quiet("a worker that is locked out", said.String())
}
