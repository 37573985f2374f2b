package api_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

const thingsPath = "things/things/thing/"

// newThingsHarness is a server with the plugin, whose tasks it can dispatch.
func newThingsHarness(t *testing.T) *harness {
	t.Helper()
	h, plugin := newHarness(t), newThings()
	h.serve(func(app *appstatus.App) (*tasking.Client, error) {
		registry, err := builtin.Registry(plugin.grow)
		if err != nil {
			return nil, err
		}
		return tasking.New(h.db.Pool, tasking.Config{Registry: registry, App: app, Diagnostics: tasking.Profiles, Log: h.db.Log})
	}, api.Config{Components: []api.Component{plugin.component()}})
	return h
}

// create has a thing made, and answers its href.
func (h *harness) createThing(name string) string {
	h.t.Helper()
	var made thingReply
	h.want(post(thingsPath, map[string]string{"name": name}), http.StatusCreated, &made)
	return made.PulpHref
}

// grown has a thing grow by a number of versions, and answers the href of the task, which has ended.
func (h *harness) grown(thing string, by int) string {
	h.t.Helper()
	task := h.accepted(post(thing+"grow/", map[string]int{"by": by}).with("X-Task-Diagnostics", "memory"))
	versions := builtin.Versions()
	versions["things"] = "1.2.3"
	w, err := worker.New(h.client, worker.Config{Burst: true, Versions: versions, Log: h.db.Log})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := w.Run(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return task
}

func TestObjectsOfAComponentAreServed(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	h.newUser("lena")
	h.answers(get(thingsPath), http.StatusOK, `{"count": 0, "next": null, "previous": null, "results": []}`)
	made := h.want(post(thingsPath, `{"name": "one", "description": null, "pulp_labels": {"a": "b"}}`).by("lena"), http.StatusCreated, nil)
	href := made.header.Get("Location")
	if read := h.want(get(href), http.StatusOK, nil); string(read.body) != string(made.body) {
		t.Errorf("created as\n%s and read as\n%s", made.body, read.body)
	}
	h.answers(get(href+"?fields=name,prn,pulp_labels"), http.StatusOK, `{"prn": "prn:things.thing:`+keyIn(href)+`", "pulp_labels": {"a": "b"}, "name": "one"}`)
	if got := members(t, h.send(get(href+"?fields=name,prn")).body); !cmp.Equal(got, []string{"prn", "name"}) {
		t.Errorf("selected fields come as %v", got)
	}
	h.answers(get(thingsPath+"?fields=name"), http.StatusOK, `{"count": 1, "next": null, "previous": null, "results": [{"name": "one"}]}`)
	var changed thingReply
	h.want(patch(href, `{"description": "  a thing "}`), http.StatusOK, &changed)
	if changed.Name != "one" || changed.Description == nil || *changed.Description != "  a thing " {
		t.Errorf("changed: %+v", changed)
	}
	h.answers(request{method: http.MethodDelete, path: href}, http.StatusNoContent, "")
	for _, r := range []request{get(href), patch(href, `{}`), post(href+"grow/", `{}`), get(href + "versions/"), get(href + "versions/1/")} {
		h.answers(r, http.StatusNotFound, `{"detail": "No Thing matches the given query."}`)
	}
	h.answers(get(thingsPath+"x/"), http.StatusNotFound, `{"detail": "Not found."}`)
	h.answers(get(thingsPath).by("-"), http.StatusUnauthorized, `{"detail": "Authentication credentials were not provided."}`)
	h.answers(request{method: http.MethodPut, path: href}, http.StatusMethodNotAllowed, `{"detail": "Method \"PUT\" not allowed."}`)
	if got := h.send(get(strings.TrimSuffix(href, "/"))); got.status != http.StatusMovedPermanently || got.header.Get("Location") != href {
		t.Errorf("without its slash: %d to %q", got.status, got.header.Get("Location"))
	}
}

func TestBodiesOfAComponentAreChecked(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	href := h.createThing("taken")
	for body, want := range map[string]string{
		`{}`:                                           `{"name": ["This field is required."]}`,
		`{"name": "taken"}`:                            `{"name": ["This field must be unique."]}`,
		`{"name": "n", "pulp_labels": [1]}`:            `{"pulp_labels": ["Expected a dictionary of items but got type \"list\"."]}`,
		`{"name": "n", "pulp_labels": null}`:           `{"pulp_labels": ["This field may not be null."]}`,
		`{"name": "n", "latest_version": "x"}`:         `{"latest_version": ["Unexpected field"]}`,
		`{"name": "` + strings.Repeat("n", 101) + `"}`: `{"name": ["Ensure this field has no more than 100 characters."]}`,
	} {
		h.answers(post(thingsPath, body), http.StatusBadRequest, want)
	}
	for body, want := range map[string]string{
		`{"by": "many"}`:            `{"by": ["A valid integer is required."]}`,
		`{"pace": "quick"}`:         `{"pace": ["\"quick\" is not a valid choice."]}`,
		`{"by": 6, "pace": "fast"}`: `{"non_field_errors": ["A thing grows by more than 5 slowly only."]}`,
	} {
		h.answers(post(href+"grow/", body), http.StatusBadRequest, want)
	}
	form := request{
		method: http.MethodPost, path: thingsPath, body: "name=from+a+form&pulp_labels=%7B%22a%22%3A%22b%22%7D",
		header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
	}
	var made thingReply
	if h.want(form, http.StatusCreated, &made); made.Name != "from a form" || made.Labels["a"] != "b" {
		t.Errorf("from a form: %+v", made)
	}
}

func TestComponentIsToldInStatusAndDocument(t *testing.T) {
	t.Parallel()
	s := aloof(t, api.Config{Components: []api.Component{newThings().component()}})
	all := value(t, ask(t, s, http.MethodGet, root).Body.Bytes()).(object)
	if got := all["things/things/thing"]; got != "http://example.com"+root+thingsPath {
		t.Errorf("the root tells of %v", got)
	}
	for form, want := range map[string][]string{
		"?component=things": {
			"GET " + root + thingsPath, "POST " + root + thingsPath,
			"GET {things_things_thing_href}", "PATCH {things_things_thing_href}", "DELETE {things_things_thing_href}", "POST {things_things_thing_href}grow/",
			"GET {things_things_thing_href}versions/", "GET {things_things_thing_version_href}",
		},
		"?component=things&pk_path=1": {
			"GET " + root + thingsPath, "POST " + root + thingsPath, "GET " + root + thingsPath + "{thing_pk}/", "PATCH " + root + thingsPath + "{thing_pk}/",
			"DELETE " + root + thingsPath + "{thing_pk}/", "POST " + root + thingsPath + "{thing_pk}/grow/",
			"GET " + root + thingsPath + "{thing_pk}/versions/", "GET " + root + thingsPath + "{thing_pk}/versions/{number}/",
		},
	} {
		doc, got, ids := document(t, s, form), []string{}, map[string]any{}
		for at, o := range operations(doc) {
			got = append(got, at)
			ids[o["operationId"].(string)] = o["tags"]
		}
		if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", form, diff)
		}
		if !cmp.Equal(ids["things_things_thing_grow"], []any{"Things: Things"}) || !cmp.Equal(ids["things_things_thing_versions_read"], []any{"Things: Thing Versions"}) {
			t.Errorf("%s: operations are %v", form, ids)
		}
		schemas := doc["components"].(object)["schemas"].(object)
		for _, name := range []string{"Thing", "PatchedThing", "ThingResponse", "ThingVersionResponse", "PaginatedThingResponseList", "Grow", "TaskStarted"} {
			if schemas[name] == nil {
				t.Errorf("%s: there is no schema %s", form, name)
			}
		}
		grow := schemas["Grow"].(object)["properties"].(object)["pace"].(object)
		if !cmp.Equal(grow["enum"], []any{"slow", "fast"}) || grow["default"] != "slow" {
			t.Errorf("%s: the pace is %v", form, grow)
		}
	}
	if err := validate(t, ask(t, s, http.MethodGet, root+"docs/api.json?pk_path=1").Body.Bytes()); err != nil {
		t.Errorf("the document is not valid: %v", err)
	}

	h := newThingsHarness(t)
	var status struct{ Versions []object }
	h.want(get("status/").by("-"), http.StatusOK, &status)
	if diff := cmp.Diff([]object{
		{"component": "core", "version": builtin.Version, "package": "pulpcore", "module": "pulpcore.app", "domain_compatible": false},
		{"component": "things", "version": "1.2.3", "package": "pulp-things", "module": "pulp_things.app", "domain_compatible": false},
	}, status.Versions); diff != "" {
		t.Errorf("versions in status (-want +got):\n%s", diff)
	}
}

func TestHrefsAndPRNsOfAComponentResolve(t *testing.T) {
	t.Parallel()
	s := aloof(t, api.Config{Components: []api.Component{newThings().component()}})
	one := root + thingsPath + nowhere + "/"
	for text, want := range map[string]string{
		one: "Thing [" + nowhere + "]",
		root + thingsPath + strings.ToUpper(nowhere) + "/": "Thing [" + nowhere + "]",
		"https://example.org" + one:                        "Thing [" + nowhere + "]",
		"prn:things.thing:" + nowhere:                      "Thing [" + nowhere + "]",
		root + thingsPath:                                  "Thing []",
		one + "versions/12/":                               "ThingVersion [" + nowhere + " 12]",
		one + "versions/012/":                              "ThingVersion [" + nowhere + " 12]",
		root + "tasks/" + nowhere + "/":                    "Task [" + nowhere + "]",
		one + "grow/":                                      "",
		one + "versions/x/":                                "",
		root + thingsPath + "1/":                           "",
		root + thingsPath + "1/versions/1/":                "",
		strings.TrimSuffix(one, "/"):                       "",
		"prn:things.thing:1":                               "",
		"prn:things.nothing:" + nowhere:                    "",
		"prn:things.thing":                                 "",
		"/elsewhere" + one:                                 "",
		"":                                                 "",
		"thing":                                            "",
	} {
		got := ""
		if o, ok := s.Resolve(text); ok {
			got = fmt.Sprint(o.Resource.Noun, " ", o.Keys)
		}
		if got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestVersionsOfAThingAreServedBelowIt(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	one, other := h.createThing("one"), h.createThing("other")
	h.grown(one, 2)
	h.grown(other, 1)
	var got thingReply
	h.get(one, &got)
	if got.VersionsHref != one+"versions/" || got.LatestVersionHref == nil || *got.LatestVersionHref != one+"versions/2/" {
		t.Errorf("the thing tells of %s, the latest %v", got.VersionsHref, got.LatestVersionHref)
	}
	var latest thingVersionReply
	h.get(*got.LatestVersionHref, &latest)
	if latest.PulpHref != one+"versions/2/" || latest.Number != 2 || latest.Thing != one {
		t.Errorf("the latest is %+v", latest)
	}
	h.sees(one+"versions/", "admin", one+"versions/1/", one+"versions/2/")
	h.sees(other+"versions/", "admin", other+"versions/1/")
	for _, number := range []string{"0", "3", "2147483647"} {
		h.answers(get(one+"versions/"+number+"/"), http.StatusNotFound, `{"detail": "No ThingVersion matches the given query."}`)
	}
	for _, number := range []string{"x", "-1", "+1", "1.0", "2147483648", nowhere} {
		h.answers(get(one+"versions/"+number+"/"), http.StatusNotFound, `{"detail": "Not found."}`)
	}
}

func TestTaskOfAComponentIsDispatchedForWhoAsks(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	one := h.createThing("one")
	task := h.grown(one, 3)
	var got struct {
		ended
		Name      string
		CreatedBy string `json:"created_by"`
	}
	h.get(task, &got)
	if got.State != "completed" || got.Name != "things.app.tasks.grow" || got.CreatedBy != root+"users/1/" || !cmp.Equal(got.Created, []string{one}) ||
		got.Reserved[0] != "prn:things.thing:"+keyIn(one) {
		t.Errorf("the task is %+v", got)
	}
	h.wantProfiles("the task", task, "memory_profile")
	for _, filter := range []string{"created_resources=" + one, "created_resources=prn:things.thing:" + keyIn(one), "exclusive_resources=" + one} {
		h.sees("tasks/?"+filter, "admin", task)
	}
	// Only what says so can be dispatched by name.
	h.answers(post(pithRoot+"tasks/", `{"name": "things.app.tasks.grow"}`), http.StatusBadRequest,
		`{"name": ["\"things.app.tasks.grow\" is no task type that can be dispatched: see /pith/api/task-types/."]}`)
}

func TestRolesAreGivenOnObjectsOfAComponent(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	one := h.createThing("one")
	var got struct {
		Object string `json:"content_object"`
		PRN    string `json:"content_object_prn"`
	}
	h.get(h.give(root+"users/1/", "core.task_viewer", "prn:things.thing:"+keyIn(one)), &got)
	if got.Object != one || got.PRN != "prn:things.thing:"+keyIn(one) {
		t.Errorf("the role is on %+v", got)
	}
	h.answers(post("users/1/roles/", `{"role": "core.task_viewer", "content_object": "prn:things.thing:`+nowhere+`"}`), http.StatusBadRequest,
		`{"content_object": ["Object does not exist."]}`)
}

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
			s := aloof(t, api.Config{Log: warnings, Components: []api.Component{
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
	declared := map[int]any{http.StatusOK: thingReply{}, http.StatusAccepted: api.TaskStarted{}, http.StatusNoContent: nil}
	for name, reply := range map[string]api.Reply{
		"another status":             {Status: http.StatusCreated, Body: thingReply{}},
		"another type":               {Status: http.StatusOK, Body: thingVersionReply{}},
		"the type of another status": {Status: http.StatusOK, Body: api.TaskStarted{}},
		"a pointer to the type":      {Status: http.StatusOK, Body: &thingReply{}},
		"a body where none is":       {Status: http.StatusNoContent, Body: thingReply{}},
		"no body where one is":       {Status: http.StatusOK},
		"nothing":                    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &dbtest.Output{}
			warnings := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := aloof(t, api.Config{Log: warnings, Components: []api.Component{
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
	for _, reply := range []api.Reply{{Status: http.StatusOK, Body: thingReply{}}, {Status: http.StatusAccepted, Body: api.TaskStarted{}}, {Status: http.StatusNoContent}} {
		s := aloof(t, api.Config{Components: []api.Component{
			answering(declared, func(context.Context, *api.Request) (api.Reply, error) { return reply, nil }),
		}})
		if w := ask(t, s, http.MethodGet, root+"things/"); w.Code != reply.Status {
			t.Errorf("%d is answered as %d: %s", reply.Status, w.Code, w.Body)
		}
	}
}

func TestComponentsThatCannotBeServedAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	nothing := func(context.Context, *api.Request) (api.Reply, error) { return api.Reply{}, nil }
	tasks := answering(map[int]any{http.StatusNoContent: nil}, nothing)
	tasks.Resources[0].Path = "tasks/"
	for name, components := range map[string][]api.Component{
		"a plugin twice":     {newThings().component(), newThings().component()},
		"a path of the core": {tasks},
	} {
		if _, err := api.New(h.db.Pool, h.newClient, api.Config{Version: builtin.Version, Components: components}); err == nil || !strings.Contains(err.Error(), "is there twice") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
