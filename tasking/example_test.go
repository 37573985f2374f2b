package tasking_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// The README shows what stands between the markers.
func Example() {
	ctx := context.Background()
	// README begins
	digest := tasking.NewType("example.digest", func(_ context.Context, _ *tasking.Run, path string) (string, error) {
		data, err := os.ReadFile(path)
		return fmt.Sprintf("%x", sha256.Sum256(data)), err
	}, tasking.TypeConfig{})
	registry, _ := tasking.NewRegistry(digest) // a worker with this registry runs the task
	db, _ := pool.Open(ctx, os.Getenv("PITH_DATABASE_URL"), pool.Config{})
	client, _ := tasking.New(db, tasking.Config{Registry: registry})
	task, _ := client.Dispatch(ctx, digest.Request("/etc/hostname", tasking.Options{Shared: []string{"hosts"}}))
	done, _ := client.Wait(ctx, task.ID)
	sum, err := digest.Result(done[0])
	fmt.Println(sum, err)
	// README ends
}

// mirror stands for a task type of a program.
var mirror = tasking.NewType("example.sync", func(context.Context, *tasking.Run, string) (int, error) { return 0, nil },
	tasking.TypeConfig{MaxAttempts: 3, Backoff: 10 * time.Second})

// exampleClient is where the examples that need a database get their client from.
func exampleClient() *tasking.Client { return nil }

func ExampleNewType() {
	add := tasking.NewType("example.add", func(_ context.Context, _ *tasking.Run, n []int) (int, error) {
		sum := 0
		for _, i := range n {
			sum += i
		}
		return sum, nil
	}, tasking.TypeConfig{Immediate: true})
	r := add.Request([]int{1, 2, 3}, tasking.Options{Exclusive: []string{"the sum"}})
	fmt.Println(r.Name, r.Args, r.Exclusive)
	// Output: example.add [1 2 3] [the sum]
}

func ExampleType_Result() {
	add := tasking.NewType[[]int, int]("example.add", nil, tasking.TypeConfig{}) // run elsewhere
	sum, err := add.Result(tasking.Task{Name: "example.add", State: tasking.Completed, Result: json.RawMessage("6")})
	fmt.Println(sum, err)
	_, err = add.Result(tasking.Task{Name: "example.add", State: tasking.Failed, Error: &tasking.Error{Reason: tasking.ReasonMissing}})
	fmt.Println(err)
	// Output:
	// 6 <nil>
	// result of task 00000000-0000-0000-0000-000000000000: it is failed: Worker has gone missing.
}

func ExampleNewRegistry() {
	registry, err := tasking.NewRegistry(
		tasking.NewType("example.here", func(context.Context, *tasking.Run, string) (string, error) { return "", nil }, tasking.TypeConfig{}),
		tasking.NewType[string, string]("example.elsewhere", nil, tasking.TypeConfig{}),
	)
	fmt.Println(registry.Names(), registry.Runnable(), err)
	// Output: [example.elsewhere example.here] [example.here] <nil>
}

func ExampleRequest_UnmarshalJSON() {
	var r tasking.Request
	err := json.Unmarshal([]byte(`{"name": "example.sync", "args": "a", "exclusive_resources": ["repo"], "immediate": true, "deferred": false}`), &r)
	fmt.Println(r.Name, r.Exclusive, r.Immediate, r.NotDeferred, err)
	err = json.Unmarshal([]byte(`{"name": "example.sync", "exclusive": ["repo"]}`), &r)
	fmt.Println(err)
	// Output:
	// example.sync [repo] true true <nil>
	// json: unknown field "exclusive"
}

func ExampleVersionsSuffice() {
	have := map[string]string{"core": "3.117.0", "file": "3.117.0"}
	fmt.Println(tasking.VersionsSuffice(have, map[string]string{"core": "3.9"}))
	fmt.Println(tasking.VersionsSuffice(have, map[string]string{"core": "3.118.0.dev0"}))
	// Output:
	// true
	// false
}

func ExampleState_Final() {
	for _, s := range tasking.States {
		fmt.Println(s, s.Final())
	}
	// Output:
	// waiting false
	// running false
	// canceling false
	// completed true
	// failed true
	// canceled true
	// skipped true
}

func ExampleClient_Dispatch() {
	ctx, client := context.Background(), exampleClient()
	// Runs when nobody else has the repository, and not before midnight.
	d, err := client.Dispatch(ctx, mirror.Request("https://example.com/", tasking.Options{
		Exclusive: []string{"repository"}, Shared: []string{"remote"}, NotBefore: time.Now().Truncate(24 * time.Hour).Add(24 * time.Hour),
	}))
	fmt.Println(d.ID, d.State, err)
}

func ExampleClient_DispatchMany() {
	ctx, client := context.Background(), exampleClient()
	var requests []tasking.Request
	for i := range 1000 {
		requests = append(requests, mirror.Request(fmt.Sprint(i), tasking.Options{Shared: []string{"repository"}}))
	}
	ds, err := client.DispatchMany(ctx, requests) // all or none, in one statement
	fmt.Println(len(ds), err)
}

func ExampleClient_DispatchTx() {
	ctx, client := context.Background(), exampleClient()
	tx, err := client.Pool().Begin(ctx)
	if err != nil {
		return
	}
	defer func() { _ = tx.Rollback(ctx) }()
	// The task exists exactly if the program's own row does.
	if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", 1); err != nil {
		return
	}
	if _, err := client.DispatchTx(ctx, tx, mirror.Request("order 1", tasking.Options{})); err != nil {
		return
	}
	fmt.Println(tx.Commit(ctx))
}

func ExampleClient_CancelGroup() {
	ctx, client := context.Background(), exampleClient()
	group, err := client.NewGroup(ctx, "all mirrors")
	if err != nil {
		return
	}
	for _, url := range []string{"a", "b"} {
		if _, err := client.Dispatch(ctx, mirror.Request(url, tasking.Options{Group: &group})); err != nil {
			return
		}
	}
	n, err := client.CancelGroup(ctx, group)
	fmt.Println(n, err)
}

func ExampleClient_SaveSchedule() {
	ctx, client := context.Background(), exampleClient()
	s, err := client.SaveSchedule(ctx, tasking.Schedule{Name: "nightly", Task: mirror.Name(), Args: json.RawMessage(`"a"`), Cron: "30 4 * * *"})
	fmt.Println(s.Next, err)
}

func ExampleClient_Explain() {
	ctx, client := context.Background(), exampleClient()
	e, err := client.Explain(ctx, uuid.MustParse("018f0000-0000-7000-8000-000000000000"))
	fmt.Println(e.Why, err) // It waits for repository (exclusive, 3 ahead), held by …
}

func ExampleClient_Purge() {
	ctx, client := context.Background(), exampleClient()
	n, err := client.Purge(ctx, time.Now().AddDate(0, -1, 0), tasking.Completed, tasking.Canceled)
	fmt.Println(n, err)
}

func ExampleRun_Progress() {
	tasking.NewType("example.count", func(ctx context.Context, run *tasking.Run, lines []string) (any, error) {
		p, err := run.Progress(ctx, "Counting lines", "count.lines", int64(len(lines)), "")
		if err != nil {
			return nil, err
		}
		for range lines {
			if err := p.Add(ctx, 1); err != nil { // saved every two seconds
				return nil, err
			}
		}
		return nil, p.Complete(ctx)
	}, tasking.TypeConfig{})
}

func ExampleRun_Dispatch() {
	tasking.NewType("example.all", func(ctx context.Context, run *tasking.Run, repos []string) (any, error) {
		for _, repo := range repos { // children of this task, in its group, under its correlation id
			if _, err := run.Dispatch(ctx, mirror.Request(repo, tasking.Options{Exclusive: []string{repo}})); err != nil {
				return nil, err
			}
		}
		return nil, run.AddCreatedResource(ctx, "prn:file.filerepository:018f0000-0000-7000-8000-000000000000")
	}, tasking.TypeConfig{})
}

// A program whose registry has isolated types calls RunChild before anything else.
func ExampleRunChild() {
	thumbnail := tasking.NewType("example.thumbnail", func(_ context.Context, run *tasking.Run, image string) (string, error) {
		// The working directory is the task's own, and so is what a library that it calls does to the process.
		run.Log.Info("shrinking", "image", image)
		return image + ".small", nil
	}, tasking.TypeConfig{Isolated: &tasking.Isolation{Memory: 512 << 20, Time: time.Minute, Env: []string{"MAGICK_HOME"}}})
	registry, err := tasking.NewRegistry(thumbnail)
	fmt.Println(registry.Isolated(), err)
	tasking.RunChild(registry) // in a child of a worker it does not return
	// Then a worker may run: worker.New(client, worker.Config{Concurrency: 100})
	// Output: [example.thumbnail] <nil>
}

func ExampleRun_Token() {
	_ = tasking.NewType("example.upload", func(ctx context.Context, run *tasking.Run, url string) (any, error) {
		token, err := run.Token(ctx) // fails if the task is not held any more
		if err != nil {
			return nil, err
		}
		// A store that refuses what comes with a smaller token than it has seen is safe from a worker that was
		// stopped for long and goes on.
		return nil, putIfNewer(ctx, url, token)
	}, tasking.TypeConfig{})
}

// putIfNewer stands for a request to an outside system.
func putIfNewer(context.Context, string, int64) error { return nil }
