package api_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

// nowhere is the key of no object.
const nowhere = "01890a5d-ac96-774b-bcce-b302099a8057"

// refusal is a request that is refused, with the whole body of the reply and some of its headers.
type refusal struct {
	name   string
	r      request
	status int
	want   string
	header map[string]string
}

// scene is what there is in the database when requests are refused.
type scene struct {
	task, group           string // of which the user guest may see all and change nothing
	hidden, hiddenGroup   string // of which guest may see nothing
	schedule, worker, prn string
}

func newScene(h *harness) scene {
	h.t.Helper()
	h.addUser("guest", false)
	var s scene
	for task, group := range map[*string]*string{&s.task: &s.group, &s.hidden: &s.hiddenGroup} {
		var id uuid.UUID
		id, *group = h.newGroup("")
		_, *task = h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
	}
	h.want(post(s.task+"add_role/", map[string]any{"users": []string{"guest"}, "role": "core.task_viewer"}), http.StatusCreated, nil)
	s.schedule = h.schedule("nightly")
	app := h.register("a worker")
	s.worker, s.prn = root+"workers/"+app.String()+"/", "prn:core.appstatus:"+app.String()
	return s
}

// detailed is the body of one sentence.
func detailed(text string) string { return jsonOf(map[string]string{"detail": text}) }

// about is the body of what is wrong with one field or parameter.
func about(field string, texts ...string) string { return jsonOf(map[string][]string{field: texts}) }

func jsonOf(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

const (
	notProvided = "Authentication credentials were not provided."
	badPassword = "Invalid username/password."
	mayNot      = "You do not have permission to perform this action."
	required    = "This field is required."
	notNull     = "This field may not be null."
	unexpected  = "Unexpected field"
	zeroByte    = "Null characters are not allowed."
	badDatetime = "Datetime has wrong format. Use one of these formats instead: YYYY-MM-DDThh:mm[:ss[.uuuuuu]][+HH:MM|-HH:MM|Z]."
	canceled    = `{"state": "canceled"}`
)

func TestErrorsHavePulpsBodies(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	s := newScene(h)
	for _, tt := range slices.Concat(
		refusedCredentials(s), refusedPermissions(s), refusedPaths(s), refusedMethods(s), refusedFields(s), refusedBodies(s),
		refusedFilters(), refusedReferences(s), refusedExpressions(s),
	) {
		t.Run(tt.name, func(t *testing.T) {
			got := h.in(t).send(tt.r)
			if got.status != tt.status {
				t.Errorf("status %d, want %d", got.status, tt.status)
			}
			if diff := cmp.Diff(value(t, []byte(tt.want)), value(t, got.body)); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got.header.Get("Content-Type") != "application/json" || len(got.header.Get("Correlation-Id")) != 32 {
				t.Errorf("header %v", got.header)
			}
			for name, want := range tt.header {
				if text := got.header.Get(name); text != want {
					t.Errorf("%s: %q, want %q", name, text, want)
				}
			}
		})
	}
}

func refusedCredentials(s scene) []refusal {
	basic := map[string]string{"WWW-Authenticate": `Basic realm="api"`}
	nobody := func(name string, r request) refusal {
		return refusal{name, r.by("-"), 401, detailed(notProvided), basic}
	}
	return []refusal{
		nobody("no credentials for a list", get("tasks/")),
		nobody("no credentials for an object", get(s.task)),
		nobody("no credentials for no object", get("tasks/"+nowhere+"/")),
		nobody("no credentials for a malformed id", get("tasks/x/")),
		nobody("no credentials for a wrong method", post("tasks/", nil)),
		nobody("no credentials for a bad body", patch(s.task, "{")),
		nobody("no credentials for options", send(http.MethodOptions, "tasks/", nil)),
		nobody("credentials of another kind", get("tasks/").with("Authorization", "Bearer x")),
		nobody("malformed credentials", get("tasks/").with("Authorization", "Basic %%%")),
		{
			"no credentials from a script", get("tasks/").by("-").with("X-Requested-With", "XMLHttpRequest"), 401,
			detailed(notProvided),
			map[string]string{"WWW-Authenticate": `xBasic realm="api"`},
		},
		{"wrong password", get("tasks/").by("admin:wrong"), 401, detailed(badPassword), basic},
		{"empty password", get("tasks/").by("admin:"), 401, detailed(badPassword), basic},
		{
			"wrong password from a script", get("tasks/").by("admin:wrong").with("X-Requested-With", "XMLHttpRequest"), 401,
			detailed(badPassword),
			map[string]string{"WWW-Authenticate": `xBasic realm="api"`},
		},
		{"unknown user", get("tasks/").by("stranger"), 401, detailed(badPassword), basic},
		{"name with a zero byte", get("tasks/").by("ad\x00min"), 401, detailed(badPassword), basic},
		{"name that no user can have", get("tasks/").by(strings.Repeat("a", 10000)), 401, detailed(badPassword), basic},
	}
}

func refusedPermissions(s scene) []refusal {
	guest := func(name string, r request, status int, text string) refusal {
		return refusal{name, r.by("guest"), status, detailed(text), nil}
	}
	return []refusal{
		guest("list of users", get("users/"), 403, mayNot),
		guest("user", get("users/1/"), 403, mayNot),
		guest("cancel of a task that is seen", patch(s.task, canceled), 403, mayNot),
		guest("delete of a task that is seen", send(http.MethodDelete, s.task, nil), 403, mayNot),
		guest("roles of a task that is seen", get(s.task+"list_roles/"), 403, mayNot),
		guest("role on a task that is seen", post(s.task+"add_role/", map[string]any{"users": []string{"guest"}, "role": "core.task_owner"}), 403, mayNot),
		guest("cancel of a group that is seen", patch(s.group, canceled), 403, mayNot),
		guest("task that is not seen", get(s.hidden), 404, "No Task matches the given query."),
		guest("cancel of a task that is not seen", patch(s.hidden, canceled), 404, "No Task matches the given query."),
		guest("delete of a task that is not seen", send(http.MethodDelete, s.hidden, nil), 404, "No Task matches the given query."),
		guest("profiles of a task that is not seen", get(s.hidden+"profile_artifacts/"), 404, "No Task matches the given query."),
		guest("permissions on a task that is not seen", get(s.hidden+"my_permissions/"), 404, "No Task matches the given query."),
		guest("group that is not seen", get(s.hiddenGroup), 404, "No TaskGroup matches the given query."),
		guest("cancel of a group that is not seen", patch(s.hiddenGroup, canceled), 404, "No TaskGroup matches the given query."),
		guest("schedule that is not seen", get(s.schedule), 404, "No TaskSchedule matches the given query."),
		{"options of a collection", send(http.MethodOptions, "tasks/", nil), 403, denied, map[string]string{"Allow": "GET, HEAD, OPTIONS"}},
		{"options of an object", send(http.MethodOptions, s.task, nil), 403, denied, map[string]string{"Allow": "DELETE, GET, HEAD, PATCH, OPTIONS"}},
	}
}

func refusedPaths(s scene) []refusal {
	var all []refusal
	missing := func(noun string, requests ...request) {
		for _, r := range requests {
			all = append(all, refusal{"missing: " + r.method + " " + r.path, r, 404, detailed("No " + noun + " matches the given query."), nil})
		}
	}
	task, group := "tasks/"+nowhere+"/", "task-groups/"+nowhere+"/"
	missing(
		"Task", get(task), patch(task, canceled), send(http.MethodDelete, task, nil), get(task+"profile_artifacts/"),
		get(task+"list_roles/"), get(task+"my_permissions/"), post(task+"add_role/", map[string]string{"role": "core.task_owner"}),
		post(task+"remove_role/", map[string]string{"role": "core.task_owner"}), get("tasks/"+keyIn(s.group)+"/"),
	)
	missing("TaskGroup", get(group), patch(group, canceled), get("task-groups/"+keyIn(s.task)+"/"))
	missing("TaskSchedule", get("task-schedules/"+nowhere+"/"), get("task-schedules/"+nowhere+"/list_roles/"))
	missing("AppStatus", get("workers/"+nowhere+"/"))
	missing("User", get("users/4711/"), send(http.MethodDelete, "users/4711/", nil), patch("users/4711/", "{}"), get("users/4711/roles/"))
	missing("Artifact", get("artifacts/"+nowhere+"/"))
	for _, path := range []string{
		"tasks/x/", "tasks/" + strings.ReplaceAll(nowhere, "-", "") + "/", "tasks/{" + nowhere[1:35] + "}/", "tasks/urn:uuid:" + nowhere + "/",
		"tasks/%00/", "tasks/x/list_roles/", "task-groups/1/", "task-schedules/-/", "workers/x/", "users/x/", "users/-1/", "users/+1/", "users/-0/", "users/01/", "users/01/roles/",
		"users/99999999999/", "users/1.0/", "users/x/roles/", "users/1/roles/x/", "users/x/roles/" + nowhere + "/",
	} {
		all = append(all, refusal{"malformed id: " + path, get(path), 404, detailed("Not found."), nil})
	}
	return append(all,
		refusal{"malformed id in a cancel", patch("tasks/x/", "{"), 404, detailed("Not found."), nil},
		refusal{"nothing acceptable", get("tasks/").with("Accept", "application/xml"), 406, detailed("Could not satisfy the request Accept header."), nil},
		refusal{"nothing acceptable, and nobody", get("tasks/").by("-").with("Accept", "image/png, application/pdf"), 406, detailed("Could not satisfy the request Accept header."), nil},
		refusal{"nothing acceptable from status", get("status/").by("-").with("Accept", "nonsense"), 406, detailed("Could not satisfy the request Accept header."), nil},
	)
}

// keyIn is the key of the object that an href names.
func keyIn(href string) string {
	parts := strings.Split(strings.Trim(href, "/"), "/")
	return parts[len(parts)-1]
}

func refusedMethods(s scene) []refusal {
	var all []refusal
	refuse := func(path, allow string, methods ...string) {
		for _, method := range methods {
			all = append(all, refusal{
				"method: " + method + " " + path, send(method, path, nil), 405, detailed(`Method "` + method + `" not allowed.`),
				map[string]string{"Allow": allow},
			})
		}
	}
	refuse("tasks/", "GET, HEAD, OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE")
	refuse(s.task, "DELETE, GET, HEAD, PATCH, OPTIONS", "POST", "PUT")
	refuse("tasks/"+nowhere+"/", "DELETE, GET, HEAD, PATCH, OPTIONS", "PUT")
	refuse("tasks/x/", "DELETE, GET, HEAD, PATCH, OPTIONS", "PUT")
	refuse("tasks/purge/", "POST, OPTIONS", "GET", "PUT", "DELETE")
	refuse(s.task+"profile_artifacts/", "GET, HEAD, OPTIONS", "POST")
	refuse(s.task+"add_role/", "POST, OPTIONS", "GET")
	refuse("task-groups/", "GET, HEAD, OPTIONS", "POST", "DELETE")
	refuse(s.group, "GET, HEAD, PATCH, OPTIONS", "POST", "PUT", "DELETE")
	refuse("task-schedules/", "GET, HEAD, OPTIONS", "POST")
	refuse(s.schedule, "GET, HEAD, OPTIONS", "PATCH", "DELETE")
	refuse("workers/", "GET, HEAD, OPTIONS", "POST", "DELETE")
	refuse(s.worker, "GET, HEAD, OPTIONS", "POST", "PUT", "PATCH", "DELETE")
	refuse("users/", "GET, HEAD, POST, OPTIONS", "PUT", "DELETE")
	refuse("status/", "GET, HEAD, OPTIONS", "POST", "PUT", "DELETE", "OPTIONS")
	refuse("docs/api.json", "GET, HEAD, OPTIONS", "POST")
	refuse("", "GET, HEAD, OPTIONS", "POST")
	return append(all, refusal{"method of a public path, and nobody", post("status/", nil).by("-"), 405, detailed(`Method "POST" not allowed.`), nil})
}

func refusedFields(s scene) []refusal {
	wrong := func(name string, r request, want string) refusal { return refusal{"field: " + name, r, 400, want, nil} }
	state := func(name, body, text string) refusal {
		return wrong("state "+name, patch(s.task, body), about("state", text))
	}
	purge := func(name, body, want string) refusal { return wrong("purge "+name, post("tasks/purge/", body), want) }
	form := func(r request) request { return r.with("Content-Type", "application/x-www-form-urlencoded") }
	return []refusal{
		state("required", `{}`, required),
		wrong("state required, no body", patch(s.task, nil), about("state", required)),
		wrong("state required of a group", patch(s.group, `{}`), about("state", required)),
		state("null", `{"state": null}`, notNull),
		state("blank", `{"state": ""}`, `"" is not a valid choice.`),
		state("bad choice", `{"state": "running"}`, `"running" is not a valid choice.`),
		state("bad choice with quotes", `{"state": "say \"no\"\\"}`, `"say "no"\" is not a valid choice.`),
		state("choice that is a number", `{"state": 1.5}`, `"1.5" is not a valid choice.`),
		state("choice that is a list", `{"state": ["canceled"]}`, "Not a valid string."),
		wrong("unknown", patch(s.task, `{"state": "canceled", "stat": 1}`), about("stat", unexpected)),
		wrong("required and unknown", patch(s.group, `{"stat": 1, "": 2}`), jsonOf(map[string][]string{"state": {required}, "stat": {unexpected}, "": {unexpected}})),
		wrong("bad choice in a form", form(patch(s.task, "state=running")), about("state", `"running" is not a valid choice.`)),
		wrong("unknown in a form", form(patch(s.task, "state=canceled&stat=1&stat=2")), about("stat", unexpected)),
		wrong("required in a form", form(patch(s.task, "&")), about("state", required)),
		wrong("bad choice in a multipart form", patch(s.task, "--b\r\nContent-Disposition: form-data; name=\"state\"\r\n\r\nrunning\r\n--b--\r\n").
			with("Content-Type", "multipart/form-data; boundary=b"), about("state", `"running" is not a valid choice.`)),
		purge("time", `{"finished_before": "THISISNOTADATE"}`, about("finished_before", badDatetime)),
		purge("time out of range", `{"finished_before": "2024-02-30T10:00"}`, about("finished_before", badDatetime)),
		purge("time that is too late", `{"finished_before": "9999-12-31T23:59:59-01:00"}`, about("finished_before", badDatetime)),
		purge("time that is too early", `{"finished_before": "0001-01-01T00:00+00:01"}`, about("finished_before", badDatetime)),
		purge("time that is a number", `{"finished_before": 1714557600}`, about("finished_before", badDatetime)),
		purge("time that is null", `{"finished_before": null}`, about("finished_before", notNull)),
		purge("list that is a text", `{"states": "completed"}`, about("states", `Expected a list of items but got type "str".`)),
		purge("list that is an object", `{"states": {}}`, about("states", `Expected a list of items but got type "dict".`)),
		purge("list that is a number", `{"states": 1}`, about("states", `Expected a list of items but got type "int".`)),
		purge("list that is null", `{"states": null}`, about("states", notNull)),
		purge("list with bad items", `{"states": ["completed", "running", null, "x"], "x": 1}`,
			`{"states": ["\"running\" is not a valid choice."]}`),
		purge("several", `{"finished_before": "x", "states": true}`,
			jsonOf(map[string][]string{"finished_before": {badDatetime}, "states": {`Expected a list of items but got type "bool".`}})),
		wrong("several of a user", post("users/", map[string]any{
			"username": "  ", "password": "a\x00b", "first_name": strings.Repeat("ü", 151), "last_name": nil, "email": []string{}, "is_staff": "maybe",
			"is_active": 2, "groups": []string{},
		}), jsonOf(map[string][]string{
			"username": {"This field may not be blank."}, "password": {zeroByte}, "first_name": {"Ensure this field has no more than 150 characters."},
			"last_name": {notNull}, "email": {"Not a valid string."}, "is_staff": {"Must be a valid boolean."}, "is_active": {"Must be a valid boolean."},
			"groups": {unexpected},
		})),
		wrong("not unique", post("users/", `{"username": "guest"}`), about("username", "This field must be unique.")),
		wrong("across fields", post(s.task+"add_role/", `{"role": "core.taskschedule_owner"}`), about("non_field_errors", "The role does not contain any permission for that object.")),
	}
}

func refusedBodies(s scene) []refusal {
	bad := func(name, kind, body string, status int, want string) refusal {
		return refusal{"body: " + name, patch(s.task, body).with("Content-Type", kind), status, want, nil}
	}
	dict := func(name, body, got string) refusal {
		return bad(name, "application/json", body, 400, about("non_field_errors", "Invalid data. Expected a dictionary, but got "+got+"."))
	}
	return []refusal{
		bad("bad JSON", "application/json", `{"state"`, 400, detailed("JSON parse error - unexpected end of JSON input: byte 8")),
		bad("bad JSON with a charset", "application/json; charset=utf-8", `{state}`, 400, detailed("JSON parse error - invalid character 's' looking for beginning of object key string: byte 2")),
		bad("two values", "application/json", `{} {}`, 400, detailed("JSON parse error - invalid character '{' after top-level value: byte 4")),
		bad("no UTF-8", "application/json", "{\"state\": \"\xff\"}", 400, detailed("JSON parse error - the body is not UTF-8")),
		dict("list", ` [] `, "list"), dict("text", `"a"`, "str"), dict("number", `-1`, "int"), dict("fraction", `1e3`, "float"), dict("boolean", `true`, "bool"), dict("null", `null`, "NoneType"),
		bad("unknown type", "text/plain", canceled, 415, detailed(`Unsupported media type "text/plain" in request.`)),
		bad("unknown type with quotes", `text/plain; charset="utf-8"`, canceled, 415, detailed(`Unsupported media type "text/plain; charset="utf-8"" in request.`)),
		bad("no type", "", canceled, 415, detailed(`Unsupported media type "" in request.`)),
		bad("malformed type", "application/json; charset", canceled, 415, detailed(`Unsupported media type "application/json; charset" in request.`)),
		bad("no escape in a form", "application/x-www-form-urlencoded", "state=%zz;", 400, about("state", `"%zz;" is not a valid choice.`)),
		bad("no boundary", "multipart/form-data", "x", 400, detailed("Multipart form parse error - Invalid boundary in multipart: None")),
		bad("malformed multipart form", "multipart/form-data; boundary=b", "x", 400, detailed("Multipart form parse error - multipart: NextPart: EOF")),
		bad("multipart form without its end", "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"state\"\r\n\r\ncanceled\r\n", 400,
			detailed("Multipart form parse error - unexpected EOF")),
		bad("file", "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"state\"; filename=\"x\"\r\n\r\ncanceled\r\n--b--\r\n", 400,
			about("state", "A file is not expected here.")),
		bad("too long", "application/json", strings.Repeat(" ", 1<<20+1), 413, detailed("The body has more than 1048576 bytes.")),
		bad("too long, and of an unknown type", "text/plain", strings.Repeat(" ", 1<<20+1), 413, detailed("The body has more than 1048576 bytes.")),
	}
}

// list is the request for a list with one parameter.
func list(path, name, value string) request {
	return get(path + "?" + url.Values{name: {value}}.Encode())
}

func refusedFilters() []refusal {
	var all []refusal
	refuse := func(path, query, want string) {
		all = append(all, refusal{"filter: " + path + "?" + query, get(path + "?" + query), 400, want, nil})
	}
	one := func(path, name, value, text string) {
		refuse(path, url.Values{name: {value}}.Encode(), about(name, text))
	}
	choice := func(word string) string {
		return "Select a valid choice. " + word + " is not one of the available choices."
	}
	for _, path := range []string{"tasks/", "workers/", "task-schedules/", "users/"} {
		refuse(path, "foo=1", about("errors", "Invalid Filter: 'foo'"))
		refuse(path, "foo=", about("errors", "Invalid Filter: 'foo'"))
		one(path, "ordering", "-foo", choice("-foo"))
		one(path, "q", "foo=1", "Filter 'foo' does not exist.")
	}
	refuse("tasks/", "foo;bar=1", about("errors", "Invalid Filter: 'foo;bar'"))
	refuse("tasks/", "state=%zz;", about("state", choice("%zz;")))
	refuse("tasks/", "foo=1&bar=2&state__contains=x", about("errors", "Invalid Filter: 'bar'", "Invalid Filter: 'foo'", "Invalid Filter: 'state__contains'"))
	one("tasks/", "state", "bogus", choice("bogus"))
	one("tasks/", "state__ne", "bogus", choice("bogus"))
	for _, name := range []string{"pulp_created", "unblocked_at", "started_at", "finished_at"} {
		for _, lookup := range []string{"", "__lt", "__lte", "__gt", "__gte"} {
			one("tasks/", name+lookup, "yesterday", "Enter a valid date/time.")
		}
		one("tasks/", name+"__range", "2024-05-01,x", "Enter a valid date/time.")
		one("tasks/", name+"__range", "2024-05-01", "Range query expects two values.")
		one("tasks/", name+"__isnull", "maybe", "Must be a valid boolean.")
	}
	one("workers/", "last_heartbeat__gte", "2024-13-01", "Enter a valid date/time.")
	one("tasks/", "pulp_id__in", "hello", "Enter a valid UUID.")
	one("tasks/", "pulp_id__in", nowhere+",1", "Enter a valid UUID.")
	one("workers/", "online", "yes", "Must be a valid boolean.")
	one("workers/", "missing", "2", "Must be a valid boolean.")
	for _, name := range []string{"name", "name__in", "logging_cid__contains", "state", "reserved_resources", "created_resources", "parent_task", "ordering", "q"} {
		one("tasks/", name, "a\x00b", zeroByte)
	}
	one("workers/", "name__regex", "(", "Enter a valid regular expression.")
	one("workers/", "name__iregex", `\pL`, "Enter a valid regular expression.") // which PostgreSQL does not know
	one("tasks/", "name__in", strings.Repeat(",", 1000), "A list may have 1000 values.")
	refuse("tasks/", "state=x&finished_at=x&foo=x&parent_task=x&q=x", jsonOf(map[string][]string{
		"state": {choice("x")}, "finished_at": {"Enter a valid date/time."}, "errors": {"Invalid Filter: 'foo'"},
		"q": {"Syntax error in expression: expected = at character 2."},
	}))
	return all
}

func refusedReferences(s scene) []refusal {
	var all []refusal
	for name, bad := range map[string][]string{
		"parent_task":       {"x", "/", "/nowhere/", root + "task-groups/", root + "tasks/x/", s.group, "prn:core.task:x", "prn:core.taskgroup:" + nowhere, nowhere},
		"child_tasks":       {"x", s.group},
		"task_group":        {"x", s.task, "prn:core.task:" + nowhere},
		"pulp_href__in":     {"x", "null", s.group},
		"prn__in":           {"x", "null", s.prn, "prn:core.task:" + nowhere[1:]},
		"created_resources": {"x", "/nowhere/", root + "tasks/", "prn:file.filerepository:" + nowhere},
	} {
		for _, text := range bad {
			all = append(all, refusal{"reference: " + name + "=" + text, list("tasks/", name, text), 400, jsonOf([]string{"URI not valid: " + text}), nil})
		}
	}
	return all
}

func refusedExpressions(s scene) []refusal {
	var all []refusal
	for text, want := range map[string]string{
		"state":                             "Syntax error in expression: expected = at character 6.",
		"state=waiting AND":                 "Syntax error in expression: expected a filter, NOT or ( at character 18.",
		"(state=waiting":                    "Syntax error in expression: expected AND, OR or ) at character 15.",
		`name="x`:                           "Syntax error in expression: unclosed quote at character 6.",
		"q=x":                               "You cannot use 'q' in complex filtering.",
		"ordering=name":                     "An ordering filter cannot be used in complex filtering.",
		"limit=1":                           "Filter 'limit' does not exist.",
		"state=bogus":                       "state: Select a valid choice. bogus is not one of the available choices.",
		"finished_at__lt=x":                 "finished_at__lt: Enter a valid date/time.",
		"parent_task=" + s.group:            "parent_task: URI not valid: " + s.group,
		strings.Repeat("NOT ", 8) + "name=": "Syntax error in expression: expected a value at character 38.",
		strings.Repeat("name=a OR ", 7) + "name=a":                           "Filter expression exceeds allowed complexity.",
		"(name=a OR NOT name=a) AND " + strings.Repeat("NOT ", 4) + "name=a": "Filter expression exceeds allowed complexity.",
	} {
		all = append(all, refusal{"expression: " + text, list("tasks/", "q", text), 400, about("q", want), nil})
	}
	return all
}
