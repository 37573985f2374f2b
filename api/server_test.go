package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// running is a server that runs on a listener of its own.
type running struct {
	address string
	stop    func()       // makes it end
	ended   func() error // waits for its end
}

// run runs the harness's server until the test ends, and waits until it is registered.
func (h *harness) run() running {
	h.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(h.t.Context())
	ends := make(chan error, 1)
	go func() { ends <- h.server.Run(ctx, listener) }()
	r := running{address: listener.Addr().String(), stop: cancel, ended: sync.OnceValue(func() error { return <-ends })}
	h.t.Cleanup(func() {
		r.stop()
		if err := r.ended(); err != nil {
			h.t.Errorf("run: %v", err)
		}
	})
	h.registered(h.client)
	return r
}

// registered waits until the server is registered, with another client than these.
func (h *harness) registered(before ...*tasking.Client) {
	h.t.Helper()
	dbtest.Until(h.t, "the server is registered", func(context.Context) (bool, error) {
		return !slices.Contains(before, h.server.Tasks()), nil
	})
}

// apps are the ids of the processes of the type api.
func (h *harness) apps() []string {
	h.t.Helper()
	return column[string](h, "SELECT id::text FROM app_status WHERE app_type = 'api'")
}

// immediate dispatches an immediate task and answers its state then.
func (h *harness) immediate() tasking.State {
	h.t.Helper()
	d, err := h.server.Tasks().Dispatch(h.t.Context(), tasking.Request{
		Name: testModule + "asleep", Args: map[string]any{"interval": 0}, Options: tasking.Options{Immediate: true},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return d.State
}

func TestServerIsRegisteredAsLongAsItRuns(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.NameTemplate, c.TTL = "an api", time.Minute })
	r := h.run()
	var got struct {
		OnlineAPIApps []struct {
			Name     string
			Versions map[string]string
		} `json:"online_api_apps"`
	}
	h.get("status/", &got)
	if len(got.OnlineAPIApps) != 1 || got.OnlineAPIApps[0].Name != "an api" || got.OnlineAPIApps[0].Versions["core"] != builtin.Version {
		t.Errorf("online: %+v", got.OnlineAPIApps)
	}
	if ttl := column[string](h, "SELECT ttl::text FROM app_status"); !slices.Equal(ttl, []string{"00:01:00"}) {
		t.Errorf("ttl %s", ttl)
	}
	r.stop()
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	if left := h.apps(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestImmediateTasksRunAtOnceAsLongAsTheServerRuns(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if got := h.immediate(); got != tasking.Waiting {
		t.Errorf("before: %s", got)
	}
	r := h.run()
	if got := h.immediate(); got != tasking.Completed {
		t.Errorf("meanwhile: %s", got)
	}
	task := h.accepted(post(pithRoot+"tasks/", map[string]any{"name": testModule + "asleep", "args": map[string]any{"interval": 0}, "immediate": true}))
	if got := h.state(task); got != "completed" {
		t.Errorf("by the API: %s", got)
	}
	r.stop()
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	if got := h.immediate(); got != tasking.Waiting {
		t.Errorf("after: %s", got)
	}
}

func TestServerThatIsDeclaredMissingRegistersAnew(t *testing.T) {
	t.Parallel()
	// The loss is noticed by the next beat, within a third of the TTL; until then no beat may be so late that it is lost by itself.
	h := newHarness(t, func(c *api.Config) { c.TTL = 15 * time.Second })
	h.run()
	before, client := h.apps(), h.server.Tasks()
	h.exec("DELETE FROM app_status")
	h.registered(h.client, client)
	if after := h.apps(); len(before) != 1 || len(after) != 1 || before[0] == after[0] {
		t.Errorf("registered as %v, then as %v", before, after)
	}
	if got := h.immediate(); got != tasking.Completed {
		t.Errorf("an immediate task is %s", got)
	}
}

// lines are what is written, a line at a time.
type lines chan []byte

func (l lines) Write(p []byte) (int, error) {
	l <- bytes.Clone(p)
	return len(p), nil
}

func TestLogTellsWhoIsVerifiedAndNobodyElse(t *testing.T) {
	t.Parallel()
	log := make(lines, 10)
	h := newHarness(t, func(c *api.Config) { c.Log = slog.New(slog.NewJSONHandler(log, nil)) })
	h.newUser("lena")
	<-log
	long := strings.Repeat("l", 1000)
	for _, tt := range []struct {
		r      request
		status int
		user   string
	}{
		{get("tasks/"), 200, "admin"},
		{get("tasks/").by("lena"), 200, "lena"},
		{get("users/").by("lena"), 403, "lena"},
		{get("tasks/x/").by("lena"), 404, "lena"},
		{post("tasks/", nil).by("lena"), 405, "lena"},
		{patch("users/1/", "{"), 400, "admin"},
		{get("tasks/").by("lena:wrong"), 401, ""},
		{get("tasks/").by("nobody"), 401, ""},
		{get("tasks/").by(long), 401, ""},
		{get("tasks/").by("-"), 401, ""},
		{get("status/").by("lena"), 200, ""},
		{get("livez/").by(long), 200, ""},
		{get("docs/").by("lena:wrong"), 200, ""},
		{get("nowhere/").by("lena"), 404, ""},
		{get("tasks").by("lena"), 301, ""},
	} {
		got, logged := h.send(tt.r), <-log
		var line struct {
			User          *string
			Path          string
			Status        int
			CorrelationID string `json:"correlation_id"`
		}
		if err := json.Unmarshal(logged, &line); err != nil {
			t.Fatalf("%s: %v: %s", tt.r.path, err, logged)
		}
		if got.status != tt.status || line.Status != tt.status || line.User == nil || *line.User != tt.user || line.CorrelationID != got.header.Get("Correlation-Id") {
			t.Errorf("%s by %.10s: %d, logged is %s", tt.r.path, tt.r.user, got.status, logged)
		}
	}
}

func TestPagesOfOtherOriginsMayOnlyRead(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.newUser("lena")
	own := h.http.URL
	for _, tt := range []struct {
		header  map[string]string
		refused bool
	}{
		{nil, false},
		{map[string]string{"Sec-Fetch-Site": "same-origin"}, false},
		{map[string]string{"Sec-Fetch-Site": "none"}, false},
		{map[string]string{"Origin": own}, false},
		{map[string]string{"Origin": strings.Replace(own, "http:", "https:", 1)}, false}, // as behind a proxy
		{map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "https://elsewhere.example"}, false},
		{map[string]string{"Sec-Fetch-Site": "cross-site"}, true},
		{map[string]string{"Sec-Fetch-Site": "same-site"}, true},
		{map[string]string{"Origin": "https://elsewhere.example"}, true},
		{map[string]string{"Origin": "null"}, true},
		{map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": own}, true},
	} {
		as := func(r request) reply {
			for name, value := range tt.header {
				r = r.with(name, value)
			}
			return h.send(r)
		}
		form := send("", "", "first_name=x").with("Content-Type", "application/x-www-form-urlencoded")
		for _, path := range []string{"tasks/purge/", "users/2/", "users/2/roles/", "status/", "nowhere/", "tasks", pithRoot + "tasks/"} {
			for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
				if method == "DELETE" && path == "users/2/" && !tt.refused {
					continue
				}
				form.method, form.path = method, path
				got := as(form)
				const body = `{"detail":"Pages of other origins may only read."}`
				if refused := got.status == http.StatusForbidden && string(got.body) == body; refused != tt.refused {
					t.Errorf("%s %s with %v: %d %s", method, path, tt.header, got.status, got.body)
				}
				if tt.refused && (got.header.Get("Content-Type") != "application/json" || len(got.header.Get("Correlation-Id")) != 32) {
					t.Errorf("%s %s with %v: %v", method, path, tt.header, got.header)
				}
			}
		}
		for _, method := range []string{"GET", "HEAD"} {
			if got := as(send(method, "users/2/", nil)); got.status != http.StatusOK {
				t.Errorf("%s with %v: %d %s", method, tt.header, got.status, got.body)
			}
		}
	}
	h.want(get("users/2/"), http.StatusOK, nil)
}

type waitReply struct {
	State string `json:"state"`
}

// waiting is a component with an operation that begins, waits until it is let go, and then dispatches an immediate task.
func waiting(h **harness, began chan<- struct{}, release <-chan struct{}) api.Component {
	return api.Component{Label: "test", Version: "1.0.0", Package: "test", Module: "test", Resources: []*api.Resource{{
		Path: "waits/", Name: "waits", Key: "wait", Tag: "Waits",
		Operations: []api.Operation{{
			Method: http.MethodGet, Verb: "read", Summary: "Wait.", Public: true, Replies: map[int]any{http.StatusOK: waitReply{}},
			Do: api.Bare(func(context.Context, *api.Request) (api.Reply, error) {
				close(began)
				<-release
				return api.OK(waitReply{string((*h).immediate())})
			}),
		}},
	}}}
}

func TestServerEndsWhenTheLastRequestHasEnded(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}), make(chan struct{})
	var h *harness
	h = newHarness(t, func(c *api.Config) { c.Components = []api.Component{waiting(&h, began, release)} })
	r := h.run()
	replies := make(chan string, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := client.Get("http://" + r.address + root + "waits/")
		if err != nil {
			replies <- err.Error()
			return
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		replies <- fmt.Sprint(string(body), err)
	}()
	<-began
	r.stop()
	dbtest.Until(t, "the server takes no connections", func(ctx context.Context) (bool, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil, nil
	})
	if left := h.apps(); len(left) != 1 {
		t.Errorf("registered while a request goes on: %v", left)
	}
	close(release)
	if got := <-replies; got != `{"state":"completed"}<nil>` {
		t.Errorf("reply %s", got)
	}
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	if left := h.apps(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestServerWithoutADatabaseTellsThatItIsAway(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close() // nobody listens there
	away, err := pool.Open(t.Context(), "postgres://nobody@"+listener.Addr().String()+"/none?sslmode=disable", pool.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(away.Close)
	registry, err := builtin.Registry()
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t}
	h.server, err = api.New(away, func(app *appstatus.App) (*tasking.Client, error) {
		return tasking.New(away, tasking.Config{Registry: registry, App: app})
	}, api.Config{Version: builtin.Version})
	if err != nil {
		t.Fatal(err)
	}
	h.http = httptest.NewServer(h.server.Handler())
	t.Cleanup(h.http.Close)

	if got := h.want(get("livez/").by("-"), http.StatusOK, nil); len(got.body) > 0 || got.header.Get("Content-Type") != "" {
		t.Errorf("livez: %v %s", got.header, got.body)
	}
	h.want(get("docs/api.json").by("-"), http.StatusOK, nil)
	h.want(get("").by("-"), http.StatusOK, nil)
	h.answers(get("tasks/"), http.StatusServiceUnavailable, detailed("The database cannot be reached at the moment."))
	var got map[string]any
	h.want(get("status/").by("-"), http.StatusOK, &got)
	for _, name := range []string{"online_workers", "online_api_apps", "online_content_apps"} {
		if list, ok := got[name].([]any); !ok || len(list) > 0 {
			t.Errorf("%s: %v", name, got[name])
		}
	}
	if diff := cmp.Diff(map[string]any{"connected": false}, got["database_connection"]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSlowClientsHoldNoConnectionOfTheDatabase(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.want(get("tasks/"), http.StatusOK, nil) // the password is known then
	const clients = 40                        // more than the pool has connections
	conns := make([]*net.TCPConn, clients)
	readers := make([]*bufio.Reader, clients)
	for i := range conns {
		conn, err := net.Dial("tcp", h.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		conns[i], readers[i] = conn.(*net.TCPConn), bufio.NewReader(conn)
		if _, err := fmt.Fprintf(conn, "POST %stasks/purge/ HTTP/1.1\r\nHost: pulp\r\nAuthorization: Basic YWRtaW46cGFzc3dvcmQ=\r\n"+
			"Content-Type: application/json\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n", root); err != nil {
			t.Fatal(err)
		}
		// This is sent when the body is about to be read.
		if line, err := readers[i].ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || err != nil {
			t.Fatalf("%q %v", line, err)
		}
		if line, err := readers[i].ReadString('\n'); line != "\r\n" || err != nil {
			t.Fatalf("%q %v", line, err)
		}
	}
	if n := h.db.Pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections are held", n)
	}
	h.want(get("tasks/"), http.StatusOK, nil)
	for i, conn := range conns {
		body := `{}        `
		status, want := http.StatusAccepted, ""
		if i%2 == 0 { // gives up half-way
			body, status, want = "{", http.StatusBadRequest, `{"detail":"The body ended early."}`
		}
		if _, err := io.WriteString(conn, body); err != nil {
			t.Fatal(err)
		}
		if want != "" {
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		res, err := http.ReadResponse(readers[i], nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != status || want != "" && string(text) != want {
			t.Errorf("%d %s %v", res.StatusCode, text, err)
		}
	}
}

func TestHeadersAreLimited(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	address := "http://" + h.run().address + root + "livez/"
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, tt := range []struct{ filler, status int }{{63 << 10, http.StatusOK}, {72 << 10, http.StatusRequestHeaderFieldsTooLarge}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Filler", strings.Repeat("x", tt.filler))
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != tt.status {
			t.Errorf("%d bytes of headers: status %d, want %d", tt.filler, res.StatusCode, tt.status)
		}
	}
}

func TestStatusHasPulpsFieldsInTheirOrder(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) {
		c.ContentOrigin, c.ContentPathPrefix = "https://content.example", "/somewhere/else/"
		c.Components = []api.Component{{Label: "file", Version: "3.117.0", Package: "pulpcore", Module: "pulp_file.app"}}
	})
	newWorkers(h)
	h.registerAs(appstatus.Content, "delta@one")
	got := h.want(get("status/").by("-"), http.StatusOK, nil)
	if diff := cmp.Diff([]string{
		"versions", "online_workers", "online_api_apps", "online_content_apps", "database_connection", "redis_connection", "storage",
		"content_settings", "domain_enabled",
	}, members(t, got.body)); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	o := h.object("status/")
	for _, name := range []string{"online_workers", "online_api_apps", "online_content_apps"} {
		list, _ := o[name].([]any)
		for _, app := range list {
			a, _ := app.(map[string]any)
			if beat, _ := a["last_heartbeat"].(string); !times.MatchString(beat) {
				t.Errorf("%s: %v", name, app)
			}
			delete(a, "last_heartbeat")
		}
	}
	app := func(name string) []any {
		return []any{map[string]any{"name": name, "versions": map[string]any{"core": builtin.Version}}}
	}
	if diff := cmp.Diff(map[string]any{
		"versions": []any{
			map[string]any{"component": "core", "version": reported(t, h.server), "package": "pulpcore", "module": "pulpcore.app", "domain_compatible": false},
			map[string]any{"component": "file", "version": "3.117.0", "package": "pulpcore", "module": "pulp_file.app", "domain_compatible": false},
		},
		"online_workers": app("alpha@one"), "online_api_apps": app("gamma@one"), "online_content_apps": app("delta@one"),
		"database_connection": map[string]any{"connected": true}, "redis_connection": map[string]any{"connected": false},
		"storage":          map[string]any{"total": nil, "used": 0.0, "free": nil},
		"content_settings": map[string]any{"content_origin": "https://content.example", "content_path_prefix": "/somewhere/else/"},
		"domain_enabled":   false,
	}, o); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestStatusOfAServerThatIsConfiguredByNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var got struct {
		Content json.RawMessage `json:"content_settings"`
	}
	h.get("status/", &got)
	if want := `{"content_origin":null,"content_path_prefix":"/pulp/content/"}`; string(got.Content) != want {
		t.Errorf("%s", got.Content)
	}
}

func TestRootIsWhereItIsConfigured(t *testing.T) {
	t.Parallel()
	h := newHarness(t, func(c *api.Config) { c.Root = "/relocated/api/" })
	h.dispatch("dummy_task", nil, tasking.Options{})
	got := names(t, h.want(get("/relocated/api/api/v3/tasks/"), http.StatusOK, nil).body, "pulp_href")
	if len(got) != 1 || !strings.HasPrefix(got[0], "/relocated/api/api/v3/tasks/") {
		t.Errorf("%v", got)
	}
	h.want(get(got[0]), http.StatusOK, nil)
	h.want(get("tasks/"), http.StatusNotFound, nil)
}

func TestServerThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	good := api.Config{Version: builtin.Version}
	for _, tt := range []struct {
		pool   bool
		client func(*appstatus.App) (*tasking.Client, error)
		cfg    api.Config
		want   string
	}{
		{false, h.newClient, good, "a pool"},
		{true, nil, good, "a maker of clients"},
		{true, h.newClient, api.Config{}, "Config.Version"},
		{true, h.newClient, api.Config{Version: "1", Root: "pulp/"}, `"pulp/"`},
		{true, h.newClient, api.Config{Version: "1", Root: "/pulp"}, `"/pulp"`},
		{true, h.newClient, api.Config{Version: "1", Root: "/{pulp}/"}, `"/{pulp}/"`},
		{true, h.newClient, api.Config{Version: "1", Root: "/a b/"}, `the Root "/a b/": it must begin and end with a slash`},
		{true, h.newClient, api.Config{Version: "1", Root: "/pulp//"}, `"/pulp//"`},
		{true, h.newClient, api.Config{Version: "1", Root: "/x/../y/"}, `"/x/../y/"`},
		{true, h.newClient, api.Config{Version: "1", Root: "/%7Bpulp/"}, `"/%7Bpulp/"`},
		{true, h.newClient, api.Config{Version: "1", ContentPathPrefix: "/files"}, `the ContentPathPrefix "/files"`},
		{true, func(*appstatus.App) (*tasking.Client, error) { return nil, io.ErrUnexpectedEOF }, good, io.ErrUnexpectedEOF.Error()},
	} {
		p := h.db.Pool
		if !tt.pool {
			p = nil
		}
		if s, err := api.New(p, tt.client, tt.cfg); s != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want %s: %v", tt.want, err)
		}
	}
}
