package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// start runs a command as a process of its own.
func start(t *testing.T, url string, args ...string) (*exec.Cmd, *dbtest.Output) {
	t.Helper()
	return startIn(t, environ(url), args...)
}

// startIn does so in an environment.
func startIn(t *testing.T, environment []string, args ...string) (*exec.Cmd, *dbtest.Output) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var errOut dbtest.Output
	cmd := exec.Command(self, args...)
	cmd.Env, cmd.Stderr = environment, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // only where the test has failed
			_ = cmd.Wait()
		}
	})
	return cmd, &errOut
}

func TestSignalsEndAWorkerAsPulpsDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		interval string
		args     []string
		signals  []os.Signal
		state    tasking.State
	}{
		{name: "SIGTERM lets the task end", interval: "1", signals: []os.Signal{syscall.SIGTERM}, state: tasking.Completed},
		{name: "SIGHUP lets the task end", interval: "1", args: []string{"--grace=0"}, signals: []os.Signal{syscall.SIGHUP}, state: tasking.Completed},
		{name: "SIGINT gives it grace", interval: "1", signals: []os.Signal{os.Interrupt}, state: tasking.Completed},
		{name: "SIGINT without grace aborts it", interval: "3600", args: []string{"--grace=0"}, signals: []os.Signal{os.Interrupt}, state: tasking.Failed},
		{name: "a second signal aborts it", interval: "3600", signals: []os.Signal{syscall.SIGTERM, os.Interrupt}, state: tasking.Failed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.New(t)
			task := decode[dispatched](t, must(t, db.URL, "task", "dispatch", sleepTask, "--args", `{"interval": `+tt.interval+`}`))
			cmd, log := start(t, db.URL, append([]string{"worker"}, tt.args...)...)
			dbtest.Until(t, "task runs", func(context.Context) (bool, error) {
				return mustJSON[tasking.Task](t, db.URL, "task", "show", task.Task).State == tasking.Running, nil
			})
			for _, sig := range tt.signals {
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("worker: %v\n%s", err, log)
			}
			ended := mustJSON[tasking.Task](t, db.URL, "task", "show", task.Task)
			if ended.State != tt.state {
				t.Errorf("task is %s (%v), want %s\n%s", ended.State, ended.Error, tt.state, log)
			}
			if tt.state == tasking.Failed && (ended.Error == nil || ended.Error.Reason != tasking.ReasonShutdown) {
				t.Errorf("error is %v, want %s", ended.Error, tasking.ReasonShutdown)
			}
			if list := mustJSON[[]appstatus.Status](t, db.URL, "workers"); len(list) > 0 {
				t.Errorf("app statuses are left: %+v", list)
			}
		})
	}
}

func TestThirdSignalKillsAWorkerThatCannotEnd(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	task := decode[dispatched](t, must(t, db.URL, "task", "dispatch", sleepTask, "--args", `{"interval": 3600}`))
	cmd, _ := start(t, db.URL, "worker")
	dbtest.Until(t, "task runs", func(context.Context) (bool, error) {
		return mustJSON[tasking.Task](t, db.URL, "task", "show", task.Task).State == tasking.Running, nil
	})
	// As long as this lasts, the worker cannot record how its task ended.
	tx, err := db.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), "LOCK TABLE task"); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // its state is looked at
	}()
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	// One that comes before the second was seen to has no effect of its own.
	dbtest.Until(t, "worker is killed", func(context.Context) (bool, error) {
		select {
		case <-exited:
			return true, nil
		default:
			_ = cmd.Process.Signal(syscall.SIGTERM) // fails only if it has exited
			return false, nil
		}
	})
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("worker ended with %s", cmd.ProcessState)
	}
}

func TestKilledWorkerIsMissingAndItsTaskFails(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	task := decode[dispatched](t, must(t, db.URL, "task", "dispatch", "pulpcore.app.tasks.test.missing_worker"))
	first, _ := start(t, db.URL, "worker", "--ttl=1s", "--name-template=first-{pid}")
	if err := first.Wait(); err == nil || first.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("worker ended with %v, want SIGKILL", err)
	}
	dbtest.Until(t, "worker is missing", func(context.Context) (bool, error) {
		return len(mustJSON[[]appstatus.Status](t, db.URL, "workers", "--missing")) == 1, nil
	})
	contains(t, must(t, db.URL, "workers"), "first-"+strconv.Itoa(first.Process.Pid), "missing")
	if list := mustJSON[[]appstatus.Status](t, db.URL, "workers", "--online"); len(list) > 0 {
		t.Errorf("online are %+v", list)
	}
	second, log := start(t, db.URL, "worker", "--ttl=1s")
	r := pith(t, db.URL, "task", "wait", task.Task)
	r.wants(t, exitFailure, tasking.ReasonMissing)
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("worker: %v\n%s", err, log)
	}
}

// files makes a directory with names that are hard on a manifest, and returns the lines it must have.
func files(t *testing.T) (dir, manifest string) {
	t.Helper()
	dir = t.TempDir()
	texts := map[string]string{"empty": "", "a,b": "comma", "with space": "space", "\"quoted\"": "quotes", "ünï/cödé ☃": "unicode", "-dash": "dash"}
	for i := range 40 {
		texts[fmt.Sprintf("many/%03d", i)] = strings.Repeat(strconv.Itoa(i), 1000*i)
	}
	var lines []string
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		lines = append(lines, fmt.Sprintf("%s,%s,%d\n", name, hex.EncodeToString(sum[:]), len(text)))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[:len(a)-66], b[:len(b)-66]) })
	if err := os.Symlink("empty", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "line\nbreak"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // nothing is unreadable for root
		if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s"), 0); err != nil {
			t.Fatal(err)
		}
	}
	return dir, strings.Join(lines, "")
}

func wantsManifest(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("manifest is\n%s\nwant\n%s", got, want)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left are %v, error %v", left, err)
	}
}

func TestDemoWritesTheManifest(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	dir, want := files(t)
	// In the directory itself, where a second run finds the first one's.
	out := filepath.Join(dir, "PULP_MANIFEST")
	for range 2 {
		r := pith(t, "", "demo", "--database-url", db.URL, "--workers=2", "--out", out, dir)
		if r.code != exitOK {
			t.Fatalf("status %d: %s", r.code, r.err)
		}
		contains(t, r.out, "the manifest is right: 46 sizes compared, all 46 files", `skipped "line\nbreak"`, "0 failed", "pick-up latency")
		contains(t, r.err, "migrating and using database "+db.Name+" at 127.0.0.1:")
		wantsManifest(t, out, want)
	}
}

func TestDemoLeavesTheDatabaseOfTheEnvironmentAlone(t *testing.T) {
	t.Parallel()
	db := dbtest.Empty(t)
	dir, want := files(t)
	out := filepath.Join(t.TempDir(), "OUT")
	r := pith(t, db.URL, "demo", "--workers=1", "--out", out, dir)
	if r.code != exitOK {
		t.Fatalf("status %d: %s", r.code, r.err)
	}
	wantsManifest(t, out, want)
	contains(t, r.err, "leaving the database of PITH_DATABASE_URL alone")
	for _, m := range mustJSON[[]migration](t, db.URL, "migrate", "status") {
		if m.AppliedAt != "" {
			t.Errorf("applied %+v", m)
		}
	}
}

func TestDemoSurvivesAKilledWorker(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	dir, want := files(t)
	out := filepath.Join(t.TempDir(), "OUT")
	r := pith(t, "", "demo", "--database-url", db.URL, "--dir", dir, "--workers=2", "--kill-a-worker", "--ttl=1s", "--out", out, "--output=json")
	if r.code != exitOK {
		t.Fatalf("status %d: %s", r.code, r.err)
	}
	contains(t, r.err, "with SIGKILL while it ran task", "is failed: "+tasking.ReasonMissing, "have no digests")
	sum := decode[struct {
		Tasks, Completed, Failed int
		Killed                   int      `json:"killed_workers"`
		Lost                     []string `json:"lost_tasks"`
	}](t, r.out)
	// A machine that stalls for the TTL loses another worker's task too. What
	// counts is that each lost one is named and computed again, and that only
	// the manifest task failed beside them.
	if sum.Killed != 1 || len(sum.Lost) == 0 || sum.Failed != len(sum.Lost)+1 || sum.Completed != sum.Tasks-sum.Failed {
		t.Errorf("summary is %+v", sum)
	}
	contains(t, r.err, fmt.Sprintf("dispatching again: %d of", len(sum.Lost)))
	wantsManifest(t, out, want)
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	dir, _ := files(t)
	out := filepath.Join(t.TempDir(), "OUT")
	if err := os.WriteFile(out, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, writer := io.Pipe()
	code := make(chan int, 1)
	go func() {
		// The lingering task keeps it from ending before.
		code <- run(ctx, []string{"demo", "--database-url", db.URL, "--dir", dir, "--workers=1", "--kill-a-worker", "--ttl=1h", "--out", out}, nil, io.Discard, writer, environ(""))
		_ = writer.Close() // never fails
	}()
	var text strings.Builder
	var pids []string
	for lines := bufio.NewScanner(reader); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if _, after, ok := strings.Cut(lines.Text(), "are online, processes "); ok {
			pids = strings.Fields(after)
		}
		if strings.Contains(lines.Text(), "with SIGKILL") {
			cancel()
		}
	}
	if got := <-code; got != exitFailure || !strings.Contains(text.String(), "pith: interrupted") {
		t.Errorf("status %d\n%s", got, &text)
	}
	wantsManifest(t, out, "old")
	if len(pids) == 0 {
		t.Error("no process was named")
	}
	for _, pid := range pids {
		if n, _ := strconv.Atoi(pid); syscall.Kill(n, 0) == nil {
			t.Errorf("process %s is left", pid)
		}
	}
	if list := mustJSON[[]taskView](t, db.URL, "task", "list", "--state=waiting"); len(list) > 0 {
		t.Errorf("%d tasks wait for nobody", len(list))
	}
}

func TestDevRunsUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, pooler := range []string{"pgbouncer", "rdsproxy"} {
		t.Run(pooler, func(t *testing.T) {
			t.Parallel()
			dev(t, pooler)
		})
	}
}

// dev runs pith dev with a pooler, and interrupts it.
func dev(t *testing.T, pooler string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	top, err := os.MkdirTemp("", "pith-dev-") // the database's user must be able to enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(top); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(top, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "dev")
	reader, writer := io.Pipe()
	var log bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"dev", "--data-dir", dir, "--log-level=warn", "--pooler", pooler, "--api", "127.0.0.1:0"}, nil, writer, &log, environ(""))
		_ = writer.Close() // never fails
	}()
	urls := map[string]string{}
	lines := bufio.NewScanner(reader)
	var client []string
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "pulp config create ") {
			client = strings.Fields(lines.Text())
		}
		if name, url, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "="); ok && len(urls) < 2 {
			urls[name] = strings.Trim(url, "'")
		}
		if strings.Contains(lines.Text(), "Ctrl-C") {
			break
		}
	}
	url := urls["PITH_DATABASE_URL"]
	if url == "" || urls["PITH_DIRECT_DATABASE_URL"] == "" {
		t.Fatalf("addresses are %v, status %d\n%s", urls, <-code, &log)
	}
	go func() { _, _ = io.Copy(io.Discard, reader) }()

	online := func() []appstatus.Status { return mustJSON[[]appstatus.Status](t, url, "workers", "--online") }
	dbtest.Until(t, "two workers are online", func(context.Context) (bool, error) { return len(online()) == 2, nil })
	number, _, _ := strings.Cut(online()[0].Name, "@")
	victim, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	dbtest.Until(t, "the killed worker is replaced", func(context.Context) (bool, error) { return len(online()) == 3, nil })
	must(t, url, "task", "dispatch", dummyTask, "--wait")
	setting := func(name string) string { return client[slices.Index(client, name)+1] } // the line's first word, if it is not there
	dbtest.Until(t, "the API answers admin", func(ctx context.Context) (bool, error) {
		status, _ := fetch(ctx, setting("--base-url")+"/pulp/api/v3/tasks/", setting("--username"), setting("--password"))
		return status == http.StatusOK, nil
	})
	pith(t, "", "dev", "--data-dir", dir).wants(t, exitFailure, "pith dev runs already")

	cancel()
	if got := <-code; got != exitOK {
		t.Errorf("status %d\n%s", got, &log)
	}
	if strings.Contains(log.String(), "not safe behind rds proxy") {
		t.Errorf("something pins: %s", &log)
	}
	pith(t, url, "workers").wants(t, exitFailure, "connection refused")
}
