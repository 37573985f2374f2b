package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/filter"
)

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
	Role             string   `json:"role" api:"required"`
	ContentObject    **string `json:"content_object" api:"null" doc:"The href or PRN of an object; null: all. This or content_object_prn is required."`
	ContentObjectPRN **string `json:"content_object_prn" api:"null" doc:"The same by its PRN."`
	Domain           *string  `json:"domain" api:"null" doc:"Must be null: there is one domain."`
}

// prnOn is the PRN of the object that a role is on; "": it is on all.
func prnOn(row db.UserRole) string {
	if row.Model == "" {
		return ""
	}
	return "prn:" + row.Model + ":" + row.Object
}

// userRoleReply is a role of a user; hrefs are those of objects, by PRN.
func (r *Request) userRoleReply(row db.UserRole, hrefs map[string]string) userRoleReply {
	s := r.server
	user, key := strconv.Itoa(int(row.UserID)), uuid.UUID(row.ID.Bytes).String()
	created := Time{row.CreatedAt.Time}
	known, _ := s.role(row.Role)
	reply := userRoleReply{
		head: head{r.Href(s.own.userRoles, user, key), s.own.userRoles.PRN(key), created, created},
		Role: row.Role, Description: known.Description, Permissions: some(known.Permissions),
	}
	if prn := prnOn(row); prn != "" {
		reply.ContentObject, reply.ContentObjectPRN = lookup(hrefs, prn), &prn
	}
	return reply
}

// userRoleCollection lists the roles of the user who is in the path.
func (s *Server) userRoleCollection() *Collection {
	// Descriptions are the program's, not the database's.
	described := slices.Clone(s.roles)
	slices.SortFunc(described, func(a, b Role) int { return strings.Compare(a.Description, b.Description) })
	names := make([]string, len(described))
	for i, r := range described {
		names[i] = r.Name
	}
	return &Collection{
		Relation: "user_role",
		Filters: filter.Set{
			Key: "id", Newest: "created_at DESC, id",
			Orders: map[string]string{
				"role": "role", "pulp_created": "created_at", "description": "array_position('{" + strings.Join(names, ",") + "}'::text[], role)",
			},
			Fields: []filter.Field{
				{Name: "pulp_id", Column: "id", Kind: filter.UUID, Lookups: []string{"in"}},
				{Name: "pulp_href", Column: "id", Kind: filter.UUID, Lookups: []string{"in"}, Parse: s.referenceTo(func() *Resource { return s.own.userRoles })},
				{Name: "prn", Column: "id", Kind: filter.UUID, Lookups: []string{"in"}, Parse: s.userRolePRN},
				{Name: "role", Column: "role", Kind: filter.Text, Lookups: []string{"", "in", "contains", "icontains", "startswith"}},
				{Name: "content_object", Kind: filter.Text, Condition: "model || ':' || object = %s"},
				{Name: "domain", Kind: filter.Text, Parse: noDomain, Condition: "true"},
			},
		},
		names: map[string]naming{"content_object": contentObject},
		Scope: func(_ context.Context, r *Request) (string, []any, error) {
			id, err := r.userID()
			return "user_id = $1::int", []any{id}, err
		},
	}
}

// userRolePRN reads a PRN, for filters. It does not tell whose role it is, so it names no object to anybody else.
func (s *Server) userRolePRN(text string) (any, error) {
	model, key, ok := parsePRN(text)
	id, err := uuid.Parse(key)
	if !ok || model != s.own.userRoles.Model || err != nil {
		return nil, filter.ListError("URI not valid: " + text)
	}
	return id, nil
}

// contentObject is model and key of the object that an href or a PRN names, or neither for the word null, for filters.
func contentObject(text string, o Object) (any, error) {
	if text == "null" {
		return ":", nil
	}
	if !o.named() {
		return nil, filter.ListError("Invalid value for 'content_object': " + text + ".")
	}
	return o.Resource.Model + ":" + o.Key, nil
}

// locateUserRoles is a Resource's Locate.
func (s *Server) locateUserRoles(ctx context.Context, keys []string) (map[string][]string, error) {
	rows, err := query(ctx, func(ctx context.Context) ([]db.UserRoleUsersRow, error) {
		return s.q.UserRoleUsers(ctx, s.db, pgUUIDs(keys))
	})
	paths := map[string][]string{}
	for _, row := range rows {
		key := uuid.UUID(row.ID.Bytes).String()
		paths[key] = []string{strconv.Itoa(int(row.UserID)), key}
	}
	return paths, err
}

// identifyUserRoles is a Resource's Identify: the last key of the path is that in the PRN.
func (s *Server) identifyUserRoles(ctx context.Context, paths [][]string) ([]string, error) {
	keys := make([]string, len(paths))
	for i, path := range paths {
		keys[i] = path[1]
	}
	there, err := s.locateUserRoles(ctx, keys)
	for i, path := range paths {
		if !slices.Equal(there[path[1]], path) {
			keys[i] = ""
		}
	}
	return keys, err
}

// noDomain reads the one word that says in which domain all roles are: in none.
func noDomain(text string) (any, error) {
	if text != "null" {
		return nil, filter.ListError("URI not valid: " + text)
	}
	return text, nil
}

// userRoleReplies reads roles of the user who is in the path.
func (r *Request) userRoleReplies(ctx context.Context, keys ...string) ([]userRoleReply, error) {
	id, err := r.userID()
	if err != nil {
		return nil, err
	}
	rows, err := query(ctx, func(ctx context.Context) ([]db.UserRole, error) {
		return r.server.q.UserRoleRead(ctx, r.server.db, db.UserRoleReadParams{UserID: id, IDs: pgUUIDs(keys)})
	})
	if err != nil {
		return nil, err
	}
	var prns []string
	for _, row := range rows {
		prns = append(prns, prnOn(row))
	}
	hrefs, err := r.hrefs(ctx, prns, false)
	found := map[string]userRoleReply{}
	for _, row := range rows {
		found[uuid.UUID(row.ID.Bytes).String()] = r.userRoleReply(row, hrefs)
	}
	return inOrder(keys, found), err
}

func (s *Server) listUserRoles(ctx context.Context, r *Request) (Reply, error) {
	found, err := r.Page(ctx, s.own.userRoleList)
	if err != nil {
		return Reply{}, err
	}
	list, err := r.userRoleReplies(ctx, found.Keys...)
	if err != nil {
		return Reply{}, err
	}
	return OK(NewPage(found, list))
}

// aUserRole reads the role of a key of the user who is in the path.
func (r *Request) aUserRole(ctx context.Context, key string) (userRoleReply, error) {
	list, err := r.userRoleReplies(ctx, key)
	if err == nil && len(list) == 0 {
		err = NotFound("UserRole")
	}
	if err != nil {
		return userRoleReply{}, err
	}
	return list[0], nil
}

func (s *Server) readUserRole(ctx context.Context, r *Request) (Reply, error) {
	reply, err := r.aUserRole(ctx, r.ID)
	if err != nil {
		return Reply{}, err
	}
	return OK(reply)
}

// objectOf is the model and the key of the object that a body names, both empty for all objects. It notes what is wrong.
func (s *Server) objectOf(ctx context.Context, body userRoleBody, wrong FieldErrors) (model, key string, err error) {
	if body.ContentObject == nil && body.ContentObjectPRN == nil {
		wrong.Add("content_object", "This field is required.")
	}
	for _, f := range []struct {
		name string
		text **string
	}{{"content_object", body.ContentObject}, {"content_object_prn", body.ContentObjectPRN}} {
		if f.text == nil || *f.text == nil {
			continue
		}
		on, err := s.resolve(ctx, []string{**f.text}, true)
		switch {
		case err != nil:
			return "", "", err
		case on[0].gone:
			wrong.Add(f.name, "Object does not exist.")
		case !on[0].named():
			wrong.Add(f.name, "URI not valid: "+**f.text)
		case model != "" && (model != on[0].Resource.Model || key != on[0].Key):
			wrong.Add(f.name, "Must name the same object as 'content_object'.")
		default:
			model, key = on[0].Resource.Model, on[0].Key
		}
	}
	return model, key, nil
}

func (s *Server) createUserRole(ctx context.Context, r *Request, body userRoleBody) (Reply, error) {
	wrong := FieldErrors{}
	known, ok := s.role(body.Role)
	if !ok {
		wrong.Add("role", "Role with name '"+body.Role+"' does not exist.")
	}
	model, object, err := s.objectOf(ctx, body, wrong)
	if err != nil {
		return Reply{}, err
	}
	if body.Domain != nil {
		wrong.Add("domain", "Domains are not enabled: must be null.")
	}
	switch {
	case len(wrong) > 0:
		return Reply{}, wrong
	case model != "" && !known.on(model):
		return Reply{}, across("The role '" + body.Role + "' does not carry any permission for that object.")
	}
	user, err := r.userID()
	if err != nil {
		return Reply{}, err
	}
	a, err := newAssignment([]int32{user}, model, object, body.Role)
	if err != nil {
		return Reply{}, err
	}
	had, err := s.assign(ctx, a)
	switch {
	case errors.Is(err, errUserGone):
		return Reply{}, errNoUser
	case errors.Is(err, errObjectGone):
		return Reply{}, FieldErrors{"content_object": []string{"Object does not exist."}}
	case err != nil:
		return Reply{}, err
	case len(had) > 0:
		return Reply{}, across("The role is already assigned to this user.")
	}
	reply, err := r.aUserRole(ctx, uuid.UUID(a.IDs[0].Bytes).String())
	if err != nil {
		return Reply{}, err
	}
	return Reply{Status: http.StatusCreated, Body: reply, Header: http.Header{"Location": {reply.PulpHref}}}, nil
}

func (s *Server) deleteUserRole(ctx context.Context, r *Request) (Reply, error) {
	if _, err := r.aUserRole(ctx, r.ID); err != nil {
		return Reply{}, err
	}
	return Reply{Status: http.StatusNoContent}, s.unassign(ctx, pgUUID(r.UUID()))
}
