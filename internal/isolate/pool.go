package isolate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config configures a Pool. All fields may be left out.
type Config struct {
	// Dir is where the jobs' directories are made. Default: os.TempDir().
	Dir string
}

// Pool runs jobs in child processes of this program. It may be used by many goroutines.
type Pool struct {
	cfg   Config
	start *starter
	work  workDir

	mu     sync.Mutex
	idle   map[string][]*child // by environment
	all    map[*child]int64    // the number of its job; 0: it has none
	lease  time.Time
	closed bool
	ended  sync.WaitGroup // of children

	launching sync.WaitGroup
	ooms      int64 // that the kernel has killed before the last death
}

// New makes a pool, which starts nothing before its first job. Close must follow.
func New(cfg Config) *Pool {
	if cfg.Dir == "" {
		cfg.Dir = os.TempDir()
	}
	if dir, err := filepath.Abs(cfg.Dir); err == nil { // children have another working directory
		cfg.Dir = dir
	}
	return &Pool{cfg: cfg, work: workDir{base: cfg.Dir}, idle: map[string][]*child{}, all: map[*child]int64{}, ooms: oomKills()}
}

// ErrOverTime is why the context of a job ends whose time limit is over.
var ErrOverTime = errors.New("time limit is over")

// Job is what a child is to do.
type Job struct {
	// Body is given to the child's function.
	Body json.RawMessage
	// Name of the job's directory; letters, digits, dots and dashes. Required.
	Name string
	// Memory is how many bytes the process may have resident. Default: no limit.
	Memory int64
	// Time is how long the job may take. Default: no limit.
	Time time.Duration
	// Lost has the process killed at once when it is closed, whatever it was granted before. Default: it never is.
	Lost <-chan struct{}
	// Grace is how long the job may go on after its context has ended for that reason, before its process
	// is killed. Default: not at all.
	Grace func(cause error) time.Duration
	// Env names variables of the environment that the process gets, beside those that are harmless.
	Env []string
	// Answer serves the job's calls. Many goroutines may call it; their context ends with the job's process.
	// Default: calls get no answer.
	Answer func(ctx context.Context, name string, body json.RawMessage) json.RawMessage
	// Note gets the job's notes, in order, if it is there. One that waits holds up nothing but the end of Do.
	Note func(body json.RawMessage)
	// Output gets each line that the process writes to its standard output and error, if it is there.
	Output func(line string)
}

// Result is what came of a job.
type Result struct {
	// Body is what the child's function has returned; nil if the process died.
	Body json.RawMessage
	// Death is how it died; nil if it did not.
	Death *Death
	// OverTime: the time limit came first.
	OverTime bool
	Usage    Usage
}

const (
	// idleFor is how long a child waits for another job.
	idleFor = time.Minute
	// retireAbove is the memory, in bytes, of a job whose process is not used again: it would keep it.
	retireAbove = 256 << 20
	// limitEvery is the time between two looks at the memory of a process that has a limit, and peakEvery of
	// one that has none: what it had at the last look is what is known if it dies.
	limitEvery = 20 * time.Millisecond
	peakEvery  = time.Second
)

// Extend tells until when jobs may run. What runs longer ends itself, whatever this process does meanwhile. A
// zero time is no lease at all.
func (p *Pool) Extend(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lease = until
	for c, job := range p.all {
		if job != 0 {
			c.out.send(message{Of: job, Lease: p.leaseEnd()})
		}
	}
}

// leaseEnd is the end of the lease on the leaseClock.
func (p *Pool) leaseEnd() int64 {
	if p.lease.IsZero() {
		return 0
	}
	return leaseClock() + int64(time.Until(p.lease))
}

// Do runs a job and answers what came of it. When ctx ends, the job is told, and killed after Job.Grace. An error
// means that the job was not begun.
func (p *Pool) Do(ctx context.Context, j Job) (Result, error) {
	if err := context.Cause(ctx); err != nil {
		return Result{}, err
	}
	dir, err := p.work.make(j.Name)
	if err != nil {
		return Result{}, fmt.Errorf("make working directory: %w", err)
	}
	defer p.work.remove(dir)
	for {
		c, fresh, err := p.take(j)
		if err != nil {
			return Result{}, fmt.Errorf("start child process: %w", err)
		}
		r, began, err := p.run(ctx, c, j, dir)
		if err != nil || began || fresh || context.Cause(ctx) != nil {
			return r, err
		}
		// Somebody killed it while it had nothing to do.
	}
}

// take finds an idle child, or starts one.
func (p *Pool) take(j Job) (c *child, fresh bool, err error) {
	environment := environ(j.Env)
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && c == nil {
		idle := p.idle[environment]
		if len(idle) == 0 {
			break
		}
		c = idle[len(idle)-1]
		p.idle[environment] = idle[:len(idle)-1]
		c.idle.Stop()
		if j.Memory > 0 && memory(c.cmd.Process.Pid) > j.Memory/2 {
			delete(p.all, c) // what an earlier job has left there would count
			c.drop()
			c = nil
		}
	}
	if c == nil && !p.closed {
		if p.start == nil {
			p.start = newStarter()
		}
		start := p.start
		p.launching.Add(1)
		p.mu.Unlock() // it takes a while, and leases must be prolonged
		c, err = start.launch(environment)
		p.mu.Lock()
		p.launching.Done()
		if err != nil {
			return nil, false, err
		}
		fresh = true
		p.ended.Go(func() { <-c.gone })
	}
	if p.closed {
		if fresh {
			c.drop()
		}
		return nil, false, errClosed
	}
	c.jobs++
	p.all[c] = c.jobs
	return c, fresh, nil
}

// give makes a child idle, for the next job, or lets it go.
func (p *Pool) give(c *child, healthy bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !healthy || p.closed {
		if _, ok := p.all[c]; ok {
			delete(p.all, c)
			c.drop()
		}
		return
	}
	p.all[c] = 0
	p.idle[c.environment] = append(p.idle[c.environment], c)
	c.idle = time.AfterFunc(idleFor, func() { p.expire(c) })
}

func (p *Pool) expire(c *child) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.idle[c.environment], c); i >= 0 {
		p.idle[c.environment] = slices.Delete(p.idle[c.environment], i, i+1)
		delete(p.all, c)
		c.drop()
	}
}

// run has a child do a job; began tells whether the child has begun it.
func (p *Pool) run(ctx context.Context, c *child, j Job, dir string) (r Result, began bool, err error) {
	of := c.jobs
	var sink *func(string)
	if j.Output != nil {
		sink = &j.Output
	}
	written := c.output.begin(sink)
	defer c.output.sink.Store(nil)
	p.mu.Lock()
	c.out.send(message{Of: of, Job: &start{Body: j.Body, Dir: dir, Memory: j.Memory}, Lease: p.leaseEnd()})
	p.mu.Unlock()

	answering, stop := context.WithCancel(context.WithoutCancel(ctx))
	var answers sync.WaitGroup
	defer answers.Wait() // what it has asked for is not under way when the job is over
	defer stop()
	notes := newMailbox(j.Note)
	defer notes.close()

	every := peakEvery
	if j.Memory > 0 {
		every = limitEvery
	}
	look := time.NewTicker(every)
	defer look.Stop()
	var limit <-chan time.Time
	if j.Time > 0 {
		t := time.NewTimer(j.Time)
		defer t.Stop()
		limit = t.C
	}
	var (
		kill   <-chan time.Time
		ended  = ctx.Done()
		lost   = j.Lost
		peak   int64
		toobig bool
		told   bool
	)
	end := func(cause error) {
		ended, limit, told = nil, nil, true
		var grace time.Duration
		if j.Grace != nil {
			grace = j.Grace(cause)
		}
		if grace <= 0 {
			peak = max(peak, peakMemory(c.cmd.Process.Pid))
			c.kill()
			return
		}
		c.out.send(message{Of: of, Stop: cause.Error()})
		kill = time.After(grace)
	}
	for {
		select {
		case m, ok := <-c.messages:
			if !ok {
				p.give(c, false)
				r.Death = c.death()
				r.Death.OutOfMemory = r.Death.OutOfMemory || toobig || p.oomKilled() && r.Death.Signal == syscall.SIGKILL && !told
				r.Usage = Usage{PeakMemory: peak, CPU: c.cpu() - c.spent}
				return r, began, nil
			}
			switch {
			case m.Of != of:
			case m.Began:
				began = true
			case m.Note != nil:
				notes.put(m.Note)
			case m.Call != nil && j.Answer == nil: // nobody answers
			case m.Call != nil:
				answers.Go(func() {
					body := j.Answer(answering, m.Call.Name, m.Call.Body)
					c.out.send(message{Of: of, Answer: &answer{ID: m.Call.ID, Body: body}})
				})
			case m.End != nil:
				r.Body, r.Usage = m.End.Body, m.End.Usage
				c.spent += r.Usage.CPU
				select {
				case <-written:
				case <-time.After(time.Second): // it has closed its output
				}
				if m.End.Failed != "" {
					err = errors.New(m.End.Failed)
				}
				// One that was told to stop may have left something that has not heard it.
				p.give(c, !told && !m.End.Stray && r.Usage.PeakMemory <= retireAbove)
				return r, true, err
			}
		case <-ended:
			end(context.Cause(ctx))
		case <-lost:
			lost, told = nil, true
			c.kill()
		case <-limit:
			r.OverTime = true
			end(ErrOverTime)
		case <-kill:
			peak = max(peak, peakMemory(c.cmd.Process.Pid))
			c.kill()
		case <-look.C:
			if !began {
				continue // what it has is of earlier jobs
			}
			peak = max(peak, peakMemory(c.cmd.Process.Pid))
			if j.Memory > 0 && memory(c.cmd.Process.Pid) > j.Memory {
				toobig = true
				c.kill()
			}
		}
	}
}

// oomKilled reports whether the kernel has killed somebody for want of memory since it was last asked.
func (p *Pool) oomKilled() bool {
	n := oomKills()
	p.mu.Lock()
	defer p.mu.Unlock()
	more := n > p.ooms
	p.ooms = n
	return more
}

// Close kills all children, and waits for them.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for c := range p.all {
		if c.idle != nil {
			c.idle.Stop()
		}
		c.drop()
	}
	clear(p.all)
	clear(p.idle)
	start := p.start
	p.start = nil
	p.mu.Unlock()
	p.launching.Wait()
	p.ended.Wait()
	if start != nil {
		close(start.cmds)
	}
	p.work.close()
}

// mailbox hands notes on, one after the other, without making the one wait who puts them in.
type mailbox struct {
	take func(json.RawMessage)

	mu    sync.Mutex
	queue []json.RawMessage
	busy  bool
	idle  sync.WaitGroup
}

// newMailbox makes one for take, nil: nobody wants them.
func newMailbox(take func(json.RawMessage)) *mailbox { return &mailbox{take: take} }

func (m *mailbox) put(note json.RawMessage) {
	if m.take == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = append(m.queue, note)
	if !m.busy {
		m.busy = true
		m.idle.Go(m.empty)
	}
}

func (m *mailbox) empty() {
	for {
		m.mu.Lock()
		queue := m.queue
		m.queue = nil
		m.busy = len(queue) > 0
		m.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		for _, note := range queue {
			m.take(note)
		}
	}
}

// close waits until all are handed on.
func (m *mailbox) close() { m.idle.Wait() }

// harmless are the variables of the environment that each child gets: those that hold no secrets, and without
// which programs and libraries don't do what is expected.
var harmless = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "LC_COLLATE",
	"LC_NUMERIC", "LC_TIME", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "GODEBUG", "GOGC", "GOMAXPROCS", "GOTRACEBACK", "GOCOVERDIR",
}

// environ is the environment of a child, its variables parted by zero bytes.
func environ(more []string) string {
	var out []string
	for _, name := range append(slices.Clone(harmless), more...) {
		if value, ok := os.LookupEnv(name); ok { //nolint:forbidigo // it is passed on, not read
			out = append(out, name+"="+value)
		}
	}
	return strings.Join(out, "\x00")
}
