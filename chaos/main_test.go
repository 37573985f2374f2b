package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pithworks/pith/chaos/judge"
	"github.com/pithworks/pith/chaos/witness"
)

func TestBadCommandLinesAreRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ args, want string }{
		{"-duration 0s", "use a -duration"},
		{"-ttl 1ms", "use a -duration"},
		{"-workers 0", "use a -duration"},
		{"-seed x", "invalid value"},
		{"more", "there are no arguments"},
		{"-judge /does/not/exist", "/does/not/exist"},
		{"-dir /does/not/exist/either", "/does/not/exist/either"},
	} {
		var out, progress bytes.Buffer
		if code := start(t.Context(), strings.Fields(test.args), &out, &progress); code != exitUsage || !strings.Contains(progress.String(), test.want) {
			t.Errorf("%s: exit status %d, %s", test.args, code, progress.String())
		}
	}
}

// TestRunIsJudgedAgain judges from files what was written there.
func TestRunIsJudgedAgain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		state string
		code  int
		want  string
	}{
		{"completed", exitOK, ", 0 violations,"},
		{"waiting", exitViolated, "VIOLATION stuck: task"},
	} {
		dir := t.TempDir()
		record, err := witness.Record(filepath.Join(dir, eventsFile), filepath.Join(dir, "witness"))
		if err != nil {
			t.Fatal(err)
		}
		task := judge.Task{ID: [16]byte{1}, State: test.state, Attempt: 1, MaxAttempts: 1}
		for _, e := range []witness.Event{
			{Kind: witness.Dispatched, Task: task.ID, Client: "dispatcher"},
			{Kind: witness.Begun, Task: task.ID, Attempt: 1, Token: 1},
			{Kind: witness.Effect, Task: task.ID, Attempt: 1, Token: 1},
			{Kind: witness.Fault, Name: "kill"},
			{Kind: witness.Calm},
			{Kind: witness.Still},
		} {
			record.Add(e)
		}
		if err := record.Close(); err != nil {
			t.Fatal(err)
		}
		if err := writeRun(dir, judge.Run{Tasks: []judge.Task{task}, TTL: time.Second}); err != nil {
			t.Fatal(err)
		}
		var out, progress bytes.Buffer
		if code := start(t.Context(), []string{"-judge", dir}, &out, &progress); code != test.code || !strings.Contains(out.String(), test.want) {
			t.Errorf("%s: exit status %d\n%s%s", test.state, code, out.String(), progress.String())
		}
		if err := os.Remove(filepath.Join(dir, eventsFile)); err != nil {
			t.Fatal(err)
		}
		if code := start(t.Context(), []string{"-judge", dir}, &out, &progress); code != exitUsage {
			t.Errorf("without the log: exit status %d", code)
		}
	}
}
