package worker

import (
	"math/rand/v2"
	"time"
)

// The polling policy. Any idle worker may take a task, so what counts is the rate of polls of the
// whole fleet, not of one worker. A worker sleeps an exponentially distributed time of mean N/R: the
// polls of N such workers are a Poisson process of rate R, whatever N is. A new task is seen after
// 1/R on average, and the database gets R polls per second.
const (
	// rateBusy is R, in polls per second, while tasks come: 60 puts the 99th percentile of the wait
	// below 80 ms.
	rateBusy = 60.0
	// rateIdle is what R falls to while nothing comes.
	rateIdle = 20.0
	// idleAfter is how long nothing must have come until R has fallen to rateIdle.
	idleAfter = time.Minute
	// pollFloor and pollCeiling bound one sleep. The floor keeps a fleet of one at about R.
	pollFloor   = 2 * time.Millisecond
	pollCeiling = 10 * time.Minute
)

// pacer decides how long a worker sleeps before its next poll. It is pure: time comes from outside.
type pacer struct {
	// fleet answers how many workers are online.
	fleet func() int
	// lastFound is when a poll last found a task.
	lastFound time.Time
}

// rate is this worker's idea of R.
func (p *pacer) rate(now time.Time) float64 {
	idle := now.Sub(p.lastFound)
	if idle >= idleAfter {
		return rateIdle
	}
	return rateBusy - (rateBusy-rateIdle)*float64(idle)/float64(idleAfter)
}

// next is the sleep before the next poll. A task that is due in dueIn ends it earlier, but after the
// moment itself, and spread over the fleet as ever.
func (p *pacer) next(now time.Time, dueIn time.Duration) time.Duration {
	mean := float64(p.fleet()) / p.rate(now) * float64(time.Second)
	sleep := time.Duration(rand.ExpFloat64() * mean)
	if dueIn >= 0 && dueIn+sleep/2 < sleep {
		sleep = dueIn + sleep/2
	}
	return min(max(sleep, pollFloor), pollCeiling)
}

// found notes that a poll has found something.
func (p *pacer) found(now time.Time) { p.lastFound = now }
