package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/pithworks/pith/db"
)

type rolesReply struct {
	Roles []objectRole `json:"roles"`
}

type objectRole struct {
	Role   string   `json:"role"`
	Users  []string `json:"users"`
	Groups []string `json:"groups" doc:"Pith has no groups of users: always empty."`
}

type permissionsReply struct {
	Permissions []string `json:"permissions"`
}

type roleBody struct {
	Users  []string `json:"users" doc:"Names of users."`
	Groups []string `json:"groups" doc:"Must be empty: Pith has no groups of users."`
	Role   string   `json:"role" api:"required"`
}

type roleReply struct {
	Users  []string `json:"users"`
	Groups []string `json:"groups"`
	Role   string   `json:"role"`
}

// roleOperations are those by which roles on one object are given and taken. What manages them, and what lets see the
// object, are permissions.
func (s *Server) roleOperations(res func() *Resource, manage, view string) []Operation {
	return []Operation{
		{
			Method: http.MethodGet, Path: wildcard + "list_roles/", Verb: "list_roles", Summary: "List the roles on this object.",
			Replies: map[int]any{http.StatusOK: rolesReply{}},
			Do: Bare(func(ctx context.Context, r *Request) (Reply, error) {
				if err := s.mayObject(ctx, r, res(), manage, view); err != nil {
					return Reply{}, err
				}
				return s.listRoles(ctx, r, res())
			}),
		},
		{
			Method: http.MethodGet, Path: wildcard + "my_permissions/", Verb: "my_permissions", Summary: "List what the user may do with this object.",
			Replies: map[int]any{http.StatusOK: permissionsReply{}},
			Do: Bare(func(ctx context.Context, r *Request) (Reply, error) {
				if err := s.mayObject(ctx, r, res(), view, view); err != nil {
					return Reply{}, err
				}
				have, err := r.permissions(ctx, res(), r.ID)
				_, model, _ := strings.Cut(res().Model, ".")
				have = slices.DeleteFunc(some(have), func(p string) bool { return !strings.HasSuffix(p, "_"+model) })
				if err != nil {
					return Reply{}, err
				}
				return OK(permissionsReply{have})
			}),
		},
		{
			Method: http.MethodPost, Path: wildcard + "add_role/", Verb: "add_role", Summary: "Give users a role on this object.",
			Replies: map[int]any{http.StatusCreated: roleReply{}},
			Do: With(func(ctx context.Context, r *Request, body roleBody) (Reply, error) {
				users, err := s.roleUsers(ctx, r, res(), manage, view, body)
				if err == nil {
					err = r.giveRoles(ctx, users, res().Model, r.ID, body.Role)
				}
				return Reply{Status: http.StatusCreated, Body: roleReply{some(body.Users), some(body.Groups), body.Role}}, err
			}),
		},
		{
			Method: http.MethodPost, Path: wildcard + "remove_role/", Verb: "remove_role", Summary: "Take a role on this object from users.",
			Replies: map[int]any{http.StatusCreated: roleReply{}},
			Do: With(func(ctx context.Context, r *Request, body roleBody) (Reply, error) {
				users, err := s.roleUsers(ctx, r, res(), manage, view, body)
				if err == nil {
					_, err = query(ctx, func(ctx context.Context) (int64, error) {
						return s.q.UserRoleTake(ctx, s.db, db.UserRoleTakeParams{Model: res().Model, Object: r.ID, Role: body.Role, UserIds: users})
					})
				}
				return Reply{Status: http.StatusCreated, Body: roleReply{some(body.Users), some(body.Groups), body.Role}}, err
			}),
		},
	}
}

// mayObject tells whether the object is there, and the user may see it and has a permission on it.
func (s *Server) mayObject(ctx context.Context, r *Request, res *Resource, permission, view string) error {
	there, err := res.Exists(ctx, r.ID)
	switch {
	case err != nil:
		return err
	case !there:
		return NotFound(res.Noun)
	}
	return r.may(ctx, res, permission, view)
}

func (s *Server) listRoles(ctx context.Context, r *Request, res *Resource) (Reply, error) {
	rows, err := query(ctx, func(ctx context.Context) ([]db.UserRoleOfObjectsRow, error) {
		return s.q.UserRoleOfObjects(ctx, s.db, db.UserRoleOfObjectsParams{Model: res.Model, Objects: []string{r.ID}})
	})
	if err != nil {
		return Reply{}, err
	}
	reply := rolesReply{Roles: []objectRole{}}
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

// roleUsers are the ids of those whom a role is to be given or taken.
func (s *Server) roleUsers(ctx context.Context, r *Request, res *Resource, manage, view string, body roleBody) ([]int32, error) {
	if err := s.mayObject(ctx, r, res, manage, view); err != nil {
		return nil, err
	}
	wrong := FieldErrors{}
	if _, ok := role(body.Role); !ok {
		wrong.Add("role", "Role with name '"+body.Role+"' does not exist.")
	}
	if len(body.Users)+len(body.Groups) == 0 {
		wrong.Add(NonField, "One of 'users' or 'groups' must be specified.")
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
		return nil, err
	}
	var ids []int32
	for _, name := range body.Users {
		id, ok := users[name]
		if !ok {
			wrong.Add("users", "Object with username="+name+" does not exist.")
		}
		ids = append(ids, id)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return ids, nil
}
