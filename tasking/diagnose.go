package tasking

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
)

// The profiles that can be made of a task's run. They are of the whole process: of a worker with many slots they tell of
// the task alone only if it is isolated, or runs alone.
const (
	// ProfileMemory is a table of the process's memory over the time of the run.
	ProfileMemory = "memory"
	// ProfileCPU and ProfileHeap are Go's own, for `go tool pprof`.
	ProfileCPU  = "cpu"
	ProfileHeap = "heap"
)

// Profiles are all that can be made.
var Profiles = []string{ProfileMemory, ProfileCPU, ProfileHeap}

// maxProfile is how many bytes of a profile are kept.
const maxProfile = 16 << 20

// memoryInterval is the time between two lines of the table of memory.
const memoryInterval = 100 * time.Millisecond

// diagnosed is how the arguments of a task stand in the database that is to be profiled.
type diagnosed struct {
	Diagnostics []string        `json:"$diagnostics"`
	Args        json.RawMessage `json:"args"`
}

// withDiagnostics adds the wish for profiles to arguments.
func withDiagnostics(args json.RawMessage, profiles []string) (json.RawMessage, error) {
	if _, _, ok := asDiagnosed(args); ok {
		return nil, invalidIn("args", "arguments must not be an object with the keys \"$diagnostics\" and \"args\"")
	}
	if len(profiles) == 0 {
		return args, nil
	}
	return json.Marshal(diagnosed{profiles, args})
}

func asDiagnosed(args json.RawMessage) (profiles []string, inner json.RawMessage, ok bool) {
	if !bytes.ContainsAny(args, `$\`) {
		return nil, args, false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(args, &fields) != nil || len(fields) != 2 || fields["args"] == nil {
		return nil, args, false
	}
	if json.Unmarshal(fields["$diagnostics"], &profiles) != nil || len(profiles) == 0 {
		return nil, args, false
	}
	return profiles, fields["args"], true
}

// checkProfiles checks the names of profiles.
func checkProfiles(names []string) error {
	for _, name := range names {
		if !slices.Contains(Profiles, name) {
			return invalidIn("diagnostics", "profile %q: known are %s", name, strings.Join(Profiles, ", "))
		}
	}
	return nil
}

// profiled calls do, and saves the profiles of that call. What cannot be profiled is logged: the task goes on.
func (r *Run) profiled(ctx context.Context, do func() Outcome) Outcome {
	if len(r.profiles) == 0 {
		return do()
	}
	made := map[string]*bytes.Buffer{}
	for _, name := range r.profiles {
		made[name] = &bytes.Buffer{}
	}
	var stops []func()
	if out := made[ProfileMemory]; out != nil {
		stops = append(stops, watchMemory(ctx, out))
	}
	if out := made[ProfileCPU]; out != nil {
		if err := pprof.StartCPUProfile(out); err != nil {
			r.Log.Warn("no CPU profile: another task of this process is being profiled", "err", err)
			delete(made, ProfileCPU)
		} else {
			stops = append(stops, pprof.StopCPUProfile)
		}
	}
	outcome := do()
	if out := made[ProfileHeap]; out != nil {
		runtime.GC() // the profile is as of the last collection
		if err := pprof.WriteHeapProfile(out); err != nil {
			r.Log.Warn("no heap profile", "err", err)
			delete(made, ProfileHeap)
		}
	}
	for _, stop := range stops {
		stop()
	}
	for name, out := range made {
		if out.Len() > maxProfile {
			r.Log.Warn("profile is too large to be kept", "profile", name, "bytes", out.Len())
			continue
		}
		saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
		if err := r.keep.saveProfile(saving, name+"_profile", out.Bytes()); err != nil {
			r.Log.Warn("profile was not saved", "profile", name, "err", err)
		}
		cancel()
	}
	return outcome
}

// watchMemory writes lines of the process's memory until it is told to stop.
func watchMemory(ctx context.Context, out *bytes.Buffer) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done, began := make(chan struct{}), time.Now()
	fmt.Fprintln(out, "# seconds\tresident bytes\tbytes of Go's heap")
	line := func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		fmt.Fprintf(out, "%.3f\t%d\t%d\n", time.Since(began).Seconds(), residentMemory(), sample[0].Value.Uint64())
	}
	go func() {
		defer close(done)
		for line(); out.Len() < maxProfile && resend.Sleep(ctx, memoryInterval) == nil; {
			line()
		}
		line()
	}()
	return func() { cancel(); <-done }
}

// residentMemory is what the process has resident, in bytes; 0: the system does not tell.
func residentMemory() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

func (h *held) saveProfile(ctx context.Context, name string, data []byte) error {
	n, err := send(ctx, "save profile", func(ctx context.Context) (int64, error) {
		return h.client.q.TaskProfileSave(ctx, h.client.db, db.TaskProfileSaveParams{
			TaskID: pgUUID(h.claim.ID), Name: name, Data: data, Holder: pgUUID(h.holder), Attempt: int32(h.claim.Attempt),
		})
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("save profile: %w", ErrLockLost)
	}
	return err
}

// ProfileNames lists the profiles that were made of a task.
func (c *Client) ProfileNames(ctx context.Context, id uuid.UUID) ([]string, error) {
	return send(ctx, "list profiles", func(ctx context.Context) ([]string, error) {
		return c.q.TaskProfileNames(ctx, c.db, pgUUID(id))
	})
}

// Profile reads one profile of a task, or returns ErrNotFound.
func (c *Client) Profile(ctx context.Context, id uuid.UUID, name string) ([]byte, error) {
	data, err := send(ctx, "read profile", func(ctx context.Context) ([]byte, error) {
		return c.q.TaskProfileGet(ctx, c.db, db.TaskProfileGetParams{TaskID: pgUUID(id), Name: name})
	})
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("profile %q of task %s: %w", name, id, ErrNotFound)
	}
	return data, err
}
