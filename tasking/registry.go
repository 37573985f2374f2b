package tasking

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	pep440 "github.com/aquasecurity/go-pep440-version"
)

// TypeConfig holds the options of a task type. The zero value is Pulp's default: not immediate,
// never retried, any version.
type TypeConfig struct {
	// Versions a worker must have at least, component label to PEP 440 version, where the request
	// names none. Default: none.
	Versions map[string]string
	// Immediate says that the function is short and heeds its context, so that it may be dispatched
	// as an immediate task, with ImmediateTimeout. Default: false.
	Immediate bool
	// MaxAttempts bounds the runs of a task, up to 1000. A failed attempt releases its resources and
	// queues again when it is due. Default: 1, no retry.
	MaxAttempts int
	// Backoff is the pause before the second attempt; it doubles with each further one, up to an
	// hour. Default: 1 s where MaxAttempts is above 1.
	Backoff time.Duration
	// Dispatchable says that clients of the REST API may dispatch tasks of the type, if they may dispatch any. Default:
	// only programs may.
	Dispatchable bool
	// Isolated has each task run in a child process of the worker's program, but for those that were dispatched as
	// immediate. Default: in a goroutine of the worker.
	Isolated *Isolation
}

// Func is the function of a task type. It should return soon after ctx ends; context.Cause tells why.
// Its result is stored as JSON.
type Func[A, R any] func(ctx context.Context, run *Run, args A) (R, error)

// Type is a task type with typed arguments and results.
type Type[A, R any] struct {
	name string
	cfg  TypeConfig
	fn   Func[A, R]
}

// NewType makes a task type. A nil function declares a type that this program dispatches but does
// not run.
func NewType[A, R any](name string, fn Func[A, R], cfg TypeConfig) *Type[A, R] {
	return &Type[A, R]{name: name, cfg: cfg, fn: fn}
}

// Name is what the database knows the type by.
func (t *Type[A, R]) Name() string { return t.name }

// Request makes a request for a task of this type.
func (t *Type[A, R]) Request(args A, o Options) Request {
	return Request{Name: t.name, Args: args, Options: o}
}

// Result decodes the result of a completed task of this type.
func (t *Type[A, R]) Result(task Task) (R, error) {
	var r R
	switch {
	case task.Name != t.name:
		return r, fmt.Errorf("result of task %s: it is a %s, not a %s", task.ID, task.Name, t.name)
	case task.State != Completed && task.Error != nil:
		return r, fmt.Errorf("result of task %s: it is %s: %w", task.ID, task.State, task.Error)
	case task.State != Completed:
		return r, fmt.Errorf("result of task %s: it is %s", task.ID, task.State)
	}
	if task.Result == nil {
		return r, nil
	}
	if err := json.Unmarshal(task.Result, &r); err != nil {
		return r, fmt.Errorf("result of task %s: %w", task.ID, err)
	}
	return r, nil
}

// AnyType is a *Type[A, R] of whatever arguments and results.
type AnyType interface {
	Name() string
	entry() entry
}

type entry struct {
	cfg TypeConfig
	run func(ctx context.Context, run *Run, args json.RawMessage) (json.RawMessage, error)
}

func (t *Type[A, R]) entry() entry {
	e := entry{cfg: t.cfg}
	if t.fn == nil {
		return e
	}
	// A JSON null leaves a value as it is, unless it decodes itself.
	_, decodes := any(new(A)).(json.Unmarshaler)
	e.run = func(ctx context.Context, run *Run, raw json.RawMessage) (json.RawMessage, error) {
		var args A
		if decodes || string(raw) != "null" {
			if err := json.Unmarshal(raw, &args); err != nil {
				return nil, fmt.Errorf("decode arguments: %s", untold(err))
			}
		}
		result, err := t.fn(ctx, run, args)
		if err != nil {
			return nil, err
		}
		out, err := json.Marshal(result)
		if err != nil {
			return nil, fmt.Errorf("encode result: %w", err)
		}
		if !utf8.Valid(out) {
			return nil, errors.New("encode result: not UTF-8")
		}
		if string(out) == "null" {
			return nil, nil
		}
		return out, nil
	}
	return e
}

// Registry holds the task types that a program knows. It is not changed after it was made.
type Registry struct {
	types map[string]entry
}

// NewRegistry makes a registry. A name may be given once only.
func NewRegistry(types ...AnyType) (*Registry, error) {
	r := &Registry{types: make(map[string]entry, len(types))}
	for _, t := range types {
		name, e := t.Name(), t.entry()
		if name == "" || len(name) > 255 || strings.ContainsAny(name, "\x00 \n\t") {
			return nil, fmt.Errorf("task type %q: a name has 1 to 255 bytes and no white space", name)
		}
		if _, twice := r.types[name]; twice {
			return nil, fmt.Errorf("task type %s: registered twice", name)
		}
		if e.cfg.MaxAttempts == 0 {
			e.cfg.MaxAttempts = 1
		}
		if e.cfg.MaxAttempts < 1 || e.cfg.MaxAttempts > 1000 || e.cfg.Backoff < 0 {
			return nil, fmt.Errorf("task type %s: MaxAttempts must be 1 to 1000 and Backoff not negative", name)
		}
		if e.cfg.MaxAttempts == 1 {
			e.cfg.Backoff = 0
		} else if e.cfg.Backoff == 0 {
			e.cfg.Backoff = time.Second
		}
		e.cfg.Backoff = min(e.cfg.Backoff, time.Hour) // no pause is longer
		if err := checkVersions(e.cfg.Versions); err != nil {
			return nil, fmt.Errorf("task type %s: %w", name, err)
		}
		if e.cfg.Isolated != nil {
			own, err := e.cfg.Isolated.complete()
			if err != nil {
				return nil, fmt.Errorf("task type %s: %w", name, err)
			}
			e.cfg.Isolated = &own
		}
		r.types[name] = e
	}
	return r, nil
}

// Names lists the types, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.types)) }

// Config is a type's, with the defaults filled in; false: there is no such type. It must not be changed.
func (r *Registry) Config(name string) (TypeConfig, bool) {
	e, ok := r.types[name]
	return e.cfg, ok
}

// Runnable lists the types that have a function, sorted: what a worker with this registry can run.
func (r *Registry) Runnable() []string {
	var names []string
	for name, e := range r.types {
		if e.run != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Isolated lists the types that run in child processes, sorted.
func (r *Registry) Isolated() []string {
	var names []string
	for name, e := range r.types {
		if e.run != nil && e.cfg.Isolated != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// CanRun reports whether a worker with these versions may run a kind of task.
func (r *Registry) CanRun(name string, needs, have map[string]string) bool {
	return r.types[name].run != nil && VersionsSuffice(have, needs)
}

// VersionsSuffice reports whether have holds every label of needs with at least its version.
func VersionsSuffice(have, needs map[string]string) bool {
	for label, least := range needs {
		h, err := pep440.Parse(have[label])
		if err != nil {
			return false
		}
		n, err := pep440.Parse(least)
		if err != nil || h.LessThan(n) {
			return false
		}
	}
	return true
}

// Limits of the versions that a task needs. They are part of a unique index's key, whose entries fit
// into a third of a page: 2704 bytes, with the type's name of up to 255.
const (
	maxVersions     = 50   // labels
	maxVersionText  = 100  // bytes of a label, and of a version
	maxVersionTexts = 1500 // bytes of all labels and versions
)

func checkVersions(versions map[string]string) error {
	if n := len(versions); n > maxVersions {
		return fmt.Errorf("versions: %d labels, at most %d are possible: name only the components that the task depends on", n, maxVersions)
	}
	size := 0
	for label, v := range versions {
		size += len(label) + len(v)
		switch {
		case label == "":
			return errors.New("versions: a label is empty")
		case strings.ContainsRune(label, 0):
			return fmt.Errorf("versions: label %q has a zero byte", label)
		case len(label) > maxVersionText:
			return fmt.Errorf("versions: label %.40q… has %d bytes, at most %d are possible: shorten it", label, len(label), maxVersionText)
		case len(v) > maxVersionText:
			return fmt.Errorf("versions: %s: version %.40q… has %d bytes, at most %d are possible: shorten it", label, v, len(v), maxVersionText)
		}
		if _, err := pep440.Parse(v); err != nil {
			return fmt.Errorf("versions: %s: %q is not a PEP 440 version such as 3.117.0", label, v)
		}
	}
	if size > maxVersionTexts {
		return fmt.Errorf("versions: labels and versions have %d bytes together, at most %d are possible: name only the components that the task depends on", size, maxVersionTexts)
	}
	return nil
}
