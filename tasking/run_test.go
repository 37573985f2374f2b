package tasking_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

func TestLogOfARunTellsWhichTaskItIs(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	logs := tasking.NewType("test.logs", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		run.Log.Debug("not wanted")
		run.Log.Info("plain", "n", 1)
		run.Log.With("a", "b").WithGroup("g").Info("grouped", "n", 2)
		run.Log.WithGroup("g").Info("group", "n", 3)
		return run.Log.Enabled(ctx, slog.LevelDebug), nil
	}, tasking.TypeConfig{})
	registry, err := tasking.NewRegistry(logs)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		},
	})).With("process", "p")
	c, err := tasking.New(h.Pool, tasking.Config{Registry: registry, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	got := c.Execute(t.Context(), tasking.Holder{ID: uuid.New()}, tasking.Claim{
		ID: uuid.Max, Attempt: 1, Name: logs.Name(), Args: json.RawMessage("null"), CorrelationID: "c",
	})
	if string(got.Result) != "false" {
		t.Errorf("debug is enabled: %s, %v", got.Result, got.Error)
	}
	task := "process=p task_name=test.logs task=" + uuid.Max.String() + " correlation_id=c "
	want := "msg=plain " + task + "n=1\nmsg=grouped " + task + "a=b g.n=2\nmsg=group " + task + "g.n=3\n"
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(out.String(), "\n")); diff != "" {
		t.Error(diff)
	}
}

// selfDecoding decodes itself, null too.
type selfDecoding struct{ text string }

func (s *selfDecoding) UnmarshalJSON(data []byte) error {
	s.text = string(data)
	return nil
}

func TestNullArguments(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	result := func(typ tasking.AnyType) string {
		t.Helper()
		out := h.client(h.Pool, tasking.Config{}, typ).Execute(t.Context(), tasking.Holder{ID: uuid.New()}, tasking.Claim{
			ID: uuid.Max, Attempt: 1, Name: typ.Name(), Args: json.RawMessage("null"),
		})
		if out.State != tasking.Completed {
			t.Errorf("%s: %v", typ.Name(), out.Error)
		}
		return string(out.Result)
	}
	if got := result(tasking.NewType("test.self", func(_ context.Context, _ *tasking.Run, a selfDecoding) (string, error) {
		return a.text, nil
	}, tasking.TypeConfig{})); got != `"null"` {
		t.Errorf("arguments that decode themselves got %s", got)
	}
	if got := result(tasking.NewType("test.pointer", func(_ context.Context, _ *tasking.Run, a *selfDecoding) (bool, error) {
		return a == nil, nil
	}, tasking.TypeConfig{})); got != "true" {
		t.Errorf("a pointer is nil: %s", got)
	}
	if got := result(tasking.NewType("test.struct", func(_ context.Context, _ *tasking.Run, a struct{ N int }) (int, error) {
		return a.N, nil
	}, tasking.TypeConfig{})); got != "0" {
		t.Errorf("a struct has %s", got)
	}
}
