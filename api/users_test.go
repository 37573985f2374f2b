package api_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
)

// denied is the body of a reply to somebody who may not.
const denied = `{"detail": "You do not have permission to perform this action."}`

// unknownCredentials is the body of a reply to somebody whose name or password is wrong.
const unknownCredentials = `{"detail": "Invalid username/password."}`

// value decodes JSON.
func value(t *testing.T, body []byte) (out any) {
	t.Helper()
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return out
}

// answers sends a request that must be answered with this status and exactly this JSON; "": with no body.
func (h *harness) answers(r request, status int, body string) {
	h.t.Helper()
	got := h.send(r)
	if got.status != status {
		h.t.Errorf("%s %s as %q with %v: status %d, want %d: %s", r.method, r.path, r.user, r.body, got.status, status, got.body)
		return
	}
	if body == "" && len(got.body) == 0 {
		return
	}
	if diff := cmp.Diff(value(h.t, []byte(body)), value(h.t, got.body)); diff != "" {
		h.t.Errorf("%s %s as %q with %v (-want +got):\n%s", r.method, r.path, r.user, r.body, diff)
	}
}

// members are the names of a JSON object's members, in their order.
func members(t *testing.T, body []byte) []string {
	t.Helper()
	in := json.NewDecoder(bytes.NewReader(body))
	if _, err := in.Token(); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	var list []string
	for in.More() {
		name, err := in.Token()
		if err != nil {
			t.Fatal(err)
		}
		var skipped json.RawMessage
		if err := in.Decode(&skipped); err != nil {
			t.Fatal(err)
		}
		list = append(list, name.(string))
	}
	return list
}

// newUser adds an ordinary user, whose password is password, with these roles on everything, and answers the href.
func (h *harness) newUser(name string, roles ...string) string {
	h.t.Helper()
	var made struct {
		PulpHref string `json:"pulp_href"`
	}
	h.want(request{method: http.MethodPost, path: "users/", body: map[string]any{"username": name, "password": "password"}}, http.StatusCreated, &made)
	for _, role := range roles {
		h.give(made.PulpHref, role, nil)
	}
	return made.PulpHref
}

// give gives a user a role on an object, nil for everything, and answers the role's href.
func (h *harness) give(user, role string, object any) string {
	h.t.Helper()
	var made struct {
		PulpHref string `json:"pulp_href"`
	}
	h.want(request{
		method: http.MethodPost, path: user + "roles/", body: map[string]any{"role": role, "content_object": object, "domain": nil},
	}, http.StatusCreated, &made)
	return made.PulpHref
}

// login is the status with which a user NAME:PASSWORD reads something of no importance.
func (h *harness) login(user string) int {
	h.t.Helper()
	return h.send(request{path: "tasks/?limit=1", user: user}).status
}

func TestUserIsToldWithPulpsFieldsInTheirOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	got := h.want(request{path: "users/1/"}, http.StatusOK, nil)
	want := []string{
		"pulp_href", "prn", "id", "username", "first_name", "last_name", "email", "is_staff", "is_active", "date_joined", "groups", "hidden_fields",
	}
	if diff := cmp.Diff(want, members(t, got.body)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	var u map[string]any
	h.get("users/1/", &u)
	if joined, _ := u["date_joined"].(string); len(joined) != len("2006-01-02T15:04:05.000000Z") || !strings.HasSuffix(joined, "Z") {
		t.Errorf("date_joined is %v", u["date_joined"])
	}
	delete(u, "date_joined")
	if diff := cmp.Diff(map[string]any{
		"pulp_href": "/pulp/api/v3/users/1/", "prn": "prn:auth.user:1", "id": 1.0, "username": "admin", "first_name": "", "last_name": "", "email": "",
		"is_staff": true, "is_active": true, "groups": []any{}, "hidden_fields": []any{map[string]any{"name": "password", "is_set": true}},
	}, u); diff != "" {
		t.Errorf("the first user (-want +got):\n%s", diff)
	}
}

func TestUserIsCreatedReadListedChangedAndDeleted(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	body := `{"username": "lena", "password": "secret", "first_name": "Lena", "last_name": "  von M", "email": "lena@example.org", "is_staff": true}`
	made := h.want(request{method: http.MethodPost, path: "users/", body: body}, http.StatusCreated, nil)
	if to := made.header.Get("Location"); to != root+"users/2/" {
		t.Errorf("Location %q", to)
	}
	if read := h.want(request{path: "users/2/"}, http.StatusOK, nil); !bytes.Equal(read.body, made.body) {
		t.Errorf("created as\n%s and read as\n%s", made.body, read.body)
	}
	if got := names(t, h.want(request{path: "users/"}, http.StatusOK, nil).body, "username"); !cmp.Equal(got, []string{"lena", "admin"}) {
		t.Errorf("listed: %v", got)
	}
	told := func(r reply) map[string]any {
		u := value(t, r.body).(map[string]any)
		return map[string]any{"username": u["username"], "first_name": u["first_name"], "last_name": u["last_name"], "email": u["email"], "is_staff": u["is_staff"]}
	}
	want := map[string]any{"username": "lena", "first_name": "Lena", "last_name": "  von M", "email": "lena@example.org", "is_staff": true}
	for _, change := range []struct {
		method, body string
		field        string
		to           any
	}{
		{http.MethodPatch, `{}`, "username", "lena"},
		{http.MethodPatch, `{"first_name": "Magdalena"}`, "first_name", "Magdalena"},
		{http.MethodPatch, `{"email": ""}`, "email", ""},
		{http.MethodPatch, `{"username": "magda"}`, "username", "magda"},
		{http.MethodPut, `{"username": "magda", "is_staff": false}`, "is_staff", false},
		{http.MethodPut, `{"username": "Magda"}`, "username", "Magda"},
	} {
		want[change.field] = change.to
		changed := h.want(request{method: change.method, path: "users/2/", body: change.body}, http.StatusOK, nil)
		if diff := cmp.Diff(want, told(changed)); diff != "" {
			t.Errorf("after %s %s (-want +got):\n%s", change.method, change.body, diff)
		}
	}
	h.answers(request{method: http.MethodDelete, path: "users/2/"}, http.StatusNoContent, "")
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		h.answers(request{method: method, path: "users/2/"}, http.StatusNotFound, `{"detail": "No User matches the given query."}`)
	}
	h.answers(request{method: http.MethodPatch, path: "users/2/", body: `{}`}, http.StatusNotFound, `{"detail": "No User matches the given query."}`)
	for _, bad := range []string{"x", "-1", "99999999999", nowhere} {
		h.answers(request{path: "users/" + bad + "/"}, http.StatusNotFound, `{"detail": "Not found."}`)
	}
}

func TestUsernameIsUnique(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena")
	for _, r := range []request{
		{method: http.MethodPost, path: "users/", body: `{"username": "admin"}`},
		{method: http.MethodPatch, path: "users/2/", body: `{"username": "admin"}`},
		{method: http.MethodPut, path: "users/2/", body: `{"username": "admin"}`},
	} {
		h.answers(r, http.StatusBadRequest, `{"username": ["This field must be unique."]}`)
	}
	h.want(request{method: http.MethodPut, path: "users/2/", body: `{"username": "lena"}`}, http.StatusOK, nil)
}

func TestBadUsersAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const badName = `{"username": ["Enter a valid username. This value may contain only letters, numbers, and @/./+/-/_ characters."]}`
	long := strings.Repeat("x", 151)
	for body, want := range map[string]string{
		`{}`:                                  `{"username": ["This field is required."]}`,
		`{"username": ""}`:                    `{"username": ["This field may not be blank."]}`,
		`{"username": null}`:                  `{"username": ["This field may not be null."]}`,
		`{"username": ["a"], "color": "red"}`: `{"username": ["Not a valid string."], "color": ["Unexpected field"]}`,
		`{"username": "a b"}`:                 badName,
		`{"username": "a/b"}`:                 badName,
		`{"username": "a:b"}`:                 badName,
		`{"username": "a\nb"}`:                badName,
		`{"username": "` + long + `"}`:        `{"username": ["Ensure this field has no more than 150 characters."]}`,
		`{"username": "a", "first_name": "` + long + `"}`:                  `{"first_name": ["Ensure this field has no more than 150 characters."]}`,
		`{"username": "a", "is_active": "maybe"}`:                          `{"is_active": ["Must be a valid boolean."]}`,
		`{"username": "a", "is_superuser": true}`:                          `{"is_superuser": ["Unexpected field"]}`,
		`{"username": "a", "password": "` + long[:73] + `"}`:               `{"password": ["Ensure this field has no more than 72 bytes."]}`,
		`{"username": "a", "password": "` + strings.Repeat("ü", 37) + `"}`: `{"password": ["Ensure this field has no more than 72 bytes."]}`,
		`{"username": "a", "password": 5.5e3, "groups": []}`:               `{"groups": ["Unexpected field"]}`,
		`{"username": "bo b", "password": "` + long + `", "email": "notanemail", "foo": 1}`: badName[:len(badName)-1] + `,
			"password": ["Ensure this field has no more than 72 bytes."], "email": ["Enter a valid email address."], "foo": ["Unexpected field"]}`,
	} {
		h.answers(request{method: http.MethodPost, path: "users/", body: body}, http.StatusBadRequest, want)
	}
	if got := names(t, h.want(request{path: "users/"}, http.StatusOK, nil).body, "username"); !cmp.Equal(got, []string{"admin"}) {
		t.Errorf("users are %v", got)
	}
	h.answers(request{method: http.MethodPatch, path: "users/1/", body: `{"username": "a b"}`}, http.StatusBadRequest, badName)
	h.answers(request{method: http.MethodPatch, path: "users/1/", body: `{"username": null}`}, http.StatusBadRequest, `{"username": ["This field may not be null."]}`)
	h.answers(request{method: http.MethodPatch, path: "users/1/", body: `{"password": "` + long + `"}`}, http.StatusBadRequest,
		`{"password": ["Ensure this field has no more than 72 bytes."]}`)
	if got := h.login("admin:password"); got != http.StatusOK {
		t.Errorf("admin is answered %d", got)
	}
	for _, name := range []string{"Jürgen", "lena@example.org", "a.b+c-d_e", strings.Repeat("x", 150), "  trimmed  "} {
		h.newUser(name)
	}
}

func TestPasswordIsNeverTold(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, r := range []request{
		{method: http.MethodPost, path: "users/", body: `{"username": "lena", "password": "hush-hush"}`},
		{method: http.MethodPatch, path: "users/2/", body: `{"password": "hush-hush-hush"}`},
		{method: http.MethodPut, path: "users/2/", body: `{"username": "lena", "password": "hush-hush"}`},
		{path: "users/"},
		{path: "users/2/"},
		{path: "users/?fields=password"},
		{path: "users/2/?fields=password"},
	} {
		got := h.send(r)
		if got.status >= 300 || bytes.Contains(got.body, []byte("hush")) || bytes.Contains(got.body, []byte("$2")) {
			t.Errorf("%s %s answers %d: %s", r.method, r.path, got.status, got.body)
		}
	}
}

func TestNobodyLogsInWithoutAPassword(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for i, password := range []string{``, `, "password": null`, `, "password": ""`} {
		name := string(rune('a' + i))
		var u struct {
			Hidden []struct {
				Set bool `json:"is_set"`
			} `json:"hidden_fields"`
		}
		h.want(request{method: http.MethodPost, path: "users/", body: `{"username": "` + name + `"` + password + `}`}, http.StatusCreated, &u)
		if len(u.Hidden) != 1 || u.Hidden[0].Set {
			t.Errorf("with %q hidden fields are %+v", password, u.Hidden)
		}
		for range 2 {
			h.answers(request{path: "tasks/", user: name + ":"}, http.StatusUnauthorized, unknownCredentials)
		}
	}
}

func TestNullIsNoPasswordAndNoneIsTheOldOne(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena")
	stored := func() string { return column[string](h, "SELECT password FROM auth_user WHERE username = 'lena'")[0] }
	form := func(method, body string) request {
		return send(method, "users/2/", body).with("Content-Type", "application/x-www-form-urlencoded")
	}
	hash := stored()
	for _, r := range []request{
		patch("users/2/", `{}`), patch("users/2/", `{"first_name": "Lena"}`), send(http.MethodPut, "users/2/", `{"username": "lena"}`),
		form(http.MethodPatch, "last_name=M"), form(http.MethodPut, "username=lena"),
	} {
		h.want(r, http.StatusOK, nil)
		if got := stored(); got != hash {
			t.Errorf("%s %v changes the password from %q to %q", r.method, r.body, hash, got)
		}
	}
	for _, r := range []request{
		patch("users/2/", `{"password": null}`), send(http.MethodPut, "users/2/", `{"username": "lena", "password": null}`), patch("users/2/", `{"password": ""}`),
	} {
		h.want(patch("users/2/", `{"password": "password"}`), http.StatusOK, nil)
		if got := h.login("lena:password"); got != http.StatusOK {
			t.Errorf("before %s %v: %d", r.method, r.body, got)
		}
		var u struct {
			Hidden []struct {
				Set bool `json:"is_set"`
			} `json:"hidden_fields"`
		}
		h.want(r, http.StatusOK, &u)
		if len(u.Hidden) != 1 || u.Hidden[0].Set {
			t.Errorf("after %s %v hidden fields are %+v", r.method, r.body, u.Hidden)
		}
		for _, password := range []string{"password", "", stored(), stored()[1:]} {
			if got := h.login("lena:" + password); got != http.StatusUnauthorized {
				t.Errorf("after %s %v with %q: %d", r.method, r.body, password, got)
			}
		}
	}
}

func TestWhatNobodyLogsInWithIsRandom(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, body := range []string{`{"username": "a"}`, `{"username": "b", "password": null}`, `{"username": "c", "password": ""}`} {
		h.want(post("users/", body), http.StatusCreated, nil)
	}
	seen := map[string]bool{}
	for _, password := range column[string](h, "SELECT password FROM auth_user WHERE username <> 'admin'") {
		if len(password) < 20 || password[0] != '!' || seen[password] {
			t.Errorf("%q is kept", password)
		}
		seen[password] = true
	}
	if len(seen) != 3 {
		t.Errorf("kept are %v", seen)
	}
}

// TestUsersAreToldWhole as in Pulp. The document has the parameters, without which pulp lists nothing, and promises nothing.
func TestUsersAreToldWhole(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, path := range []string{"users/", "users/1/"} {
		whole := h.want(get(path), http.StatusOK, nil)
		if got := h.want(get(path+"?fields=id&exclude_fields=email"), http.StatusOK, nil); !bytes.Equal(got.body, whole.body) {
			t.Errorf("%s: %s", path, got.body)
		}
	}
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, Description string }
		}
	}
	h.get("docs/api.json?pk_path=1", &doc)
	for path, whole := range map[string]bool{"users/": true, "users/{id}/": true, "users/{id}/roles/": false, "tasks/": false, "tasks/{task_pk}/": false} {
		parameters := doc.Paths[root+path]["get"].Parameters
		for _, name := range []string{"fields", "exclude_fields"} {
			i := slices.IndexFunc(parameters, func(p struct{ Name, Description string }) bool { return p.Name == name })
			if i < 0 || strings.Contains(parameters[i].Description, "Ignored") != whole {
				t.Errorf("%s of %s: %+v", name, path, parameters)
			}
		}
	}
}

func TestNoUsersIDIsAUUID(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.answers(get("users/?pulp_id__in="+nowhere), http.StatusOK, `{"count": 0, "next": null, "previous": null, "results": []}`)
	h.answers(get("users/?pulp_id__in=1"), http.StatusBadRequest, about("pulp_id__in", "Enter a valid UUID."))
}

func TestChangedPasswordCountsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena")
	before := "password"
	for _, way := range []struct {
		name, after string
		change      func(password string)
	}{
		{"PATCH", "one", func(password string) {
			h.want(request{method: http.MethodPatch, path: "users/2/", body: map[string]string{"password": password}}, http.StatusOK, nil)
		}},
		{"PUT", "two", func(password string) {
			h.want(request{method: http.MethodPut, path: "users/2/", body: map[string]string{"username": "lena", "password": password}}, http.StatusOK, nil)
		}},
		{"SetPassword", "three", func(password string) {
			if err := api.SetPassword(t.Context(), h.db.Pool, "lena", password); err != nil {
				t.Fatal(err)
			}
		}},
		{"none", "", func(string) {
			h.want(request{method: http.MethodPatch, path: "users/2/", body: `{"password": ""}`}, http.StatusOK, nil)
		}},
	} {
		for range 2 { // the second time it is remembered
			if got := h.login("lena:" + before); got != http.StatusOK {
				t.Fatalf("before %s: %d", way.name, got)
			}
		}
		way.change(way.after)
		if got := h.login("lena:" + before); got != http.StatusUnauthorized {
			t.Errorf("after %s the old password is answered %d", way.name, got)
		}
		before = way.after
	}
	if got := h.login("lena:"); got != http.StatusUnauthorized {
		t.Errorf("without a password: %d", got)
	}
}

func TestInactiveAndDeletedUsersAreLockedOutAtOnce(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena")
	login := func(when string, want int) {
		t.Helper()
		if got := h.login("lena:password"); got != want {
			t.Errorf("%s: %d, want %d", when, got, want)
		}
	}
	login("at first", http.StatusOK)
	h.want(request{method: http.MethodPatch, path: "users/2/", body: `{"is_active": false}`}, http.StatusOK, nil)
	login("inactive", http.StatusUnauthorized)
	h.want(request{method: http.MethodPatch, path: "users/2/", body: `{"is_active": true}`}, http.StatusOK, nil)
	login("active again", http.StatusOK)
	h.want(request{method: http.MethodDelete, path: "users/2/"}, http.StatusNoContent, nil)
	login("deleted", http.StatusUnauthorized)
	h.want(request{method: http.MethodPost, path: "users/", body: `{"username": "lena", "password": "another"}`}, http.StatusCreated, nil)
	login("with the password of a former user of that name", http.StatusUnauthorized)
}

func TestOnlySuperusersManageUsers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_owner", "core.taskschedule_owner")
	role := h.give(root+"users/1/", "core.task_viewer", nil)
	for _, r := range []request{
		{path: "users/"},
		{path: "users/1/"},
		{path: lena},
		{path: "users/99/"},
		{method: http.MethodPost, path: "users/", body: `{"username": "x"}`},
		{method: http.MethodPut, path: lena, body: `{"username": "lena"}`},
		{method: http.MethodPatch, path: lena, body: `{"password": "other"}`},
		{method: http.MethodDelete, path: "users/1/"},
		{path: "users/1/roles/"},
		{path: lena + "roles/"},
		{path: role},
		{method: http.MethodPost, path: lena + "roles/", body: `{"role": "core.task_owner", "content_object": null}`},
		{method: http.MethodDelete, path: role},
	} {
		r.user = "lena"
		h.answers(r, http.StatusForbidden, denied)
	}
}

func TestCredentialsMayBeLatin1OrUTF8(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.want(request{method: http.MethodPost, path: "users/", body: `{"username": "jürgen", "password": "größe"}`}, http.StatusCreated, nil)
	for _, tt := range []struct {
		credentials string
		want        int
	}{
		{"jürgen:größe", http.StatusOK},
		{"j\xfcrgen:gr\xf6\xdfe", http.StatusOK},
		{"j\xfcrgen:gr\xf6\xdf", http.StatusUnauthorized},
		{"j\xfcrgen\x00:gr\xf6\xdfe", http.StatusUnauthorized},
		{strings.Repeat("j", 5000) + ":größe", http.StatusUnauthorized},
	} {
		header := http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(tt.credentials))}}
		if got := h.send(request{path: "tasks/", user: "-", header: header}); got.status != tt.want {
			t.Errorf("%.40q: %d: %s", tt.credentials, got.status, got.body)
		}
	}
}

func TestPasswordWithMoreThan72BytesFitsNoHash(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	most := strings.Repeat("p", 72)
	h.want(request{method: http.MethodPost, path: "users/", body: map[string]string{"username": "lena", "password": most}}, http.StatusCreated, nil)
	if got := h.login("lena:" + most); got != http.StatusOK {
		t.Errorf("72 bytes: %d", got)
	}
	if got := h.login("lena:" + most + "p"); got != http.StatusUnauthorized {
		t.Errorf("73 bytes: %d", got)
	}
	if _, err := api.AddUser(t.Context(), h.db.Pool, "magda", most+"p", false); err == nil || !strings.Contains(err.Error(), "password of magda") {
		t.Errorf("add: %v", err)
	}
	if err := api.SetPassword(t.Context(), h.db.Pool, "lena", most+"p"); err == nil || !strings.Contains(err.Error(), "password of lena") {
		t.Errorf("set: %v", err)
	}
}

func TestAddUserLeavesTheOneOfThatNameAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if created, err := api.AddUser(t.Context(), h.db.Pool, "admin", "another", false); created || err != nil {
		t.Errorf("%t, %v", created, err)
	}
	if got := h.login("admin:password"); got != http.StatusOK {
		t.Errorf("admin is answered %d", got)
	}
	if _, err := api.AddUser(t.Context(), h.db.Pool, "a b", "password", false); err == nil || !strings.Contains(err.Error(), `"a b"`) {
		t.Errorf("a bad name: %v", err)
	}
	if err := api.SetPassword(t.Context(), h.db.Pool, "nobody", "password"); err == nil || !strings.Contains(err.Error(), "pith user add") {
		t.Errorf("password of nobody: %v", err)
	}
}
