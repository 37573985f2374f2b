package tasking

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

// Claim is a task as the process that holds it got it.
type Claim struct {
	ID uuid.UUID
	// Attempt counts the runs begun. With ID it is the fencing token of this run: it grows with each
	// claim, so an outside system that remembers the greatest one can refuse a run that was fenced.
	Attempt       int
	Name          string
	Args          json.RawMessage
	CorrelationID string
	Group, Parent *uuid.UUID
	Immediate     bool
	// Reserved lists exclusive resources bare, shared ones as shared:NAME; the share of the domain, which
	// every task has that does not reserve it exclusively, is not named.
	Reserved  []string
	CreatedAt time.Time
}

// Sole tells of an attempt that ended with out what it reserves beside a share of its domain: one exclusive
// resource, or "" for none. It is null if there is more to its end: other resources, or progress reports.
func (c Claim) Sole(out Outcome) pgtype.Text {
	if out.Reported || len(c.Reserved) > 1 {
		return pgtype.Text{}
	}
	if len(c.Reserved) == 0 {
		return pgtype.Text{Valid: true}
	}
	r := c.Reserved[0]
	return pgtype.Text{String: r, Valid: !strings.HasPrefix(r, "shared:") && !strings.HasPrefix(r, domainPrefix)}
}

// Run is what a task function knows of its own task. Its methods write only while the process holds
// the task; afterwards they return ErrLockLost. They may be used by many goroutines.
type Run struct {
	Claim
	// Log carries the task's name, id and correlation id.
	Log *slog.Logger

	client *Client
	holder uuid.UUID
	lost   <-chan struct{} // closed when the holder's lease has ended

	mu      sync.Mutex
	reports []*Progress
	created int32

	described sync.Once
	describes slog.Handler // the client's, with the task's attributes
}

// runHandler is the handler of a Run's Log. Most tasks log nothing, so it makes the task's attributes when
// the first record comes.
type runHandler Run

func (h *runHandler) handler() slog.Handler {
	h.described.Do(func() {
		h.describes = h.client.cfg.Log.Handler().WithAttrs([]slog.Attr{
			slog.String("task_name", h.Name), slog.String("task", h.ID.String()), slog.String("correlation_id", h.CorrelationID),
		})
	})
	return h.describes
}

// Enabled asks the client's handler.
func (h *runHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.client.cfg.Log.Enabled(ctx, level)
}

// Handle passes the record on with the task's attributes.
func (h *runHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.handler().Handle(ctx, r)
}

// WithAttrs returns a handler that adds these to the task's attributes.
func (h *runHandler) WithAttrs(attrs []slog.Attr) slog.Handler { return h.handler().WithAttrs(attrs) }

// WithGroup returns a handler that opens a group after the task's attributes.
func (h *runHandler) WithGroup(name string) slog.Handler { return h.handler().WithGroup(name) }

// Dispatch hands out a child task: this task is its parent; group and correlation id are inherited.
func (r *Run) Dispatch(ctx context.Context, req Request) (Dispatched, error) {
	return r.client.dispatch(ctx, r.caller(), req)
}

// DispatchMany hands out child tasks as Client.DispatchMany does.
func (r *Run) DispatchMany(ctx context.Context, reqs []Request) ([]Dispatched, error) {
	return r.client.dispatchMany(ctx, r.caller(), reqs)
}

func (r *Run) caller() caller {
	return caller{holder: &r.holder, lost: r.lost, parent: &r.ID, attempt: r.Attempt, group: r.Group, correlationID: r.CorrelationID}
}

// Client is the client of the process that runs the task.
func (r *Run) Client() *Client { return r.client }

// AddCreatedResource records the PRN of something that the task has created, in order.
func (r *Run) AddCreatedResource(ctx context.Context, prn string) error {
	r.mu.Lock()
	ordinal := r.created
	r.created++
	r.mu.Unlock()
	n, err := send(ctx, "record created resource", func(ctx context.Context) (int64, error) {
		return r.client.q.CreatedResourceSave(ctx, r.client.db, db.CreatedResourceSaveParams{
			TaskID: pgUUID(r.ID), Ordinal: ordinal, Resource: prn, Holder: pgUUID(r.holder), Attempt: int32(r.Attempt),
		})
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("record created resource: %w", ErrLockLost)
	}
	return err
}

// Progress is a progress report of a running task.
type Progress struct {
	run     *Run
	ordinal int32

	mu     sync.Mutex
	report Report
	saved  time.Time
	dirty  bool
}

// Progress begins a report and saves it. A negative total means that the end is not known.
func (r *Run) Progress(ctx context.Context, message, code string, total int64, suffix string) (*Progress, error) {
	p := &Progress{run: r, report: Report{Message: message, Code: code, State: Running, Suffix: suffix}}
	if total >= 0 {
		p.report.Total = &total
	}
	r.mu.Lock()
	p.ordinal = int32(len(r.reports))
	r.reports = append(r.reports, p)
	r.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p, p.save(ctx)
}

// Add adds to what is done. It saves if the last save is older than Config.ProgressInterval;
// whatever was not saved is saved when the report or the task ends.
func (p *Progress) Add(ctx context.Context, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Done += n
	p.dirty = true
	if time.Since(p.saved) < p.run.client.cfg.ProgressInterval {
		return nil
	}
	return p.save(ctx)
}

// Complete ends the report and saves it.
func (p *Progress) Complete(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.State = Completed
	return p.save(ctx)
}

func (p *Progress) flush(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dirty {
		return nil
	}
	return p.save(ctx)
}

func (p *Progress) save(ctx context.Context) error {
	params := db.ProgressReportSaveParams{
		TaskID: pgUUID(p.run.ID), Ordinal: p.ordinal, Message: p.report.Message, Code: p.report.Code,
		State: string(p.report.State), Done: p.report.Done, Holder: pgUUID(p.run.holder), Attempt: int32(p.run.Attempt),
		Suffix: pgtype.Text{String: p.report.Suffix, Valid: p.report.Suffix != ""},
	}
	if p.report.Total != nil {
		params.Total = pgtype.Int8{Int64: *p.report.Total, Valid: true}
	}
	n, err := send(ctx, "save progress", func(ctx context.Context) (int64, error) {
		return p.run.client.q.ProgressReportSave(ctx, p.run.client.db, params)
	})
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("save progress: %w", ErrLockLost)
	}
	p.saved, p.dirty = time.Now(), false
	return nil
}

// reported reports whether there are progress reports.
func (r *Run) reported() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.reports) > 0
}

// unsaved reports whether throttling has held anything back.
func (r *Run) unsaved() bool {
	r.mu.Lock()
	reports := r.reports
	r.mu.Unlock()
	return slices.ContainsFunc(reports, func(p *Progress) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.dirty
	})
}

// flush saves what throttling held back.
func (r *Run) flush(ctx context.Context) error {
	r.mu.Lock()
	reports := r.reports
	r.mu.Unlock()
	var errs []error
	for _, p := range reports {
		errs = append(errs, p.flush(ctx))
	}
	return errors.Join(errs...)
}

// clamp keeps a size within what the database's type holds.
func clamp(n int) int32 { return int32(min(max(n, 0), math.MaxInt32)) }
