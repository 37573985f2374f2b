package tasking

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

// State is where a task stands. docs/states.md has the graph.
type State string

// The states, as in Pulp.
const (
	Waiting   State = "waiting"
	Skipped   State = "skipped"
	Running   State = "running"
	Canceling State = "canceling"
	Completed State = "completed"
	Failed    State = "failed"
	Canceled  State = "canceled"
)

// States are all states that a task can be in.
var States = []State{Waiting, Running, Canceling, Completed, Failed, Canceled, Skipped}

// Final reports whether a task in this state will never change again.
func (s State) Final() bool {
	return s == Completed || s == Failed || s == Canceled || s == Skipped
}

// Valid reports whether there is such a state.
func (s State) Valid() bool {
	return s == Waiting || s == Running || s == Canceling || s.Final()
}

// Domain is the one domain of an installation; the database's function domain_own names it too. Every task shares it;
// a task that reserves it exclusively runs alone.
const Domain = domainPrefix + "018f0000-0000-7000-8000-000000000001"

// domainPrefix is what the database knows a domain by.
const domainPrefix = "prn:core.domain:"

// Errors that callers may want to tell apart.
var (
	// ErrNotFound means that there is no such task, group or schedule (any more).
	ErrNotFound = errors.New("not found")
	// ErrLockLost means that the caller does not hold the task (any more): nothing was written.
	ErrLockLost = errors.New("task lock lost")
	// ErrUnfinished means that a task is not final yet.
	ErrUnfinished = errors.New("not finished")
	// ErrTaken: another schedule has the name.
	ErrTaken = errors.New("the name is taken")
	// ErrInvalid is wrapped by every error about a request that can never be dispatched. What is wrong with it is one InvalidError,
	// or several that are joined; in a child process it is the text alone.
	ErrInvalid = errors.New("invalid request")
	// ErrUnknownType means that the registry has no task type of that name. It wraps ErrInvalid.
	ErrUnknownType = invalid("unknown task type")
)

// Reasons in the error of a task that was not ended by its own function, in Pulp's words.
const (
	ReasonMissing  = "Worker has gone missing."
	ReasonBusy     = "Resources temporarily unavailable."
	ReasonShutdown = "Aborted during worker shutdown."
)

// Error is why a task failed: Description after an error of its function, Reason after an abort. The database keeps 64 KiB of
// each text.
type Error struct {
	Description string  `json:"description,omitempty"`
	Traceback   *string `json:"traceback,omitempty"`
	Code        string  `json:"error_code,omitempty"`
	Reason      string  `json:"reason,omitempty"`
}

// Error is the text for people.
func (e *Error) Error() string {
	if e.Reason != "" {
		return e.Reason
	}
	return e.Description
}

// Task is a task as the database has it.
type Task struct {
	ID            uuid.UUID         `json:"id"`
	Name          string            `json:"name"`
	State         State             `json:"state"`
	Versions      map[string]string `json:"versions"`
	CorrelationID string            `json:"logging_cid"`
	CreatedAt     time.Time         `json:"pulp_created"`
	// NotBefore is zero if the task was queued when it was dispatched.
	NotBefore   *time.Time `json:"not_before"`
	UnblockedAt *time.Time `json:"unblocked_at"`
	StartedAt   *time.Time `json:"started_at"`
	FinishedAt  *time.Time `json:"finished_at"`
	// Holder is the app status of the process that holds the task; nil if none does.
	Holder *uuid.UUID `json:"app_lock"`
	// Attempt counts the runs begun; MaxAttempts bounds them.
	Attempt     int        `json:"attempt"`
	MaxAttempts int        `json:"max_attempts"`
	Priority    int        `json:"priority"`
	Immediate   bool       `json:"immediate"`
	Deferred    bool       `json:"deferred"`
	Parent      *uuid.UUID `json:"parent_task"`
	Group       *uuid.UUID `json:"task_group"`
	// Reserved lists exclusive resources bare, shared ones as shared:NAME, the domain last.
	Reserved []string        `json:"reserved_resources_record"`
	Result   json.RawMessage `json:"result"`
	Error    *Error          `json:"error"`
	// BlockedOn is how many resources it waits for; nil if it is not queued yet.
	BlockedOn *int `json:"blocked_on"`
	// Children, Progress, Created and Usage are filled by Get, not by List.
	Children []uuid.UUID `json:"child_tasks,omitempty"`
	Progress []Report    `json:"progress_reports,omitempty"`
	Created  []string    `json:"created_resources,omitempty"`
	// Usage is what the last attempt took that ran in a process of its own; nil if none has.
	Usage *Usage `json:"usage,omitempty"`
}

// Report is a progress report.
type Report struct {
	Message string `json:"message"`
	Code    string `json:"code"`
	State   State  `json:"state"`
	// Total is nil where the end is not known.
	Total  *int64 `json:"total"`
	Done   int64  `json:"done"`
	Suffix string `json:"suffix,omitempty"`
}

func taskFromRow(t db.TaskTold) (Task, error) {
	task := Task{
		ID: t.ID.Bytes, Name: t.Name, State: State(t.State), CorrelationID: t.LoggingCid,
		CreatedAt: t.CreatedAt.Time.UTC(), NotBefore: timePtr(t.NotBefore), UnblockedAt: timePtr(t.UnblockedAt),
		StartedAt: timePtr(t.StartedAt), FinishedAt: timePtr(t.FinishedAt), Holder: uuidPtr(t.AppLock),
		Attempt: int(t.Attempt), MaxAttempts: int(t.MaxAttempts), Priority: int(t.Priority),
		Immediate: t.Immediate, Deferred: t.Deferred, Parent: uuidPtr(t.ParentTask), Group: uuidPtr(t.TaskGroup),
		Reserved: t.ReservedResourcesRecord, Result: t.Result,
	}
	if !slices.Contains(task.Reserved, Domain) {
		task.Reserved = append(task.Reserved, "shared:"+Domain)
	}
	if t.BlockedOn.Valid {
		n := int(t.BlockedOn.Int16)
		task.BlockedOn = &n
	}
	if err := json.Unmarshal(t.Versions, &task.Versions); err != nil {
		return Task{}, err
	}
	if t.Error != nil {
		if err := json.Unmarshal(t.Error, &task.Error); err != nil {
			return Task{}, err
		}
	}
	return task, nil
}

func timePtr(t pgtype.Timestamptz) *time.Time {
	if !t.Valid {
		return nil
	}
	u := t.Time.UTC()
	return &u
}

func uuidPtr(id pgtype.UUID) *uuid.UUID {
	if !id.Valid {
		return nil
	}
	u := uuid.UUID(id.Bytes)
	return &u
}

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func pgUUIDPtr(id *uuid.UUID) pgtype.UUID {
	if id == nil {
		return pgtype.UUID{}
	}
	return pgUUID(*id)
}

func pgUUIDs(ids []uuid.UUID) []pgtype.UUID {
	out := make([]pgtype.UUID, len(ids))
	for i, id := range ids {
		out[i] = pgUUID(id)
	}
	return out
}
