package isolate

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// childName is the first argument of a child, by which it knows what it is. It has no others.
const childName = "pith-task"

// The children's ends of the pipes.
const (
	inFD  = 3
	outFD = 4
)

var served atomic.Bool

// Served reports whether this process has called Serve, so that its children will.
func Served() bool { return served.Load() }

// Serve is the child's side. In a process that is no child it returns at once. In a child it runs jobs, one
// after the other, until the parent wants no more, and never returns. A program with a [Pool] calls it before it
// does anything else. run's context ends when the job is to stop; its cause has the text of the parent's.
func Serve(run func(ctx context.Context, p *Process, body json.RawMessage) json.RawMessage) {
	served.Store(true)
	if len(os.Args) != 1 || os.Args[0] != childName {
		return
	}
	// Processes that a job starts must not hold the pipes open.
	for _, fd := range []int{inFD, outFD} {
		syscall.CloseOnExec(fd)
		if err := syscall.SetNonblock(fd, true); err != nil {
			panic("isolate: the process was not started by a Pool")
		}
	}
	adopt()
	h := &host{out: newOutbox(), run: run, limit: math.MaxInt64, calls: map[int64]chan json.RawMessage{}}
	go h.out.run(os.NewFile(outFD, "to parent"))
	receive(os.NewFile(inFD, "from parent"), h.handle)
	die()
}

// die ends this process, its descendants and its whole group.
func die() {
	killDescendants(os.Getpid())
	_ = syscall.Kill(0, syscall.SIGKILL) // the group of the caller
	select {}                            // it has no time to return
}

// host is a child process.
type host struct {
	out *outbox
	run func(ctx context.Context, p *Process, body json.RawMessage) json.RawMessage

	mu    sync.Mutex
	job   int64
	stop  context.CancelCauseFunc // of the job; nil: there is none
	lease *time.Timer
	last  int64 // call
	calls map[int64]chan json.RawMessage
	spent time.Duration // by earlier jobs
	limit int64         // of the collector
}

// Process is this process, as a job sees it.
type Process struct {
	host *host
	job  int64
}

func (h *host) handle(m message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case m.Job != nil:
		ctx, stop := context.WithCancelCause(context.Background()) //nolint:forbidigo // a job is where a child's work begins
		h.job, h.stop = m.Of, stop
		h.prolong(m.Lease)
		go h.work(ctx, &Process{host: h, job: m.Of}, *m.Job)
	case m.Of != h.job || h.stop == nil: // too late
	case m.Lease != 0:
		h.prolong(m.Lease)
	case m.Stop != "":
		h.stop(errors.New(m.Stop))
	case m.Answer != nil:
		if c, ok := h.calls[m.Answer.ID]; ok {
			delete(h.calls, m.Answer.ID)
			c <- m.Answer.Body
		}
	}
}

// prolong has the process end at that time of the leaseClock, unless it is prolonged again; 0 is never.
func (h *host) prolong(until int64) {
	left := time.Duration(math.MaxInt64)
	if until != 0 {
		left = time.Duration(until - leaseClock())
	}
	if h.lease == nil {
		h.lease = time.AfterFunc(left, die)
	} else {
		h.lease.Reset(left)
	}
}

// work does one job.
func (h *host) work(ctx context.Context, p *Process, j start) {
	if err := os.Chdir(j.Dir); err != nil {
		h.end(p, end{Failed: "enter working directory: " + err.Error()})
		return
	}
	_ = os.Setenv("TMPDIR", j.Dir) // fails for names with zero bytes only
	limit := int64(math.MaxInt64)
	if j.Memory > 0 {
		limit = j.Memory / 10 * 9 // the collector works harder before the end
	}
	if limit != h.limit {
		debug.SetMemoryLimit(limit) // it stops all goroutines
		h.limit = limit
	}
	if j.Memory > 0 || memory(os.Getpid()) > freeAbove {
		debug.FreeOSMemory() // of earlier jobs
	}
	forgetPeak()
	// If the parent has not read that, the job has not begun, and another process may do it.
	h.out.write(message{Of: p.job, Began: true})
	body := h.run(ctx, p, j.Body)

	_ = os.Chdir("/") // the directory is about to go
	h.end(p, end{Body: body, Stray: stray()})
}

// end tells the parent that the job has ended.
func (h *host) end(p *Process, e end) {
	_, _ = syscall.Write(syscall.Stdout, []byte(endMark+"\n")) // its output, if it has not closed that
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stop(nil)
	h.stop = nil
	h.lease.Stop()
	spent := h.spent
	h.spent = cpuTime()
	e.Usage = Usage{PeakMemory: peakMemory(os.Getpid()), CPU: h.spent - spent}
	h.out.send(message{Of: p.job, End: &e})
}

// endMark stands in the output where that of a job ends.
const endMark = "\x00pith: the job has ended\x00"

// freeAbove is the memory, in bytes, above which a process gives back what earlier jobs have left.
const freeAbove = 64 << 20

// cpuTime is what this process has taken of the processors so far, and those that it has waited for.
func cpuTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// Call asks the parent, and waits for its answer or the end of ctx. Once the job has ended there is no answer.
func (p *Process) Call(ctx context.Context, name string, body json.RawMessage) (json.RawMessage, error) {
	h := p.host
	answer := make(chan json.RawMessage, 1)
	h.mu.Lock()
	h.last++
	id := h.last
	h.calls[id] = answer
	h.mu.Unlock()
	h.out.send(message{Of: p.job, Call: &call{ID: id, Name: name, Body: body}})
	select {
	case body := <-answer:
		return body, nil
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.calls, id)
		return nil, context.Cause(ctx)
	}
}

// Note tells the parent something, without an answer.
func (p *Process) Note(body json.RawMessage) { p.host.out.send(message{Of: p.job, Note: body}) }
