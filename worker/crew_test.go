package worker

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
)

// Each task waits until all others run, so none may stand behind another one.
func TestTasksOfACrewDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	const tasks = 100
	var all sync.WaitGroup
	all.Add(tasks)
	var ended atomic.Int64
	c := newCrew(func(*slot) {
		all.Done()
		all.Wait()
		ended.Add(1)
	})
	slots := make([]*slot, tasks)
	for i := range slots {
		slots[i] = &slot{}
	}
	c.start(slots[:1]...)
	c.start(slots[1:50]...)
	c.start(slots[50:]...)
	seen := map[*slot]bool{}
	for len(seen) < tasks {
		receive(t, "end", c.rang)
		for _, s := range c.reap() {
			if seen[s] {
				t.Fatal("a task has ended twice")
			}
			seen[s] = true
		}
	}
	if n := ended.Load(); n != tasks {
		t.Errorf("%d of %d tasks have run", n, tasks)
	}
}

// The functions of short tasks run while others, which were started before, go on.
func TestShortTasksOfACrewPassLongOnes(t *testing.T) {
	t.Parallel()
	ctx, release := context.WithCancel(t.Context())
	defer release()
	c := newCrew(func(s *slot) {
		if s.told {
			<-ctx.Done()
		}
	})
	var slots []*slot
	for i := range 90 {
		slots = append(slots, &slot{told: i%3 == 0}) // told: a long one
	}
	c.start(slots...)
	short := 0
	for short < 60 {
		receive(t, "end", c.rang)
		short += len(c.reap())
	}
	if short != 60 {
		t.Errorf("%d tasks have ended, not 60", short)
	}
	release()
	for long := 0; long < 30; {
		receive(t, "end", c.rang)
		long += len(c.reap())
	}
}
