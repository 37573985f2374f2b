package tasking

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits of a request.
const (
	MaxResourceName = 512  // bytes
	MaxResources    = 1000 // per task
	MaxPriority     = 10000
)

// Request asks for one task.
type Request struct {
	// Name of the task type; it must be in the client's registry.
	Name string `json:"name"`
	// Args is encoded as JSON for the type's function. Default: null.
	Args any `json:"args,omitempty"`
	Options
}

// Options say how a task is dispatched. The zero value is an ordinary task for any worker.
type Options struct {
	// Exclusive and Shared name the resources that the task reserves, 1 to 512 bytes each. One named
	// both ways is exclusive. Default: none but a share of the domain.
	Exclusive []string `json:"exclusive_resources,omitempty"`
	Shared    []string `json:"shared_resources,omitempty"`
	// Immediate tasks run in the dispatching process before Dispatch returns, if their resources are
	// free and the process has an App, for at most ImmediateTimeout. Otherwise a worker takes them
	// before others.
	Immediate bool `json:"immediate,omitempty"`
	// NotDeferred keeps an immediate task from workers: if it cannot run at once, it is canceled
	// with ReasonBusy.
	NotDeferred bool `json:"not_deferred,omitempty"`
	// Group that the task belongs to. Default inside a task: that task's group.
	Group *uuid.UUID `json:"task_group,omitempty"`
	// Versions that a worker must have at least, label to PEP 440 version. Default (nil): the type's.
	Versions map[string]string `json:"versions,omitempty"`
	// Priority orders what is unblocked, higher first, from -10000 to 10000. Default: 0.
	Priority int `json:"priority,omitempty"`
	// NotBefore keeps the task out of the queues of its resources until then, so it holds nobody up
	// before. Default: at once.
	NotBefore time.Time `json:"not_before,omitzero"`
	// CorrelationID of the logs. Default: that of the task that dispatches, else a new one.
	CorrelationID string `json:"correlation_id,omitempty"`
	// Diagnostics are the profiles to make of the run, of those that the worker's Config.Diagnostics allows; none of
	// an immediate task. Default: those of the task that dispatches, else none.
	Diagnostics []string `json:"diagnostics,omitempty"`
	// Owner is the number of the user of the REST API who dispatches the task, and gets its roles. Those who have them on a
	// task that dispatches get them, too. Default: nobody.
	Owner int `json:"-"`
}

// InvalidError is one thing that is wrong with a request or a schedule. It is ErrInvalid; errors.Join joins several.
type InvalidError struct {
	// Field that is wrong, by its name in JSON; "": none, or several together.
	Field string
	// Text says what is wrong, also to who does not know the field.
	Text string
}

func invalid(format string, args ...any) error { return invalidIn("", format, args...) }

func invalidIn(field, format string, args ...any) error {
	return &InvalidError{field, fmt.Sprintf(format, args...)}
}

// Error is the text.
func (e *InvalidError) Error() string { return e.Text }

// Is says that it is ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// reservation is one resource of a request.
type reservation struct {
	resource  string
	exclusive bool
}

// reservations returns each resource once, exclusive ones first, in the order given.
func (o *Options) reservations() []reservation {
	if len(o.Exclusive)+len(o.Shared) == 0 {
		return nil
	}
	var out []reservation
	seen := make(map[string]bool, len(o.Exclusive)+len(o.Shared))
	for _, mode := range []struct {
		names     []string
		exclusive bool
	}{{o.Exclusive, true}, {o.Shared, false}} {
		for _, name := range mode.names {
			if seen[name] || (name == Domain && !mode.exclusive) {
				continue // every task shares the domain
			}
			seen[name] = true
			out = append(out, reservation{name, mode.exclusive})
		}
	}
	return out
}

// validate checks a request; the error says what is wrong and wraps ErrInvalid.
func (r Request) validate() error {
	if err := errors.Join(r.problems()...); err != nil {
		return fmt.Errorf("dispatch %s: %w", r.Name, err)
	}
	return nil
}

// problems are all that is wrong with a request, each an InvalidError.
func (r Request) problems() (errs []error) {
	bad := func(field, format string, args ...any) { errs = append(errs, invalidIn(field, format, args...)) }
	for _, mode := range []struct {
		field string
		names []string
	}{{"exclusive_resources", r.Exclusive}, {"shared_resources", r.Shared}} {
		for _, n := range mode.names {
			switch {
			case n == "":
				bad(mode.field, "a resource name is empty: name what the task reserves, or leave it out")
			case len(n) > MaxResourceName:
				bad(mode.field, "resource %.40q… has %d bytes: at most %d are possible", n, len(n), MaxResourceName)
			case !utf8.ValidString(n) || strings.ContainsRune(n, 0):
				bad(mode.field, "resource %q: must be UTF-8 without zero bytes", n)
			case strings.HasPrefix(n, "shared:"):
				bad(mode.field, "resource %q: a name must not begin with \"shared:\"; list it among the shared resources", n)
			}
		}
	}
	if n := len(r.Exclusive) + len(r.Shared); n > MaxResources {
		bad("", "%d resources: a task may reserve at most %d", n, MaxResources)
	}
	if r.NotDeferred && !r.Immediate {
		bad("", "neither immediate nor deferred: such a task could never run; allow one of them")
	}
	if r.Priority < -MaxPriority || r.Priority > MaxPriority {
		bad("priority", "priority %d: must be between %d and %d", r.Priority, -MaxPriority, MaxPriority)
	}
	if len(r.CorrelationID) > 255 || !utf8.ValidString(r.CorrelationID) || strings.ContainsRune(r.CorrelationID, 0) {
		bad("correlation_id", "correlation id %.40q: must be UTF-8 of at most 255 bytes", r.CorrelationID)
	}
	if r.NotDeferred && !r.NotBefore.IsZero() {
		bad("", "not before %s, and not deferred: such a task could never run", r.NotBefore.Format(time.RFC3339))
	}
	if err := checkVersions(r.Versions); err != nil {
		bad("versions", "%v", err)
	}
	if err := checkProfiles(r.Diagnostics); err != nil {
		bad("diagnostics", "%v", err)
	}
	return errs
}

// UnmarshalJSON reads a request as `pith task dispatch` takes it: deferred may be given instead of
// not_deferred, and an unknown field is an error.
func (r *Request) UnmarshalJSON(data []byte) error {
	type plain Request
	in := struct {
		*plain
		Args     json.RawMessage `json:"args"`
		Deferred *bool           `json:"deferred"`
	}{plain: (*plain)(r)}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return err
	}
	if in.Args != nil {
		r.Args = in.Args
	}
	if in.Deferred != nil {
		r.NotDeferred = !*in.Deferred
	}
	return nil
}
