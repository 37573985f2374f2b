package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/tasking"
)

// execute runs the one task that can be claimed, of this type, as a worker with this client does.
func (h *harness) execute(c *tasking.Client, name string) tasking.Outcome {
	h.t.Helper()
	w := h.worker()
	claims := h.claim(w, 1)
	if len(claims) != 1 {
		h.t.Fatalf("claimed %v", claims)
	}
	claims[0].Name = name
	out := c.Execute(h.t.Context(), tasking.Holder{ID: w}, claims[0])
	h.finish(w, claims[0].ID, out.State)
	return out
}

// wantProfiles checks which profiles there are of a task.
func (h *harness) wantProfiles(what string, id uuid.UUID, want ...string) {
	h.t.Helper()
	got, err := h.c.ProfileNames(h.t.Context(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		h.t.Errorf("profiles of %s: %v, want %v", what, got, want)
	}
	for _, name := range got {
		if data, err := h.c.Profile(h.t.Context(), id, name); err != nil || len(data) == 0 {
			h.t.Errorf("%s of %s: %d bytes, %v", name, what, len(data), err)
		}
	}
}

// diagnosing is a client whose process makes all profiles.
func (h *harness) diagnosing(types ...tasking.AnyType) *tasking.Client {
	h.t.Helper()
	return h.client(h.Pool, tasking.Config{Diagnostics: tasking.Profiles}, types...)
}

func TestWishForProfilesTravelsWithTheArguments(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	for name, keys := range map[string][]string{"plain": nil, "encrypted": {key('a')}} {
		for _, wish := range [][]string{nil, {"memory"}, {"memory", "heap"}} {
			t.Run(name+" "+strings.Join(wish, " "), func(t *testing.T) {
				h := h.in(t)
				writer := h.client(h.Pool, tasking.Config{Keys: keys}, told)
				reader := h.client(h.Pool, tasking.Config{Keys: keys, Diagnostics: tasking.Profiles}, told)
				var profiles []string
				for _, name := range wish {
					profiles = append(profiles, name+"_profile")
				}
				slices.Sort(profiles)
				for _, args := range []string{
					`null`, `{"a":1}`, `[9007199254740993.5]`, `"text with a $ and a \\"`, `{}`, `{"$diagnostics":["memory"]}`, `{"args":{"a":1}}`,
					`{"$diagnostics":[],"args":1}`, `{"$diagnostics":"memory","args":1}`, `{"$diagnostics":["memory"],"args":1,"more":2}`,
				} {
					d, err := writer.Dispatch(t.Context(), told.Request(json.RawMessage(args), tasking.Options{Diagnostics: wish}))
					if err != nil {
						t.Fatalf("%s: %v", args, err)
					}
					stored := one[string](h, "SELECT args::text FROM task WHERE id = $1", d.ID)
					if sealed := strings.HasPrefix(stored, `{"$encrypted":`); sealed != (keys != nil) || wish == nil && keys == nil && stored != args {
						t.Errorf("%s is stored as %s", args, stored)
					}
					want := args
					if want == `null` {
						want = "" // no result
					}
					if out := h.execute(reader, "test.told"); out.Error != nil || string(out.Result) != want {
						t.Errorf("%s came out as %s, %v", args, out.Result, out.Error)
					}
					h.wantProfiles(args, d.ID, profiles...)
				}
			})
		}
	}
}

func TestArgumentsThatLookLikeAWishCannotBePassedOff(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	sealing := h.client(h.Pool, tasking.Config{Keys: []string{key('a')}}, told)
	for _, args := range []any{
		json.RawMessage(`{"$diagnostics":["memory"],"args":1}`),
		json.RawMessage(` { "args" : null, "$diagnostics" : ["nothing"] } `),
		json.RawMessage(`{"\u0024diagnostic\u0073":["memory"],"\u0061rgs":{}}`),
		map[string]any{"$diagnostics": []string{"memory"}, "args": []int{1}},
	} {
		for _, c := range []*tasking.Client{h.c, sealing} {
			for _, wish := range [][]string{nil, {}, {"memory"}} {
				r := tasking.Request{Name: "test.told", Args: args, Options: tasking.Options{Diagnostics: wish}}
				if _, err := c.Dispatch(t.Context(), r); !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(err.Error(), "$diagnostics") {
					t.Errorf("%s with the wish %q: %v", args, wish, err)
				}
				if _, err := c.DispatchMany(t.Context(), []tasking.Request{told.Request(nil, tasking.Options{}), r}); !errors.Is(err, tasking.ErrInvalid) {
					t.Errorf("%s among many with the wish %q: %v", args, wish, err)
				}
			}
		}
	}
	if n := one[int](h, "SELECT count(*) FROM task"); n != 0 {
		t.Errorf("%d tasks were dispatched", n)
	}
}

func TestUnknownProfilesAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, wish := range [][]string{{"pyinstrument"}, {"memory", "Memory"}, {""}, {"memory,cpu"}} {
		_, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Diagnostics: wish}))
		if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(err.Error(), "known are memory, cpu, heap") {
			t.Errorf("the wish %q: %v", wish, err)
		}
		_, err = tasking.New(h.Pool, tasking.Config{Registry: h.c.Registry(), Diagnostics: wish})
		if err == nil || !strings.Contains(err.Error(), "Config.Diagnostics") {
			t.Errorf("a process that makes %q: %v", wish, err)
		}
	}
}

func TestOnlyProfilesThatTheProcessMakesAreMade(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	for _, tt := range []struct{ makes, wish, want []string }{
		{nil, []string{"memory", "heap"}, nil},
		{[]string{"heap"}, []string{"memory", "heap"}, []string{"heap_profile"}},
		{tasking.Profiles, nil, nil},
		{tasking.Profiles, []string{}, nil},
		{tasking.Profiles, []string{"memory", "memory"}, []string{"memory_profile"}},
	} {
		id := h.dispatch(told.Request(json.RawMessage(`1`), tasking.Options{Diagnostics: tt.wish}))
		c := h.client(h.Pool, tasking.Config{Diagnostics: tt.makes}, told)
		if out := h.execute(c, "test.told"); out.State != tasking.Completed {
			t.Errorf("%+v: %s, %v", tt, out.State, out.Error)
		}
		h.wantProfiles(strings.Join(tt.wish, " "), id, tt.want...)
	}
	if _, err := h.c.Profile(t.Context(), uuid.Max, "memory_profile"); !errors.Is(err, tasking.ErrNotFound) {
		t.Errorf("of a task that is not there: %v", err)
	}
	h.wantProfiles("a task that is not there", uuid.Max)
}

func TestChildrenInheritTheWishUnlessTheRequestSaysOtherwise(t *testing.T) {
	t.Parallel()
	parent := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		for _, wish := range [][]string{nil, {}, {"heap"}} {
			if _, err := run.Dispatch(ctx, told.Request(json.RawMessage(`1`), tasking.Options{Diagnostics: wish})); err != nil {
				return nil, err
			}
		}
		_, err := run.DispatchMany(ctx, []tasking.Request{told.Request(json.RawMessage(`2`), tasking.Options{})})
		return nil, err
	}, tasking.TypeConfig{})
	h := newHarness(t, told, parent)
	for _, tt := range []struct{ wish, want []string }{
		{[]string{"memory"}, []string{
			`{"$diagnostics":["memory"],"args":1}`, `1`, `{"$diagnostics":["heap"],"args":1}`, `{"$diagnostics":["memory"],"args":2}`,
		}},
		{nil, []string{`1`, `1`, `{"$diagnostics":["heap"],"args":1}`, `2`}},
	} {
		id := h.dispatch(parent.Request(nil, tasking.Options{Diagnostics: tt.wish}))
		// What the children are told does not depend on what this process makes.
		if out := h.execute(h.client(h.Pool, tasking.Config{}, told, parent), "test.parent"); out.State != tasking.Completed {
			t.Fatal(out.Error)
		}
		if diff := cmp.Diff(tt.want, query[string](h, "SELECT args::text FROM task WHERE parent_task = $1 ORDER BY id", id)); diff != "" {
			t.Errorf("children with the wish %q (-want +got):\n%s", tt.wish, diff)
		}
		for range 4 {
			h.execute(h.c, "test.told")
		}
	}
}

func TestImmediateTaskIsNotProfiledWhereverItRuns(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	r := plain.Request(nil, tasking.Options{Immediate: true, Diagnostics: []string{"memory"}})
	byWorker := h.dispatch(r)
	if out := h.execute(h.diagnosing(), "test.plain"); out.State != tasking.Completed {
		t.Fatal(out.Error)
	}
	c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API), Diagnostics: tasking.Profiles})
	here, err := c.Dispatch(t.Context(), r)
	if err != nil || here.State != tasking.Completed {
		t.Fatalf("%+v, %v", here, err)
	}
	h.wantProfiles("one in a worker", byWorker)
	h.wantProfiles("one in the process that dispatches", here.ID)
}

func TestFailedTaskIsProfiledAsWell(t *testing.T) {
	t.Parallel()
	failing := tasking.NewType("test.failing", func(context.Context, *tasking.Run, any) (any, error) { panic("oh no") }, tasking.TypeConfig{})
	h := newHarness(t, failing)
	id := h.dispatch(failing.Request(nil, tasking.Options{Diagnostics: []string{"heap", "memory"}}))
	if out := h.execute(h.diagnosing(failing), "test.failing"); out.State != tasking.Failed {
		t.Errorf("it is %s", out.State)
	}
	h.wantProfiles("a task that panicked", id, "heap_profile", "memory_profile")
}

func TestProfileOfATaskThatIsLostIsNotKept(t *testing.T) {
	t.Parallel()
	var h *harness
	var w uuid.UUID
	losing := tasking.NewType("test.losing", func(context.Context, *tasking.Run, any) (any, error) {
		h.vanish(w)
		return nil, nil
	}, tasking.TypeConfig{})
	h = newHarness(t, losing)
	id := h.dispatch(losing.Request(nil, tasking.Options{Diagnostics: []string{"memory"}}))
	w = h.worker()
	claim := h.claim(w, 1)[0]
	claim.Name = "test.losing"
	if out := h.diagnosing(losing).Execute(t.Context(), tasking.Holder{ID: w}, claim); out.State != tasking.Completed {
		t.Errorf("it is %s, %v", out.State, out.Error)
	}
	h.wantProfiles("a task that is lost", id)
	h.sweep()
	h.wantProfiles("a task that was swept", id)
}

// TestProcessorIsProfiledForOneTaskAtATime is the one test here that profiles the processor's time, which but one can do at a
// time in a process.
func TestProcessorIsProfiledForOneTaskAtATime(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	c := h.diagnosing(told)
	dispatch := func() uuid.UUID {
		return h.dispatch(told.Request(json.RawMessage(`1`), tasking.Options{Diagnostics: []string{"cpu", "memory"}}))
	}
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	during := dispatch()
	out := h.execute(c, "test.told")
	pprof.StopCPUProfile()
	if out.State != tasking.Completed {
		t.Errorf("it is %s, %v", out.State, out.Error)
	}
	h.wantProfiles("a task while another one is profiled", during, "memory_profile")
	after := dispatch()
	h.execute(c, "test.told")
	h.wantProfiles("a task afterwards", after, "cpu_profile", "memory_profile")
}
