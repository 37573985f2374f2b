package api

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// newServer makes a server on a database.
func newServer(t *testing.T, d *dbtest.DB) *Server {
	t.Helper()
	s, err := New(d.Pool, func(app *appstatus.App) (*tasking.Client, error) {
		registry, err := builtin.Registry()
		if err != nil {
			return nil, err
		}
		return tasking.New(d.Pool, tasking.Config{Registry: registry, App: app})
	}, Config{Version: builtin.Version})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// underWay sends a statement whose answer is lost while it is still under way, then sends it again, and lets the first one
// be committed when the second one waits for it.
func underWay(t *testing.T, d *dbtest.DB, first func(pgx.Tx) error, again func() error) error {
	t.Helper()
	tx, err := d.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if err := first(tx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- again() }()
	d.UntilBlocked(t)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return <-ended
}

func TestUserCreateSentAgainFindsItsOwnUser(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	q := db.New()
	for _, password := range []string{unusable(), cheap(t, "secret")} {
		p := db.UserCreateParams{Username: "u" + password, Password: password, IsActive: true}
		id, err := addUser(t.Context(), d.Pool, p)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := addUser(t.Context(), d.Pool, p); again != id || err != nil {
			t.Errorf("sent again: %d, %v, want %d", again, err, id)
		}
		p.Password = unusable()
		if again, err := addUser(t.Context(), d.Pool, p); !errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("by somebody else: %d, %v", again, err)
		}
		p.Username = "v" + password
		var first, second int32
		err = underWay(t, d, func(tx pgx.Tx) (err error) {
			first, err = q.UserCreate(t.Context(), tx, p)
			return err
		}, func() (err error) {
			second, err = addUser(t.Context(), d.Pool, p)
			return err
		})
		if err != nil || first != second {
			t.Errorf("while it is under way: %d, %v, want %d", second, err, first)
		}
	}
}

func TestAssignmentSentAgainFindsItsOwnRoles(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	s := newServer(t, d)
	users := make([]int32, 3)
	for i, name := range []string{"a", "b", "c"} {
		var err error
		if users[i], err = addUser(t.Context(), d.Pool, db.UserCreateParams{Username: name, Password: unusable()}); err != nil {
			t.Fatal(err)
		}
	}
	assignment := func(object string, users ...int32) db.UserRoleAssignParams {
		a, err := newAssignment(users, "things.thing", object, "things.thing_viewer")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	one := assignment("one", users...)
	for range 2 {
		if had, err := s.assign(t.Context(), one); had != nil || err != nil {
			t.Errorf("%v, %v", had, err)
		}
	}
	if had, err := s.assign(t.Context(), assignment("one", users[1])); !slices.Equal(had, users[1:2]) || err != nil {
		t.Errorf("by somebody else: %v, %v", had, err)
	}
	another := assignment("another", users...)
	var had []int32
	err := underWay(t, d, func(tx pgx.Tx) error { return dropped(s.q.UserRoleAssign(t.Context(), tx, another)) }, func() (err error) {
		had, err = s.assign(t.Context(), another)
		return err
	})
	if had != nil || err != nil {
		t.Errorf("while it is under way: %v, %v", had, err)
	}
	third, other := assignment("third", users...), assignment("third", users[2])
	err = underWay(t, d, func(tx pgx.Tx) error { return dropped(s.q.UserRoleAssign(t.Context(), tx, other)) }, func() (err error) {
		had, err = s.assign(t.Context(), third)
		return err
	})
	if !slices.Equal(had, users[2:]) || err != nil {
		t.Errorf("while somebody else's is under way: %v, %v", had, err)
	}
	for object, want := range map[string][]pgtype.UUID{"one": one.IDs, "another": another.IDs, "third": other.IDs} {
		rows, err := s.holders(t.Context(), db.UserRoleHoldersParams{UserIds: users, Role: "things.thing_viewer", Model: "things.thing", Object: object})
		if err != nil || len(rows) != len(want) || slices.ContainsFunc(rows, func(r db.UserRoleHoldersRow) bool { return !slices.Contains(want, r.ID) }) {
			t.Errorf("%s: %v, %v, want %v", object, rows, err, want)
		}
	}
	if had, err := s.assign(t.Context(), assignment("one", 99)); had != nil || !errors.Is(err, errUserGone) {
		t.Errorf("to a user who is gone: %v, %v", had, err)
	}
}

// dropped drops how many roles were given.
func dropped(_ int64, err error) error { return err }

func TestRolesOnATaskGoWithItWhoeverIsFirst(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	s := newServer(t, d)
	user, err := addUser(t.Context(), d.Pool, db.UserCreateParams{Username: "a", Password: unusable()})
	if err != nil {
		t.Fatal(err)
	}
	newTask := func() uuid.UUID {
		t.Helper()
		task, err := s.Tasks().Dispatch(t.Context(), tasking.Request{Name: "pulpcore.app.tasks.test.dummy_task"})
		if err == nil {
			_, err = s.Tasks().Cancel(t.Context(), task.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		return task.ID
	}
	assignment := func(task uuid.UUID) db.UserRoleAssignParams {
		a, err := newAssignment([]int32{user}, taskModel, task.String(), "core.task_viewer")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	task := newTask()
	err = underWay(t, d, func(tx pgx.Tx) error {
		gone, err := s.q.TaskDelete(t.Context(), tx, pgUUID(task))
		if err == nil && !gone {
			err = errors.New("not deleted")
		}
		return err
	}, func() error {
		_, err := s.assign(t.Context(), assignment(task))
		return err
	})
	if !errors.Is(err, errObjectGone) {
		t.Errorf("a role on a task that is being deleted: %v", err)
	}
	task = newTask()
	err = underWay(t, d, func(tx pgx.Tx) error { return dropped(s.q.UserRoleAssign(t.Context(), tx, assignment(task))) }, func() error {
		return s.Tasks().Delete(t.Context(), task)
	})
	if err != nil {
		t.Errorf("delete while a role is given: %v", err)
	}
	if _, err := s.assign(t.Context(), assignment(task)); !errors.Is(err, errObjectGone) {
		t.Errorf("a role on a task that is gone: %v", err)
	}
	var left int
	if err := d.Direct.QueryRow(t.Context(), "SELECT count(*) FROM user_role").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d roles are left, %v", left, err)
	}
}
