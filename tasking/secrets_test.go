package tasking_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// shy refuses to be read or written, and quotes what it was to be.
type shy struct{ text string }

type shyError string

func (e shyError) Error() string { return string(e) + " is not for you" }

func (*shy) UnmarshalJSON(raw []byte) error { return shyError(raw) }
func (s shy) MarshalJSON() ([]byte, error)  { return nil, shyError(s.text) }

// The types whose arguments do not fit what they are given.
var (
	small = tasking.NewType("test.small", func(context.Context, *tasking.Run, struct {
		Pin int8 `json:"pin"`
	},
	) (any, error) {
		return nil, nil
	}, tasking.TypeConfig{MaxAttempts: 2, Backoff: time.Hour})
	timely   = tasking.NewType("test.timely", func(context.Context, *tasking.Run, time.Time) (any, error) { return nil, nil }, tasking.TypeConfig{})
	bashful  = tasking.NewType("test.bashful", func(context.Context, *tasking.Run, shy) (any, error) { return nil, nil }, tasking.TypeConfig{})
	worded   = tasking.NewType("test.worded", func(context.Context, *tasking.Run, string) (any, error) { return nil, nil }, tasking.TypeConfig{})
	bursting = tasking.NewType("test.bursting", func(_ context.Context, _ *tasking.Run, args map[string]string) (string, error) {
		return strings.Repeat(args["password"], -1), nil // panics
	}, tasking.TypeConfig{})
)

// TestEncryptedArgumentsAreNowhereInPlain fails tasks in each way in which their arguments could come out, and then
// looks at all that was logged, returned and stored.
func TestEncryptedArgumentsAreNowhereInPlain(t *testing.T) {
	t.Parallel()
	var logged dbtest.Output
	log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h := newHarness(t, told, small, timely, bashful, worded, bursting)
	client := func(keys ...string) *tasking.Client {
		t.Helper()
		c, err := tasking.New(h.Pool, tasking.Config{Registry: h.c.Registry(), Keys: keys, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	writer, stranger, nobody := client(key('a')), client(key('b')), client()
	secret := func(what string, text string) {
		t.Helper()
		for _, s := range []string{"hush", "4711471147", key('a'), key('b'), strings.Repeat("a", 32)} {
			if strings.Contains(text, s) {
				t.Errorf("%s shows %s: %s", what, s, text)
			}
		}
	}
	w := h.worker()
	for _, tt := range []struct {
		name string
		args string
		says string // of how the right process fails
	}{
		{"test.small", `{"pin": 4711471147}`, "decode arguments: a JSON number for pin where a int8 is needed, at byte 18"},
		{"test.small", `{"pin": "hush"}`, "decode arguments: a JSON string for pin where a int8 is needed"},
		{"test.timely", `"hush"`, "decode arguments: a *time.ParseError, which may quote them"},
		{"test.bashful", `"hush"`, "decode arguments: a tasking_test.shyError, which may quote them"},
		{"test.worded", `{"password": "hush"}`, "decode arguments: a JSON object where a string is needed"},
		{"test.bursting", `{"password": "hush"}`, "panic: strings: negative Repeat count"},
	} {
		d, err := writer.Dispatch(t.Context(), tasking.Request{Name: tt.name, Args: json.RawMessage(tt.args)})
		if err != nil {
			t.Fatal(err)
		}
		claim := h.claim(w, 1)[0]
		claim.Name = tt.name
		for c, says := range map[*tasking.Client]string{writer: tt.says, stranger: "decrypt arguments: none of the 1 keys", nobody: "decrypt arguments: this process has no key"} {
			out := c.Execute(t.Context(), tasking.Holder{ID: w}, claim)
			if out.State != tasking.Failed || !strings.Contains(out.Error.Description, says) {
				t.Errorf("%s of %s: %s %v, want %q", tt.name, tt.args, out.State, out.Error, says)
			}
			secret("the error", out.Error.Error())
			secret("the traceback", *out.Error.Traceback)
			if c == writer {
				failed, err := tasking.EncodeError(out.Error)
				if err != nil {
					t.Fatal(err)
				}
				p := finishParams(&w, d.ID, int32(claim.Attempt), tasking.Failed, "", failed)
				h.turn(p)
			}
		}
		task := h.get(d.ID)
		secret("the task", fmt.Sprintf("%+v %v", task, task.Error))
	}

	// What cannot be dispatched.
	for _, r := range []tasking.Request{
		{Name: "test.told", Args: json.RawMessage(`{"password": hush}`)},
		{Name: "test.told", Args: json.RawMessage(`{"password": "hush` + "\xff" + `"}`)},
		{Name: "test.told", Args: json.RawMessage(`"hush"`), Options: tasking.Options{Group: &uuid.Max}},
		{Name: "test.told", Args: shy{"hush"}},
		{Name: "test.told", Args: json.Number("hush")},
		{Name: "test.told", Args: []any{json.RawMessage("hush")}},
		{Name: "test.told", Args: map[string]any{"hush": func() {}}},
		{Name: "test.unheard", Args: "hush"},
		{Name: "test.told", Args: "hush", Options: tasking.Options{Priority: 1 << 20}},
		{Name: "test.told", Args: "hush", Options: tasking.Options{NotDeferred: true, Immediate: true}},
	} {
		if _, err := writer.Dispatch(t.Context(), r); err == nil {
			t.Errorf("%+v was dispatched", r)
		} else {
			secret("the refusal", err.Error())
		}
		raw, ok := r.Args.(json.RawMessage)
		if !ok || r.Group != nil {
			continue
		}
		if _, err := writer.SaveSchedule(t.Context(), tasking.Schedule{Name: "s", Task: r.Name, Args: raw}); err == nil {
			t.Errorf("%s was saved", raw)
		} else {
			secret("the schedule's refusal", err.Error())
		}
	}
	if _, err := writer.SaveSchedule(t.Context(), tasking.Schedule{Name: "s", Task: "test.told", Args: json.RawMessage(`"hush"`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.DispatchDue(t.Context()); err == nil || !strings.Contains(err.Error(), `schedule "s": decrypt arguments: none of the 1 keys`) {
		t.Errorf("a schedule with another key: %v", err)
	} else {
		secret("the schedule's failure", err.Error())
	}
	secret("the log", logged.String())
	for _, table := range []string{"task", "task_schedule"} {
		secret(table, one[string](h, "SELECT coalesce(json_agg(t), '[]')::text FROM "+table+" t"))
	}
}

// Keys change one process at a time, while tasks wait and others come. Each step is one that no task notices: all
// know a key before anybody writes with it, and nobody forgets it before what it has written has gone.
func TestKeysRotateUnderAQueueOfTasks(t *testing.T) {
	t.Parallel()
	h := newHarness(t, told)
	steps := [][]string{{key('o')}, {key('o'), key('n')}, {key('n'), key('o')}, {key('n')}}
	w := h.worker()
	type waiting struct {
		id   uuid.UUID
		args string
	}
	var queue []waiting
	dispatch := func(keys []string) {
		t.Helper()
		c := h.client(h.Pool, tasking.Config{Keys: keys}, told)
		args := fmt.Sprintf(`{"number":%d}`, len(queue))
		d, err := c.Dispatch(t.Context(), told.Request(json.RawMessage(args), tasking.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		queue = append(queue, waiting{d.ID, args})
	}
	// run has a worker with these keys run the first of the queue.
	run := func(keys []string) {
		t.Helper()
		next := queue[0]
		queue = queue[1:]
		claim := h.claim(w, 1)[0]
		claim.Name = "test.told"
		if claim.ID != next.id || strings.Contains(string(claim.Args), "number") {
			t.Fatalf("claimed %s with %s, want %s", claim.ID, claim.Args, next.id)
		}
		out := h.client(h.Pool, tasking.Config{Keys: keys}, told).Execute(t.Context(), tasking.Holder{ID: w}, claim)
		if out.State != tasking.Completed || string(out.Result) != next.args {
			t.Errorf("with %d keys: %s %s, %v", len(keys), out.State, out.Result, out.Error)
		}
		h.finish(w, claim.ID, tasking.Completed)
	}
	drain := func(keys []string) {
		t.Helper()
		for len(queue) > 0 {
			run(keys)
		}
	}
	save := func(keys []string) {
		t.Helper()
		if _, err := h.client(h.Pool, tasking.Config{Keys: keys}, told).SaveSchedule(t.Context(),
			tasking.Schedule{Name: "s", Task: "test.told", Args: json.RawMessage(`{"number":"s"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	fire := func(keys []string) (int, error) {
		return h.client(h.Pool, tasking.Config{Keys: keys}, told).DispatchDue(t.Context())
	}

	save(steps[0])
	dispatch(steps[0])
	dispatch(steps[0])
	for i := 1; i < len(steps); i++ {
		before, after := steps[i-1], steps[i]
		if i == len(steps)-1 {
			drain(before) // the old key has written nothing that is left
			save(before)
		}
		// Some processes are on this step already, some are not yet.
		for _, keys := range [][]string{before, after, before, after} {
			dispatch(keys)
		}
		for _, keys := range [][]string{after, before, before, after} {
			run(keys)
		}
		if len(queue) < 1 && i < len(steps)-1 {
			t.Fatal("no task waits over the next change")
		}
	}
	drain(steps[3])
	if n, err := fire(steps[3]); n != 1 || err != nil {
		t.Errorf("%d schedules were dispatched, %v", n, err)
	}
	queue = []waiting{{one[uuid.UUID](h, "SELECT last_task FROM task_schedule"), `{"number":"s"}`}}
	drain(steps[3])

	// What was forgotten: a schedule that the old key has written stays due until it is saved again.
	save(steps[0])
	if n, err := fire(steps[3]); n != 0 || err == nil || !strings.Contains(err.Error(), "none of the 1 keys") {
		t.Errorf("%d schedules were dispatched, %v", n, err)
	}
	save(steps[3])
	if n, err := fire(steps[3]); n != 1 || err != nil {
		t.Errorf("%d schedules were dispatched, %v", n, err)
	}
}
