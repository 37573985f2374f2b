package isolate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/isolate"
)

func newPool(t *testing.T) *isolate.Pool {
	t.Helper()
	p := isolate.New(isolate.Config{Dir: t.TempDir()})
	t.Cleanup(p.Close)
	return p
}

// job makes a job that takes place within a minute.
func job(t *testing.T, o order) isolate.Job {
	t.Helper()
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return isolate.Job{Body: body, Name: "test", Time: time.Minute}
}

func do(t *testing.T, p *isolate.Pool, j isolate.Job) isolate.Result {
	t.Helper()
	r, err := p.Do(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// answerTo is what a job returns that does not die.
func answerTo(t *testing.T, p *isolate.Pool, j isolate.Job) string {
	t.Helper()
	r := do(t, p, j)
	if r.Death != nil {
		t.Fatalf("%s died: %v\n%s", j.Body, r.Death, r.Death.Output)
	}
	return untext(t, r.Body)
}

// forgiving lets a job go on for a minute when it is to stop.
func forgiving(error) time.Duration { return time.Minute }

func TestJobsRunInOtherProcessesThatAreUsedAgain(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	first := answerTo(t, p, job(t, order{Do: "pid"}))
	if first == fmt.Sprint(os.Getpid()) {
		t.Error("the job ran in this process")
	}
	for range 20 {
		if again := answerTo(t, p, job(t, order{Do: "pid"})); again != first {
			t.Fatalf("a second process: %s after %s", again, first)
		}
	}
}

func TestJobsAtTheSameTimeHaveProcessesOfTheirOwn(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	meet := make(chan struct{})
	var all sync.WaitGroup
	for range 8 {
		j := job(t, order{Do: "call"})
		j.Answer = func(_ context.Context, _ string, body json.RawMessage) json.RawMessage {
			meet <- struct{}{}
			return body
		}
		all.Go(func() {
			if _, err := p.Do(t.Context(), j); err != nil {
				t.Error(err)
			}
		})
	}
	for range 8 {
		<-meet
	}
	all.Wait()
}

func TestBodiesAnswersAndNotesArriveWhole(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	long := strings.Repeat("Wörter & <mehr> \u2028", 100_000)
	if got := answerTo(t, p, job(t, order{Do: "echo", Text: long})); got != long {
		t.Errorf("%d bytes came back of %d", len(got), len(long))
	}
	j := job(t, order{Do: "call", Text: long})
	j.Answer = func(_ context.Context, name string, body json.RawMessage) json.RawMessage {
		if name != "ask" || untext(t, body) != long {
			t.Errorf("asked %s with %d bytes", name, len(body))
		}
		return text("42")
	}
	if got := answerTo(t, p, j); got != "42" {
		t.Errorf("the answer was %q", got)
	}
	var notes []string
	j = job(t, order{Do: "note", Number: 1000})
	j.Note = func(body json.RawMessage) { notes = append(notes, untext(t, body)) }
	answerTo(t, p, j)
	for i, n := range notes {
		if n != fmt.Sprint(i) {
			t.Fatalf("note %d is %s", i, n)
		}
	}
	if len(notes) != 1000 {
		t.Errorf("%d notes of 1000", len(notes))
	}
}

func TestWorkingDirectoryGoesWithTheJob(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	p := isolate.New(isolate.Config{Dir: base})
	defer p.Close()
	dir := answerTo(t, p, job(t, order{Do: "directory"}))
	if rel, err := filepath.Rel(base, dir); err != nil || strings.HasPrefix(rel, "..") {
		t.Fatalf("it worked in %s", dir)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the job: %v", err)
	}
	if other := answerTo(t, p, job(t, order{Do: "directory"})); other == dir {
		t.Error("two jobs had the same directory")
	}
	p.Close()
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDirectoriesOfTheDeadAreRemovedAndThoseOfTheLivingAreNot(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	living := isolate.New(isolate.Config{Dir: base})
	defer living.Close()
	answerTo(t, living, job(t, order{Do: "echo"}))
	dead := filepath.Join(base, "pith-work-dead")
	if err := os.MkdirAll(filepath.Join(dead, "job"), 0o700); err != nil {
		t.Fatal(err)
	}
	young := filepath.Join(base, "pith-work-young")
	if err := os.Mkdir(young, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if name := filepath.Join(base, e.Name()); name != young {
			if err := os.Chtimes(name, time.Now(), time.Now().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := isolate.New(isolate.Config{Dir: base})
	defer other.Close()
	answerTo(t, other, job(t, order{Do: "echo"}))
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left behind: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("one that is being made: %v", err)
	}
	answerTo(t, living, job(t, order{Do: "directory"}))
}

func TestEnvironmentHasNoSecrets(t *testing.T) {
	t.Setenv("PITH_ARGS_KEYS", "secret")
	t.Setenv("PGPASSWORD", "secret")
	t.Setenv("ASKED_FOR", "given")
	p := newPool(t)
	plain := answerTo(t, p, job(t, order{Do: "environment"}))
	if strings.Contains(plain, "secret") || strings.Contains(plain, "ASKED_FOR") || !strings.Contains(plain, "PATH=") {
		t.Errorf("it has:\n%s", plain)
	}
	j := job(t, order{Do: "environment"})
	j.Env = []string{"ASKED_FOR", "NOT_SET"}
	if more := answerTo(t, p, j); !strings.Contains(more, "ASKED_FOR=given") || strings.Contains(more, "secret") {
		t.Errorf("one that asks has:\n%s", more)
	}
	if again := answerTo(t, p, job(t, order{Do: "environment"})); strings.Contains(again, "ASKED_FOR") {
		t.Error("another job got the process of one that asked for more")
	}
}

func TestWhatAJobLeavesRunningIsKilled(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for _, o := range []order{{Do: "descendants"}, {Do: "descendants", Text: "hang"}, {Do: "daemon"}, {Do: "daemon", Text: "hang"}} {
		var orphan int
		j, end := job(t, o), o.Text
		ctx, cancel := context.WithCancel(t.Context())
		j.Note = func(body json.RawMessage) {
			orphan, _ = strconv.Atoi(untext(t, body))
			if end == "hang" {
				cancel()
			}
		}
		if _, err := p.Do(ctx, j); err != nil {
			t.Fatal(err)
		}
		cancel()
		if orphan == 0 {
			t.Fatal("nothing was started")
		}
		dbtest.Until(t, "the orphan is gone", dbtest.Dead(orphan))
	}
}

func TestCallsOfAJobThatHasEndedReachNobody(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	answerTo(t, p, job(t, order{Do: "call on"}))
	for range 20 {
		j := job(t, order{Do: "call", Text: "mine"})
		j.Answer = func(_ context.Context, name string, body json.RawMessage) json.RawMessage {
			if name != "ask" {
				t.Errorf("an earlier job called %s", name)
			}
			return body
		}
		if got := answerTo(t, p, j); got != "mine" {
			t.Errorf("answered %q", got)
		}
	}
}

func TestCloseKillsWhatRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := isolate.New(isolate.Config{Dir: dir})
	j := job(t, order{Do: "hang"})
	j.Note = func(json.RawMessage) { go p.Close() }
	if r := do(t, p, j); r.Death == nil {
		t.Errorf("%+v", r)
	}
	p.Close()
	if _, err := p.Do(t.Context(), job(t, order{Do: "echo"})); err == nil {
		t.Error("a job was begun after that")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestMiddle is the process between in TestChildDiesWithItsParent.
func TestMiddle(t *testing.T) {
	if os.Getenv("ISOLATE_MIDDLE") == "" {
		t.Skip("it is a part of TestChildDiesWithItsParent")
	}
	p := isolate.New(isolate.Config{})
	j := job(t, order{Do: "descendants", Text: "hang"})
	j.Note = func(body json.RawMessage) { fmt.Println("descendant", untext(t, body)) }
	_, err := p.Do(t.Context(), j)
	t.Log(err)
}

func TestChildDiesWithItsParent(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMiddle$")
	cmd.Env = append(os.Environ(), "ISOLATE_MIDDLE=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var descendant int
	if _, err := fmt.Fscanf(out, "descendant %d\n", &descendant); err != nil {
		t.Fatal(err)
	}
	children, err := exec.Command("pgrep", "-P", strconv.Itoa(cmd.Process.Pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{child, descendant} {
		if dead, err := dbtest.Dead(pid)(t.Context()); dead || err != nil {
			t.Fatalf("process %d does not run: %v", pid, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	dbtest.Until(t, "the child and its descendants are gone", dbtest.Dead(child, descendant))
}

// BenchmarkJob is the whole cost of a job that does nothing: its directory, the way there and back, its usage.
func BenchmarkJob(b *testing.B) {
	b.Run("one at a time", func(b *testing.B) {
		j, p := benchmarkJob(b)
		for b.Loop() {
			if _, err := p.Do(b.Context(), j); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("as many as processors", func(b *testing.B) {
		j, p := benchmarkJob(b)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := p.Do(b.Context(), j); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// BenchmarkStart is what a job costs whose process is not used again.
func BenchmarkStart(b *testing.B) {
	j, _ := benchmarkJob(b)
	for b.Loop() {
		p := isolate.New(isolate.Config{Dir: b.TempDir()})
		if _, err := p.Do(b.Context(), j); err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}

func benchmarkJob(b *testing.B) (isolate.Job, *isolate.Pool) {
	b.Helper()
	p := isolate.New(isolate.Config{Dir: b.TempDir()})
	b.Cleanup(p.Close)
	body, err := json.Marshal(order{Do: "echo"})
	if err != nil {
		b.Fatal(err)
	}
	return isolate.Job{Body: body, Name: "bench"}, p
}
