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
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

// Claim is a task as the process that holds it got it.
type Claim struct {
	ID uuid.UUID
	// Attempt counts the runs begun. With ID it is what guards the task's own row; see Run.Token for effects
	// outside of the database.
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
	// Diagnostics are the profiles that were wished for, known once the arguments are decrypted.
	Diagnostics []string
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

	client   *Client // nil in a child process
	keep     keeper
	interval time.Duration // between two saves of a progress report
	profiles []string      // to make of the run
	records  slog.Handler  // takes Log's

	mu      sync.Mutex
	reports []*Progress
	created int32

	described sync.Once
	describes slog.Handler // records, with the task's attributes
}

// keeper writes what a run says of its task, while the task is held: into the database, or, in a child process,
// through its worker.
type keeper interface {
	dispatch(ctx context.Context, r Request) (Dispatched, error)
	dispatchMany(ctx context.Context, reqs []Request) ([]Dispatched, error)
	saveProgress(ctx context.Context, ordinal int32, r Report) error
	saveCreated(ctx context.Context, ordinal int32, prn string) error
	saveProfile(ctx context.Context, name string, data []byte) error
	token(ctx context.Context) (int64, error)
	getGroup(ctx context.Context) (Group, error)
	closeGroup(ctx context.Context) error
}

// held is the keeper of a task that this process holds.
type held struct {
	client *Client
	claim  Claim
	holder uuid.UUID
	lost   <-chan struct{} // closed when the holder's lease has ended
	// reported: progress may have been saved.
	reported atomic.Bool
}

// runHandler is the handler of a Run's Log. Most tasks log nothing, so it makes the task's attributes when
// the first record comes.
type runHandler Run

func (h *runHandler) handler() slog.Handler {
	h.described.Do(func() {
		h.describes = h.records.WithAttrs([]slog.Attr{
			slog.String("task_name", h.Name), slog.String("task", h.ID.String()), slog.String("correlation_id", h.CorrelationID),
		})
	})
	return h.describes
}

// Enabled asks the handler of the process that holds the task.
func (h *runHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.records.Enabled(ctx, level)
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
	return r.keep.dispatch(ctx, req)
}

// DispatchMany hands out child tasks as Client.DispatchMany does.
func (r *Run) DispatchMany(ctx context.Context, reqs []Request) ([]Dispatched, error) {
	return r.keep.dispatchMany(ctx, reqs)
}

func (h *held) dispatch(ctx context.Context, req Request) (Dispatched, error) {
	return h.client.dispatch(ctx, h.caller(), req)
}

func (h *held) dispatchMany(ctx context.Context, reqs []Request) ([]Dispatched, error) {
	return h.client.dispatchMany(ctx, h.caller(), reqs)
}

func (h *held) caller() caller {
	c := &h.claim
	return caller{holder: &h.holder, lost: h.lost, parent: &c.ID, attempt: c.Attempt, group: c.Group, correlationID: c.CorrelationID, diagnostics: c.Diagnostics}
}

// Client is the client of the process that runs the task. It is nil in a child process, which has no database:
// see TypeConfig.Isolated.
func (r *Run) Client() *Client { return r.client }

// Token returns the fencing token of this run, for effects outside of the database: a number that is greater
// than that of every earlier run of any task that reserved the same resource exclusively, and of every earlier
// attempt of this one. An outside system that remembers the greatest one per resource can refuse a run that was
// fenced. It asks the database, and returns ErrLockLost if the task is not held any more.
func (r *Run) Token(ctx context.Context) (int64, error) { return r.keep.token(ctx) }

func (h *held) token(ctx context.Context) (int64, error) {
	token, err := send(ctx, "read fencing token", func(ctx context.Context) (int64, error) {
		return h.client.q.TaskToken(ctx, h.client.db, db.TaskTokenParams{
			ID: pgUUID(h.claim.ID), Holder: pgUUID(h.holder), Attempt: int32(h.claim.Attempt),
		})
	})
	if errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("read fencing token: %w", ErrLockLost)
	}
	return token, err
}

// errNoGroup: the task has none.
var errNoGroup = invalid("the task belongs to no group")

// GetGroup reads the task's own group. It returns ErrInvalid if the task belongs to none.
func (r *Run) GetGroup(ctx context.Context) (Group, error) { return r.keep.getGroup(ctx) }

// CloseGroup says that all tasks of this task's own group are dispatched. It returns ErrInvalid if the task
// belongs to none.
func (r *Run) CloseGroup(ctx context.Context) error { return r.keep.closeGroup(ctx) }

func (h *held) getGroup(ctx context.Context) (Group, error) {
	if h.claim.Group == nil {
		return Group{}, errNoGroup
	}
	return h.client.GetGroup(ctx, *h.claim.Group)
}

func (h *held) closeGroup(ctx context.Context) error {
	if h.claim.Group == nil {
		return errNoGroup
	}
	return h.client.CloseGroup(ctx, *h.claim.Group)
}

// AddCreatedResource records the PRN of something that the task has created, in order.
func (r *Run) AddCreatedResource(ctx context.Context, prn string) error {
	r.mu.Lock()
	ordinal := r.created
	r.created++
	r.mu.Unlock()
	return r.keep.saveCreated(ctx, ordinal, prn)
}

func (h *held) saveCreated(ctx context.Context, ordinal int32, prn string) error {
	n, err := send(ctx, "record created resource", func(ctx context.Context) (int64, error) {
		return h.client.q.CreatedResourceSave(ctx, h.client.db, db.CreatedResourceSaveParams{
			TaskID: pgUUID(h.claim.ID), Ordinal: ordinal, Resource: prn, Holder: pgUUID(h.holder), Attempt: int32(h.claim.Attempt),
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
	if time.Since(p.saved) < p.run.interval {
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
	if err := p.run.keep.saveProgress(ctx, p.ordinal, p.report); err != nil {
		return err
	}
	p.saved, p.dirty = time.Now(), false
	return nil
}

func (h *held) saveProgress(ctx context.Context, ordinal int32, r Report) error {
	h.reported.Store(true)
	params := db.ProgressReportSaveParams{
		TaskID: pgUUID(h.claim.ID), Ordinal: ordinal, Message: r.Message, Code: r.Code,
		State: string(r.State), Done: r.Done, Holder: pgUUID(h.holder), Attempt: int32(h.claim.Attempt),
		Suffix: pgtype.Text{String: r.Suffix, Valid: r.Suffix != ""},
	}
	if r.Total != nil {
		params.Total = pgtype.Int8{Int64: *r.Total, Valid: true}
	}
	n, err := send(ctx, "save progress", func(ctx context.Context) (int64, error) {
		return h.client.q.ProgressReportSave(ctx, h.client.db, params)
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("save progress: %w", ErrLockLost)
	}
	return err
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
