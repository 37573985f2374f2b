package pacing

import (
	"math/rand/v2"
	"time"

	"github.com/pithworks/pith/internal/resend"
)

// Beats paces the beats of one process, from its registration until it is lost. One goroutine may use
// it.
type Beats struct {
	ttl  time.Duration
	rand *rand.Rand
	// together: others may beat at the same moments, for they started, or failed, at the same time.
	together bool
	failures int
}

// NewBeats is for a process that has just registered, whose lease lasts for ttl.
func NewBeats(ttl time.Duration, r *rand.Rand) *Beats {
	return &Beats{ttl: ttl, rand: r, together: true}
}

// beatRetryRate bounds how many beats that failed a fleet repeats per second, about: where more would
// come by resend.Backoff, the pauses are longer.
const beatRetryRate = 4000

// beatCeiling bounds the time between beats where the TTL is long: they also tell of the fleet's size, and
// of tasks that wait.
const beatCeiling = 10 * time.Second

// BeatEvery is the time between beats, and the longest that one may take: a third of the TTL, 10 s at most.
func BeatEvery(ttl time.Duration) time.Duration { return min(ttl/3, beatCeiling) }

// Next is the pause before the next beat in a fleet of that size: about BeatEvery; or less, at random, where
// others may beat at the same moments. After a failure it is resend.Backoff's, or longer in a large fleet.
func (b *Beats) Next(fleet int) time.Duration {
	pause := BeatEvery(b.ttl)
	if b.failures > 0 {
		apart := float64(fleet) / beatRetryRate * float64(time.Second)
		return min(pause, max(resend.BackoffBy(b.rand, b.failures), time.Duration((0.5+uniform(b.rand))*apart)))
	}
	if b.together {
		b.together = false
		return time.Duration(float64(pause) * (0.1 + 0.9*uniform(b.rand)))
	}
	return time.Duration(float64(pause) * (0.9 + 0.2*uniform(b.rand)))
}

const (
	// overdue is how long nobody has taken a task that polls, and beats without patience, have missed.
	overdue = 250 * time.Millisecond
	// beatMost is how many beats of a fleet per second may serve as polls.
	beatMost = 1.5 * RateBusy
)

// Patience is how long a task must have been runnable for the next beat of a worker with a free slot to tell
// of it. Beats serve as polls, so it is 0, but for some of the beats of a fleet so large that they come at more
// than beatMost per second: who finds the same task at the same time sends a turn for nothing.
func (b *Beats) Patience(fleet int) time.Duration {
	if uniform(b.rand)*beatRate(fleet, BeatEvery(b.ttl)) < beatMost {
		return 0
	}
	return overdue
}

// beatRate is how many beats a fleet of that size sends per second.
func beatRate(fleet int, every time.Duration) float64 { return float64(fleet) / every.Seconds() }

// Failed notes that a beat has failed.
func (b *Beats) Failed() { b.failures, b.together = b.failures+1, true }

// Failing reports whether the last beat has failed. Then others beat at the same moments as this one, as after
// an outage, and not all may act at once on what a beat tells.
func (b *Beats) Failing() bool { return b.failures > 0 }

// Arrived notes that a beat has prolonged the lease.
func (b *Beats) Arrived() { b.failures = 0 }
