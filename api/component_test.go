package api_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

const thingsPath = "things/things/thing/"

// newThingsHarness is a server with the plugin, whose tasks it can dispatch.
func newThingsHarness(t *testing.T) *harness {
	t.Helper()
	h, _ := newThingsWorld(t)
	return h
}

// newThingsWorld is such a server and the plugin.
func newThingsWorld(t *testing.T) (*harness, *things) {
	t.Helper()
	h := newHarness(t)
	h.exec(thingTables)
	plugin := newThings(h.db.Pool)
	h.serve(func(app *appstatus.App) (*tasking.Client, error) {
		registry, err := builtin.Registry(plugin.grow)
		if err != nil {
			return nil, err
		}
		return tasking.New(h.db.Pool, tasking.Config{Registry: registry, App: app, Diagnostics: tasking.Profiles, Log: h.db.Log})
	}, api.Config{Components: []api.Component{plugin.component()}})
	return h, plugin
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
	h.newUser("lena", "things.thing_creator")
	h.answers(get(thingsPath), http.StatusOK, `{"count": 0, "next": null, "previous": null, "results": []}`)
	made := h.want(post(thingsPath, `{"name": "one", "description": null, "pulp_labels": {"a": "b", "c": null}, "weight": 32}`).by("lena"), http.StatusCreated, nil)
	href := made.header.Get("Location")
	if read := h.want(get(href), http.StatusOK, nil); string(read.body) != string(made.body) {
		t.Errorf("created as\n%s and read as\n%s", made.body, read.body)
	}
	h.answers(get(href+"?fields=name,prn,pulp_labels"), http.StatusOK, `{"prn": "prn:things.thing:`+keyIn(href)+`", "pulp_labels": {"a": "b", "c": null}, "name": "one"}`)
	if !strings.HasSuffix(string(made.body), `"weight":32.0}`) {
		t.Errorf("a weight is not written as Python does: %s", made.body)
	}
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
		`{"name": "n", "pulp_labels": {"a": []}}`:      `{"pulp_labels": {"a": ["Not a valid string."]}}`,
		`{"name": "n", "weight": "heavy"}`:             `{"weight": ["A valid number is required."]}`,
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
	if h.want(form, http.StatusCreated, &made); made.Name != "from a form" || made.Labels["a"] == nil || *made.Labels["a"] != "b" {
		t.Errorf("from a form: %+v", made)
	}
}

func TestComponentIsToldInStatusAndDocument(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{Components: []api.Component{newThings(nil).component()}})
	all := value(t, ask(t, s, http.MethodGet, root).Body.Bytes()).(object)
	if got := all["things/things/thing"]; got != "http://example.com"+root+thingsPath {
		t.Errorf("the root tells of %v", got)
	}
	for form, want := range map[string][]string{
		"?component=things": {
			"GET " + root + thingsPath, "POST " + root + thingsPath,
			"GET {things_things_thing_href}", "PATCH {things_things_thing_href}", "DELETE {things_things_thing_href}", "POST {things_things_thing_href}grow/",
			"GET {things_things_thing_href}versions/", "GET {things_things_thing_version_href}", "GET {things_things_thing_href}list_roles/",
			"GET {things_things_thing_href}my_permissions/", "POST {things_things_thing_href}add_role/", "POST {things_things_thing_href}remove_role/",
			"POST {things_things_thing_href}set_label/", "POST {things_things_thing_href}unset_label/",
		},
		"?component=things&pk_path=1": {
			"GET " + root + thingsPath, "POST " + root + thingsPath, "GET " + root + thingsPath + "{thing_pk}/", "PATCH " + root + thingsPath + "{thing_pk}/",
			"DELETE " + root + thingsPath + "{thing_pk}/", "POST " + root + thingsPath + "{thing_pk}/grow/",
			"GET " + root + thingsPath + "{thing_pk}/versions/", "GET " + root + thingsPath + "{thing_pk}/versions/{number}/",
			"GET " + root + thingsPath + "{thing_pk}/list_roles/", "GET " + root + thingsPath + "{thing_pk}/my_permissions/",
			"POST " + root + thingsPath + "{thing_pk}/add_role/", "POST " + root + thingsPath + "{thing_pk}/remove_role/",
			"POST " + root + thingsPath + "{thing_pk}/set_label/", "POST " + root + thingsPath + "{thing_pk}/unset_label/",
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
		for _, id := range []string{"things_things_thing_set_label", "things_things_thing_unset_label"} {
			if !cmp.Equal(ids[id], []any{"Things: Things"}) {
				t.Errorf("%s: %s has the tags %v", form, id, ids[id])
			}
		}
		if !cmp.Equal(ids["things_things_thing_grow"], []any{"Things: Things"}) || !cmp.Equal(ids["things_things_thing_versions_read"], []any{"Things: Thing Versions"}) {
			t.Errorf("%s: operations are %v", form, ids)
		}
		schemas := doc["components"].(object)["schemas"].(object)
		for _, name := range []string{"Thing", "PatchedThing", "ThingResponse", "ThingVersionResponse", "PaginatedThingResponseList", "Grow", "AsyncOperationResponse", "SetLabel", "SetLabelResponse", "UnsetLabel", "UnsetLabelResponse"} {
			if schemas[name] == nil {
				t.Errorf("%s: there is no schema %s", form, name)
			}
		}
		grow := schemas["Grow"].(object)["properties"].(object)["pace"].(object)
		if !cmp.Equal(grow["enum"], []any{"slow", "fast"}) || grow["default"] != "slow" {
			t.Errorf("%s: the pace is %v", form, grow)
		}
		if diff := cmp.Diff(object{
			"type": "object", "required": []any{"key", "value"},
			"properties": object{"key": object{"type": "string", "minLength": float64(1)}, "value": object{"type": "string", "nullable": true}},
		}, schemas["SetLabel"]); diff != "" {
			t.Errorf("%s: bodies that set labels (-want +got):\n%s", form, diff)
		}
		made, read := schemas["Thing"].(object)["properties"].(object), schemas["ThingResponse"].(object)["properties"].(object)
		if diff := cmp.Diff(object{"type": "string", "nullable": true}, made["pulp_labels"].(object)["additionalProperties"]); diff != "" {
			t.Errorf("%s: labels in bodies (-want +got):\n%s", form, diff)
		}
		for _, weight := range []any{made["weight"], read["weight"]} {
			if diff := cmp.Diff(object{"type": "number", "format": "double", "nullable": true}, weight); diff != "" {
				t.Errorf("%s: the weight (-want +got):\n%s", form, diff)
			}
		}
		parameters := map[string]object{}
		for at, o := range operations(doc) {
			if at == "GET "+root+thingsPath {
				for _, v := range o["parameters"].([]any) {
					parameters[v.(object)["name"].(string)] = v.(object)["schema"].(object)
				}
			}
		}
		for name, want := range map[string]object{
			"limit": {"type": "integer"}, "offset": {"type": "integer"}, "name__icontains": {"type": "string"}, "version": {"type": "string"}, "pulp_label_select": {"type": "string"},
			"pulp_href__in": {"type": "array", "items": object{"type": "string"}}, "pulp_id__in": {"type": "array", "items": object{"type": "string", "format": "uuid"}},
			"ordering": {"type": "array", "items": object{"type": "string", "enum": []any{"name", "-name", "pulp_created", "-pulp_created", "pk", "-pk"}}},
		} {
			if diff := cmp.Diff(want, parameters[name]); diff != "" {
				t.Errorf("%s: the parameter %s (-want +got):\n%s", form, name, diff)
			}
		}
	}
	if err := validate(t, ask(t, s, http.MethodGet, root+"docs/api.json?pk_path=1").Body.Bytes()); err != nil {
		t.Errorf("the document is not valid: %v", err)
	}

	h := newThingsHarness(t)
	var status struct{ Versions []object }
	h.want(get("status/").by("-"), http.StatusOK, &status)
	if diff := cmp.Diff([]object{
		{"component": "core", "version": reported(t, h.server), "package": "pulpcore", "module": "pulpcore.app", "domain_compatible": false},
		{"component": "things", "version": "1.2.3", "package": "pulp-things", "module": "pulp_things.app", "domain_compatible": false},
	}, status.Versions); diff != "" {
		t.Errorf("versions in status (-want +got):\n%s", diff)
	}
}

func TestHrefsAndPRNsOfAComponentResolve(t *testing.T) {
	t.Parallel()
	h, plugin := newThingsWorld(t)
	s, one := h.server, root+thingsPath+nowhere+"/"
	grown := h.createThing("grown")
	h.grown(grown, 2)
	version := h.object(grown + "versions/2/")["prn"].(string)
	for text, want := range map[string]string{
		grown + "versions/2/":  "ThingVersion [" + keyIn(grown) + " 2] " + version,
		grown + "versions/02/": "",
		version:                "ThingVersion [" + keyIn(grown) + " 2] " + version,
		strings.ReplaceAll(strings.ToUpper(version), "PRN:THINGS.THINGVERSION:", "prn:things.thingversion:"): "ThingVersion [" + keyIn(grown) + " 2] " + version,
		grown + "versions/3/":                     "",
		"prn:things.thingversion:" + nowhere:      "",
		"prn:things.thingversion:2":               "",
		"prn:things.thingversion:" + keyIn(grown): "",
		grown + "versions/":                       "",
		one:                                       "Thing [" + nowhere + "] prn:things.thing:" + nowhere,
		root + thingsPath + strings.ToUpper(nowhere) + "/": "Thing [" + nowhere + "] prn:things.thing:" + nowhere,
		"https://example.org" + one:                        "Thing [" + nowhere + "] prn:things.thing:" + nowhere,
		"prn:things.thing:" + nowhere:                      "Thing [" + nowhere + "] prn:things.thing:" + nowhere,
		root + thingsPath:                                  "Thing []",
		one + "versions/12/":                               "",
		root + "tasks/" + nowhere + "/":                    "Task [" + nowhere + "] prn:core.task:" + nowhere,
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
		if o, err := s.Resolve(t.Context(), text); err != nil {
			t.Errorf("%q: %v", text, err)
		} else if o[0].Resource != nil {
			got = fmt.Sprint(o[0].Resource.Noun, " ", o[0].Keys)
			if o[0].Key != "" {
				got += " " + o[0].PRN()
			}
		}
		if got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
	// In bulk, by two statements at most.
	before := plugin.asked.Load()
	all, err := s.Resolve(t.Context(), grown+"versions/1/", "", version, one, grown+"versions/2/", "prn:things.thingversion:"+nowhere, grown+"versions/9/")
	if err != nil {
		t.Fatal(err)
	}
	var numbers []string
	for _, o := range all {
		number := ""
		if o.Resource == plugin.version {
			number = o.Keys[1]
		}
		numbers = append(numbers, number)
	}
	if diff := cmp.Diff([]string{"1", "", "2", "", "2", "", ""}, numbers); diff != "" || plugin.asked.Load()-before != 2 {
		t.Errorf("after %d statements (-want +got):\n%s", plugin.asked.Load()-before, diff)
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
	for _, number := range []string{"x", "-1", "+1", "01", "1.0", "2147483648", nowhere} {
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
	if got.State != "completed" || got.Name != "things.app.tasks.grow" || got.CreatedBy != root+"users/1/" || !cmp.Equal(got.Created, []string{one + "versions/1/", one + "versions/2/", one + "versions/3/"}) ||
		got.Reserved[0] != "prn:things.thing:"+keyIn(one) {
		t.Errorf("the task is %+v", got)
	}
	h.wantProfiles("the task", task, "memory_profile")
	for _, filter := range []string{"created_resources=" + one + "versions/3/", "created_resources=" + h.object(one + "versions/3/")["prn"].(string), "exclusive_resources=" + one} {
		h.sees("tasks/?"+filter, "admin", task)
	}
	// Only what says so can be dispatched by name.
	h.answers(post(pithRoot+"tasks/", `{"name": "things.app.tasks.grow"}`), http.StatusBadRequest,
		`{"name": ["\"things.app.tasks.grow\" is no task type that can be dispatched: see /pith/api/task-types/."]}`)
}

// TestWhatTasksHaveCreatedIsLookedUpOncePerPage: and what is gone is told to be.
func TestWhatTasksHaveCreatedIsLookedUpOncePerPage(t *testing.T) {
	t.Parallel()
	h, plugin := newThingsWorld(t)
	one, other := h.createThing("one"), h.createThing("other")
	first := h.grown(one, 2)
	second := h.grown(other, 1)
	h.exec("INSERT INTO created_resource (task_id, ordinal, resource) VALUES ($1, 7, $2), ($1, 8, 'prn:no.model:1'), ($1, 9, 'prn:core.taskgroup:' || $3)",
		keyIn(second), "prn:things.thing:"+keyIn(one), nowhere)
	prn := h.object(one + "versions/1/")["prn"].(string)
	created := func() map[string][]string {
		var page struct {
			Results []struct {
				Href    string   `json:"pulp_href"`
				Created []string `json:"created_resources"`
			}
		}
		before := plugin.asked.Load()
		h.get("tasks/", &page)
		if n := plugin.asked.Load() - before; n != 2 {
			t.Errorf("the plugin was asked %d times for its two resources", n)
		}
		all := map[string][]string{}
		for _, task := range page.Results {
			all[task.Href] = task.Created
		}
		return all
	}
	const gone = "<unavailable>"
	want := map[string][]string{first: {one + "versions/1/", one + "versions/2/"}, second: {other + "versions/1/", one, gone, gone}}
	if diff := cmp.Diff(want, created()); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	for _, filter := range []string{one + "versions/1/", prn, h.http.URL + one + "versions/1/"} {
		h.sees("tasks/?created_resources="+filter, "admin", first)
		h.sees("tasks/?q="+url.QueryEscape("created_resources='"+filter+"' AND state=completed"), "admin", first)
	}
	h.answers(request{method: http.MethodDelete, path: one}, http.StatusNoContent, "")
	want = map[string][]string{first: {gone, gone}, second: {other + "versions/1/", gone, gone, gone}}
	if diff := cmp.Diff(want, created()); diff != "" {
		t.Errorf("created, of which some is gone (-want +got):\n%s", diff)
	}
	if task := h.object(first); !cmp.Equal(task["created_resources"], []any{gone, gone}) || task["created_resource_prns"].([]any)[0] != prn {
		t.Errorf("the task alone has created %v, named %v", task["created_resources"], task["created_resource_prns"])
	}
	for text, model := range map[string]string{
		one: "thing", "prn:things.thing:" + keyIn(one): "thing", one + "versions/1/": "thingversion", prn: "thingversion", other + "versions/2/": "thingversion",
		root + "tasks/" + nowhere + "/": "task", "prn:core.taskgroup:" + nowhere: "taskgroup", "prn:core.appstatus:" + nowhere: "appstatus",
		"prn:auth.user:99": "user", root + "users/1/roles/" + nowhere + "/": "userrole", "prn:core.taskschedule:" + nowhere: "taskschedule",
	} {
		h.answers(get("tasks/?created_resources="+text), http.StatusBadRequest, `["URI `+text+` not found for `+model+`."]`)
	}
	h.answers(get("tasks/?created_resources="+root+thingsPath), http.StatusBadRequest, `["URI not valid: `+root+thingsPath+`"]`)
}

func TestVersionsOfAThingAreReserved(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	one, other := h.createThing("one"), h.createThing("other")
	h.grown(one, 1)
	h.grown(other, 1)
	version := one + "versions/1/"
	prn := h.object(version)["prn"].(string)
	for _, like := range []string{version, prn} {
		task := h.accepted(post(one+"grow/", map[string]string{"like": like}))
		var got struct {
			Reserved []string `json:"reserved_resources_record"`
		}
		h.get(task, &got)
		if diff := cmp.Diff([]string{"prn:things.thing:" + keyIn(one), "shared:" + prn}, got.Reserved[:2]); diff != "" {
			t.Errorf("reserved (-want +got):\n%s", diff)
		}
	}
	for _, like := range []string{other + "versions/1/", one + "versions/2/", "prn:things.thingversion:" + nowhere, one, "x", ""} {
		if got := h.send(post(one+"grow/", map[string]string{"like": like})); got.status != http.StatusBadRequest {
			t.Errorf("like %q: %d %s", like, got.status, got.body)
		}
	}
	named := h.accepted(post(pithRoot+"tasks/", map[string]any{"name": testModule + "dummy_task", "exclusive_resources": []string{version, one + "versions/9/"}}))
	if got := h.object(named)["reserved_resources_record"].([]any)[:2]; !cmp.Equal(got, []any{prn, one + "versions/9/"}) {
		t.Errorf("of hrefs %v is reserved", got)
	}
	h.sees("tasks/?exclusive_resources="+version, "admin", named)
	h.sees("tasks/?reserved_resources__in="+version+","+one+"versions/9/", "admin", named)
	if n := len(h.listed("tasks/?shared_resources="+version, "admin")); n != 2 {
		t.Errorf("%d tasks share the version", n)
	}
}

func TestThingsAreListedByPages(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	things := map[string]string{}
	for _, name := range []string{"c", "a", "b", "d1", "d2"} {
		things[name] = h.createThing(name)
	}
	h.grown(things["b"], 12)
	version := h.object(things["b"] + "versions/3/")["prn"].(string)
	for query, want := range map[string]part{
		"limit=2":                 {5, "limit=2&offset=2", none, []string{"d2", "d1"}},
		"limit=2&offset=2":        {5, "limit=2&offset=4", "limit=2", []string{"b", "a"}},
		"limit=2&offset=4":        {5, none, "limit=2&offset=2", []string{"c"}},
		"ordering=name&limit=3":   {5, "limit=3&offset=3", none, []string{"a", "b", "c"}},
		"ordering=-name&offset=3": {5, none, "limit=100", []string{"b", "a"}},
		"name__startswith=d":      {2, none, none, []string{"d2", "d1"}},
		"name__in=a,b,x":          {2, none, none, []string{"b", "a"}},
		"name=x":                  {0, none, none, []string{}},
		"pulp_href__in=" + things["a"] + "," + things["c"]:                       {2, none, none, []string{"a", "c"}},
		"prn__in=prn:things.thing:" + keyIn(things["a"]):                         {1, none, none, []string{"a"}},
		"pulp_id__in=" + keyIn(things["c"]):                                      {1, none, none, []string{"c"}},
		"version=" + things["b"] + "versions/12/":                                {1, none, none, []string{"b"}},
		"version=" + version:                                                     {1, none, none, []string{"b"}},
		"q=" + url.QueryEscape("name=a OR version='"+things["b"]+"versions/1/'"): {2, none, none, []string{"b", "a"}},
	} {
		got := h.partOf(thingsPath, query, "name")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
	for query, want := range map[string]string{
		"x=y": `{"errors": ["Invalid Filter: 'x'"]}`, "ordering=weight": `{"ordering": ["Select a valid choice. weight is not one of the available choices."]}`,
		"version=" + things["b"] + "versions/13/": `["URI not valid: ` + things["b"] + `versions/13/"]`, "version=" + things["b"]: `["URI not valid: ` + things["b"] + `"]`,
		"pulp_href__in=" + root + "tasks/" + nowhere + "/": `["URI not valid: ` + root + "tasks/" + nowhere + `/"]`,
		"pulp_href__in=" + root + thingsPath:               `["URI not valid: ` + root + thingsPath + `"]`,
		"pulp_href__in=null":                               `["URI not valid: null"]`, "prn__in=null": `["URI not valid: null"]`, "version=null": `["URI not valid: null"]`,
	} {
		h.answers(get(thingsPath+"?"+query), http.StatusBadRequest, want)
	}
	versions := things["b"][len(root):] + "versions/"
	if got := h.want(get(versions+"?number__gt=9&limit=2&fields=number"), http.StatusOK, nil); !strings.Contains(string(got.body), `"count":3`) ||
		!strings.HasSuffix(string(got.body), `"results":[{"number":12},{"number":11}]}`) {
		t.Errorf("versions: %s", got.body)
	}
	if got := h.listed(things["a"]+"versions/", "admin"); len(got) != 0 {
		t.Errorf("a thing without versions has %v", got)
	}
}
