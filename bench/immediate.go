package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// apiCommand makes this program a process that dispatches immediate tasks, as an API does.
//
//	bench api-process URL RESOURCES
//
// It prints a line of JSON several times per second, an apiReport of what it has done since the last one,
// and ends with its standard input.
const apiCommand = "api-process"

const (
	apiProcesses  = 10
	apiGoroutines = 8 // in each process
	apiInterval   = 50 * time.Millisecond
)

// An apiReport is what a process has done since its last one.
type apiReport struct {
	Tasks      int             `json:"tasks"`
	Statements int             `json:"statements"`
	Latencies  []time.Duration `json:"latencies"`
}

// immediates has many processes dispatch immediate tasks, which run where they are dispatched.
func immediates(pace pace) []contest {
	processes := pace.size(apiProcesses, 2)
	const plain, resource = "no resources", "one resource each"
	c := contest{
		name: fmt.Sprintf("%d processes, %d goroutines each", processes, apiGoroutines), latency: "dispatch and run", reference: plain,
		contestants: []contestant{
			{name: plain, drive: apiFleet(processes, 0), recorded: pithCompleted, warmUp: 2 * pace.warmUp},
			{name: resource, drive: apiFleet(processes, resources), recorded: pithCompleted, warmUp: 2 * pace.warmUp},
		},
	}
	for _, one := range c.contestants {
		c.targets = append(c.targets, target{of: one.name, figure: tasksPerSecond, least: 3000})
	}
	return []contest{c}
}

// apiFleet runs so many processes, whose tasks take one of so many resources (0: none).
func apiFleet(processes, resources int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		all, ctx := errgroup.WithContext(ctx)
		for range processes {
			all.Go(func() error { return apiProcess(ctx, t, resources) })
		}
		return all.Wait()
	}
}

// apiProcess runs one until ctx ends, and passes on what it reports.
func apiProcess(ctx context.Context, t *trial, resources int) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start %s: %w", apiCommand, err)
	}
	cmd := exec.Command(self, apiCommand, t.url, fmt.Sprint(resources))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", apiCommand, err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", apiCommand, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", apiCommand, err)
	}
	t.clientProcess(cmd.Process.Pid)
	unhook := context.AfterFunc(ctx, func() { _ = stdin.Close() })
	defer unhook()
	var failure error
	for reports := json.NewDecoder(bufio.NewReader(stdout)); ; {
		var r apiReport
		if err := reports.Decode(&r); err != nil {
			if !errors.Is(err, io.EOF) {
				failure = fmt.Errorf("read from %s: %w", apiCommand, err)
			}
			break
		}
		t.Took(r.Latencies...)
		t.AddStatements(r.Statements)
		t.Done(r.Tasks)
	}
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		failure = errors.Join(failure, fmt.Errorf("%s: %w", apiCommand, err))
	}
	return failure
}

// serveAPI is what such a process runs.
func serveAPI(ctx context.Context, url string, resources int, stdin io.Reader, stdout io.Writer) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		end()
	}()
	var m workload.Meter
	p, err := pool.Open(ctx, url, pool.Config{MaxConns: apiGoroutines, Tracer: m.Tracer(false)})
	if err != nil {
		return err
	}
	defer p.Close()
	app, err := appstatus.New(p, appstatus.Config{Type: appstatus.API})
	if err != nil {
		return err
	}
	c, err := workload.NewClient(p, workload.Nothing, tasking.Config{App: app})
	if err != nil {
		return err
	}
	if err := app.Register(ctx); err != nil {
		return err
	}
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	beats := make(chan error, 1)
	go func() { beats <- app.Run(beating) }()
	err = dispatchImmediate(ctx, c, &m, resources, stdout)
	stopBeating()
	return errors.Join(err, <-beats, app.Unregister(context.WithoutCancel(ctx)))
}

// dispatchImmediate dispatches until ctx ends, and reports.
func dispatchImmediate(ctx context.Context, c *tasking.Client, m *workload.Meter, resources int, stdout io.Writer) error {
	all, dispatching := errgroup.WithContext(ctx)
	for range apiGoroutines {
		all.Go(func() error {
			for dispatching.Err() == nil {
				request := workload.Requests(0, 1, nil)[0]
				// One whose resource is taken would be left to workers, and there are none.
				request.Immediate, request.NotDeferred = true, true
				if resources > 0 {
					request.Exclusive = workload.InTurn(resources)(rand.IntN(resources)).Exclusive
				}
				start := time.Now()
				// One that is under way is let finish.
				done, err := c.Dispatch(context.WithoutCancel(ctx), request)
				if err != nil {
					return err
				}
				if done.State == tasking.Completed {
					m.Took(time.Since(start))
					m.Done(1)
				}
			}
			return nil
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- all.Wait() }()
	out := json.NewEncoder(stdout)
	var told workload.Counts
	tell := func() error {
		now := m.Counts()
		r := apiReport{Tasks: now.Tasks - told.Tasks, Statements: now.Statements - told.Statements, Latencies: m.Latencies(told, now)}
		told = now
		return out.Encode(r)
	}
	timer := time.NewTicker(apiInterval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if err := tell(); err != nil {
				return err
			}
		case err := <-ended:
			return errors.Join(err, tell())
		}
	}
}
