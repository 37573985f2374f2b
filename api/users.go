package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
)

// maxUsername is how many characters a name may have.
const maxUsername = 150

const badUsername = "Enter a valid username. This value may contain only letters, numbers, and @/./+/-/_ characters."

var usernames = regexp.MustCompile(`^[\pL\pN\pM_.@+-]+$`)

type userName string

// Problem tells of characters that no name has.
func (n userName) Problem() string {
	if !usernames.MatchString(string(n)) {
		return badUsername
	}
	return ""
}

type userPassword string

// Problem tells of one that is too long.
func (p userPassword) Problem() string {
	if len(p) > maxPassword {
		return longPassword
	}
	return ""
}

// emails are addresses as Django takes them: a dot-atom or a quoted text, and a domain, which may have letters beyond ASCII, or
// an IP address, which is not looked at.
var emails = regexp.MustCompile(`^([-\w!#$%&'*+/=?^{|}~` + "`" + `]+(\.[-\w!#$%&'*+/=?^{|}~` + "`" + `]+)*|"([\x01-\x08\x0b\x0c\x0e-\x1f!#-\[\]-\x7f]|\\[\x01-\x09\x0b\x0c\x0e-\x7f])*")` +
	`@(localhost|([\pL\pN]([\pL\pN-]{0,61}[\pL\pN])?\.)+[\pL\pN-]{1,62}[\pL\pN]|\[[\dA-Fa-f:.]+\])$`)

type userEmail string

// Problem tells of what is neither an address nor nothing.
func (e userEmail) Problem() string {
	if e != "" && !emails.MatchString(string(e)) {
		return "Enter a valid email address."
	}
	return ""
}

type userReply struct {
	PulpHref     string           `json:"pulp_href"`
	PRN          string           `json:"prn" doc:"The Pulp Resource Name."`
	ID           int              `json:"id"`
	Username     string           `json:"username"`
	FirstName    string           `json:"first_name"`
	LastName     string           `json:"last_name"`
	Email        string           `json:"email"`
	IsStaff      bool             `json:"is_staff" doc:"As in Pulp; means nothing to Pith."`
	IsActive     bool             `json:"is_active" doc:"May log in."`
	DateJoined   Time             `json:"date_joined"`
	Groups       []userGroupReply `json:"groups" doc:"Pith has no groups of users: always empty."`
	HiddenFields []hiddenField    `json:"hidden_fields"`
}

type userGroupReply struct {
	Name     string `json:"name"`
	PulpHref string `json:"pulp_href"`
	PRN      string `json:"prn"`
}

type hiddenField struct {
	Name  string `json:"name"`
	IsSet bool   `json:"is_set"`
}

type userBody struct {
	Username userName `json:"username" api:"required" max:"150" doc:"150 characters or fewer: letters, digits and @/./+/-/_ only."`
	userChange
}

type patchedUserBody struct {
	Username *userName `json:"username" max:"150" doc:"150 characters or fewer: letters, digits and @/./+/-/_ only."`
	userChange
}

// userChange is what may be left out of each body.
type userChange struct {
	Password  **userPassword `json:"password" api:"secret blank null" doc:"At most 72 bytes. Null or empty: nobody can log in. Left out: as before, and of a new user as null."`
	FirstName *string        `json:"first_name" api:"blank" max:"150"`
	LastName  *string        `json:"last_name" api:"blank" max:"150"`
	Email     *userEmail     `json:"email" api:"blank" max:"254"`
	IsStaff   *bool          `json:"is_staff"`
	IsActive  *bool          `json:"is_active"`
}

var (
	errNotUnique = FieldErrors{"username": []string{"This field must be unique."}}
	errNoUser    = NotFound("User")
)

// userID is the key of the user who is in the path.
func (r *Request) userID() (int32, error) {
	n, err := strconv.ParseInt(r.PathValue(r.server.own.users.parameter()), 10, 32)
	return int32(n), err
}

// maySuper lets superusers alone go on.
func (s *Server) maySuper(_ context.Context, r *Request) error {
	if !r.User.Superuser {
		return errDenied
	}
	return nil
}

// mayUser lets superusers alone go on, and them only if the user is there who is in the path.
func (s *Server) mayUser(ctx context.Context, r *Request) error {
	if err := s.maySuper(ctx, r); err != nil {
		return err
	}
	_, err := r.aUser(ctx, r.PathValue(s.own.users.parameter()))
	return err
}

func (r *Request) userReplies(ctx context.Context, keys []string) ([]userReply, error) {
	s := r.server
	ids := make([]int32, len(keys))
	for i, key := range keys {
		n, err := strconv.ParseInt(key, 10, 32)
		if err != nil {
			return nil, err
		}
		ids[i] = int32(n)
	}
	rows, err := query(ctx, func(ctx context.Context) ([]db.AuthUser, error) { return s.q.UserList(ctx, s.db, ids) })
	found := map[string]userReply{}
	for _, row := range rows {
		key := strconv.Itoa(int(row.ID))
		found[key] = userReply{
			PulpHref: r.Href(s.own.users, key), PRN: s.own.users.PRN(key), ID: int(row.ID), Username: row.Username,
			FirstName: row.FirstName, LastName: row.LastName, Email: row.Email, IsStaff: row.IsStaff, IsActive: row.IsActive,
			DateJoined: Time{row.DateJoined.Time}, Groups: []userGroupReply{}, HiddenFields: []hiddenField{{"password", usable(row.Password)}},
		}
	}
	return inOrder(keys, found), err
}

// existingUsers is a Resource's Existing.
func (s *Server) existingUsers(ctx context.Context, keys []string) ([]string, error) {
	replies, err := (&Request{server: s}).userReplies(ctx, keys)
	found := make([]string, len(replies))
	for i, reply := range replies {
		found[i] = strconv.Itoa(reply.ID)
	}
	return found, err
}

func (s *Server) listUsers(ctx context.Context, r *Request) (Reply, error) {
	found, err := r.Page(ctx, s.own.userList)
	if err != nil {
		return Reply{}, err
	}
	list, err := r.userReplies(ctx, found.Keys)
	if err != nil {
		return Reply{}, err
	}
	return OK(NewPage(found, list))
}

// aUser reads the user of a key.
func (r *Request) aUser(ctx context.Context, key string) (userReply, error) {
	list, err := r.userReplies(ctx, []string{key})
	if err == nil && len(list) == 0 {
		err = errNoUser
	}
	if err != nil {
		return userReply{}, err
	}
	return list[0], nil
}

func (s *Server) readUser(ctx context.Context, r *Request) (Reply, error) {
	u, err := r.aUser(ctx, r.ID)
	if err != nil {
		return Reply{}, err
	}
	return OK(u)
}

// hashed is what the database keeps of a password. Null and an empty one fit nothing.
func hashed(password *userPassword) (string, error) {
	if given(password) == "" {
		return unusable(), nil
	}
	return hashPassword(string(*password))
}

// given is a value that may be left out.
func given[T ~string](v *T) string {
	if v == nil {
		return ""
	}
	return string(*v)
}

func (s *Server) createUser(ctx context.Context, r *Request, body userBody) (Reply, error) {
	var password *userPassword
	if body.Password != nil {
		password = *body.Password
	}
	hash, err := hashed(password)
	if err != nil {
		return Reply{}, err
	}
	id, err := addUser(ctx, s.db, db.UserCreateParams{
		Username: string(body.Username), Password: hash, FirstName: given(body.FirstName), LastName: given(body.LastName), Email: given(body.Email),
		IsStaff: body.IsStaff != nil && *body.IsStaff, IsActive: body.IsActive == nil || *body.IsActive,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return Reply{}, errNotUnique
	} else if err != nil {
		return Reply{}, err
	}
	u, err := r.aUser(ctx, strconv.Itoa(int(id)))
	if err != nil {
		return Reply{}, err
	}
	return Reply{Status: http.StatusCreated, Body: u, Header: http.Header{"Location": {u.PulpHref}}}, nil
}

// addUser adds a user and answers the id, or pgx.ErrNoRows if the name is taken.
func addUser(ctx context.Context, pool *pgxpool.Pool, p db.UserCreateParams) (int32, error) {
	return query(ctx, func(ctx context.Context) (int32, error) {
		id, err := db.New().UserCreate(ctx, pool, p)
		if errors.Is(err, pgx.ErrNoRows) {
			// An earlier send may have been under way, and been committed since this one began.
			id, err = db.New().UserCreate(ctx, pool, p)
		}
		return id, err
	})
}

func (s *Server) patchUser(ctx context.Context, r *Request, body patchedUserBody) (Reply, error) {
	return s.changeUser(ctx, r, body.Username, body.userChange)
}

func (s *Server) putUser(ctx context.Context, r *Request, body userBody) (Reply, error) {
	return s.changeUser(ctx, r, &body.Username, body.userChange)
}

func (s *Server) changeUser(ctx context.Context, r *Request, name *userName, body userChange) (Reply, error) {
	id, err := r.userID()
	if err != nil {
		return Reply{}, err
	}
	p := db.UserUpdateParams{
		ID: id, Username: pgText(name), FirstName: pgText(body.FirstName), LastName: pgText(body.LastName), Email: pgText(body.Email),
		IsStaff: pgBool(body.IsStaff), IsActive: pgBool(body.IsActive),
	}
	if body.Password != nil {
		hash, err := hashed(*body.Password)
		if err != nil {
			return Reply{}, err
		}
		p.Password = pgText(&hash)
	}
	n, err := query(ctx, func(ctx context.Context) (int64, error) { return s.q.UserUpdate(ctx, s.db, p) })
	switch {
	case constraint(err) == "auth_user_username_unique":
		return Reply{}, errNotUnique
	case err != nil:
		return Reply{}, err
	case n == 0:
		return Reply{}, errNoUser
	}
	return s.readUser(ctx, r)
}

func (s *Server) deleteUser(ctx context.Context, r *Request) (Reply, error) {
	id, err := r.userID()
	if err != nil {
		return Reply{}, err
	}
	// No row is as good: an earlier send, or somebody else, has deleted it since it was there.
	_, err = query(ctx, func(ctx context.Context) (int64, error) { return s.q.UserDelete(ctx, s.db, id) })
	return Reply{Status: http.StatusNoContent}, err
}

func pgText[T ~string](v *T) pgtype.Text {
	return pgtype.Text{String: given(v), Valid: v != nil}
}

func pgBool(v *bool) pgtype.Bool {
	if v == nil {
		return pgtype.Bool{}
	}
	return pgtype.Bool{Bool: *v, Valid: true}
}

// AddUser adds a user, who may do everything if it is a superuser. It reports false if there is one of that name.
func AddUser(ctx context.Context, pool *pgxpool.Pool, name, password string, superuser bool) (bool, error) {
	if !usernames.MatchString(name) || len([]rune(name)) > maxUsername {
		return false, fmt.Errorf("user name %q: %s", name, badUsername)
	}
	hash, err := hashPassword(password)
	if err != nil {
		return false, fmt.Errorf("password of %s: %w", name, err)
	}
	_, err = addUser(ctx, pool, db.UserCreateParams{Username: name, Password: hash, IsStaff: superuser, IsSuperuser: superuser, IsActive: true})
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// SetPassword changes a user's password.
func SetPassword(ctx context.Context, pool *pgxpool.Pool, name, password string) error {
	hash, err := hashPassword(password)
	if err != nil {
		return fmt.Errorf("password of %s: %w", name, err)
	}
	n, err := query(ctx, func(ctx context.Context) (int64, error) {
		return db.New().UserSetPassword(ctx, pool, db.UserSetPasswordParams{Username: name, Password: hash})
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("there is no user %s: `pith user add` adds one", name)
	}
	return err
}
