package worker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/tasking"
)

// turn is one statement under way and what came of it.
type turn struct {
	sent   []*slot
	wanted int
	// looks: it also asks what is to be canceled.
	looks bool
	// whole: it looks for tasks everywhere, not only from where they have begun before; searching: at least
	// also for other groups than those that were seen before.
	whole, searching bool
	// failures is how many turns in a row had failed when it was sent.
	failures int
	rows     []tasking.TurnEvent
	kinds    []db.TaskKind
	queued   int32 // tasks whose time had come and that now have a place
	err      error
}

// group is what a claim takes its tasks from in order.
type group struct{ kind, rank int32 }

// Bounds of the turns of a worker with many slots. Each claims a part of the slots, so that these tasks
// run while the next turn is under way, unless parts are so small that a turn's own cost weighs more.
//
// While much is waiting, two large turns are under way: one is encoded, sent and decoded while the database
// works on the other, and on two processors it works on both. Where many workers are, they keep the
// database busy anyhow, and more claims at a time only skip over each other's rows.
const (
	partLeast  = 64
	pairLeast  = 250 // for each of two
	turnMost   = 1000
	mostTurns  = 2
	fewWorkers = 4
)

// A worker that finds tasks in the groups that it knows goes without a look for others for searchEvery, times the
// number of workers, up to searchMost: together they look as often as one would. A slot that is free meanwhile may
// go to a less urgent task, or stay free until the next poll.
const (
	searchEvery = 100 * time.Millisecond
	searchMost  = time.Second
)

// paired reports whether two turns may be under way.
func (s *shift) paired() bool {
	return s.w.cfg.Concurrency >= 3*pairLeast && s.app.Online() <= fewWorkers
}

// part is how many of the slots one turn fills at most.
func (s *shift) part() int {
	part := s.w.cfg.Concurrency / 2
	if s.paired() {
		part = s.w.cfg.Concurrency / 3 // two are under way, and one runs
	}
	return min(max(part, partLeast), turnMost)
}

// another reports whether another turn is to be sent besides the one that is under way.
func (s *shift) another() bool {
	return s.turning == 1 && s.paired() && s.full &&
		// What was lost, or is refused, is found by a turn on its own.
		s.failures == 0 && !s.singly && !time.Now().Before(s.recovering) &&
		s.free()+len(s.unsent)-s.asked >= s.part()
}

// looks reports whether the next turn is to ask what is to be canceled: half the time early, since it
// leaves anyhow.
func (s *shift) looks() bool {
	return len(s.slots) > 0 && time.Since(s.looked) >= pacing.Look(s.app.Online())/2
}

// turn sends one turn in the background; its answer comes on turned.
func (s *shift) turn(life context.Context, stopping bool) {
	most := turnMost
	if s.singly {
		most = 1
	}
	most = min(most, len(s.unsent))
	t := turn{
		sent: s.unsent[:most:most], failures: s.failures, looks: s.looks(),
		whole:     time.Since(s.whole) >= pacing.Look(s.app.Online()),
		searching: s.woken || time.Since(s.searched) >= min(time.Duration(s.app.Online())*searchEvery, searchMost),
	}
	s.unsent = slices.Clone(s.unsent[most:])
	s.woken = false
	if !stopping {
		t.wanted = max(min(s.free()-s.asked, s.part()), 0)
	}
	s.turning++
	s.asked += t.wanted
	p, err := s.params(t)
	if err != nil {
		t.err = err
		s.turned <- t
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(life, turnTimeout)
		defer cancel()
		t.rows, t.err = tasking.TurnUsed(ctx, s.w.db, p, used(t.sent))
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

// used is what those of the tasks took that had processes of their own.
func used(ended []*slot) (u tasking.Used) {
	for _, e := range ended {
		if e.outcome.Usage != nil {
			u.Add(e.claim.ID, *e.outcome.Usage)
		}
	}
	return u
}

func overdue(rows []tasking.TurnEvent) bool {
	return slices.ContainsFunc(rows, func(r tasking.TurnEvent) bool { return r.Event == "due" && r.DueIn <= 0 })
}

func unknownKinds(rows []tasking.TurnEvent) []int32 {
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
		Quick: !t.looks, Searching: t.whole || t.searching,
	}
	for id, k := range s.kinds {
		p.Known = append(p.Known, id)
		if k.runnable {
			p.Runnable = append(p.Runnable, id)
		}
	}
	if !t.whole {
		groups := slices.SortedFunc(maps.Keys(s.heads), func(a, b group) int {
			return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.rank, b.rank))
		})
		for _, g := range groups {
			p.SeenKinds = append(p.SeenKinds, g.kind)
			p.SeenRanks = append(p.SeenRanks, g.rank)
			p.SeenHeads = append(p.SeenHeads, s.heads[g])
		}
	}
	if p.Recovering {
		for id := range s.slots {
			p.Holding = append(p.Holding, pgUUID(id))
		}
		for _, e := range t.sent {
			p.Holding = append(p.Holding, pgUUID(e.claim.ID))
		}
		for _, e := range s.unsent { // kept back
			p.Holding = append(p.Holding, pgUUID(e.claim.ID))
		}
	}
	slices.SortFunc(t.sent, func(a, b *slot) int { return bytes.Compare(a.claim.ID[:], b.claim.ID[:]) }) // to be locked in this order
	for _, e := range t.sent {
		failed, err := tasking.EncodeError(e.outcome.Error)
		if err != nil {
			return p, err
		}
		tasking.AddEnd(&p, e.claim, e.outcome, failed)
	}
	return p, nil
}

// claim gives a claimed task a slot, for the crew to run. A crash from here on leaves it running under
// our app status; the sweep that deletes that row has it ended.
func (s *shift) claim(life context.Context, r tasking.TurnEvent) *slot {
	t := &slot{claim: tasking.Claim{
		ID: r.ID.Bytes, Attempt: int(r.Attempt), Name: s.kinds[r.Kind].name, Args: json.RawMessage(r.Arguments),
		CorrelationID: r.Cid, Group: uuidPtr(r.InGroup), Parent: uuidPtr(r.Parent), Immediate: r.Immediate,
		Reserved: r.Reserved, CreatedAt: r.CreatedAt.Time.UTC(),
	}}
	t.ctx, t.cancel = context.WithCancelCause(context.WithoutCancel(life))
	if len(s.slots) == 0 {
		s.looked = time.Now() // nothing was there to be canceled
	}
	s.slots[t.claim.ID] = t
	if s.cause != nil { // claimed by a turn that was under way when all were to end
		t.cancel(s.cause)
	}
	if s.log.Enabled(life, slog.LevelDebug) {
		s.log.Debug("task started", "task", t.claim.ID, "task_name", t.claim.Name, "attempt", t.claim.Attempt)
	}
	return t
}

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func uuidPtr(id pgtype.UUID) *uuid.UUID {
	if !id.Valid {
		return nil
	}
	u := uuid.UUID(id.Bytes)
	return &u
}
