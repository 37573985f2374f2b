package tasking

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/textwire"
)

// codeParentLost is what the database raises when a task that is not held any more dispatches.
const codeParentLost = "PT001"

// Dispatched is a task that was just dispatched.
type Dispatched struct {
	ID uuid.UUID `json:"id"`
	// State is waiting, or where an immediate task has ended: final.
	State     State     `json:"state"`
	CreatedAt time.Time `json:"pulp_created"`
	// Error is why an immediate task failed or was canceled; else nil.
	Error *Error `json:"error,omitempty"`
}

// caller is on whose behalf a dispatch happens: outside a task nobody's.
type caller struct {
	holder        *uuid.UUID
	lost          <-chan struct{} // closed when the holder's lease has ended
	parent        *uuid.UUID
	attempt       int // of the parent
	group         *uuid.UUID
	correlationID string
	diagnostics   []string
}

func (c *Client) outside() caller {
	if c.cfg.App == nil || !c.cfg.App.Leased() {
		return caller{}
	}
	id := c.cfg.App.ID()
	return caller{holder: &id, lost: c.cfg.App.Lost()}
}

// Dispatch hands out one task. An immediate one whose resources are free runs before Dispatch
// returns; how it ended is in State and Error. Once such a task was sent, the call does not end before
// it is known what became of it, or the process's lease has ended, even if ctx ends or the database is
// away. If the lease has ended before, the task is left to workers. The errors are ErrInvalid for a request that
// can never be dispatched, ErrUnknownType, ErrOwnerGone, appstatus.ErrLost, and what the database says.
//
// Calls that are made at the same time share statements: while one is under way, the others wait for it, a
// tenth of a second at most, and go together. If ctx ends while a call waits, nothing is sent. Each call has
// its own outcome; a task is in the database, or not, whatever becomes of the others.
func (c *Client) Dispatch(ctx context.Context, r Request) (Dispatched, error) {
	return c.dispatch(ctx, c.outside(), r)
}

func (c *Client) dispatch(ctx context.Context, by caller, r Request) (Dispatched, error) {
	p, err := c.prepare(by, []Request{r})
	if err != nil {
		return Dispatched{}, err
	}
	held, together := ctx, c.plain
	if p.RunHere && r.Immediate {
		// The task may be given to this process, which must hear of it, or nobody would run it.
		var done context.CancelFunc
		held, done = whileHeld(ctx, by.lost)
		defer done()
		together = c.immediate
	} else if by.parent == nil {
		// It makes no difference to whom a task is not given, and all go together.
		p.Dispatcher, p.RunHere = pgtype.UUID{}, false
	}
	var d placed
	if by.parent == nil {
		var a answer
		a, err = together.do(ctx, held, question{party: party{holder: p.Dispatcher}, dispatch: &p})
		d = a.placed
	} else {
		d, err = c.dispatchAlone(ctx, held, p)
	}
	switch {
	case errors.Is(err, errAppGone) && by.parent == nil:
		// Nothing was dispatched. This process is no holder any more, as its next beat will tell it: workers are to run the task.
		if !r.NotDeferred {
			return c.dispatch(ctx, caller{}, r)
		}
	case err != nil && held != ctx && held.Err() != nil:
		err = appstatus.ErrLost
	}
	if err != nil {
		return Dispatched{}, fmt.Errorf("dispatch %s: %w", r.Name, err)
	}
	switch {
	case d.ours:
		return c.runImmediate(ctx, held, by, p, d.Dispatched)
	case d.State == Canceled && r.NotDeferred:
		d.Error = &Error{Reason: ReasonBusy}
	default:
		c.wake()
	}
	return d.Dispatched, nil
}

// placed is a task that was just dispatched. It is ours if the database gave it to this process, to run it at
// once.
type placed struct {
	Dispatched
	ours bool
}

// dispatchAlone sends a dispatch as a statement of its own. If held is not ctx, it is sent even when ctx ends.
func (c *Client) dispatchAlone(ctx, held context.Context, p db.TaskDispatchParams) (placed, error) {
	limit := resendLimit
	var conn *pgxpool.Conn
	if held != ctx {
		if err := ctx.Err(); err != nil {
			return placed{}, err
		}
		// Until something is sent, ctx may end it: the pool may be full of those who wait here.
		var err error
		if conn, err = send(ctx, "connect", c.db.Acquire); err != nil {
			return placed{}, err
		}
		limit = 0
	}
	out, ours, err := c.sendDispatch(held, limit, conn, p)
	if err != nil {
		return placed{}, err
	}
	return placed{out[0], ours[out[0].ID]}, nil
}

// DispatchTx hands out tasks within the caller's transaction: they exist exactly if it commits. The
// locks of their resources' queues are held until then, so the transaction should end soon; with a task
// that reserves the domain exclusively, everybody waits for it. Hand out all tasks in one call: the
// locks of two calls are not ordered, and PostgreSQL may have to end one of two such transactions.
// Immediate tasks are left to workers, since they cannot run before the commit. The transaction must
// be READ COMMITTED: in a stricter one the database refuses.
func (c *Client) DispatchTx(ctx context.Context, tx pgx.Tx, rs ...Request) ([]Dispatched, error) {
	by := c.outside()
	by.holder = nil
	p, err := c.prepareMany(by, rs)
	if err != nil {
		return nil, err
	}
	rows, err := c.place(ctx, textwire.Over(tx), p)
	if err != nil {
		return nil, fmt.Errorf("dispatch %d tasks: %w", len(rs), explainDispatch(err))
	}
	return dispatched(p, rows), nil
}

// DispatchMany hands out thousands of tasks in one statement, all or none, in their order. Immediate
// tasks among them are left to workers, before others.
func (c *Client) DispatchMany(ctx context.Context, rs []Request) ([]Dispatched, error) {
	return c.dispatchMany(ctx, c.outside(), rs)
}

func (c *Client) dispatchMany(ctx context.Context, by caller, rs []Request) ([]Dispatched, error) {
	if len(rs) == 0 {
		return nil, nil
	}
	if by.parent == nil {
		by.holder = nil
	}
	p, err := c.prepareMany(by, rs)
	if err != nil {
		return nil, err
	}
	out, _, err := c.sendDispatch(ctx, resendLimit, nil, p)
	if err != nil {
		return nil, fmt.Errorf("dispatch %d tasks: %w", len(rs), err)
	}
	c.wake()
	return out, nil
}

func (c *Client) prepareMany(by caller, rs []Request) (db.TaskDispatchParams, error) {
	for _, r := range rs {
		if r.NotDeferred {
			return db.TaskDispatchParams{}, fmt.Errorf("dispatch %s: %w", r.Name,
				invalid("a task that may not be deferred is dispatched by Dispatch, on its own and outside a transaction"))
		}
	}
	p, err := c.prepare(by, rs)
	// Claiming on dispatch is for the single task that Dispatch runs at once.
	p.RunHere = false
	return p, err
}

// errBusy: a statement of several callers would have had to wait for a queue's lock.
var errBusy = errors.New("the queue of a resource is locked")

// sendDispatch sends a dispatch until it is known to be in the database. Ours are the tasks that the database
// gave to this process, to run them at once. The first send goes by conn, if there is one.
func (c *Client) sendDispatch(ctx context.Context, limit time.Duration, conn *pgxpool.Conn, p db.TaskDispatchParams) (out []Dispatched, ours map[uuid.UUID]bool, err error) {
	out, err = sendVia(ctx, limit, c.db, conn, func(ctx context.Context, via db.DBTX) ([]Dispatched, error) {
		ours = map[uuid.UUID]bool{}
		rows, err := c.place(ctx, via, p)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.ConstraintName == "task_pkey" {
			// An earlier send was committed, all of it, and its answer lost. Workers may have moved
			// the tasks on since then.
			states, err := c.q.TaskStates(ctx, via, p.IDs)
			if err != nil {
				return nil, err
			}
			rows = rows[:0]
			for _, s := range states {
				if State(s.State) == Running && s.AtOnce && s.AppLock == p.Dispatcher {
					ours[s.ID.Bytes] = true
				}
				rows = append(rows, row{s.ID, s.State, s.CreatedAt})
			}
			return dispatched(p, rows), nil
		}
		if p.Impatient {
			err = impatient(err)
		}
		if err != nil {
			return nil, explainDispatch(err)
		}
		for _, r := range rows {
			if State(r.state) == Running {
				ours[r.id.Bytes] = true
			}
		}
		return dispatched(p, rows), nil
	})
	return out, ours, err
}

// impatient makes of an error of a statement that may not wait for locks one that says so for good.
func impatient(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "55P03" {
		return errBusy
	}
	return err
}

// errAppGone: the process that was to hold a task has no row any more.
var errAppGone = fmt.Errorf("run it here: %w", appstatus.ErrLost)

// ErrOwnerGone means that there is no user of the id in Options.Owner, any more.
var ErrOwnerGone = errors.New("the owner does not exist")

func explainDispatch(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch {
	case pg.Code == codeParentLost:
		return fmt.Errorf("%w: %s", ErrLockLost, pg.Message)
	case pg.ConstraintName == "task_app_lock_fkey":
		return errAppGone
	case pg.ConstraintName == "user_role_user_fkey":
		return ErrOwnerGone
	case pg.ConstraintName == "task_group_fkey":
		return fmt.Errorf("task group: %w", ErrNotFound)
	}
	return err
}

// busyError is the error of a task that had to run at once and could not, as the database stores it.
const busyError = `{"reason": "` + ReasonBusy + `"}`

// row is what the database tells of a dispatched task.
type row struct {
	id        pgtype.UUID
	state     string
	createdAt pgtype.Timestamptz
}

// place sends a dispatch once.
func (c *Client) place(ctx context.Context, via db.DBTX, p db.TaskDispatchParams) ([]row, error) {
	texts, err := c.q.TaskDispatch(ctx, via, p)
	if err != nil {
		return nil, err
	}
	var records textwire.Records
	rows := make([]row, len(texts))
	for i, text := range texts {
		if err := records.Scan(text, &rows[i].id, &rows[i].state, &rows[i].createdAt); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// dispatched lays out what the database tells of dispatched tasks in their order.
func dispatched(p db.TaskDispatchParams, rows []row) []Dispatched {
	out := make([]Dispatched, len(p.IDs))
	// As a rule the rows come in the order of the tasks.
	var at map[[16]byte]int
	for i, r := range rows {
		if i >= len(p.IDs) || r.id.Bytes != p.IDs[i].Bytes {
			if at == nil {
				at = make(map[[16]byte]int, len(p.IDs))
				for i, id := range p.IDs {
					at[id.Bytes] = i
				}
			}
			i = at[r.id.Bytes]
		}
		out[i] = Dispatched{ID: r.id.Bytes, State: State(r.state), CreatedAt: r.createdAt.Time.UTC()}
	}
	return out
}

// prepare validates requests and lays them out as the arrays of one statement.
func (c *Client) prepare(by caller, rs []Request) (db.TaskDispatchParams, error) {
	n := len(rs)
	p := db.TaskDispatchParams{
		Dispatcher: pgUUIDPtr(by.holder), Parent: pgUUIDPtr(by.parent), ParentAttempt: int32(by.attempt), Busy: busyError, RunHere: by.holder != nil,
		IDs: make([]pgtype.UUID, 0, n), Kinds: make([]int32, 0, n), Arguments: make([]string, 0, n),
		Cids: make([]string, 0, n), Groups: make([]pgtype.UUID, 0, n), Priorities: make([]int32, 0, n),
		Immediates: make([]bool, 0, n), Deferreds: make([]bool, 0, n), NotBefores: make([]pgtype.Timestamptz, 0, n),
	}
	var kinds kinds
	for i := range rs {
		r := &rs[i]
		e, ok := c.cfg.Registry.types[r.Name]
		if !ok {
			return p, fmt.Errorf("dispatch %q: %w; known are: %s", r.Name, ErrUnknownType, strings.Join(c.cfg.Registry.Names(), ", "))
		}
		if err := r.validate(); err != nil {
			return p, err
		}
		args, err := encodeArgs(r.Args)
		if err != nil {
			return p, fmt.Errorf("dispatch %s: %w", r.Name, err)
		}
		profiles := r.Diagnostics
		if profiles == nil {
			profiles = by.diagnostics
		}
		if args, err = withDiagnostics(args, profiles); err != nil {
			return p, fmt.Errorf("dispatch %s: %w", r.Name, err)
		}
		if args, err = c.keys.seal(args); err != nil {
			return p, fmt.Errorf("dispatch %s: %w", r.Name, err)
		}
		versions := e.cfg.Versions
		if r.Versions != nil {
			versions = r.Versions
		}
		kind, err := kinds.of(&p, r.Name, versions, e.cfg)
		if err != nil {
			return p, fmt.Errorf("dispatch %s: versions: %w", r.Name, err)
		}
		id, err := uuid.NewV7()
		if err != nil {
			return p, fmt.Errorf("dispatch %s: %w", r.Name, err)
		}
		p.IDs = append(p.IDs, pgUUID(id))
		p.Kinds = append(p.Kinds, kind)
		p.Arguments = append(p.Arguments, string(args))
		if r.Owner != 0 && p.Owners == nil {
			p.Owners = make([]int32, i, n) // nobody
		}
		if p.Owners != nil {
			p.Owners = append(p.Owners, int32(r.Owner))
		}
		p.Cids = append(p.Cids, correlationID(r.CorrelationID, by.correlationID))
		group := r.Group
		if group == nil {
			group = by.group
		}
		p.Groups = append(p.Groups, pgUUIDPtr(group))
		p.Priorities = append(p.Priorities, int32(r.Priority))
		p.Immediates = append(p.Immediates, r.Immediate)
		p.Deferreds = append(p.Deferreds, !r.NotDeferred)
		p.NotBefores = append(p.NotBefores, pgtype.Timestamptz{Time: r.NotBefore, Valid: !r.NotBefore.IsZero()})
		for _, res := range r.reservations() {
			p.Reserving = append(p.Reserving, int32(i+1))
			p.Resources = append(p.Resources, res.resource)
			p.Exclusives = append(p.Exclusives, res.exclusive)
		}
		// A type without a function is declared here and run elsewhere.
		p.RunHere = p.RunHere && e.run != nil
		if r.NotDeferred && !p.RunHere {
			if c.cfg.App != nil && by.holder == nil {
				return p, fmt.Errorf("dispatch %s: %w", r.Name, appstatus.ErrLost)
			}
			return p, fmt.Errorf("dispatch %s: %w", r.Name,
				invalid("a task that may not be deferred runs in this process, which needs Config.App and the type's function"))
		}
	}
	return p, nil
}

// kinds numbers the kinds of the tasks of one dispatch, from 1.
type kinds struct {
	numbers map[[2]string]int32 // if there are several
	// last is the last name that was asked for without versions; its number is 0 if there was none.
	last       string
	lastNumber int32
}

// of answers the number of a kind; a new one is added to p.
func (k *kinds) of(p *db.TaskDispatchParams, name string, versions map[string]string, cfg TypeConfig) (int32, error) {
	if len(versions) == 0 && k.lastNumber != 0 && k.last == name {
		return k.lastNumber, nil
	}
	needs := "{}"
	if len(versions) > 0 {
		raw, err := json.Marshal(versions)
		if err != nil {
			return 0, err
		}
		needs = string(raw)
	}
	number := k.numbers[[2]string{name, needs}]
	if len(p.KindNames) == 1 && p.KindNames[0] == name && p.KindVersions[0] == needs {
		number = 1
	}
	if number == 0 {
		p.KindNames = append(p.KindNames, name)
		p.KindVersions = append(p.KindVersions, needs)
		p.KindAttempts = append(p.KindAttempts, int32(cfg.MaxAttempts))
		p.KindBackoffs = append(p.KindBackoffs, strconv.FormatFloat(cfg.Backoff.Seconds(), 'f', 6, 64)+" seconds")
		number = int32(len(p.KindNames))
		if number == 2 {
			k.numbers = map[[2]string]int32{{p.KindNames[0], p.KindVersions[0]}: 1}
		}
		if number > 1 {
			k.numbers[[2]string{name, needs}] = number
		}
	}
	if len(versions) == 0 {
		k.last, k.lastNumber = name, number
	}
	return number, nil
}

func correlationID(choices ...string) string {
	if i := slices.IndexFunc(choices, func(s string) bool { return s != "" }); i >= 0 {
		return choices[i]
	}
	id := uuid.New()
	return hex.EncodeToString(id[:])
}

func encodeArgs(args any) (json.RawMessage, error) {
	raw, ok := args.(json.RawMessage)
	if ok && !json.Valid(raw) {
		var none any
		return nil, invalidIn("args", "arguments are not JSON: %s", untold(json.Unmarshal(raw, &none)))
	}
	if !ok {
		var err error
		if raw, err = json.Marshal(args); err != nil {
			return nil, invalidIn("args", "arguments cannot be encoded as JSON: %s", untold(err))
		}
	}
	if !utf8.Valid(raw) {
		return nil, invalidIn("args", "arguments are not UTF-8 at byte %d", invalidUTF8(raw))
	}
	return raw, nil
}
