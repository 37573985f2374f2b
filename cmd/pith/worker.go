package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

type workerCmd struct {
	Concurrency  int           `default:"1" help:"Tasks that run at the same time."`
	Auxiliary    bool          `help:"Only run tasks, without housekeeping."`
	Burst        bool          `help:"End when there is nothing left to do."`
	NameTemplate string        `default:"{pid}@{hostname}" help:"Name of the worker; {fqdn} is known too."`
	TTL          time.Duration `name:"ttl" default:"30s" help:"How long after a beat the worker counts as online."`
	WorkDir      string        `name:"work-dir" placeholder:"DIR" help:"Where tasks that run in processes of their own get their working directories. Default: the system's for temporary files."`
	Diagnostics  []string      `placeholder:"NAME" help:"Profiles to make of tasks whose dispatcher asks for them: memory, cpu, heap."`
	Grace        time.Duration `default:"600s" help:"How long tasks may go on after an interrupt; negative: without limit."`

	metricsFlags
}

// Run runs the command.
func (c workerCmd) Run(ctx context.Context, s *session) error {
	meter, pushed, err := s.meter(ctx, c.metricsFlags, "pulp-worker")
	if err != nil {
		return err
	}
	defer pushed()
	return s.work(ctx, tasking.Config{Diagnostics: c.Diagnostics}, worker.Config{
		Concurrency: c.Concurrency, Auxiliary: c.Auxiliary, Burst: c.Burst, NameTemplate: c.NameTemplate,
		TTL: c.TTL, Grace: c.Grace, WorkDir: c.WorkDir, Meter: meter,
	})
}

// work runs a worker until it ends. SIGTERM and SIGHUP let the running tasks end, SIGINT gives them
// the grace interval, a second signal aborts them, and a third one kills the process.
func (s *session) work(ctx context.Context, client tasking.Config, cfg worker.Config) (err error) {
	// Before anything else: a signal must not kill a worker that has claimed a task.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	ctx, interrupt := context.WithCancel(ctx)
	defer interrupt()

	if cfg.Grace == 0 {
		cfg.Grace = time.Nanosecond // the worker's own default is another
	}
	p, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if !errors.Is(err, worker.ErrStillRunning) { // their connections would be waited for
			p.Close()
		}
	}()
	c, err := s.newClient(p, client)
	if err != nil {
		return err
	}
	cfg.Versions, cfg.Log = builtin.Versions(), s.log
	w, err := worker.New(c, cfg)
	if err != nil {
		return usage("%v", err)
	}
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for n := 0; ; n++ {
			select {
			case sig := <-signals:
				s.log.Info("signal received", "signal", sig.String())
				switch {
				case n > 0:
					signal.Stop(signals) // the next one has its usual effect
					w.Abort()
				case sig == os.Interrupt:
					interrupt()
				default:
					w.Drain()
				}
			case <-ended:
				return
			}
		}
	}()
	err = w.Run(ctx)
	close(ended)
	<-watched
	return err
}

type workersCmd struct {
	Type    string `enum:"worker,api,content,all" default:"worker" help:"Processes to list: worker, api, content or all."`
	Online  bool   `xor:"online" help:"Only those that are online."`
	Missing bool   `xor:"online" help:"Only those that are missing and not swept yet."`
	Limit   int    `default:"100" help:"List no more than that."`
}

// Run runs the command.
func (c workersCmd) Run(ctx context.Context, s *session) error {
	if c.Limit < 1 {
		return usage("--limit must be positive")
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		list, err := c.list(ctx, client)
		if err != nil {
			return err
		}
		return s.print(list, func(w io.Writer) {
			row(w, "ID", "NAME", "TYPE", s.colored(plainColor, "STATE"), "BEAT", "UP", "TASKS", "VERSIONS")
			for _, a := range list {
				state := s.colored(32, "online")
				if !a.Online {
					state = s.colored(31, "missing")
				}
				var versions []string
				for _, label := range slices.Sorted(maps.Keys(a.Versions)) {
					versions = append(versions, label+"="+a.Versions[label])
				}
				row(w, a.ID.String(), a.Name, string(a.Type), state, ago(a.LastHeartbeat), span(time.Since(a.CreatedAt)),
					strconv.Itoa(a.Holding), orDash(strings.Join(versions, ",")))
			}
		})
	})
}

// listPage is how many rows are read at a time where some of them are left out.
const listPage = 500

func (c workersCmd) list(ctx context.Context, client *tasking.Client) ([]appstatus.Status, error) {
	kind := appstatus.Type(c.Type)
	if c.Type == "all" {
		kind = ""
	}
	list := []appstatus.Status{}
	for offset := 0; ; offset += listPage {
		rows, err := appstatus.List(ctx, client.Pool(), kind, listPage, offset)
		if err != nil {
			return nil, err
		}
		for _, a := range rows {
			if a.Online && c.Missing || !a.Online && c.Online {
				continue
			}
			if list = append(list, a); len(list) == c.Limit {
				return list, nil
			}
		}
		if len(rows) < listPage {
			return list, nil
		}
	}
}
