package queuecheck

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// model is a queue that keeps its promises, small enough to be seen through: one list of unfinished
// tasks in the order of their places.
type model struct {
	rng     *rand.Rand
	now     time.Duration
	events  []Event
	finals  map[Task]Final
	queue   []*modelTask
	later   []*modelTask
	holders int
	next    Task
}

type modelTask struct {
	task    Task
	request *Request
	attempt int
	running bool
	holder  string
}

func (m *model) record(e Event) {
	m.now += time.Duration(1 + m.rng.IntN(1000))
	e.At = m.now
	m.events = append(m.events, e)
}

func excludes(a, b *Request) bool {
	for _, x := range a.Resources {
		for _, y := range b.Resources {
			if x.Name == y.Name && (x.Exclusive || y.Exclusive) {
				return true
			}
		}
	}
	return false
}

func (m *model) dispatch() {
	r := &Request{MaxAttempts: 1, Later: m.rng.IntN(10) == 0}
	if m.rng.IntN(4) == 0 {
		r.MaxAttempts = 3
	}
	for _, i := range m.rng.Perm(4)[:m.rng.IntN(3)] {
		r.Resources = append(r.Resources, Resource{fmt.Sprintf("r%d", i), m.rng.IntN(2) == 0})
	}
	r.Resources = append(r.Resources, Resource{"domain", m.rng.IntN(30) == 0})
	m.next++
	t := &modelTask{task: m.next, request: r}
	m.record(Event{Kind: Sent, Task: t.task, Request: r})
	switch m.rng.IntN(20) {
	case 0:
		m.record(Event{Kind: Withdrawn, Task: t.task})
		return
	case 1: // its answer got lost, and it is there all the same
	default:
		m.record(Event{Kind: Acknowledged, Task: t.task})
	}
	m.finals[t.task] = Final{Task: t.task, State: "waiting"}
	if r.Later {
		m.later = append(m.later, t)
	} else {
		m.queue = append(m.queue, t)
	}
}

// pick chooses a task in the queue that fits.
func (m *model) pick(fits func(int, *modelTask) bool) (int, *modelTask) {
	if len(m.queue) == 0 {
		return -1, nil
	}
	from := m.rng.IntN(len(m.queue))
	for i := range m.queue {
		at := (from + i) % len(m.queue)
		if fits(at, m.queue[at]) {
			return at, m.queue[at]
		}
	}
	return -1, nil
}

func (m *model) start() {
	_, t := m.pick(func(at int, t *modelTask) bool {
		return !t.running && !slices.ContainsFunc(m.queue[:at], func(o *modelTask) bool { return excludes(t.request, o.request) })
	})
	if t == nil {
		return
	}
	t.attempt++
	t.running, t.holder = true, fmt.Sprintf("h%d", m.rng.IntN(4)+m.holders)
	m.record(Event{Kind: Started, Task: t.task, Attempt: t.attempt, Holder: t.holder})
}

// finish takes a task out of the queue; a failed one may come back at its end.
func (m *model) finish(at int, state string) {
	t := m.queue[at]
	m.queue = slices.Delete(m.queue, at, at+1)
	if t.running && state == "failed" && t.attempt < t.request.MaxAttempts {
		t.running = false
		m.queue = append(m.queue, t)
		return
	}
	m.finals[t.task] = Final{Task: t.task, State: state, Attempts: t.attempt}
}

func (m *model) end() {
	at, t := m.pick(func(_ int, t *modelTask) bool { return t.running })
	if t == nil {
		return
	}
	completed := m.rng.IntN(4) > 0
	m.record(Event{Kind: Ended, Task: t.task, Attempt: t.attempt, Holder: t.holder, Completed: completed})
	if completed {
		m.finish(at, "completed")
	} else {
		m.finish(at, "failed")
	}
}

func (m *model) cancel() {
	at, t := m.pick(func(_ int, t *modelTask) bool { return !t.running })
	if t == nil {
		return
	}
	m.finish(at, "canceled")
	m.record(Event{Kind: CancelAcknowledged, Task: t.task})
}

func (m *model) kill() {
	holder := fmt.Sprintf("h%d", m.holders)
	m.holders++
	m.record(Event{Kind: Killed, Holder: holder})
	for {
		at := slices.IndexFunc(m.queue, func(t *modelTask) bool { return t.running && t.holder == holder })
		if at < 0 {
			return
		}
		m.finish(at, "failed")
	}
}

func (m *model) look() {
	if m.next == 0 {
		return
	}
	t := 1 + Task(m.rng.Int64N(int64(m.next)))
	if f, ok := m.finals[t]; ok && final(f.State) {
		m.record(Event{Kind: SeenFinal, Task: t, State: f.State})
	}
}

// history generates one that keeps every promise.
func history(seed uint64, least int) ([]Event, []Final) {
	m := &model{rng: rand.New(rand.NewPCG(seed, 1)), finals: map[Task]Final{}}
	for len(m.events) < least {
		switch n := m.rng.IntN(100); {
		case n < 30 && len(m.queue) < 40:
			m.dispatch()
		case n < 33 && len(m.later) > 0:
			m.queue, m.later = append(m.queue, m.later...), nil
		case n < 60:
			m.start()
		case n < 90:
			m.end()
		case n < 93:
			m.cancel()
		case n < 94:
			m.kill()
		default:
			m.look()
		}
	}
	m.queue, m.later = append(m.queue, m.later...), nil
	for len(m.queue) > 0 {
		m.start()
		m.end()
	}
	finals := slices.SortedFunc(maps.Values(m.finals), func(a, b Final) int { return int(a.Task - b.Task) })
	return m.events, finals
}

func TestCorrectHistoriesAreAccepted(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		events, finals := history(seed, 300)
		if found := Check(events, finals); len(found) > 0 {
			t.Fatalf("seed %d: %v", seed, found[:min(len(found), 5)])
		}
	}
	if found := Check(nil, nil); len(found) > 0 {
		t.Errorf("nothing at all: %v", found)
	}
}

// runsOf returns the places of the Started and Ended events of each task that ran exactly once.
func runsOf(events []Event) map[Task][2]int {
	at := map[Task][]int{}
	for i, e := range events {
		if e.Kind == Started || e.Kind == Ended {
			at[e.Task] = append(at[e.Task], i)
		}
	}
	once := map[Task][2]int{}
	for task, is := range at {
		if len(is) == 2 {
			once[task] = [2]int{is[0], is[1]}
		}
	}
	return once
}

// pair finds two tasks that ran once and exclude each other, the first one acknowledged before the
// second was sent.
func pair(events []Event) (first, second Task, ok bool) {
	once := runsOf(events)
	var before []Task
	request := map[Task]*Request{}
	for _, e := range events {
		switch _, ran := once[e.Task]; {
		case !ran:
		case e.Kind == Acknowledged && !request[e.Task].Later:
			before = append(before, e.Task)
		case e.Kind == Sent:
			request[e.Task] = e.Request
			for _, b := range before {
				if excludes(request[b], e.Request) && !e.Request.Later {
					first, second, ok = b, e.Task, true
				}
			}
		}
	}
	return first, second, ok
}

func find(events []Event, kind EventKind) int {
	return slices.IndexFunc(events, func(e Event) bool { return e.Kind == kind })
}

func taskIn(finals []Final, t Task) int {
	return slices.IndexFunc(finals, func(f Final) bool { return f.Task == t })
}

// corruptions break a good history in one way each; false where this one has nothing to break.
var corruptions = []struct {
	name    string
	kind    Kind
	corrupt func(events []Event, finals []Final) ([]Event, []Final, bool)
}{
	{"the second of two that exclude each other starts before the first ends", Exclusion, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		a, b, ok := pair(es)
		if !ok {
			return nil, nil, false
		}
		once := runsOf(es)
		es[once[b][0]].At = es[once[a][1]].At - 1
		return es, fs, es[once[a][1]].At-1 > es[once[a][0]].At
	}},
	{"a run that is neither ended nor killed goes on", Exclusion, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		a, _, ok := pair(es)
		if !ok {
			return nil, nil, false
		}
		at := runsOf(es)[a][1]
		return slices.Delete(es, at, at+1), fs, true
	}},
	{"a killed process was not killed", Exclusion, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		n := len(es)
		es = slices.DeleteFunc(es, func(e Event) bool { return e.Kind == Killed })
		return es, fs, len(es) < n
	}},
	{"of two that exclude each other the second starts first", Order, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		a, b, ok := pair(es)
		if !ok {
			return nil, nil, false
		}
		once := runsOf(es)
		for i := range 2 {
			es[once[a][i]].Task, es[once[b][i]].Task = b, a
		}
		return es, fs, true
	}},
	{"a dispatch that was acknowledged is gone", Lost, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := taskIn(fs, es[find(es, Acknowledged)].Task)
		return es, slices.Delete(fs, i, i+1), true
	}},
	{"an attempt runs again", RunTwice, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		start := es[find(es, Started)]
		start.At = es[len(es)-1].At + 1
		return append(es, start), fs, true
	}},
	{"an attempt runs in two processes at a time", RunTwice, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, Started)
		start := es[i]
		start.At++
		start.Holder = "another"
		return slices.Insert(es, i+1, start), fs, true
	}},
	{"a run that the database does not know", RunTwice, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := taskIn(fs, es[find(es, Started)].Task)
		fs[i].Attempts = 0
		return es, fs, true
	}},
	{"more attempts than allowed", RunTwice, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		fs[taskIn(fs, es[find(es, Started)].Task)].Attempts = 4
		return es, fs, true
	}},
	{"a task without retries runs to its end in two attempts", RunTwice, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		task, once := Task(0), runsOf(es)
		for _, e := range es {
			if _, ok := once[e.Task]; ok && e.Kind == Sent && e.Request.MaxAttempts == 1 && es[once[e.Task][1]].Completed {
				task = e.Task
			}
		}
		if task == 0 {
			return nil, nil, false
		}
		for _, i := range once[task] {
			again := es[i]
			again.Attempt, again.At = 2, es[len(es)-1].At+1
			es = append(es, again)
		}
		return es, fs, true
	}},
	{"it is completed, and never ran", Unearned, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := slices.IndexFunc(fs, func(f Final) bool { return f.State == "completed" })
		return slices.DeleteFunc(es, func(e Event) bool { return e.Task == fs[i].Task && (e.Kind == Started || e.Kind == Ended) }), fs, true
	}},
	{"it is completed, and failed", Unearned, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := slices.IndexFunc(fs, func(f Final) bool { return f.State == "failed" && f.Attempts > 0 })
		fs[i].State = "completed"
		return es, fs, true
	}},
	{"it still waits", Stuck, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		fs[len(fs)/2].State = "waiting"
		return es, fs, true
	}},
	{"it is still canceling", Stuck, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		fs[0].State = "canceling"
		return es, fs, true
	}},
	{"what was final is in another final state", Resurrected, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, SeenFinal)
		if i < 0 {
			return nil, nil, false
		}
		fs[taskIn(fs, es[i].Task)].State = "skipped"
		return es, fs, true
	}},
	{"what was final is seen in another final state", Resurrected, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, SeenFinal)
		if i < 0 {
			return nil, nil, false
		}
		other := es[i]
		other.State = "skipped"
		return append(es, other), fs, true
	}},
	{"it runs when it has been seen final", Resurrected, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, Ended)
		return append(es, Event{At: es[i].At - 1, Kind: SeenFinal, Task: es[i].Task, State: fs[taskIn(fs, es[i].Task)].State}), fs, true
	}},
	{"it starts when it was canceled", RanAfterCancel, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, CancelAcknowledged)
		if i < 0 {
			return nil, nil, false
		}
		f := taskIn(fs, es[i].Task)
		fs[f].Attempts++
		return append(es, Event{At: es[len(es)-1].At + 1, Kind: Started, Task: es[i].Task, Attempt: fs[f].Attempts, Holder: "late"}), fs, true
	}},
	{"it goes on when it was canceled", RanAfterCancel, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, Ended)
		return append(es, Event{At: es[i].At - 1, Kind: CancelAcknowledged, Task: es[i].Task}), fs, true
	}},
	{"the database has one that nobody sent", Phantom, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		return es, append(fs, Final{Task: 1 << 40, State: "completed"}), true
	}},
	{"the database has one twice", Phantom, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		return es, append(fs, fs[3]), true
	}},
	{"the database has one that was rolled back", Phantom, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, Withdrawn)
		if i < 0 {
			return nil, nil, false
		}
		return es, append(fs, Final{Task: es[i].Task, State: "canceled"}), true
	}},
	{"one runs that was rolled back", Phantom, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, Withdrawn)
		if i < 0 {
			return nil, nil, false
		}
		return append(es, Event{At: es[i].At + 1, Kind: Started, Task: es[i].Task, Attempt: 1, Holder: "h"}), fs, true
	}},
	{"an end without a start", Impossible, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		i := find(es, Started)
		return slices.Delete(es, i, i+1), fs, find(es, Ended) >= 0
	}},
	{"an answer without a question", Impossible, func(es []Event, fs []Final) ([]Event, []Final, bool) {
		return append(es, Event{Kind: Acknowledged, Task: 1 << 41}), fs, true
	}},
}

func TestEachCorruptionIsReported(t *testing.T) {
	t.Parallel()
	for _, c := range corruptions {
		t.Run(string(c.kind)+"/"+c.name, func(t *testing.T) {
			t.Parallel()
			tried := 0
			for seed := range uint64(40) {
				events, finals, ok := c.corrupt(history(seed, 400))
				if !ok {
					continue
				}
				if c.name == "a killed process was not killed" && !killMattered(events) {
					continue
				}
				tried++
				if found := Check(events, finals); !slices.ContainsFunc(found, func(v Violation) bool { return v.Kind == c.kind }) {
					t.Fatalf("seed %d: not reported; what is: %v", seed, found[:min(len(found), 5)])
				}
			}
			if tried < 10 {
				t.Errorf("only %d of 40 histories could be corrupted", tried)
			}
		})
	}
}

// killMattered tells whether a run is left open that something ran against afterwards.
func killMattered(events []Event) bool {
	request := map[Task]*Request{}
	open := map[Task]Event{}
	for _, e := range events {
		switch e.Kind {
		case Sent:
			request[e.Task] = e.Request
		case Started:
			for other := range open {
				if excludes(request[e.Task], request[other]) {
					return true
				}
			}
			open[e.Task] = e
		case Ended:
			if open[e.Task].Attempt == e.Attempt {
				delete(open, e.Task)
			}
		default:
		}
	}
	return false
}

func TestViolationsNameTheirTasks(t *testing.T) {
	t.Parallel()
	x := &Request{Resources: []Resource{{"r", true}}, MaxAttempts: 1}
	events := []Event{
		{At: 1, Kind: Sent, Task: 1, Request: x},
		{At: 2, Kind: Acknowledged, Task: 1},
		{At: 3, Kind: Sent, Task: 2, Request: x},
		{At: 4, Kind: Acknowledged, Task: 2},
		{At: 5, Kind: Started, Task: 2, Attempt: 1, Holder: "a"},
		{At: 6, Kind: Started, Task: 1, Attempt: 1, Holder: "b"},
		{At: 7, Kind: Ended, Task: 2, Attempt: 1, Holder: "a", Completed: true},
		{At: 8, Kind: Ended, Task: 1, Attempt: 1, Holder: "b", Completed: true},
	}
	finals := []Final{{1, "completed", 1}, {2, "completed", 1}}
	found := Check(events, finals)
	want := []Violation{
		{Kind: Exclusion, Task: 1, Other: 2, Resource: "r"},
		{Kind: Order, Task: 2, Other: 1, Resource: "r"},
	}
	if len(found) != len(want) {
		t.Fatalf("found %v", found)
	}
	for i, v := range found {
		v.Detail = ""
		if v != want[i] {
			t.Errorf("found %v, want %v", found[i], want[i])
		}
	}
}

func FuzzMutatedHistoriesNeverPanic(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, seed*31, uint8(20))
	}
	f.Fuzz(func(_ *testing.T, seed, mutation uint64, times uint8) {
		events, finals := history(seed, 60)
		rng := rand.New(rand.NewPCG(mutation, 2))
		for range times {
			if len(events) == 0 || len(finals) == 0 {
				break
			}
			i, j := rng.IntN(len(events)), rng.IntN(len(finals))
			switch rng.IntN(12) {
			case 0:
				events = slices.Delete(events, i, i+1)
			case 1:
				events = append(events, events[i])
			case 2:
				events[i].At = time.Duration(rng.Uint64())
			case 3:
				events[i].Task = Task(rng.Uint64())
			case 4:
				events[i].Kind = EventKind(rng.UintN(12))
			case 5:
				events[i].Request = nil
			case 6:
				events[i].Attempt = int(rng.Int32()) - 1<<30
			case 7:
				events[i].Holder = events[rng.IntN(len(events))].Holder
			case 8:
				events[i].State = finals[j].State
			case 9:
				finals[j] = Final{Task: Task(rng.Uint64()), State: "?", Attempts: -1}
			case 10:
				finals = slices.Delete(finals, j, j+1)
			case 11:
				finals = append(finals, finals[j])
			}
		}
		for _, v := range Check(events, finals) {
			_ = v.String()
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	events, finals := history(1, 100_000)
	b.ReportMetric(float64(len(events)), "events")
	for b.Loop() {
		if found := Check(events, finals); len(found) > 0 {
			b.Fatal(found[0])
		}
	}
}
