package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

// crowd makes callers queue up before they are let through together.
type crowd struct {
	*harness
	pool *pgxpool.Pool
	c    *tasking.Client
	held []*pgxpool.Conn // all connections of the pool

	mu   sync.Mutex
	sent map[string]int // statements by the name of their query
}

// crowd makes a client on a pool of so many connections. The pool is full until let is called.
func (h *harness) crowd(conns int32, pool *pgxpool.Pool, app *appstatus.App, types ...tasking.AnyType) *crowd {
	h.t.Helper()
	c := &crowd{harness: h, sent: map[string]int{}}
	config := pool.Config()
	config.MaxConns = conns
	config.ConnConfig.Tracer = multitracer.New(config.ConnConfig.Tracer, c)
	var err error
	if c.pool, err = pgxpool.NewWithConfig(context.WithoutCancel(h.t.Context()), config); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(c.pool.Close)
	c.c = h.client(c.pool, tasking.Config{App: app}, types...)
	c.hold()
	return c
}

// plainAndImmediate runs a test of tasks that wait for a worker, and of tasks that run where they are dispatched.
func plainAndImmediate(t *testing.T, conns int32, test func(t *testing.T, h *harness, c *crowd, immediate bool)) {
	t.Helper()
	for _, immediate := range []bool{false, true} {
		t.Run(fmt.Sprint("immediate ", immediate), func(t *testing.T) {
			t.Parallel()
			h := newHarness(t, answers)
			test(t, h, h.crowd(conns, h.Pool, h.process(appstatus.API), answers), immediate)
		})
	}
}

func (c *crowd) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rest, ok := strings.CutPrefix(data.SQL, "-- name: "); ok {
		name, _, _ := strings.Cut(rest, " ")
		c.sent[name]++
	}
	return ctx
}

func (c *crowd) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// wantSent checks how many statements of this query were sent.
func (c *crowd) wantSent(query string, want int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent[query] != want {
		c.t.Errorf("%d statements %s were sent, want %d", c.sent[query], query, want)
	}
}

// hold fills the pool, let empties it.
func (c *crowd) hold() {
	c.t.Helper()
	for range c.pool.Config().MaxConns {
		conn, err := c.pool.Acquire(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		c.held = append(c.held, conn)
	}
}

func (c *crowd) let() {
	for _, conn := range c.held {
		conn.Release()
	}
	c.held = nil
}

// reply is what a caller was told.
type reply struct {
	tasking.Dispatched
	err error
}

// call dispatches in a goroutine, and returns when that waits in the queue.
func (c *crowd) call(ctx context.Context, r tasking.Request) <-chan reply {
	asked := make(chan struct{})
	out := make(chan reply, 1)
	go func() {
		d, err := c.c.Dispatch(&watched{Context: ctx, asked: sync.OnceFunc(func() { close(asked) })}, r)
		out <- reply{d, err}
	}()
	<-asked
	return out
}

// pair is two callers, of whom the first leaves when it is told to.
func (c *crowd) pair(r tasking.Request) (leave func(), second <-chan reply) {
	ctx, cancel := context.WithCancel(c.t.Context())
	c.t.Cleanup(cancel)
	first := c.call(ctx, r)
	return func() {
		cancel()
		if d := <-first; !errors.Is(d.err, context.Canceled) {
			c.t.Errorf("the one that left: %v", d.err)
		}
	}, c.call(c.t.Context(), r)
}

// watched tells when somebody begins to wait for the end of a context: whoever dispatches, once he stands in
// the queue.
type watched struct {
	context.Context
	asked func()
}

func (w *watched) Done() <-chan struct{} {
	w.asked()
	return w.Context.Done()
}

func TestDispatchesOfManyGoroutinesGoTogether(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	c := h.crowd(1, h.Pool, nil)
	var calls []<-chan reply
	for i := range 12 {
		r := plain.Request(i, tasking.Options{CorrelationID: fmt.Sprint("call ", i), Priority: i})
		switch i % 4 {
		case 1:
			r.Exclusive = []string{"a"}
		case 2:
			r.Exclusive, r.Shared = []string{fmt.Sprint("own ", i)}, []string{"b"}
		case 3:
			r.Name, r.Immediate = "test.retried", true // for workers: there is no app
		}
		calls = append(calls, c.call(t.Context(), r))
	}
	c.let()
	seen := map[uuid.UUID]bool{}
	for i, call := range calls {
		d := <-call
		if d.err != nil || d.State != tasking.Waiting || seen[d.ID] {
			t.Fatalf("call %d: %+v, %v", i, d.Dispatched, d.err)
		}
		seen[d.ID] = true
		task := h.get(d.ID)
		if task.CorrelationID != fmt.Sprint("call ", i) || task.Priority != i || task.Immediate != (i%4 == 3) || (task.Name == "test.retried") != (i%4 == 3) {
			t.Errorf("call %d was told of %+v", i, task)
		}
		blocked := 0
		if i%4 == 1 && i > 1 {
			blocked = 1
		}
		h.wantBlockedOn([]int{blocked}, d.ID)
	}
	c.wantSent("TaskDispatch", 1)
}

func TestBadDispatchFailsAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	c := h.crowd(1, h.Pool, nil)
	var calls []<-chan reply
	for i := range 5 {
		r := plain.Request(nil, tasking.Options{})
		if i == 2 {
			r.Group = &uuid.Max
		}
		calls = append(calls, c.call(t.Context(), r))
	}
	c.let()
	for i, call := range calls {
		if d := <-call; errors.Is(d.err, tasking.ErrNotFound) != (i == 2) || (d.err == nil) != (i != 2) {
			t.Errorf("call %d: %v", i, d.err)
		}
	}
	c.wantSent("TaskDispatch", 6)
	h.wantRows("task", 4)
}

func TestCallerThatLeavesTheQueueSendsNothing(t *testing.T) {
	t.Parallel()
	plainAndImmediate(t, 1, func(t *testing.T, h *harness, c *crowd, immediate bool) {
		leave, second := c.pair(answers.Request(nil, tasking.Options{Immediate: immediate}))
		leave()
		c.let()
		if d := <-second; d.err != nil {
			t.Error(d.err)
		}
		h.wantRows("task", 1)
	})
}

func TestCallerWhoseContextEndsOnceItIsSentLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pool, faults := h.faulty(h.Pool)
	c := h.crowd(1, pool, nil)
	leave, second := c.pair(plain.Request(nil, tasking.Options{}))
	faults.arm("TaskDispatch", cut, leave)
	c.let()
	if d := <-second; d.err != nil {
		t.Error(d.err)
	}
}

func TestLockedQueueDelaysOnlyThoseWhoEnterIt(t *testing.T) {
	t.Parallel()
	plainAndImmediate(t, 3, func(t *testing.T, h *harness, c *crowd, immediate bool) {
		// Whoever writes a new kind makes others that write it wait.
		if _, err := h.c.DispatchMany(t.Context(), []tasking.Request{plain.Request(nil, tasking.Options{}), answers.Request(nil, tasking.Options{})}); err != nil {
			t.Fatal(err)
		}
		tx, err := h.Direct.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		if _, err := h.c.DispatchTx(t.Context(), tx, plain.Request(nil, tasking.Options{Exclusive: []string{"a"}})); err != nil {
			t.Fatal(err)
		}
		others := make([]<-chan reply, 0, 4)
		held := c.call(t.Context(), answers.Request(nil, tasking.Options{Exclusive: []string{"a"}, Immediate: immediate}))
		for i := range cap(others) {
			others = append(others, c.call(t.Context(), answers.Request(nil, tasking.Options{Exclusive: []string{fmt.Sprint("b", i)}, Immediate: immediate})))
		}
		c.let()
		for _, call := range others {
			if d := <-call; d.err != nil || d.State == tasking.Running {
				t.Errorf("%+v, %v", d.Dispatched, d.err)
			}
		}
		// Later ones are not held up either, nor by what the server connections were told.
		if d := <-c.call(t.Context(), plain.Request(nil, tasking.Options{})); d.err != nil {
			t.Error(d.err)
		}
		select {
		case d := <-held:
			t.Fatalf("in a queue that is locked: %+v, %v", d.Dispatched, d.err)
		default:
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		d := <-held
		if d.err != nil {
			t.Fatal(d.err)
		}
		h.wantBlockedOn([]int{1}, d.ID)
		for range 8 {
			var limit string
			if err := h.Pool.QueryRow(t.Context(), "SELECT current_setting('lock_timeout')").Scan(&limit); err != nil || limit != "0" {
				t.Fatalf("a server connection is left with a lock_timeout of %s, %v", limit, err)
			}
		}
	})
}

func TestDispatchesWhoseAnswerIsLostAreEachThereOnce(t *testing.T) {
	t.Parallel()
	for _, how := range []how{cut, lost} {
		for _, query := range []string{"TaskDispatch", "TaskTurn"} {
			t.Run(query+", "+string(how), func(t *testing.T) {
				t.Parallel()
				var runs sync.Map
				typ := tasking.NewType("test.once", func(_ context.Context, run *tasking.Run, _ any) (any, error) {
					if _, again := runs.LoadOrStore(run.ID, true); again {
						t.Errorf("%s is run twice", run.ID)
					}
					return nil, nil
				}, tasking.TypeConfig{Immediate: true})
				h := newHarness(t, typ)
				pool, faults := h.faulty(h.Pool)
				c := h.crowd(1, pool, h.process(appstatus.API), typ)
				faults.arm(query, how, nil)
				blocks := h.reserve([]string{"a"}, nil)
				var calls []<-chan reply
				for i := range 8 {
					r := typ.Request(nil, tasking.Options{Immediate: true})
					if i%4 == 3 {
						r.Exclusive = []string{"a"}
					}
					calls = append(calls, c.call(t.Context(), r))
				}
				c.let()
				for i, call := range calls {
					want := tasking.Completed
					if i%4 == 3 {
						want = tasking.Waiting
					}
					if d := <-call; d.err != nil || d.State != want || h.state(d.ID) != want {
						t.Errorf("call %d: %+v, %v", i, d.Dispatched, d.err)
					}
				}
				h.wantRows("task", 9)
				h.cancel(blocks)
			})
		}
	}
}

func TestTaskThatIsCanceledAtOnceBlocksNobodyWhoComesWithIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t, answers)
	h.reserve([]string{"busy"}, nil)
	c := h.crowd(1, h.Pool, h.process(appstatus.API), answers)
	ask := func(notDeferred bool, exclusive ...string) <-chan reply {
		return c.call(t.Context(), answers.Request(nil, tasking.Options{Immediate: true, NotDeferred: notDeferred, Exclusive: exclusive}))
	}
	for i, call := range []<-chan reply{ask(true, "busy", "free"), ask(false, "free"), ask(true, "free"), ask(true, "other")} {
		if i == 0 {
			c.let()
		}
		want := tasking.Completed
		if i == 0 {
			want = tasking.Canceled
		}
		d := <-call
		if d.err != nil || (d.State != want && i != 2) { // that one meets the one before, if they go together
			t.Errorf("call %d: %+v, %v", i, d.Dispatched, d.err)
		}
	}
	h.wantRows("task_reservation", 1)
}

func TestEndsOfImmediateTasksGoTogether(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		refused int // the one whose result the database refuses, if any
		options tasking.Options
	}{
		{"of tasks that reserve nothing", -1, tasking.Options{}},
		{"of tasks that reserve something", -1, tasking.Options{Exclusive: []string{"own"}}},
		{"of which one is refused", 2, tasking.Options{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const many = 8
			inside, goOn := make(chan struct{}), make(chan struct{})
			typ := tasking.NewType("test.meets", func(_ context.Context, _ *tasking.Run, i int) (int, error) {
				inside <- struct{}{}
				<-goOn
				return i, nil
			}, tasking.TypeConfig{Immediate: true})
			h := newHarness(t, typ)
			h.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
				$$BEGIN RAISE EXCEPTION 'too deep' USING ERRCODE = 'statement_too_complex'; END$$`)
			h.exec(fmt.Sprintf("CREATE TRIGGER refuse BEFORE UPDATE ON task FOR EACH ROW WHEN (NEW.result::text = '%d') EXECUTE FUNCTION refuse()", tt.refused))
			c := h.crowd(1, h.Pool, h.process(appstatus.API), typ)
			var calls []<-chan reply
			for i := range many {
				r := typ.Request(i, tt.options)
				r.Immediate = true
				if len(r.Exclusive) > 0 {
					r.Exclusive = []string{fmt.Sprint("own ", i)}
				}
				calls = append(calls, c.call(t.Context(), r))
			}
			c.let()
			for range calls {
				<-inside
			}
			c.hold()
			close(goOn)
			c.let()
			for i, call := range calls {
				d := <-call
				want := tasking.Completed
				if i == tt.refused {
					want = tasking.Failed
				}
				task := h.get(d.ID)
				if d.err != nil || d.State != want || task.State != want {
					t.Errorf("call %d: %+v, %v; it is %s", i, d.Dispatched, d.err, task.State)
				}
				if got, err := typ.Result(task); want == tasking.Completed && (err != nil || got != i) {
					t.Errorf("call %d: result %d, %v", i, got, err)
				}
			}
			c.wantSent("TaskDispatch", 1)
			c.mu.Lock()
			defer c.mu.Unlock()
			if n := c.sent["TaskTurn"]; tt.refused < 0 && n >= many {
				t.Errorf("%d tasks were ended by %d statements", many, n)
			}
		})
	}
}

func TestEndThatWaitsForALockedQueueHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	inside, goOn := make(chan struct{}), make(chan struct{})
	typ := tasking.NewType("test.meets", func(context.Context, *tasking.Run, any) (any, error) {
		inside <- struct{}{}
		<-goOn
		return nil, nil
	}, tasking.TypeConfig{Immediate: true})
	h := newHarness(t, typ)
	c := h.crowd(3, h.Pool, h.process(appstatus.API), typ)
	var calls []<-chan reply
	for i := range 4 {
		calls = append(calls, c.call(t.Context(), typ.Request(nil, tasking.Options{Immediate: true, Exclusive: []string{fmt.Sprint("own ", i)}})))
	}
	c.let()
	for range calls {
		<-inside
	}
	tx, err := h.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := h.c.DispatchTx(t.Context(), tx, plain.Request(nil, tasking.Options{Exclusive: []string{"own 0"}})); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	for _, call := range calls[1:] {
		if d := <-call; d.err != nil || d.State != tasking.Completed {
			t.Errorf("%+v, %v", d.Dispatched, d.err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := <-calls[0]; d.err != nil || d.State != tasking.Completed {
		t.Errorf("%+v, %v", d.Dispatched, d.err)
	}
}

func TestImmediateTasksThatGoTogetherHearOfTheLostLeaseOrAreLeftToWorkers(t *testing.T) {
	t.Parallel()
	h := newHarness(t, answers)
	app := h.process(appstatus.API)
	pool, faults := h.faulty(h.Pool)
	c := h.crowd(1, pool, app, answers)
	var calls []<-chan reply
	for range 3 {
		calls = append(calls, c.call(t.Context(), answers.Request(json.RawMessage("1"), tasking.Options{Immediate: true})))
	}
	gone := make(chan error, 1)
	faults.arm("TaskDispatch", cut, func() { gone <- app.Unregister(context.WithoutCancel(t.Context())) })
	c.let()
	left := 0
	for i, call := range calls {
		switch d := <-call; {
		case d.err == nil && d.State == tasking.Waiting:
			left++
		case !errors.Is(d.err, appstatus.ErrLost):
			t.Errorf("call %d: %+v, %v", i, d.Dispatched, d.err)
		}
	}
	if err := <-gone; err != nil { // callers hear of the lease before the row is gone
		t.Error(err)
	}
	h.wantRows("task", left)
}
