package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

func TestDispatchManyKeepsItsOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	requests := make([]tasking.Request, 2000)
	for i := range requests {
		o := tasking.Options{}
		if i%3 == 0 {
			o.Shared = []string{"a"}
		}
		requests[i] = plain.Request(i, o)
	}
	ds, err := h.c.DispatchMany(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	got := query[string](h, "SELECT id::text || ' ' || args FROM task ORDER BY seq")
	for i, d := range ds {
		if want := fmt.Sprintf("%s %d", d.ID, i); i >= len(got) || got[i] != want {
			t.Fatalf("place %d has %s, want %s", i, got[i], want)
		}
		if d.State != tasking.Waiting || d.CreatedAt.IsZero() {
			t.Fatalf("told %+v", d)
		}
	}
}

func TestDispatchManyTellsKindsApart(t *testing.T) {
	t.Parallel()
	versioned := tasking.NewType[any, any]("test.versioned", nil, tasking.TypeConfig{Versions: map[string]string{"core": "3"}})
	h := newHarness(t, versioned)
	of := func(typ *tasking.Type[any, any], versions map[string]string) tasking.Request {
		return typ.Request(nil, tasking.Options{Versions: versions})
	}
	requests := []tasking.Request{
		of(versioned, nil), of(versioned, nil), of(plain, nil), of(plain, nil), of(retried, nil),
		of(versioned, map[string]string{}), of(plain, nil), of(plain, map[string]string{"core": "3"}), of(plain, nil),
		of(versioned, map[string]string{"core": "4"}), of(versioned, nil), of(plain, map[string]string{"core": "3"}), of(retried, nil),
	}
	for _, requests := range [][]tasking.Request{requests, requests[:2], requests[3:5]} {
		ds, err := h.c.DispatchMany(t.Context(), requests)
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range ds {
			r := requests[i]
			versions := r.Versions
			if versions == nil {
				versions = map[string]string{}
				if r.Name == versioned.Name() {
					versions["core"] = "3"
				}
			}
			attempts := 1
			if r.Name == retried.Name() {
				attempts = 3
			}
			task := h.get(d.ID)
			if task.Name != r.Name || task.MaxAttempts != attempts || !cmp.Equal(task.Versions, versions) {
				t.Errorf("%d is a %s of %d attempts that needs %v, not a %s of %d that needs %v",
					i, task.Name, task.MaxAttempts, task.Versions, r.Name, attempts, versions)
			}
		}
	}
	if backoff := one[string](h, "SELECT backoff::text FROM task_kind WHERE name = $1", retried.Name()); backoff != "00:01:00" {
		t.Errorf("the backoff is %s", backoff)
	}
}

func TestDispatchManyOfNothingIsNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if ds, err := h.c.DispatchMany(t.Context(), nil); err != nil || ds != nil {
		t.Errorf("%v, %v", ds, err)
	}
}

func TestDispatchManyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, last := range map[string]tasking.Request{
		"invalid":      {Name: "test.plain", Options: tasking.Options{Priority: 1_000_000}},
		"unknown type": {Name: "test.unheard"},
		"no group":     {Name: "test.plain", Options: tasking.Options{Group: &uuid.Max}},
	} {
		t.Run(name, func(t *testing.T) {
			h := h.in(t)
			if _, err := h.c.DispatchMany(t.Context(), []tasking.Request{plain.Request(nil, tasking.Options{}), last}); err == nil {
				t.Error("no error")
			}
			h.wantRows("task", 0)
		})
	}
}

func TestRecordListsExclusiveThenSharedThenDomain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const domain = "shared:" + tasking.Domain
	for _, tt := range []struct {
		words string
		want  []string
	}{
		{"", []string{domain}},
		{"x:b x:a", []string{"b", "a", domain}},
		{"s:b s:a", []string{"shared:b", "shared:a", domain}},
		{"s:c x:b s:a x:d", []string{"b", "d", "shared:c", "shared:a", domain}},
		{"x:a s:a s:b", []string{"a", "shared:b", domain}},
		{"x:a x:a s:b s:b", []string{"a", "shared:b", domain}},
		{"s:domain", []string{domain}},
		{"s:domain x:a", []string{"a", domain}},
		{"x:domain", []string{tasking.Domain}},
		{"x:domain s:domain s:a", []string{tasking.Domain, "shared:a"}},
		{"x:a x:domain s:b", []string{"a", tasking.Domain, "shared:b"}},
	} {
		t.Run(tt.words, func(t *testing.T) {
			h := h.in(t)
			task := h.get(h.dispatch(plain.Request(nil, reserving(tt.words))))
			if diff := cmp.Diff(tt.want, task.Reserved); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRequestsThatCanNeverRunAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	long := strings.Repeat("r", tasking.MaxResourceName+1)
	many := make([]string, tasking.MaxResources+1)
	for i := range many {
		many[i] = strconv.Itoa(i)
	}
	app := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)}, tasking.NewType[any, any]("test.elsewhere", nil, tasking.TypeConfig{Immediate: true}))
	for _, tt := range []struct {
		name string
		r    tasking.Request
		says string
	}{
		{"unknown type", tasking.Request{Name: "test.unheard"}, `"test.unheard"`},
		{"no type", tasking.Request{}, `""`},
		{"empty resource", plain.Request(nil, tasking.Options{Exclusive: []string{"a", ""}}), "resource name is empty"},
		{"empty shared resource", plain.Request(nil, tasking.Options{Shared: []string{""}}), "resource name is empty"},
		{"long resource", plain.Request(nil, tasking.Options{Shared: []string{long}}), "513 bytes"},
		{"zero byte in a resource", plain.Request(nil, tasking.Options{Exclusive: []string{"a\x00b"}}), `"a\x00b"`},
		{"resource not UTF-8", plain.Request(nil, tasking.Options{Exclusive: []string{"a\xff"}}), `"a\xff"`},
		{"resource with prefix", plain.Request(nil, tasking.Options{Exclusive: []string{"shared:a"}}), `"shared:a"`},
		{"too many resources", plain.Request(nil, tasking.Options{Shared: many}), "1001 resources"},
		{"neither immediate nor deferred", plain.Request(nil, tasking.Options{NotDeferred: true}), "neither immediate nor deferred"},
		{"priority too high", plain.Request(nil, tasking.Options{Priority: 10001}), "10001"},
		{"priority too low", plain.Request(nil, tasking.Options{Priority: -10001}), "-10001"},
		{"long correlation id", plain.Request(nil, tasking.Options{CorrelationID: strings.Repeat("c", 256)}), "cccc"},
		{"correlation id with a zero byte", plain.Request(nil, tasking.Options{CorrelationID: "c\x00"}), `"c\x00"`},
		{"not before and not deferred", plain.Request(nil, tasking.Options{Immediate: true, NotDeferred: true, NotBefore: time.Unix(4e9, 0).UTC()}), "2096-10-02"},
		{"version", plain.Request(nil, tasking.Options{Versions: map[string]string{"core": "three"}}), `core: "three"`},
		{"version without a label", plain.Request(nil, tasking.Options{Versions: map[string]string{"": "3"}}), "label is empty"},
		{"zero byte in a label", plain.Request(nil, tasking.Options{Versions: map[string]string{"co\x00re": "3"}}), `"co\x00re"`},
		{"arguments not JSON", plain.Request(json.RawMessage("{oops"), tasking.Options{}), "not JSON: a syntax error at byte 2"},
		{"arguments not UTF-8", plain.Request(json.RawMessage("\"\xff\""), tasking.Options{}), "not UTF-8 at byte 1"},
		{"arguments with something not UTF-8 inside", plain.Request([]json.RawMessage{json.RawMessage("\"\xff\"")}, tasking.Options{}), "not UTF-8 at byte 2"},
		{"arguments that cannot be encoded", plain.Request(func() {}, tasking.Options{}), "func()"},
		{"arguments that look encrypted", plain.Request(map[string]string{"$encrypted": "x"}, tasking.Options{}), `"$encrypted"`},
		{"not deferred, without a function here", tasking.Request{Name: "test.elsewhere", Options: tasking.Options{Immediate: true, NotDeferred: true}}, "the type's function"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := app.Dispatch(t.Context(), tt.r)
			if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("got %v, should be invalid and say %q", err, tt.says)
			}
		})
	}
	t.Run("not deferred, without an app", func(t *testing.T) {
		_, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Immediate: true, NotDeferred: true}))
		if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "Config.App") {
			t.Error(err)
		}
	})
	t.Run("not deferred, with others", func(t *testing.T) {
		_, err := app.DispatchMany(t.Context(), []tasking.Request{plain.Request(nil, tasking.Options{Immediate: true, NotDeferred: true})})
		if !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "test.plain") {
			t.Error(err)
		}
	})
	t.Run("all errors at once", func(t *testing.T) {
		_, err := app.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Exclusive: []string{""}, Priority: 99999, NotDeferred: true}))
		for _, part := range []string{"empty", "99999", "neither"} {
			if !strings.Contains(fmt.Sprint(err), part) {
				t.Errorf("%v does not say %q", err, part)
			}
		}
	})
	h.wantRows("task", 0)
	h.wantRows("task_kind", 0)
}

func TestUnknownTypeIsInvalidAndNamesTheKnownOnes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, err := h.c.Dispatch(t.Context(), tasking.Request{Name: "test.unheard"})
	if !errors.Is(err, tasking.ErrUnknownType) || !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "test.plain, test.retried") {
		t.Error(err)
	}
}

func TestUnknownGroupIsNotFound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for name, dispatch := range map[string]func(tasking.Request) error{
		"one": func(r tasking.Request) error { _, err := h.c.Dispatch(t.Context(), r); return err },
		"many": func(r tasking.Request) error {
			_, err := h.c.DispatchMany(t.Context(), []tasking.Request{r, r})
			return err
		},
	} {
		if err := dispatch(plain.Request(nil, tasking.Options{Group: &uuid.Max})); !errors.Is(err, tasking.ErrNotFound) || !strings.Contains(fmt.Sprint(err), "group") {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.wantRows("task", 0)
}

func TestDispatchInATransactionExistsExactlyIfItCommits(t *testing.T) {
	t.Parallel()
	if !dbtest.Transactions() {
		t.Skip("PgBouncer in statement mode allows no caller's transaction")
	}
	h := newHarness(t)
	c := h.client(h.Pool, tasking.Config{App: h.process(appstatus.API)})
	for _, commit := range []bool{false, true} {
		tx, err := h.Pool.BeginTx(t.Context(), pgx.TxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ds, err := c.DispatchTx(t.Context(), tx,
			plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}),
			plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}),
			plain.Request(nil, tasking.Options{Immediate: true}))
		if err != nil || len(ds) != 3 {
			t.Fatal(ds, err)
		}
		h.wantRows("task", 0)
		end := tx.Rollback
		if commit {
			end = tx.Commit
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !commit {
			h.wantRows("task", 0)
			h.wantRows("task_reservation", 0)
			continue
		}
		for _, d := range ds {
			if got := h.state(d.ID); got != tasking.Waiting || d.State != tasking.Waiting {
				t.Errorf("told %s, is %s", d.State, got)
			}
		}
		h.wantBlockedOn([]int{0, 1, 0}, ds[0].ID, ds[1].ID, ds[2].ID)
	}
}

func TestDispatchInATransactionThatIsTooStrictIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		tx, err := h.Direct.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.c.DispatchTx(t.Context(), tx, plain.Request(nil, tasking.Options{Exclusive: []string{"a"}}))
		if err == nil || !strings.Contains(err.Error(), "READ COMMITTED") {
			t.Errorf("%s: %v", level, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestGroupAndCorrelationIDAreInherited(t *testing.T) {
	t.Parallel()
	var one, own tasking.Dispatched
	var many []tasking.Dispatched
	typ := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (_ any, err error) {
		var errs [3]error
		one, errs[0] = run.Dispatch(ctx, plain.Request(nil, tasking.Options{}))
		many, errs[1] = run.DispatchMany(ctx, []tasking.Request{plain.Request(nil, tasking.Options{}), plain.Request(nil, tasking.Options{Immediate: true})})
		own, errs[2] = run.Dispatch(ctx, plain.Request(nil, tasking.Options{CorrelationID: "own"}))
		return nil, errors.Join(errs[:]...)
	}, tasking.TypeConfig{})
	h := newHarness(t, typ)
	group, err := h.c.NewGroup(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	s := held(h, typ.Request(nil, tasking.Options{Group: &group, CorrelationID: "cid"}))
	out := h.c.Execute(t.Context(), tasking.Holder{ID: s.holder}, tasking.Claim{ID: s.id, Attempt: 1, Name: "test.parent", Args: json.RawMessage("null"), CorrelationID: "cid", Group: &group})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	for _, d := range append(many, one, own) {
		task := h.get(d.ID)
		cid := "cid"
		if d.ID == own.ID {
			cid = "own"
		}
		if task.Parent == nil || *task.Parent != s.id || task.Group == nil || *task.Group != group || task.CorrelationID != cid {
			t.Errorf("parent %v, group %v, correlation id %s", task.Parent, task.Group, task.CorrelationID)
		}
	}
	if got := h.get(s.id).Children; len(got) != 4 {
		t.Errorf("children: %v", got)
	}
}

func TestOutsideATaskEachDispatchHasItsOwnCorrelationID(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a, b := h.get(h.reserve(nil, nil)), h.get(h.reserve(nil, nil))
	if len(a.CorrelationID) != 32 || a.CorrelationID == b.CorrelationID {
		t.Errorf("%q and %q", a.CorrelationID, b.CorrelationID)
	}
}

func TestResourceNamesOfEveryKindAreKept(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, name := range []string{
		"a", strings.Repeat("r", tasking.MaxResourceName), "ünïcode ☃", `quote " ' \ {},`, "NULL", " ", "\n", "shared", "%s", "prn:core.domain:",
	} {
		id := h.reserve([]string{name}, []string{name + "2"}[:min(1, tasking.MaxResourceName/(len(name)+1))])
		if got := h.get(id).Reserved[0]; got != name {
			t.Errorf("%q became %q", name, got)
		}
		h.cancel(id)
	}
	most := make([]string, tasking.MaxResources)
	for i := range most {
		most[i] = fmt.Sprintf("%0*d", tasking.MaxResourceName, i)
	}
	id := h.reserve(most, nil)
	next := h.reserve(most, nil)
	h.wantBlockedOn([]int{0, len(most)}, id, next)
	h.run(h.worker(), id)
	h.wantBlockedOn([]int{0}, next)
}

func TestWhatIsWrongNamesItsField(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, dispatched := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{
		Exclusive: []string{"shared:a"}, Shared: []string{""}, Versions: map[string]string{"core": "abc"}, Priority: 10001, NotDeferred: true,
		CorrelationID: "\x00", Diagnostics: []string{"x"},
	}))
	_, saved := h.c.SaveSchedule(t.Context(), tasking.Schedule{
		Task: "test.plain", Interval: -1, Delay: -1, Shared: []string{""}, Args: json.RawMessage(`{"$encrypted": "x"}`),
	})
	_, due := h.c.SaveSchedule(t.Context(), tasking.Schedule{Name: "s", Task: "test.plain", Cron: "x", Priority: -10001})
	_, args := h.c.Dispatch(t.Context(), plain.Request(func() {}, tasking.Options{}))
	for _, tt := range []struct {
		err  error
		want string
	}{
		{dispatched, "exclusive_resources shared_resources  priority correlation_id versions diagnostics"},
		{saved, "name dispatch_interval  shared_resources args"},
		{due, "cron priority"},
		{args, "args"},
	} {
		list := []error{tt.err}
		if several, ok := errors.AsType[interface {
			error
			Unwrap() []error
		}](tt.err); ok {
			list = several.Unwrap()
		}
		var fields []string
		for _, err := range list {
			e, ok := errors.AsType[*tasking.InvalidError](err)
			if !ok || !strings.Contains(tt.err.Error(), e.Text) {
				t.Fatalf("%v is not one of %v", err, tt.err)
			}
			fields = append(fields, e.Field)
		}
		if got := strings.Join(fields, " "); got != tt.want {
			t.Errorf("%v: fields %q, want %q", tt.err, got, tt.want)
		}
	}
}
