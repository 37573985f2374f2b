package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/sync/errgroup"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// Config configures a Demo.
type Config struct {
	// Dir is the directory of files, Out the manifest to write. Required.
	Dir, Out string
	// Client dispatches; its registry has Types. Required.
	Client *tasking.Client
	// Fleet are the worker processes; their names begin with their process number and an @. Required.
	Fleet *Fleet
	// Workers is the fleet's size.
	Workers int
	// AdminURL is the console of the pooler that Client and Fleet use. Default: there is none.
	AdminURL string
	// KillAWorker kills a worker in the middle.
	KillAWorker bool
	// Progress gets a line about each step. Default: none.
	Progress io.Writer
	// Bar is a terminal for a progress bar. Default: no bar.
	Bar io.Writer
}

// Demo is one run of the main job.
type Demo struct {
	cfg  Config
	temp string

	bar     *progressbar.ProgressBar
	console *console
	group   uuid.UUID
	// chunkOf tells what each digest task works on.
	chunkOf map[uuid.UUID]chunk
	// lingering is the task whose worker is to be killed; nil if none (any more).
	lingering *uuid.UUID
	// wasted counts the bytes digested by tasks whose worker died.
	wasted int64
	sum    Summary
}

// look is the pause between two looks at the progress.
const look = 200 * time.Millisecond

// rounds is how often the tasks of dead workers are dispatched again.
const rounds = 10

// CheckPaths tells whether Dir and the directory of Out exist, so that nothing need be started if not.
func (cfg Config) CheckPaths() error {
	for _, dir := range []string{cfg.Dir, filepath.Dir(cfg.Out)} {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("demo: %s is not a directory", dir)
		}
	}
	return nil
}

// New validates the configuration and changes nothing.
func New(cfg Config) (*Demo, error) {
	if cfg.Client == nil || cfg.Fleet == nil {
		return nil, errors.New("demo: Config.Client and Config.Fleet are required")
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	err := cfg.CheckPaths()
	if err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	// A walk does not follow a link, not even its start.
	if cfg.Dir, err = filepath.EvalSymlinks(cfg.Dir); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	if cfg.Out, err = filepath.Abs(cfg.Out); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return &Demo{cfg: cfg, chunkOf: map[uuid.UUID]chunk{}}, nil
}

func (d *Demo) say(format string, args ...any) {
	if d.bar != nil {
		_ = d.bar.Clear() // it is drawn again with the next look
	}
	fmt.Fprintf(d.cfg.Progress, format+"\n", args...)
}

// Run does the job and checks the manifest. When it returns no worker is left, and Out is either what
// it was before or the whole manifest.
func (d *Demo) Run(ctx context.Context) (Summary, error) {
	started := time.Now()
	temp, err := os.CreateTemp(filepath.Dir(d.cfg.Out), "."+filepath.Base(d.cfg.Out)+".*")
	if err != nil {
		return d.sum, fmt.Errorf("write manifest: %w", err)
	}
	d.temp = temp.Name()
	defer os.Remove(d.temp) // fails after the rename
	if err := errors.Join(temp.Chmod(0o644), temp.Close()); err != nil {
		return d.sum, fmt.Errorf("write manifest: %w", err)
	}

	files, skipped, err := walk(ctx, d.cfg.Dir, d.cfg.Out, d.temp)
	if err != nil {
		return d.sum, fmt.Errorf("walk %s: %w", d.cfg.Dir, err)
	}
	d.sum.Skipped = append([]Skipped{}, skipped...)
	d.sum.Manifest, d.sum.Workers = d.cfg.Out, d.cfg.Workers
	chunks := cut(d.cfg.Dir, files, d.cfg.Workers)
	d.say("%s: %d files, %s, in %d chunks", d.cfg.Dir, len(files), bytesText(totalBytes(chunks)), len(chunks))

	if d.cfg.AdminURL != "" {
		if d.console, err = openConsole(ctx, d.cfg.AdminURL, d.cfg.Client.Pool().Config().ConnConfig.Database); err != nil {
			return d.sum, err
		}
		defer d.console.close(ctx)
	}
	if err := d.withFleet(ctx, func(ctx context.Context) error { return d.work(ctx, chunks) }); err != nil {
		return d.sum, err
	}
	d.say("checking the manifest against the disk")
	d.sum.Check, err = check(ctx, d.cfg.Dir, d.cfg.Out, d.sum.Skipped, started, hashLimit)
	if err != nil {
		return d.sum, fmt.Errorf("check manifest: %w", err)
	}
	return d.sum, nil
}

// withFleet calls do while the workers run.
func (d *Demo) withFleet(ctx context.Context, do func(context.Context) error) error {
	parts, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	parts.Go(func() error { return d.cfg.Fleet.Run(ctx) })
	parts.Go(func() error {
		defer stop()
		return do(ctx)
	})
	return parts.Wait()
}

func totalBytes(chunks []chunk) int64 {
	var n int64
	for _, c := range chunks {
		n += c.bytes()
	}
	return n
}

// work dispatches everything, waits for its end, and does again what died with its worker.
func (d *Demo) work(ctx context.Context, chunks []chunk) (err error) {
	if err := d.online(ctx); err != nil {
		return err
	}
	if d.group, err = d.cfg.Client.NewGroup(ctx, "manifest of "+d.cfg.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// A database that is not ours must not keep tasks that nobody will ever run.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_, _ = d.cfg.Client.CancelGroup(last, d.group) // the first error is the one that counts
		}
	}()
	repository, err := uuid.NewV7()
	if err != nil {
		return err
	}
	resource := "prn:file.filerepository:" + repository.String()
	if total := totalBytes(chunks); d.cfg.Bar != nil && total > 0 {
		d.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(d.cfg.Bar), progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true), progressbar.OptionSetDescription("Digesting files"),
			progressbar.OptionThrottle(50*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30))
	}
	if d.cfg.KillAWorker && len(chunks) > 0 {
		chunks[len(chunks)/2].Linger = true
	}
	begun := time.Now()
	total := len(chunks)
	for round := 1; ; round++ {
		last, err := d.dispatch(ctx, resource, chunks, total)
		if err != nil {
			return err
		}
		if err := d.follow(ctx); err != nil {
			return err
		}
		done, again, err := d.review(ctx, last)
		if err != nil {
			return err
		}
		if done {
			break
		}
		if round == rounds {
			return fmt.Errorf("the workers of %d chunks died, %d times in a row", len(again), rounds)
		}
		d.say("dispatching again: %d of %d chunks, and a new manifest task after them", len(again), total)
		chunks = again
	}
	d.sum.Elapsed = time.Since(begun)
	if d.bar != nil {
		_ = d.bar.Finish() // only the picture is at stake
		d.bar = nil
	}
	return d.finish(ctx)
}

// online waits until every worker is online.
func (d *Demo) online(ctx context.Context) error {
	for {
		workers, err := d.workers(ctx)
		if err != nil {
			return err
		}
		pids := d.cfg.Fleet.PIDs()
		online := 0
		for _, pid := range workers {
			if slices.Contains(pids, pid) {
				online++
			}
		}
		if online >= d.cfg.Workers {
			d.say("%d workers are online, processes %s", online, strings.Trim(fmt.Sprint(pids), "[]"))
			return nil
		}
		if err := resend.Sleep(ctx, look/4); err != nil {
			return err
		}
	}
}

// workers returns the process number of each worker that is online, by its app status.
func (d *Demo) workers(ctx context.Context) (map[uuid.UUID]int, error) {
	list, err := appstatus.List(ctx, d.cfg.Client.Pool(), appstatus.Worker, 10*d.cfg.Workers+1000, 0)
	if err != nil {
		return nil, err
	}
	pids := map[uuid.UUID]int{}
	for _, w := range list {
		number, _, _ := strings.Cut(w.Name, "@")
		if pid, err := strconv.Atoi(number); err == nil && w.Online {
			pids[w.ID] = pid
		}
	}
	return pids, nil
}

// dispatchBatch bounds how many chunks travel in one statement.
const dispatchBatch = 200

// dispatch hands out chunks and, with the last of them, the manifest task, whose id it returns.
func (d *Demo) dispatch(ctx context.Context, resource string, chunks []chunk, total int) (uuid.UUID, error) {
	for {
		batch := chunks[:min(len(chunks), dispatchBatch)]
		chunks = chunks[len(batch):]
		var requests []tasking.Request
		for _, c := range batch {
			requests = append(requests, digestType.Request(c, tasking.Options{Shared: []string{resource}, Group: &d.group}))
		}
		if len(chunks) == 0 {
			requests = append(requests, manifestType.Request(order{Chunks: total, Out: d.cfg.Out, Temp: d.temp},
				tasking.Options{Exclusive: []string{resource}, Group: &d.group}))
		}
		tasks, err := d.cfg.Client.DispatchMany(ctx, requests)
		if err != nil {
			return uuid.Nil, err
		}
		for i, c := range batch {
			d.chunkOf[tasks[i].ID] = c
			if c.Linger {
				d.lingering = &tasks[i].ID
			}
		}
		if len(chunks) == 0 {
			return tasks[len(tasks)-1].ID, nil
		}
	}
}

// follow shows the progress until every task of the group is final.
func (d *Demo) follow(ctx context.Context) error {
	for {
		g, err := d.cfg.Client.GetGroup(ctx, d.group)
		if err != nil {
			return err
		}
		if d.console != nil {
			if err := d.console.look(ctx); err != nil {
				return err
			}
		}
		if d.bar != nil {
			done := -d.wasted
			for _, p := range g.Progress {
				if p.Code == progressCode {
					done += p.Done
				}
			}
			_ = d.bar.Set64(min(done, d.bar.GetMax64())) // only the picture is at stake
		}
		if g.Unfinished() == 0 {
			return nil
		}
		if d.lingering != nil {
			if err := d.kill(ctx); err != nil {
				return err
			}
		}
		if err := resend.Sleep(ctx, look); err != nil {
			return err
		}
	}
}

// kill kills the worker that runs the lingering task, once it does.
func (d *Demo) kill(ctx context.Context) error {
	t, err := d.cfg.Client.Get(ctx, *d.lingering)
	if err != nil || t.State != tasking.Running || t.Holder == nil {
		return err
	}
	workers, err := d.workers(ctx)
	if err != nil {
		return err
	}
	pid, ok := workers[*t.Holder]
	if !ok {
		return nil // it has lost its lease; the task is looked at again
	}
	d.lingering = nil
	if err := d.cfg.Fleet.Kill(pid); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill worker %d: %w", pid, err)
	}
	d.say("killed worker process %d with SIGKILL while it ran task %s", pid, t.ID)
	return nil
}

// review looks at how the tasks of the last round ended. It is done if the manifest task completed;
// otherwise the chunks whose workers died are to be done again. Any other failure is an error.
func (d *Demo) review(ctx context.Context, manifest uuid.UUID) (done bool, again []chunk, err error) {
	var last *tasking.Error
	err = d.eachTask(ctx, func(t tasking.Task) error {
		c, digesting := d.chunkOf[t.ID]
		missing := t.Error != nil && t.Error.Reason == tasking.ReasonMissing
		switch {
		case t.ID == manifest:
			done = t.State == tasking.Completed
			if !missing {
				last = t.Error
			}
		case !digesting || t.State == tasking.Completed:
		case !missing:
			return fmt.Errorf("task %s (%s) is %s: %w", t.ID, t.Name, t.State, cmp.Or(t.Error, &tasking.Error{Reason: "canceled"}))
		default:
			d.say("task %s is %s: %s", t.ID, t.State, t.Error)
			c.Linger = false
			again = append(again, c)
			delete(d.chunkOf, t.ID)
			d.sum.Lost = append(d.sum.Lost, t.ID)
			whole, err := d.cfg.Client.Get(ctx, t.ID)
			if err != nil {
				return err
			}
			for _, p := range whole.Progress {
				d.wasted += p.Done
			}
		}
		return nil
	})
	if err != nil || done {
		return done, nil, err
	}
	if len(again) == 0 && last != nil {
		return false, nil, fmt.Errorf("manifest task %s failed: %w", manifest, last)
	}
	if last != nil {
		d.say("manifest task %s failed: %s", manifest, last)
	}
	return false, again, nil
}

// eachTask calls visit with every task of the group.
func (d *Demo) eachTask(ctx context.Context, visit func(tasking.Task) error) error {
	filter := tasking.Filter{Group: &d.group, Limit: page}
	for {
		tasks, err := d.cfg.Client.List(ctx, filter)
		if err != nil {
			return err
		}
		for _, t := range tasks {
			if err := visit(t); err != nil {
				return err
			}
		}
		if len(tasks) < page {
			return nil
		}
		filter.Offset += page
	}
}

// finish closes the group and adds up what happened.
func (d *Demo) finish(ctx context.Context) error {
	if err := d.cfg.Client.CloseGroup(ctx, d.group); err != nil {
		return err
	}
	var digesting, publishing []time.Duration
	err := d.eachTask(ctx, func(t tasking.Task) error {
		d.sum.Tasks++
		if t.State == tasking.Completed {
			d.sum.Completed++
		} else {
			d.sum.Failed++
		}
		if t.UnblockedAt != nil && t.StartedAt != nil {
			waited := t.StartedAt.Sub(*t.UnblockedAt)
			if t.Name == manifestType.Name() {
				publishing = append(publishing, waited)
			} else {
				digesting = append(digesting, waited)
			}
		}
		if t.Name != manifestType.Name() || t.State != tasking.Completed {
			return nil
		}
		w, err := manifestType.Result(t)
		if err != nil {
			return err
		}
		d.sum.Files, d.sum.Bytes = w.Files, w.Bytes
		d.sum.Skipped = append(d.sum.Skipped, w.Skipped...)
		return nil
	})
	if err != nil {
		return err
	}
	d.sum.Group = d.group
	d.sum.Waited = latencies(digesting)
	d.sum.PickUp = latencies(publishing)
	d.sum.Killed = d.cfg.Fleet.Deaths()
	if d.console != nil {
		seen, err := d.console.sum(ctx)
		if err != nil {
			return err
		}
		d.sum.Pooler = &seen
	}
	return nil
}
