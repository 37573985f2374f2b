package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/tasking"
)

// apiConns is the pool of a process of the API.
const apiConns = 10

// Users of the REST API.
const (
	admin    = "admin"
	ownsAll  = "all"  // owns all tasks but those of the next one
	ownsSome = "some" // owns someTasks, which are as far from each other as can be
	password = "password"
)

const (
	someTasks    = 100
	waitingTasks = 100
	// failedShare of the tasks is 1.
	failedShare = 1000
)

// An apiCall is a request of the REST API that is measured.
type apiCall struct {
	name, user, path string
	// most is how much longer it may take with the most tasks than with the fewest; 0: no target.
	most float64
}

// apiCalls are what is asked. Pages have 100 tasks.
var apiCalls = []apiCall{
	{name: "one task", user: admin, path: oneTask, most: 2},
	{name: "page", user: admin, path: "tasks/"},
	{name: "waiting", user: admin, path: "tasks/?state=waiting", most: 2},
	{name: "failed", user: admin, path: "tasks/?state=failed"},
	{name: "page in the middle", user: admin, path: "tasks/?offset=" + middleOffset},
	{name: "by finished_at", user: admin, path: "tasks/?ordering=-finished_at"},
	{name: "by name", user: admin, path: "tasks/?name=" + workload.TaskName},
	{name: "who owns 100", user: ownsSome, path: "tasks/", most: 2},
	{name: "who owns all", user: ownsAll, path: "tasks/"},
}

// What stands in the paths of calls for what depends on the database.
const (
	oneTask      = "ONE"
	middleOffset = "MIDDLE"
)

// figure is the column of a call.
func (c apiCall) figure() column { return own(c.name + ", ms") }

// lists has a client ask a process of the API with few and with many tasks.
func lists(pace pace) []contest {
	few, many := pace.size(1000, 300), pace.size(1_000_000, 3000)
	c := contest{name: "one client", latency: noLatency, reference: tasksOf(few)}
	for _, n := range []int{few, many} {
		c.contestants = append(c.contestants, contestant{
			name: tasksOf(n), fill: ownedTasks, backlog: n, stock: true, drive: asksAPI,
			window: 10 * pace.window,
		})
	}
	for _, call := range apiCalls {
		if call.most > 0 {
			c.targets = append(c.targets, target{of: tasksOf(many), figure: call.figure(), against: tasksOf(few), most: call.most})
		}
	}
	return []contest{c}
}

func tasksOf(n int) string { return fmt.Sprintf("%d tasks", n) }

// listColumns has one for each call.
func listColumns() (all []column) {
	for _, c := range apiCalls {
		all = append(all, c.figure())
	}
	return all
}

// ownedTasks are tasks that are over, but for waitingTasks, and belong to users of the API.
var ownedTasks = filling{"tasks of users, finished", func(ctx context.Context, p *pgxpool.Pool, n int) error {
	owners := map[string]int{}
	for _, name := range []string{admin, ownsAll, ownsSome} {
		if _, err := api.AddUser(ctx, p, name, password, name == admin); err != nil {
			return err
		}
		var id int
		if err := p.QueryRow(ctx, "SELECT id FROM auth_user WHERE username = $1", name).Scan(&id); err != nil {
			return err
		}
		owners[name] = id
	}
	c, err := workload.NewClient(p, workload.Nothing, tasking.Config{})
	if err != nil {
		return err
	}
	err = workload.Fill(ctx, c, n, func(i int) tasking.Options {
		owner := ownsAll
		if i%max(n/someTasks, 1) == 0 {
			owner = ownsSome
		}
		return tasking.Options{Owner: owners[owner]}
	}, nil)
	if err != nil {
		return err
	}
	// They end as they would have, but in one statement.
	done, err := p.Exec(ctx, `UPDATE task SET attempt = 1, started_at = clock_timestamp(), finished_at = clock_timestamp(),
			state = (CASE WHEN t.place % $2 = 0 THEN 'failed' ELSE 'completed' END)::task_state,
			error = CASE WHEN t.place % $2 = 0 THEN '{"reason": "as arranged"}'::json END
		FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM task ORDER BY id LIMIT (SELECT count(*) - $1 FROM task)) t
		WHERE task.id = t.id`, waitingTasks, failedShare)
	if err == nil && done.RowsAffected() != int64(n-waitingTasks) {
		err = fmt.Errorf("%d of %d tasks have ended", done.RowsAffected(), n-waitingTasks)
	}
	return err
}}

// asksAPI serves the API and asks it, one call at a time, in an order that changes.
func asksAPI(ctx context.Context, t *trial) error {
	p, err := t.open(ctx, apiConns)
	if err != nil {
		return err
	}
	var one uuid.UUID
	if err := p.QueryRow(ctx, "SELECT id FROM task WHERE state = 'completed' LIMIT 1").Scan(&one); err != nil {
		return err
	}
	server, err := api.New(p, func(app *appstatus.App) (*tasking.Client, error) {
		return workload.NewClient(p, workload.Nothing, tasking.Config{App: app})
	}, api.Config{Version: "0"})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// It serves until the client has ended.
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	var parts errgroup.Group
	parts.Go(func() error { return server.Run(serving, listener) })
	parts.Go(func() error {
		defer end()
		base := "http://" + listener.Addr().String() + "/pulp/api/v3/"
		return askInTurn(ctx, t, func(c apiCall) string {
			switch c.path {
			case oneTask:
				return base + "tasks/" + one.String() + "/"
			case "tasks/?offset=" + middleOffset:
				return base + fmt.Sprintf("tasks/?offset=%d", t.contestant.backlog/2)
			}
			return base + c.path
		})
	})
	return parts.Wait()
}

// askInTurn asks until ctx ends, and reports the median time of each call since the first of all.
func askInTurn(ctx context.Context, t *trial, url func(apiCall) string) error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	took := map[string][]float64{}
	for ctx.Err() == nil {
		for _, i := range rand.Perm(len(apiCalls)) {
			c := apiCalls[i]
			began := time.Now()
			// One that is under way is let finish.
			if err := ask(context.WithoutCancel(ctx), client, url(c), c.user); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			took[c.name] = append(took[c.name], time.Since(began).Seconds()*1e3)
			t.Done(1)
		}
	}
	for _, c := range apiCalls {
		t.report(c.figure().title, middle(took[c.name]))
	}
	return nil
}

func ask(ctx context.Context, client *http.Client, url, user string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth(user, password)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s", res.Status)
	}
	return err
}
