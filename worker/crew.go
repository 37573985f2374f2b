package worker

import "sync"

// crew runs tasks in goroutines, as if each had one of its own: no task waits for another to end. But a
// goroutine whose task has ended takes the next one, so a thousand short tasks need a few goroutines.
//
// The rule that makes it so: while tasks wait, one goroutine is on its way to them. It is the scheduler
// that decides whether it comes first, or one whose task has just ended.
type crew struct {
	run func(*slot)
	// rang gets a value when something has ended since the last call of reap.
	rang chan struct{}

	mu      sync.Mutex
	waiting []*slot
	next    int  // of those that wait
	coming  bool // a goroutine is on its way
	ended   []*slot
}

func newCrew(run func(*slot)) *crew { return &crew{run: run, rang: make(chan struct{}, 1)} }

// start runs tasks.
func (c *crew) start(slots ...*slot) {
	c.mu.Lock()
	if c.next == len(c.waiting) {
		clear(c.waiting)
		c.waiting, c.next = c.waiting[:0], 0
	}
	c.waiting = append(c.waiting, slots...)
	call := c.call()
	c.mu.Unlock()
	if call {
		go c.work()
	}
}

// call tells whether a goroutine is to be sent, which then counts as coming.
func (c *crew) call() bool {
	if c.coming || c.next == len(c.waiting) {
		return false
	}
	c.coming = true
	return true
}

func (c *crew) work() {
	c.mu.Lock()
	c.coming = false
	for c.next < len(c.waiting) {
		s := c.waiting[c.next]
		c.next++
		call := c.call()
		c.mu.Unlock()
		if call {
			go c.work()
		}
		c.run(s)
		c.mu.Lock()
		c.ended = append(c.ended, s)
		if len(c.ended) == 1 {
			select {
			case c.rang <- struct{}{}:
			default:
			}
		}
	}
	c.mu.Unlock()
}

// reap returns what has ended since the last call.
func (c *crew) reap() []*slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	ended := c.ended
	c.ended = nil
	return ended
}
