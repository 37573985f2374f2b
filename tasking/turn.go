package tasking

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/textwire"
)

// TurnEvent is one row of a turn's answer; the comment on the function task_turn tells which fields an event
// has.
type TurnEvent struct {
	Event     string
	ID        pgtype.UUID
	Kind      int32
	State     string
	Attempt   int32
	Recorded  bool
	Arguments string
	Cid       string
	InGroup   pgtype.UUID
	Parent    pgtype.UUID
	Immediate bool
	Reserved  []string
	CreatedAt pgtype.Timestamptz
	DueIn     float64 // seconds
}

// Used are tasks that a turn ends, and what they took, where that is known. The slices are parallel.
type Used struct {
	IDs          []pgtype.UUID
	PeakMemories []int64 // bytes
	CPUSeconds   []float64
}

// Add adds what a task took.
func (u *Used) Add(id uuid.UUID, took Usage) {
	u.IDs = append(u.IDs, pgUUID(id))
	u.PeakMemories = append(u.PeakMemories, took.PeakMemory)
	u.CPUSeconds = append(u.CPUSeconds, took.CPUSeconds)
}

// Turn sends a holder's statement once: it ends attempts and claims tasks. Workers send it, and processes that
// run immediate tasks.
func Turn(ctx context.Context, d db.DBTX, p db.TaskTurnParams) ([]TurnEvent, error) {
	return TurnUsed(ctx, d, p, Used{})
}

// TurnUsed is Turn where some of the attempts that it ends had processes of their own.
func TurnUsed(ctx context.Context, d db.DBTX, p db.TaskTurnParams, used Used) ([]TurnEvent, error) {
	var rows []string
	var err error
	if len(used.IDs) == 0 {
		rows, err = db.New().TaskTurn(ctx, textwire.Over(d), p)
	} else {
		rows, err = db.New().TaskTurnUsed(ctx, textwire.Over(d), db.TaskTurnUsedParams{
			UsedIds: used.IDs, PeakMemories: used.PeakMemories, CpuSeconds: used.CPUSeconds,
			Worker: p.Worker, Known: p.Known, Runnable: p.Runnable, Wanted: p.Wanted, Recovering: p.Recovering, Holding: p.Holding,
			IDs: p.IDs, Attempts: p.Attempts, States: p.States, Results: p.Results, Errors: p.Errors, Sole: p.Sole, Quick: p.Quick,
			Searching: p.Searching, SeenKinds: p.SeenKinds, SeenRanks: p.SeenRanks, SeenHeads: p.SeenHeads, Impatient: p.Impatient,
		})
	}
	if err != nil {
		return nil, err
	}
	var records textwire.Records
	events := make([]TurnEvent, len(rows))
	for i, row := range rows {
		e := &events[i]
		if err := records.Scan(row, &e.Event, &e.ID, &e.Kind, &e.State, &e.Attempt, &e.Recorded, &e.Arguments, &e.Cid,
			&e.InGroup, &e.Parent, &e.Immediate, &e.Reserved, &e.CreatedAt, &e.DueIn); err != nil {
			return nil, fmt.Errorf("turn: %w", err)
		}
	}
	return events, nil
}

// AddEnd has a turn end an attempt of claim with out, whose error is failed (see EncodeError). The ends of a turn
// are added in the order of their ids: the database locks the tasks in the order in which they come.
func AddEnd(p *db.TaskTurnParams, claim Claim, out Outcome, failed string) {
	sole := claim.Sole(out)
	if len(p.IDs) > 0 && (sole != p.Sole || sole.String != "") {
		sole = pgtype.Text{} // to be looked up
	}
	p.Sole = sole
	p.IDs = append(p.IDs, pgUUID(claim.ID))
	p.Attempts = append(p.Attempts, int32(claim.Attempt))
	p.States = append(p.States, string(out.State))
	p.Results = append(p.Results, string(out.Result))
	p.Errors = append(p.Errors, failed)
}
