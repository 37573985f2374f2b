package simulate

import (
	"time"

	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/internal/resend"
)

// register is the start of a worker, and what it does after it has lost its lease.
func (f *fleet) register(w *worker) {
	sent := f.now
	f.send(w, Register,
		func(f *fleet, w *worker) {
			f.rows++
			f.ordinal++
			w.ordinal = f.ordinal
			f.recount()
			w.known, w.beaten = f.counted+w.ordinal-f.registered, f.now
		},
		func(f *fleet, w *worker) {
			w.online, w.failures = true, 0
			w.leased = sent + TTL*9/10
			w.poller = pacing.NewPoller(f.clock(), w.fleet, TTL, w.rand)
			f.at(w.leased, w, (*fleet).leaseEnds)
			w.beats = pacing.NewBeats(TTL, w.rand)
			f.in(w.beats.Next(w.known), w, (*fleet).beat)
			w.house = pacing.NewHouse(w.rand)
			f.houseRest(w)
			f.rest(w)
		},
		func(f *fleet, w *worker) {
			w.failures++
			f.in(resend.BackoffBy(w.rand, w.failures), w, (*fleet).register)
		})
}

// leaseEnds looks whether the lease was prolonged meanwhile. A worker without a lease starts over; a
// task that it runs is lost to the model.
func (f *fleet) leaseEnds(w *worker) {
	if f.now < w.leased {
		f.at(w.leased, w, (*fleet).leaseEnds)
		return
	}
	f.expire(w)
	w.life++
	w.online, w.busy, w.resting = false, false, false
	f.result.Lost++
	f.in(0, w, (*fleet).register)
}

func (f *fleet) beat(w *worker) {
	sent := f.now
	counted, runnable := 0, false
	patience := w.beats.Patience(w.known)
	f.send(w, Beat,
		func(f *fleet, w *worker) {
			w.beaten = f.now
			f.recount()
			counted = f.counted + max(w.ordinal-f.registered, 0)
			runnable = len(f.waiting) > 0 && f.waiting[0].came <= f.now-patience
		},
		func(f *fleet, w *worker) {
			w.known = counted
			runnable = runnable && !w.beats.Failing()
			w.beats.Arrived()
			w.leased = sent + TTL*9/10
			f.in(w.beats.Next(w.known), w, (*fleet).beat)
			if runnable && w.resting && w.poller.Heed(f.clock()) {
				f.poll(w)
			}
		},
		func(f *fleet, w *worker) {
			w.beats.Failed()
			f.in(w.beats.Next(w.known), w, (*fleet).beat)
		})
}

// keepHouse does the duties, and again from time to time.
func (f *fleet) keepHouse(w *worker) {
	f.count(House, dutiesPerHouse)
	w.house = pacing.NewHouse(w.rand)
	f.houseRest(w)
}

func (f *fleet) houseRest(w *worker) {
	if pause := w.house.Next(TTL, w.known); pause > 0 {
		f.in(pause, w, (*fleet).houseRest)
		return
	}
	f.keepHouse(w)
}

// recount counts the fleet, unless somebody has a moment ago.
func (f *fleet) recount() {
	if f.counted == 0 || f.now >= f.countedAt+countEvery {
		f.counted, f.registered, f.countedAt = f.rows, f.ordinal, f.now
	}
}

// rest is the pause of an idle worker.
func (f *fleet) rest(w *worker) {
	pause, poll := w.poller.Next(f.clock(), -1)
	w.resting = true
	w.rests++
	rest := w.rests
	f.in(pause, w, func(f *fleet, w *worker) {
		switch {
		case !w.resting || w.rests != rest: // a beat has ended it
		case poll:
			f.poll(w)
		default:
			f.rest(w)
		}
	})
}

func (f *fleet) poll(w *worker) {
	w.resting = false
	f.turn(w, Poll)
}

// turn is a statement that asks for one task.
func (f *fleet) turn(w *worker, k Kind) {
	var got *task
	f.send(w, k,
		func(f *fleet, _ *worker) {
			if len(f.waiting) > 0 {
				got, f.waiting = &f.waiting[0], f.waiting[1:]
			}
		},
		func(f *fleet, w *worker) {
			w.failures = 0
			w.busy = got != nil
			if got == nil {
				f.rest(w)
				return
			}
			w.poller.Found(f.clock())
			f.result.Waits = append(f.result.Waits, Wait{got.came, f.now - got.came})
			f.result.Claimed[w.number]++
			end := f.now + got.takes
			f.look(w, end)
			f.at(end, w, func(f *fleet, w *worker) { f.turn(w, Turn) })
		},
		func(f *fleet, w *worker) {
			w.failures++
			pause := w.poller.Retry(f.clock(), w.failures, w.busy)
			f.in(pause, w, func(f *fleet, w *worker) { f.turn(w, k) })
		})
}

// look sends the next look of a task that runs until end.
func (f *fleet) look(w *worker, end time.Duration) {
	if next := f.now + pacing.Look(w.known); next < end {
		f.at(next, w, func(f *fleet, w *worker) {
			f.count(Look, 1)
			f.look(w, end)
		})
	}
}
