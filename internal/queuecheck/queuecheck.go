// Package queuecheck decides whether the queue kept its promises in one run of it.
//
// Whoever drives the queue records into a [Log] what it sees from outside: when a dispatch was sent
// and acknowledged, when a task's function began and returned, which process was killed, what a cancel
// answered. [Check] replays that against what the database holds at the end. It knows the promises, not
// how they are kept: it reads no clock, no table and no lock.
//
// Every interval is measured within the one that it stands for (a run is recorded by its own function,
// after the claim and before the finish), and a dispatch counts as later than another only if it was
// sent after the other was acknowledged. So what it reports has happened, however slow the recording
// was; it may miss what was too quick to be seen.
package queuecheck

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Task is the history's own name for a task; the driver puts it into the task's arguments.
type Task int64

// Resource is one resource that a task reserves.
type Resource struct {
	Name      string
	Exclusive bool
}

// Request is what a dispatch asked for, as far as the promises depend on it.
type Request struct {
	// Resources, with the domain among them: every task shares it or reserves it exclusively. Each is
	// named once.
	Resources []Resource
	// Later tasks have a time before which they are in no queue: they take their places then.
	Later bool
	// MaxAttempts bounds the runs; 1 is a task without retries.
	MaxAttempts int
}

// EventKind says what happened.
type EventKind uint8

// What happens in a history.
const (
	// Sent: a dispatch, with its Request, is about to be sent.
	Sent EventKind = iota + 1
	// Acknowledged: the dispatch was answered, or its transaction's commit was.
	Acknowledged
	// Withdrawn: the transaction of the dispatch was rolled back.
	Withdrawn
	// Started: the task's function began, for this Attempt, in the process Holder.
	Started
	// Ended: that function returned; Completed tells whether without an error.
	Ended
	// Killed: the process Holder stopped to exist, and with it all that it ran.
	Killed
	// CancelAcknowledged: a cancel answered that the task is canceled.
	CancelAcknowledged
	// SeenFinal: the task was read, in the final state State.
	SeenFinal
)

// Event is one entry of a history.
type Event struct {
	// At is the time since the history began, on one monotonic clock.
	At        time.Duration
	Kind      EventKind
	Task      Task
	Attempt   int
	Holder    string
	State     string
	Completed bool
	Request   *Request
}

// Final is a task as the database has it when the queue has drained.
type Final struct {
	Task     Task
	State    string
	Attempts int
}

// Kind names a promise that was broken.
type Kind string

// The promises, by what it is called to break them.
const (
	// Exclusion: two runs overlap on a resource that one of them has for itself.
	Exclusion Kind = "exclusion violated"
	// Order: of two tasks that exclude each other, the one that was dispatched later started first.
	Order Kind = "order violated"
	// Lost: a dispatch was acknowledged, and the database does not have it.
	Lost Kind = "lost"
	// RunTwice: one attempt ran twice, two attempts at a time, or more often than is allowed.
	RunTwice Kind = "run twice"
	// Unearned: it is completed, but no run of its last attempt was.
	Unearned Kind = "completed without a run"
	// Stuck: the queue has drained, and it is not final.
	Stuck Kind = "stuck"
	// Resurrected: it changed, or ran, after it had been seen in a final state.
	Resurrected Kind = "resurrected"
	// RanAfterCancel: it ran after a cancel had answered that it is canceled.
	RanAfterCancel Kind = "ran after cancel"
	// Phantom: it is in the database or ran, but was never dispatched, or that was rolled back.
	Phantom Kind = "phantom"
	// Impossible: no run of anything can have produced this history, so its recording is wrong.
	Impossible Kind = "impossible history"
)

// Violation is a promise broken for one task.
type Violation struct {
	Kind Kind
	Task Task
	// Other is the second task where it takes two, on Resource.
	Other    Task
	Resource string
	Detail   string
}

func (v Violation) String() string {
	if v.Resource != "" {
		return fmt.Sprintf("%s: tasks %d and %d on %s: %s", v.Kind, v.Task, v.Other, v.Resource, v.Detail)
	}
	return fmt.Sprintf("%s: task %d: %s", v.Kind, v.Task, v.Detail)
}

// Log records a history. Many goroutines may use it.
type Log struct {
	begin  time.Time
	mu     sync.Mutex
	events []Event
}

// NewLog begins a history.
func NewLog() *Log { return &Log{begin: time.Now()} }

// Record adds an event that happens now.
func (l *Log) Record(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.At = time.Since(l.begin)
	l.events = append(l.events, e)
}

// Events returns what was recorded so far.
func (l *Log) Events() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// final reports whether a task in this state never changes again.
func final(state string) bool {
	return state == "completed" || state == "failed" || state == "canceled" || state == "skipped"
}

// never is later than every event.
const never = time.Duration(math.MaxInt64)

// run is the interval in which a function ran.
type run struct {
	task       Task
	attempt    int
	start, end time.Duration
	completed  bool
}

// story is what the history says about one task.
type story struct {
	task        Task
	request     *Request
	sent, acked time.Duration
	withdrawn   bool
	runs        []*run
	canceled    time.Duration
	seen        time.Duration
	state       string // in which it was seen
	finals      []Final
}

// dispatched reports whether the task may exist.
func (s *story) dispatched() bool { return s.request != nil && !s.withdrawn }

// checker gathers what is found.
type checker struct {
	stories map[Task]*story
	order   []*story // as they first appear
	found   []Violation
}

// Check returns every promise that the history breaks, given what the database holds at the end. The
// time that it takes grows as n log n.
func Check(events []Event, finals []Final) []Violation {
	c := &checker{stories: map[Task]*story{}}
	c.read(events)
	for _, f := range finals {
		s := c.story(f.Task)
		s.finals = append(s.finals, f)
	}
	queues := map[string][]entry{}
	for _, s := range c.order {
		c.checkExistence(s)
		c.checkRuns(s)
		c.checkEnd(s)
		if s.request == nil {
			continue
		}
		for _, r := range s.request.Resources {
			queues[r.Name] = append(queues[r.Name], entry{s, r.Exclusive})
		}
	}
	names := make([]string, 0, len(queues))
	for name := range queues {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c.checkExclusion(name, queues[name])
		c.checkOrder(name, queues[name])
	}
	return c.found
}

func (c *checker) story(t Task) *story {
	s, ok := c.stories[t]
	if !ok {
		s = &story{task: t, sent: never, acked: never, canceled: never, seen: never}
		c.stories[t] = s
		c.order = append(c.order, s)
	}
	return s
}

func (c *checker) report(k Kind, t Task, format string, args ...any) {
	c.found = append(c.found, Violation{Kind: k, Task: t, Detail: fmt.Sprintf(format, args...)})
}

// read sorts the events into the tasks' stories.
func (c *checker) read(events []Event) {
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	type place struct {
		task    Task
		attempt int
		holder  string
	}
	open := map[place]*run{}
	held := map[string]map[place]bool{} // what each holder runs
	for _, e := range events {
		if e.Kind == Killed {
			for p := range held[e.Holder] {
				open[p].end = e.At
				delete(open, p)
			}
			delete(held, e.Holder)
			continue
		}
		s := c.story(e.Task)
		at := place{e.Task, e.Attempt, e.Holder}
		switch e.Kind {
		case Sent:
			switch {
			case e.Request == nil:
				c.report(Impossible, e.Task, "sent at %s without a request", e.At)
			case s.request != nil:
				c.report(Impossible, e.Task, "sent a second time at %s", e.At)
			default:
				s.request, s.sent = e.Request, e.At
			}
		case Acknowledged:
			if s.request == nil {
				c.report(Impossible, e.Task, "acknowledged at %s before it was sent", e.At)
			}
			s.acked = min(s.acked, e.At)
		case Withdrawn:
			s.withdrawn = true
		case Started:
			if open[at] != nil {
				c.report(RunTwice, e.Task, "attempt %d started again at %s, while it ran in %s", e.Attempt, e.At, e.Holder)
				continue
			}
			r := &run{task: e.Task, attempt: e.Attempt, start: e.At, end: never}
			s.runs = append(s.runs, r)
			open[at] = r
			if held[e.Holder] == nil {
				held[e.Holder] = map[place]bool{}
			}
			held[e.Holder][at] = true
		case Ended:
			r := open[at]
			if r == nil {
				c.report(Impossible, e.Task, "attempt %d ended at %s in %s, where it did not run", e.Attempt, e.At, e.Holder)
				continue
			}
			r.end, r.completed = e.At, e.Completed
			delete(open, at)
			delete(held[e.Holder], at)
		case CancelAcknowledged:
			s.canceled = min(s.canceled, e.At)
			c.see(s, e.At, "canceled")
		case SeenFinal:
			c.see(s, e.At, e.State)
		default:
			c.report(Impossible, e.Task, "unknown event %d at %s", e.Kind, e.At)
		}
	}
}

// see takes in that a task was in a final state.
func (c *checker) see(s *story, at time.Duration, state string) {
	switch {
	case !final(state):
		c.report(Impossible, s.task, "seen final at %s in state %q, which is not", at, state)
	case s.state == "":
		s.seen, s.state = at, state
	case s.state != state:
		c.report(Resurrected, s.task, "it was %s at %s and %s at %s", s.state, s.seen, state, at)
	}
}

func (c *checker) checkExistence(s *story) {
	switch {
	case len(s.finals) > 0 && s.request == nil:
		c.report(Phantom, s.task, "it is in the database and was never sent")
	case len(s.finals) > 0 && s.withdrawn:
		c.report(Phantom, s.task, "it is in the database and was rolled back")
	case len(s.finals) > 1:
		c.report(Phantom, s.task, "it was sent once and is in the database %d times", len(s.finals))
	case len(s.finals) == 0 && s.dispatched() && s.acked != never:
		c.report(Lost, s.task, "it was acknowledged at %s and is not in the database", s.acked)
	}
	if len(s.runs) > 0 && !s.dispatched() {
		c.report(Phantom, s.task, "it ran at %s and does not exist", s.runs[0].start)
	}
}

func (c *checker) checkRuns(s *story) {
	slices.SortStableFunc(s.runs, func(a, b *run) int { return cmp.Compare(a.start, b.start) })
	attempts := map[int]bool{}
	completed := 0
	var last *run
	for _, r := range s.runs {
		if attempts[r.attempt] {
			c.report(RunTwice, s.task, "attempt %d started again at %s", r.attempt, r.start)
		}
		attempts[r.attempt] = true
		if last != nil && last.end > r.start {
			c.report(RunTwice, s.task, "attempt %d started at %s, before attempt %d ended", r.attempt, r.start, last.attempt)
		}
		if last == nil || r.end > last.end {
			last = r
		}
		if r.completed {
			completed++
		}
		if r.end > s.canceled {
			c.report(RanAfterCancel, s.task, "attempt %d ran from %s, and the cancel was acknowledged at %s", r.attempt, r.start, s.canceled)
		}
		if r.end > s.seen {
			c.report(Resurrected, s.task, "attempt %d ran from %s, and it was %s at %s", r.attempt, r.start, s.state, s.seen)
		}
	}
	if s.request != nil && completed > 1 && s.request.MaxAttempts <= 1 {
		c.report(RunTwice, s.task, "it may not be retried and ran to its end %d times", completed)
	}
}

func (c *checker) checkEnd(s *story) {
	if len(s.finals) == 0 {
		return
	}
	f := s.finals[0]
	if !final(f.State) {
		c.report(Stuck, s.task, "it is %s", f.State)
	}
	if s.state != "" && s.state != f.State {
		c.report(Resurrected, s.task, "it was %s at %s and is %s", s.state, s.seen, f.State)
	}
	if len(s.runs) > f.Attempts {
		c.report(RunTwice, s.task, "it ran %d times, the database knows of %d", len(s.runs), f.Attempts)
	}
	if s.request != nil && f.Attempts > max(s.request.MaxAttempts, 1) {
		c.report(RunTwice, s.task, "it was tried %d times, %d are allowed", f.Attempts, s.request.MaxAttempts)
	}
	if f.State == "completed" && !slices.ContainsFunc(s.runs, func(r *run) bool { return r.attempt == f.Attempts && r.completed }) {
		c.report(Unearned, s.task, "attempt %d did not run to its end", f.Attempts)
	}
}

// entry is a task that reserves a resource.
type entry struct {
	*story
	exclusive bool
}

// latest remembers, of two sorts of tasks, the one with the greatest time so far.
type latest struct {
	at   [2]time.Duration
	task [2]Task
	any  [2]bool
}

func index(exclusive bool) int {
	if exclusive {
		return 1
	}
	return 0
}

func (l *latest) add(exclusive bool, at time.Duration, t Task) {
	if i := index(exclusive); !l.any[i] || at > l.at[i] {
		l.at[i], l.task[i], l.any[i] = at, t, true
	}
}

// after finds a task that excludes one of this sort and has a greater time.
func (l *latest) after(exclusive bool, at time.Duration) (Task, time.Duration, bool) {
	for i := range 2 {
		if (exclusive || i == index(true)) && l.any[i] && l.at[i] > at {
			return l.task[i], l.at[i], true
		}
	}
	return 0, 0, false
}

// checkExclusion visits the runs on a resource by their starts: whoever started before and ends later
// overlaps.
func (c *checker) checkExclusion(resource string, queue []entry) {
	type held struct {
		*run
		exclusive bool
	}
	var runs []held
	for _, e := range queue {
		for _, r := range e.runs {
			runs = append(runs, held{r, e.exclusive})
		}
	}
	slices.SortStableFunc(runs, func(a, b held) int { return cmp.Compare(a.start, b.start) })
	var ends latest
	for _, r := range runs {
		if other, end, ok := ends.after(r.exclusive, r.start); ok {
			until := end.String()
			if end == never {
				until = "the end"
			}
			c.found = append(c.found, Violation{
				Kind: Exclusion, Task: r.task, Other: other, Resource: resource,
				Detail: fmt.Sprintf("the first started at %s (exclusive: %t), the second ran until %s", r.start, r.exclusive, until),
			})
		}
		ends.add(r.exclusive, r.end, r.task)
	}
}

// checkOrder visits the tasks of a resource in the order in which they were sent; those that were
// acknowledged before must have started before.
func (c *checker) checkOrder(resource string, queue []entry) {
	type start struct {
		entry
		at time.Duration
	}
	// A retry queues up again behind others, and a later task when it is due: only the first attempt
	// of the others has the place of the dispatch.
	var first []start
	sent := make([]start, 0, len(queue))
	for _, e := range queue {
		if e.withdrawn || len(e.runs) == 0 {
			continue
		}
		sent = append(sent, start{e, e.runs[0].start})
		if i := slices.IndexFunc(e.runs, func(r *run) bool { return r.attempt == 1 }); i >= 0 && !e.request.Later && e.acked != never {
			first = append(first, start{e, e.runs[i].start})
		}
	}
	slices.SortStableFunc(first, func(a, b start) int { return cmp.Compare(a.acked, b.acked) })
	slices.SortStableFunc(sent, func(a, b start) int { return cmp.Compare(a.sent, b.sent) })
	var starts latest
	for _, e := range sent {
		for len(first) > 0 && first[0].acked < e.sent {
			starts.add(first[0].exclusive, first[0].at, first[0].task)
			first = first[1:]
		}
		if other, at, ok := starts.after(e.exclusive, e.at); ok {
			c.found = append(c.found, Violation{
				Kind: Order, Task: e.task, Other: other, Resource: resource,
				Detail: fmt.Sprintf("the first was sent at %s, when the second was acknowledged, and started at %s, the second at %s", e.sent, e.at, at),
			})
		}
	}
}
