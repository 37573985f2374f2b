package api_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/internal/builtin"
)

// floatReply would be written as Go does.
type floatReply struct {
	Weight float64 `json:"weight"`
}

func TestComponentsThatCannotBeServedAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	nothing := func(context.Context, *api.Request) (api.Reply, error) { return api.Reply{}, nil }
	with := func(change func(c *api.Component, res *api.Resource, o *api.Operation)) []api.Component {
		c := answering(map[int]any{http.StatusNoContent: nil}, nothing)
		change(&c, c.Resources[0], &c.Resources[0].Operations[0])
		return []api.Component{c}
	}
	type named struct {
		Name string `json:"name"`
	}
	existing := func(context.Context, []string) ([]string, error) { return nil, nil }
	parent := &api.Resource{Path: "parents/", Key: "parent"}
	nested := func(res *api.Resource) {
		res.Parent, res.Model, res.Existing = parent, "things.thing", existing
	}
	for name, tt := range map[string]struct {
		components []api.Component
		want       string // "": it can be served
	}{
		"a plugin twice": {[]api.Component{newThings(nil).component(), {Label: "more", Resources: newThings(nil).component().Resources}}, `component "more": things/things/thing/: the path "/pulp/api/v3/things/things/thing/" is taken by things's things/things/thing/`},
		"PRNs of what cannot be looked up": {
			with(func(_ *api.Component, res *api.Resource, _ *api.Operation) { res.Model = "things.thing" }),
			"things/: it has a Model, but not Existing",
		},
		"PRNs of what cannot be found below its parents": {
			with(func(_ *api.Component, res *api.Resource, _ *api.Operation) { nested(res) }),
			"parents/{parent_pk}/things/: it has a Model and a Parent, but not Locate and Identify",
		},
		"parents and no PRNs": {with(func(_ *api.Component, res *api.Resource, _ *api.Operation) { res.Parent = parent }), ""},
		"a body that is no struct": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Do = api.With(func(context.Context, *api.Request, []string) (api.Reply, error) { return api.Reply{}, nil })
		}), "do of things/: a body is a struct, not a []string"},
		"a body with a struct in it": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Do = api.With(func(context.Context, *api.Request, struct {
				Inner []named `json:"inner"`
			},
			) (api.Reply, error) {
				return api.Reply{}, nil
			})
		}), "the field inner of"},
		"a body with a number of another size": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Do = api.With(func(context.Context, *api.Request, struct {
				Small *int32 `json:"small"`
			},
			) (api.Reply, error) {
				return api.Reply{}, nil
			})
		}), "bodies have no fields of the type *int32"},
		"a body with a map by numbers": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Do = api.With(func(context.Context, *api.Request, struct {
				Map map[int]string `json:"map"`
			},
			) (api.Reply, error) {
				return api.Reply{}, nil
			})
		}), "bodies have no fields of the type map[int]string"},
		"a reply that is described, and not written, as in Python": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Replies = map[int]any{http.StatusOK: floatReply{}}
		}), "the type float64 is not written as Pulp does"},
		"a reply that cannot be described": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Replies = map[int]any{http.StatusOK: make(chan int)}
		}), "the type chan int has no schema"},
		"a reply without a name": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) {
			o.Replies = map[int]any{http.StatusOK: struct{ Name string }{}}
		}), "struct { Name string } has no name"},
		"a role twice": {
			with(func(c *api.Component, _ *api.Resource, _ *api.Operation) { c.Roles = slices.Repeat(thingRoles, 2) }),
			`the role "things.thing_creator" is taken by things`,
		},
		"a role of the core": {with(func(c *api.Component, _ *api.Resource, _ *api.Operation) {
			c.Roles = []api.Role{{Name: "core.task_owner", Permissions: []string{"things.view_thing"}}}
		}), `the role "core.task_owner" is not one of things`},
		"a role whose name is no word": {with(func(c *api.Component, _ *api.Resource, _ *api.Operation) {
			c.Roles = []api.Role{{Name: "things.o'clock", Permissions: []string{"things.view_thing"}}}
		}), "letters, digits, dots and underscores only"},
		"roles on objects below others": {with(func(_ *api.Component, res *api.Resource, _ *api.Operation) {
			res.Parent, res.Operations = parent, api.RoleOperations("things.manage_roles_thing", "things.view_thing")
		}), "it is for objects that have a Model and no Parent"},
		"labels of objects without a model": {with(func(_ *api.Component, res *api.Resource, _ *api.Operation) {
			res.Model, res.Operations = "", api.LabelOperations("things.change_thing", "things.view_thing", nil, nil)
		}), "it is for objects that have a Model and no Parent"},
		"a reference that is no field": {with(func(_ *api.Component, res *api.Resource, o *api.Operation) {
			o.Collection = &api.Collection{Filters: api.Filters{Key: "id", Newest: "id"}, References: map[string]*api.Resource{"thing": res}}
		}), "no field thing of the kind UUIDField"},
		"filters that are wrong": {with(func(_ *api.Component, _ *api.Resource, o *api.Operation) { o.Collection = &api.Collection{} }), "do of things/: filter: a set needs Key"},
	} {
		h.takes(name, tt.components, tt.want)
	}
}

// takes checks that a server with these components is refused with this text, or, if that is empty, made.
func (h *harness) takes(name string, components []api.Component, refused string) {
	h.t.Helper()
	_, err := api.New(h.db.Pool, h.newClient, api.Config{Version: builtin.Version, Components: components})
	if (err == nil) != (refused == "") || err != nil && !strings.Contains(err.Error(), refused) {
		h.t.Errorf("%s: %v", name, err)
	}
}

// zed is a component of one resource, z/, with one operation, o, on its objects.
type zed struct {
	*api.Component
	*api.Resource

	o *api.Operation
}

func newZed(path, name string) zed {
	res := &api.Resource{
		Path: path, Name: name, Key: name, Model: "z." + name, Noun: name, Tag: name,
		Existing: func(context.Context, []string) ([]string, error) { return nil, nil },
		Operations: []api.Operation{{
			Method: http.MethodGet, Path: "{}", Verb: "read", Summary: "Read it.", Replies: map[int]any{http.StatusNoContent: nil},
			Do: api.Bare(func(context.Context, *api.Request) (api.Reply, error) {
				return api.Reply{Status: http.StatusNoContent}, nil
			}),
		}},
	}
	return zed{&api.Component{Label: "z", Version: "1.0", Resources: []*api.Resource{res}}, res, &res.Operations[0]}
}

func TestNamesAndPathsThatCannotBeServedAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	with := func(change func(z zed)) []api.Component {
		z := newZed("z/", "z")
		change(z)
		return []api.Component{*z.Component}
	}
	// beside has a second resource, y/, which has nothing of the first but what the change gives it.
	beside := func(change func(y zed)) []api.Component {
		z, y := newZed("z/", "z"), newZed("y/", "y")
		change(y)
		z.Resources = append(z.Resources, y.Resources...)
		return []api.Component{*z.Component}
	}
	none := func(zed) {}
	page := api.Parameter{Name: "page", Type: "integer"}
	x := &api.Resource{Path: "x/", Key: "x"}
	for _, tt := range []struct {
		components []api.Component
		want       string // "": it can be served
	}{
		{with(none), ""},
		{beside(none), ""},
		{with(func(z zed) { z.o.Path = "" }), ""},
		{with(func(z zed) { z.o.Path = "all.json" }), ""},
		{with(func(z zed) { z.o.Path = "{}files/{name}" }), ""},
		{with(func(z zed) { z.Base = "/z/~a/" }), ""},
		{with(func(z zed) { z.Parent, z.Model = x, "" }), ""},

		{append(with(none), with(none)...), `component "z": the Label "z" is taken by another component: choose another`},
		{with(func(z zed) { z.Label = "core" }), `component "core": the Label "core" is taken by another component`},
		{with(func(z zed) { z.Label = "" }), `the Label "": it has letters`},
		{with(func(z zed) { z.Label = "a,b" }), `the Label "a,b": it has letters`},

		{with(func(z zed) { z.Key = "task" }), `component "z": z/: the Key "task" is taken by core's tasks/`},
		{beside(func(y zed) { y.Key = "z" }), `component "z": y/: the Key "z" is taken by z's z/`},
		{with(func(z zed) { z.Base, z.Path, z.o.Path = "/", "pulp/", "{}" }), `the path cannot be served, choose another`},
		{with(func(z zed) { z.Key = "" }), `z/: the Key "": it has letters`},
		{with(func(z zed) { z.ID = "a-b" }), `z/: the ID "a-b": it has letters`},
		{with(func(z zed) { z.Model = "core.task" }), `z/: the Model "core.task" is taken by core's tasks/`},
		{beside(func(y zed) { y.Model = "z.z" }), `y/: the Model "z.z" is taken by z's z/`},
		{with(func(z zed) { z.Model = "z:z" }), `z/: the Model "z:z": it is two words`},
		{with(func(z zed) { z.Name = "tasks" }), `read of z/: the operation id "tasks_read" is taken by core's tasks/`},
		{beside(func(y zed) { y.Name = "z" }), `read of y/: the operation id "z_read" is taken by z's z/`},
		{beside(func(y zed) { y.Tag = "z" }), `read of y/: the operation id in bindings "z: read" is taken by z's z/`},
		{with(func(z zed) { z.Name = "z s" }), `z/: the Name "z s": it has letters`},
		{with(func(z zed) { z.o.Verb = "" }), ` of z/: the Verb "": it has letters`},

		{with(func(z zed) { z.Path = "z s/" }), `z s/: the Path "z s/": it must end with a slash`},
		{with(func(z zed) { z.Path = "zs" }), `zs: the Path "zs": it must end with a slash`},
		{with(func(z zed) { z.Path = "/z/" }), `the Path "/z/": it must end with a slash, and begin with none`},
		{with(func(z zed) { z.Path = "z//" }), `the Path "z//"`},
		{with(func(z zed) { z.Path = "../z/" }), `the Path "../z/"`},
		{with(func(z zed) { z.Path = "{z}/" }), `the Path "{z}/"`},
		{with(func(z zed) { z.Base = "/z" }), `z/: the Base "/z": it must begin and end with a slash`},
		{with(func(z zed) { z.Parent, z.Model = &api.Resource{Path: "x", Key: "x"}, "" }), `the Path "x": it must end with a slash`},
		{with(func(z zed) { z.o.Path = "{}{}/" }), `read of z/: the Path "{}{}/": it may begin with "{}"`},
		{with(func(z zed) { z.o.Path = "/" }), `read of z/: the Path "/"`},
		{with(func(z zed) { z.o.Path = "{}a{name}/" }), `read of z/: the Path "{}a{name}/"`},

		{with(func(z zed) { z.Path = "tasks/" }), `tasks/: the path "/pulp/api/v3/tasks/" is taken by core's tasks/`},
		{with(func(z zed) { z.Path = "tasks/z/" }), `read of tasks/z/: the path cannot be served, choose another: /pulp/api/v3/tasks/z/{z_pk}/{$} and /pulp/api/v3/tasks/{task_pk}/`},
		{with(func(z zed) { z.Parent, z.Model, z.ID = x, "", "x_pk" }), `read of x/{x_pk}/z/: the path cannot be served, choose another: parsing`},
		{with(func(z zed) { z.o.Path = "{}{z_href}/" }), "describe read of z/: the parameter z_href of the path is there twice"},
		{with(func(z zed) { z.Operations = slices.Repeat(z.Operations, 2); z.Operations[1].Verb = "again" }), "again of z/: GET /pulp/api/v3/z/{z_pk}/ is there twice"},
		{
			// Below objects that the document calls the same.
			append(
				with(func(z zed) { z.Parent, z.Model, z.o.Path = x, "", "" }),
				with(func(z zed) {
					z.Label, z.Name, z.Key, z.Parent, z.Model, z.Tag, z.o.Path = "a", "a", "a", &api.Resource{Path: "a/", Key: "x"}, "", "a", ""
				})...,
			),
			`component "a": describe read of a/{x_pk}/z/: GET {x_href}z/ is there twice`,
		},

		{with(func(z zed) { z.o.Method = "" }), `read of z/: the Method "" is none of GET, POST, PUT, PATCH, DELETE`},
		{with(func(z zed) { z.o.Method = "FOO" }), `read of z/: the Method "FOO" is none of`},
		{with(func(z zed) { z.o.Method = http.MethodHead }), `read of z/: the Method "HEAD" is none of`},
		{with(func(z zed) { z.o.Do = api.Handler{} }), "read of z/: it has no Do"},
		{with(func(z zed) { z.o.Replies = nil }), "read of z/: it has no Replies"},
		{with(func(z zed) { z.o.Replies = map[int]any{99: nil} }), "read of z/: no reply has the status 99"},
		{with(func(z zed) { z.o.Parameters = []api.Parameter{page, page} }), "describe read of z/: the parameter page of the query is there twice"},
		{with(func(z zed) { z.o.Parameters = []api.Parameter{{Name: "page"}} }), `read of z/: the parameter "page" of the type ""`},
	} {
		h.takes(tt.want, tt.components, tt.want)
	}
}
