package worker

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/queuecheck"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

var seedFlag = flag.Uint64("seed", 0, "run the property tests with this seed only (also PITH_TEST_SEED)")

// seeds are those to try: the one that was asked for, else PITH_TEST_SEEDS random ones.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		n, err := strconv.ParseUint(cmp.Or(os.Getenv(name), strconv.FormatUint(otherwise, 10)), 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	if seed := number("PITH_TEST_SEED", *seedFlag); seed != 0 {
		return []uint64{seed}
	}
	list := make([]uint64, number("PITH_TEST_SEEDS", 3))
	for i := range list {
		list[i] = rand.Uint64N(1_000_000) + 1
	}
	return list
}

// play is one run of the queue under load.
type play struct {
	t    *testing.T
	d    *dbtest.DB
	rng  *rand.Rand
	log  *queuecheck.Log
	next atomic.Int64
	// watch sees the errors of all processes.
	watch watch

	mu    sync.Mutex
	ids   []uuid.UUID // dispatched, and known to be
	group uuid.UUID
}

// propArgs are the arguments of every task of a play.
type propArgs struct {
	Task queuecheck.Task `json:"task"`
	// Work is how long it takes, in microseconds.
	Work int64 `json:"work"`
	// Children are dispatched one by one.
	Children int `json:"children"`
	// Ending: completes, fails, or panics, in the attempts up to Until.
	Ending string `json:"ending"`
	Until  int    `json:"until"`
}

// The task types of a play.
const (
	plainType = "test.plain"
	quickType = "test.quick" // may run immediately
	retryType = "test.retry"
)

const retryAttempts = 3

// process is one process in a play.
type process struct {
	name   string
	client *tasking.Client
	wire   *wire
	// busy hands over whenever a function begins.
	busy chan struct{}
	// gone is closed when the process is cut off for good. Its functions go on until their lease ends.
	gone chan struct{}
	// killed is closed when the process is killed: nothing of it happens any more.
	killed chan struct{}
	mute   sync.RWMutex
	dead   bool
}

// process makes one, with functions that record what they do.
func (p *play) process(name string, app *appstatus.App, conns int32) *process {
	p.t.Helper()
	ps := &process{name: name, busy: make(chan struct{}), gone: make(chan struct{}), killed: make(chan struct{})}
	fn := func(ctx context.Context, run *tasking.Run, a propArgs) (string, error) {
		return p.work(ctx, ps, run, a)
	}
	reg, err := tasking.NewRegistry(
		tasking.NewType(plainType, fn, tasking.TypeConfig{}),
		tasking.NewType(quickType, fn, tasking.TypeConfig{Immediate: true}),
		tasking.NewType(retryType, fn, tasking.TypeConfig{MaxAttempts: retryAttempts, Backoff: 20 * time.Millisecond}),
	)
	if err != nil {
		p.t.Fatal(err)
	}
	var pool *pgxpool.Pool
	pool, ps.wire = wired(p.t, p.d, &p.watch, conns)
	if ps.client, err = tasking.New(pool, tasking.Config{Registry: reg, App: app}); err != nil {
		p.t.Fatal(err)
	}
	return ps
}

// record adds an event of the process, unless it was killed.
func (p *play) record(ps *process, e queuecheck.Event) {
	ps.mute.RLock()
	defer ps.mute.RUnlock()
	if !ps.dead {
		p.log.Record(e)
	}
}

// kill ends a process as SIGKILL would, as far as that goes within one: from here on it sends nothing
// and what it does counts as not done.
func (p *play) kill(ps *process) {
	ps.mute.Lock()
	defer ps.mute.Unlock()
	ps.wire.cut()
	ps.dead = true
	p.log.Record(queuecheck.Event{Kind: queuecheck.Killed, Holder: ps.name})
	close(ps.killed)
}

// work is the function of every task.
func (p *play) work(ctx context.Context, ps *process, run *tasking.Run, a propArgs) (result string, err error) {
	p.record(ps, queuecheck.Event{Kind: queuecheck.Started, Task: a.Task, Attempt: run.Attempt, Holder: ps.name})
	select {
	case ps.busy <- struct{}{}:
	default:
	}
	completed := false
	defer func() {
		p.record(ps, queuecheck.Event{Kind: queuecheck.Ended, Task: a.Task, Attempt: run.Attempt, Holder: ps.name, Completed: completed})
	}()
	for range a.Children {
		p.dispatchOne(ps, rand.New(rand.NewPCG(uint64(a.Task), 7)), func(r tasking.Request) (tasking.Dispatched, error) {
			return run.Dispatch(ctx, r)
		}, true)
	}
	timer := time.NewTimer(time.Duration(a.Work) * time.Microsecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-ps.killed:
	case <-ps.gone:
		// Goes on for as long as it is let: only the worker itself knows that its lease ends.
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if run.Attempt <= a.Until {
		if a.Ending == "panics" {
			panic("as asked")
		}
		return "", errors.New("as asked")
	}
	completed = true
	return strconv.Itoa(int(a.Task)), nil
}

// request makes up a request and its entry in the history.
func (p *play) request(rng *rand.Rand, child bool) (tasking.Request, queuecheck.Task, *queuecheck.Request) {
	task := queuecheck.Task(p.next.Add(1))
	a := propArgs{Task: task, Work: rng.Int64N(2000)}
	r := tasking.Request{Name: plainType}
	q := &queuecheck.Request{MaxAttempts: 1}
	switch n := rng.IntN(10); {
	case n < 2:
		r.Name, r.Immediate = quickType, true
		r.NotDeferred = n < 1
	case n < 4:
		r.Name, q.MaxAttempts = retryType, retryAttempts
	}
	if n := rng.IntN(8); n < 2 {
		a.Ending, a.Until = []string{"fails", "panics"}[n], 1+rng.IntN(retryAttempts)
	}
	if !child && rng.IntN(12) == 0 {
		a.Children = 1 + rng.IntN(2)
	}
	for _, i := range rng.Perm(6)[:rng.IntN(4)] {
		name := fmt.Sprintf("prn:file.repository:%d", i)
		exclusive := rng.IntN(2) == 0
		q.Resources = append(q.Resources, queuecheck.Resource{Name: name, Exclusive: exclusive})
		if exclusive {
			r.Exclusive = append(r.Exclusive, name)
		} else {
			r.Shared = append(r.Shared, name)
		}
	}
	alone := rng.IntN(80) == 0
	if alone {
		r.Exclusive = append(r.Exclusive, tasking.Domain)
	}
	q.Resources = append(q.Resources, queuecheck.Resource{Name: tasking.Domain, Exclusive: alone})
	if !r.NotDeferred && rng.IntN(10) == 0 {
		r.NotBefore, q.Later = time.Now().Add(time.Duration(rng.IntN(300))*time.Millisecond), true
	}
	if rng.IntN(4) == 0 {
		r.Priority = rng.IntN(21) - 10
	}
	if !child && rng.IntN(4) == 0 {
		r.Group = &p.group
	}
	r.Args = a
	return r, task, q
}

// acknowledged notes that tasks are dispatched.
func (p *play) acknowledged(ps *process, tasks []queuecheck.Task, ds []tasking.Dispatched) {
	for i, task := range tasks {
		p.record(ps, queuecheck.Event{Kind: queuecheck.Acknowledged, Task: task})
		if ds[i].State.Final() {
			p.record(ps, queuecheck.Event{Kind: queuecheck.SeenFinal, Task: task, State: string(ds[i].State)})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range ds {
		p.ids = append(p.ids, d.ID)
	}
}

func (p *play) dispatchOne(ps *process, rng *rand.Rand, send func(tasking.Request) (tasking.Dispatched, error), child bool) {
	r, task, q := p.request(rng, child)
	p.record(ps, queuecheck.Event{Kind: queuecheck.Sent, Task: task, Request: q})
	d, err := send(r)
	switch {
	case err == nil:
		p.acknowledged(ps, []queuecheck.Task{task}, []tasking.Dispatched{d})
	case !child:
		p.t.Errorf("dispatch: %v", err)
	}
}

func (p *play) dispatchMany(ctx context.Context, ps *process, rng *rand.Rand, tx bool) {
	var (
		rs    []tasking.Request
		tasks []queuecheck.Task
	)
	for range 1 + rng.IntN(12) {
		r, task, q := p.request(rng, false)
		r.NotDeferred = false
		rs, tasks = append(rs, r), append(tasks, task)
		p.record(ps, queuecheck.Event{Kind: queuecheck.Sent, Task: task, Request: q})
	}
	if !tx {
		ds, err := ps.client.DispatchMany(ctx, rs)
		if err != nil {
			p.t.Errorf("dispatch many: %v", err)
			return
		}
		p.acknowledged(ps, tasks, ds)
		return
	}
	undo := errors.New("undo")
	commit := rng.IntN(3) > 0
	var ds []tasking.Dispatched
	err := pgx.BeginFunc(ctx, ps.client.Pool(), func(tx pgx.Tx) error {
		var err error
		ds, err = ps.client.DispatchTx(ctx, tx, rs...)
		if err == nil && !commit {
			err = undo
		}
		return err
	})
	switch {
	case err == nil:
		p.acknowledged(ps, tasks, ds)
	case errors.Is(err, undo):
		for _, task := range tasks {
			p.record(ps, queuecheck.Event{Kind: queuecheck.Withdrawn, Task: task})
		}
	default:
		p.t.Errorf("dispatch in a transaction: %v", err)
	}
}

// drive dispatches and cancels until it has done a number of things.
func (p *play) drive(ctx context.Context, ps *process, seed uint64, ops int) {
	rng := rand.New(rand.NewPCG(seed, 3))
	for range ops {
		switch n := rng.IntN(20); {
		case n < 11:
			p.dispatchOne(ps, rng, func(r tasking.Request) (tasking.Dispatched, error) { return ps.client.Dispatch(ctx, r) }, false)
		case n < 14:
			p.dispatchMany(ctx, ps, rng, false)
		case n < 16:
			p.dispatchMany(ctx, ps, rng, dbtest.Transactions())
		case n < 19 || rng.IntN(8) > 0:
			p.cancel(ctx, ps, rng)
		default:
			if _, err := ps.client.CancelGroup(ctx, p.group); err != nil {
				p.t.Errorf("cancel group: %v", err)
			}
		}
	}
}

// cancel cancels one of the tasks dispatched last.
func (p *play) cancel(ctx context.Context, ps *process, rng *rand.Rand) {
	p.mu.Lock()
	n := len(p.ids)
	var id uuid.UUID
	if n > 0 {
		id = p.ids[max(0, n-1-rng.IntN(40))]
	}
	p.mu.Unlock()
	if n == 0 {
		return
	}
	state, err := ps.client.Cancel(ctx, id)
	if err != nil {
		p.t.Errorf("cancel: %v", err)
		return
	}
	if state == tasking.Canceled {
		p.record(ps, queuecheck.Event{Kind: queuecheck.CancelAcknowledged, Task: p.taskOf(ctx, id)})
	}
}

// taskOf reads what the history calls a task.
func (p *play) taskOf(ctx context.Context, id uuid.UUID) (task queuecheck.Task) {
	err := p.d.Direct.QueryRow(ctx, "SELECT (args->>'task')::bigint FROM task WHERE id = $1", id).Scan(&task)
	if err != nil {
		p.t.Errorf("read task %s: %v", id, err)
	}
	return task
}

// read reads all tasks.
func (p *play) read(ctx context.Context) []queuecheck.Final {
	rows, err := p.d.Direct.Query(ctx, "SELECT (args->>'task')::bigint, state::text, attempt FROM task")
	if err != nil {
		p.t.Error(err)
		return nil
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[queuecheck.Final])
	if err != nil {
		p.t.Error(err)
	}
	return all
}

// observe notes what is final.
func (p *play) observe(ctx context.Context, seen map[queuecheck.Task]bool) {
	for _, f := range p.read(ctx) {
		if tasking.State(f.State).Final() && (!seen[f.Task] || f.Task%5 == 0) {
			seen[f.Task] = true
			p.log.Record(queuecheck.Event{Kind: queuecheck.SeenFinal, Task: f.Task, State: f.State})
		}
	}
}

// drain waits until everything is final, children of what was killed among it.
func (p *play) drain(ctx context.Context, c *tasking.Client) {
	for {
		rows, err := p.d.Direct.Query(ctx, "SELECT id FROM task WHERE finished_at IS NULL ORDER BY seq DESC LIMIT 10")
		var ids []uuid.UUID
		if err == nil {
			ids, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
		}
		if err == nil && len(ids) == 0 {
			return
		}
		if err == nil {
			_, err = c.Wait(ctx, ids...)
		}
		if err != nil {
			p.t.Errorf("the queue does not drain: %v", err)
			return
		}
	}
}

// strike waits until a process is in the middle of its work, or nobody dispatches any more, and
// strikes it.
func (p *play) strike(ps *process, loaded <-chan struct{}, blow func()) {
	for range 1 + p.rng.IntN(8) {
		select {
		case <-ps.busy:
		case <-loaded:
		}
	}
	blow()
}

// upTo is a random duration below most.
func upTo(rng *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(most)))
}

const (
	propertyTTL = 1500 * time.Millisecond
	// propertyOps is what each of propertyDispatchers does.
	propertyOps         = 60
	propertyDispatchers = 4
)

func TestQueueKeepsItsPromises(t *testing.T) {
	t.Parallel()
	for _, seed := range seeds(t) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			playQueue(t, seed)
			if t.Failed() {
				t.Logf("again with PITH_TEST_SEED=%d", seed)
			}
		})
	}
}

func playQueue(t *testing.T, seed uint64) {
	t.Helper()
	d := dbtest.New(t)
	p := &play{t: t, d: d, rng: rand.New(rand.NewPCG(seed, 0)), log: queuecheck.NewLog()}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	// Three workers stay, one of them with a bad line; one is killed, one only cut off, so that its
	// functions go on until it gives up its lease by itself.
	var workers sync.WaitGroup
	run, stop := context.WithCancel(ctx)
	defer workers.Wait()
	defer stop()
	begin := func(name string, concurrency int) *process {
		ps := p.process(name, nil, 3)
		w, err := New(ps.client, Config{Concurrency: concurrency, TTL: propertyTTL, NameTemplate: name})
		if err != nil {
			t.Fatal(err)
		}
		workers.Go(func() {
			if err := w.Run(run); err != nil {
				t.Errorf("worker %s: %v", name, err)
			}
		})
		return ps
	}
	slots := func() int { return 1 + p.rng.IntN(8) }
	begin("steady", slots())
	begin("steady too", slots())
	flaky := begin("flaky", slots())
	lingering := begin("lingering", max(4, slots()))
	killed := begin("killed", max(4, slots()))

	appPool, _ := wired(t, d, &p.watch, 2)
	app, err := appstatus.New(appPool, appstatus.Config{Type: appstatus.API})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(ctx); err != nil {
		t.Fatal(err)
	}
	workers.Go(func() {
		if err := app.Run(run); err != nil {
			t.Errorf("app: %v", err)
		}
	})
	api := p.process("api", app, 6)
	if p.group, err = api.client.NewGroup(ctx, "play"); err != nil {
		t.Fatal(err)
	}

	var load sync.WaitGroup
	for i := range propertyDispatchers {
		seed := p.rng.Uint64()
		load.Go(func() { p.drive(ctx, api, seed+uint64(i), propertyOps) })
	}
	watching, unwatch := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		seen := map[queuecheck.Task]bool{}
		for resend.Sleep(watching, 50*time.Millisecond) == nil {
			p.observe(ctx, seen)
		}
	})
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		load.Wait()
	}()
	flaky.wire.lossy.Store(20)
	p.strike(killed, loaded, func() { p.kill(killed) })
	p.strike(lingering, loaded, func() {
		lingering.wire.cut()
		close(lingering.gone)
	})
	<-loaded
	flaky.wire.lossy.Store(0)
	draining := time.Now()
	p.drain(ctx, api.client)
	drained := time.Since(draining)
	unwatch()
	watcher.Wait()
	stop()
	workers.Wait()

	finals := p.read(t.Context())
	events := p.log.Events()
	found := queuecheck.Check(events, finals)
	for _, v := range found[:min(len(found), 20)] {
		t.Error(v)
	}
	p.watch.check(t)
	noDeadlocks(t, d)
	states := map[string]int{}
	for _, f := range finals {
		states[f.State]++
	}
	var missing int
	if err := d.Direct.QueryRow(t.Context(), "SELECT count(*) FROM task WHERE error->>'reason' = $1", tasking.ReasonMissing).Scan(&missing); err != nil {
		t.Error(err)
	}
	states["missing"] = missing
	t.Logf("%d tasks %v, %d events, %d serialization failures sent again, drained in %s", len(finals), states, len(events), p.watch.conflicts.Load(), drained.Round(time.Millisecond))
}
