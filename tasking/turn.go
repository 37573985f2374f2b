package tasking

import (
	"context"
	"fmt"

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

// Turn sends a holder's statement once: it ends attempts and claims tasks. Workers send it, and processes that
// run immediate tasks.
func Turn(ctx context.Context, d db.DBTX, p db.TaskTurnParams) ([]TurnEvent, error) {
	rows, err := db.New().TaskTurn(ctx, textwire.Over(d), p)
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
