package isolate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/isolate"
)

func TestDeathIsToldAsPulpTellsIt(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for _, test := range []struct {
		order order
		want  string
	}{
		{order{Do: "exit", Number: 3}, "Task process died unexpectedly with exitcode 3."},
		{order{Do: "exit", Number: 0}, "Task process died unexpectedly with exitcode 0."},
		{order{Do: "signal", Number: 9}, "Killed by signal 9."},
		{order{Do: "signal", Number: 15}, "Killed by signal 15."},
	} {
		r := do(t, p, job(t, test.order))
		if r.Death == nil || r.Death.Reason() != test.want || r.Death.OutOfMemory {
			t.Errorf("%+v: %+v, want %s", test.order, r.Death, test.want)
		}
		if test.order.Do == "exit" && !strings.HasSuffix(r.Death.Output, "goodbye") {
			t.Errorf("%+v: the last output is %q", test.order, r.Death.Output)
		}
		if got := answerTo(t, p, job(t, order{Do: "echo", Text: "on"})); got != "on" {
			t.Errorf("after that: %q", got)
		}
	}
}

func TestProcessThatWasKilledWhileIdleCostsNoJob(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for range 10 {
		pid, err := strconv.Atoi(answerTo(t, p, job(t, order{Do: "pid"})))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	answerTo(t, p, job(t, order{Do: "echo"}))
}

func TestJobThatDiesAtOnceIsRunOnce(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	file := filepath.Join(t.TempDir(), "file")
	const n = 20
	for range n {
		answerTo(t, p, job(t, order{Do: "echo"})) // the process has run another one
		if r := do(t, p, job(t, order{Do: "once", Text: file})); r.Death == nil {
			t.Fatalf("%+v", r)
		}
	}
	if begun, err := os.ReadFile(file); err != nil || strings.Count(string(begun), "begun") != n {
		t.Errorf("%d jobs were begun %d times, %v", n, strings.Count(string(begun), "begun"), err)
	}
}

func TestOutputIsOfTheJobAlone(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for i := range 200 {
		want := fmt.Sprintf("line %d of this job", i)
		for _, end := range []string{"\n", ""} {
			var got []string
			j := job(t, order{Do: "print", Text: want + end})
			j.Output = func(line string) { got = append(got, line) }
			answerTo(t, p, j)
			if len(got) != 1 || got[0] != want {
				t.Fatalf("printed %q, got %q", want, got)
			}
		}
	}
	answerTo(t, p, job(t, order{Do: "print", Text: "fatal error: runtime: out of memory\n"}))
	if r := do(t, p, job(t, order{Do: "print and exit", Text: "last words, and none of memory"})); r.Death.OutOfMemory || r.Death.Output != "last words, and none of memory" {
		t.Errorf("%+v", r.Death)
	}
	if r := do(t, p, job(t, order{Do: "print and exit", Text: "fatal error: runtime: out of memory"})); !r.Death.OutOfMemory {
		t.Errorf("%+v", r.Death)
	}
}

func TestLostJobIsKilledWhateverItWasGranted(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for _, stopped := range []bool{false, true} {
		lost := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		j := job(t, order{Do: "hang"})
		j.Grace, j.Lost = forgiving, lost
		j.Note = func(json.RawMessage) {
			if stopped {
				cancel()
			}
			close(lost)
		}
		if r, err := p.Do(ctx, j); err != nil || r.Death == nil || r.Death.Signal != syscall.SIGKILL {
			t.Errorf("stopped %v: %+v, %v", stopped, r, err)
		}
		cancel()
	}
}

func TestNoteThatWaitsHoldsUpNoLimit(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	killed := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	j := job(t, order{Do: "descendants", Text: "hang"})
	j.Note = func(body json.RawMessage) {
		pid, _ := strconv.Atoi(untext(t, body))
		cancel()
		dbtest.Until(t, "the job is killed meanwhile", dbtest.Dead(pid))
		close(killed)
	}
	if r, err := p.Do(ctx, j); err != nil || r.Death == nil {
		t.Errorf("%+v, %v", r, err)
	}
	<-killed
}

func TestDirectoryMayBeRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	p := isolate.New(isolate.Config{Dir: "."})
	defer p.Close()
	answerTo(t, p, job(t, order{Do: "directory"}))
}

func TestJobIsToldWhyItIsToStop(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	j := job(t, order{Do: "heed"})
	j.Note = func(json.RawMessage) { cancel(errors.New("for this reason")) }
	j.Grace = forgiving
	r, err := p.Do(ctx, j)
	if err != nil || r.Death != nil || untext(t, r.Body) != "for this reason" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := p.Do(ctx, j); err == nil || err.Error() != "for this reason" {
		t.Errorf("begun after the end of its context: %v", err)
	}
}

func TestJobThatDoesNotStopIsKilled(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for _, grace := range []time.Duration{0, 10 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		j := job(t, order{Do: "hang"})
		j.Note = func(json.RawMessage) { cancel() }
		j.Grace = func(cause error) time.Duration {
			if !errors.Is(cause, context.Canceled) {
				t.Errorf("ended by %v", cause)
			}
			return grace
		}
		r, err := p.Do(ctx, j)
		if err != nil || r.Death == nil || r.Death.Signal != syscall.SIGKILL || r.OverTime {
			t.Errorf("grace %s: %+v, %v", grace, r, err)
		}
		if r.Usage.PeakMemory == 0 {
			t.Errorf("grace %s: peak memory is not known", grace)
		}
	}
}

func TestTimeLimitStopsAJob(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	polite := job(t, order{Do: "heed"})
	polite.Time, polite.Grace = 10*time.Millisecond, forgiving
	if r := do(t, p, polite); !r.OverTime || r.Death != nil || untext(t, r.Body) != isolate.ErrOverTime.Error() {
		t.Errorf("one that heeds: %+v", r)
	}
	rude := job(t, order{Do: "hang"})
	rude.Time = 10 * time.Millisecond
	if r := do(t, p, rude); !r.OverTime || r.Death == nil || r.Death.Signal != syscall.SIGKILL {
		t.Errorf("one that does not: %+v", r)
	}
}

func TestMemoryLimitKillsAJob(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	j := job(t, order{Do: "allocate", Number: 200, Text: "hang"})
	j.Memory = 100 << 20
	r := do(t, p, j)
	if r.Death == nil || !r.Death.OutOfMemory || r.Usage.PeakMemory < j.Memory {
		t.Errorf("%+v %+v", r, r.Death)
	}
	j = job(t, order{Do: "allocate", Number: 20})
	j.Memory = 100 << 20
	answerTo(t, p, j)
}

func TestMemoryOfEarlierJobsIsNotCounted(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	for range 3 {
		answerTo(t, p, job(t, order{Do: "allocate", Number: 150})) // and keeps it
		j := job(t, order{Do: "echo"})
		j.Memory = 100 << 20
		if r := do(t, p, j); r.Death != nil || r.Usage.PeakMemory > 100<<20 {
			t.Errorf("%+v %+v", r, r.Death)
		}
	}
	answerTo(t, p, job(t, order{Do: "allocate", Number: 150}))
	answerTo(t, p, job(t, order{Do: "allocate", Number: 0})) // it lets go
	if r := do(t, p, job(t, order{Do: "echo"})); r.Usage.PeakMemory > 100<<20 {
		t.Errorf("%+v", r)
	}
}

func TestUsageIsOfTheJobAlone(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	pid := answerTo(t, p, job(t, order{Do: "pid"}))
	big := do(t, p, job(t, order{Do: "allocate", Number: 100}))
	if big.Usage.PeakMemory < 100<<20 {
		t.Errorf("100 MiB: %d", big.Usage.PeakMemory)
	}
	answerTo(t, p, job(t, order{Do: "allocate", Number: 0}))
	busy := do(t, p, job(t, order{Do: "burn", Number: 50}))
	idle := do(t, p, job(t, order{Do: "echo"}))
	if busy.Usage.CPU < 50*time.Millisecond || idle.Usage.CPU > busy.Usage.CPU/2 {
		t.Errorf("CPU: %s, then %s", busy.Usage.CPU, idle.Usage.CPU)
	}
	if again := answerTo(t, p, job(t, order{Do: "pid"})); again != pid {
		t.Errorf("in several processes: %s, %s", pid, again)
	}
}

func TestProcessThatKeepsMuchMemoryIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	pid := answerTo(t, p, job(t, order{Do: "pid"}))
	answerTo(t, p, job(t, order{Do: "allocate", Number: 300}))
	if again := answerTo(t, p, job(t, order{Do: "pid"})); again == pid {
		t.Error("it was used again")
	}
}

func TestLeaseEndsAJobThatNobodyWatches(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	p.Extend(time.Now().Add(time.Hour))
	j := job(t, order{Do: "hang"})
	j.Note = func(json.RawMessage) { p.Extend(time.Now().Add(50 * time.Millisecond)) }
	r := do(t, p, j)
	if r.Death == nil || r.Death.Signal != syscall.SIGKILL || r.OverTime {
		t.Errorf("%+v %+v", r, r.Death)
	}
	p.Extend(time.Now().Add(time.Hour))
	answerTo(t, p, job(t, order{Do: "echo"}))
}

func TestLeaseThatIsProlongedEndsNothing(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	p.Extend(time.Now().Add(time.Hour))
	j := job(t, order{Do: "call"})
	j.Answer = func(_ context.Context, _ string, body json.RawMessage) json.RawMessage {
		short := time.Now().Add(300 * time.Millisecond)
		p.Extend(short)
		p.Extend(time.Now().Add(time.Hour))
		<-time.After(time.Until(short) + 50*time.Millisecond)
		return body
	}
	answerTo(t, p, j)
}

func TestLeaseOfAJobThatHasEndedEndsNothing(t *testing.T) {
	t.Parallel()
	p := newPool(t)
	short := time.Now().Add(500 * time.Millisecond)
	p.Extend(short)
	pid := answerTo(t, p, job(t, order{Do: "pid"}))
	<-time.After(time.Until(short) + 50*time.Millisecond)
	p.Extend(time.Now().Add(time.Hour))
	if again := answerTo(t, p, job(t, order{Do: "pid"})); again != pid {
		t.Error("the process has ended")
	}
}
