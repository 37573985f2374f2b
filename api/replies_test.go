package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
)

// answering is a component of one operation, at things/, that declares these replies.
func answering(replies map[int]any, do func(context.Context, *api.Request) (api.Reply, error)) api.Component {
	return api.Component{Label: "things", Version: "1.0", Resources: []*api.Resource{{
		Path: "things/", Name: "things", Key: "thing", Tag: "Things",
		Operations: []api.Operation{{Method: http.MethodGet, Verb: "do", Summary: "Do it.", Public: true, Replies: replies, Do: api.Bare(do)}},
	}}}
}

func TestErrorsOfAComponentAreToldOrLogged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		err    error
		status int
		body   string
		logged string // "": nothing
	}{
		{"fields", api.FieldErrors{"name": []string{"Taken."}}, 400, `{"name":["Taken."]}`, ""},
		{"fields, wrapped", fmt.Errorf("create: %w", api.FieldErrors{"name": []string{"Taken."}}), 400, `{"name":["Taken."]}`, ""},
		{"not found", api.NotFound("Thing"), 404, `{"detail":"No Thing matches the given query."}`, ""},
		{"a problem", &api.ResponseError{Status: 409, Body: []string{"Busy."}, Header: http.Header{"Retry-After": {"1"}}}, 409, `["Busy."]`, ""},
		{"any other", errors.New("secret"), 500, `{"detail":"A server error occurred."}`, "secret"},
		{"out of time", fmt.Errorf("read: %w", context.DeadlineExceeded), 503, `{"detail":"The database cannot be reached at the moment."}`, "deadline"},
		{"a panic", nil, 500, `{"detail":"A server error occurred."}`, "request panicked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			log := &dbtest.Output{}
			warnings := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := api.Aloof(t, api.Config{Log: warnings, Components: []api.Component{
				answering(map[int]any{http.StatusOK: thingReply{}}, func(context.Context, *api.Request) (api.Reply, error) {
					if tt.err == nil {
						panic("oh no")
					}
					return api.Reply{}, tt.err
				}),
			}})
			w := ask(t, s, http.MethodGet, root+"things/")
			if w.Code != tt.status || w.Body.String() != tt.body || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("answered %d, %s: %s", w.Code, w.Header().Get("Content-Type"), w.Body)
			}
			if (tt.logged == "") != (log.String() == "") || !strings.Contains(log.String(), tt.logged) {
				t.Errorf("logged: %s", log)
			}
			if again := w.Header().Get("Retry-After"); (again != "") != (tt.status == http.StatusConflict) {
				t.Errorf("Retry-After is %q", again)
			}
		})
	}
}

func TestReplyThatIsNotDeclaredIsAnErrorOfTheServer(t *testing.T) {
	t.Parallel()
	declared := map[int]any{http.StatusOK: thingReply{}, http.StatusAccepted: api.AsyncOperationReply{}, http.StatusNoContent: nil}
	for name, reply := range map[string]api.Reply{
		"another status":             {Status: http.StatusCreated, Body: thingReply{}},
		"another type":               {Status: http.StatusOK, Body: thingVersionReply{}},
		"the type of another status": {Status: http.StatusOK, Body: api.AsyncOperationReply{}},
		"a pointer to the type":      {Status: http.StatusOK, Body: &thingReply{}},
		"a body where none is":       {Status: http.StatusNoContent, Body: thingReply{}},
		"no body where one is":       {Status: http.StatusOK},
		"nothing":                    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &dbtest.Output{}
			warnings := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := api.Aloof(t, api.Config{Log: warnings, Components: []api.Component{
				answering(declared, func(context.Context, *api.Request) (api.Reply, error) { return reply, nil }),
			}})
			w := ask(t, s, http.MethodGet, root+"things/")
			if w.Code != http.StatusInternalServerError || w.Body.String() != `{"detail":"A server error occurred."}` {
				t.Errorf("answered %d: %s", w.Code, w.Body)
			}
			if !strings.Contains(log.String(), "the operation do does not declare a reply") {
				t.Errorf("logged: %s", log)
			}
		})
	}
	for _, reply := range []api.Reply{{Status: http.StatusOK, Body: thingReply{}}, {Status: http.StatusAccepted, Body: api.AsyncOperationReply{}}, {Status: http.StatusNoContent}} {
		s := api.Aloof(t, api.Config{Components: []api.Component{
			answering(declared, func(context.Context, *api.Request) (api.Reply, error) { return reply, nil }),
		}})
		if w := ask(t, s, http.MethodGet, root+"things/"); w.Code != reply.Status {
			t.Errorf("%d is answered as %d: %s", reply.Status, w.Code, w.Body)
		}
	}
}

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
		"a plugin twice":     {[]api.Component{newThings(nil).component(), {Label: "more", Resources: newThings(nil).component().Resources}}, "is there twice"},
		"a path of the core": {with(func(_ *api.Component, res *api.Resource, _ *api.Operation) { res.Path = "tasks/" }), "is there twice"},
		"PRNs of what cannot be looked up": {
			with(func(_ *api.Component, res *api.Resource, _ *api.Operation) { res.Model = "things.thing" }),
			"things/ has a Model, but not Existing",
		},
		"PRNs of what cannot be found below its parents": {
			with(func(_ *api.Component, res *api.Resource, _ *api.Operation) { nested(res) }),
			"parents/{parent_pk}/things/ has a Model and a Parent, but not Locate and Identify",
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
			"the role things.thing_creator is there twice",
		},
		"a role of the core": {with(func(c *api.Component, _ *api.Resource, _ *api.Operation) {
			c.Roles = []api.Role{{Name: "core.task_owner", Permissions: []string{"things.view_thing"}}}
		}), "the role core.task_owner is there twice, or not one of things"},
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
	} {
		_, err := api.New(h.db.Pool, h.newClient, api.Config{Version: builtin.Version, Components: tt.components})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
