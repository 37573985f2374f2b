package isolate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// child is a process that runs jobs, as its parent sees it.
type child struct {
	cmd         *exec.Cmd
	environment string // what it was started with
	out         *outbox
	messages    chan message  // closed when the child has ended and nothing more comes
	gone        chan struct{} // closed when it has ended and was waited for
	output      output

	mu      sync.Mutex
	reaped  bool
	dropped chan struct{} // closed when nobody listens any more

	jobs  int64
	spent time.Duration // CPU time of earlier jobs
	idle  *time.Timer
}

// starter starts children on one thread, since the kernel tells them of the death of the thread that started
// them, not of the process.
type starter struct {
	cmds chan *exec.Cmd
	errs chan error
	one  sync.Mutex // at a time
}

func newStarter() *starter {
	s := &starter{cmds: make(chan *exec.Cmd), errs: make(chan error)}
	go s.run()
	return s
}

// launch starts a child.
func (s *starter) launch(environment string) (*child, error) {
	path, err := program()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	var pipes pipes
	defer pipes.closeTheirs()
	for _, p := range []*pipe{&pipes.in, &pipes.out, &pipes.text} {
		if p.r, p.w, err = os.Pipe(); err != nil {
			pipes.closeOurs()
			return nil, fmt.Errorf("make pipe: %w", err)
		}
	}
	c := &child{
		environment: environment, out: newOutbox(), messages: make(chan message), gone: make(chan struct{}), dropped: make(chan struct{}),
		cmd: &exec.Cmd{
			Path: path, Args: []string{childName}, Env: strings.Split(environment, "\x00"), Dir: "/",
			Stdout: pipes.text.w, Stderr: pipes.text.w, ExtraFiles: []*os.File{pipes.in.r, pipes.out.w},
			SysProcAttr: attributes(),
		},
	}
	if err := s.start(c.cmd); err != nil {
		pipes.closeOurs()
		return nil, err
	}
	go c.out.run(pipes.in.w)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer pipes.text.r.Close()
		c.output.read(pipes.text.r)
	}()
	go func() {
		receive(pipes.out.r, func(m message) {
			select {
			case c.messages <- m:
			case <-c.dropped:
			}
		})
		_ = pipes.out.r.Close() // nothing was written
		c.reap()
		c.out.close()
		select {
		case <-read:
		case <-time.After(time.Second): // a process that has left the group still has the pipe
		}
		close(c.messages)
	}()
	return c, nil
}

func (s *starter) start(cmd *exec.Cmd) error {
	s.one.Lock()
	defer s.one.Unlock()
	s.cmds <- cmd
	return <-s.errs
}

// pipes connect a child: to it, from it, and its output.
type pipes struct{ in, out, text pipe }

type pipe struct{ r, w *os.File }

func (p *pipes) closeTheirs() { closeAll(p.in.r, p.out.w, p.text.w) }
func (p *pipes) closeOurs()   { closeAll(p.in.w, p.out.r, p.text.r) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // nothing was written
		}
	}
}

// kill ends the child, its descendants and all processes of its group.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped { // else the number may be another's
		killDescendants(c.cmd.Process.Pid)
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	}
}

// reap ends the child, which has closed its end of the pipe, if it has not ended itself.
func (c *child) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	killDescendants(c.cmd.Process.Pid)
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	_ = c.cmd.Wait() // what it says is in the ProcessState
	c.reaped = true
	close(c.gone)
}

// drop ends the child, of which nothing is wanted any more.
func (c *child) drop() {
	c.kill()
	close(c.dropped)
}

// cpu is what the child has taken of the processors; it has ended.
func (c *child) cpu() time.Duration {
	return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()
}

// death tells how the child has ended.
func (c *child) death() *Death {
	status, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	d := &Death{ExitCode: c.cmd.ProcessState.ExitCode(), Output: c.output.last()}
	if status.Signaled() {
		d.Signal = status.Signal()
	}
	// Go's runtime ends so if the system gives it no more.
	for line := range strings.Lines(d.Output) {
		if d.ExitCode == 2 && (strings.HasPrefix(line, "fatal error: runtime: out of memory") || strings.HasPrefix(line, "runtime: out of memory")) {
			d.OutOfMemory = true
		}
	}
	return d
}

// Death is how a child ended that did not end its job.
type Death struct {
	// Signal has killed it; 0: none has.
	Signal syscall.Signal
	// ExitCode is what it ended with, if no signal has killed it.
	ExitCode int
	// OutOfMemory: it had no more memory, or more than Job.Memory, or the kernel has killed it for that.
	OutOfMemory bool
	// Output has the last lines that it wrote.
	Output string
}

// Reason is Pulp's text.
func (d *Death) Reason() string {
	if d.Signal != 0 {
		return fmt.Sprintf("Killed by signal %d.", d.Signal)
	}
	return fmt.Sprintf("Task process died unexpectedly with exitcode %d.", d.ExitCode)
}

// output is what a child writes to its standard output and error.
type output struct {
	sink atomic.Pointer[func(line string)] // nil: nobody wants it

	mu    sync.Mutex
	lines []string
	ended chan struct{} // closed when all that a job has written is read
}

// begin forgets what was written before a job.
func (o *output) begin(sink *func(line string)) (ended <-chan struct{}) {
	o.sink.Store(sink)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines, o.ended = nil, make(chan struct{})
	return o.ended
}

// end notes that all is read.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended != nil {
		close(o.ended)
		o.ended = nil
	}
}

// Bounds of what is kept of the output.
const (
	lastLines = 40
	longLine  = 4 << 10 // bytes; the rest comes as another line
)

func (o *output) read(r io.Reader) {
	in := bufio.NewReaderSize(r, longLine)
	for {
		line, _, err := in.ReadLine()
		if err != nil {
			return
		}
		written, _, ended := strings.Cut(string(line), endMark)
		if ended && written == "" {
			o.end()
			continue
		}
		text := strings.ToValidUTF8(written, "�")
		o.mu.Lock()
		if o.lines = append(o.lines, text); len(o.lines) > lastLines {
			o.lines = o.lines[1:]
		}
		o.mu.Unlock()
		if sink := o.sink.Load(); sink != nil {
			(*sink)(text)
		}
		if ended {
			o.end()
		}
	}
}

func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n")
}

var errClosed = errors.New("the pool is closed")

// run starts what it is sent until the channel is closed. Its thread ends with it, so all children must have.
func (s *starter) run() {
	runtime.LockOSThread()
	for cmd := range s.cmds {
		s.errs <- cmd.Start()
	}
}
