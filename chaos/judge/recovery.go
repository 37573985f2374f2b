package judge

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/chaos/witness"
)

// Recovery is how long it took until everything went on after faults of a kind.
type Recovery struct {
	Fault  string
	Times  []time.Duration // sorted
	Median time.Duration
	Worst  time.Duration
}

// Recoveries answers how long it took after the end of each fault until a task had its effect that was dispatched
// after that; or, after a process was killed, until what it held had ended.
func Recoveries(r Run) []Recovery {
	times := map[string][]time.Duration{}
	for i, e := range r.Events {
		switch e.Kind {
		case witness.Healed:
			if d, ok := flows(r.Events[i:]); ok {
				times[e.Name] = append(times[e.Name], d)
			}
		case witness.Killed:
			if d, ok := freed(r, i); ok {
				times["kill: what it held"] = append(times["kill: what it held"], d)
			}
		}
	}
	var out []Recovery
	for fault, list := range times {
		slices.Sort(list)
		out = append(out, Recovery{fault, list, list[len(list)/2], list[len(list)-1]})
	}
	slices.SortFunc(out, func(a, b Recovery) int { return cmp.Compare(a.Fault, b.Fault) })
	return out
}

// flows is how long after the first event a task had its effect that was dispatched later.
func flows(events []witness.Event) (time.Duration, bool) {
	fresh := map[uuid.UUID]bool{}
	for _, e := range events {
		switch {
		case e.Kind == witness.Dispatched:
			fresh[e.Task] = true
		case e.Kind == witness.Effect && fresh[e.Task]:
			return e.At - events[0].At, true
		}
	}
	return 0, false
}

// freed is how long after event i, which killed a process, the last of the tasks ended that it ran.
func freed(r Run, i int) (time.Duration, bool) {
	held := map[uuid.UUID]bool{}
	for _, e := range r.Events[:i] {
		switch {
		case e.Process != r.Events[i].Process:
		case e.Kind == witness.Begun && !e.Refused:
			held[e.Task] = true
		case e.Kind == witness.Ended:
			delete(held, e.Task)
		}
	}
	var worst time.Duration
	for _, c := range r.Changes {
		if held[c.Task] && c.At > r.Events[i].At && c.From == "running" {
			worst = max(worst, c.At-r.Events[i].At)
			delete(held, c.Task)
		}
	}
	return worst, worst > 0
}
