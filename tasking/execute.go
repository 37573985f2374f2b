package tasking

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/isolate"
)

// Why the context of a task ended before its function did; see context.Cause.
var (
	// ErrCanceled: somebody canceled the task.
	ErrCanceled = errors.New("task canceled")
	// ErrShutdown: its worker is shutting down and the grace interval is over.
	ErrShutdown = errors.New("worker is shutting down")
	// ErrLeaseLost: the process that held the task may be declared missing at any moment, so the task
	// is not its own any more, and nothing of it is recorded.
	ErrLeaseLost = errors.New("lease lost")
	// ErrTimedOut: an immediate task ran longer than ImmediateTimeout.
	ErrTimedOut = errors.New("immediate task timed out")
)

// Outcome is how an attempt ended: completed with a result, or failed with an error.
type Outcome struct {
	State  State
	Result json.RawMessage
	Error  *Error
	// Reported says that the attempt has made progress reports.
	Reported bool
	// Usage is what it took, if it had a process of its own; else nil.
	Usage *Usage
}

// Holder is the process that holds a task.
type Holder struct {
	// ID is its app status.
	ID uuid.UUID
	// Lost is closed when its lease ends. Default: it never does.
	Lost <-chan struct{}
	// Children run isolated tasks. Default: such a task fails.
	Children *isolate.Pool
}

// Execute runs the function of a claimed task in this goroutine, or in a child process, for whoever holds the
// task, and tells how it ended. It moves nothing in the database: that is the holder's to do, with the claim's
// attempt. When the holder's lease ends, ctx should end with ErrLeaseLost as its cause. A panic is a failure with
// its stack as traceback.
func (c *Client) Execute(ctx context.Context, h Holder, claim Claim) Outcome {
	e, ok := c.cfg.Registry.types[claim.Name]
	if !ok || e.run == nil {
		return failure(fmt.Errorf("task type %s is not known here", claim.Name), "")
	}
	if claim.Immediate {
		if !e.cfg.Immediate {
			return Outcome{State: Failed, Error: &Error{
				Description: "[PLP0023] Immediate tasks must be async functions: " + claim.Name + " is not declared immediate.",
				Traceback:   new(string), Code: "PLP0023",
			}}
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, ImmediateTimeout, ErrTimedOut)
		defer cancel()
	}
	args, err := c.keys.open(claim.Args)
	if err != nil {
		return failure(err, "")
	}
	claim.Diagnostics, claim.Args, _ = asDiagnosed(args)
	keep := &held{client: c, claim: claim, holder: h.ID, lost: h.Lost}
	run := newRun(claim, keep, c.cfg.ProgressInterval, c.cfg.Log.Handler())
	run.client = c
	if !claim.Immediate {
		run.profiles = slices.DeleteFunc(slices.Clone(claim.Diagnostics), func(name string) bool { return !slices.Contains(c.cfg.Diagnostics, name) })
	}

	out := c.call(ctx, h, e, run)
	out.Reported = keep.reported.Load()
	if out.State == Completed {
		return out
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, ErrTimedOut):
		out.Error = &Error{
			Description: fmt.Sprintf("[PLP0024] Immediate task %s timed out after %d seconds.", claim.ID, int(ImmediateTimeout.Seconds())),
			Traceback:   out.Error.Traceback, Code: "PLP0024",
		}
	case errors.Is(cause, ErrShutdown):
		out.Error = &Error{Reason: ReasonShutdown}
	}
	return out
}

func newRun(claim Claim, keep keeper, interval time.Duration, records slog.Handler) *Run {
	run := &Run{Claim: claim, keep: keep, interval: interval, records: records}
	run.Log = slog.New((*runHandler)(run))
	return run
}

// saveLast saves what throttling held back: whatever has ended ctx, it is still worth it, until lost.
func (r *Run) saveLast(ctx context.Context, lost <-chan struct{}) {
	if !r.unsaved() {
		return
	}
	last, cancel := whileHeld(ctx, lost)
	defer cancel()
	last, done := context.WithTimeout(last, statementTimeout)
	defer done()
	if err := r.flush(last); err != nil {
		r.Log.Warn("save last progress failed", "err", err)
	}
}

// call runs the function, here or in a child process.
func (c *Client) call(ctx context.Context, h Holder, e entry, run *Run) Outcome {
	if e.cfg.Isolated != nil && !run.Immediate {
		return c.isolated(ctx, h, *e.cfg.Isolated, run)
	}
	defer run.saveLast(ctx, h.Lost)
	return run.profiled(ctx, func() Outcome { return e.perform(ctx, run) })
}

// perform calls the function.
func (e entry) perform(ctx context.Context, run *Run) (out Outcome) {
	defer func() {
		if p := recover(); p != nil {
			out = failure(fmt.Errorf("panic: %v", p), string(debug.Stack()))
		}
	}()
	result, err := e.run(ctx, run, run.Args)
	if err != nil {
		return failure(err, traceback(err))
	}
	return Outcome{State: Completed, Result: result}
}

func failure(err error, trace string) Outcome {
	return Outcome{State: Failed, Error: &Error{Description: strings.ToValidUTF8(err.Error(), "�"), Traceback: &trace}}
}

// RefusedOutcome makes a failure that can be stored of the error by which the database has refused to
// store an outcome; it is not ok for any other error.
func RefusedOutcome(err error) (out Outcome, ok bool) {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	// 22: data exception, 54: program limit exceeded.
	if !ok || (!strings.HasPrefix(pg.Code, "22") && !strings.HasPrefix(pg.Code, "54")) {
		return Outcome{}, false
	}
	return failure(fmt.Errorf("the database refused the outcome: %s (SQLSTATE %s)", pg.Message, pg.Code), ""), true
}

// traceback lists the chain of wrapped errors with their types, outermost first: Go's errors carry
// no stack.
func traceback(err error) string {
	var b strings.Builder
	for ; err != nil; err = errors.Unwrap(err) {
		fmt.Fprintf(&b, "%T: %s\n", err, strings.ToValidUTF8(err.Error(), "�"))
	}
	return b.String()
}

// runImmediate runs a task that dispatch has given to this process, and records how it ended, however
// long the database is away, as long as the lease lasts. If the lease ends or the process dies, the
// task stays running until its app status is swept, and then fails.
//
// held is what whileHeld makes of ctx: the end is recorded even if the caller has gone away.
func (c *Client) runImmediate(ctx, held context.Context, by caller, p db.TaskDispatchParams, d Dispatched) (Dispatched, error) {
	claim := Claim{
		ID: d.ID, Attempt: 1, Name: p.KindNames[0], Args: json.RawMessage(p.Arguments[0]), CorrelationID: p.Cids[0],
		Group: uuidPtr(p.Groups[0]), Parent: by.parent, Immediate: true, Reserved: recorded(p), CreatedAt: d.CreatedAt,
	}
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(held, func() { stop(ErrLeaseLost) })()
	out := c.Execute(running, Holder{ID: *by.holder, Lost: by.lost}, claim)
	ends, err := c.finish(held, *by.holder, claim, out)
	if failed, ok := RefusedOutcome(err); ok {
		failed.Reported = out.Reported
		out = failed
		ends, err = c.finish(held, *by.holder, claim, out)
	}
	if err != nil && held.Err() != nil {
		err = fmt.Errorf("%w: %w", ErrLockLost, ErrLeaseLost)
	}
	if err != nil {
		return d, fmt.Errorf("finish %s: %w", claim.Name, err)
	}
	d.State, d.Error = ends, out.Error
	return d, nil
}

// recorded is what the database records of the resources of a dispatch of one task.
func recorded(p db.TaskDispatchParams) []string {
	var exclusive, shared []string
	for i, r := range p.Resources {
		if p.Exclusives[i] {
			exclusive = append(exclusive, r)
		} else if r != Domain {
			shared = append(shared, "shared:"+r)
		}
	}
	return append(exclusive, shared...)
}

// whileHeld makes a context for what must be sent even when ctx has ended. It ends when the lease of
// the process does.
func whileHeld(ctx context.Context, lost <-chan struct{}) (context.Context, context.CancelFunc) {
	held, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if lost == nil {
		return held, cancel
	}
	go func() {
		select {
		case <-lost:
			cancel()
		case <-held.Done():
		}
	}()
	return held, cancel
}

// finish records the outcome of one claim and answers the state that the task is in now. Those that are made at
// the same time share statements.
func (c *Client) finish(ctx context.Context, holder uuid.UUID, claim Claim, out Outcome) (State, error) {
	failed, err := EncodeError(out.Error)
	if err != nil {
		return "", err
	}
	a, err := c.immediate.do(ctx, ctx, question{
		party: party{holder: pgUUID(holder), end: true},
		end:   &end{claim, out, failed},
	})
	if err != nil {
		return "", err
	}
	return a.state, a.err
}

// maxErrorText is how many bytes of each text of an error are kept.
const maxErrorText = 64 << 10

// shortened is a text as far as it is kept.
func shortened(text string) string {
	if len(text) <= maxErrorText {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes in all)", strings.ToValidUTF8(text[:maxErrorText], ""), len(text))
}

// EncodeError is an error as the database stores it: "" for none. Of each text 64 KiB are kept.
func EncodeError(e *Error) (string, error) {
	if e == nil {
		return "", nil
	}
	short := *e
	short.Description, short.Reason = shortened(e.Description), shortened(e.Reason)
	if e.Traceback != nil {
		short.Traceback = new(shortened(*e.Traceback))
	}
	raw, err := json.Marshal(short)
	if err != nil {
		return "", fmt.Errorf("encode error: %w", err)
	}
	return string(raw), nil
}

// waitPause is the pause before look n (from 0) for the end of a task: quick at first, then a second.
func waitPause(n int) time.Duration {
	return min(20*time.Millisecond<<min(n, 6), time.Second)
}
