// Package simulate runs fleets of workers on virtual time, to see what their pauses do to a database.
//
// The pauses are decided by the code that decides them in production, internal/pacing and
// internal/resend. All else is a model: a database that answers each statement after the round trip,
// however many there are, unless it is down, when it refuses at once; workers of one slot; tasks that
// come from other processes. So it tells rates and waits, not the load that a server can carry.
//
// The same configuration gives the same result, always.
package simulate

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pithworks/pith/internal/pacing"
)

// A Kind is one of the statements that workers send.
type Kind int

// The statements of a worker.
const (
	// Poll asks for tasks and ends none.
	Poll Kind = iota
	// Turn ends a task and asks for the next one.
	Turn
	// Look asks whether the task that runs is to be canceled.
	Look
	// Beat prolongs the lease.
	Beat
	// Register writes the row of a worker that starts.
	Register
	// House is a statement of the housekeeping.
	House
	kinds
)

// Config describes a fleet and what happens to it.
type Config struct {
	// Seed makes the random numbers.
	Seed uint64
	// Until is when the simulation ends.
	Until time.Duration
	// Settled is how many workers are there at the start and know so.
	Settled int
	// Silence is how long nothing has come before the start, and Came how often tasks had come before
	// that. Came 0: never since the workers started.
	Silence, Came time.Duration
	// Joins are workers that start later.
	Joins []Join
	// Deaths are workers that vanish without a word.
	Deaths []Death
	// Tasks are streams of them.
	Tasks []Stream
	// Outages are when the database is down.
	Outages []Outage
}

// A Join is workers that start, spread evenly over a time.
type Join struct {
	At, Over time.Duration
	Workers  int
}

// A Death is so many of the oldest workers that are killed.
type Death struct {
	At      time.Duration
	Workers int
}

// A Stream is so many tasks, one each Every (0: all at once), from At on; Takes is how long each runs.
type Stream struct {
	At, Every, Takes time.Duration
	Count            int
}

// An Outage is a time without database.
type Outage struct{ At, For time.Duration }

// Bucket is the resolution of a Result's counts.
const Bucket = 100 * time.Millisecond

// A Result is what has happened.
type Result struct {
	// Sent counts the statements that were sent, by kind, in each Bucket.
	Sent [kinds][]int
	// Waits are the times that tasks waited, in the order in which they were started.
	Waits []Wait
	// Left is how many tasks were not started.
	Left int
	// Lost is how many workers lost their lease.
	Lost int
	// Claimed is how many tasks each worker has started.
	Claimed []int
}

// A Wait is how long a task waited, from when it could be seen until its function began.
type Wait struct{ Came, Waited time.Duration }

// TTL is the length of a lease, as by Pith's defaults.
const TTL = 30 * time.Second

// The model's other fixed figures: those of Pith's defaults, and a round trip as through PgBouncer on one
// machine, uniformly distributed.
const (
	shortTrip      = time.Millisecond
	longTrip       = 2 * time.Millisecond
	dutiesPerHouse = 4
	// countEvery is how old the count of the fleet becomes that the database answers beats with.
	countEvery = time.Second
)

// epoch is the virtual zero as a time of day; it has no meaning.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// A worker is one process with one slot.
type worker struct {
	number int
	rand   *rand.Rand
	poller *pacing.Poller
	house  *pacing.House
	// life tells events of an earlier life apart: it grows when the worker loses its lease or dies.
	life     int
	online   bool
	dead     bool
	ordinal  int // of its registration
	known    int // what it knows of the fleet's size
	beats    *pacing.Beats
	failures int // of polls or registrations, one after the other
	// leased is until when it counts on its lease; beaten is when the database wrote the last beat.
	leased, beaten time.Duration
	busy           bool
	// resting: it waits for its next poll; rests numbers these times.
	resting bool
	rests   int
}

type fleet struct {
	cfg     Config
	now     time.Duration
	events  queue
	workers []*worker
	rand    *rand.Rand
	// rows is how many app statuses the database counts as online.
	rows int
	// counted is what they were at countedAt, when so many had registered ever; ordinal is how many have.
	counted, registered, ordinal int
	countedAt                    time.Duration
	waiting                      []task
	result                       Result
}

type task struct{ came, takes time.Duration }

// Run simulates.
func Run(cfg Config) Result {
	f := &fleet{cfg: cfg, rand: rand.New(rand.NewPCG(cfg.Seed, 0))}
	for k := range f.result.Sent {
		f.result.Sent[k] = make([]int, int((cfg.Until+Bucket-1)/Bucket))
	}
	for range cfg.Settled {
		f.settle(f.add())
	}
	for _, j := range cfg.Joins {
		for i := range j.Workers {
			w := f.add()
			f.at(j.At+j.Over*time.Duration(i)/time.Duration(max(j.Workers, 1)), w, (*fleet).register)
		}
	}
	for _, d := range cfg.Deaths {
		f.at(d.At, nil, func(f *fleet, _ *worker) { f.kill(d.Workers) })
	}
	for _, s := range cfg.Tasks {
		f.stream(s, 0)
	}
	for f.events.len() > 0 {
		e := f.events.pop()
		if e.at >= cfg.Until {
			break
		}
		f.now = e.at
		if e.who == nil || e.who.life == e.life && !e.who.dead {
			e.what(f, e.who)
		}
	}
	f.result.Left = len(f.waiting)
	slices.SortStableFunc(f.result.Waits, func(a, b Wait) int { return cmp.Compare(a.Came+a.Waited, b.Came+b.Waited) })
	return f.result
}

func (f *fleet) add() *worker {
	w := &worker{number: len(f.workers), rand: f.rand}
	f.workers = append(f.workers, w)
	f.result.Claimed = append(f.result.Claimed, 0)
	return w
}

// settle makes a worker one that has been there for long.
func (f *fleet) settle(w *worker) {
	n := f.cfg.Settled
	w.online, w.known = true, n
	f.rows++
	f.counted = f.rows
	w.beats = pacing.NewBeats(TTL, w.rand)
	w.beats.Arrived()
	w.beats.Next(n) // the one before the start
	every := pacing.BeatEvery(TTL)
	phase := time.Duration(f.rand.Float64() * float64(every))
	w.beaten = phase - every
	w.leased = w.beaten + TTL*9/10
	idle := f.cfg.Silence + time.Duration(f.rand.ExpFloat64()*float64(n)*float64(f.cfg.Came))
	w.poller = pacing.NewPoller(epoch.Add(-max(idle, time.Hour)), w.fleet, TTL, w.rand)
	w.poller.Found(epoch.Add(-idle))
	f.at(phase, w, (*fleet).beat)
	f.at(w.leased, w, (*fleet).leaseEnds)
	f.in(time.Duration(f.rand.Float64()*float64(n)*float64(2*time.Second)), w, (*fleet).keepHouse)
	f.rest(w)
}

func (w *worker) fleet() int { return w.known }

// at calls what at a time, unless the worker has lost its life by then.
func (f *fleet) at(at time.Duration, w *worker, what func(*fleet, *worker)) {
	life := 0
	if w != nil {
		life = w.life
	}
	f.events.push(event{at: at, who: w, life: life, what: what})
}

func (f *fleet) in(d time.Duration, w *worker, what func(*fleet, *worker)) { f.at(f.now+d, w, what) }

func (f *fleet) clock() time.Time { return epoch.Add(f.now) }

// send counts a statement and calls arrived when the database sees it, and then answered; or failed.
func (f *fleet) send(w *worker, k Kind, arrived, answered, failed func(*fleet, *worker)) {
	f.count(k, 1)
	trip := shortTrip + time.Duration(f.rand.Int64N(int64(longTrip-shortTrip)))
	if f.down(f.now + trip/2) {
		f.in(trip, w, failed)
		return
	}
	f.in(trip/2, w, func(f *fleet, w *worker) {
		arrived(f, w)
		f.in(trip/2, w, answered)
	})
}

func (f *fleet) count(k Kind, n int) {
	if b := int(f.now / Bucket); b < len(f.result.Sent[k]) {
		f.result.Sent[k][b] += n
	}
}

func (f *fleet) down(at time.Duration) bool {
	return slices.ContainsFunc(f.cfg.Outages, func(o Outage) bool { return at >= o.At && at < o.At+o.For })
}

// stream lets the i-th task of a stream appear.
func (f *fleet) stream(s Stream, i int) {
	if i == s.Count {
		return
	}
	f.at(s.At+s.Every*time.Duration(i), nil, func(f *fleet, _ *worker) {
		f.waiting = append(f.waiting, task{f.now, s.Takes})
		f.stream(s, i+1)
	})
}

// kill lets workers vanish; their rows go when their leases end.
func (f *fleet) kill(n int) {
	for _, w := range f.workers {
		if n == 0 {
			return
		}
		if w.online && !w.dead {
			w.dead = true
			f.expire(w)
			n--
		}
	}
}

// expire takes a worker's row from those that count, once its lease has ended at the database.
func (f *fleet) expire(w *worker) {
	f.at(w.beaten+TTL, nil, func(f *fleet, _ *worker) { f.rows-- })
}
