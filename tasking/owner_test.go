package tasking_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/tasking"
)

// ownersOf are who has which role on a task, as user:role.
func (h *harness) ownersOf(id uuid.UUID) []string {
	h.t.Helper()
	rows, err := h.Direct.Query(h.t.Context(), "SELECT user_id || ':' || role FROM user_role WHERE model = 'core.task' AND object = $1 ORDER BY 1", id.String())
	if err != nil {
		h.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		h.t.Fatal(err)
	}
	return list
}

// addUsers adds users, whose ids count from 1.
func (h *harness) addUsers(n int) {
	h.t.Helper()
	if _, err := h.Direct.Exec(h.t.Context(), "INSERT INTO auth_user (username, password) SELECT 'u' || n, '!' FROM generate_series(1, $1) n", n); err != nil {
		h.t.Fatal(err)
	}
}

// ofUser are the roles of who dispatched a task.
func ofUser(user int) []string {
	return []string{fmt.Sprintf("%d:core.task_owner", user), fmt.Sprintf("%d:core.task_user_dispatcher", user)}
}

func TestChildrenBelongToTheDispatcherOfTheirParent(t *testing.T) {
	t.Parallel()
	var children []tasking.Dispatched
	typ := tasking.NewType("test.parent", func(ctx context.Context, run *tasking.Run, _ any) (any, error) {
		one, err := run.Dispatch(ctx, plain.Request(nil, tasking.Options{}))
		many, other := run.DispatchMany(ctx, []tasking.Request{plain.Request(nil, tasking.Options{}), plain.Request(nil, tasking.Options{Exclusive: []string{"r"}})})
		children = slices.Concat(many, []tasking.Dispatched{one})
		return nil, errors.Join(err, other)
	}, tasking.TypeConfig{})
	h := newHarness(t, typ)
	h.addUsers(3)
	s := held(h, typ.Request(nil, tasking.Options{Owner: 2}))
	// What somebody may see besides is not handed on.
	if _, err := h.Direct.Exec(t.Context(), "INSERT INTO user_role (id, user_id, role, model, object) VALUES (gen_random_uuid(), 3, 'core.task_viewer', 'core.task', $1)", s.id.String()); err != nil {
		t.Fatal(err)
	}
	out := h.c.Execute(t.Context(), tasking.Holder{ID: s.holder}, tasking.Claim{ID: s.id, Attempt: 1, Name: "test.parent", Args: json.RawMessage("null")})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	for _, child := range children {
		if diff := cmp.Diff(ofUser(2), h.ownersOf(child.ID)); diff != "" {
			t.Errorf("child (-want +got):\n%s", diff)
		}
	}
}

func TestOwnersOfTasksThatGoTogetherAreKeptApart(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.addUsers(3)
	const each = 25
	ids := make([][]uuid.UUID, 4) // by owner; 0: nobody
	var all sync.WaitGroup
	var mu sync.Mutex
	for i := range each * len(ids) {
		all.Go(func() {
			owner := i % len(ids)
			d, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Owner: owner}))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			ids[owner] = append(ids[owner], d.ID)
		})
	}
	all.Wait()
	many, err := h.c.DispatchMany(t.Context(), []tasking.Request{plain.Request(nil, tasking.Options{}), plain.Request(nil, tasking.Options{Owner: 3}), plain.Request(nil, tasking.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	ids[0], ids[3] = append(ids[0], many[0].ID, many[2].ID), append(ids[3], many[1].ID)
	for owner, list := range ids {
		want := ofUser(owner)
		if owner == 0 {
			want = []string{}
		}
		for _, id := range list {
			if got := h.ownersOf(id); !slices.Equal(got, want) {
				t.Fatalf("a task of %d belongs to %v", owner, got)
			}
		}
	}
}

func TestTaskThatIsRefusedLeavesNoOwner(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.addUsers(1)
	nowhere := uuid.New()
	if _, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Owner: 1, Group: &nowhere})); !errors.Is(err, tasking.ErrNotFound) {
		t.Fatal(err)
	}
	var n int
	if err := h.Direct.QueryRow(t.Context(), "SELECT count(*) FROM user_role").Scan(&n); err != nil || n != 0 {
		t.Errorf("%d roles, %v", n, err)
	}
	// Nobody owns by the function what is there already.
	d, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Direct.Exec(t.Context(), "SELECT task_own(ARRAY[$1::uuid], NULL, ARRAY[1])", d.ID); err != nil {
		t.Fatal(err)
	}
	if got := h.ownersOf(d.ID); len(got) != 0 {
		t.Errorf("it belongs to %v", got)
	}
}

func TestChildOfADeletedUsersTaskBelongsToNobody(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.addUsers(2)
	parent, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Owner: 1}))
	if err != nil {
		t.Fatal(err)
	}
	tx, err := h.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(t.Context()))
	if _, err := tx.Exec(t.Context(), "DELETE FROM auth_user WHERE id = 1"); err != nil {
		t.Fatal(err)
	}
	child := uuid.New()
	owned := make(chan error, 1)
	go func() {
		_, err := h.Pool.Exec(t.Context(), "SELECT task_own(ARRAY[$1::uuid], $2::uuid, '{2}')", child, parent.ID)
		owned <- err
	}()
	h.UntilBlocked(t)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-owned; err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(ofUser(2), h.ownersOf(child)); diff != "" {
		t.Errorf("child (-want +got):\n%s", diff)
	}
	if _, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Owner: 1})); !errors.Is(err, tasking.ErrOwnerGone) {
		t.Errorf("dispatch for a user who is gone: %v", err)
	}
}

func TestRolesGoWithTheirObjects(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.addUsers(1)
	give := func(model, object string) {
		h.exec("INSERT INTO user_role (id, user_id, role, model, object) VALUES (gen_random_uuid(), 1, 'a.role', $1, $2)", model, object)
	}
	left := func(what string, want int) {
		t.Helper()
		if n := one[int](h, "SELECT count(*) FROM user_role"); n != want {
			t.Errorf("%s: %d roles are left, want %d", what, n, want)
		}
	}
	schedule := tasking.Schedule{Name: "s", Task: plain.Name(), Interval: time.Hour}
	saved, err := h.c.SaveSchedule(t.Context(), schedule)
	if err != nil {
		t.Fatal(err)
	}
	give("core.taskschedule", saved.ID.String())
	give("core.taskschedule", uuid.NewString())
	give("core.task", saved.ID.String())
	h.exec("UPDATE task_schedule SET next_dispatch = now()")
	left("a schedule that is dispatched", 3)
	if saved, err = h.c.SaveSchedule(t.Context(), schedule); err != nil {
		t.Fatal(err)
	}
	left("a schedule that is replaced", 2)
	give("core.taskschedule", saved.ID.String())
	if err := h.c.RemoveSchedule(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	left("a schedule that is removed", 2)
	task, err := h.c.Dispatch(t.Context(), plain.Request(nil, tasking.Options{Owner: 1}))
	if err != nil {
		t.Fatal(err)
	}
	left("a task", 4)
	if _, err := h.c.Cancel(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	// Whoever deletes it, such as another release.
	h.exec("DELETE FROM task WHERE id = $1", task.ID)
	left("a task that is deleted", 2)
}
