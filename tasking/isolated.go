package tasking

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/isolate"
)

// Isolation tells how tasks run in child processes of the worker's program. A child has a working directory of
// its own, which is also where temporary files go, and which is removed with the task. It is told when the task's
// context ends, and killed, with the processes that it has started, if it does not heed that. It has no database:
// what its Run writes goes through the worker. It dies with its worker, and ends itself when the worker's lease
// ends, even if the worker is stopped.
//
// A child that has run a task runs the next one of any type that gets the same environment: a function must not
// leave behind in its process what others must not see.
//
// The program must call RunChild.
type Isolation struct {
	// Memory is how many bytes the process may have resident; it is killed within some hundredths of a second
	// when it has more. What its own child processes have does not count. At least 64 MiB: the program
	// itself takes some 15 of them. Linux only. Default: no limit.
	Memory int64
	// Time is how long an attempt may take. Then its context ends with ErrOverTime as the cause. Default: no limit.
	Time time.Duration
	// StopGrace is how long the function may go on once its context has ended; 5 s at most if its worker is
	// aborted, and not at all if the lease has ended. Default: 5 s.
	StopGrace time.Duration
	// Env names the variables of the worker's environment that the process gets, beside such as PATH, HOME, TZ and
	// those of the locale. Default: none, since they may hold secrets.
	Env []string
}

const (
	leastMemory = 64 << 20
	stopGrace   = 5 * time.Second
	// shutdownGrace bounds it in a worker that was aborted, which waits for no more than 10 s.
	shutdownGrace = 5 * time.Second
)

// ErrOverTime is why the context of an isolated task ended: Isolation.Time was over.
var ErrOverTime = isolate.ErrOverTime

// complete checks the options and fills in the defaults.
func (i Isolation) complete() (Isolation, error) {
	switch {
	case i.Memory != 0 && i.Memory < leastMemory:
		return i, fmt.Errorf("isolation: %d bytes of memory leave a task too little beside the program: allow at least %d (64 MiB)", i.Memory, leastMemory)
	case i.Memory != 0 && !isolate.LimitsMemory:
		return i, errors.New("isolation: memory can be limited on Linux only")
	case i.Time < 0 || i.StopGrace < 0:
		return i, errors.New("isolation: Time and StopGrace must not be negative")
	}
	for _, name := range i.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return i, fmt.Errorf("isolation: %q is no name of an environment variable", name)
		}
	}
	if i.StopGrace == 0 {
		i.StopGrace = stopGrace
	}
	i.Env = slices.Clone(i.Env)
	return i, nil
}

// Usage is what an attempt took that had a process of its own.
type Usage struct {
	// PeakMemory is the most memory that the process had resident, in bytes; 0: not known, as of a process that
	// died within its first second.
	PeakMemory int64 `json:"peak_memory"`
	// CPUSeconds is the processor time of the process and of those that it has waited for.
	CPUSeconds float64 `json:"cpu_seconds"`
}

// childTask is what a child is told of its task.
type childTask struct {
	Claim    Claim         `json:"claim"`
	Level    slog.Level    `json:"level"` // of the log
	Interval time.Duration `json:"interval"`
	Profiles []string      `json:"profiles,omitempty"`
}

// isolated has a child process run the function.
func (c *Client) isolated(ctx context.Context, h Holder, how Isolation, run *Run) Outcome {
	if h.Children == nil {
		return failure(fmt.Errorf("task type %s is isolated: only a worker can run it", run.Name), "")
	}
	body, err := json.Marshal(childTask{Claim: run.Claim, Level: leastLevel(ctx, c.cfg.Log), Interval: run.interval, Profiles: run.profiles})
	if err != nil {
		return failure(fmt.Errorf("encode task for its process: %w", err), "")
	}
	r, err := h.Children.Do(ctx, isolate.Job{
		Body: body, Name: run.ID.String(), Memory: how.Memory, Time: how.Time, Env: how.Env,
		Lost: h.Lost,
		Grace: func(cause error) time.Duration {
			switch {
			case errors.Is(cause, ErrLeaseLost):
				return 0 // others may take over
			case errors.Is(cause, ErrShutdown):
				return min(how.StopGrace, shutdownGrace)
			}
			return how.StopGrace
		},
		Answer: func(ctx context.Context, name string, body json.RawMessage) json.RawMessage {
			return serve(ctx, run.keep, name, body)
		},
		Note:   func(body json.RawMessage) { relay(ctx, run.Log.Handler(), body) },
		Output: func(line string) { run.Log.Info("task output", "line", line) },
	})
	if err != nil {
		return failure(err, "")
	}
	var out Outcome
	if r.Death != nil {
		run.Log.Warn("process of task died", "reason", r.Death.Reason(), "out_of_memory", r.Death.OutOfMemory, "output", r.Death.Output)
		out = Outcome{State: Failed, Error: &Error{Reason: r.Death.Reason()}}
		if r.Death.OutOfMemory {
			out.Error.Reason = "Out of memory."
			if how.Memory > 0 {
				out.Error.Reason = fmt.Sprintf("Out of memory: the task may have %d MiB.", how.Memory>>20)
			}
		}
	} else if err := json.Unmarshal(r.Body, &out); err != nil {
		out = failure(fmt.Errorf("decode outcome of the task's process: %w", err), "")
	}
	if r.OverTime && out.State != Completed && (r.Death == nil || !r.Death.OutOfMemory) {
		out.Error = &Error{Reason: fmt.Sprintf("Timed out: the task may take %s.", how.Time)}
	}
	out.Usage = &Usage{PeakMemory: r.Usage.PeakMemory, CPUSeconds: r.Usage.CPU.Seconds()}
	return out
}

func leastLevel(ctx context.Context, l *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if l.Enabled(ctx, level) {
			return level
		}
	}
	return slog.LevelError
}

// RunChild is what a worker's child processes are for: in one of them it runs isolated tasks, and never returns.
// In any other process it returns at once. A program whose registry has isolated types calls it before anything
// else in main, and TestMain, with that registry; a worker refuses to start without.
func RunChild(r *Registry) {
	isolate.Serve(func(ctx context.Context, p *isolate.Process, body json.RawMessage) json.RawMessage {
		var t childTask
		out := failure(errors.New("the task's process does not know its type: call RunChild with the worker's registry"), "")
		if err := json.Unmarshal(body, &t); err != nil {
			out = failure(fmt.Errorf("decode task: %w", err), "")
		} else if e := r.types[t.Claim.Name]; e.run != nil {
			log := slog.NewJSONHandler(noteWriter{p}, &slog.HandlerOptions{Level: t.Level})
			run := newRun(t.Claim, remote{p}, t.Interval, log)
			run.Log = slog.New(log) // the worker adds what the task is
			run.profiles = t.Profiles
			ctx = withCause(ctx)
			out = run.profiled(ctx, func() Outcome { return e.perform(ctx, run) })
			run.saveLast(ctx, nil)
		}
		raw, err := json.Marshal(out)
		if err != nil {
			raw, _ = json.Marshal(failure(fmt.Errorf("encode outcome: %w", err), "")) // of a text
		}
		return raw
	})
}

// withCause makes a context whose cause is one of the errors that others compare it with.
func withCause(ctx context.Context) context.Context {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		cause := context.Cause(ctx)
		for _, known := range []error{ErrCanceled, ErrShutdown, ErrLeaseLost, ErrOverTime} {
			if cause.Error() == known.Error() {
				cause = known
			}
		}
		cancel(cause)
	})
	return out
}

// noteWriter sends what is written, a record at a time, to the worker.
type noteWriter struct{ p *isolate.Process }

func (w noteWriter) Write(record []byte) (int, error) {
	w.p.Note(bytes.Clone(record))
	return len(record), nil
}

// relay logs a record that a child has sent, as slog.JSONHandler writes it.
func relay(ctx context.Context, h slog.Handler, body json.RawMessage) {
	in := json.NewDecoder(bytes.NewReader(body))
	var r slog.Record
	if _, err := in.Token(); err != nil {
		return // no record: the child's own
	}
	for in.More() {
		key, err := in.Token()
		if err != nil {
			return
		}
		name, _ := key.(string)
		switch name {
		case slog.TimeKey:
			err = in.Decode(&r.Time)
		case slog.LevelKey:
			err = in.Decode(&r.Level)
		case slog.MessageKey:
			err = in.Decode(&r.Message)
		default:
			var value any
			err = in.Decode(&value)
			r.AddAttrs(slog.Any(name, value))
		}
		if err != nil {
			return
		}
	}
	if h.Enabled(ctx, r.Level) {
		_ = h.Handle(ctx, r) // as slog.Logger does
	}
}

// Calls that a child makes.
const (
	callDispatch     = "dispatch"
	callDispatchMany = "dispatch many"
	callProgress     = "progress"
	callCreated      = "created"
	callProfile      = "profile"
	callToken        = "token"
	callGetGroup     = "get group"
	callCloseGroup   = "close group"
)

// reply is what comes back.
type reply[T any] struct {
	Value T            `json:"value"`
	Error *remoteError `json:"error,omitempty"`
}

// remoteError is an error from the worker.
type remoteError struct {
	Text string `json:"text"`
	// Kinds names those of the sentinels that it is.
	Kinds []string `json:"kinds,omitempty"`
}

// sentinels are the errors that callers of a Run's methods may want to tell apart.
var sentinels = map[string]error{
	"lock lost": ErrLockLost, "lease lost": ErrLeaseLost, "app lost": appstatus.ErrLost, "invalid": ErrInvalid,
	"unknown type": ErrUnknownType, "not found": ErrNotFound, "owner gone": ErrOwnerGone, "deadline": context.DeadlineExceeded, "canceled": context.Canceled,
}

func (e *remoteError) Error() string { return e.Text }

// Is reports whether the error was target where it came from.
func (e *remoteError) Is(target error) bool {
	return slices.ContainsFunc(e.Kinds, func(name string) bool { return sentinels[name] == target })
}

// childRequest is a Request whose arguments are encoded already.
type childRequest struct {
	Name string          `json:"name"`
	Args json.RawMessage `json:"args,omitempty"`
	Options
}

type childProgress struct {
	Ordinal int32  `json:"ordinal"`
	Report  Report `json:"report"`
}

type childCreated struct {
	Ordinal int32  `json:"ordinal"`
	PRN     string `json:"prn"`
}

type childProfile struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// remote is the keeper in a child process.
type remote struct{ p *isolate.Process }

// ask has the worker do what a keeper does.
func ask[T any](ctx context.Context, r remote, name string, what any) (T, error) {
	var out reply[T]
	body, err := json.Marshal(what)
	if err != nil {
		return out.Value, fmt.Errorf("%s: %w", name, err)
	}
	answer, err := r.p.Call(ctx, name, body)
	if err != nil {
		return out.Value, fmt.Errorf("%s: %w", name, err)
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out.Value, fmt.Errorf("%s: decode the worker's answer: %w", name, err)
	}
	if out.Error != nil {
		return out.Value, out.Error
	}
	return out.Value, nil
}

func (r remote) dispatch(ctx context.Context, req Request) (Dispatched, error) {
	c, err := encodeRequest(req)
	if err != nil {
		return Dispatched{}, err
	}
	return ask[Dispatched](ctx, r, callDispatch, c)
}

func (r remote) dispatchMany(ctx context.Context, reqs []Request) ([]Dispatched, error) {
	encoded := make([]childRequest, len(reqs))
	for i, req := range reqs {
		var err error
		if encoded[i], err = encodeRequest(req); err != nil {
			return nil, err
		}
	}
	return ask[[]Dispatched](ctx, r, callDispatchMany, encoded)
}

func encodeRequest(r Request) (childRequest, error) {
	args, err := json.Marshal(r.Args)
	if err != nil {
		return childRequest{}, invalidIn("args", "arguments of %s: %s", r.Name, untold(err))
	}
	return childRequest{r.Name, args, r.Options}, nil
}

func (c childRequest) request() Request {
	return Request{Name: c.Name, Args: c.Args, Options: c.Options}
}

func (r remote) saveProgress(ctx context.Context, ordinal int32, report Report) error {
	_, err := ask[struct{}](ctx, r, callProgress, childProgress{ordinal, report})
	return err
}

func (r remote) saveCreated(ctx context.Context, ordinal int32, prn string) error {
	_, err := ask[struct{}](ctx, r, callCreated, childCreated{ordinal, prn})
	return err
}

func (r remote) saveProfile(ctx context.Context, name string, data []byte) error {
	_, err := ask[struct{}](ctx, r, callProfile, childProfile{name, data})
	return err
}

func (r remote) token(ctx context.Context) (int64, error) { return ask[int64](ctx, r, callToken, nil) }

func (r remote) getGroup(ctx context.Context) (Group, error) {
	return ask[Group](ctx, r, callGetGroup, nil)
}

func (r remote) closeGroup(ctx context.Context) error {
	_, err := ask[struct{}](ctx, r, callCloseGroup, nil)
	return err
}

// serve does what a child has asked for.
func serve(ctx context.Context, k keeper, name string, body json.RawMessage) json.RawMessage {
	switch name {
	case callDispatch:
		return decoded(body, func(c childRequest) (Dispatched, error) { return k.dispatch(ctx, c.request()) })
	case callDispatchMany:
		return decoded(body, func(cs []childRequest) ([]Dispatched, error) {
			reqs := make([]Request, len(cs))
			for i, c := range cs {
				reqs[i] = c.request()
			}
			return k.dispatchMany(ctx, reqs)
		})
	case callProgress:
		return decoded(body, func(p childProgress) (none, error) { return none{}, k.saveProgress(ctx, p.Ordinal, p.Report) })
	case callCreated:
		return decoded(body, func(c childCreated) (none, error) { return none{}, k.saveCreated(ctx, c.Ordinal, c.PRN) })
	case callProfile:
		return decoded(body, func(p childProfile) (none, error) { return none{}, k.saveProfile(ctx, p.Name, p.Data) })
	case callToken:
		return decoded(body, func(none) (int64, error) { return k.token(ctx) })
	case callGetGroup:
		return decoded(body, func(none) (Group, error) { return k.getGroup(ctx) })
	case callCloseGroup:
		return decoded(body, func(none) (none, error) { return none{}, k.closeGroup(ctx) })
	}
	return decoded(nil, func(none) (none, error) { return none{}, fmt.Errorf("unknown call %q", name) })
}

type none struct{}

// decoded decodes the arguments of a call, and encodes what came of it.
func decoded[A, R any](body json.RawMessage, do func(A) (R, error)) json.RawMessage {
	var (
		args A
		out  reply[R]
		err  error
	)
	if body != nil {
		err = json.Unmarshal(body, &args)
	}
	if err == nil {
		out.Value, err = do(args)
	}
	if err != nil {
		out.Error = &remoteError{Text: err.Error()}
		for name, sentinel := range sentinels {
			if errors.Is(err, sentinel) {
				out.Error.Kinds = append(out.Error.Kinds, name)
			}
		}
	}
	raw, err := json.Marshal(out)
	if err != nil {
		raw, _ = json.Marshal(reply[none]{Error: &remoteError{Text: "encode the worker's answer: " + err.Error()}}) // of a text
	}
	return raw
}
