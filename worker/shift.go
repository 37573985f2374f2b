package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// lookEvery is the longest time between two turns while tasks run: a cancellation is seen within it.
const lookEvery = 1500 * time.Millisecond

// abortLimit is how long the functions of aborted or fenced tasks may take to return.
const abortLimit = 10 * time.Second

// turnTimeout bounds one turn on the client's side.
const turnTimeout = 30 * time.Second

// shift is the loop of one session: who runs, what has ended, when to turn next. Only its own
// goroutine touches it; tasks report on ended, a turn under way on turned.
type shift struct {
	w     *Worker
	app   *appstatus.App
	log   *slog.Logger
	pace  pacer
	kinds map[int32]kind
	slots map[uuid.UUID]*slot
	// unsent has ended and is not in the database yet.
	unsent []ending
	// recovering: an answer got lost, so until then the database may hold claims for us that we don't
	// know of. The statement may still be under way there when a later one is answered.
	recovering time.Time
	// cause is why all tasks are to end, once they are.
	cause error
	// singly: the database refused what something in unsent holds, so endings go one by one.
	singly   bool
	failures int
	refused  bool // the last turn failed for good: it was not committed
	idle     bool // the last turn found nothing to claim
	dueIn    time.Duration

	ended  chan ending
	turned chan turn
}

// slot is a task that runs.
type slot struct {
	claim  tasking.Claim
	cancel context.CancelCauseFunc
	told   bool // of a cancellation
}

// ending is how a task ended.
type ending struct {
	claim   tasking.Claim
	outcome tasking.Outcome
}

// kind is a row of task_kind with our verdict on it.
type kind struct {
	name     string
	runnable bool
}

// turn is one statement under way and what came of it.
type turn struct {
	sent   []ending
	wanted int
	rows   []db.TaskTurnRow
	kinds  []db.TaskKind
	queued int32 // tasks whose time had come and that now have a place
	err    error
}

func newShift(w *Worker, app *appstatus.App) *shift {
	return &shift{
		w: w, app: app, log: w.cfg.Log.With("worker", app.Name()), pace: pacer{fleet: app.Online, lastFound: time.Now()},
		kinds: map[int32]kind{}, slots: map[uuid.UUID]*slot{}, dueIn: -1,
		ended: make(chan ending, w.cfg.Concurrency), turned: make(chan turn, 1),
	}
}

// run works until told to stop by ctx, Drain or Abort, and everything that ran is recorded, or until
// the App is lost (appstatus.ErrLost). life ends with the App.
func (s *shift) run(ctx, life context.Context) error {
	// The first poll is spread like any other: a fleet that starts at once must not poll at once.
	poll := time.NewTimer(s.pace.next(time.Now(), -1))
	defer poll.Stop()
	var (
		stop     = ctx.Done()
		drain    = s.w.drain
		abort    = s.w.abort
		stopping bool
		turning  bool
		now      bool // turn without waiting for the timer
		pausing  bool // after a failure, until the timer
	)
	grace, stuck := stoppedTimer(), stoppedTimer()
	defer grace.Stop()
	defer stuck.Stop()
	for {
		if !turning && !pausing && (now || len(s.unsent) > 0) {
			now = false
			turning = true
			s.turn(life, stopping)
		}
		// After a lost answer one more is needed: the lost one may have brought claims.
		if stopping && !turning && len(s.slots) == 0 && len(s.unsent) == 0 && (s.failures == 0 || s.refused) {
			return nil
		}
		select {
		case <-poll.C:
			now, pausing = now || !turning, false
		case <-s.wake(stopping):
			now = true
		case e := <-s.ended:
			s.end(e)
		drained:
			for {
				select {
				case e := <-s.ended:
					s.end(e)
				default:
					break drained
				}
			}
		case t := <-s.turned:
			turning = false
			failures := s.failures
			if err := s.take(life, t); err != nil {
				s.cancelAll(tasking.ErrLeaseLost)
				s.wait()
				return err
			}
			if s.w.cfg.Burst && s.idle && len(s.slots) == 0 && len(s.unsent) == 0 && s.failures == 0 {
				return nil
			}
			switch {
			case s.failures > 0:
				if failures == 0 {
					s.log.Log(life, severity(t.err), "turn failed", "err", t.err)
				}
				pausing = true
				poll.Reset(resend.Backoff(s.failures))
			case s.free() > 0 && !s.idle && !stopping:
				now = true
			default:
				poll.Reset(s.pause(stopping))
			}
		case <-stop:
			stop, stopping = nil, true
			if s.w.cfg.Grace >= 0 {
				grace.Reset(s.w.cfg.Grace)
			}
			s.log.Info("worker is stopping", "running", len(s.slots))
		case <-drain:
			drain, stopping = nil, true
			s.log.Info("worker is draining", "running", len(s.slots))
		case <-grace.C:
			s.cancelAll(tasking.ErrShutdown)
			stuck.Reset(abortLimit)
		case <-abort:
			abort, stopping = nil, true
			s.cancelAll(tasking.ErrShutdown)
			stuck.Reset(abortLimit)
		case <-stuck.C:
			if len(s.slots) > 0 {
				s.log.Error("tasks do not heed their abort", "running", len(s.slots))
				return ErrStillRunning
			}
			if s.refused {
				return fmt.Errorf("worker: the outcomes of %d tasks are refused by the database", len(s.unsent))
			}
			stuck.Reset(abortLimit) // a lost answer may still bring a claim
		case <-s.app.Lost():
			s.cancelAll(tasking.ErrLeaseLost)
			s.wait()
			return appstatus.ErrLost
		case <-life.Done(): // another part of the session has failed
			s.cancelAll(tasking.ErrLeaseLost)
			s.wait()
			return nil
		}
	}
}

// severity of a turn's error: a conflict that the next try avoids is a part of the protocol.
func severity(err error) slog.Level {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "40001" {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// wake is what may end a sleep early: a dispatch in this process.
func (s *shift) wake(stopping bool) <-chan struct{} {
	if stopping || s.free() <= 0 {
		return nil
	}
	return s.w.client.Dispatched()
}

func (s *shift) free() int { return s.w.cfg.Concurrency - len(s.slots) - len(s.unsent) }

// pause is how long to sleep now. Running tasks bound it, so that their cancellation is seen in time;
// with all slots full there is nothing to poll for.
func (s *shift) pause(stopping bool) time.Duration {
	if s.free() <= 0 || stopping {
		return lookEvery
	}
	pause := s.pace.next(time.Now(), s.dueIn)
	if len(s.slots) > 0 {
		pause = min(pause, lookEvery)
	}
	return pause
}

func (s *shift) end(e ending) {
	delete(s.slots, e.claim.ID)
	s.unsent = append(s.unsent, e)
}

// turn sends one turn in the background; its answer comes on turned.
func (s *shift) turn(life context.Context, stopping bool) {
	t := turn{sent: s.unsent}
	if !stopping {
		t.wanted = s.w.cfg.Concurrency - len(s.slots)
	}
	s.unsent = nil
	if s.singly && len(t.sent) > 1 {
		t.sent, s.unsent = t.sent[:1:1], t.sent[1:]
	}
	p, err := s.params(t)
	if err != nil {
		t.err = err
		s.turned <- t
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(life, turnTimeout)
		defer cancel()
		t.rows, t.err = db.New().TaskTurn(ctx, s.w.db, p)
		if unknown := unknownKinds(t.rows); t.err == nil && len(unknown) > 0 {
			// Read here, so that the verdict is ready with the answer.
			var err error
			if t.kinds, err = db.New().TaskKindList(ctx, s.w.db, unknown); err != nil {
				s.log.Debug("read kinds failed", "err", err) // the next turn names them again
			}
		}
		if t.err == nil && !s.w.cfg.Auxiliary && overdue(t.rows) {
			var err error
			if t.queued, err = db.New().TaskEnqueueDue(ctx, s.w.db, batch); err != nil {
				s.log.Debug("queue due tasks failed", "err", err) // housekeeping will
			}
		}
		s.turned <- t
	}()
}

func overdue(rows []db.TaskTurnRow) bool {
	return slices.ContainsFunc(rows, func(r db.TaskTurnRow) bool { return r.Event == "due" && r.DueIn <= 0 })
}

func unknownKinds(rows []db.TaskTurnRow) []int32 {
	var ids []int32
	for _, r := range rows {
		if r.Event == "kind" {
			ids = append(ids, r.Kind)
		}
	}
	return ids
}

func (s *shift) params(t turn) (db.TaskTurnParams, error) {
	p := db.TaskTurnParams{
		Worker: pgUUID(s.app.ID()), Wanted: int32(t.wanted), Recovering: time.Now().Before(s.recovering),
		Known: []int32{}, Runnable: []int32{}, Holding: []pgtype.UUID{},
		IDs: []pgtype.UUID{}, Attempts: []int32{}, States: []string{}, Results: []string{}, Errors: []string{},
	}
	for id, k := range s.kinds {
		p.Known = append(p.Known, id)
		if k.runnable {
			p.Runnable = append(p.Runnable, id)
		}
	}
	if p.Recovering {
		for id := range s.slots {
			p.Holding = append(p.Holding, pgUUID(id))
		}
		for _, e := range t.sent {
			p.Holding = append(p.Holding, pgUUID(e.claim.ID))
		}
		for _, e := range s.unsent { // kept back to go singly
			p.Holding = append(p.Holding, pgUUID(e.claim.ID))
		}
	}
	sortEndings(t.sent) // the database visits them by binary search
	for _, e := range t.sent {
		failed, err := tasking.EncodeError(e.outcome.Error)
		if err != nil {
			return p, err
		}
		p.IDs = append(p.IDs, pgUUID(e.claim.ID))
		p.Attempts = append(p.Attempts, int32(e.claim.Attempt))
		p.States = append(p.States, string(e.outcome.State))
		p.Results = append(p.Results, string(e.outcome.Result))
		p.Errors = append(p.Errors, failed)
	}
	return p, nil
}

// take takes in what came of a turn. An error means that the App is lost.
func (s *shift) take(life context.Context, t turn) error {
	if t.err != nil {
		s.unsent = append(t.sent, s.unsent...)
		var pg *pgconn.PgError
		if errors.As(t.err, &pg) && pg.ConstraintName == "task_app_lock_fkey" {
			return appstatus.ErrLost
		}
		s.failures++
		if s.refused = !resend.Passing(t.err); s.refused {
			s.log.Error("turn was refused", "err", t.err)
			s.isolate(t)
			return nil
		}
		// It may have been committed all the same: then the database holds claims for us.
		s.recovering = time.Now().Add(2 * turnTimeout)
		return nil
	}
	// The process may have been paused since the turn was sent.
	if !s.app.Leased() {
		return appstatus.ErrLost
	}
	s.failures, s.refused = 0, false
	s.singly = s.singly && len(s.unsent) > 0
	for _, k := range t.kinds {
		var needs map[string]string
		if err := json.Unmarshal(k.Versions, &needs); err != nil {
			s.log.Error("kind has no readable versions", "kind", k.ID, "err", err)
		}
		runnable := s.w.client.Registry().CanRun(k.Name, needs, s.w.cfg.Versions)
		s.kinds[k.ID] = kind{name: k.Name, runnable: runnable}
		if !runnable {
			s.log.Info("kind of task is left to other workers", "task_name", k.Name, "versions", string(k.Versions))
		}
	}
	claimed := 0
	s.dueIn = -1
	for _, r := range t.rows {
		switch r.Event {
		case "claim":
			claimed++
			s.start(life, r)
		case "cancel":
			if slot, ok := s.slots[r.ID.Bytes]; ok && !slot.told {
				slot.told = true
				s.log.Info("task is to be canceled", "task", slot.claim.ID)
				slot.cancel(tasking.ErrCanceled)
			}
		case "finish":
			if !r.Recorded {
				s.log.Warn("task was taken away, its result is lost", "task", uuid.UUID(r.ID.Bytes), "state", r.State, "err", tasking.ErrLockLost)
			}
		case "due":
			s.dueIn = max(time.Duration(r.DueIn*float64(time.Second)), 0)
		}
	}
	if claimed > 0 {
		s.pace.found(time.Now())
	}
	// Nothing more is there for us if we asked for more than we got, and know all kinds.
	s.idle = t.wanted > claimed && len(unknownKinds(t.rows)) == 0 && t.queued == 0
	return nil
}

// isolate keeps an ending whose result the database cannot store from holding up the others: they are
// sent one by one, and the one that is refused alone is recorded as failed with the refusal.
func (s *shift) isolate(t turn) {
	failed, ok := tasking.RefusedOutcome(t.err)
	if !ok {
		return
	}
	s.singly = true
	if len(t.sent) == 1 {
		s.unsent[0].outcome = failed
	}
}

// start runs a claimed task in a goroutine. A crash from here on leaves it running under our app
// status; the sweep that deletes that row has it ended.
func (s *shift) start(life context.Context, r db.TaskTurnRow) {
	claim := tasking.Claim{
		ID: r.ID.Bytes, Attempt: int(r.Attempt), Name: s.kinds[r.Kind].name, Args: json.RawMessage(r.Arguments),
		CorrelationID: r.Cid, Group: uuidPtr(r.InGroup), Parent: uuidPtr(r.Parent), Immediate: r.Immediate,
		Reserved: r.Reserved, CreatedAt: r.CreatedAt.Time.UTC(),
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(life))
	s.slots[claim.ID] = &slot{claim: claim, cancel: cancel}
	if s.cause != nil { // claimed by a turn that was under way when all were to end
		cancel(s.cause)
	}
	s.log.Debug("task started", "task", claim.ID, "task_name", claim.Name, "attempt", claim.Attempt)
	go func() {
		defer cancel(nil)
		s.ended <- ending{claim, s.w.client.Execute(ctx, s.app.ID(), s.app.Lost(), claim)}
	}()
}

func (s *shift) cancelAll(cause error) {
	s.cause = cause
	for _, slot := range s.slots {
		slot.cancel(cause)
	}
}

// wait waits for the functions of a lost App to return, but not for ever. What they say has no meaning
// any more, and others may have taken over their tasks.
func (s *shift) wait() {
	limit := time.NewTimer(abortLimit)
	defer limit.Stop()
	for len(s.slots) > 0 {
		select {
		case e := <-s.ended:
			delete(s.slots, e.claim.ID)
		case <-limit.C:
			s.log.Error("fenced tasks do not heed their context and go on", "running", len(s.slots))
			return
		}
	}
}

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func uuidPtr(id pgtype.UUID) *uuid.UUID {
	if !id.Valid {
		return nil
	}
	u := uuid.UUID(id.Bytes)
	return &u
}
