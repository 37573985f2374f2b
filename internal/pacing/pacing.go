// Package pacing decides when a process of a fleet sends what nobody asked for: polls for tasks, looks
// for cancellations, beats, housekeeping.
//
// What counts is the rate of the whole fleet at the database, not that of one process. So each pause
// grows with the fleet's size, and is random, so that processes that start or fail together do not go
// on together.
//
// The package is pure: it sends nothing and does not sleep, and time comes from outside. Randomness
// comes from a *rand.Rand; nil is the global one, anything else makes it repeatable.
package pacing

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/pithworks/pith/internal/resend"
)

// The polling policy. Any idle worker may take a task, and its beats look for one too. Beside them a worker
// polls: it sleeps an exponentially distributed time of mean N/P, where P is R less the N/BeatEvery beats per
// second of the fleet. Polls and beats of N such workers together come like a Poisson process of rate R, whatever
// N is, until beats alone are more. A new task is seen after 1/R on average, 99 of 100 after 4.6/R.
const (
	// RateBusy is R, in polls and beats per second, while tasks come: 99 of 100 are seen within 61 ms, and a poll's
	// own time on top stays below 80 ms.
	RateBusy = 75.0
	// RateIdle is what R falls to while nothing comes: 99 of 100 are seen within 184 ms.
	RateIdle = 25.0

	// idleAfter is how long a fleet must have found nothing until R has fallen to RateIdle, at least.
	idleAfter = time.Minute
	// idleShare is by how much a larger fleet must have been idle longer, for each worker. One worker of
	// N that share a stream of tasks finds only each Nth, so that its own luck says little.
	idleShare = 6 * time.Second

	// floor bounds a sleep from below. It keeps a fleet of one at about R.
	floor = 2 * time.Millisecond
	// redraw bounds it from above: then it is drawn anew, without a poll, from what is known of the fleet
	// by now. An exponential distribution has no memory, so this changes nothing while nothing changes.
	redraw = 5 * time.Second
)

// A newcomer knows how many had registered before it, not how many do so right after it. If all N that
// start at once polled by what they know, R would be exceeded by the factor ln N. So a newcomer polls
// little until a beat has counted the fleet, and then more by and by, as the others learn of it and
// poll less.
const (
	// quiet divides a newcomer's share until the fleet was counted, in a fleet of 10 or more.
	quiet = 20
	// settled is how long after its registration a worker is no newcomer any more.
	settled = 12 * time.Second
	// blend is how long it takes until all others have beaten and know of a newcomer.
	blend = 10 * time.Second
)

// Poller paces the polls of one worker. One goroutine may use it.
type Poller struct {
	fleet func() int
	every time.Duration // between the beats of each worker
	rand  *rand.Rand
	// joined is when the worker registered, and knew how many were online then.
	joined time.Time
	knew   int
	// found is when it last found a task.
	found time.Time
}

// NewPoller is for a worker that has just registered in a fleet whose size, itself included, fleet
// answers at any time, and whose leases last for ttl.
func NewPoller(now time.Time, fleet func() int, ttl time.Duration, r *rand.Rand) *Poller {
	return &Poller{fleet: fleet, every: BeatEvery(ttl), rand: r, joined: now, knew: fleet(), found: now}
}

// Found notes that the worker has found a task.
func (p *Poller) Found(now time.Time) { p.found = now }

// Next is the pause before the next poll, if poll, else before the next call of Next. A task that is
// due in dueIn (none: negative) ends the pause earlier, but after the moment itself, and spread over
// the fleet as ever.
func (p *Poller) Next(now time.Time, dueIn time.Duration) (pause time.Duration, poll bool) {
	return p.next(now, dueIn, p.beats(now))
}

// next is Next where so many beats per second serve as polls.
func (p *Poller) next(now time.Time, dueIn time.Duration, beats float64) (pause time.Duration, poll bool) {
	each := exponential(p.rand) * float64(max(p.fleet(), 1)) / p.share(now) * float64(time.Second)
	rate := p.rate(now)
	sleep := math.Inf(1)
	if polls := rate - beats; polls > 0 {
		sleep = each / polls
	}
	if dueIn >= 0 {
		sleep = min(sleep, float64(dueIn)+each/rate/2)
	}
	if sleep > float64(redraw) {
		return redraw, false
	}
	return max(time.Duration(sleep), floor), true
}

// beats is how many beats of the fleet serve as polls per second. A newcomer counts on none: those that started
// with it have not beaten yet.
func (p *Poller) beats(now time.Time) float64 {
	if now.Sub(p.joined) < settled {
		return 0
	}
	return beatRate(p.fleet(), p.every)
}

// rate is this worker's idea of R.
func (p *Poller) rate(now time.Time) float64 {
	until := max(idleAfter, time.Duration(p.fleet())*idleShare)
	idle := min(now.Sub(p.found), until)
	return RateBusy - (RateBusy-RateIdle)*float64(idle)/float64(until)
}

// share is the part of its share of the polls that the worker takes: 1, or less as a newcomer.
func (p *Poller) share(now time.Time) float64 {
	age := now.Sub(p.joined)
	switch {
	case p.knew <= 1 || age >= settled:
		return 1
	case p.fleet() == p.knew: // not counted yet, or rightly known: then the others are enough
		return 1 / min(2*float64(p.knew), quiet)
	}
	return min(1, max(1.0/quiet, float64(age)/float64(blend)))
}

// Heed reports whether to poll at once because a beat has found runnable tasks. Who starts at the same time
// as others beats at the same time, too, so of newcomers only half do.
func (p *Poller) Heed(now time.Time) bool {
	return p.knew <= 1 || now.Sub(p.joined) >= settled || uniform(p.rand) < 0.5
}

// retryCeiling bounds the pause after a failed poll: an answer that got lost may have brought a task.
const retryCeiling = time.Minute

// Retry is the pause after a statement of a worker has failed so many times in a row. Who holds a task
// or its result, or is about to end, goes on soon (hurry); else there is no hurry beyond that of a poll, but for
// the ceiling: N workers try again at most R + N/45 s times per second, which is about R up to a thousand of
// them and the ceiling's doing from 3,400 on.
func (p *Poller) Retry(now time.Time, failures int, hurry bool) time.Duration {
	backoff := resend.BackoffBy(p.rand, failures)
	if hurry {
		return backoff
	}
	var pause time.Duration
	for ceiling := time.Duration((0.5 + 0.5*uniform(p.rand)) * float64(retryCeiling)); pause < ceiling; {
		more, poll := p.next(now, -1, 0)
		if pause += more; poll {
			break
		}
	}
	return max(backoff, pause)
}

// Looks: a worker with a task looks in the database whether it is to be canceled.
const (
	lookFloor   = 1500 * time.Millisecond
	lookCeiling = 10 * time.Second
	// lookRate is how often a fleet that is busy looks, per second, until the ceiling is reached.
	lookRate = 100
)

// Look is the longest time between two looks in a fleet of that size: a cancellation is seen within it.
func Look(fleet int) time.Duration {
	return min(max(lookFloor, time.Duration(fleet)*time.Second/lookRate), lookCeiling)
}

// houseEvery is how often the whole fleet keeps house, on average. A missing worker is noticed that
// long after its TTL; a schedule is dispatched that long after its due time.
const houseEvery = 2 * time.Second

// houseLook is the longest rest of a housekeeper before it asks again how many there are.
const houseLook = 10 * time.Second

// A House paces the housekeeping of one of many processes that do it.
type House struct {
	share float64
	rest  time.Duration
}

// NewHouse draws a pause before the next housekeeping.
func NewHouse(r *rand.Rand) *House { return &House{share: 0.5 + uniform(r)} }

// houseStep is how often a fleet of that TTL keeps house, on average.
func houseStep(ttl time.Duration) time.Duration { return min(houseEvery, ttl/4) }

// Next is how long to rest until the next call; 0: keep house now. The more housekeepers there are, the
// longer is the whole pause, and the shorter should they become fewer meanwhile.
func (h *House) Next(ttl time.Duration, housekeepers int) time.Duration {
	step := houseStep(ttl)
	whole := time.Duration(h.share * float64(step) * float64(max(housekeepers, 1)))
	pause := max(min(max(step, min(whole/10, houseLook)), whole-h.rest), 0)
	h.rest += pause
	return pause
}

// OncePerBeat draws whether this housekeeping does what the whole fleet is to do about once per BeatEvery.
func OncePerBeat(ttl time.Duration, r *rand.Rand) bool {
	return uniform(r)*float64(BeatEvery(ttl)) < float64(houseStep(ttl))
}

func exponential(r *rand.Rand) float64 {
	if r == nil {
		return rand.ExpFloat64()
	}
	return r.ExpFloat64()
}

func uniform(r *rand.Rand) float64 {
	if r == nil {
		return rand.Float64()
	}
	return r.Float64()
}
