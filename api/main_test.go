package api_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/crypto/bcrypt"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

func TestMain(m *testing.M) {
	registry, err := builtin.Registry()
	if err != nil {
		panic(err) // the types are the package's own
	}
	tasking.RunChild(registry)
	dbtest.Main(m)
}

// root is where the tests' servers serve the API.
const root = "/pulp/api/v3/"

// testModule is where Pulp's test helpers are.
const testModule = "pulpcore.app.tasks.test."

// harness is a server on a database of its own.
type harness struct {
	t      *testing.T
	db     *dbtest.DB
	server *api.Server
	http   *httptest.Server
	client *tasking.Client
}

// newHarness starts a server with the user admin, whose password is password. It is not registered: nothing runs at once.
func newHarness(t *testing.T, change ...func(*api.Config)) *harness {
	t.Helper()
	h := &harness{t: t, db: dbtest.New(t)}
	cfg := api.Config{Version: builtin.Version, Log: h.db.Log}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if h.server, err = api.New(h.db.Pool, h.newClient, cfg); err != nil {
		t.Fatal(err)
	}
	h.client = h.server.Tasks()
	h.http = httptest.NewServer(h.server.Handler())
	t.Cleanup(h.http.Close)
	h.addUser("admin", true)
	return h
}

func (h *harness) newClient(app *appstatus.App) (*tasking.Client, error) {
	registry, err := builtin.Registry()
	if err != nil {
		return nil, err
	}
	return tasking.New(h.db.Pool, tasking.Config{Registry: registry, App: app, Diagnostics: tasking.Profiles, Log: h.db.Log})
}

// passwordHash is a hash of password that takes hardly any time to verify.
var passwordHash = sync.OnceValue(func() string {
	hash, err := bcrypt.GenerateFromPassword([]byte("password"), bcrypt.MinCost)
	if err != nil {
		panic(err) // it fails for long passwords and unknown costs only
	}
	return string(hash)
})

// addUser adds a user whose password is password.
func (h *harness) addUser(name string, superuser bool) {
	h.t.Helper()
	if _, err := h.db.Pool.Exec(h.t.Context(), "INSERT INTO auth_user (username, password, is_staff, is_superuser) VALUES ($1::text, $2::text, $3::bool, $3::bool)",
		name, passwordHash(), superuser); err != nil {
		h.t.Fatalf("add user %s: %v", name, err)
	}
}

// reply is what a server has answered.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// request is what to send. The zero value is a GET of the API's root by admin.
type request struct {
	method string
	path   string // below the root, or from the first slash on
	user   string // "": admin; "-": nobody; NAME or NAME:PASSWORD
	body   any    // a string is sent as it is, all else as JSON
	header http.Header
}

// send sends a request.
func (h *harness) send(r request) reply {
	h.t.Helper()
	var in io.Reader
	kind := "application/json"
	switch body := r.body.(type) {
	case nil:
	case string:
		in = strings.NewReader(body)
	default:
		data, err := json.Marshal(body)
		if err != nil {
			h.t.Fatal(err)
		}
		in = bytes.NewReader(data)
	}
	path := r.path
	if !strings.HasPrefix(path, "/") {
		path = root + path
	}
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.http.URL+path, in)
	if err != nil {
		h.t.Fatal(err)
	}
	if in != nil {
		req.Header.Set("Content-Type", kind)
	}
	for name, list := range r.header {
		req.Header[http.CanonicalHeaderKey(name)] = list
	}
	if r.user != "-" {
		name, password, ok := strings.Cut(r.user, ":")
		if name == "" {
			name = "admin"
		}
		if !ok {
			password = "password"
		}
		req.SetBasicAuth(name, password)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, body}
}

// get reads a path as admin, which must succeed, into a value.
func (h *harness) get(path string, into any) {
	h.t.Helper()
	h.want(request{path: path}, http.StatusOK, into)
}

// want sends a request whose status must be this one, and decodes its body, unless into is nil.
func (h *harness) want(r request, status int, into any) reply {
	h.t.Helper()
	got := h.send(r)
	if got.status != status {
		h.t.Fatalf("%s %s: status %d, want %d: %s", r.method, r.path, got.status, status, got.body)
	}
	if into != nil {
		if err := json.Unmarshal(got.body, into); err != nil {
			h.t.Fatalf("%s %s: %v: %s", r.method, r.path, err, got.body)
		}
	}
	return got
}

// dispatch hands out a task past the API and answers its href.
func (h *harness) dispatch(name string, args any, o tasking.Options) (uuid.UUID, string) {
	h.t.Helper()
	d, err := h.client.Dispatch(h.t.Context(), tasking.Request{Name: testModule + name, Args: args, Options: o})
	if err != nil {
		h.t.Fatal(err)
	}
	return d.ID, root + "tasks/" + d.ID.String() + "/"
}

// drain runs a worker until nothing is left to do.
func (h *harness) drain() {
	h.t.Helper()
	w, err := worker.New(h.client, worker.Config{Burst: true, Concurrency: 4, Versions: builtin.Versions(), Log: h.db.Log})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := w.Run(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// names are the values of a key in a page's results.
func names(t *testing.T, body []byte, key string) []string {
	t.Helper()
	var page struct {
		Results []map[string]any `json:"results"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	list := []string{}
	for _, r := range page.Results {
		text, _ := r[key].(string)
		list = append(list, text)
	}
	return list
}

// sorted is a sorted copy.
func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }
