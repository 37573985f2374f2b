package api

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

type objectRolesReply struct {
	Roles []objectRole `json:"roles"`
}

type objectRole struct {
	Role   string   `json:"role"`
	Users  []string `json:"users"`
	Groups []string `json:"groups" doc:"Pith has no groups of users: always empty."`
}

type myPermissionsReply struct {
	Permissions []string `json:"permissions"`
}

type nestedRoleBody struct {
	Users  []string `json:"users" doc:"Names of users."`
	Groups []string `json:"groups" doc:"Must be empty: Pith has no groups of users."`
	Role   string   `json:"role" api:"required"`
}

type nestedRoleReply struct {
	Users  []string `json:"users"`
	Groups []string `json:"groups"`
	Role   string   `json:"role"`
}

// RoleOperations are those by which roles on one object of a resource are given and taken. What manages them, and what lets
// see the object, are permissions. The resource has no Parent.
func RoleOperations(manage, view string) []Operation {
	mayManage := func(ctx context.Context, r *Request) error {
		return r.server.mayObject(ctx, r, r.resource, manage, view)
	}
	mayView := func(ctx context.Context, r *Request) error { return r.server.mayObject(ctx, r, r.resource, view, view) }
	return []Operation{
		{
			Method: http.MethodGet, Path: wildcard + "list_roles/", Verb: "list_roles", Summary: "List the roles on this object.",
			Replies: map[int]any{http.StatusOK: objectRolesReply{}}, Allow: mayManage, modeled: true,
			Do: Bare(func(ctx context.Context, r *Request) (Reply, error) { return r.server.listRoles(ctx, r, r.resource) }),
		},
		{
			Method: http.MethodGet, Path: wildcard + "my_permissions/", Verb: "my_permissions", Summary: "List what the user may do with this object.",
			Replies: map[int]any{http.StatusOK: myPermissionsReply{}}, Allow: mayView, modeled: true,
			Do: Bare(func(ctx context.Context, r *Request) (Reply, error) {
				return r.server.myPermissions(ctx, r, r.resource)
			}),
		},
		{
			Method: http.MethodPost, Path: wildcard + "add_role/", Verb: "add_role", Summary: "Give users a role on this object.",
			Replies: map[int]any{http.StatusCreated: nestedRoleReply{}}, Allow: mayManage, modeled: true,
			Do: With(func(ctx context.Context, r *Request, body nestedRoleBody) (Reply, error) {
				return r.server.addRole(ctx, r, r.resource, body)
			}),
		},
		{
			Method: http.MethodPost, Path: wildcard + "remove_role/", Verb: "remove_role", Summary: "Take a role on this object from users.",
			Replies: map[int]any{http.StatusCreated: nestedRoleReply{}}, Allow: mayManage, modeled: true,
			Do: With(func(ctx context.Context, r *Request, body nestedRoleBody) (Reply, error) {
				return r.server.removeRole(ctx, r, r.resource, body)
			}),
		},
	}
}

// mayObject tells whether the object is there, and the user may see it and has a permission on it.
func (s *Server) mayObject(ctx context.Context, r *Request, res *Resource, permission, view string) error {
	there, err := res.Existing(ctx, []string{r.ID})
	switch {
	case err != nil:
		return err
	case len(there) == 0:
		return NotFound(res.Noun)
	}
	return r.May(ctx, res, permission, view)
}

func (s *Server) listRoles(ctx context.Context, r *Request, res *Resource) (Reply, error) {
	rows, err := query(ctx, func(ctx context.Context) ([]db.UserRoleOfObjectsRow, error) {
		return s.q.UserRoleOfObjects(ctx, s.db, db.UserRoleOfObjectsParams{Model: res.Model, Objects: []string{r.ID}})
	})
	if err != nil {
		return Reply{}, err
	}
	reply := objectRolesReply{Roles: []objectRole{}}
	for _, row := range rows {
		n := len(reply.Roles)
		if n == 0 || reply.Roles[n-1].Role != row.Role {
			reply.Roles = append(reply.Roles, objectRole{Role: row.Role, Groups: []string{}})
			n++
		}
		reply.Roles[n-1].Users = append(reply.Roles[n-1].Users, row.Username)
	}
	return OK(reply)
}

func (s *Server) myPermissions(ctx context.Context, r *Request, res *Resource) (Reply, error) {
	have, err := r.permissions(ctx, res, r.ID)
	if err != nil {
		return Reply{}, err
	}
	return OK(myPermissionsReply{slices.DeleteFunc(some(have), func(p string) bool { return !concerns(p, res.Model) })})
}

// errDispatcher is the problem that who has dispatched a task is not for users to say.
var errDispatcher = &ResponseError{Status: http.StatusBadRequest, Body: []string{roleDispatcher + " can not be added/removed from a task."}}

// across is the problem that something is wrong with several fields of a body.
func across(text string) error { return FieldErrors{NonField: []string{text}} }

func (s *Server) addRole(ctx context.Context, r *Request, res *Resource, body nestedRoleBody) (Reply, error) {
	users, ids, err := s.roleUsers(ctx, res, body)
	if err != nil {
		return Reply{}, err
	}
	a, err := newAssignment(ids, res.Model, r.ID, body.Role)
	if err != nil {
		return Reply{}, err
	}
	had, err := s.assign(ctx, a)
	switch {
	case errors.Is(err, errUserGone): // since their names were looked up
		return Reply{}, FieldErrors{"users": []string{"Object does not exist."}}
	case errors.Is(err, errObjectGone):
		return Reply{}, NotFound(res.Noun)
	case err != nil:
		return Reply{}, err
	}
	for i, id := range ids {
		if slices.Contains(had, id) {
			return Reply{}, across("The role is already assigned to user '" + users[i] + "'.")
		}
	}
	return body.done()
}

func (s *Server) removeRole(ctx context.Context, r *Request, res *Resource, body nestedRoleBody) (Reply, error) {
	users, ids, err := s.roleUsers(ctx, res, body)
	if err != nil {
		return Reply{}, err
	}
	holders, err := s.holders(ctx, db.UserRoleHoldersParams{UserIds: ids, Role: body.Role, Model: res.Model, Object: r.ID})
	if err != nil {
		return Reply{}, err
	}
	for i, id := range ids {
		if !slices.ContainsFunc(holders, func(h db.UserRoleHoldersRow) bool { return h.UserID == id }) {
			return Reply{}, across("The role is not assigned to user '" + users[i] + "'.")
		}
	}
	held := make([]pgtype.UUID, len(holders))
	for i, h := range holders {
		held[i] = h.ID
	}
	if err := s.unassign(ctx, held...); err != nil {
		return Reply{}, err
	}
	return body.done()
}

func (b nestedRoleBody) done() (Reply, error) {
	return Reply{Status: http.StatusCreated, Body: nestedRoleReply{some(b.Users), some(b.Groups), b.Role}}, nil
}

// roleUsers are the names and ids of those whom a role on an object of a resource is to be given or taken, each once.
func (s *Server) roleUsers(ctx context.Context, res *Resource, body nestedRoleBody) (names []string, ids []int32, err error) {
	if res.Model == taskModel && body.Role == roleDispatcher {
		return nil, nil, errDispatcher
	}
	wrong := FieldErrors{}
	known, ok := s.role(body.Role)
	if !ok {
		wrong.Add("role", "Role with name '"+body.Role+"' does not exist.")
	}
	for _, name := range body.Groups {
		wrong.Add("groups", "Object with name="+name+" does not exist.")
	}
	users, err := query(ctx, func(ctx context.Context) (map[string]int32, error) {
		rows, err := s.q.UserByNames(ctx, s.db, some(body.Users))
		ids := map[string]int32{}
		for _, row := range rows {
			ids[row.Username] = row.ID
		}
		return ids, err
	})
	if err != nil {
		return nil, nil, err
	}
	for _, name := range body.Users {
		id, ok := users[name]
		switch {
		case !ok:
			wrong.Add("users", "Object with username="+name+" does not exist.")
		case !slices.Contains(ids, id):
			names, ids = append(names, name), append(ids, id)
		}
	}
	switch {
	case len(wrong) > 0:
		return nil, nil, wrong
	case !known.on(res.Model):
		return nil, nil, across("The role does not contain any permission for that object.")
	}
	return names, ids, nil
}

// What may be gone by the time at which a role on it, or to it, is to be given.
var (
	errUserGone   = errors.New("a user is gone")
	errObjectGone = errors.New("the object is gone")
)

// newAssignment is that of a role to users, on an object or, if model and object are empty, on all.
func newAssignment(users []int32, model, object, role string) (a db.UserRoleAssignParams, err error) {
	a = db.UserRoleAssignParams{UserIds: users, Model: model, Object: object, Role: role}
	for range users {
		id, err := uuid.NewV7()
		if err != nil {
			return a, err
		}
		a.IDs = append(a.IDs, pgUUID(id))
	}
	return a, nil
}

// assign gives users a role, all of them, or nobody if some have it already: it answers who.
func (s *Server) assign(ctx context.Context, a db.UserRoleAssignParams) (had []int32, err error) {
	for {
		n, err := query(ctx, func(ctx context.Context) (int64, error) { return s.q.UserRoleAssign(ctx, s.db, a) })
		done := err == nil
		switch c := constraint(err); {
		case done && (n > 0 || len(a.UserIds) == 0):
			return nil, nil
		case c == "user_role_user_fkey":
			return nil, errUserGone
		case !done && c != "user_role_unique" && c != "user_role_pkey":
			return nil, err
		}
		holders, err := s.holders(ctx, db.UserRoleHoldersParams{UserIds: a.UserIds, Role: a.Role, Model: a.Model, Object: a.Object})
		if err != nil {
			return nil, err
		}
		for _, h := range holders {
			if !slices.Contains(a.IDs, h.ID) {
				had = append(had, h.UserID)
			}
		}
		switch {
		case len(had) > 0:
			return had, nil
		case done && len(holders) == 0:
			return nil, errObjectGone
		case done: // an earlier send has
			return nil, nil
		}
		// It was an earlier send, which was under way when this one began, or who had it has lost it meanwhile.
	}
}

// unassign takes roles from users; those that they have lost meanwhile are as good as taken.
func (s *Server) unassign(ctx context.Context, ids ...pgtype.UUID) error {
	_, err := query(ctx, func(ctx context.Context) (int64, error) { return s.q.UserRoleRemove(ctx, s.db, ids) })
	return err
}

// holders are those of some users who have a role.
func (s *Server) holders(ctx context.Context, p db.UserRoleHoldersParams) ([]db.UserRoleHoldersRow, error) {
	return query(ctx, func(ctx context.Context) ([]db.UserRoleHoldersRow, error) { return s.q.UserRoleHolders(ctx, s.db, p) })
}

// Grant gives the user who asks roles on a new object, by the key in its PRN. Best before it is made: then what ends in
// between leaves no object without an owner.
func (r *Request) Grant(ctx context.Context, res *Resource, key string, roles ...string) error {
	for _, role := range roles {
		a, err := newAssignment([]int32{int32(r.User.ID)}, res.Model, key, role)
		if err == nil {
			_, err = r.server.assign(ctx, a)
		}
		if errors.Is(err, errUserGone) {
			return badCredentials(r.Request)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// Revoke takes all roles on an object that never came to be, after a Grant. Those on one that is deleted go with it, by the
// trigger function roles_drop.
func (r *Request) Revoke(ctx context.Context, res *Resource, key string) error {
	_, err := query(ctx, func(ctx context.Context) (int64, error) {
		return r.server.q.UserRoleDrop(ctx, r.server.db, db.UserRoleDropParams{Model: res.Model, Object: key})
	})
	return err
}
