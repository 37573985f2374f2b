package roles

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// Where the API is served, and what the names of Pulp's test helpers begin with, which it dispatches.
const (
	root    = "/pulp/api/v3/"
	beyond  = "/pith/api/"
	helpers = "pulpcore.app.tasks.test."
)

// apiSite is a site with a server of the REST API, which logs in as the role api and knows the superuser admin.
type apiSite struct {
	*site
	// url is the server's, client one of the same role.
	url    string
	client *tasking.Client
	http   http.Client
}

func newAPISite(t *testing.T) *apiSite {
	t.Helper()
	s := newFleetSite(t)
	p := s.as("api")
	server, err := api.New(p, func(app *appstatus.App) (*tasking.Client, error) {
		registry, err := builtin.Registry()
		if err != nil {
			return nil, err
		}
		return tasking.New(p, tasking.Config{Registry: registry, App: app, Log: s.Log})
	}, api.Config{Version: builtin.Version, NameTemplate: "the api", Log: s.Log})
	if err != nil {
		t.Fatal(err)
	}
	if made, err := api.AddUser(t.Context(), p, "admin", "password", true); !made || err != nil {
		t.Fatalf("add user: %t, %v", made, err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &apiSite{site: s, url: "http://" + listener.Addr().String(), client: server.Tasks(), http: http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, listener) }()
	over := false
	t.Cleanup(func() {
		stop()
		if over {
			return
		}
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	dbtest.Until(t, "the server is registered", func(context.Context) (bool, error) {
		select {
		case err := <-ended:
			over = true
			return false, errors.Join(errors.New("it has ended"), err)
		default:
			return server.Tasks() != a.client, nil
		}
	})
	return a
}

// reply is an object of JSON.
type reply map[string]any

// href is that of the object, or of the task that was dispatched.
func (r reply) href() string {
	for _, name := range []string{"pulp_href", "task"} {
		if text, ok := r[name].(string); ok {
			return text
		}
	}
	return root + "nothing/"
}

// ask has a user make a call, whose reply must have this status. The user "" has no credentials. A path is below the root, or
// begins with a slash.
func (a *apiSite) ask(user, method, path string, body any, status int) reply {
	a.t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = root + path
	}
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			a.t.Fatal(err)
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, in)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Task-Diagnostics", "memory")
	if user != "" {
		req.SetBasicAuth(user, "password")
	}
	res, err := a.http.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if res.StatusCode != status {
		a.t.Errorf("%s %s by %q: status %d, want %d: %.200s", method, path, user, res.StatusCode, status, data)
	}
	var got reply
	_ = json.Unmarshal(data, &got) // what is no object has nothing to look at
	return got
}

// get reads.
func (a *apiSite) get(user, path string, status int) reply {
	a.t.Helper()
	return a.ask(user, http.MethodGet, path, nil, status)
}

// post makes something.
func (a *apiSite) post(user, path string, body reply, status int) reply {
	a.t.Helper()
	return a.ask(user, http.MethodPost, path, body, status)
}

// lists reads a list in several ways. None of them may fail, and the first must find so many objects.
func (a *apiSite) lists(user, path string, found int, queries ...string) {
	a.t.Helper()
	if n := a.get(user, path, http.StatusOK)["count"]; n != float64(found) {
		a.t.Errorf("%q finds %v of %s, want %d", user, n, path, found)
	}
	for _, query := range queries {
		a.get(user, path+"?"+query, http.StatusOK)
	}
}

// drain runs a worker, which logs in as a role that is a member of the workers' group alone, until nothing is left to do.
func (a *apiSite) drain() {
	a.t.Helper()
	w := must[*worker.Worker](a.t)(worker.New(a.worker(), worker.Config{Burst: true, Versions: builtin.Versions(), Log: a.Log}))
	if err := w.Run(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
}

// worker is a worker's client.
func (a *apiSite) worker() *tasking.Client {
	a.t.Helper()
	registry := must[*tasking.Registry](a.t)(builtin.Registry())
	return must[*tasking.Client](a.t)(tasking.New(a.as("worker"), tasking.Config{Registry: registry, Diagnostics: tasking.Profiles, Log: a.Log}))
}

// stateOf checks the state of a task.
func (a *apiSite) stateOf(task, want string) {
	a.t.Helper()
	if got := a.get("admin", task, http.StatusOK)["state"]; got != want {
		a.t.Errorf("%s is %v, want %s", task, got, want)
	}
}

func TestTheAPIWorksAsItsRole(t *testing.T) {
	t.Parallel()
	a := newAPISite(t)
	lena := a.users()
	a.tasks(lena)
	a.groups()
	a.schedules()
	a.workers()
	a.purges()

	// What is left of a user goes with the user.
	a.post("admin", lena+"roles/", reply{"role": "core.taskschedule_viewer", "content_object": nil}, http.StatusCreated)
	a.ask("admin", http.MethodDelete, lena, nil, http.StatusNoContent)
	a.get("lena", "tasks/", http.StatusUnauthorized)
	if n := one[int](a.site, "SELECT count(*) FROM user_role WHERE user_id <> (SELECT id FROM auth_user)"); n != 0 {
		t.Errorf("%d roles of users who are gone", n)
	}
}

// users makes calls about users and their roles. It answers the href of lena, who may dispatch tasks.
func (a *apiSite) users() (lena string) {
	a.t.Helper()
	if apps, _ := a.get("", "status/", http.StatusOK)["online_api_apps"].([]any); len(apps) != 1 {
		a.t.Errorf("online: %v", apps)
	}
	for path, status := range map[string]int{"": 200, "livez/": 200, "docs/": 200, "docs/api.json": 200, "tasks/": 401} {
		a.get("", path, status)
	}
	lena = a.post("admin", "users/", reply{"username": "lena", "password": "password"}, http.StatusCreated).href()
	a.post("admin", "users/", reply{"username": "lena", "password": "password"}, http.StatusBadRequest)
	a.lists("admin", "users/", 2, "ordering=-username", "username__contains=len&is_active=true", "q="+url.QueryEscape("username=lena OR is_staff=true"), "limit=1&offset=1")
	a.get("admin", lena, http.StatusOK)
	a.ask("admin", http.MethodPut, lena, reply{"username": "lena", "email": "lena@example.org"}, http.StatusOK)
	a.ask("admin", http.MethodPatch, lena, reply{"password": "password", "first_name": "Lena"}, http.StatusOK)
	gone := a.post("admin", "users/", reply{"username": "gone"}, http.StatusCreated).href()
	a.ask("admin", http.MethodDelete, gone, nil, http.StatusNoContent)
	a.get("admin", gone, http.StatusNotFound)
	a.get("lena", "users/", http.StatusForbidden)

	a.post("lena", beyond+"tasks/", reply{"name": helpers + "dummy_task"}, http.StatusForbidden)
	dispatcher := a.post("admin", lena+"roles/", reply{"role": "core.task_user_dispatcher", "content_object": nil}, http.StatusCreated).href()
	a.post("admin", lena+"roles/", reply{"role": "core.task_user_dispatcher", "content_object": nil}, http.StatusBadRequest)
	viewer := a.post("admin", lena+"roles/", reply{"role": "core.taskschedule_viewer", "content_object": nil}, http.StatusCreated).href()
	a.lists("admin", lena+"roles/", 2, "role__in=core.task_owner,core.task_user_dispatcher", "ordering=-description", "content_object=null")
	a.get("admin", dispatcher, http.StatusOK)
	a.ask("admin", http.MethodDelete, viewer, nil, http.StatusNoContent)
	return lena
}

// tasks makes calls about tasks that lena and admin have dispatched.
func (a *apiSite) tasks(lena string) {
	a.t.Helper()
	dispatch := func(user string, body reply) string {
		a.t.Helper()
		body["name"] = helpers + body["name"].(string)
		return a.post(user, beyond+"tasks/", body, http.StatusAccepted).href()
	}
	first := dispatch("admin", reply{"name": "dummy_task", "exclusive_resources": []string{"prn:r", lena}})
	second := dispatch("lena", reply{"name": "dummy_task", "exclusive_resources": []string{"prn:r"}, "shared_resources": []string{first}})
	later := dispatch("lena", reply{"name": "sleep", "args": reply{"interval": 0}, "not_before": "2100-01-02T03:04:05Z", "priority": -3})
	now := dispatch("lena", reply{"name": "asleep", "args": reply{"interval": 0}, "immediate": true, "deferred": false})
	a.stateOf(now, "completed")
	refused := dispatch("lena", reply{"name": "asleep", "args": reply{"interval": 0}, "immediate": true, "deferred": false, "exclusive_resources": []string{"prn:r"}})
	a.stateOf(refused, "canceled")
	a.get("lena", beyond+"task-types/", http.StatusOK)

	queries := []string{
		"state=waiting&minimal=true", "state__in=waiting,running&ordering=-started_at", "state=completed", "name__contains=dummy&fields=name,state",
		"q=" + url.QueryEscape("NOT state=completed AND (name__contains=dummy OR started_at__lt=2100-01-01T00:00:00Z)"), "limit=1&offset=1",
		"reserved_resources=prn:r", "exclusive_resources=" + lena, "shared_resources=" + first, "created_resources=" + second, "parent_task=" + first,
		"child_tasks=" + first, "pulp_href__in=" + first + "," + second, "ordering=error,result,reserved_resources_record", "unblocked_at__isnull=true",
	}
	a.lists("admin", "tasks/", 5, queries...)
	a.lists("lena", "tasks/", 4, queries...)
	a.get("lena", first, http.StatusNotFound)
	for _, path := range []string{second, second + "?minimal=true", second + "my_permissions/", second + "list_roles/", second + "profile_artifacts/", beyond + "tasks/" + key(second) + "/explain/"} {
		a.get("lena", path, http.StatusOK)
	}
	a.get("admin", beyond+"tasks/"+key(second)+"/explain/", http.StatusOK)
	for _, path := range []string{"add_role/", "remove_role/"} {
		a.post("lena", second+path, reply{"role": "core.task_viewer", "users": []string{"admin"}}, http.StatusCreated)
	}

	a.ask("lena", http.MethodDelete, later, nil, http.StatusConflict)
	a.ask("lena", http.MethodPatch, later, reply{"state": "canceled"}, http.StatusOK)
	a.drain()
	a.stateOf(second, "completed")
	a.ask("lena", http.MethodPatch, second, reply{"state": "canceled"}, http.StatusConflict)
	links, _ := a.get("lena", second+"profile_artifacts/", http.StatusOK)["urls"].(map[string]any)
	link, _ := links["memory_profile"].(string)
	if !strings.HasPrefix(link, a.url) {
		a.t.Fatalf("links to profiles are %v", links)
	}
	a.get("", strings.TrimPrefix(link, a.url), http.StatusOK)
	a.ask("lena", http.MethodDelete, later, nil, http.StatusNoContent)
	a.get("admin", later, http.StatusNotFound)
}

// groups makes calls about a task group in which lena dispatches.
func (a *apiSite) groups() {
	a.t.Helper()
	group := root + "task-groups/" + must[uuid.UUID](a.t)(a.client.NewGroup(a.t.Context(), "a group")).String() + "/"
	a.get("lena", group, http.StatusNotFound)
	a.post("lena", beyond+"tasks/", reply{"name": helpers + "dummy_task", "task_group": group}, http.StatusBadRequest)
	task := a.post("admin", beyond+"tasks/", reply{"name": helpers + "dummy_group_task", "task_group": group, "args": reply{"inbetween": 0, "intervals": []int{0, 0}}}, http.StatusAccepted).href()
	a.post("admin", task+"add_role/", reply{"role": "core.task_owner", "users": []string{"lena"}}, http.StatusCreated)
	a.lists("admin", "task-groups/", 1)
	a.lists("lena", "task-groups/", 1)
	a.drain()
	a.get("admin", task+"?fields=child_tasks,task_group", http.StatusOK)
	for _, query := range []string{"task_group=" + group, "parent_task=" + task} {
		a.get("lena", "tasks/?"+query, http.StatusOK)
	}
	if got := a.get("admin", group, http.StatusOK); got["completed"] != 3.0 || got["all_tasks_dispatched"] != true {
		a.t.Errorf("the group is %v", got)
	}
	last := a.post("admin", beyond+"tasks/", reply{"name": helpers + "dummy_task", "task_group": group}, http.StatusAccepted).href()
	a.ask("lena", http.MethodPatch, group, reply{"state": "canceled"}, http.StatusForbidden)
	a.ask("admin", http.MethodPatch, group, reply{"state": "canceled"}, http.StatusOK)
	a.stateOf(last, "canceled")
}

// schedules makes calls about schedules, of which a worker dispatches what is due.
func (a *apiSite) schedules() {
	a.t.Helper()
	body := func(name string) reply {
		return reply{"name": name, "task_name": helpers + "dummy_task", "exclusive_resources": []string{"prn:s"}, "dispatch_interval": "1 00:00:00", "priority": -1}
	}
	path := beyond + "task-schedules/"
	nightly, own := a.post("admin", path, body("nightly"), http.StatusCreated).href(), a.post("lena", path, body("own"), http.StatusCreated).href()
	a.post("lena", path, body("nightly"), http.StatusBadRequest)
	if n := must[int](a.t)(a.worker().DispatchDue(a.t.Context())); n != 2 {
		a.t.Errorf("%d schedules were due", n)
	}
	if task, _ := a.get("lena", own, http.StatusOK)["last_task"].(string); task == "" {
		a.t.Error("nothing was dispatched")
	}
	queries := []string{"ordering=-next_dispatch", "name__contains=own", "q=" + url.QueryEscape("NOT task_name=x"), "pulp_href__in=" + own + "," + nightly}
	a.lists("admin", "task-schedules/", 2, queries...)
	a.lists("lena", "task-schedules/", 1, queries...)
	for _, path := range []string{"my_permissions/", "list_roles/"} {
		a.get("lena", own+path, http.StatusOK)
	}
	for _, path := range []string{"add_role/", "remove_role/"} {
		a.post("lena", own+path, reply{"role": "core.taskschedule_viewer", "users": []string{"admin"}}, http.StatusCreated)
	}
	a.get("lena", nightly, http.StatusNotFound)
	a.ask("lena", http.MethodDelete, path+key(nightly)+"/", nil, http.StatusNotFound)
	a.ask("lena", http.MethodDelete, path+key(own)+"/", nil, http.StatusNoContent)
	a.ask("admin", http.MethodDelete, path+key(nightly)+"/", nil, http.StatusNoContent)
	if n := one[int](a.site, "SELECT count(*) FROM user_role WHERE model = 'core.taskschedule'"); n != 0 {
		a.t.Errorf("%d roles on schedules that are gone", n)
	}
}

// workers makes calls about a worker.
func (a *apiSite) workers() {
	a.t.Helper()
	app := a.process(a.worker(), appstatus.Worker)
	a.lists("lena", "workers/", 1, "online=true&ordering=name", "missing=false&name__contains=x", "last_heartbeat__gt=2000-01-01T00:00:00Z")
	a.get("lena", "workers/"+app.ID().String()+"/", http.StatusOK)
	if err := app.Unregister(a.t.Context()); err != nil {
		a.t.Error(err)
	}
}

// purges has first lena purge her tasks, and then admin all, of which there are some of each.
func (a *apiSite) purges() {
	a.t.Helper()
	a.drain() // what the schedules have dispatched
	count := func(of string) int {
		a.t.Helper()
		return one[int](a.site, `SELECT count(DISTINCT t.id) FROM task t JOIN user_role r ON r.object = t.id::text AND r.role = 'core.task_owner'
			JOIN auth_user u ON u.id = r.user_id WHERE u.username = $1`, of)
	}
	if lenas, admins := count("lena"), count("admin"); lenas < 2 || admins < 2 {
		a.t.Errorf("lena owns %d tasks, and admin %d", lenas, admins)
	}
	all := reply{"finished_before": "2100-01-01T00:00:00Z", "states": []string{"completed", "failed", "canceled"}}
	for _, user := range []string{"lena", "admin"} {
		purge := a.post(user, "tasks/purge/", all, http.StatusAccepted).href()
		a.drain()
		a.stateOf(purge, "completed")
		if n := count(user); n != 1 {
			a.t.Errorf("%s owns %d tasks after the purge, want the purge alone", user, n)
		}
		if user == "lena" && count("admin") < 2 {
			a.t.Error("lena has purged tasks that others own")
		}
	}
	if n := one[int](a.site, "SELECT count(*) FROM user_role r WHERE r.model = 'core.task' AND NOT EXISTS (SELECT FROM task t WHERE t.id::text = r.object)"); n != 0 {
		a.t.Errorf("%d roles on tasks that are gone", n)
	}
}

// key is the last part of an href.
func key(href string) string {
	parts := strings.Split(strings.TrimSuffix(href, "/"), "/")
	return parts[len(parts)-1]
}
