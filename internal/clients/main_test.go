package clients_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

func TestMain(m *testing.M) {
	registry, err := registry()
	if err != nil {
		panic(err) // the types are known
	}
	tasking.RunChild(registry)
	dbtest.Main(m)
}

// root is where the tests' servers serve the API.
const root = "/pulp/api/v3/"

// helpers is where Pulp's test helpers are.
const helpers = "pulpcore.app.tasks.test."

// maker is a task type that records as created what its argument names.
const maker = "clients.maker"

func registry() (*tasking.Registry, error) {
	return builtin.Registry(tasking.NewType(maker, func(ctx context.Context, run *tasking.Run, prn string) (any, error) {
		return nil, run.AddCreatedResource(ctx, prn)
	}, tasking.TypeConfig{}))
}

// deployment is a server of the API and workers, on a database of their own.
type deployment struct {
	db     *dbtest.DB
	url    string
	client *tasking.Client
}

// deploy runs a server that knows the superuser admin, whose password is password, and a worker for each of the names.
func deploy(t *testing.T, cfg worker.Config, workers ...string) *deployment {
	t.Helper()
	d := &deployment{db: dbtest.New(t)}
	d.client = d.newClient(t)
	server, err := api.New(d.db.Pool, func(app *appstatus.App) (*tasking.Client, error) {
		return newClient(d.db, app)
	}, api.Config{Version: builtin.Version, NameTemplate: "api@test", Log: d.db.Log})
	if err != nil {
		t.Fatal(err)
	}
	d.addUser(t, "admin", true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.url = "http://" + listener.Addr().String()

	life, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	parts, life := errgroup.WithContext(life)
	t.Cleanup(func() {
		stop()
		if err := parts.Wait(); err != nil {
			t.Errorf("deployment: %v", err)
		}
	})
	parts.Go(func() error { return server.Run(life, listener) })
	cfg.Concurrency, cfg.Versions, cfg.Grace, cfg.Log = 4, builtin.Versions(), time.Millisecond, d.db.Log
	for _, name := range workers {
		cfg.NameTemplate = name
		w, err := worker.New(d.newClient(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		parts.Go(func() error { return w.Run(life) })
	}
	dbtest.Until(t, "everything is online", func(ctx context.Context) (bool, error) {
		n := 0
		err := d.db.Direct.QueryRow(ctx, "SELECT count(*) FROM app_status").Scan(&n)
		return n == 1+len(workers), err
	})
	return d
}

func newClient(db *dbtest.DB, app *appstatus.App) (*tasking.Client, error) {
	registry, err := registry()
	if err != nil {
		return nil, err
	}
	return tasking.New(db.Pool, tasking.Config{Registry: registry, App: app, Diagnostics: tasking.Profiles, Log: db.Log})
}

func (d *deployment) newClient(t *testing.T) *tasking.Client {
	t.Helper()
	client, err := newClient(d.db, nil)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// addUser adds a user whose password is password.
func (d *deployment) addUser(t *testing.T, name string, superuser bool) {
	t.Helper()
	if created, err := api.AddUser(t.Context(), d.db.Pool, name, "password", superuser); err != nil || !created {
		t.Fatalf("add user %s: %t %v", name, created, err)
	}
}

// dispatch hands out a task past the API, and answers its href.
func (d *deployment) dispatch(t *testing.T, name string, args any, o tasking.Options) string {
	t.Helper()
	task, err := d.client.Dispatch(t.Context(), tasking.Request{Name: name, Args: args, Options: o})
	if err != nil {
		t.Fatal(err)
	}
	return taskHref(task.ID)
}

// group makes a task group, and a task in it that dispatches one for each interval, which sleeps that long.
func (d *deployment) group(t *testing.T, intervals ...float64) (group, leader string) {
	t.Helper()
	id, err := d.client.NewGroup(t.Context(), "of a test")
	if err != nil {
		t.Fatal(err)
	}
	leader = d.dispatch(t, helpers+"dummy_group_task", map[string]any{"inbetween": 0, "intervals": intervals}, tasking.Options{Group: &id})
	return root + "task-groups/" + id.String() + "/", leader
}

// reaches waits until tasks are in a state.
func (d *deployment) reaches(t *testing.T, state tasking.State, hrefs ...string) {
	t.Helper()
	for _, href := range hrefs {
		dbtest.Until(t, href+" is "+string(state), func(ctx context.Context) (bool, error) {
			task, err := d.client.Get(ctx, id(t, href))
			return task.State == state, err
		})
	}
}

func taskHref(id uuid.UUID) string { return root + "tasks/" + id.String() + "/" }

// id is the last segment of an href.
func id(t *testing.T, href string) uuid.UUID {
	t.Helper()
	parsed, err := uuid.Parse(filepath.Base(href))
	if err != nil {
		t.Fatalf("href %q: %v", href, err)
	}
	return parsed
}

// prn is the PRN of what an href names.
func prn(t *testing.T, model, href string) string {
	t.Helper()
	return "prn:" + model + ":" + id(t, href).String()
}

// sleep are the arguments of Pulp's sleepers.
func sleep(seconds float64) map[string]float64 { return map[string]float64{"interval": seconds} }

// program finds one of the programs of the Python environment, and skips the test where there is none.
func program(t *testing.T, name string) string {
	t.Helper()
	venv := os.Getenv("PITH_TEST_CLIENTS")
	if venv == "" {
		t.Skip("PITH_TEST_CLIENTS names no Python environment: `make test-clients` makes one and runs this test")
	}
	return filepath.Join(venv, "bin", name)
}

// result is what came of a program.
type result struct {
	code     int
	out, err string
}

// run runs a program in a directory, which is its home.
func run(t *testing.T, dir string, env []string, path string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{
		"HOME=" + dir, "XDG_CONFIG_HOME=" + filepath.Join(dir, "config"), "XDG_CACHE_HOME=" + filepath.Join(dir, "cache"),
		"PATH=" + filepath.Dir(path) + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC", "PYTHONDONTWRITEBYTECODE=1",
	}, env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("%s %s: %v", filepath.Base(path), strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// source is where a file of this package is.
func source(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// decode reads what a program has printed.
func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}
