// Package judge decides whether a chaos run has kept what Pith promises, from the log of its witness and from
// what the database holds in the end.
//
// It trusts neither alone. The log has what clients were promised and what tasks have done; the database has what
// became of each task, and each change of its state.
package judge

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/chaos/witness"
)

// Task is a row of the database.
type Task struct {
	ID          uuid.UUID `json:"id"`
	State       string    `json:"state"`
	Attempt     int       `json:"attempt"`
	MaxAttempts int       `json:"max_attempts"`
	CreatedAt   time.Time `json:"created_at"`
	// Place in its queues, of its last attempt, and what it reserves: exclusive resources bare, shared ones as
	// shared:NAME.
	Place    int64    `json:"place"`
	Reserved []string `json:"reserved,omitempty"`
	// NotBefore is since the beginning of the run; 0 if it was queued at once.
	NotBefore time.Duration `json:"not_before,omitempty"`
	// Schedule is the name of the schedule that it is of; "": it is of none. Due is the time that it was
	// dispatched for, as the schedule's row has it.
	Schedule string    `json:"schedule,omitempty"`
	Due      time.Time `json:"due,omitzero"`
}

// Change is a change of a task's state, in the order in which they were made; "" is that it was not there.
type Change struct {
	Task uuid.UUID     `json:"task"`
	From string        `json:"from"`
	To   string        `json:"to"`
	At   time.Duration `json:"at"` // since the beginning of the run
}

// Run is what is to be judged.
type Run struct {
	Events  []witness.Event `json:"events"`
	Tasks   []Task          `json:"tasks"`
	Changes []Change        `json:"changes"`
	// TTL of the workers, and how many tasks they run at the same time.
	TTL   time.Duration `json:"ttl"`
	Slots int           `json:"slots"`
	// Began is when the run began by the database's clock.
	Began time.Time `json:"began"`
	// Processes are the names of those that dispatch tasks or run them.
	Processes []string `json:"processes"`
}

// Violation is a broken promise.
type Violation struct {
	Rule string
	Text string
}

// String is for people.
func (v Violation) String() string { return v.Rule + ": " + v.Text }

// The rules.
const (
	Exclusion = "exclusion" // who reserves a resource exclusively is alone with it
	Order     = "order"     // who came first to a resource goes first
	Lost      = "lost"      // what was acknowledged is there
	Final     = "final"     // each task ends in one final state, once
	Once      = "once"      // an attempt has its effect once at most, a completed one exactly once
	Cancel    = "cancel"    // what was acknowledged as canceled does not begin any more, and ends so
	Schedule  = "schedule"  // each due time gives one task at most; a schedule that is due gives one, after the faults within two TTLs
	Stuck     = "stuck"     // after the faults everything moves on within two TTLs, and ends
	Crash     = "crash"     // no process ends by itself
	Idle      = "idle"      // something was done, by each process
)

// Rules are all rules.
var Rules = []string{Exclusion, Order, Lost, Final, Once, Cancel, Schedule, Stuck, Crash, Idle}

// Judge answers what was violated.
func Judge(r Run) []Violation {
	j := &judge{run: r, tasks: map[uuid.UUID]Task{}}
	for _, t := range r.Tasks {
		j.tasks[t.ID] = t
	}
	j.works()
	j.holders()
	j.clients()
	j.ends()
	j.effects()
	j.cancels()
	j.schedules()
	j.moves()
	for _, e := range r.Events {
		if e.Kind == witness.Crashed {
			j.say(Crash, "%s ended by itself: %s", e.Process, e.State)
		}
	}
	return j.found
}

type judge struct {
	run   Run
	tasks map[uuid.UUID]Task
	found []Violation
}

func (j *judge) say(rule, format string, args ...any) {
	j.found = append(j.found, Violation{rule, fmt.Sprintf(format, args...)})
}

// at is when the last event of a kind was; 0 if there is none.
func (j *judge) at(kind witness.Kind) (at time.Duration) {
	for _, e := range j.run.Events {
		if e.Kind == kind {
			at = e.At
		}
	}
	return at
}

func final(state string) bool {
	return state == "completed" || state == "failed" || state == "canceled" || state == "skipped"
}

// attempt is a run of a task.
type attempt struct {
	task uuid.UUID
	n    int
}

// Heedless is the name of a task type whose function is part of its worker's process and does not heed its context.
// Nobody can stop it but by the fence of the outside world.
const Heedless = "chaos.heedless"

// thaw is how long a process that was stopped may take to notice what has happened meanwhile.
const thaw = time.Second

// works judges that there is something to judge.
func (j *judge) works() {
	dispatched, effects := 0, 0
	busy := map[string]bool{}
	for _, e := range j.run.Events {
		switch {
		case e.Kind == witness.Dispatched:
			dispatched++
			busy[e.Process] = true
		case e.Kind == witness.Effect && !e.Refused:
			effects++
			busy[e.Process] = true
		}
	}
	for _, name := range j.run.Processes {
		if !busy[name] {
			j.say(Idle, "%s dispatched nothing and had no effect", name)
		}
	}
	if dispatched == 0 || effects < dispatched/2 {
		j.say(Idle, "of %d tasks that were acknowledged %d had their effect: less than half", dispatched, effects)
	}
}

// compatible reports whether two reservations of the same resource may be held at the same time.
func compatible(a, b bool) bool { return a && b }

// reservations calls do for each resource.
func reservations(e witness.Event, do func(name string, shared bool)) {
	for _, r := range e.Reserved {
		name, shared := strings.CutPrefix(r, "shared:")
		do(name, shared)
	}
}

// shares reports how e reserves a resource.
func shares(e witness.Event, name string) bool { return slices.Contains(e.Reserved, "shared:"+name) }

// holders judges who was at a resource together with whom, and in which order.
func (j *judge) holders() {
	active := map[string]map[attempt]witness.Event{} // by resource
	running := map[attempt]witness.Event{}
	begun := map[attempt]bool{}
	greatest := map[string][2]witness.Event{} // that began: exclusively, shared
	stopped := map[int]bool{}                 // processes
	thawed := map[int]time.Duration{}         // when those that were stopped have noticed
	// excused: who has begun so may not have noticed yet that others may take over.
	excused := func(e witness.Event, now time.Duration) bool {
		return e.Name == Heedless || stopped[e.PID] || now < thawed[e.PID]
	}
	leave := func(a attempt) {
		h, ok := running[a]
		if !ok {
			return
		}
		delete(running, a)
		reservations(h, func(name string, _ bool) { delete(active[name], a) })
	}
	for _, e := range j.run.Events {
		a := attempt{e.Task, e.Attempt}
		switch e.Kind {
		case witness.Stopped:
			stopped[e.PID] = true
		case witness.Continued:
			delete(stopped, e.PID)
			thawed[e.PID] = e.At + thaw
		case witness.Gone:
			for a, h := range running {
				if h.Conn == e.Conn {
					leave(a)
				}
			}
		case witness.Ended:
			leave(a)
		case witness.Touched, witness.Effect:
			if e.Refused && !excused(e, e.At) {
				j.say(Exclusion, "task %s, attempt %d, of %s was fenced (event %d), though its process was not stopped", e.Task, e.Attempt, e.Process, e.N)
			}
		case witness.Begun:
			if e.Refused {
				if !excused(e, e.At) {
					j.say(Order, "task %s, attempt %d, began too late (event %d): others had come after it", e.Task, e.Attempt, e.N)
				}
				continue
			}
			if begun[a] {
				j.say(Once, "task %s, attempt %d, runs twice (event %d)", e.Task, e.Attempt, e.N)
			}
			begun[a], running[a] = true, e
			reservations(e, func(name string, shared bool) {
				if active[name] == nil {
					active[name] = map[attempt]witness.Event{}
				}
				for other, o := range active[name] {
					if !compatible(shared, shares(o, name)) && !excused(o, e.At) && other != a {
						j.say(Exclusion, "%s: task %s began (event %d) while task %s of %s, which began at event %d, ran", name, e.Task, e.N, o.Task, o.Process, o.N)
					}
				}
				before := greatest[name]
				for mode, g := range before { // 0: exclusively
					if g.Token > e.Token && !compatible(shared, mode == 1) {
						j.say(Order, "%s: task %s with place %d began (event %d) after task %s with place %d (event %d)", name, e.Task, e.Token, e.N, g.Task, g.Token, g.N)
					}
				}
				mode := 0
				if shared {
					mode = 1
				}
				if e.Token > before[mode].Token {
					before[mode] = e
				}
				greatest[name] = before
				active[name][a] = e
			})
		}
	}
}

// clients judges the order of what one client has dispatched, and whether all of it is there.
func (j *judge) clients() {
	token := map[uuid.UUID]int64{} // of the first attempt
	for _, e := range j.run.Events {
		if e.Kind == witness.Begun && e.Attempt == 1 && !e.Refused {
			token[e.Task] = e.Token
		}
	}
	type queue struct{ client, resource string }
	last := map[queue][2]witness.Event{} // that was dispatched and has begun: exclusively, shared
	for _, e := range j.run.Events {
		if e.Kind != witness.Dispatched {
			continue
		}
		if _, ok := j.tasks[e.Task]; !ok {
			j.say(Lost, "task %s was acknowledged to %s (event %d) and is not there", e.Task, e.Client, e.N)
		}
		if token[e.Task] == 0 || !e.Queued {
			continue
		}
		reservations(e, func(name string, shared bool) {
			q := queue{e.Client, name}
			before := last[q]
			for mode, b := range before {
				if token[b.Task] > token[e.Task] && !compatible(shared, mode == 1) {
					j.say(Order, "%s: %s dispatched task %s before task %s, and it has the later place", name, e.Client, b.Task, e.Task)
				}
			}
			if shared {
				before[1] = e
			} else {
				before[0] = e
			}
			last[q] = before
		})
	}
}

// ends judges that each task ends once.
func (j *judge) ends() {
	ended := map[uuid.UUID]string{}
	for _, c := range j.run.Changes {
		if was, ok := ended[c.Task]; ok {
			j.say(Final, "task %s was %s and changed to %s", c.Task, was, c.To)
		}
		if final(c.To) {
			ended[c.Task] = c.To
		}
	}
	for _, e := range j.run.Events {
		if e.Kind == witness.Seen && final(e.State) && j.tasks[e.Task].State != e.State {
			j.say(Final, "task %s was seen as %s (event %d) and is %q", e.Task, e.State, e.N, j.tasks[e.Task].State)
		}
	}
	for id, state := range ended {
		if t, ok := j.tasks[id]; ok && t.State != state {
			j.say(Final, "task %s ended as %s and is %s", id, state, t.State)
		}
	}
}

// effects judges that what tasks do to the outside happens once.
func (j *judge) effects() {
	had := map[attempt]int{}
	all := map[uuid.UUID]int{}
	for _, e := range j.run.Events {
		if e.Kind == witness.Effect && !e.Refused {
			had[attempt{e.Task, e.Attempt}]++
			all[e.Task]++
		}
	}
	for a, n := range had {
		if n > 1 {
			j.say(Once, "task %s, attempt %d, had its effect %d times", a.task, a.n, n)
		}
	}
	for _, t := range j.run.Tasks {
		if t.MaxAttempts == 1 && all[t.ID] > 1 {
			j.say(Once, "task %s is never retried and had its effect %d times", t.ID, all[t.ID])
		}
		if t.State == "completed" && had[attempt{t.ID, t.Attempt}] == 0 {
			j.say(Once, "task %s completed in attempt %d without its effect", t.ID, t.Attempt)
		}
	}
}

// cancels judges that cancellations are honored.
func (j *judge) cancels() {
	canceled := map[uuid.UUID]int64{}
	for _, e := range j.run.Events {
		switch e.Kind {
		case witness.Canceled:
			if state := j.tasks[e.Task].State; (e.State == "canceled" || e.State == "canceling") && state != "canceled" && (state == "" || final(state)) {
				j.say(Cancel, "task %s was acknowledged as %s (event %d) and is %q", e.Task, e.State, e.N, state)
			}
			if e.State == "canceled" {
				canceled[e.Task] = e.N
			}
		case witness.Begun:
			if n, ok := canceled[e.Task]; ok {
				j.say(Cancel, "task %s began (event %d) after it was canceled (event %d)", e.Task, e.N, n)
			}
		}
	}
}

// schedules judges what the clock has dispatched. Nothing is dispatched while a schedule's last task goes on, and
// what was missed is not caught up on.
func (j *judge) schedules() {
	of := map[string][]Task{}
	for _, t := range j.run.Tasks {
		if t.Schedule != "" {
			of[t.Schedule] = append(of[t.Schedule], t)
		}
	}
	ended := map[uuid.UUID]time.Duration{}
	for _, c := range j.run.Changes {
		if final(c.To) {
			ended[c.Task] = c.At
		}
	}
	calm, unscheduled := j.at(witness.Calm), j.at(witness.Unscheduled)
	recurring := slices.ContainsFunc(j.run.Events, func(e witness.Event) bool { return e.Kind == witness.Scheduled && e.Every > 0 })
	if recurring && unscheduled <= calm+2*j.run.TTL {
		j.say(Schedule, "schedules went on for %s only after the faults, not for two TTLs", unscheduled-calm)
	}
	for _, e := range j.run.Events {
		if e.Kind != witness.Scheduled {
			continue
		}
		tasks := of[e.Name]
		delete(of, e.Name)
		slices.SortFunc(tasks, func(a, b Task) int { return a.CreatedAt.Compare(b.CreatedAt) })
		if len(tasks) == 0 {
			j.say(Schedule, "%s was due at %s and never dispatched", e.Name, e.Due)
			continue
		}
		if !tasks[0].Due.Equal(e.Due) {
			j.say(Schedule, "%s was due at %s first, and dispatched for %s", e.Name, e.Due, tasks[0].Due)
		}
		if e.Every == 0 && len(tasks) > 1 {
			j.say(Schedule, "%s is due once and was dispatched %d times", e.Name, len(tasks))
		}
		dues := map[time.Time]uuid.UUID{}
		for _, t := range tasks {
			switch other, twice := dues[t.Due]; {
			case t.Due.IsZero():
				j.say(Schedule, "%s: task %s was dispatched for no due time", e.Name, t.ID)
			case twice:
				j.say(Schedule, "%s: tasks %s and %s are of the same due time %s", e.Name, other, t.ID, t.Due)
			case e.Every > 0 && t.Due.Sub(e.Due)%e.Every != 0:
				j.say(Schedule, "%s: task %s was dispatched for %s, which is no due time", e.Name, t.ID, t.Due)
			case t.CreatedAt.Before(t.Due):
				j.say(Schedule, "%s: task %s was dispatched at %s, before it was due at %s", e.Name, t.ID, t.CreatedAt, t.Due)
			}
			dues[t.Due] = t.ID
		}
		if e.Every > 0 {
			j.halts(e, tasks, ended, calm, unscheduled)
		}
	}
	for name := range of {
		j.say(Schedule, "tasks were dispatched by %s, which nobody has made", name)
	}
}

// halts judges that after the faults a recurring schedule, whose tasks these are, goes on within two TTLs of when it
// is due and its last task has ended.
func (j *judge) halts(e witness.Event, tasks []Task, ended map[uuid.UUID]time.Duration, calm, unscheduled time.Duration) {
	at := func(t time.Time) time.Duration { return t.Sub(j.run.Began) }
	for i, t := range tasks {
		end, ok := ended[t.ID]
		if !ok {
			return // another rule has it
		}
		next := unscheduled
		if i+1 < len(tasks) {
			next = at(tasks[i+1].CreatedAt)
		}
		free := max(calm, end, at(t.CreatedAt)+e.Every)
		if late := min(next, unscheduled) - free; late > 2*j.run.TTL {
			j.say(Schedule, "%s: nothing was dispatched for %s after task %s, which had ended", e.Name, late.Round(time.Millisecond), t.ID)
		}
	}
}
