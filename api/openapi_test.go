package api_test

import (
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"github.com/oasdiff/yaml"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/internal/builtin"
)

// ask sends a server a request of nobody.
func ask(t *testing.T, s *api.Server, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return w
}

// object is one of JSON.
type object = map[string]any

// document is a server's document in the form that a query asks for.
func document(t *testing.T, s *api.Server, query string) object {
	t.Helper()
	w := ask(t, s, http.MethodGet, root+"docs/api.json"+query)
	if w.Code != http.StatusOK {
		t.Fatalf("document %s: %d, %s", query, w.Code, w.Body)
	}
	return value(t, w.Body.Bytes()).(object)
}

// operations are those of a document: their paths, methods and contents.
func operations(doc object) iter.Seq2[string, object] {
	return func(yield func(string, object) bool) {
		for path, item := range doc["paths"].(object) {
			for method, operation := range item.(object) {
				if !yield(strings.ToUpper(method)+" "+path, operation.(object)) {
					return
				}
			}
		}
	}
}

// forms are the queries for all forms of the document.
var forms = []string{"", "?pk_path=1", "?bindings", "?bindings&pk_path=1", "?component=core", "?include_html=1&lang=en"}

func TestDocumentIsServedAsJSONAndYAML(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	for _, form := range forms {
		w := ask(t, s, http.MethodGet, root+"docs/api.json"+form)
		want := map[string]string{
			"Content-Type": "application/vnd.oai.openapi+json", "Cache-Control": "max-age=8640000", "Vary": "Accept, Authorization",
			"Content-Length": strconv.Itoa(w.Body.Len()), "Www-Authenticate": "",
		}
		for name, text := range want {
			if got := w.Header().Get(name); w.Code != http.StatusOK || got != text {
				t.Errorf("%s: %d, %s is %q, want %q", form, w.Code, name, got, text)
			}
		}
		if again := ask(t, s, http.MethodGet, root+"docs/api.json"+form); again.Body.String() != w.Body.String() {
			t.Errorf("%s is another one the second time", form)
		}
		y := ask(t, s, http.MethodGet, root+"docs/api.yaml"+form)
		if kind := y.Header().Get("Content-Type"); y.Code != http.StatusOK || kind != "application/vnd.oai.openapi" || y.Header().Get("Cache-Control") != want["Cache-Control"] {
			t.Errorf("%s as YAML: %d, %s", form, y.Code, kind)
		}
		back, err := yaml.YAMLToJSON(y.Body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !cmp.Equal(value(t, w.Body.Bytes()), value(t, back)) {
			t.Errorf("%s: YAML and JSON differ", form)
		}
	}
	for _, name := range []string{"docs/api.json", "docs/api.yaml"} {
		if w := ask(t, s, http.MethodPost, root+name); w.Code != http.StatusMethodNotAllowed || w.Body.String() != `{"detail":"Method \"POST\" not allowed."}` {
			t.Errorf("POST %s: %d, %s", name, w.Code, w.Body)
		}
		for _, query := range []string{"?component=nothing", "?component=core,nothing", "?component=Core"} {
			w := ask(t, s, http.MethodGet, root+name+query)
			if detail, _ := value(t, w.Body.Bytes()).(object)["detail"].(string); w.Code != http.StatusBadRequest || !strings.HasPrefix(detail, "Invalid component ") {
				t.Errorf("%s%s: %d, %s", name, query, w.Code, w.Body)
			}
		}
		if w := ask(t, s, http.MethodHead, root+name); w.Code != http.StatusOK || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "0" {
			t.Errorf("HEAD %s: %d, %d bytes", name, w.Code, w.Body.Len())
		}
	}
}

func TestDocumentTellsTheVersionsOfAllComponents(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{Components: []api.Component{{Label: "things", Version: "1.2.3"}}})
	for _, form := range append(forms, "?component=things") {
		info := document(t, s, form)["info"].(object)
		if diff := cmp.Diff(object{"core": reported(t, s), "things": "1.2.3"}, info["x-pulp-app-versions"]); diff != "" || info["x-pulp-domain-enabled"] != false {
			t.Errorf("%s: domains %v, versions (-want +got):\n%s", form, info["x-pulp-domain-enabled"], diff)
		}
	}
	if paths := document(t, s, "?component=things")["paths"]; !cmp.Equal(paths, object{}) {
		t.Errorf("a component without resources has %v", paths)
	}
	if !cmp.Equal(document(t, s, "?component=core"), document(t, s, "")) {
		t.Error("the core alone is less than the core and a component without resources")
	}
}

// reported is the version of the core that a server tells clients: the program's, and a part that changes with the document.
func reported(t *testing.T, s *api.Server) string {
	t.Helper()
	version, _ := document(t, s, "")["info"].(object)["x-pulp-app-versions"].(object)["core"].(string)
	if !regexp.MustCompile(`^` + regexp.QuoteMeta(builtin.Version) + `\+pith\.[0-9a-f]{8}$`).MatchString(version) {
		t.Errorf("the core's version is told as %q", version)
	}
	return version
}

// TestReportedVersionChangesWithTheDocument: clients keep the document until it does.
func TestReportedVersionChangesWithTheDocument(t *testing.T) {
	t.Parallel()
	with := func(summary string) *api.Server {
		c := answering(map[int]any{http.StatusOK: thingReply{}}, nil)
		c.Resources[0].Operations[0].Summary = summary
		return api.Aloof(t, api.Config{Components: []api.Component{c}})
	}
	none, one, same, other := reported(t, api.Aloof(t, api.Config{})), reported(t, with("Do it.")), reported(t, with("Do it.")), reported(t, with("Do it so."))
	if one != same {
		t.Errorf("two servers of one API tell %s and %s", one, same)
	}
	if none == one || one == other || none == other {
		t.Errorf("servers of three APIs tell %s, %s and %s", none, one, other)
	}
}

func TestDocumentIsOfTheComponentsAskedFor(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{Components: []api.Component{answering(map[int]any{http.StatusOK: thingReply{}}, nil), {Label: "other", Version: "1.0"}}})
	both := document(t, s, "?component=core,things")
	for _, query := range []string{"?component=things&component=core", "?component=core&component=,things,", "?component=core,core&component=things", "?component=", ""} {
		if !cmp.Equal(document(t, s, query), both) {
			t.Errorf("%q is not what both components have", query)
		}
	}
	if n := len(document(t, s, "?component=other&component=things")["paths"].(object)); n != 1 {
		t.Errorf("things have %d paths", n)
	}
	for _, query := range []string{"?component=core&component=nothing", "?component=nothing&component=core"} {
		if w := ask(t, s, http.MethodGet, root+"docs/api.json"+query); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", query, w.Code)
		}
	}
	if !cmp.Equal(document(t, s, "?bindings=0&bindings=1"), document(t, s, "?bindings")) {
		t.Error("of two values not the last one counts")
	}
	for at, o := range operations(both) {
		if strings.Contains(at, "docs/api.") && o["responses"].(object)["400"] == nil {
			t.Errorf("%s is described without 400", at)
		}
	}
}

// validate reports what is wrong with a document by the specification.
func validate(t *testing.T, data []byte) error {
	t.Helper()
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(data)
	if err != nil {
		return err
	}
	return doc.Validate(t.Context())
}

func TestDocumentIsValidButForPathsThatAreHrefs(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	for _, form := range []string{"?pk_path=1", "?pk_path=1&component=core"} {
		if err := validate(t, ask(t, s, http.MethodGet, root+"docs/api.json"+form).Body.Bytes()); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
	w := ask(t, s, http.MethodGet, root+"docs/api.json")
	for path := range value(t, w.Body.Bytes()).(object)["paths"].(object) {
		if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "{") {
			t.Errorf("a path begins like %s", path)
		}
	}
	if err := validate(t, w.Body.Bytes()); err == nil {
		t.Error("the one with hrefs is valid, although its paths do not begin with a slash")
	}
	n := 0
	told := regexp.MustCompile(`"\{\w+_href\}[^"]*":\{`).ReplaceAllFunc(w.Body.Bytes(), func(path []byte) []byte {
		n++ // else parameters of other names are the same path
		return fmt.Appendf(nil, `"/%d/%s`, n, path[1:])
	})
	if err := validate(t, told); err != nil || n < 10 {
		t.Errorf("with %d of its paths below others: %v", n, err)
	}
}

func TestOperationsHaveIDsOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	for _, form := range forms {
		seen := map[string]string{}
		for at, o := range operations(document(t, s, form)) {
			id := o["operationId"].(string)
			if strings.Contains(form, "bindings") { // unique per tag
				id = fmt.Sprint(o["tags"], " ", id)
			}
			if other, twice := seen[id]; twice || id == "" {
				t.Errorf("%s: %s and %s are both %q", form, at, other, id)
			}
			seen[id] = at
		}
	}
	// Those that Pulp's command line calls.
	ids := map[string]bool{}
	for _, o := range operations(document(t, s, "")) {
		ids[o["operationId"].(string)] = true
	}
	for _, id := range []string{
		"status_read", "livez_read", "docs_api.json_get", "tasks_list", "tasks_read", "tasks_cancel", "tasks_delete", "tasks_purge", "tasks_profile_artifacts",
		"tasks_add_role", "tasks_remove_role", "tasks_list_roles", "tasks_my_permissions", "task_groups_list", "task_groups_read", "task_groups_cancel",
		"task_schedules_list", "task_schedules_read", "workers_list", "workers_read", "users_list", "users_read", "users_create", "users_update",
		"users_partial_update", "users_delete", "users_roles_list", "users_roles_read", "users_roles_create", "users_roles_delete", "artifacts_read",
	} {
		if !ids[id] {
			t.Errorf("there is no %s", id)
		}
	}
}

func TestDocumentDescribesWhatIsDeclaredAndNothingElse(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	declared := s.Declared()
	for _, form := range []string{"", "?pk_path=1", "?component=core"} {
		described := maps.Collect(operations(document(t, s, form)))
		for _, d := range declared {
			at := d.Method + " " + d.HrefPath
			if strings.Contains(form, "pk_path") {
				at = d.Method + " " + d.Path
			}
			o := described[at]
			if o == nil {
				t.Errorf("%s: %s is not described", form, at)
				continue
			}
			delete(described, at)
			if o["operationId"] != d.ID || !cmp.Equal(o["tags"], []any{d.Tag}) || (o["security"] == nil) != d.Public || (o["requestBody"] != nil) != d.Body {
				t.Errorf("%s: %s is described as %v of %v, security %v, body %v", form, at, o["operationId"], o["tags"], o["security"], o["requestBody"])
			}
			checkStatuses(t, at, d, o["responses"].(object))
		}
		for at := range described {
			t.Errorf("%s: %s is described, not declared", form, at)
		}
	}
}

// checkStatuses checks that an operation is described with the statuses that it declares, and else with errors that it may
// answer without declaring them.
func checkStatuses(t *testing.T, at string, d api.Declared, responses object) {
	t.Helper()
	own := map[string]bool{}
	for _, status := range d.Statuses {
		own[strconv.Itoa(status)] = true
		if responses[strconv.Itoa(status)] == nil {
			t.Errorf("%s is described without %d", at, status)
		}
	}
	may := map[string]bool{
		"400": d.Body || d.Filtered, "413": d.Body, "415": d.Body, "401": !d.Public, "403": !d.Public, "404": strings.Contains(d.Path, "{"), "406": true, "503": true,
	}
	for status := range responses {
		if !own[status] && !may[status] {
			t.Errorf("%s is described with %s", at, status)
		}
	}
}

// TestBindingsAreLikePulps compares what generators of clients make of the document with what they have made of Pulp's:
// methods by tag, what they take, and what they answer. Source: pulpcore-client 3.117.2.
func TestBindingsAreLikePulps(t *testing.T) {
	t.Parallel()
	want := []string{
		"Artifacts.read() ArtifactResponse",
		"Livez.livez_read()",
		"Status.status_read() StatusResponse",
		"Task-Groups.list() PaginatedTaskGroupResponseList",
		"Task-Groups.read() TaskGroupResponse",
		"Task-Groups.task_groups_cancel(PatchedTaskCancel) TaskGroupResponse TaskGroupResponse",
		"Task-Schedules.add_role(NestedRole) NestedRoleResponse",
		"Task-Schedules.list() PaginatedTaskScheduleResponseList",
		"Task-Schedules.list_roles() ObjectRolesResponse",
		"Task-Schedules.my_permissions() MyPermissionsResponse",
		"Task-Schedules.read() TaskScheduleResponse",
		"Task-Schedules.remove_role(NestedRole) NestedRoleResponse",
		"Tasks.add_role(NestedRole) NestedRoleResponse",
		"Tasks.delete()",
		"Tasks.list() PaginatedTaskResponseList",
		"Tasks.list_roles() ObjectRolesResponse",
		"Tasks.my_permissions() MyPermissionsResponse",
		"Tasks.profile_artifacts() ProfileArtifactResponse",
		"Tasks.purge(Purge) AsyncOperationResponse",
		"Tasks.read() TaskResponse",
		"Tasks.remove_role(NestedRole) NestedRoleResponse",
		"Tasks.tasks_cancel(PatchedTaskCancel) TaskResponse TaskResponse",
		"Users.create(User) UserResponse",
		"Users.delete()",
		"Users.list() PaginatedUserResponseList",
		"Users.partial_update(PatchedUser) UserResponse",
		"Users.read() UserResponse",
		"Users.update(User) UserResponse",
		"Users: Roles.create(UserRole) UserRoleResponse",
		"Users: Roles.delete()",
		"Users: Roles.list() PaginatedUserRoleResponseList",
		"Users: Roles.read() UserRoleResponse",
		"Workers.list() PaginatedWorkerResponseList",
		"Workers.read() WorkerResponse",
	}
	s := api.Aloof(t, api.Config{})
	doc := document(t, s, "?bindings")
	name := func(content any) string {
		schema := content.(object)["application/json"].(object)["schema"].(object)
		ref, ok := schema["$ref"].(string)
		if !ok {
			t.Errorf("a schema has no name: %v", schema)
		}
		return path.Base(ref)
	}
	var got []string
	for _, o := range operations(doc) {
		tag := o["tags"].([]any)[0].(string)
		if tag == "Docs" || tag == "Root" || strings.HasPrefix(tag, "Pith") { // which Pulp's bindings have not
			continue
		}
		text := tag + "." + o["operationId"].(string) + "("
		if body, ok := o["requestBody"].(object); ok {
			text += name(body["content"])
		}
		text += ")"
		for _, status := range []string{"200", "201", "202", "409"} {
			if r, _ := o["responses"].(object)[status].(object); r["content"] != nil {
				text += " " + name(r["content"])
			}
		}
		got = append(got, text)
	}
	if diff := cmp.Diff(want, sorted(got)); diff != "" {
		t.Errorf("bindings (-want +got):\n%s", diff)
	}
	schemas := doc["components"].(object)["schemas"].(object)
	for _, name := range []string{
		"MinimalTaskResponse", "ProgressReportResponse", "GroupProgressReportResponse", "UserGroupResponse", "VersionResponse", "AppStatusResponse",
		"DatabaseConnectionResponse", "RedisConnectionResponse", "StorageResponse", "ContentSettingsResponse",
	} {
		if schemas[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
	failure := schemas["TaskResponse"].(object)["properties"].(object)["error"].(object)
	if failure["type"] != "object" || failure["additionalProperties"] == nil || failure["nullable"] != true {
		t.Errorf("why a task failed is %v, no dictionary", failure)
	}
	// All others are told of the short form, too.
	if !strings.Contains(ask(t, s, http.MethodGet, root+"docs/api.json").Body.String(), `"anyOf"`) {
		t.Error("the document does not tell of the short form")
	}
}

// TestDescribedOperationsAreServed asks without credentials, which is refused before anything else is looked at.
func TestDescribedOperationsAreServed(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	names := regexp.MustCompile(`\{\w+\}`)
	for at, o := range operations(document(t, s, "?pk_path=1")) {
		if o["security"] == nil {
			continue
		}
		method, path, _ := strings.Cut(names.ReplaceAllString(at, nowhere), " ")
		if w := ask(t, s, method, path); w.Code != http.StatusUnauthorized || !strings.Contains(w.Header().Get("Allow"), method) {
			t.Errorf("%s: %d, Allow %q", at, w.Code, w.Header().Get("Allow"))
		}
	}
	for path, want := range map[string]int{"": 200, "livez/": 200, "docs/": 200, "docs/api.json": 200} {
		if w := ask(t, s, http.MethodGet, root+path); w.Code != want {
			t.Errorf("%q: %d", path, w.Code)
		}
	}
}

func TestRepliesWithAnHrefHaveAPRN(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	schemas, found := document(t, s, "")["components"].(object)["schemas"].(object), 0
	for name, schema := range schemas {
		properties, _ := schema.(object)["properties"].(object)
		if !strings.HasSuffix(name, "Response") || properties["pulp_href"] == nil {
			continue
		}
		found++
		for _, property := range []string{"prn", "pulp_href"} {
			p, _ := properties[property].(object)
			if p["type"] != "string" || p["readOnly"] != true {
				t.Errorf("%s of %s is %v", property, name, p)
			}
		}
		if required := schema.(object)["required"]; required != nil { // clients may select fields
			t.Errorf("%s requires %v", name, required)
		}
	}
	if found < 6 { // tasks, groups, schedules, workers, users, and their roles
		t.Errorf("%d kinds of objects have hrefs", found)
	}
	for name, p := range schemas["User"].(object)["properties"].(object) {
		if (p.(object)["writeOnly"] == true) != (name == "password") {
			t.Errorf("%s of a user: %v", name, p)
		}
	}
}

func TestSchemasThatAreReferredToAreThereAndNoOthers(t *testing.T) {
	t.Parallel()
	s := api.Aloof(t, api.Config{})
	for _, form := range forms {
		text := ask(t, s, http.MethodGet, root+"docs/api.json"+form).Body.String()
		referred := map[string]bool{}
		for _, m := range regexp.MustCompile(`"#/components/schemas/([^"]*)"`).FindAllStringSubmatch(text, -1) {
			referred[m[1]] = true
		}
		schemas := document(t, s, form)["components"].(object)["schemas"].(object)
		for name := range referred {
			if schemas[name] == nil {
				t.Errorf("%s: there is no %s", form, name)
			}
		}
		for name := range schemas {
			if !referred[name] {
				t.Errorf("%s: nothing is a %s", form, name)
			}
		}
	}
}
