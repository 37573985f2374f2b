package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

// Figures of the scenario scaleup, each the highest in any second.
const (
	pollPeak     = "polls/s"
	beatPeak     = "beats/s"
	registerPeak = "registrations/s"
	otherPeak    = "all but turns that end a task and registrations/s"
)

var scaleupColumns = []column{
	own(pollPeak), own(beatPeak), own(registerPeak), own(otherPeak), tasksPerSecond, p50, p99, databaseShare, serverConnects, own(missed),
}

// scaleups has a fleet grow by more than an order of magnitude within seconds.
func scaleups(pace pace) []contest {
	type steps [3]int
	sizes, task := steps{25, 150, 1000}, 2*time.Second
	if pace.quick {
		sizes, task = steps{3, 8, 20}, 100*time.Millisecond
	}
	var contests []contest
	for _, backlog := range []int{0, 2 * sizes[2]} {
		name := fmt.Sprintf("%d → %d → %d workers, a task every %s", sizes[0], sizes[1], sizes[2], workload.PickupEvery)
		if backlog > 0 {
			name = fmt.Sprintf("%d → %d → %d workers, %d tasks of %s waiting", sizes[0], sizes[1], sizes[2], backlog, task)
		}
		budget := pacing.RateBusy + float64(sizes[2])/beatsApart.Seconds()
		contests = append(contests, contest{
			name: name, latency: "dispatch to start", most: 3,
			contestants: []contestant{{name: pith, recorded: pithCompleted, window: 40 * time.Second, measure: func(ctx context.Context, b *bench, c contestant) (Sample, error) {
				return b.scaleup(ctx, c, sizes, backlog, task)
			}, when: "from before the fleet grows until it has settled, and no task waits"}},
			targets: []target{
				{of: pith, figure: own(pollPeak), most: 1.5 * pacing.RateBusy},
				{of: pith, figure: own(otherPeak), most: 1.5 * budget},
				noneMissed(pith),
			},
		})
	}
	return contests
}

// beatsApart is the time from one beat of a worker to its next, by the default TTL.
const beatsApart = 10 * time.Second

// What a worker sends.
var kindsOfStatements = [...]string{db.TaskTurn, db.AppStatusBeat, db.AppStatusRegister}

// A tally counts statements of each kind, and ended tasks, in each tenth of a second. It is a pgx.QueryTracer.
type tally struct {
	start time.Time

	mu    sync.Mutex // guards what follows
	over  bool       // it counts no more
	sent  [len(kindsOfStatements)][]int
	other []int
	ended []int
}

const tenth = 100 * time.Millisecond

func (y *tally) add(to *[]int) {
	i := int(time.Since(y.start) / tenth)
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.over {
		return
	}
	for len(*to) <= i {
		*to = append(*to, 0)
	}
	(*to)[i]++
}

func (y *tally) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	for i, text := range kindsOfStatements {
		if data.SQL == text {
			y.add(&y.sent[i])
			return ctx
		}
	}
	y.add(&y.other)
	return ctx
}

func (y *tally) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// stop ends the counting: workers that leave send a statement each.
func (y *tally) stop() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.over = true
}

// peak is the highest sum of plus, less that of minus, in any ten consecutive tenths from one on.
func peak(from time.Duration, plus [][]int, minus ...[]int) float64 {
	sum := func(of [][]int, from int) (n int) {
		for _, counts := range of {
			for i := from; i < min(from+10, len(counts)); i++ {
				n += counts[i]
			}
		}
		return n
	}
	longest, most := 0, 0
	for _, counts := range plus {
		longest = max(longest, len(counts))
	}
	for i := int(from / tenth); i < longest; i++ {
		most = max(most, sum(plus, i)-sum(minus, i))
	}
	return float64(most)
}

func (b *bench) scaleup(ctx context.Context, c contestant, sizes [3]int, backlog int, task time.Duration) (_ Sample, err error) {
	t, end, err := b.stage.trial(ctx, b.pace, c)
	if err != nil {
		return Sample{}, err
	}
	defer func() { err = end(err) }()
	crew, counts, times, err := countedCrew(ctx, c, t, func(ctx context.Context) {
		if backlog > 0 {
			_ = resend.Sleep(ctx, task) // ended early it is recorded as it should be
		}
	})
	if err != nil {
		return Sample{}, err
	}
	sample, err := b.grow(ctx, t, crew, times, sizes, backlog)
	counts.stop()
	gone, endErr := crew.end()
	if err := errors.Join(err, endErr); err != nil {
		return sample, err
	}
	from := time.Duration(sample.More[grewAt] * float64(time.Second))
	delete(sample.More, grewAt)
	sample.More[missed] = float64(gone)
	turns, beats, registers := counts.sent[0], counts.sent[1], counts.sent[2]
	sample.More[pollPeak] = peak(from, [][]int{turns}, counts.ended)
	sample.More[beatPeak], sample.More[registerPeak] = peak(from, [][]int{beats}), peak(from, [][]int{registers})
	sample.More[otherPeak] = peak(from, [][]int{turns, beats, counts.other}, counts.ended)
	return sample, b.stage.verify(ctx, t)
}

// countedCrew makes a crew for tasks that do this work, and counts what it sends, and when tasks end.
func countedCrew(ctx context.Context, c contestant, t *trial, work func(context.Context)) (*crew, *tally, *workload.Pickup, error) {
	counts := &tally{start: time.Now()}
	cfg := c.poolConfig(workerConns, t)
	cfg.Tracer = multitracer.New(cfg.Tracer, counts)
	p, err := t.openAs(ctx, cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	times := &workload.Pickup{Meter: &t.Meter}
	registry, err := tasking.NewRegistry(workload.NewType(func(ctx context.Context, run *tasking.Run) {
		times.Started(ctx, run)
		work(ctx)
		counts.add(&counts.ended)
	}))
	if err != nil {
		return nil, nil, nil, err
	}
	crew, err := newCrew(ctx, p, registry)
	return crew, counts, times, err
}

// grewAt is when the growth began, in seconds.
const grewAt = "grew at"

// grow starts the workers in three steps, and watches the fleet until it has settled.
func (b *bench) grow(ctx context.Context, t *trial, crew *crew, times *workload.Pickup, sizes [3]int, backlog int) (Sample, error) {
	began := time.Now()
	if err := crew.add(ctx, sizes[0], 0); err != nil {
		return Sample{}, err
	}
	if err := crew.ready(ctx, t.direct); err != nil {
		return Sample{}, err
	}
	settle, step := settling, 2*time.Second
	if t.pace.quick {
		settle, step = time.Second, 150*time.Millisecond
	}
	if err := resend.Sleep(ctx, settle); err != nil {
		return Sample{}, err
	}
	c, err := dispatcher(ctx, t)
	if err != nil {
		return Sample{}, err
	}
	tasks, stop := context.WithCancel(ctx)
	defer stop()
	var all errgroup.Group
	all.Go(func() error {
		if backlog > 0 {
			done, err := c.DispatchMany(ctx, workload.Requests(0, backlog, nil))
			for _, d := range done {
				times.Dispatched(d.ID)
			}
			return err
		}
		return every(tasks, workload.PickupEvery, func(ctx context.Context) error {
			done, err := c.Dispatch(ctx, workload.Requests(0, 1, nil)[0])
			if err == nil {
				times.Dispatched(done.ID)
			}
			return err
		})
	})
	started := time.Since(began)
	from, err := b.stage.read(ctx, t)
	if err != nil {
		return Sample{}, errors.Join(err, ctx.Err())
	}
	err = resend.Sleep(ctx, step/2)
	for i, over := range []time.Duration{step, step * 3 / 2} {
		if err == nil {
			err = crew.add(ctx, sizes[i+1]-sizes[i], over)
		}
		if err == nil {
			err = resend.Sleep(ctx, step)
		}
	}
	if err == nil {
		err = crew.ready(ctx, t.direct)
	}
	if err == nil {
		err = resend.Sleep(ctx, 2*settle)
	}
	if err == nil && backlog > 0 {
		err = await(ctx, 0, t.Mark(backlog), nil, nil)
	}
	stop()
	if err := errors.Join(err, all.Wait()); err != nil {
		return Sample{}, err
	}
	to, err := b.stage.read(ctx, t)
	if err != nil {
		return Sample{}, err
	}
	sample := from.until(to, t)
	sample.More = map[string]float64{grewAt: started.Seconds()}
	return sample, nil
}
