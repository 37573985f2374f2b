package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"

	"github.com/pithworks/pith/chaos/witness"
)

// member is a process of the fleet, and its successors after each of its deaths.
type member struct {
	fleet *fleet
	spec  spec
	net   *toxiproxy.Proxy

	mu      sync.Mutex
	cmd     *exec.Cmd
	in      io.Closer     // ends the process when it is closed
	killed  bool          // by us
	ended   chan struct{} // closed when cmd has ended
	leaving bool          // no successor is wanted
}

// fleet are the processes.
type fleet struct {
	dir     string
	record  *witness.Recorder
	members []*member
	open    sync.WaitGroup
}

// add starts a process that goes to the database by its own network.
func (f *fleet) add(s *stage, sp spec, viaStandIn bool) error {
	host, user := s.way(viaStandIn)
	net := toxiproxy.NewProxy(s.networks, sp.Name, "127.0.0.1:0", host)
	if err := net.Start(); err != nil {
		return fmt.Errorf("start network of %s: %w", sp.Name, err)
	}
	sp.URL = fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable&connect_timeout=10", user, net.Listen, database)
	m := &member{fleet: f, spec: sp, net: net}
	f.members = append(f.members, m)
	return m.start()
}

// start starts the process, unless it runs.
func (m *member) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaving || m.runs() {
		return nil // two may have killed it, and bring it back
	}
	m.spec.Seed++
	own, err := json.Marshal(m.spec)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(m.fleet.dir, m.spec.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	program, err := os.Executable()
	if err != nil {
		return err
	}
	m.cmd = exec.Command(program)
	m.cmd.Env = append(os.Environ(), processVariable+"="+string(own), "TMPDIR="+m.fleet.dir)
	m.cmd.Stderr = log
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", m.spec.Name, err)
	}
	m.killed, m.ended = false, make(chan struct{})
	cmd, ended := m.cmd, m.ended
	m.fleet.open.Go(func() { m.watch(cmd, ended) })
	return nil
}

// is reports whether that is the process's number, not one of its children's.
func (m *member) is(pid int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cmd.Process.Pid == pid
}

// runs reports whether the process is there.
func (m *member) runs() bool {
	if m.ended == nil {
		return false
	}
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// watch waits for the end of the process.
func (m *member) watch(cmd *exec.Cmd, ended chan struct{}) {
	err := cmd.Wait()
	m.mu.Lock()
	killed, leaving := m.killed, m.leaving
	m.mu.Unlock()
	if !killed && (err != nil || !leaving) {
		m.fleet.record.Add(witness.Event{Kind: witness.Crashed, Process: m.spec.Name, State: fmt.Sprint(err)})
	}
	close(ended)
}

// kill kills the process at once, and waits until it is gone. Its life may be over already.
func (m *member) kill() {
	m.mu.Lock()
	if m.runs() {
		m.killed = true
		m.fleet.record.Add(witness.Event{Kind: witness.Killed, Process: m.spec.Name})
		_ = m.cmd.Process.Kill() // it may have ended
	}
	ended := m.ended
	m.mu.Unlock()
	<-ended
}

// signal stops or continues the process, not its children.
func (m *member) signal(sig syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kind := witness.Stopped
	if sig == syscall.SIGCONT {
		kind = witness.Continued
	}
	if m.runs() {
		// What is stopped is known to be before it is; what goes on, after that.
		if kind == witness.Stopped {
			m.fleet.record.Add(witness.Event{Kind: kind, Process: m.spec.Name, PID: m.cmd.Process.Pid})
		}
		_ = m.cmd.Process.Signal(sig) // it may have ended
		if kind == witness.Continued {
			m.fleet.record.Add(witness.Event{Kind: kind, Process: m.spec.Name, PID: m.cmd.Process.Pid})
		}
	}
}

// children are the processes that the process has started.
func (m *member) children() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", m.cmd.Process.Pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// leave has the process end when it has done what it began, and waits for it.
func (m *member) leave(ctx context.Context) error {
	m.mu.Lock()
	m.leaving = true
	_ = m.in.Close() // it may have ended
	ended := m.ended
	m.mu.Unlock()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s did not end: %w", m.spec.Name, context.Cause(ctx))
	}
}

// leave ends all processes of a role.
func (f *fleet) leave(ctx context.Context, limit time.Duration, roles ...role) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var all sync.WaitGroup
	errs := make([]error, len(f.members))
	for i, m := range f.members {
		for _, r := range roles {
			if m.spec.Role == r {
				all.Go(func() { errs[i] = m.leave(ctx) })
			}
		}
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// close kills what is left.
func (f *fleet) close() {
	for _, m := range f.members {
		m.mu.Lock()
		m.leaving, m.killed = true, true
		if m.cmd != nil && m.cmd.Process != nil {
			_ = m.cmd.Process.Kill() // it may have ended
		}
		m.mu.Unlock()
	}
	f.open.Wait()
	for _, m := range f.members {
		m.net.Stop()
	}
}
