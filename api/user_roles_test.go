package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

func TestUserRoleIsToldWithPulpsFieldsInTheirOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, task := h.dispatch("dummy_task", nil, tasking.Options{})
	made := h.want(request{
		method: http.MethodPost, path: "users/1/roles/", body: map[string]any{"role": "core.task_owner", "content_object": task},
	}, http.StatusCreated, nil)
	want := []string{
		"pulp_href", "prn", "pulp_created", "pulp_last_updated", "role", "content_object", "content_object_prn", "description", "permissions", "domain",
	}
	if diff := cmp.Diff(want, members(t, made.body)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	told := value(t, made.body).(map[string]any)
	href, _ := told["pulp_href"].(string)
	key := strings.TrimSuffix(strings.TrimPrefix(href, root+"users/1/roles/"), "/")
	if _, err := uuid.Parse(key); err != nil || made.header.Get("Location") != href || told["prn"] != "prn:core.userrole:"+key {
		t.Errorf("%s, Location %q, %v", href, made.header.Get("Location"), told["prn"])
	}
	for _, name := range want[:4] {
		delete(told, name)
	}
	if diff := cmp.Diff(map[string]any{
		"role": "core.task_owner", "content_object": task, "content_object_prn": "prn:core.task:" + id.String(), "domain": nil,
		"description": "Allow all actions on a task.",
		"permissions": []any{"core.change_task", "core.delete_task", "core.manage_roles_task", "core.view_task", "core.view_task_profile_artifacts"},
	}, told); diff != "" {
		t.Errorf("the role (-want +got):\n%s", diff)
	}
}

func TestUserRolesAreListedReadAndDeleted(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena, magda := h.newUser("lena"), h.newUser("magda")
	viewer, owner := h.give(lena, "core.task_viewer", nil), h.give(lena, "core.task_owner", nil)
	h.give(magda, "core.task_viewer", nil)

	var page struct {
		Count    int
		Next     *string
		Previous *string
		Results  []struct {
			PulpHref      string  `json:"pulp_href"`
			ContentObject *string `json:"content_object"`
			PRN           *string `json:"content_object_prn"`
		}
	}
	h.get(lena+"roles/", &page)
	if page.Count != 2 || len(page.Results) != 2 || page.Results[0].PulpHref != owner || page.Results[1].PulpHref != viewer ||
		page.Results[0].ContentObject != nil || page.Results[0].PRN != nil {
		t.Errorf("all: %+v", page)
	}
	h.get(lena+"roles/?limit=1", &page)
	if page.Count != 2 || len(page.Results) != 1 || page.Results[0].PulpHref != owner || page.Next == nil || page.Previous != nil {
		t.Errorf("the first: %+v", page)
	}
	h.get(strings.TrimPrefix(*page.Next, h.http.URL), &page)
	if page.Count != 2 || len(page.Results) != 1 || page.Results[0].PulpHref != viewer || page.Next != nil || page.Previous == nil {
		t.Errorf("the next: %+v", page)
	}

	// A role is found below its user alone.
	const missing = `{"detail": "No UserRole matches the given query."}`
	_, key, _ := strings.Cut(viewer, "roles/")
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		h.answers(request{method: method, path: magda + "roles/" + key}, http.StatusNotFound, missing)
		h.answers(request{method: method, path: "users/99/roles/" + key}, http.StatusNotFound, `{"detail": "No User matches the given query."}`)
		h.answers(request{method: method, path: lena + "roles/x/"}, http.StatusNotFound, `{"detail": "Not found."}`)
	}
	h.want(request{path: viewer}, http.StatusOK, nil)
	h.answers(request{method: http.MethodDelete, path: viewer}, http.StatusNoContent, "")
	h.answers(request{path: viewer}, http.StatusNotFound, missing)
	h.answers(request{method: http.MethodDelete, path: viewer}, http.StatusNotFound, missing)
	h.get(lena+"roles/", &page)
	if page.Count != 1 || page.Results[0].PulpHref != owner {
		t.Errorf("afterwards: %+v", page)
	}
}

func TestRoleIsGivenOnceHoweverManyGiveIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	for _, object := range []any{nil, task} {
		body := map[string]any{"role": "core.task_viewer", "content_object": object}
		replies := make(chan reply, 8)
		for range cap(replies) {
			go func() { replies <- h.send(post("users/1/roles/", body)) }()
		}
		given := 0
		for range cap(replies) {
			switch got := <-replies; {
			case got.status == http.StatusCreated:
				given++
			case got.status != http.StatusBadRequest || string(got.body) != about("non_field_errors", "The role is already assigned to this user."):
				t.Errorf("%d: %s", got.status, got.body)
			}
		}
		if given != 1 {
			t.Errorf("on %v it is given %d times", object, given)
		}
	}
	if n := column[int](h, "SELECT count(*) FROM user_role"); n[0] != 2 {
		t.Errorf("there are %d roles", n[0])
	}
}

func TestRoleIsToldWhateverElseTheUserHas(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`INSERT INTO user_role (id, user_id, role, model, object, created_at)
		SELECT gen_random_uuid(), 1, 'core.task_owner', 'core.task', gen_random_uuid(), now() + '1 h' FROM generate_series(1, 10001)`)
	if got := h.object(h.give(root+"users/1/", "core.task_owner", nil)); got["role"] != "core.task_owner" || got["content_object"] != nil {
		t.Errorf("given is %v", got)
	}
}

func TestUserRolesAreFilteredAndOrdered(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena, eve := h.newUser("lena"), h.newUser("eve")
	one, another, schedule := h.dispatchAs("admin"), h.dispatchAs("admin"), h.schedule("s")
	roles := map[string]string{}
	give := func(name, user, role string, object any) string {
		href := h.give(user, role, object)
		roles[href] = name
		return href
	}
	all := give("all", lena, "core.task_viewer", nil)
	viewer := give("viewer", lena, "core.task_viewer", one)
	give("owner", lena, "core.task_owner", another)
	give("schedule", lena, "core.taskschedule_owner", schedule)
	other := give("eve's", eve, "core.task_viewer", one)
	prn := "prn:core.userrole:" + keyIn(viewer)
	for query, want := range map[string]string{
		"":                                                        "schedule owner viewer all",
		"role=core.task_viewer":                                   "viewer all",
		"role=core.task":                                          "",
		"role__in=core.task_viewer,x":                             "viewer all",
		"role__contains=schedule":                                 "schedule",
		"role__contains=SCHEDULE":                                 "",
		"role__icontains=TASK_O":                                  "owner",
		"role__startswith=core.task_":                             "owner viewer all",
		"content_object=null":                                     "all",
		"content_object=":                                         "schedule owner viewer all",
		"content_object=" + one:                                   "viewer",
		"content_object=" + h.http.URL + one:                      "viewer",
		"content_object=prn:core.task:" + keyIn(another):          "owner",
		"content_object=" + schedule:                              "schedule",
		"content_object=prn:core.task:" + keyIn(schedule):         "",
		"content_object=" + one + "&role=core.task_owner":         "",
		"domain=null":                                             "schedule owner viewer all",
		"pulp_id__in=" + keyIn(viewer) + "," + keyIn(other):       "viewer",
		"pulp_href__in=" + viewer + "," + all + "," + other:       "viewer all",
		"prn__in=" + prn:                                          "viewer",
		"q=role=core.task_owner OR content_object=null":           "owner all",
		"q=NOT role__contains=task_":                              "schedule",
		"ordering=pulp_created":                                   "all viewer owner schedule",
		"ordering=-role,pulp_created":                             "schedule all viewer owner",
		"ordering=description,-pulp_created":                      "owner schedule viewer all",
		"ordering=-description,pulp_created":                      "all viewer schedule owner",
		"ordering=-pulp_created&limit=2&offset=1":                 "owner viewer",
		"fields=role&role=core.task_viewer&exclude_fields=domain": "viewer all",
	} {
		query = strings.ReplaceAll(query, " ", "%20")
		var page struct {
			Count   int
			Results []struct {
				Href string `json:"pulp_href"`
				Role string
			}
		}
		h.get(lena+"roles/?"+query, &page)
		var got []string
		for i, r := range page.Results {
			name := roles[r.Href]
			if strings.HasPrefix(query, "fields") { // which are all that is told
				name = strings.Fields(want)[i]
			}
			got = append(got, name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
		if n := len(strings.Fields(want)); page.Count != n && !strings.Contains(query, "limit") {
			t.Errorf("%s: count %d, want %d", query, page.Count, n)
		}
	}
	for query, want := range map[string]string{
		"foo=1":                         about("errors", "Invalid Filter: 'foo'"),
		"role__iexact=x":                about("errors", "Invalid Filter: 'role__iexact'"),
		"user=1":                        about("errors", "Invalid Filter: 'user'"),
		"ordering=object":               about("ordering", "Select a valid choice. object is not one of the available choices."),
		"pulp_id__in=x":                 about("pulp_id__in", "Enter a valid UUID."),
		"pulp_href__in=" + one:          jsonOf([]string{"URI not valid: " + one}),
		"pulp_href__in=null":            jsonOf([]string{"URI not valid: null"}),
		"prn__in=null":                  jsonOf([]string{"URI not valid: null"}),
		"prn__in=prn:auth.user:1":       jsonOf([]string{"URI not valid: prn:auth.user:1"}),
		"content_object=nonsense":       jsonOf([]string{"Invalid value for 'content_object': nonsense."}),
		"content_object=" + root:        jsonOf([]string{"Invalid value for 'content_object': " + root + "."}),
		"domain=prn:core.domain:1":      jsonOf([]string{"URI not valid: prn:core.domain:1"}),
		"q=content_object=x":            about("q", "content_object: Invalid value for 'content_object': x."),
		"content_object=prn:core.task:": jsonOf([]string{"Invalid value for 'content_object': prn:core.task:."}),
	} {
		h.answers(get(lena+"roles/?"+query), http.StatusBadRequest, want)
	}
	h.answers(get("users/99/roles/?foo=1"), http.StatusNotFound, `{"detail": "No User matches the given query."}`)
}

func TestObjectOfARoleIsGivenByHrefOrPRN(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, task := h.dispatch("dummy_task", nil, tasking.Options{})
	saved, err := h.client.SaveSchedule(t.Context(), tasking.Schedule{Name: "s", Task: testModule + "dummy_task"})
	if err != nil {
		t.Fatal(err)
	}
	schedule := root + "task-schedules/" + saved.ID.String() + "/"
	for _, tt := range []struct{ role, object, want string }{
		{"core.task_viewer", task, task},
		{"core.task_viewer", h.http.URL + task, task},
		{"core.task_viewer", "https://elsewhere.example.org" + task, task},
		{"core.task_viewer", "prn:core.task:" + id.String(), task},
		{"core.taskschedule_viewer", schedule, schedule},
		{"core.taskschedule_viewer", "prn:core.taskschedule:" + saved.ID.String(), schedule},
	} {
		var made struct {
			ContentObject string `json:"content_object"`
		}
		href := h.give(root+"users/1/", tt.role, tt.object)
		h.get(href, &made)
		if made.ContentObject != tt.want {
			t.Errorf("%s is %s, want %s", tt.object, made.ContentObject, tt.want)
		}
		h.answers(send(http.MethodDelete, href, nil), http.StatusNoContent, "")
	}
}

func TestUserRolesNameObjectsByPRNAlone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id, task := h.dispatch("dummy_task", nil, tasking.Options{})
	prn := "prn:core.task:" + id.String()
	for _, body := range []map[string]any{
		{"content_object_prn": prn},
		{"content_object": nil, "content_object_prn": prn},
		{"content_object": task, "content_object_prn": prn},
		{"content_object": task, "content_object_prn": nil},
	} {
		body["role"] = "core.task_viewer"
		made := struct {
			PulpHref string `json:"pulp_href"`
			Object   string `json:"content_object"`
			PRN      string `json:"content_object_prn"`
		}{}
		h.want(post("users/1/roles/", body), http.StatusCreated, &made)
		if made.Object != task || made.PRN != prn {
			t.Errorf("%v made %+v", body, made)
		}
		h.answers(send(http.MethodDelete, made.PulpHref, nil), http.StatusNoContent, "")
	}
	all := h.want(post("users/1/roles/", `{"role": "core.task_viewer", "content_object_prn": null}`), http.StatusCreated, nil)
	if !strings.Contains(string(all.body), `"content_object":null,"content_object_prn":null`) {
		t.Errorf("on all: %s", all.body)
	}
}

func TestBadUserRolesAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	another, _ := h.dispatch("dummy_task", nil, tasking.Options{})
	for body, want := range map[string]string{
		`{}`:                           `{"role": ["This field is required."]}`,
		`{"role": "core.task_viewer"}`: `{"content_object": ["This field is required."]}`,
		`{"role": "core.task_viewer", "content_object_prn": "prn:core.task:"}`:                                                           `{"content_object_prn": ["URI not valid: prn:core.task:"]}`,
		`{"role": "core.task_viewer", "content_object_prn": "prn:core.task:` + nowhere + `"}`:                                            `{"content_object_prn": ["Object does not exist."]}`,
		`{"role": "core.task_viewer", "content_object": "` + task + `", "content_object_prn": "prn:core.task:` + another.String() + `"}`: `{"content_object_prn": ["Must name the same object as 'content_object'."]}`,
		`{"role": "core.nothing", "content_object": null}`:                                                                               `{"role": ["Role with name 'core.nothing' does not exist."]}`,
		`{"role": "", "content_object": null}`:                                                                                           `{"role": ["This field may not be blank."]}`,
		`{"role": "core.task_viewer", "content_object": "nonsense"}`:                                                                     `{"content_object": ["URI not valid: nonsense"]}`,
		`{"role": "core.task_viewer", "content_object": "` + root + `tasks/"}`:                                                           `{"content_object": ["URI not valid: ` + root + `tasks/"]}`,
		`{"role": "core.task_viewer", "content_object": "prn:core.nothing:1"}`:                                                           `{"content_object": ["URI not valid: prn:core.nothing:1"]}`,
		`{"role": "core.task_viewer", "content_object": "` + root + `tasks/` + nowhere + `/"}`:                                           `{"content_object": ["Object does not exist."]}`,
		`{"role": "core.task_viewer", "content_object": "prn:core.task:` + nowhere + `"}`:                                                `{"content_object": ["Object does not exist."]}`,
		`{"role": "core.taskschedule_viewer", "content_object": "prn:core.taskschedule:` + nowhere + `"}`:                                `{"content_object": ["Object does not exist."]}`,
		`{"role": "core.task_viewer", "content_object": null, "domain": "prn:core.domain:1"}`:                                            `{"domain": ["Domains are not enabled: must be null."]}`,
		`{"role": "core.no", "content_object": "` + task + `x", "domain": "d"}`: `{"role": ["Role with name 'core.no' does not exist."],
			"content_object": ["URI not valid: ` + task + `x"], "domain": ["Domains are not enabled: must be null."]}`,
		`{"role": "core.task_viewer", "content_object": null, "user": 1}`: `{"user": ["Unexpected field"]}`,
	} {
		h.answers(request{method: http.MethodPost, path: "users/1/roles/", body: body}, http.StatusBadRequest, want)
	}
	h.answers(request{method: http.MethodPost, path: "users/99/roles/", body: `{"role": "core.task_viewer", "content_object": null}`}, http.StatusNotFound,
		`{"detail": "No User matches the given query."}`)
	h.answers(request{path: "users/1/roles/"}, http.StatusOK, `{"count": 0, "next": null, "previous": null, "results": []}`)
}

// TestGeneratedUserActsByItsRoles is what Pulp's functional tests do with users.
func TestGeneratedUserActsByItsRoles(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	for _, role := range []string{"", "core.task_viewer"} {
		var user struct {
			PulpHref string `json:"pulp_href"`
			Username string
		}
		h.want(request{
			method: http.MethodPost, path: "users/", body: map[string]string{"username": uuid.NewString(), "password": "a password"},
		}, http.StatusCreated, &user)
		as, want := user.Username+":a password", http.StatusNotFound
		if role != "" {
			h.want(request{
				method: http.MethodPost, path: user.PulpHref + "roles/", body: map[string]any{"role": role, "domain": nil, "content_object": nil},
			}, http.StatusCreated, nil)
			want = http.StatusOK
		}
		if got := h.send(request{path: task, user: as}); got.status != want {
			t.Errorf("with the role %q: %d, want %d", role, got.status, want)
		}
		h.answers(request{method: http.MethodDelete, path: user.PulpHref}, http.StatusNoContent, "")
		h.answers(request{path: task, user: as}, http.StatusUnauthorized, unknownCredentials)
	}
	var left int
	if err := h.db.Direct.QueryRow(t.Context(), "SELECT count(*) FROM user_role").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d roles of users who are gone, %v", left, err)
	}
}

func TestRolesNameKnownPermissionsOnce(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range api.Roles {
		if seen[r.Name] || r.Description == "" || len(r.Permissions) == 0 || !strings.HasPrefix(r.Name, "core.") {
			t.Errorf("%+v", r)
		}
		seen[r.Name] = true
		if p := sorted(r.Permissions); !cmp.Equal(p, r.Permissions) {
			t.Errorf("%s: permissions are %v, want them sorted", r.Name, r.Permissions)
		}
	}
	for _, name := range []string{"core.task_owner", "core.task_viewer", "core.task_user_dispatcher"} {
		if !seen[name] {
			t.Errorf("there is no role %s", name)
		}
	}
}
