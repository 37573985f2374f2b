package isolate

import (
	"encoding/json"
	"io"
	"os"
	"sync"
	"time"
)

// message is what the two sides say to each other, as one JSON value each.
type message struct {
	// Of counts the jobs of a child: what belongs to an earlier one comes too late.
	Of int64 `json:"of,omitempty"`

	// From the parent.
	Job    *start  `json:"job,omitempty"`
	Stop   string  `json:"stop,omitempty"`  // why the job's context ends
	Lease  int64   `json:"lease,omitempty"` // until when the job may run; see leaseClock
	Answer *answer `json:"answer,omitempty"`

	// From the child.
	Began bool            `json:"began,omitempty"`
	Call  *call           `json:"call,omitempty"`
	Note  json.RawMessage `json:"note,omitempty"`
	End   *end            `json:"end,omitempty"`

	written chan struct{} // closed when it is, if it is there
}

// start begins a job.
type start struct {
	Body   json.RawMessage `json:"body"`
	Dir    string          `json:"dir"`
	Memory int64           `json:"memory,omitempty"` // bytes
}

type call struct {
	ID   int64           `json:"id"`
	Name string          `json:"name"`
	Body json.RawMessage `json:"body,omitempty"`
}

type answer struct {
	ID   int64           `json:"id"`
	Body json.RawMessage `json:"body,omitempty"`
}

// end tells how a job ended, and that the child is ready for the next one, unless it left processes behind.
type end struct {
	Body  json.RawMessage `json:"body"`
	Usage Usage           `json:"usage"`
	Stray bool            `json:"stray,omitempty"`
	// Failed is why the job was not begun.
	Failed string `json:"failed,omitempty"`
}

// Usage is what a job has taken of the machine.
type Usage struct {
	// PeakMemory is the most memory that the process has had resident, in bytes; 0: not known.
	PeakMemory int64 `json:"peak_memory"`
	// CPU is the processor time of the process, and of those that it has waited for.
	CPU time.Duration `json:"cpu"`
}

// outbox sends messages in order without making its callers wait: the other side may be stopped.
type outbox struct {
	mu     sync.Mutex
	queue  []message
	closed bool
	more   chan struct{}
}

func newOutbox() *outbox { return &outbox{more: make(chan struct{}, 1)} }

func (o *outbox) send(m message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.queue = append(o.queue, m)
	o.ring()
}

// write sends a message and waits until it is written, for ever if the other side is gone.
func (o *outbox) write(m message) {
	m.written = make(chan struct{})
	o.send(m)
	<-m.written
}

func (o *outbox) ring() {
	select {
	case o.more <- struct{}{}:
	default:
	}
}

// close lets run return once what was sent before is written.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.ring()
}

// run writes what is sent until the outbox is closed or the other side is gone, and closes w.
func (o *outbox) run(w io.WriteCloser) {
	defer w.Close()
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	for range o.more {
		o.mu.Lock()
		queue, closed := o.queue, o.closed
		o.queue = nil
		o.mu.Unlock()
		for _, m := range queue {
			if out.Encode(m) != nil {
				o.close()
				return
			}
			if m.written != nil {
				close(m.written)
			}
		}
		if closed {
			return
		}
	}
}

// receive hands what the other side sends to handle until it has closed its end.
func receive(r *os.File, handle func(message)) {
	in := json.NewDecoder(r)
	for {
		var m message
		if in.Decode(&m) != nil {
			return
		}
		handle(m)
	}
}
