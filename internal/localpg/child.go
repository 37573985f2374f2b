package localpg

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// A child is a running program that dies with us.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited
	err  error         // how it exited; valid once done is closed
}

// spawn starts cmd as id. The kernel sends it deathSig when we die (on Linux).
//
// The kernel watches the thread that forked, not the process, so that thread is
// locked to a goroutine that lives until the child has exited.
func spawn(cmd *exec.Cmd, id identity, deathSig syscall.Signal) (*child, error) {
	cmd.SysProcAttr = childAttr(deathSig)
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Credential = id.credential()
	cmd.Env = childEnv()
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

// childEnv is the children's whole environment. Messages are in English because
// a few of them are matched; variables that steer PostgreSQL are kept out.
func childEnv() []string {
	env := []string{"LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, key := range []string{"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(key); ok {
			env = append(env, key+"="+v)
		}
	}
	return env
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) exited() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// end sends the signals one after the other, each followed by a wait of at most
// grace, until the child has exited. The last resort is SIGKILL.
func (c *child) end(grace time.Duration, signals ...syscall.Signal) {
	for _, sig := range append(signals, syscall.SIGKILL) {
		// The only possible failure is that it has exited already.
		_ = c.cmd.Process.Signal(sig)
		timer := time.NewTimer(grace)
		select {
		case <-c.done:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
	<-c.done
}

// runOnce runs a short-lived program as id to its end. The error carries the
// last lines of its output.
func runOnce(ctx context.Context, cmd *exec.Cmd, id identity) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	c, err := spawn(cmd, id, syscall.SIGKILL)
	if err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		c.end(time.Second)
		return fmt.Errorf("run %s: %w", cmd.Path, context.Cause(ctx))
	}
	if c.err != nil {
		return fmt.Errorf("run %s: %w%s", cmd.Path, c.err, lastLines(out.String()))
	}
	return nil
}

// awaitReady calls try until it succeeds, the child exits, or ctx ends.
func (c *child) awaitReady(ctx context.Context, try func(context.Context) error) error {
	delay := 4 * time.Millisecond
	for {
		err := try(ctx)
		if c.exited() {
			return fmt.Errorf("exited at once: %w", c.err)
		}
		if err == nil {
			return nil
		}
		timer := time.NewTimer(delay)
		select {
		case <-c.done:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("not ready: %w (last: %w)", context.Cause(ctx), err)
		case <-timer.C:
		}
		delay = min(2*delay, 100*time.Millisecond)
	}
}

// A logFile receives a child's output and shows its end in errors.
type logFile struct {
	path string
	from int64 // where the present run begins
}

// open opens the file for a new run of the child.
func (l *logFile) open() (*os.File, error) {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open log file: %w", err)
	}
	l.from = fi.Size()
	return f, nil
}

// text returns what the present run has written.
func (l *logFile) text() string {
	b, err := os.ReadFile(l.path)
	if err != nil || int64(len(b)) < l.from {
		return ""
	}
	return string(b[l.from:])
}

// lastLines returns the end of a program's output, to be put after an error.
func lastLines(s string) string {
	const most = 8
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	lines := strings.Split(s, "\n")
	if len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	return "; its last output:\n" + strings.Join(lines, "\n")
}
