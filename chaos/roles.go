package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/chaos/judge"
	"github.com/pithworks/pith/chaos/witness"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// processVariable holds the spec of a process of the fleet, in JSON. Children of the workers get it, too: that is
// how their tasks find the witness.
const processVariable = "CHAOS_PROCESS"

// spec says what a process of the fleet is.
type spec struct {
	Name string
	Role role
	// URL of the database, by the process's own way.
	URL string
	// Socket of the witness.
	Socket string
	Seed   uint64
	TTL    time.Duration
	// Skew is what is wrong with the process's wall clock.
	Skew time.Duration
}

type role string

const (
	roleWorker     role = "worker"
	roleDispatcher role = "dispatcher"
	roleAPI        role = "api" // dispatches, and runs immediate tasks
)

const (
	slots     = 6  // of a worker
	callers   = 3  // goroutines of a dispatcher, each with an order of its own
	resources = 40 // that there are, for short tasks

	longResource  = "long-"
	longResources = 24 // for long ones

	// pairEvery is the shortest time between two pairs of a caller, in TTLs: a pair takes 3.5 on average, so that long
	// resources are in use for less than a third of the time, and what waits for them does not grow with the run.
	pairEvery = 6
)

// self is this process's spec, where it is one of the fleet's.
var self = sync.OnceValues(func() (spec, error) {
	var s spec
	err := json.Unmarshal([]byte(os.Getenv(processVariable)), &s)
	return s, err
})

// reporter is this process's line to the witness.
var reporter = sync.OnceValues(func() (*witness.Reporter, error) {
	s, err := self()
	if err != nil {
		return nil, err
	}
	return witness.Dial(context.Background(), s.Socket, s.Name)
})

// report reports, and ends the process if nobody listens any more.
func report(e witness.Event) (accepted bool) {
	r, err := reporter()
	if err == nil {
		accepted, err = r.Report(e)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(0)
	}
	return accepted
}

// work is what a task does.
type work struct {
	Millis   int    `json:"millis"`
	Fail     bool   `json:"fail,omitempty"`
	Children int    `json:"children,omitempty"`
	Schedule string `json:"schedule,omitempty"` // that it is of
}

const plainName = "chaos.plain"

// The task types.
var (
	plain    = tasking.NewType(plainName, heedful, tasking.TypeConfig{Immediate: true})
	retried  = tasking.NewType("chaos.retried", heedful, tasking.TypeConfig{MaxAttempts: 3, Backoff: 20 * time.Millisecond})
	isolated = tasking.NewType("chaos.isolated", heedful, tasking.TypeConfig{
		Isolated: &tasking.Isolation{Env: []string{processVariable}, StopGrace: time.Second},
	})
	heedless = tasking.NewType(judge.Heedless, stubbornly, tasking.TypeConfig{})
	stubborn = tasking.NewType("chaos.stubborn", stubbornly, tasking.TypeConfig{
		Isolated: &tasking.Isolation{Env: []string{processVariable}, StopGrace: 50 * time.Millisecond},
	})
)

func registry() (*tasking.Registry, error) {
	return tasking.NewRegistry(plain, retried, isolated, stubborn, heedless)
}

func heedful(ctx context.Context, run *tasking.Run, w work) (any, error) { return nil, do(ctx, run, w) }

// stubbornly does not heed its context.
func stubbornly(ctx context.Context, run *tasking.Run, w work) (any, error) {
	return nil, do(context.WithoutCancel(ctx), run, w)
}

var (
	errFenced    = errors.New("fenced")
	errOnPurpose = errors.New("failed on purpose")
)

// touchEvery is the time between two touches of a task at its resources, touchSeldom of a long one.
const (
	touchEvery  = 10 * time.Millisecond
	touchSeldom = 50 * time.Millisecond
)

// do is what all tasks do: be at their resources for a while, dispatch, and have an effect.
func do(ctx context.Context, run *tasking.Run, w work) error {
	token, err := run.Token(ctx)
	if err != nil {
		return err
	}
	at := witness.Event{Task: run.ID, Attempt: run.Attempt, Token: token, Reserved: run.Reserved, Name: run.Name}
	say := func(k witness.Kind) bool { e := at; e.Kind = k; return report(e) }
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !say(witness.Begun) {
		return errFenced
	}
	defer say(witness.Ended)
	every := touchEvery
	if w.Millis > 1000 {
		every = touchSeldom
	}
	for end := time.Now().Add(time.Duration(w.Millis) * time.Millisecond); time.Now().Before(end); {
		if resend.Sleep(ctx, min(every, time.Until(end))) != nil {
			return context.Cause(ctx)
		}
		if !say(witness.Touched) {
			return errFenced
		}
	}
	for i := range w.Children {
		d, err := run.Dispatch(ctx, tasking.Request{Name: plainName, Args: work{Millis: 1}})
		if err != nil {
			return err
		}
		report(witness.Event{Kind: witness.Dispatched, Task: d.ID, Client: run.ID.String() + "/" + strconv.Itoa(i), Name: plainName, Queued: true})
	}
	if w.Fail && run.Attempt == 1 {
		return errOnPurpose
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !say(witness.Effect) {
		return errFenced
	}
	return nil
}

// runProcess is a process of the fleet.
func runProcess(s spec, in io.Reader) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p, err := pool.Open(ctx, s.URL, pool.Config{})
	if err != nil {
		return err
	}
	defer p.Close()
	known, err := registry()
	if err != nil {
		return err
	}
	cfg := tasking.Config{Registry: known, Log: log, ProgressInterval: 100 * time.Millisecond}
	go func() {
		_, _ = io.Copy(io.Discard, in) // until the fleet is told to end
		cancel()
	}()
	switch s.Role {
	case roleWorker:
		c, err := tasking.New(p, cfg)
		if err != nil {
			return err
		}
		w, err := worker.New(c, worker.Config{Concurrency: slots, TTL: s.TTL, NameTemplate: s.Name, Log: log})
		if err != nil {
			return err
		}
		return w.Run(ctx)
	case roleAPI:
		return serveAPI(ctx, p, cfg, s)
	case roleDispatcher:
		c, err := tasking.New(p, cfg)
		if err != nil {
			return err
		}
		call(ctx, c, s)
		return nil
	}
	return fmt.Errorf("unknown role %q", s.Role)
}

// serveAPI dispatches with an app status, and goes on under a new one when it was declared missing.
func serveAPI(ctx context.Context, p *pgxpool.Pool, cfg tasking.Config, s spec) error {
	for ctx.Err() == nil {
		app, err := appstatus.New(p, appstatus.Config{Type: appstatus.API, NameTemplate: s.Name, TTL: s.TTL, Log: cfg.Log})
		if err != nil {
			return err
		}
		if err := app.Register(ctx); err != nil && ctx.Err() == nil {
			return err
		} else if err != nil {
			continue // it is to end
		}
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		var beats sync.WaitGroup
		beats.Go(func() { _ = app.Run(life) }) // Lost tells
		cfg.App = app
		c, err := tasking.New(p, cfg)
		if err != nil {
			end()
			return err
		}
		calling, stop := context.WithCancel(ctx)
		go func() {
			select {
			case <-app.Lost():
				stop()
			case <-calling.Done():
			}
		}()
		call(calling, c, s)
		stop()
		if ctx.Err() != nil {
			last, done := context.WithTimeout(life, 5*time.Second)
			_ = app.Unregister(last) // else a sweep does it
			done()
		}
		end()
		beats.Wait()
	}
	return nil
}

// call asks the system for what clients ask it, until ctx ends and all answers are there.
func call(ctx context.Context, c *tasking.Client, s spec) {
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(s.Seed, uint64(i)))
			(&caller{client: c, spec: s, name: s.Name + "/" + strconv.Itoa(i) + "/" + uuid.NewString()[:8], rand: r}).run(ctx)
		})
	}
	all.Wait()
}

// caller is one after the other of what a client asks.
type caller struct {
	client *tasking.Client
	spec   spec
	name   string
	rand   *rand.Rand
	recent []uuid.UUID
	paired time.Time // when it last dispatched a pair
}

// callLimit is how long a caller waits for an answer.
const callLimit = 20 * time.Second

func (c *caller) run(ctx context.Context) {
	for resend.Sleep(ctx, time.Duration(50+c.rand.IntN(250))*time.Millisecond) == nil {
		// What was begun gets its answer, or one never knows what was promised.
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
		switch n := c.rand.IntN(100); {
		case n < 75:
			c.dispatch(asking, 1)
		case n < 85:
			c.dispatch(asking, 2+c.rand.IntN(6))
		case n < 92:
			c.cancel(asking)
		default:
			c.look(asking)
		}
		cancel()
	}
}

func (c *caller) dispatch(ctx context.Context, n int) {
	requests := make([]tasking.Request, n)
	for i := range requests {
		requests[i] = c.request(n == 1)
	}
	if pause := pairEvery * c.spec.TTL; time.Since(c.paired) > pause && c.rand.IntN(10) == 0 {
		c.paired = time.Now()
		requests = c.pair()
		n = len(requests)
	}
	var (
		out []tasking.Dispatched
		err error
	)
	if n == 1 {
		var d tasking.Dispatched
		d, err = c.client.Dispatch(ctx, requests[0])
		out = []tasking.Dispatched{d}
	} else {
		out, err = c.client.DispatchMany(ctx, requests)
	}
	if err != nil {
		return // nothing was promised
	}
	for i, d := range out {
		r := requests[i]
		reserved := append([]string{}, r.Exclusive...)
		for _, name := range r.Shared {
			reserved = append(reserved, "shared:"+name)
		}
		report(witness.Event{
			Kind: witness.Dispatched, Task: d.ID, Client: c.name, Name: r.Name, Reserved: reserved, Queued: r.NotBefore.IsZero(),
		})
		if d.State.Final() {
			report(witness.Event{Kind: witness.Seen, Task: d.ID, State: string(d.State)})
		}
		c.recent = append(c.recent, d.ID)
	}
	if len(c.recent) > 20 {
		c.recent = c.recent[len(c.recent)-20:]
	}
}

// request makes a request at random.
func (c *caller) request(single bool) tasking.Request {
	var o tasking.Options
	for range c.rand.IntN(3) {
		name := "r" + strconv.Itoa(int(float64(resources)*c.rand.Float64()*c.rand.Float64())) // some are busier
		if c.rand.IntN(3) > 0 {
			o.Exclusive = append(o.Exclusive, name)
		} else {
			o.Shared = append(o.Shared, name)
		}
	}
	// One named twice would be exclusive.
	for i := 0; i < len(o.Shared); i++ {
		for _, e := range o.Exclusive {
			if o.Shared[i] == e {
				o.Shared[i] = "s" + o.Shared[i]
			}
		}
	}
	o.Priority = c.rand.IntN(3)
	w := work{Millis: c.rand.IntN(80), Fail: c.rand.IntN(20) == 0}
	if c.rand.IntN(20) == 0 {
		w.Children = 1 + c.rand.IntN(3)
	}
	if c.rand.IntN(20) == 0 {
		o.NotBefore = time.Now().Add(c.spec.Skew + time.Duration(c.rand.IntN(2000))*time.Millisecond)
	}
	switch n := c.rand.IntN(100); {
	case n < 40 && single && o.NotBefore.IsZero():
		o.Immediate, o.NotDeferred = true, n < 5
		w.Millis %= 100
		return plain.Request(w, o)
	case n < 60:
		return plain.Request(w, o)
	case n < 80:
		return retried.Request(w, o)
	case n < 95:
		return isolated.Request(w, o)
	default:
		return stubborn.Request(w, o)
	}
}

// pair is a task that takes so long that its worker may lose its lease meanwhile, and one that waits for it.
func (c *caller) pair() []tasking.Request {
	o := tasking.Options{Exclusive: []string{longResource + strconv.Itoa(c.rand.IntN(longResources))}}
	w := work{Millis: int(c.spec.TTL.Milliseconds()) * (2 + c.rand.IntN(4))}
	first := []*tasking.Type[work, any]{plain, retried, isolated, isolated, stubborn, heedless}[c.rand.IntN(6)]
	return []tasking.Request{first.Request(w, o), plain.Request(work{Millis: 10}, o)}
}

func (c *caller) cancel(ctx context.Context) {
	if len(c.recent) == 0 {
		return
	}
	id := c.recent[c.rand.IntN(len(c.recent))]
	if state, err := c.client.Cancel(ctx, id); err == nil {
		report(witness.Event{Kind: witness.Canceled, Task: id, State: string(state)})
	}
}

func (c *caller) look(ctx context.Context) {
	if len(c.recent) == 0 {
		return
	}
	if t, err := c.client.Get(ctx, c.recent[c.rand.IntN(len(c.recent))]); err == nil {
		report(witness.Event{Kind: witness.Seen, Task: t.ID, State: string(t.State)})
	}
}
