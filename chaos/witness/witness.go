// Package witness keeps the record of a chaos run outside of the database: what clients were promised, and what
// tasks have done to the outside world.
//
// A [Recorder] listens on a Unix socket, and writes what processes report as one log, in the order in which it
// came, on one clock. It is also the outside world that the tasks change: for each resource it keeps the greatest
// fencing token that it has seen, and refuses whoever comes with a smaller one. A [Reporter] is a process's end.
// What a report tells has happened before the report returns, and nothing that follows it has.
package witness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Kind says what an event tells.
type Kind = string

// The kinds of events.
const (
	// Dispatched: the database has acknowledged a task. Of one Client they come in the order of the calls.
	Dispatched Kind = "dispatched"
	// Canceled: the database has acknowledged a cancellation; State is what the task is then.
	Canceled Kind = "canceled"
	// Seen: a client has been told that the task is in State.
	Seen Kind = "seen"
	// Begun, Touched, Effect and Ended come from a task's function, the first three with its token: they may
	// be Refused. Each run of a task without failures has one Effect, last.
	Begun   Kind = "begun"
	Touched Kind = "touched"
	Effect  Kind = "effect"
	Ended   Kind = "ended"
	// Gone: the process of this Conn has ended.
	Gone Kind = "gone"
	// Scheduled: the database has acknowledged a schedule, which is first due at Due and then every Every.
	Scheduled Kind = "scheduled"
	// Fault and Healed: one of this Name was done to Process, or to what all share, and is over.
	Fault  Kind = "fault"
	Healed Kind = "healed"
	// Stopped and Continued happened to the process of this PID alone, Killed and Crashed to Process; the last one
	// by itself.
	Stopped   Kind = "stopped"
	Continued Kind = "continued"
	Killed    Kind = "killed"
	Crashed   Kind = "crashed"
	// Calm: all faults are over.
	Calm Kind = "calm"
	// Unscheduled: no schedule is due again any more.
	Unscheduled Kind = "unscheduled"
	// Still: Calm was long ago, and the run ends.
	Still Kind = "still"
)

// Event is a line of the log.
type Event struct {
	N    int64         `json:"n"`
	At   time.Duration `json:"at"` // since the beginning of the run
	Kind Kind          `json:"kind"`
	// Process is the name of the process that reports, or that something is done to; a child has its parent's.
	Process string `json:"process,omitempty"`
	// Conn is the same for all that one process reports, a child apart. PID is its number.
	Conn int64 `json:"conn,omitempty"`
	PID  int   `json:"pid,omitempty"`

	Task    uuid.UUID `json:"task,omitzero"`
	Attempt int       `json:"attempt,omitempty"`
	Token   int64     `json:"token,omitempty"`
	// Reserved lists exclusive resources bare, shared ones as shared:NAME.
	Reserved []string `json:"reserved,omitempty"`
	Refused  bool     `json:"refused,omitempty"`

	// Name of a task type, a schedule or a fault.
	Name   string `json:"name,omitempty"`
	State  string `json:"state,omitempty"`
	Client string `json:"client,omitempty"`
	// Queued tasks have entered their queues when they were dispatched, and will not again.
	Queued bool `json:"queued,omitempty"`

	Due   time.Time     `json:"due,omitzero"`
	Every time.Duration `json:"every,omitempty"`
}

// Recorder keeps the log.
type Recorder struct {
	listener net.Listener
	file     *os.File
	began    time.Time
	open     sync.WaitGroup

	mu     sync.Mutex
	out    *bufio.Writer
	events []Event
	conns  int64
	tokens map[string]tokens
	runs   map[run]Event // that go on
	err    error
}

// run is an attempt of a task.
type run struct {
	task    uuid.UUID
	attempt int
}

// tokens are the greatest ones that a resource has seen.
type tokens struct{ exclusive, any int64 }

// Record begins a log in a file, and listens on a socket; neither may exist.
func Record(file, socket string) (*Recorder, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("witness: %w", err), f.Close())
	}
	r := &Recorder{listener: l, file: f, began: time.Now(), out: bufio.NewWriter(f), tokens: map[string]tokens{}, runs: map[run]Event{}}
	r.open.Go(r.accept)
	return r, nil
}

func (r *Recorder) accept() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		r.mu.Lock()
		r.conns++
		id := r.conns
		r.mu.Unlock()
		r.open.Go(func() { r.serve(c, id) })
	}
}

func (r *Recorder) serve(c net.Conn, id int64) {
	defer c.Close()
	in, out := json.NewDecoder(c), json.NewEncoder(c)
	process := ""
	for {
		var e Event
		if in.Decode(&e) != nil {
			break
		}
		process, e.Conn = e.Process, id
		if out.Encode(r.Add(e)) != nil {
			break
		}
	}
	if process != "" {
		r.Add(Event{Kind: Gone, Process: process, Conn: id})
	}
}

// Add adds an event to the log, and reports whether the outside world has accepted it.
func (r *Recorder) Add(e Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Kind == Begun || e.Kind == Touched || e.Kind == Effect {
		e.Refused = !r.accepts(e)
	}
	switch e.Kind {
	case Begun:
		if !e.Refused {
			r.runs[run{e.Task, e.Attempt}] = e
		}
	case Ended:
		delete(r.runs, run{e.Task, e.Attempt})
	case Gone:
		for k, b := range r.runs {
			if b.Conn == e.Conn {
				delete(r.runs, k)
			}
		}
	}
	e.N, e.At = int64(len(r.events)+1), time.Since(r.began)
	if e.Kind == Touched && !e.Refused {
		return true // they tell nothing that the others don't
	}
	r.events = append(r.events, e)
	line, err := json.Marshal(e)
	if err == nil {
		_, err = r.out.Write(append(line, '\n'))
	}
	r.err = errors.Join(r.err, err)
	return !e.Refused
}

// accepts is the fence: who reserves a resource exclusively comes after all that were there, who shares it after
// all that had it exclusively.
func (r *Recorder) accepts(e Event) bool {
	for _, name := range e.Reserved {
		name, shared := strings.CutPrefix(name, "shared:")
		if seen := r.tokens[name]; e.Token < seen.exclusive || !shared && e.Token < seen.any {
			return false
		}
	}
	for _, name := range e.Reserved {
		name, shared := strings.CutPrefix(name, "shared:")
		seen := r.tokens[name]
		seen.any = max(seen.any, e.Token)
		if !shared {
			seen.exclusive = e.Token
		}
		r.tokens[name] = seen
	}
	return true
}

// Running returns the beginnings of the runs that go on.
func (r *Recorder) Running() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.runs), func(a, b Event) int { return bytes.Compare(a.Task[:], b.Task[:]) })
}

// Events returns the log so far.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clip(r.events)
}

// Close ends the log. Processes that still report fail.
func (r *Recorder) Close() error {
	err := r.listener.Close()
	r.open.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(err, r.err, r.out.Flush(), r.file.Close())
}

// Read reads a log.
func Read(in io.Reader) ([]Event, error) {
	var events []Event
	for d := json.NewDecoder(in); ; {
		var e Event
		switch err := d.Decode(&e); {
		case errors.Is(err, io.EOF):
			return events, nil
		case err != nil:
			return nil, fmt.Errorf("witness: event %d: %w", len(events)+1, err)
		}
		events = append(events, e)
	}
}

// Reporter reports for one process. It may be used by many goroutines.
type Reporter struct {
	process string

	mu   sync.Mutex
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

// Dial connects a process of that name.
func Dial(ctx context.Context, socket, process string) (*Reporter, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	return &Reporter{process: process, conn: c, in: json.NewDecoder(c), out: json.NewEncoder(c)}, nil
}

// Report reports an event, and whether the outside world has accepted it. Without a witness the process has no
// purpose: the error is to end it.
func (r *Reporter) Report(e Event) (accepted bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Process, e.PID = r.process, os.Getpid()
	if err := r.out.Encode(e); err != nil {
		return false, fmt.Errorf("witness: %w", err)
	}
	if err := r.in.Decode(&accepted); err != nil {
		return false, fmt.Errorf("witness: %w", err)
	}
	return accepted, nil
}

// Close ends the line.
func (r *Reporter) Close() error { return r.conn.Close() }
