package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/internal/resend"
)

// stopPause is how long a process may take to follow a signal before a stronger one is sent.
const stopPause = 3 * time.Second

// FleetConfig describes a number of equal processes.
type FleetConfig struct {
	// Size is the number of processes, at least 1.
	Size int
	// Command makes the command of one process.
	Command func() *exec.Cmd
	// Log gets a line when a process dies. Default: none.
	Log *slog.Logger
}

// Fleet keeps a number of processes running. One that was killed is replaced. On Linux all of them
// die with this process, whatever ends it.
type Fleet struct {
	cfg FleetConfig

	mu        sync.Mutex
	processes []*os.Process
	deaths    int
}

// NewFleet validates the configuration and starts nothing.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	if cfg.Size < 1 || cfg.Size > 1000 {
		return nil, fmt.Errorf("%d workers: must be 1 to 1000", cfg.Size)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Fleet{cfg: cfg}, nil
}

// PIDs lists the processes that run now, oldest first.
func (f *Fleet) PIDs() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	var pids []int
	for _, p := range f.processes {
		pids = append(pids, p.Pid)
	}
	return pids
}

// Deaths counts the processes that were killed and replaced.
func (f *Fleet) Deaths() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.deaths
}

// Kill kills one of the processes as a crash would.
func (f *Fleet) Kill(pid int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.processes {
		if p.Pid == pid {
			return p.Kill()
		}
	}
	return os.ErrProcessDone
}

// Run starts the processes and keeps them running until ctx ends; then it stops them, with force
// where asking does not help, and waits for them. A process that ends by itself is an error.
func (f *Fleet) Run(ctx context.Context) error {
	slots, ctx := errgroup.WithContext(ctx)
	for range f.cfg.Size {
		slots.Go(func() error {
			// The kernel watches the thread that forked, not the process, so it must live as long.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for n := 1; ctx.Err() == nil; n++ {
				if err := f.one(ctx); err != nil {
					return err
				}
				_ = resend.Sleep(ctx, resend.Backoff(n)) // ctx is looked at next
			}
			return nil
		})
	}
	return slots.Wait()
}

// one runs one process until it was killed, or ctx ends.
func (f *Fleet) one(ctx context.Context) error {
	cmd := f.cfg.Command()
	cmd.SysProcAttr = childAttr()
	// A terminal's interrupt is ours to handle.
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	f.mu.Lock()
	f.processes = append(f.processes, cmd.Process)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.processes = slices.DeleteFunc(f.processes, func(p *os.Process) bool { return p == cmd.Process })
	}()
	var status error
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		status = cmd.Wait()
	}()
	select {
	case <-exited:
		return f.died(cmd.Process.Pid, status)
	case <-ctx.Done():
	}
	// The first asks to stop, the second to stop at once.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGKILL} {
		_ = cmd.Process.Signal(sig) // fails only if it has exited
		if wait(exited, stopPause) {
			return nil
		}
	}
	<-exited
	return nil
}

// died judges the end of a process that was not asked to end: only being killed is no error.
func (f *Fleet) died(pid int, status error) error {
	if exit, ok := errors.AsType[*exec.ExitError](status); ok {
		if how, ok := exit.Sys().(syscall.WaitStatus); ok && how.Signaled() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.deaths++
			f.cfg.Log.Warn("worker was killed, starting another one", "pid", pid, "signal", how.Signal().String())
			return nil
		}
	}
	if status == nil {
		status = errors.New("exit status 0")
	}
	return fmt.Errorf("worker process %d ended: %w", pid, status)
}

func wait(done <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
