package judge_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/chaos/judge"
	"github.com/pithworks/pith/chaos/witness"
)

// id makes the n-th id.
func id(n int) uuid.UUID { return uuid.UUID{15: byte(n)} }

const ms = time.Millisecond

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// good is a run in which nothing went wrong, and much happened: an exclusive task, two that share, one that was
// stopped and fenced, one that was retried, two that were canceled, schedules, and a kill.
func good() judge.Run {
	const a, b, c = "worker-1", "worker-2", "worker-3"
	e := func(k witness.Kind, process string, conn int64, task, attempt int, token int64, reserved ...string) witness.Event {
		return witness.Event{Kind: k, Process: process, Conn: conn, PID: int(conn), Task: id(task), Attempt: attempt, Token: token, Reserved: reserved}
	}
	dispatched := func(task int, reserved ...string) witness.Event {
		return witness.Event{Kind: witness.Dispatched, Process: "dispatcher-1", Task: id(task), Client: "dispatcher-1/1", Reserved: reserved, Queued: true}
	}
	refused := func(e witness.Event) witness.Event { e.Refused = true; return e }
	events := []witness.Event{
		dispatched(1, "r"), dispatched(2, "shared:r"), dispatched(3, "shared:r"), dispatched(4, "r"), dispatched(5, "r"), dispatched(6, "s"),
		e(witness.Begun, a, 1, 1, 1, 10, "r"), e(witness.Effect, a, 1, 1, 1, 10, "r"), e(witness.Ended, a, 1, 1, 1, 10, "r"),
		e(witness.Begun, b, 2, 3, 1, 12, "shared:r"), e(witness.Begun, a, 1, 2, 1, 11, "shared:r"),
		e(witness.Effect, a, 1, 2, 1, 11, "shared:r"), e(witness.Ended, a, 1, 2, 1, 11, "shared:r"),
		e(witness.Effect, b, 2, 3, 1, 12, "shared:r"), e(witness.Ended, b, 2, 3, 1, 12, "shared:r"),
		{Kind: witness.Seen, Process: "dispatcher-1", Task: id(1), State: "completed"},
		// A worker is stopped for longer than its lease.
		e(witness.Begun, a, 1, 4, 1, 13, "r"),
		{Kind: witness.Fault, Name: "stop", Process: a},
		{Kind: witness.Stopped, Process: a, PID: 1},
		e(witness.Begun, b, 2, 5, 1, 14, "r"),
		{Kind: witness.Continued, Process: a, PID: 1},
		{Kind: witness.Healed, Name: "stop", Process: a},
		refused(e(witness.Touched, a, 1, 4, 1, 13, "r")), e(witness.Ended, a, 1, 4, 1, 13, "r"),
		e(witness.Effect, b, 2, 5, 1, 14, "r"), e(witness.Ended, b, 2, 5, 1, 14, "r"),
		// One fails and is retried.
		e(witness.Begun, c, 3, 6, 1, 15, "s"), e(witness.Ended, c, 3, 6, 1, 15, "s"),
		e(witness.Begun, b, 2, 6, 2, 16, "s"), e(witness.Effect, b, 2, 6, 2, 16, "s"), e(witness.Ended, b, 2, 6, 2, 16, "s"),
		// One is killed, and its successor on the resource goes on elsewhere.
		dispatched(7, "s"), dispatched(8, "s"), dispatched(9, "s"), dispatched(10, "s"),
		e(witness.Begun, c, 3, 7, 1, 17, "s"),
		{Kind: witness.Fault, Name: "kill", Process: c},
		{Kind: witness.Killed, Process: c},
		{Kind: witness.Gone, Process: c, Conn: 3},
		{Kind: witness.Healed, Name: "kill", Process: c},
		{Kind: witness.Canceled, Process: "dispatcher-1", Task: id(8), State: "canceled"},
		e(witness.Begun, a, 1, 9, 1, 19, "s"),
		{Kind: witness.Canceled, Process: "dispatcher-1", Task: id(9), State: "canceling"},
		e(witness.Ended, a, 1, 9, 1, 19, "s"),
		e(witness.Begun, b, 2, 10, 1, 20, "s"), e(witness.Effect, b, 2, 10, 1, 20, "s"), e(witness.Ended, b, 2, 10, 1, 20, "s"),
		{Kind: witness.Scheduled, Name: "once", Due: noon},
		{Kind: witness.Scheduled, Name: "often", Due: noon, Every: time.Second},
		e(witness.Begun, b, 2, 11, 1, 21), e(witness.Effect, b, 2, 11, 1, 21), e(witness.Ended, b, 2, 11, 1, 21),
		e(witness.Begun, b, 2, 12, 1, 22), e(witness.Effect, b, 2, 12, 1, 22), e(witness.Ended, b, 2, 12, 1, 22),
		{Kind: witness.Calm},
		e(witness.Begun, b, 2, 13, 1, 23), e(witness.Effect, b, 2, 13, 1, 23), e(witness.Ended, b, 2, 13, 1, 23),
		// After more than two TTLs.
		{Kind: witness.Unscheduled},
		{Kind: witness.Still},
	}
	for i := range events {
		events[i].N, events[i].At = int64(i+1), time.Duration(i+1)*100*ms
		if i >= len(events)-2 {
			events[i].At += 1700 * ms
		}
	}
	r := judge.Run{Events: events, TTL: time.Second, Began: noon, Processes: []string{"worker-1", "worker-2", "dispatcher-1"}}
	states := map[int]string{4: "failed", 7: "failed", 8: "canceled", 9: "canceled"}
	for n := 1; n <= 13; n++ {
		state := states[n]
		if state == "" {
			state = "completed"
		}
		t := judge.Task{ID: id(n), State: state, Attempt: 1, MaxAttempts: 1, CreatedAt: noon}
		switch n {
		case 6:
			t.Attempt, t.MaxAttempts = 2, 3
		case 11:
			t.Schedule, t.Due = "once", noon
		case 12, 13:
			t.Schedule, t.Due = "often", noon.Add(time.Duration(n-12)*time.Second)
			t.CreatedAt = t.Due.Add(900 * ms)
		}
		r.Tasks = append(r.Tasks, t)
		at := time.Duration(n) * 450 * ms
		r.Changes = append(r.Changes,
			judge.Change{Task: id(n), To: "waiting", At: at},
			judge.Change{Task: id(n), From: "waiting", To: "running", At: at},
			judge.Change{Task: id(n), From: "running", To: state, At: at + 100*ms})
	}
	return r
}

func TestGoodRunIsFoundGood(t *testing.T) {
	t.Parallel()
	for _, v := range judge.Judge(good()) {
		t.Error(v)
	}
}

// event finds the first event of a kind, of a task if that is not 0.
func event(t *testing.T, r *judge.Run, k witness.Kind, task int) *witness.Event {
	t.Helper()
	for i := range r.Events {
		if r.Events[i].Kind == k && (task == 0 || r.Events[i].Task == id(task)) {
			return &r.Events[i]
		}
	}
	t.Fatalf("no event %s of task %d", k, task)
	return nil
}

func drop(r *judge.Run, k witness.Kind) {
	r.Events = slices.DeleteFunc(r.Events, func(e witness.Event) bool { return e.Kind == k })
}

// TestEachRuleFindsItsViolation corrupts the good run, at least once per rule.
func TestEachRuleFindsItsViolation(t *testing.T) {
	t.Parallel()
	broken := map[string]bool{}
	for _, test := range []struct {
		name    string
		rule    string
		corrupt func(t *testing.T, r *judge.Run)
	}{
		{"two at a resource that one has alone", judge.Exclusion, func(_ *testing.T, r *judge.Run) {
			drop(r, witness.Stopped)
		}},
		{"a sharer beside who has it alone", judge.Exclusion, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Ended, 1).Task = id(99)
		}},
		{"one that was fenced and never stopped", judge.Exclusion, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Effect, 1).Refused = true
		}},
		{"one that overtakes", judge.Order, func(t *testing.T, r *judge.Run) {
			for _, k := range []witness.Kind{witness.Begun, witness.Effect, witness.Ended} {
				event(t, r, k, 10).Token = 1
			}
		}},
		{"a child whose worker alone was stopped", judge.Exclusion, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Stopped, 0).PID = 99
		}},
		{"one that was stopped long ago", judge.Exclusion, func(_ *testing.T, r *judge.Run) {
			for i := range r.Events {
				if r.Events[i].Kind == witness.Touched {
					r.Events[i].At += time.Minute
				}
			}
		}},
		{"an attempt that runs again", judge.Once, func(t *testing.T, r *judge.Run) {
			e := *event(t, r, witness.Begun, 13)
			r.Events = append(r.Events, e)
		}},
		{"a due time that is none", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[12].Due = r.Tasks[12].Due.Add(ms)
		}},
		{"a run in which nothing was done", judge.Idle, func(_ *testing.T, r *judge.Run) {
			drop(r, witness.Dispatched)
		}},
		{"a run in which little was done", judge.Idle, func(_ *testing.T, r *judge.Run) { drop(r, witness.Effect) }},
		{"one that begins too late", judge.Order, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Begun, 10).Refused = true
		}},
		{"places against the order of the dispatches", judge.Order, func(t *testing.T, r *judge.Run) {
			one, other := event(t, r, witness.Dispatched, 7), event(t, r, witness.Dispatched, 10)
			one.Task, other.Task = other.Task, one.Task
		}},
		{"an acknowledged task that is not there", judge.Lost, func(_ *testing.T, r *judge.Run) {
			r.Tasks = r.Tasks[1:]
		}},
		{"a state after the last one", judge.Final, func(_ *testing.T, r *judge.Run) {
			r.Changes = append(r.Changes, judge.Change{Task: id(1), From: "completed", To: "completed", At: time.Minute})
		}},
		{"another end than was seen", judge.Final, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Seen, 1).State = "failed"
		}},
		{"another end than its last change", judge.Final, func(_ *testing.T, r *judge.Run) {
			r.Tasks[3].State = "canceled"
		}},
		{"two effects of one attempt", judge.Once, func(t *testing.T, r *judge.Run) {
			r.Events = append(r.Events, *event(t, r, witness.Effect, 6))
		}},
		{"two effects of a task that is never retried", judge.Once, func(t *testing.T, r *judge.Run) {
			e := *event(t, r, witness.Effect, 1)
			e.Attempt = 2
			r.Events = append(r.Events, e)
		}},
		{"a completed task without effect", judge.Once, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Effect, 1).Kind = witness.Ended
		}},
		{"an attempt that runs twice", judge.Once, func(t *testing.T, r *judge.Run) {
			e := *event(t, r, witness.Begun, 3)
			i := slices.IndexFunc(r.Events, func(x witness.Event) bool { return x.N == e.N })
			r.Events = slices.Insert(r.Events, i+1, e)
		}},
		{"one that begins after it was canceled", judge.Cancel, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Begun, 10).Task = id(8)
		}},
		{"a cancellation without effect", judge.Cancel, func(_ *testing.T, r *judge.Run) {
			r.Tasks[8].State = "failed"
		}},
		{"a schedule that is lost", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[10].Schedule = ""
		}},
		{"a schedule that is doubled", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[0].Schedule = "once"
		}},
		{"a due time that is doubled", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[12].Due = r.Tasks[11].Due
		}},
		{"a task of a schedule for no due time", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[12].Due = time.Time{}
		}},
		{"a due time that is left out at first", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[11].Schedule, r.Tasks[11].Due = "", time.Time{}
		}},
		{"a schedule before its time", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[10].CreatedAt = noon.Add(-time.Second)
		}},
		{"a schedule that halts", judge.Schedule, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Unscheduled, 0).At += time.Second
		}},
		{"a schedule that halts for a while", judge.Schedule, func(t *testing.T, r *judge.Run) {
			event(t, r, witness.Unscheduled, 0).At += 3 * time.Second
			next := r.Tasks[12]
			next.ID, next.Due = id(14), next.Due.Add(5*time.Second)
			next.CreatedAt = noon.Add(event(t, r, witness.Calm, 0).At + 2600*ms)
			r.Tasks = append(r.Tasks, next)
		}},
		{"a run without schedules after the faults", judge.Schedule, func(_ *testing.T, r *judge.Run) { drop(r, witness.Unscheduled) }},
		{"a process that did nothing", judge.Idle, func(_ *testing.T, r *judge.Run) {
			r.Processes = append(r.Processes, "worker-4")
		}},
		{"a schedule of nobody", judge.Schedule, func(_ *testing.T, r *judge.Run) {
			r.Tasks[0].Schedule = "unknown"
		}},
		{"a task that does not end", judge.Stuck, func(_ *testing.T, r *judge.Run) {
			r.Tasks[0].State = "waiting"
		}},
		{"a stop after the faults", judge.Stuck, func(t *testing.T, r *judge.Run) {
			calm := event(t, r, witness.Calm, 0).At
			r.Changes = append(r.Changes, judge.Change{Task: id(14), To: "waiting", At: calm + ms},
				judge.Change{Task: id(14), From: "waiting", To: "completed", At: calm + 2*r.TTL + 2*ms})
		}},
		{"an end that comes late, after its process has gone", judge.Stuck, func(t *testing.T, r *judge.Run) {
			calm := event(t, r, witness.Calm, 0).At
			for i := range r.Changes {
				if r.Changes[i].Task == id(7) && r.Changes[i].To == "failed" {
					r.Changes[i].At = calm + 2*r.TTL + ms
				}
			}
		}},
		{"a run without an end", judge.Stuck, func(_ *testing.T, r *judge.Run) { drop(r, witness.Still) }},
		{"a process that ends by itself", judge.Crash, func(_ *testing.T, r *judge.Run) {
			r.Events = append(r.Events, witness.Event{Kind: witness.Crashed, Process: "worker-1", State: "exit status 1"})
		}},
	} {
		r := good()
		test.corrupt(t, &r)
		found := map[string]bool{}
		for _, v := range judge.Judge(r) {
			found[v.Rule] = true
		}
		if !found[test.rule] {
			t.Errorf("%s: found %v, want %s", test.name, slices.Collect(maps.Keys(found)), test.rule)
		}
		broken[test.rule] = true
	}
	for _, rule := range judge.Rules {
		if !broken[rule] {
			t.Errorf("nothing breaks the rule %s", rule)
		}
	}
}

// TestTaskThatNothingBlocksMayNotWait has a task wait behind others, or behind nobody, while something runs.
func TestTaskThatNothingBlocksMayNotWait(t *testing.T) {
	t.Parallel()
	const first, waiting, other = 14, 15, 16
	for _, test := range []struct {
		name     string
		reserved []string // by the first
		slots    int
		later    time.Duration // not before
		want     bool
	}{
		{name: "behind nobody", slots: 10, want: true},
		{name: "behind one on another resource", reserved: []string{"y"}, slots: 10, want: true},
		{name: "behind one on the same resource", reserved: []string{"x"}, slots: 10},
		{name: "behind one that shares it", reserved: []string{"shared:x"}, slots: 10},
		{name: "all slots are taken", slots: 2},
		{name: "it is not due", slots: 10, later: 10 * time.Second},
	} {
		r := good()
		r.Slots = test.slots
		calm := event(t, &r, witness.Calm, 0).At
		change := func(n int, to string, at time.Duration) {
			from := map[string]string{"waiting": "", "running": "waiting", "failed": "running"}[to]
			r.Changes = append(r.Changes, judge.Change{Task: id(n), From: from, To: to, At: calm + at})
		}
		change(first, "waiting", ms)
		change(first, "running", ms)
		change(waiting, "waiting", ms)
		change(other, "waiting", ms)
		change(other, "running", ms)
		change(first, "failed", 9*time.Second)
		change(waiting, "running", 10*time.Second)
		change(waiting, "failed", 10*time.Second)
		change(other, "failed", 10*time.Second)
		for n, reserved := range map[int][]string{first: test.reserved, waiting: {"x"}, other: nil} {
			task := judge.Task{ID: id(n), State: "failed", Attempt: 1, MaxAttempts: 1, Place: int64(100 + n), Reserved: reserved}
			if n == waiting && test.later > 0 {
				task.NotBefore = calm + test.later
			}
			r.Tasks = append(r.Tasks, task)
		}
		found := judge.Judge(r)
		if got := slices.ContainsFunc(found, func(v judge.Violation) bool {
			return v.Rule == judge.Stuck && strings.Contains(v.Text, "with nothing before it")
		}); got != test.want {
			t.Errorf("%s: %v", test.name, found)
		}
	}
}

func TestRecoveriesAreMeasured(t *testing.T) {
	t.Parallel()
	got := judge.Recoveries(good())
	names := map[string]judge.Recovery{}
	for _, r := range got {
		names[r.Fault] = r
	}
	if r := names["stop"]; len(r.Times) != 1 || r.Median <= 0 || r.Worst != r.Median {
		t.Errorf("of a stop: %+v", r)
	}
	r := good()
	for i := range r.Changes {
		if r.Changes[i].Task == id(7) && r.Changes[i].To == "failed" {
			for _, e := range r.Events {
				if e.Kind == witness.Killed {
					r.Changes[i].At = e.At + 3*time.Second
				}
			}
		}
	}
	if k := judge.Recoveries(r); len(k) == 0 || k[len(k)-1].Worst < time.Second && k[0].Worst < time.Second {
		t.Errorf("of a kill: %+v", k)
	}
}

func TestLogIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	want := good().Events
	for _, e := range want {
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	got, err := witness.Read(bytes.NewReader(b.Bytes()))
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d events, %v", len(got), err)
	}
	if _, err := witness.Read(bytes.NewReader(b.Bytes()[:b.Len()-2])); err == nil {
		t.Error("a log that was cut off was read without an error")
	}
}
