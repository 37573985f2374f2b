package tasking_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

func key(b byte) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(b), 32)))
}

// told returns what it is given.
var told = tasking.NewType("test.told", func(_ context.Context, _ *tasking.Run, args json.RawMessage) (json.RawMessage, error) {
	return args, nil
}, tasking.TypeConfig{})

func TestArgumentsAreEncryptedAtRestAndKeysRotate(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	for _, tt := range []struct {
		name        string
		write, read []string
		says        string // of the failure, if it cannot be read
	}{
		{"the same key", []string{key('a')}, []string{key('a')}, ""},
		{"a new key in front", []string{key('a')}, []string{key('b'), key('a')}, ""},
		{"the second key is not written with", []string{key('b'), key('a')}, []string{key('b')}, ""},
		{"the key is gone", []string{key('a')}, []string{key('b'), key('c')}, "none of the 2 keys"},
		{"no key", []string{key('a')}, nil, "no key"},
		{"plain before keys came", nil, []string{key('a')}, ""},
		{"plain", nil, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := h.in(t)
			writer, reader := h.client(h.Pool, tasking.Config{Keys: tt.write}, told), h.client(h.Pool, tasking.Config{Keys: tt.read}, told)
			d, err := writer.Dispatch(t.Context(), told.Request(json.RawMessage(`{"password":"hush"}`), tasking.Options{}))
			if err != nil {
				t.Fatal(err)
			}
			stored := one[string](h, "SELECT args::text FROM task WHERE id = $1", d.ID)
			if strings.Contains(stored, "hush") != (tt.write == nil) {
				t.Errorf("stored as %s", stored)
			}
			w := h.worker()
			claim := h.claim(w, 1)[0]
			claim.Name = "test.told"
			out := reader.Execute(t.Context(), tasking.Holder{ID: w}, claim)
			switch {
			case tt.says == "" && (out.Error != nil || string(out.Result) != `{"password":"hush"}`):
				t.Errorf("result %s, %v", out.Result, out.Error)
			case tt.says != "" && (out.State != tasking.Failed || !strings.Contains(out.Error.Description, tt.says)):
				t.Errorf("result %s, %v", out.Result, out.Error)
			}
			h.finish(w, d.ID, tasking.Completed)
		})
	}
}

func TestArgumentsThatLookEncryptedCannotBePassedOff(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	lookalike := json.RawMessage(`{"$encrypted":"gAAAA"}`)
	for _, args := range []json.RawMessage{lookalike, json.RawMessage(` { "\u0024\u0065ncrypted" : "gAAAA" } `)} {
		if _, err := h.c.Dispatch(t.Context(), told.Request(args, tasking.Options{})); !errors.Is(err, tasking.ErrInvalid) {
			t.Errorf("without a key, %s: %v", args, err)
		}
	}
	// With a key they are encrypted like any other, and come out as they went in.
	c := h.client(h.Pool, tasking.Config{Keys: []string{key('a')}}, told)
	d, err := c.Dispatch(t.Context(), told.Request(lookalike, tasking.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	w := h.worker()
	claim := h.claim(w, 1)[0]
	claim.Name = "test.told"
	if out := c.Execute(t.Context(), tasking.Holder{ID: w}, claim); out.Error != nil || string(out.Result) != `{"$encrypted":"gAAAA"}` {
		t.Errorf("%s came out as %s, %v", d.ID, out.Result, out.Error)
	}
	// More than the one key in the object is nobody's business.
	if _, err := h.c.Dispatch(t.Context(), told.Request(json.RawMessage(`{"$encrypted": "x", "y": "z"}`), tasking.Options{})); err != nil {
		t.Error(err)
	}
}

func TestScheduledArgumentsAreEncryptedToo(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	c := h.client(h.Pool, tasking.Config{Keys: []string{key('a')}}, told)
	if _, err := c.SaveSchedule(t.Context(), tasking.Schedule{Name: "s", Task: "test.told", Args: json.RawMessage(`"hush"`)}); err != nil {
		t.Fatal(err)
	}
	rotated := h.client(h.Pool, tasking.Config{Keys: []string{key('b'), key('a')}}, told)
	if n, err := rotated.DispatchDue(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	for _, table := range []string{"task_schedule", "task"} {
		if stored := one[string](h, "SELECT args::text FROM "+table); !strings.Contains(stored, "$encrypted") {
			t.Errorf("%s has %s", table, stored)
		}
	}
	w := h.worker()
	claim := h.claim(w, 1)[0]
	claim.Name = "test.told"
	onlyNew := h.client(h.Pool, tasking.Config{Keys: []string{key('b')}}, told)
	if out := onlyNew.Execute(t.Context(), tasking.Holder{ID: w}, claim); string(out.Result) != `"hush"` {
		t.Errorf("result %s, %v", out.Result, out.Error)
	}
}

func TestKeysThatAreNoneAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, bad := range []string{"", "short", "%%%", base64.StdEncoding.EncodeToString([]byte("31 bytes, one too few for a key"))} {
		_, err := tasking.New(h.Pool, tasking.Config{Registry: h.c.Registry(), Keys: []string{key('a'), bad}})
		if err == nil || !strings.Contains(err.Error(), "key 2") || (bad != "" && strings.Contains(err.Error(), bad)) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNewNeedsAPoolAndARegistry(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if _, err := tasking.New(nil, tasking.Config{Registry: h.c.Registry()}); err == nil {
		t.Error("no pool, no error")
	}
	if _, err := tasking.New(h.Pool, tasking.Config{}); err == nil {
		t.Error("no registry, no error")
	}
}

func TestRegistryRefusesTypesThatCannotBe(t *testing.T) {
	t.Parallel()
	fn := func(context.Context, *tasking.Run, any) (any, error) { return nil, nil }
	typ := func(name string, cfg tasking.TypeConfig) tasking.AnyType { return tasking.NewType(name, fn, cfg) }
	for _, tt := range []struct {
		types []tasking.AnyType
		says  string
	}{
		{[]tasking.AnyType{typ("", tasking.TypeConfig{})}, `""`},
		{[]tasking.AnyType{typ("a b", tasking.TypeConfig{})}, `"a b"`},
		{[]tasking.AnyType{typ(strings.Repeat("n", 256), tasking.TypeConfig{})}, "255"},
		{[]tasking.AnyType{typ("a", tasking.TypeConfig{}), typ("a", tasking.TypeConfig{})}, "a: registered twice"},
		{[]tasking.AnyType{typ("a", tasking.TypeConfig{MaxAttempts: 1001})}, "1000"},
		{[]tasking.AnyType{typ("a", tasking.TypeConfig{MaxAttempts: -1})}, "1000"},
		{[]tasking.AnyType{typ("a", tasking.TypeConfig{MaxAttempts: 2, Backoff: -1})}, "Backoff"},
		{[]tasking.AnyType{typ("a", tasking.TypeConfig{Versions: map[string]string{"core": "x.y"}})}, `"x.y"`},
	} {
		if _, err := tasking.NewRegistry(tt.types...); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("got %v, should say %q", err, tt.says)
		}
	}
}

func TestVersionsSufficeByLabelAndPEP440(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		have, needs string
		want        bool
	}{
		{"", "", true},
		{"core=3.117.0", "", true},
		{"core=3.117.0", "core=3.117.0", true},
		{"core=3.117.0", "core=3.9", true},
		{"core=3.9", "core=3.117.0", false},
		{"core=3.117.0.dev0", "core=3.117.0", false},
		{"core=3.117.0", "core=3.117.0.dev0", true},
		{"core=3.117.0", "file=1.0", false},
		{"core=3.117.0 file=1.0", "file=1.0 core=3.0", true},
		{"core=rubbish", "core=1.0", false},
	} {
		if got := tasking.VersionsSuffice(versions(tt.have), versions(tt.needs)); got != tt.want {
			t.Errorf("%q for %q: %t", tt.have, tt.needs, got)
		}
	}
}

func versions(words string) map[string]string {
	out := map[string]string{}
	for w := range strings.FieldsSeq(words) {
		label, v, _ := strings.Cut(w, "=")
		out[label] = v
	}
	return out
}

func TestResultIsDecodedOfCompletedTasksOfTheTypeOnly(t *testing.T) {
	t.Parallel()
	typ := tasking.NewType("test.int", func(context.Context, *tasking.Run, any) (int, error) { return 0, nil }, tasking.TypeConfig{})
	for _, tt := range []struct {
		task tasking.Task
		want int
		says string
	}{
		{tasking.Task{Name: "test.int", State: tasking.Completed, Result: json.RawMessage("7")}, 7, ""},
		{tasking.Task{Name: "test.int", State: tasking.Completed}, 0, ""},
		{tasking.Task{Name: "test.other", State: tasking.Completed}, 0, "a test.other, not a test.int"},
		{tasking.Task{Name: "test.int", State: tasking.Failed, Error: &tasking.Error{Description: "no luck"}}, 0, "no luck"},
		{tasking.Task{Name: "test.int", State: tasking.Canceled}, 0, "canceled"},
		{tasking.Task{Name: "test.int", State: tasking.Running}, 0, "running"},
		{tasking.Task{Name: "test.int", State: tasking.Completed, Result: json.RawMessage(`"x"`)}, 0, "unmarshal"},
	} {
		got, err := typ.Result(tt.task)
		if got != tt.want || (tt.says == "") != (err == nil) || !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("%+v: %d, %v", tt.task, got, err)
		}
	}
	_, err := typ.Result(tasking.Task{ID: uuid.Max, Name: "test.int", State: tasking.Failed, Error: &tasking.Error{Reason: tasking.ReasonMissing}})
	var failure *tasking.Error
	if !errors.As(err, &failure) || failure.Reason != tasking.ReasonMissing {
		t.Errorf("the task's error is not in %v", err)
	}
}
