package worker

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

func TestWorkerThatCannotRegisterIsStopped(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"context", "drain", "abort"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			nowhere, err := pool.Open(t.Context(), "postgres://pith@127.0.0.1:1/pith", pool.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer nowhere.Close()
			reg, err := tasking.NewRegistry(echo)
			if err != nil {
				t.Fatal(err)
			}
			c, err := tasking.New(nowhere, tasking.Config{Registry: reg})
			if err != nil {
				t.Fatal(err)
			}
			w, stop, ended := start(t, c, Config{})
			switch how {
			case "context":
				stop()
			case "drain":
				w.Drain()
			case "abort":
				w.Abort()
			}
			if err := ended(); err != nil {
				t.Error(err)
			}
		})
	}
}

// It takes abortLimit.
func TestAbortThatATaskDoesNotHeedIsReported(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	started, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	stubborn := tasking.NewType("test.stubborn", func(context.Context, *tasking.Run, any) (any, error) {
		close(started)
		<-release
		return nil, nil
	}, tasking.TypeConfig{})
	c := newClient(t, d.Pool, d, stubborn)
	w, err := New(c, Config{Log: d.Log})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(context.WithoutCancel(t.Context())) }()
	id := dispatch(t, c, stubborn.Request(nil, tasking.Options{}))
	receive(t, "start", started)
	w.Abort()
	if err := receive(t, "end", ended); !errors.Is(err, ErrStillRunning) {
		t.Errorf("Run = %v", err)
	}
	// Until its lease ends, nobody else may have the task.
	if task, err := c.Get(t.Context(), id.ID); err != nil || task.State != tasking.Running || task.Holder == nil {
		t.Errorf("task is %s, held by %v, %v", task.State, task.Holder, err)
	}
}

func TestClaimThatComesAfterTheAbortIsAborted(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	g := newGate("test.gate")
	c := newClient(t, d.Pool, d, g)
	w, err := New(c, Config{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := w.newApp()
	if err != nil {
		t.Fatal(err)
	}
	s := newShift(w, app)
	s.kinds[1] = kind{name: g.Name(), runnable: true}
	s.cancelAll(tasking.ErrShutdown)
	s.crew.start(s.claim(t.Context(), tasking.TurnEvent{ID: pgUUID(uuid.Max), Kind: 1, Attempt: 1, Arguments: `""`}))
	receive(t, "end", s.crew.rang)
	e := s.crew.reap()[0]
	if e.outcome.State != tasking.Failed || e.outcome.Error.Reason != tasking.ReasonShutdown {
		t.Errorf("outcome = %s, %v", e.outcome.State, e.outcome.Error)
	}
}

func TestAnswerThatComesAfterTheLeaseStartsNothing(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d.Pool, d, echo)
	w, err := New(c, Config{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := w.newApp() // never registered: no lease
	if err != nil {
		t.Fatal(err)
	}
	s := newShift(w, app)
	err = s.take(t.Context(), turn{wanted: 1, rows: []tasking.TurnEvent{{Event: "claim", ID: pgUUID(uuid.Max), Kind: 1}}})
	if !errors.Is(err, appstatus.ErrLost) || len(s.slots) != 0 {
		t.Errorf("take = %v, %d tasks started", err, len(s.slots))
	}
}

func TestAuxiliaryWorkersDoNotSlowHousekeepingDown(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d.Pool, d, echo)
	for range 60 {
		app, err := appstatus.New(d.Pool, appstatus.Config{Type: appstatus.Worker})
		if err != nil {
			t.Fatal(err)
		}
		if err := app.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w, err := New(c, Config{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := w.newApp()
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Unregister(context.WithoutCancel(t.Context())) }()
	if app.Online() != 61 || app.Housekeepers() != 1 {
		t.Errorf("%d online, %d keep house", app.Online(), app.Housekeepers())
	}
}

func TestClaimWhoseAnswerWasLostIsRunBeforeTheWorkerEnds(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d.Pool, d, echo)
	w, err := New(c, Config{Log: d.Log})
	if err != nil {
		t.Fatal(err)
	}
	app, err := w.newApp()
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := dispatch(t, c, echo.Request(echoArgs{"x"}, tasking.Options{}))
	s := newShift(w, app)
	s.kinds[1] = kind{name: echo.Name(), runnable: true}
	// The turn that nobody heard of.
	p, err := s.params(turn{wanted: 1})
	if err != nil {
		t.Fatal(err)
	}
	if rows, err := tasking.Turn(t.Context(), d.Pool, p); err != nil || len(rows) != 2 || rows[1].Event != "claim" {
		t.Fatalf("turn = %v, %v", rows, err)
	}
	if err := s.take(t.Context(), turn{wanted: 1, err: context.DeadlineExceeded}); err != nil {
		t.Fatal(err)
	}
	w.Drain()
	if err := s.run(t.Context(), t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := app.Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	if task := wait(t, c, id); task.State != tasking.Completed {
		t.Errorf("task is %s, %v", task.State, task.Error)
	}
}

func TestEndingsThatGoSinglyAreNotClaimedAgain(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	w, err := New(newClient(t, d.Pool, d, echo), Config{Concurrency: 3})
	if err != nil {
		t.Fatal(err)
	}
	app, err := w.newApp()
	if err != nil {
		t.Fatal(err)
	}
	s := newShift(w, app)
	var sent []*slot
	for i := range 3 {
		sent = append(sent, &slot{claim: tasking.Claim{ID: uuid.UUID{15: byte(i)}}, outcome: tasking.Outcome{State: tasking.Completed}})
	}
	// One of them is refused, and the answer of the turn before was lost.
	if err := s.take(t.Context(), turn{err: context.DeadlineExceeded}); err != nil {
		t.Fatal(err)
	}
	if err := s.take(t.Context(), turn{sent: sent, err: &pgconn.PgError{Code: "54001", Message: "too deep"}}); err != nil {
		t.Fatal(err)
	}
	one := turn{sent: s.unsent[:1:1]}
	s.unsent = s.unsent[1:]
	p, err := s.params(one)
	if err != nil {
		t.Fatal(err)
	}
	if !s.singly || !p.Recovering || len(p.IDs) != 1 || len(p.Holding) != 3 {
		t.Errorf("singly %t, recovering %t, sends %d, holds %d", s.singly, p.Recovering, len(p.IDs), len(p.Holding))
	}
	// The one that is refused alone is recorded as failed instead.
	if err := s.take(t.Context(), turn{sent: one.sent, err: &pgconn.PgError{Code: "54001", Message: "too deep"}}); err != nil {
		t.Fatal(err)
	}
	if out := s.unsent[0].outcome; out.State != tasking.Failed || len(s.unsent) != 3 {
		t.Errorf("%d endings, the first one %s", len(s.unsent), out.State)
	}
}
