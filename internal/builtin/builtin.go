// Package builtin holds the task types that every worker of Pith knows: the purge of old tasks, and Pulp's test helpers
// under Pulp's names, for trying things and for Pulp's own functional tests.
//
// Arguments are one JSON object with the parameter names of Pulp's functions. As in Pulp only those
// that are asynchronous functions there may be immediate. Results are null.
//
// Nothing here touches the database but for dispatching child tasks and reading their group.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"

	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// Version is the version of Pulp's core API that Pith claims: what a worker has under the label core,
// and what the task types need.
const Version = "3.117.0"

// Versions returns the components of this program, label to version.
func Versions() map[string]string { return map[string]string{"core": Version} }

// module is where Pulp has its test helpers.
const module = "pulpcore.app.tasks.test."

// Registry returns a registry of the built-in types and more.
func Registry(more ...tasking.AnyType) (*tasking.Registry, error) {
	return tasking.NewRegistry(append([]tasking.AnyType{
		deferred("dummy_task", dummyTask),
		deferred("sleep", sleep),
		immediate("asleep", sleep),
		tasking.NewType(module+"gooey_task", gooeyTask, tasking.TypeConfig{Versions: Versions(), Dispatchable: true, Isolated: &tasking.Isolation{}}),
		deferred("dummy_group_task", dummyGroupTask),
		deferred("group_task_with_finalizer", groupTaskWithFinalizer),
		deferred("group_finalizer_task", groupFinalizerTask),
		// Nobody shall kill workers from far away.
		tasking.NewType(module+"missing_worker", missingWorker, tasking.TypeConfig{Versions: Versions()}),
		deferred("failing_task", failingTask),
		immediate("afailing_task", failingTask),
		tasking.NewType(Purge, purge, tasking.TypeConfig{Versions: Versions()}),
	}, more...)...)
}

// none is the result of a function that returns nothing.
type none = any

func deferred[A any](name string, fn tasking.Func[A, none]) tasking.AnyType {
	return tasking.NewType(module+name, fn, tasking.TypeConfig{Versions: Versions(), Dispatchable: true})
}

func immediate[A any](name string, fn tasking.Func[A, none]) tasking.AnyType {
	return tasking.NewType(module+name, fn, tasking.TypeConfig{Versions: Versions(), Dispatchable: true, Immediate: true})
}

func dummyTask(context.Context, *tasking.Run, struct{}) (none, error) { return nil, nil }

type sleepArgs struct {
	// Interval in seconds.
	Interval *float64 `json:"interval"`
}

func (a sleepArgs) duration() (time.Duration, error) {
	switch {
	case a.Interval == nil:
		return 0, errors.New("missing argument: interval")
	case *a.Interval < 0:
		return 0, errors.New("sleep length must be non-negative")
	}
	return seconds(*a.Interval), nil
}

// seconds is a duration that is as long as can be expressed, at most.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}

func sleep(ctx context.Context, _ *tasking.Run, args sleepArgs) (none, error) {
	d, err := args.duration()
	if err != nil {
		return nil, err
	}
	if resend.Sleep(ctx, d) != nil {
		return nil, context.Cause(ctx)
	}
	return nil, nil
}

// gooeyTask sleeps and ignores its context: what cannot be stopped politely, but with the process that it has of
// its own.
func gooeyTask(_ context.Context, _ *tasking.Run, args sleepArgs) (none, error) {
	d, err := args.duration()
	if err != nil {
		return nil, err
	}
	<-time.After(d)
	return nil, nil
}

type groupArgs struct {
	// Inbetween is the pause after each dispatch in seconds. Default: 3.
	Inbetween *float64 `json:"inbetween"`
	// Intervals are how long the tasks sleep, in seconds. Default: 0 to 4.
	Intervals []float64 `json:"intervals"`
}

var errNoGroup = errors.New("this task must be dispatched in a task group")

// dummyGroupTask dispatches tasks that sleep into its own group, with pauses, and closes the group.
func dummyGroupTask(ctx context.Context, run *tasking.Run, args groupArgs) (none, error) {
	if run.Group == nil {
		return nil, errNoGroup
	}
	pause := 3 * time.Second
	if args.Inbetween != nil {
		pause = seconds(*args.Inbetween)
	}
	if len(args.Intervals) == 0 {
		args.Intervals = []float64{0, 1, 2, 3, 4}
	}
	for _, interval := range args.Intervals {
		if _, err := run.Dispatch(ctx, sleepFor(interval, tasking.Options{})); err != nil {
			return nil, err
		}
		if resend.Sleep(ctx, pause) != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, run.CloseGroup(ctx)
}

func sleepFor(interval float64, o tasking.Options) tasking.Request {
	return tasking.Request{Name: module + "sleep", Args: sleepArgs{Interval: &interval}, Options: o}
}

type finalizerArgs struct {
	Resource string `json:"resource"`
}

// groupTaskWithFinalizer dispatches a task that shares the resource, kept back a while by another
// one, and a finalizer that takes the resource exclusively; it closes the group.
func groupTaskWithFinalizer(ctx context.Context, run *tasking.Run, args finalizerArgs) (none, error) {
	switch {
	case run.Group == nil:
		return nil, errNoGroup
	case args.Resource == "":
		return nil, errors.New("missing argument: resource")
	}
	unique := []string{args.Resource + ":0"}
	shared := []string{args.Resource}
	_, err := run.DispatchMany(ctx, []tasking.Request{
		sleepFor(0.5, tasking.Options{Exclusive: unique}),
		sleepFor(0, tasking.Options{Exclusive: unique, Shared: shared}),
		{Name: module + "group_finalizer_task", Options: tasking.Options{Exclusive: shared}},
	})
	if err != nil {
		return nil, err
	}
	return nil, run.CloseGroup(ctx)
}

// groupFinalizerTask fails unless all other tasks of its group are completed.
func groupFinalizerTask(ctx context.Context, run *tasking.Run, _ struct{}) (none, error) {
	if run.Group == nil {
		return nil, errNoGroup
	}
	g, err := run.GetGroup(ctx)
	if err != nil {
		return nil, err
	}
	others := g.Unfinished() - 1
	if others+g.Failed+g.Canceled+g.Skipped > 0 {
		return nil, errors.New("Not all sibling tasks have completed.") //nolint:staticcheck,revive // Pulp's text
	}
	return nil, nil
}

// missingWorker kills the process that it runs in.
func missingWorker(context.Context, *tasking.Run, struct{}) (none, error) {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		return nil, fmt.Errorf("kill worker: %w", err)
	}
	return nil, nil
}

type failingArgs struct {
	ErrorMessage *string `json:"error_message"`
}

func failingTask(_ context.Context, _ *tasking.Run, args failingArgs) (none, error) {
	if args.ErrorMessage != nil {
		return nil, errors.New(*args.ErrorMessage)
	}
	return nil, errors.New("Task intentionally failed") //nolint:staticcheck // Pulp's text
}
