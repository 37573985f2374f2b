package api_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/tasking"
)

// noTask and the like are bodies of replies to somebody for whom there is no such object.
const (
	noTask     = `{"detail": "No Task matches the given query."}`
	noGroup    = `{"detail": "No TaskGroup matches the given query."}`
	noSchedule = `{"detail": "No TaskSchedule matches the given query."}`
)

// pithRoot is where what Pulp has not is served.
const pithRoot = "/pith/api/"

// accepted sends a request that a task goes on with, and answers the href of the task.
func (h *harness) accepted(r request) string {
	h.t.Helper()
	if r.method == "" {
		r.method = http.MethodPost
	}
	var started struct {
		Task string
	}
	h.want(r, http.StatusAccepted, &started)
	return started.Task
}

// dispatchAs has a user dispatch a task by the API that ends at once, and answers its href.
func (h *harness) dispatchAs(user string) string {
	h.t.Helper()
	return h.accepted(request{path: pithRoot + "tasks/", user: user, body: map[string]string{"name": testModule + "dummy_task"}})
}

// listed are the hrefs of the first page of a list as a user sees it, sorted; there must be no more.
func (h *harness) listed(path, user string) []string {
	h.t.Helper()
	got := h.want(request{path: path, user: user}, http.StatusOK, nil)
	list := names(h.t, got.body, "pulp_href")
	if n := value(h.t, got.body).(map[string]any)["count"]; n != float64(len(list)) {
		h.t.Errorf("%s as %s: count %v of %v", path, user, n, list)
	}
	return sorted(list)
}

// sees checks what a user sees of a list.
func (h *harness) sees(path, user string, want ...string) {
	h.t.Helper()
	if diff := cmp.Diff(sorted(want), h.listed(path, user)); diff != "" {
		h.t.Errorf("%s sees of %s (-want +got):\n%s", user, path, diff)
	}
}

// rolesOn counts the roles that anybody has on the object of this href.
func (h *harness) rolesOn(href string) (n int) {
	h.t.Helper()
	if err := h.db.Direct.QueryRow(h.t.Context(), "SELECT count(*) FROM user_role WHERE object = $1", keyIn(href)).Scan(&n); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// schedule saves a schedule past the API, that nobody owns, and answers its href.
func (h *harness) schedule(name string) string {
	h.t.Helper()
	s, err := h.client.SaveSchedule(h.t.Context(), tasking.Schedule{Name: name, Task: testModule + "dummy_task", Delay: time.Hour})
	if err != nil {
		h.t.Fatal(err)
	}
	return root + "task-schedules/" + s.ID.String() + "/"
}

func TestTaskIsOwnedByWhoDispatchesIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_user_dispatcher")
	task := h.dispatchAs("lena")
	var one struct {
		CreatedBy *string `json:"created_by"`
	}
	for _, user := range []string{"lena", "admin"} {
		h.want(request{path: task, user: user}, http.StatusOK, &one)
		if one.CreatedBy == nil || *one.CreatedBy != lena {
			t.Errorf("%s reads that it was created by %v", user, one.CreatedBy)
		}
		if got := names(t, h.want(request{path: "tasks/", user: user}, http.StatusOK, nil).body, "created_by"); !cmp.Equal(got, []string{lena}) {
			t.Errorf("%s lists that it was created by %v", user, got)
		}
	}
	h.answers(request{path: task + "my_permissions/", user: "lena"}, http.StatusOK,
		`{"permissions": ["core.add_task", "core.change_task", "core.delete_task", "core.manage_roles_task", "core.view_task", "core.view_task_profile_artifacts"]}`)
	h.answers(request{path: task + "profile_artifacts/", user: "lena"}, http.StatusOK, `{"urls": {}}`)
	h.answers(request{path: task + "list_roles/", user: "lena"}, http.StatusOK,
		`{"roles": [{"role": "core.task_owner", "users": ["lena"], "groups": []}, {"role": "core.task_user_dispatcher", "users": ["lena"], "groups": []}]}`)

	h.get(h.dispatchAs("admin"), &one)
	if one.CreatedBy == nil || *one.CreatedBy != root+"users/1/" {
		t.Errorf("admin's was created by %v", one.CreatedBy)
	}
	_, past := h.dispatch("dummy_task", nil, tasking.Options{})
	h.get(past, &one)
	if one.CreatedBy != nil {
		t.Errorf("that of a program was created by %s", *one.CreatedBy)
	}
	// Whose user is deleted is nobody's.
	h.want(request{method: http.MethodDelete, path: lena}, http.StatusNoContent, nil)
	h.get(task, &one)
	if one.CreatedBy != nil || h.rolesOn(task) != 0 {
		t.Errorf("after its user it was created by %v, and has %d roles", one.CreatedBy, h.rolesOn(task))
	}
}

func TestListOfTasksShowsWhatAUserMayView(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_user_dispatcher")
	h.newUser("eve", "core.taskschedule_viewer")
	h.newUser("vera", "core.task_viewer")
	h.newUser("olga", "core.task_owner")
	_, first := h.dispatch("dummy_task", nil, tasking.Options{})
	_, second := h.dispatch("dummy_task", nil, tasking.Options{})
	own := h.dispatchAs("lena")
	h.sees("tasks/", "eve")
	h.sees("tasks/", "lena", own)
	role := h.give(lena, "core.task_viewer", first)
	h.sees("tasks/", "lena", own, first)
	h.sees("tasks/?name="+testModule+"dummy_task&state=waiting", "lena", own, first)
	h.sees("tasks/?state=running", "lena")
	for _, user := range []string{"admin", "vera", "olga"} {
		h.sees("tasks/", user, first, second, own)
	}
	h.want(request{method: http.MethodDelete, path: role}, http.StatusNoContent, nil)
	h.sees("tasks/", "lena", own)
}

func TestTasksOfOthersAreNotThere(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("eve", "core.task_user_dispatcher", "core.taskschedule_owner")
	task := h.dispatchAs("admin")
	cancel, role := `{"state": "canceled"}`, `{"role": "core.task_viewer", "users": ["eve"]}`
	for _, path := range []string{task, root + "tasks/" + nowhere + "/"} {
		for _, r := range []request{
			{path: path},
			{path: path + "?minimal=true"},
			{method: http.MethodPatch, path: path, body: cancel},
			{method: http.MethodDelete, path: path},
			{path: path + "profile_artifacts/"},
			{path: strings.Replace(path, root, pithRoot, 1) + "explain/"},
			{path: path + "list_roles/"},
			{path: path + "my_permissions/"},
			{method: http.MethodPost, path: path + "add_role/", body: role},
			{method: http.MethodPost, path: path + "remove_role/", body: role},
		} {
			r.user = "eve"
			h.answers(r, http.StatusNotFound, noTask)
		}
	}
	if got := h.listed("tasks/?state=waiting", "admin"); !cmp.Equal(got, []string{task}) {
		t.Errorf("waiting afterwards: %v", got)
	}
}

func TestWhoMayViewATaskMayNotChangeIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	task := h.dispatchAs("admin")
	h.newUser("everywhere", "core.task_viewer")
	h.give(h.newUser("here"), "core.task_viewer", task)
	for _, user := range []string{"everywhere", "here"} {
		h.want(request{path: task, user: user}, http.StatusOK, nil)
		h.want(request{path: strings.Replace(task, root, pithRoot, 1) + "explain/", user: user}, http.StatusOK, nil)
		h.answers(request{path: task + "my_permissions/", user: user}, http.StatusOK, `{"permissions": ["core.view_task"]}`)
		role := `{"role": "core.task_owner", "users": ["` + user + `"]}`
		for _, r := range []request{
			{method: http.MethodPatch, path: task, body: `{"state": "canceled"}`},
			{method: http.MethodDelete, path: task},
			{path: task + "profile_artifacts/"},
			{path: task + "list_roles/"},
			{method: http.MethodPost, path: task + "add_role/", body: role},
			{method: http.MethodPost, path: task + "remove_role/", body: role},
		} {
			r.user = user
			h.answers(r, http.StatusForbidden, denied)
		}
	}
}

func TestOwnerCancelsAndDeletesATaskAndItsRoles(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena", "core.task_user_dispatcher")
	task, other := h.dispatchAs("lena"), h.dispatchAs("lena")
	h.answers(request{method: http.MethodDelete, path: task, user: "lena"}, http.StatusConflict, "")
	h.want(request{method: http.MethodPatch, path: task, user: "lena", body: `{"state": "canceled"}`}, http.StatusOK, nil)
	if n := h.rolesOn(task); n != 2 {
		t.Errorf("%d roles before", n)
	}
	h.answers(request{method: http.MethodDelete, path: task, user: "lena"}, http.StatusNoContent, "")
	if n := h.rolesOn(task); n != 0 {
		t.Errorf("%d roles afterwards", n)
	}
	h.answers(request{path: task, user: "lena"}, http.StatusNotFound, noTask)
	if n := h.rolesOn(other); n != 2 {
		t.Errorf("another task has %d roles", n)
	}
}

func TestGroupsAreThereForWhoMayViewOneOfTheirTasks(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena")
	h.newUser("eve", "core.task_user_dispatcher")
	h.newUser("vera", "core.task_viewer")
	h.newUser("olga", "core.task_owner")
	newGroup := func(tasks int) (group string, members []string) {
		id, err := h.client.NewGroup(t.Context(), "a group")
		if err != nil {
			t.Fatal(err)
		}
		for range tasks {
			_, task := h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
			members = append(members, task)
		}
		return root + "task-groups/" + id.String() + "/", members
	}
	empty, _ := newGroup(0)
	group, tasks := newGroup(2)
	another, _ := newGroup(1)
	cancel := request{method: http.MethodPatch, path: group, body: `{"state": "canceled"}`}
	as := func(r request, user string) request { r.user = user; return r }

	h.give(lena, "core.task_owner", tasks[0])
	h.sees("task-groups/", "admin", empty, group, another)
	h.sees("task-groups/", "olga", empty, group, another)
	h.sees("task-groups/", "vera", empty, group, another)
	h.sees("task-groups/", "lena", group)
	h.sees("task-groups/", "eve")
	for _, user := range []string{"admin", "olga", "vera", "lena"} {
		var got struct{ Waiting int }
		h.want(request{path: group, user: user}, http.StatusOK, &got)
		if got.Waiting != 2 {
			t.Errorf("%s is told of %d waiting tasks", user, got.Waiting)
		}
	}
	h.answers(request{path: group, user: "eve"}, http.StatusNotFound, noGroup)
	h.answers(request{path: another, user: "lena"}, http.StatusNotFound, noGroup)
	h.answers(request{path: empty, user: "lena"}, http.StatusNotFound, noGroup)
	h.answers(request{path: "task-groups/" + nowhere + "/", user: "lena"}, http.StatusNotFound, noGroup)

	h.answers(as(cancel, "eve"), http.StatusNotFound, noGroup)
	h.answers(as(cancel, "vera"), http.StatusForbidden, denied)
	h.answers(as(cancel, "lena"), http.StatusForbidden, denied)
	h.give(lena, "core.task_viewer", tasks[1])
	h.answers(as(cancel, "lena"), http.StatusForbidden, denied)
	h.sees("tasks/?state=canceled", "admin")
	h.give(lena, "core.task_owner", tasks[1])
	var got struct{ Waiting, Canceled int }
	h.want(as(cancel, "lena"), http.StatusOK, &got)
	if got.Waiting != 0 || got.Canceled != 2 {
		t.Errorf("the group is %+v", got)
	}
	h.sees("tasks/?state=canceled", "admin", tasks...)
}

func TestFiltersDoNotTellWhatThereIs(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_user_dispatcher")
	h.newUser("vera", "core.task_viewer", "core.taskschedule_viewer")
	role := h.give(lena, "core.task_viewer", h.dispatchAs("admin"))
	own, group := h.dispatchAs("lena"), ""
	var groups []string
	for range 2 {
		id, href := h.newGroup("")
		_, group = h.dispatch("dummy_task", nil, tasking.Options{Group: &id})
		groups = append(groups, href)
	}
	h.give(lena, "core.task_viewer", group)
	worker := root + "workers/" + h.register("a worker").String() + "/"
	hidden := map[string][2]string{ // one that is there, and one that is not
		"user": {lena, root + "users/99/"}, "userrole": {role, lena + "roles/" + nowhere + "/"}, "task": {h.dispatchAs("admin"), root + "tasks/" + nowhere + "/"},
		"taskgroup": {groups[0], root + "task-groups/" + nowhere + "/"}, "taskschedule": {h.schedule("s"), root + "task-schedules/" + nowhere + "/"},
	}
	ask := func(user, text string) (reply, string) {
		return h.send(get("tasks/?created_resources=" + url.QueryEscape(text)).by(user)), `["URI ` + text + ` not found for `
	}
	for model, names := range hidden {
		there, _ := h.object(names[0])["prn"].(string)
		prefix := there[:strings.LastIndexByte(there, ':')+1]
		gone := prefix + nowhere
		if model == "user" {
			gone = prefix + "99"
		}
		for _, text := range []string{names[0], there, h.http.URL + names[0], names[1], gone} {
			if got, says := ask("lena", text); got.status != http.StatusBadRequest || string(got.body) != says+model+`."]` {
				t.Errorf("lena is told of %s: %d %s", text, got.status, got.body)
			}
			expression := get("tasks/?q=" + url.QueryEscape("created_resources='"+text+"' OR state=waiting")).by("lena")
			if got := h.send(expression); got.status != http.StatusBadRequest {
				t.Errorf("lena is told of %s in an expression: %d %s", text, got.status, got.body)
			}
		}
		h.sees("tasks/?created_resources="+names[0], "admin")
		got, _ := ask("vera", names[0])
		if open := strings.HasPrefix(model, "task"); open != (got.status == http.StatusOK) {
			t.Errorf("vera is told of %s: %d %s", names[0], got.status, got.body)
		}
	}
	for _, text := range []string{own, group, groups[1], worker} {
		h.sees("tasks/?created_resources="+text, "lena")
	}
}

func TestSchedulesAreThereForWhoMayViewThem(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_viewer")
	h.newUser("vera", "core.taskschedule_viewer")
	one, other := h.schedule("one"), h.schedule("other")
	h.sees("task-schedules/", "lena")
	h.answers(request{path: one, user: "lena"}, http.StatusNotFound, noSchedule)
	h.answers(request{path: one + "my_permissions/", user: "lena"}, http.StatusNotFound, noSchedule)
	h.give(lena, "core.taskschedule_viewer", one)
	h.sees("task-schedules/", "lena", one)
	h.sees("task-schedules/", "vera", one, other)
	h.sees("task-schedules/", "admin", one, other)
	h.want(request{path: one, user: "lena"}, http.StatusOK, nil)
	h.answers(request{path: other, user: "lena"}, http.StatusNotFound, noSchedule)
	h.answers(request{path: one + "list_roles/", user: "lena"}, http.StatusForbidden, denied)
	h.answers(request{path: one + "my_permissions/", user: "lena"}, http.StatusOK, `{"permissions": ["core.view_taskschedule"]}`)
	h.answers(request{path: one + "my_permissions/"}, http.StatusOK, `{"permissions": ["core.manage_roles_taskschedule", "core.view_taskschedule"]}`)
}

func TestRolesOnAnObjectAreGivenAndTakenByWhoManagesThem(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena")
	h.newUser("eve")
	for _, tt := range []struct{ object, owner, viewer, missing string }{
		{h.dispatchAs("admin"), "core.task_owner", "core.task_viewer", noTask},
		{h.schedule("s"), "core.taskschedule_owner", "core.taskschedule_viewer", noSchedule},
	} {
		h.give(lena, tt.owner, tt.object)
		viewer := `{"role": "` + tt.viewer + `", "users": ["eve"]}`
		add := request{method: http.MethodPost, path: tt.object + "add_role/", user: "lena", body: viewer}
		remove := request{method: http.MethodPost, path: tt.object + "remove_role/", user: "lena", body: viewer}
		told := `{"role": "` + tt.viewer + `", "users": ["eve"], "groups": []}`

		h.answers(request{path: tt.object, user: "eve"}, http.StatusNotFound, tt.missing)
		h.answers(add, http.StatusCreated, told)
		h.answers(add, http.StatusBadRequest, `{"non_field_errors": ["The role is already assigned to user 'eve'."]}`)
		h.want(request{path: tt.object, user: "eve"}, http.StatusOK, nil)
		var roles struct {
			Roles []struct {
				Role  string
				Users []string
			}
		}
		h.want(request{path: tt.object + "list_roles/", user: "lena"}, http.StatusOK, &roles)
		found := map[string][]string{}
		for _, r := range roles.Roles {
			found[r.Role] = r.Users
		}
		if !cmp.Equal(found[tt.viewer], []string{"eve"}) || !slices.Contains(found[tt.owner], "lena") {
			t.Errorf("roles on %s: %v", tt.object, found)
		}
		h.answers(remove, http.StatusCreated, told)
		h.answers(remove, http.StatusBadRequest, `{"non_field_errors": ["The role is not assigned to user 'eve'."]}`)
		h.answers(request{path: tt.object, user: "eve"}, http.StatusNotFound, tt.missing)

		// Nobody is some users, too.
		add.body, remove.body = `{"role": "`+tt.viewer+`"}`, `{"role": "`+tt.viewer+`", "users": []}`
		nobody := `{"users": [], "groups": [], "role": "` + tt.viewer + `"}`
		h.answers(add, http.StatusCreated, nobody)
		h.answers(remove, http.StatusCreated, nobody)

		for body, want := range map[string]string{
			`{"users": ["eve"]}`:                                                 `{"role": ["This field is required."]}`,
			`{"role": "core.nothing", "users": ["eve"]}`:                         `{"role": ["Role with name 'core.nothing' does not exist."]}`,
			`{"role": "` + tt.viewer + `", "users": ["nobody"]}`:                 `{"users": ["Object with username=nobody does not exist."]}`,
			`{"role": "` + tt.viewer + `", "users": ["eve", "no", "one"]}`:       `{"users": ["Object with username=no does not exist.", "Object with username=one does not exist."]}`,
			`{"role": "` + tt.viewer + `", "users": ["eve"], "groups": ["all"]}`: `{"groups": ["Object with name=all does not exist."]}`,
			`{"role": "` + tt.viewer + `", "users": "eve"}`:                      `{"users": ["Expected a list of items but got type \"str\"."]}`,
			`{"role": "` + tt.viewer + `", "users": ["eve"], "color": "red"}`:    `{"color": ["Unexpected field"]}`,
		} {
			add.body, remove.body = body, body
			h.answers(add, http.StatusBadRequest, want)
			h.answers(remove, http.StatusBadRequest, want)
		}
		h.answers(request{path: tt.object, user: "eve"}, http.StatusNotFound, tt.missing)
	}
}

func TestRoleIsGivenToAllOrNobodyAndTakenLikewise(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, name := range []string{"ada", "bea", "cleo"} {
		h.newUser(name)
	}
	task := h.dispatchAs("admin")
	role := func(verb string, users ...string) request {
		return post(task+verb+"_role/", map[string]any{"role": "core.task_viewer", "users": users})
	}
	viewers := func(want ...string) {
		t.Helper()
		got := column[string](h, `SELECT u.username FROM user_role r JOIN auth_user u ON u.id = r.user_id WHERE r.role = 'core.task_viewer' ORDER BY 1`)
		if !cmp.Equal(got, append([]string{}, want...)) {
			t.Errorf("viewers are %v, want %v", got, want)
		}
	}
	h.answers(role("add", "bea", "bea"), http.StatusCreated, `{"role": "core.task_viewer", "users": ["bea", "bea"], "groups": []}`)
	h.answers(role("add", "cleo", "bea", "ada"), http.StatusBadRequest, about("non_field_errors", "The role is already assigned to user 'bea'."))
	viewers("bea")
	h.answers(role("remove", "bea", "cleo", "ada"), http.StatusBadRequest, about("non_field_errors", "The role is not assigned to user 'cleo'."))
	viewers("bea")
	h.want(role("add", "cleo", "ada"), http.StatusCreated, nil)
	viewers("ada", "bea", "cleo")
	h.answers(role("remove", "bea", "bea", "ada"), http.StatusCreated, `{"role": "core.task_viewer", "users": ["bea", "bea", "ada"], "groups": []}`)
	viewers("cleo")
}

func TestWhoHasDispatchedATaskIsNotForItsOwnerToSay(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena", "core.task_user_dispatcher")
	h.newUser("eve")
	task := h.dispatchAs("lena")
	for _, user := range []string{"lena", "admin"} {
		for _, r := range []request{
			post(task+"add_role/", `{"role": "core.task_user_dispatcher", "users": ["eve"]}`),
			post(task+"remove_role/", `{"role": "core.task_user_dispatcher", "users": ["lena"]}`),
		} {
			h.answers(r.by(user), http.StatusBadRequest, `["core.task_user_dispatcher can not be added/removed from a task."]`)
		}
	}
	var got struct {
		CreatedBy *string `json:"created_by"`
	}
	h.get(task, &got)
	if got.CreatedBy == nil || *got.CreatedBy != lena {
		t.Errorf("created by %v, want %s", got.CreatedBy, lena)
	}
}

func TestRoleWithoutPermissionsOnTheObjectIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("eve")
	for object, role := range map[string]string{h.dispatchAs("admin"): "core.taskschedule_viewer", h.schedule("s"): "core.task_viewer"} {
		for _, verb := range []string{"add", "remove"} {
			h.answers(post(object+verb+"_role/", `{"role": "`+role+`", "users": ["eve"]}`), http.StatusBadRequest,
				about("non_field_errors", "The role does not contain any permission for that object."))
		}
		h.answers(post("users/2/roles/", `{"role": "`+role+`", "content_object": "`+object+`"}`), http.StatusBadRequest,
			about("non_field_errors", "The role '"+role+"' does not carry any permission for that object."))
	}
	h.answers(post("users/2/roles/", `{"role": "core.task_viewer", "content_object": "prn:auth.user:1"}`), http.StatusBadRequest,
		about("non_field_errors", "The role 'core.task_viewer' does not carry any permission for that object."))
	if n := column[int](h, "SELECT count(*) FROM user_role WHERE user_id = 2"); n[0] != 0 {
		t.Errorf("eve has %d roles", n[0])
	}
}

// TestWhoMayNotIsNotToldWhatIsWrongWithABody sends bodies of all kinds that are wrong.
func TestWhoMayNotIsNotToldWhatIsWrongWithABody(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	lena := h.newUser("lena")
	s := newScene(h)
	h.give(h.newUser("vera"), "core.taskschedule_viewer", s.schedule)
	const noUser = `{"detail": "No User matches the given query."}`
	for _, tt := range []struct {
		r    request
		as   string
		want int
		body string
	}{
		{post("users/", nil), "lena", 403, denied},
		{send(http.MethodPut, "users/1/", nil), "lena", 403, denied},
		{patch("users/1/", nil), "lena", 403, denied},
		{patch("users/99/", nil), "lena", 403, denied},
		{post("users/1/roles/", nil), "lena", 403, denied},
		{patch("users/99/", nil), "admin", 404, noUser},
		{send(http.MethodPut, "users/99/", nil), "admin", 404, noUser},
		{post("users/99/roles/", nil), "admin", 404, noUser},
		{patch(s.task, nil), "guest", 403, denied},
		{patch(s.group, nil), "guest", 403, denied},
		{post(s.task+"add_role/", nil), "guest", 403, denied},
		{post(s.task+"remove_role/", nil), "guest", 403, denied},
		{patch(s.hidden, nil), "guest", 404, noTask},
		{patch(s.hiddenGroup, nil), "guest", 404, noGroup},
		{post(s.hidden+"add_role/", nil), "guest", 404, noTask},
		{post(s.hidden+"remove_role/", nil), "guest", 404, noTask},
		{post(s.schedule+"add_role/", nil), "vera", 403, denied},
		{post(s.schedule+"remove_role/", nil), "lena", 404, noSchedule},
		{post(pithRoot+"tasks/", nil), "lena", 403, denied},
		{post(pithRoot+"task-schedules/", nil), "lena", 403, denied},
	} {
		for _, body := range []string{`{}`, `{"state": "bogus", "color": "red"}`, `{`, strings.Repeat(" ", 1<<20+1)} {
			tt.r.body = body
			h.answers(tt.r.by(tt.as), tt.want, tt.body)
		}
		tt.r.body = "x"
		h.answers(tt.r.by(tt.as).with("Content-Type", "text/plain"), tt.want, tt.body)
	}
	h.want(get(lena), http.StatusOK, nil)
}

func TestPurgeByAnOrdinaryUserLeavesTheTasksOfOthers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena", "core.task_user_dispatcher", "core.task_viewer")
	own, others := h.dispatchAs("lena"), h.dispatchAs("admin")
	waits := h.accepted(request{
		path: pithRoot + "tasks/", user: "lena", body: map[string]any{"name": testModule + "dummy_task", "not_before": time.Now().Add(time.Hour).UTC()},
	})
	h.drain()
	all := map[string]any{"finished_before": time.Now().Add(time.Hour).UTC(), "states": []string{"completed", "failed", "canceled"}}
	purge := h.accepted(request{path: "tasks/purge/", user: "lena", body: all})
	h.drain()
	h.sees("tasks/", "admin", others, waits, purge)
	if own, others := h.rolesOn(own), h.rolesOn(others); own != 0 || others != 2 {
		t.Errorf("%d roles on the purged task, %d on the other", own, others)
	}
	var task struct {
		State    string
		Progress []struct {
			Code, State string
			Total       *int
			Done        int
		} `json:"progress_reports"`
	}
	h.want(request{path: purge, user: "lena"}, http.StatusOK, &task)
	done := map[string]int{}
	for _, p := range task.Progress {
		done[p.Code] = p.Done
		if p.State != "completed" {
			t.Errorf("%s is %s", p.Code, p.State)
		}
	}
	want := map[string]int{"purge.tasks.key.core.Task": 1, "purge.tasks.key.core.UserRole": 2, "purge.tasks.total": 3, "purge.tasks.error": 0}
	if diff := cmp.Diff(want, done); diff != "" || task.State != "completed" {
		t.Errorf("the purge is %s and has purged (-want +got):\n%s", task.State, diff)
	}

	// A superuser purges what is left of all; a role on everything counts as one on each.
	h.accepted(request{path: "tasks/purge/", body: all})
	h.drain()
	if got := h.listed("tasks/", "admin"); len(got) != 2 || got[0] != waits {
		t.Errorf("left: %v", got)
	}
	h.newUser("olga", "core.task_owner")
	last := h.accepted(request{path: "tasks/purge/", user: "olga", body: all})
	h.drain()
	h.sees("tasks/", "admin", waits, last)
}
