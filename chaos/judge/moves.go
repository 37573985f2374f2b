package judge

import (
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/chaos/witness"
)

// moves judges that after the faults everything moves on, and ends.
func (j *judge) moves() {
	calm := j.at(witness.Calm)
	if j.at(witness.Still) == 0 {
		j.say(Stuck, "the run has no end")
		return
	}
	left := 0
	for _, t := range j.run.Tasks {
		if !final(t.State) {
			if left++; left <= 5 {
				j.say(Stuck, "task %s is %s in the end", t.ID, t.State)
			}
		}
	}
	if left > 5 {
		j.say(Stuck, "and %d more tasks", left-5)
	}
	j.idles(calm)
	j.leftovers(calm)
	j.waits(calm)
}

// waits judges that after the faults no task waits for long that nothing keeps from running: no task before it at its
// resources, and no want of slots.
func (j *judge) waits(calm time.Duration) {
	type place struct {
		Task
		shared bool
	}
	queues := map[string][]place{}
	for _, t := range j.run.Tasks {
		reservations(witness.Event{Reserved: t.Reserved}, func(name string, shared bool) {
			queues[name] = append(queues[name], place{t, shared})
		})
	}
	ended, began, came := map[uuid.UUID]time.Duration{}, map[uuid.UUID]time.Duration{}, map[uuid.UUID]time.Duration{}
	for _, c := range j.run.Changes {
		switch {
		case c.From == "":
			came[c.Task] = c.At
		case c.To == "running":
			began[c.Task] = c.At
		}
		if final(c.To) {
			ended[c.Task] = c.At
		}
	}
	for _, t := range j.run.Tasks {
		start, ok := began[t.ID]
		if !ok || t.MaxAttempts > 1 || start-calm <= 2*j.run.TTL {
			continue
		}
		free, known := max(calm, came[t.ID], t.NotBefore), true
		reservations(witness.Event{Reserved: t.Reserved}, func(name string, shared bool) {
			for _, p := range queues[name] {
				// One that was tried again had an earlier place, too.
				if p.ID == t.ID || compatible(p.shared, shared) || p.Place > t.Place && p.Attempt <= 1 {
					continue
				}
				end, ok := ended[p.ID]
				known = known && ok
				free = max(free, end)
			}
		})
		if late := start - free; known && late > 2*j.run.TTL && !j.full(free, start) {
			j.say(Stuck, "task %s waited for %s with nothing before it", t.ID, late.Round(time.Millisecond))
		}
	}
}

// full reports whether all slots were taken at some time between.
func (j *judge) full(from, to time.Duration) bool {
	running, most := map[uuid.UUID]bool{}, 0
	for _, c := range j.run.Changes {
		if c.At > to {
			break
		}
		if c.To == "running" || c.To == "canceling" {
			running[c.Task] = true
		} else {
			delete(running, c.Task)
		}
		if c.At >= from {
			most = max(most, len(running))
		}
	}
	return most >= j.run.Slots
}

// idles judges that after the faults there is no long time in which tasks wait and none runs.
func (j *judge) idles(calm time.Duration) {
	states := map[uuid.UUID]string{}
	running, last := 0, calm
	for _, c := range j.run.Changes {
		if gap := c.At - max(last, calm); running == 0 && len(states) > 0 && gap > 2*j.run.TTL {
			j.say(Stuck, "after the faults %d tasks waited and none ran for %s, more than two TTLs", len(states), gap.Round(time.Millisecond))
		}
		last = c.At
		if states[c.Task] == "running" || states[c.Task] == "canceling" {
			running--
		}
		states[c.Task] = c.To
		switch {
		case final(c.To):
			delete(states, c.Task)
		case c.To == "running" || c.To == "canceling":
			running++
		}
	}
}

// leftovers judges that what was running in a process that is gone is ended in time.
func (j *judge) leftovers(calm time.Duration) {
	left := map[uuid.UUID]time.Duration{} // since when nobody runs it
	conn := map[uuid.UUID]int64{}
	for _, e := range j.run.Events {
		switch e.Kind {
		case witness.Begun:
			if !e.Refused {
				conn[e.Task] = e.Conn
				delete(left, e.Task)
			}
		case witness.Ended:
			delete(conn, e.Task)
			left[e.Task] = e.At
		case witness.Gone:
			for task, c := range conn {
				if c == e.Conn {
					delete(conn, task)
					left[task] = e.At
				}
			}
		}
	}
	claimed := map[uuid.UUID]time.Duration{}
	for _, c := range j.run.Changes {
		if c.To == "running" {
			claimed[c.Task] = c.At
		}
		since, ok := left[c.Task]
		since = max(since, claimed[c.Task]) // it may have been claimed once more, and never begun
		if late := c.At - max(since, calm); ok && c.From != "waiting" && final(c.To) && late > 2*j.run.TTL {
			j.say(Stuck, "task %s was run by nobody any more, and ended as %s %s later", c.Task, c.To, late.Round(time.Millisecond))
		}
	}
}
