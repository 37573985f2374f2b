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
	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// abortLimit is how long the functions of aborted or fenced tasks may take to return.
const abortLimit = 10 * time.Second

// turnTimeout bounds one turn on the client's side.
const turnTimeout = 30 * time.Second

// shift is the loop of one session: who runs, what has ended, when to turn next. Only its own
// goroutine touches it; the crew rings when tasks have ended, the turns under way report on turned.
type shift struct {
	w     *Worker
	app   *appstatus.App
	log   *slog.Logger
	pace  *pacing.Poller
	kinds map[int32]kind
	// foreign are those of them that this worker cannot run.
	foreign []int32
	slots   map[uuid.UUID]*slot
	// unsent has ended and is not in the database yet.
	unsent []*slot
	// recovering: an answer got lost, so until then the database may hold claims for us that we don't
	// know of. The statement may still be under way there when a later one is answered.
	recovering time.Time
	// cause is why all tasks are to end, once they are.
	cause error
	// singly: the database refused what something in unsent holds, so endings go one by one.
	singly   bool
	failures int
	refused  bool // the last turn failed for good: it was not committed
	idle     bool // the last turn found less to claim than it asked for
	emptied  bool // and it had looked everywhere
	full     bool // the last turn claimed all of many that it asked for
	// turning is how many turns are under way, and asked what they ask for together.
	turning, asked int
	// heads is where the ready tasks of each group began when they were last looked for, by the database's
	// clock; searched is when that was, and whole when they were looked for everywhere. Whoever commits late
	// is found by that.
	heads           map[group]pgtype.Timestamptz
	searched, whole time.Time
	looked          time.Time // when a turn last asked what is to be canceled
	redraw          bool      // the pause ends with another one, not with a turn
	dueAt           time.Time // when the next task is due, as last seen; zero: none
	woken           bool      // a dispatch in this process may be of a group that is not known

	crew   *crew
	turned chan turn
}

// slot is a task that runs, or has ended.
type slot struct {
	claim  tasking.Claim
	ctx    context.Context
	cancel context.CancelCauseFunc
	told   bool // of a cancellation
	// outcome is how it ended. Until then it is the crew's.
	outcome tasking.Outcome
}

// kind is a row of task_kind with our verdict on it.
type kind struct {
	name     string
	runnable bool
}

func newShift(w *Worker, app *appstatus.App) *shift {
	s := &shift{
		w: w, app: app, log: w.cfg.Log.With("worker", app.Name()), pace: pacing.NewPoller(time.Now(), app.Online, app.TTL(), nil),
		kinds: map[int32]kind{}, heads: map[group]pgtype.Timestamptz{}, slots: map[uuid.UUID]*slot{},
		turned: make(chan turn, mostTurns),
	}
	holder := tasking.Holder{ID: app.ID(), Lost: app.Lost(), Children: w.children}
	s.crew = newCrew(func(t *slot) {
		defer t.cancel(nil)
		t.outcome = w.client.Execute(t.ctx, holder, t.claim)
	})
	return s
}

// run works until told to stop by ctx, Drain or Abort, and everything that ran is recorded, or until
// the App is lost (appstatus.ErrLost). life ends with the App.
func (s *shift) run(ctx, life context.Context) error {
	// The first poll is spread like any other: a fleet that starts at once must not poll at once.
	poll := time.NewTimer(s.pause(false))
	defer poll.Stop()
	var (
		stop     = ctx.Done()
		drain    = s.w.drain
		abort    = s.w.abort
		stopping bool
		now      bool // turn without waiting for the timer
		pausing  bool // after a failure, until the timer
	)
	grace, stuck := stoppedTimer(), stoppedTimer()
	defer grace.Stop()
	defer stuck.Stop()
	for {
		s.reap()
		if s.turning == 0 && !pausing && (now || len(s.unsent) > 0) {
			now = false
			s.turn(life, stopping || s.told(ctx))
		}
		if !stopping && !pausing && s.another() {
			s.turn(life, s.told(ctx))
		}
		// After a lost answer one more is needed: the lost one may have brought claims.
		if stopping && s.turning == 0 && len(s.slots) == 0 && len(s.unsent) == 0 && (s.failures == 0 || s.refused && !time.Now().Before(s.recovering)) {
			return nil
		}
		select {
		case <-poll.C:
			if s.redraw && !pausing && !s.w.cfg.Burst {
				poll.Reset(s.pause(stopping))
				continue
			}
			now, pausing = now || s.turning == 0, false
		case <-s.wake(stopping):
			now, s.woken = true, true
		case <-s.runnable(stopping):
			if s.turning == 0 && s.pace.Heed(time.Now()) {
				now, s.whole = true, time.Time{} // what is old may stand where a turn no longer looks
			}
		case <-s.crew.rang:
		case t := <-s.turned:
			s.turning--
			s.asked -= t.wanted
			failures := s.failures
			if err := s.take(life, t); err != nil {
				s.cancelAll(tasking.ErrLeaseLost)
				s.wait()
				return err
			}
			// What is due and has no place yet is on its way.
			arriving := !s.dueAt.IsZero() && !s.dueAt.After(time.Now()) && !s.w.cfg.Auxiliary
			spent := s.w.cfg.Burst && s.idle && !arriving && s.turning == 0 && len(s.slots) == 0 && len(s.unsent) == 0 && s.failures == 0
			if spent && s.emptied {
				return nil
			}
			switch {
			case spent:
				now, s.whole = true, time.Time{}
			case s.failures > 0:
				if failures == 0 {
					s.log.Log(life, severity(t.err), "turn failed", "err", t.err)
				}
				pausing = true
				poll.Reset(s.pace.Retry(time.Now(), s.failures, stopping || len(s.slots)+len(s.unsent) > 0))
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

// told reports whether the worker was told to stop, whatever else the loop has heard first.
func (s *shift) told(ctx context.Context) bool {
	select {
	case <-ctx.Done():
	case <-s.w.drain:
	case <-s.w.abort:
	default:
		return false
	}
	return true
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

// runnable may end it, too: a beat that has found tasks.
func (s *shift) runnable(stopping bool) <-chan struct{} {
	if stopping || s.free() <= 0 {
		return nil
	}
	return s.app.Runnable()
}

func (s *shift) free() int { return s.w.cfg.Concurrency - len(s.slots) - len(s.unsent) }

// pause is how long to sleep now. Running tasks bound it, so that their cancellation is seen in time;
// with all slots full there is nothing to poll for.
func (s *shift) pause(stopping bool) time.Duration {
	look := max(pacing.Look(s.app.Online())-time.Since(s.looked), 0)
	s.redraw = false
	if len(s.slots) == 0 {
		look = pacing.Look(s.app.Online())
	}
	s.app.Look(s.free() > 0 && !stopping, s.foreign)
	if s.free() <= 0 || stopping {
		return look
	}
	dueIn := time.Duration(-1)
	if !s.dueAt.IsZero() {
		dueIn = max(time.Until(s.dueAt), 0)
	}
	pause, poll := s.pace.Next(time.Now(), dueIn)
	if len(s.slots) > 0 && look <= pause {
		return look
	}
	s.redraw = !poll
	return pause
}

// reap takes in what has ended.
func (s *shift) reap() {
	for _, e := range s.crew.reap() {
		delete(s.slots, e.claim.ID)
		s.unsent = append(s.unsent, e)
	}
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
	if t.looks {
		s.looked = time.Now()
	}
	if t.whole && t.wanted > 0 {
		s.whole = time.Now()
		clear(s.heads)
	}
	if t.failures == s.failures { // else it was sent before the last failure
		s.failures, s.refused = 0, false
	}
	s.singly = s.singly && len(s.unsent) > 0
	for _, k := range t.kinds {
		var needs map[string]string
		if err := json.Unmarshal(k.Versions, &needs); err != nil {
			s.log.Error("kind has no readable versions", "kind", k.ID, "err", err)
		}
		runnable := s.w.client.Registry().CanRun(k.Name, needs, s.w.cfg.Versions)
		s.kinds[k.ID] = kind{name: k.Name, runnable: runnable}
		if !runnable && !slices.Contains(s.foreign, k.ID) {
			s.foreign = append(s.foreign, k.ID)
			s.log.Info("kind of task is left to other workers", "task_name", k.Name, "versions", string(k.Versions))
		}
	}
	var claimed []*slot
	var dueAt time.Time
	for _, r := range t.rows {
		switch r.Event {
		case "head":
			s.heads[group{r.Kind, r.Attempt}] = r.CreatedAt
		case "claim":
			claimed = append(claimed, s.claim(life, r))
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
			dueAt = time.Now().Add(time.Duration(r.DueIn * float64(time.Second)))
		}
	}
	if len(claimed) > 0 {
		s.crew.start(claimed...)
		s.pace.Found(time.Now())
	}
	// Nothing more is there for us if we asked for more than we got, and know all kinds.
	s.full = t.wanted >= pairLeast && t.wanted == len(claimed)
	s.idle = t.wanted > len(claimed) && len(unknownKinds(t.rows)) == 0 && t.queued == 0
	s.emptied = s.idle && t.whole
	if t.wanted > 0 && (t.whole || t.searching || len(claimed) == 0) {
		s.searched = time.Now()
		if t.wanted > len(claimed) { // else it has not looked for what is due
			s.dueAt = dueAt
		}
	}
	if len(t.kinds) > 0 {
		s.searched = time.Time{} // for the tasks of these
	}
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
		failed.Reported = s.unsent[0].outcome.Reported
		s.unsent[0].outcome = failed
	}
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
	for s.reap(); len(s.slots) > 0; s.reap() {
		select {
		case <-s.crew.rang:
		case <-limit.C:
			s.log.Error("fenced tasks do not heed their context and go on", "running", len(s.slots))
			return
		}
	}
}
