package api

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/crypto/bcrypt"

	"github.com/pithworks/pith/db"
)

// User is who asks.
type User struct {
	ID   int
	Name string
	// Superuser may do everything.
	Superuser bool
}

// maxVerified is how many verified credentials are remembered.
const maxVerified = 10000

// hashCost is bcrypt's: some 50 ms.
const hashCost = bcrypt.DefaultCost

// maxPassword is how many bytes of a password bcrypt looks at.
const maxPassword = 72

const longPassword = "Ensure this field has no more than 72 bytes."

// users verifies credentials. To hash a password takes so long that what was verified is remembered: not the password, but
// its code under a key of this process, together with the hash that it fits. A new hash is verified anew, so a changed
// password, and a user who is gone, count at once.
type users struct {
	db  *pgxpool.Pool
	q   *db.Queries
	key []byte
	// hashing bounds how many passwords are hashed at the same time: whoever guesses shall not have all processors.
	hashing chan struct{}
	// waiting are those who wait for that.
	waiting chan struct{}

	mu       sync.Mutex
	verified map[[sha256.Size]byte]struct{}
}

func newUsers(pool *pgxpool.Pool) *users {
	u := &users{
		db: pool, q: db.New(), key: make([]byte, 32), hashing: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		waiting: make(chan struct{}, maxWaiting), verified: map[[sha256.Size]byte]struct{}{},
	}
	_, _ = rand.Read(u.key) // it never fails
	return u
}

// authenticate answers who asks, or the problem that nobody is known.
func (u *users) authenticate(ctx context.Context, r *http.Request) (*User, error) {
	name, password, ok := basicAuth(r)
	if !ok {
		return nil, unauthorized(r, "Authentication credentials were not provided.")
	}
	refused := badCredentials(r)
	if strings.ContainsRune(name, 0) || len(name) > maxUsername*4 {
		return nil, refused
	}
	row, err := query(ctx, func(ctx context.Context) (db.AuthUser, error) { return u.q.UserGetByName(ctx, u.db, name) })
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	// Also for a user who is not there, so that the time does not tell.
	if good, err := u.verify(ctx, row.Password, password); err != nil || !good || !row.IsActive {
		if err != nil {
			return nil, err
		}
		return nil, refused
	}
	return &User{ID: int(row.ID), Name: row.Username, Superuser: row.IsSuperuser}, nil
}

// badCredentials is the problem that nobody has these, any more.
func badCredentials(r *http.Request) error { return unauthorized(r, "Invalid username/password.") }

// unusable is what the database keeps of nobody's password: no hash begins so, and no two are alike.
func unusable() string { return "!" + rand.Text() }

// usable reports whether what the database keeps of a password is a hash.
func usable(hash string) bool { return hash != "" && hash[0] != '!' }

// nobody is a hash that no password fits.
var nobody = sync.OnceValue(func() []byte {
	hash, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), hashCost)
	if err != nil {
		panic(err) // it fails for long passwords and unknown costs only
	}
	return hash
})

// verify tells whether a password fits a hash.
func (u *users) verify(ctx context.Context, hash, password string) (bool, error) {
	mac := hmac.New(sha256.New, u.key)
	_, _ = mac.Write([]byte(hash + "\x00" + password))
	code := [sha256.Size]byte(mac.Sum(nil))
	u.mu.Lock()
	_, known := u.verified[code]
	u.mu.Unlock()
	if known {
		return true, nil
	}
	if err := u.slot(ctx); err != nil {
		return false, err
	}
	defer func() { <-u.hashing }()
	compare := []byte(hash)
	if !usable(hash) {
		compare = nobody()
	}
	// bcrypt passes over what is beyond its limit: no hash is of so long a password.
	if bcrypt.CompareHashAndPassword(compare, []byte(password)) != nil || !usable(hash) || len(password) > maxPassword {
		return false, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.verified) >= maxVerified {
		clear(u.verified)
	}
	u.verified[code] = struct{}{}
	return true, nil
}

// maxWaiting and maxWait bound who waits for a slot: beyond that a client is told to come back.
const (
	maxWaiting = 64
	maxWait    = 5 * time.Second
)

var errBusy = &ResponseError{
	Status: http.StatusServiceUnavailable, Body: Detail{"Too many passwords are to be verified at the moment."}, Header: http.Header{"Retry-After": {"1"}},
}

// slot takes one of those in which passwords are hashed; who has got one gives it back.
func (u *users) slot(ctx context.Context) error {
	select {
	case u.hashing <- struct{}{}:
		return nil
	default:
	}
	select {
	case u.waiting <- struct{}{}:
		defer func() { <-u.waiting }()
	default:
		return errBusy
	}
	most := time.NewTimer(maxWait)
	defer most.Stop()
	select {
	case u.hashing <- struct{}{}:
		return nil
	case <-most.C:
		return errBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hashPassword makes what the database keeps of a password.
func hashPassword(password string) (string, error) {
	if len(password) > maxPassword {
		return "", FieldErrors{"password": []string{longPassword}}
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), hashCost)
	return string(hash), err
}

// basicAuth reads a request's credentials. Pulp's clients encode them as Latin-1, others as UTF-8.
func basicAuth(r *http.Request) (name, password string, ok bool) {
	name, password, ok = r.BasicAuth()
	return utf8From(name), utf8From(password), ok
}

func utf8From(text string) string {
	if strings.ToValidUTF8(text, "") == text {
		return text
	}
	out := make([]rune, 0, len(text))
	for i := range len(text) {
		out = append(out, rune(text[i]))
	}
	return string(out)
}

// unauthorized is the problem that nobody is known, with how to say who asks; a script in a browser is told so in a way
// that makes the browser not ask for a password.
func unauthorized(r *http.Request, text string) *ResponseError {
	challenge := `Basic realm="api"`
	if r.Header.Get("X-Requested-With") == "XMLHttpRequest" {
		challenge = "x" + challenge
	}
	p := detail(http.StatusUnauthorized, text)
	p.Header = http.Header{"Www-Authenticate": {challenge}}
	return p
}

// Role is a set of permissions that a user can be given on an object, or on all. Roles are the program's own: nobody
// changes them.
type Role struct {
	Name, Description string
	Permissions       []string
}

// viewTask is the permission to see a task.
const viewTask = "core.view_task"

// coreRoles are those of the core, by name.
var coreRoles = []Role{
	{"core.task_owner", "Allow all actions on a task.", []string{"core.change_task", "core.delete_task", "core.manage_roles_task", viewTask, "core.view_task_profile_artifacts"}},
	{"core.task_user_dispatcher", "Has dispatched a task.", []string{"core.add_task"}},
	{"core.task_viewer", "View any task.", []string{viewTask}},
	{"core.taskschedule_owner", "Manage a task schedule.", []string{"core.manage_roles_taskschedule", "core.view_taskschedule"}},
	{"core.taskschedule_viewer", "View a task schedule.", []string{"core.view_taskschedule"}},
}

// role finds a role by its name.
func (s *Server) role(name string) (Role, bool) {
	i := slices.IndexFunc(s.roles, func(r Role) bool { return r.Name == name })
	if i < 0 {
		return Role{}, false
	}
	return s.roles[i], true
}

// on reports whether the role has a permission on objects of a model.
func (r Role) on(model string) bool {
	return slices.ContainsFunc(r.Permissions, func(p string) bool { return concerns(p, model) })
}

// concerns reports whether a permission is one on objects of a model: core.view_task_profile_artifacts is on core.task.
func concerns(permission, model string) bool {
	app, name, _ := strings.Cut(model, ".")
	action, ok := strings.CutPrefix(permission, app+".")
	return ok && strings.Contains(action+"_", "_"+name+"_")
}

// rolesWith are the names of the roles that have a permission.
func (s *Server) rolesWith(permission string) (names []string) {
	for _, r := range s.roles {
		if slices.Contains(r.Permissions, permission) {
			names = append(names, r.Name)
		}
	}
	return names
}

// permissions are those that a user has on an object.
func (r *Request) permissions(ctx context.Context, res *Resource, key string) ([]string, error) {
	var out []string
	held, err := query(ctx, func(ctx context.Context) ([]string, error) {
		return r.server.q.UserRoleHeld(ctx, r.server.db, db.UserRoleHeldParams{UserID: int32(r.User.ID), Model: res.Model, Object: key})
	})
	if err != nil {
		return nil, err
	}
	for _, each := range r.server.roles {
		if r.User.Superuser || slices.Contains(held, each.Name) {
			out = append(out, each.Permissions...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// May tells whether the user has a permission on the object of a resource that the path names, or on all where the path
// names none. Who has not even the one to see the object is told that it is not there. Objects that have parents have no
// rights of their own: ask for those on the parent.
func (r *Request) May(ctx context.Context, res *Resource, permission, view string) error {
	if r.User.Superuser {
		return nil
	}
	key := r.ID
	for at := r.resource; at != nil; at = at.Parent {
		if at == res {
			key = r.PathValue(res.parameter())
		}
	}
	have, err := r.permissions(ctx, res, key)
	switch {
	case err != nil:
		return err
	case key != "" && !slices.Contains(have, view):
		return NotFound(res.Noun)
	case !slices.Contains(have, permission):
		return errDenied
	}
	return nil
}
