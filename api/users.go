package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
)

// maxUsername is how many characters a name may have.
const maxUsername = 150

const badUsername = "Enter a valid username. This value may contain only letters, numbers, and @/./+/-/_ characters."

var usernames = regexp.MustCompile(`^[\pL\pN\pM_.@+-]+$`)

type userReply struct {
	PulpHref     string        `json:"pulp_href"`
	PRN          string        `json:"prn" doc:"The Pulp Resource Name."`
	ID           int           `json:"id"`
	Username     string        `json:"username"`
	FirstName    string        `json:"first_name"`
	LastName     string        `json:"last_name"`
	Email        string        `json:"email"`
	IsStaff      bool          `json:"is_staff" doc:"As in Pulp; means nothing to Pith."`
	IsActive     bool          `json:"is_active" doc:"May log in."`
	DateJoined   Time          `json:"date_joined"`
	Groups       []userGroup   `json:"groups" doc:"Pith has no groups of users: always empty."`
	HiddenFields []hiddenField `json:"hidden_fields"`
}

type userGroup struct {
	Name     string `json:"name"`
	PulpHref string `json:"pulp_href"`
}

type hiddenField struct {
	Name  string `json:"name"`
	IsSet bool   `json:"is_set"`
}

type userBody struct {
	Username string `json:"username" api:"required" max:"150" doc:"150 characters or fewer: letters, digits and @/./+/-/_ only."`
	userChange
}

type userPatch struct {
	Username *string `json:"username" max:"150" doc:"150 characters or fewer: letters, digits and @/./+/-/_ only."`
	userChange
}

// userChange is what may be left out of each body.
type userChange struct {
	Password  *string `json:"password" api:"secret blank null" doc:"At most 72 bytes. Null or none: nobody can log in."`
	FirstName *string `json:"first_name" api:"blank" max:"150"`
	LastName  *string `json:"last_name" api:"blank" max:"150"`
	Email     *string `json:"email" api:"blank" max:"254"`
	IsStaff   *bool   `json:"is_staff"`
	IsActive  *bool   `json:"is_active"`
}

var errNotUnique = FieldErrors{"username": []string{"This field must be unique."}}

// admin is the problem that the user is no superuser.
func (r *Request) admin() error {
	if !r.User.Superuser {
		return errDenied
	}
	return nil
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
			DateJoined: Time{row.DateJoined.Time}, Groups: []userGroup{}, HiddenFields: []hiddenField{{"password", row.Password != ""}},
		}
	}
	return inOrder(keys, found), err
}

func (s *Server) listUsers(ctx context.Context, r *Request) (Reply, error) {
	if err := r.admin(); err != nil {
		return Reply{}, err
	}
	found, err := s.own.userList.page(ctx, r)
	if err != nil {
		return Reply{}, err
	}
	list, err := r.userReplies(ctx, found.keys)
	if err != nil {
		return Reply{}, err
	}
	return OK(newPage(found, list))
}

// aUser reads the user whom the path names.
func (r *Request) aUser(ctx context.Context, key string) (userReply, error) {
	if err := r.admin(); err != nil {
		return userReply{}, err
	}
	list, err := r.userReplies(ctx, []string{key})
	if err == nil && len(list) == 0 {
		err = NotFound("User")
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

// hashed is the hash of a password, which may be empty; nil is none.
func hashed(password *string) (string, error) {
	if password == nil || *password == "" {
		return "", nil
	}
	return HashPassword(*password)
}

// given is a value that may be left out.
func given(v *string) string {
	if v == nil {
		return ""
	}
	return *v
}

func (s *Server) createUser(ctx context.Context, r *Request, body userBody) (Reply, error) {
	if err := r.admin(); err != nil {
		return Reply{}, err
	}
	if !usernames.MatchString(body.Username) {
		return Reply{}, FieldErrors{"username": []string{badUsername}}
	}
	hash, err := hashed(body.Password)
	if err != nil {
		return Reply{}, err
	}
	id, err := query(ctx, func(ctx context.Context) (int32, error) {
		return s.q.UserCreate(ctx, s.db, db.UserCreateParams{
			Username: body.Username, Password: hash, FirstName: given(body.FirstName), LastName: given(body.LastName), Email: given(body.Email),
			IsStaff: body.IsStaff != nil && *body.IsStaff, IsActive: body.IsActive == nil || *body.IsActive,
		})
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

func (s *Server) patchUser(ctx context.Context, r *Request, body userPatch) (Reply, error) {
	return s.changeUser(ctx, r, body.Username, body.userChange)
}

func (s *Server) putUser(ctx context.Context, r *Request, body userBody) (Reply, error) {
	return s.changeUser(ctx, r, &body.Username, body.userChange)
}

func (s *Server) changeUser(ctx context.Context, r *Request, name *string, body userChange) (Reply, error) {
	before, err := r.aUser(ctx, r.ID)
	if err != nil {
		return Reply{}, err
	}
	if name != nil && !usernames.MatchString(*name) {
		return Reply{}, FieldErrors{"username": []string{badUsername}}
	}
	p := db.UserUpdateParams{
		ID: int32(before.ID), Username: pgText(name), FirstName: pgText(body.FirstName), LastName: pgText(body.LastName), Email: pgText(body.Email),
		IsStaff: pgBool(body.IsStaff), IsActive: pgBool(body.IsActive),
	}
	if body.Password != nil {
		hash, err := hashed(body.Password)
		if err != nil {
			return Reply{}, err
		}
		p.Password = pgText(&hash)
	}
	_, err = query(ctx, func(ctx context.Context) (int64, error) { return s.q.UserUpdate(ctx, s.db, p) })
	if constraint(err) == "auth_user_username_unique" {
		return Reply{}, errNotUnique
	} else if err != nil {
		return Reply{}, err
	}
	return s.readUser(ctx, r)
}

func (s *Server) deleteUser(ctx context.Context, r *Request) (Reply, error) {
	u, err := r.aUser(ctx, r.ID)
	if err != nil {
		return Reply{}, err
	}
	_, err = query(ctx, func(ctx context.Context) (int64, error) { return s.q.UserDelete(ctx, s.db, int32(u.ID)) })
	return Reply{Status: http.StatusNoContent}, err
}

func pgText(v *string) pgtype.Text {
	if v == nil {
		return pgtype.Text{}
	}
	return pgtype.Text{String: *v, Valid: true}
}

func pgBool(v *bool) pgtype.Bool {
	if v == nil {
		return pgtype.Bool{}
	}
	return pgtype.Bool{Bool: *v, Valid: true}
}

// The roles of a user.

type userRoleReply struct {
	head
	Role             string   `json:"role"`
	ContentObject    *string  `json:"content_object" doc:"The href of the object that the role is on; null: on all."`
	ContentObjectPRN *string  `json:"content_object_prn"`
	Description      string   `json:"description"`
	Permissions      []string `json:"permissions"`
	Domain           *string  `json:"domain" doc:"Always null."`
}

type userRoleBody struct {
	Role          string  `json:"role" api:"required"`
	ContentObject *string `json:"content_object" api:"null required" doc:"The href or PRN of an object; null: all."`
	Domain        *string `json:"domain" api:"null" doc:"Must be null: there is one domain."`
}

func (r *Request) userRoleReply(row db.UserRole) userRoleReply {
	s := r.server
	user, key := strconv.Itoa(int(row.UserID)), uuid.UUID(row.ID.Bytes).String()
	created := Time{row.CreatedAt.Time}
	known, _ := role(row.Role)
	reply := userRoleReply{
		head: head{r.Href(s.own.userRoles, user, key), s.own.userRoles.PRN(key), created, created},
		Role: row.Role, Description: known.Description, Permissions: some(known.Permissions),
	}
	if row.Model != "" {
		prn := "prn:" + row.Model + ":" + row.Object
		reply.ContentObjectPRN = &prn
		if o, ok := r.Resolve(prn); ok {
			href := r.Href(o.Resource, o.Keys...)
			reply.ContentObject = &href
		}
	}
	return reply
}

func (s *Server) userRoles(ctx context.Context, r *Request, id *string, most, skip int) ([]db.UserRole, error) {
	u, err := r.aUser(ctx, r.PathValue(s.own.users.parameter()))
	if err != nil {
		return nil, err
	}
	p := db.UserRoleListParams{UserID: int32(u.ID), Most: int32(most), Skip: int32(skip)}
	if id != nil {
		p.ID = pgUUID(uuid.MustParse(*id))
	}
	return query(ctx, func(ctx context.Context) ([]db.UserRole, error) { return s.q.UserRoleList(ctx, s.db, p) })
}

func (s *Server) listUserRoles(ctx context.Context, r *Request) (Reply, error) {
	limit, offset := r.window()
	rows, err := s.userRoles(ctx, r, nil, limit, offset)
	if err != nil {
		return Reply{}, err
	}
	user, err := strconv.ParseInt(r.PathValue(s.own.users.parameter()), 10, 32)
	if err != nil {
		return Reply{}, err
	}
	n, err := query(ctx, func(ctx context.Context) (int32, error) { return s.q.UserRoleCount(ctx, s.db, int32(user)) })
	if err != nil {
		return Reply{}, err
	}
	list := make([]userRoleReply, len(rows))
	for i, row := range rows {
		list[i] = r.userRoleReply(row)
	}
	return OK(newPage(r.part(int(n)), list))
}

func (s *Server) readUserRole(ctx context.Context, r *Request) (Reply, error) {
	rows, err := s.userRoles(ctx, r, &r.ID, 1, 0)
	switch {
	case err != nil:
		return Reply{}, err
	case len(rows) == 0:
		return Reply{}, NotFound("UserRole")
	}
	return OK(r.userRoleReply(rows[0]))
}

func (s *Server) createUserRole(ctx context.Context, r *Request, body userRoleBody) (Reply, error) {
	u, err := r.aUser(ctx, r.PathValue(s.own.users.parameter()))
	if err != nil {
		return Reply{}, err
	}
	wrong := FieldErrors{}
	if _, ok := role(body.Role); !ok {
		wrong.Add("role", "Role with name '"+body.Role+"' does not exist.")
	}
	var on Object
	if body.ContentObject != nil {
		o, ok := r.Resolve(*body.ContentObject)
		if !ok || o.Resource.Model == "" || len(o.Keys) == 0 {
			wrong.Add("content_object", "URI not valid: "+*body.ContentObject)
		} else if there, err := o.exists(ctx); err != nil {
			return Reply{}, err
		} else if !there {
			wrong.Add("content_object", "Object does not exist.")
		}
		on = o
	}
	if body.Domain != nil {
		wrong.Add("domain", "Domains are not enabled: must be null.")
	}
	if len(wrong) > 0 {
		return Reply{}, wrong
	}
	model, object := "", ""
	if on.Resource != nil {
		model, object = on.Resource.Model, on.Keys[len(on.Keys)-1]
	}
	if err := r.giveRoles(ctx, []int32{int32(u.ID)}, model, object, body.Role); err != nil {
		return Reply{}, err
	}
	rows, err := s.userRoles(ctx, r, nil, 10000, 0)
	if err != nil {
		return Reply{}, err
	}
	i := slices.IndexFunc(rows, func(row db.UserRole) bool { return row.Role == body.Role && row.Model == model && row.Object == object })
	if i < 0 {
		return Reply{}, NotFound("UserRole")
	}
	reply := r.userRoleReply(rows[i])
	return Reply{Status: http.StatusCreated, Body: reply, Header: http.Header{"Location": {reply.PulpHref}}}, nil
}

func (s *Server) deleteUserRole(ctx context.Context, r *Request) (Reply, error) {
	rows, err := s.userRoles(ctx, r, &r.ID, 1, 0)
	switch {
	case err != nil:
		return Reply{}, err
	case len(rows) == 0:
		return Reply{}, NotFound("UserRole")
	}
	_, err = query(ctx, func(ctx context.Context) (int64, error) {
		return s.q.UserRoleRemove(ctx, s.db, db.UserRoleRemoveParams{ID: rows[0].ID, UserID: rows[0].UserID})
	})
	return Reply{Status: http.StatusNoContent}, err
}

// grant gives the user who asks roles on an object.
func (r *Request) grant(ctx context.Context, model, object string, roles ...string) error {
	return r.giveRoles(ctx, []int32{int32(r.User.ID)}, model, object, roles...)
}

func (r *Request) giveRoles(ctx context.Context, users []int32, model, object string, roles ...string) error {
	var p db.UserRoleAddParams
	for _, user := range users {
		for _, role := range roles {
			id, err := uuid.NewV7()
			if err != nil {
				return err
			}
			p.IDs, p.UserIds = append(p.IDs, pgUUID(id)), append(p.UserIds, user)
			p.Roles, p.Models, p.Objects = append(p.Roles, role), append(p.Models, model), append(p.Objects, object)
		}
	}
	_, err := query(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.server.q.UserRoleAdd(ctx, r.server.db, p)
	})
	return err
}

// AddUser adds a user, who may do everything if it is a superuser. It reports false if there is one of that name.
func AddUser(ctx context.Context, pool *pgxpool.Pool, name, password string, superuser bool) (bool, error) {
	if !usernames.MatchString(name) || len([]rune(name)) > maxUsername {
		return false, fmt.Errorf("user name %q: %s", name, badUsername)
	}
	hash, err := HashPassword(password)
	if err != nil {
		return false, fmt.Errorf("password of %s: %w", name, err)
	}
	_, err = query(ctx, func(ctx context.Context) (int32, error) {
		return db.New().UserCreate(ctx, pool, db.UserCreateParams{Username: name, Password: hash, IsStaff: superuser, IsSuperuser: superuser, IsActive: true})
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// SetPassword changes a user's password.
func SetPassword(ctx context.Context, pool *pgxpool.Pool, name, password string) error {
	hash, err := HashPassword(password)
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
