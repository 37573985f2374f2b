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
		"permissions": []any{"core.change_task", "core.delete_task", "core.manage_roles_task", "core.view_task"},
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

func TestRoleThatAUserHasStays(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	first := h.give(root+"users/1/", "core.task_viewer", nil)
	if again := h.give(root+"users/1/", "core.task_viewer", nil); again != first {
		t.Errorf("given again it is %s, not %s", again, first)
	}
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
	for object, want := range map[string]string{
		task:                                   task,
		h.http.URL + task:                      task,
		"https://elsewhere.example.org" + task: task,
		"prn:core.task:" + id.String():         task,
		schedule:                               schedule,
		"prn:core.taskschedule:" + saved.ID.String(): schedule,
		root + "users/1/": root + "users/1/",
		"prn:auth.user:1": root + "users/1/",
	} {
		var made struct {
			ContentObject string `json:"content_object"`
		}
		h.get(h.give(root+"users/1/", "core.task_viewer", object), &made)
		if made.ContentObject != want {
			t.Errorf("%s is %s, want %s", object, made.ContentObject, want)
		}
	}
}

func TestBadUserRolesAreRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	_, task := h.dispatch("dummy_task", nil, tasking.Options{})
	for body, want := range map[string]string{
		`{}`: `{"role": ["This field is required."], "content_object": ["This field is required."]}`,
		`{"role": "core.nothing", "content_object": null}`:                                                `{"role": ["Role with name 'core.nothing' does not exist."]}`,
		`{"role": "", "content_object": null}`:                                                            `{"role": ["This field may not be blank."]}`,
		`{"role": "core.task_viewer", "content_object": "nonsense"}`:                                      `{"content_object": ["URI not valid: nonsense"]}`,
		`{"role": "core.task_viewer", "content_object": "` + root + `tasks/"}`:                            `{"content_object": ["URI not valid: ` + root + `tasks/"]}`,
		`{"role": "core.task_viewer", "content_object": "prn:core.nothing:1"}`:                            `{"content_object": ["URI not valid: prn:core.nothing:1"]}`,
		`{"role": "core.task_viewer", "content_object": "` + root + `tasks/` + nowhere + `/"}`:            `{"content_object": ["Object does not exist."]}`,
		`{"role": "core.task_viewer", "content_object": "prn:core.task:` + nowhere + `"}`:                 `{"content_object": ["Object does not exist."]}`,
		`{"role": "core.taskschedule_viewer", "content_object": "prn:core.taskschedule:` + nowhere + `"}`: `{"content_object": ["Object does not exist."]}`,
		`{"role": "core.task_viewer", "content_object": null, "domain": "prn:core.domain:1"}`:             `{"domain": ["Domains are not enabled: must be null."]}`,
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
