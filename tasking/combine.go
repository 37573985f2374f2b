package tasking

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
)

// mostTogether bounds what one statement carries for several callers: calls, and what they weigh.
const mostTogether = 100

// overdue is how long those who come later wait for a statement under way. It is short of any timeout and
// well beyond what a statement takes that waits for nobody.
const overdue = 100 * time.Millisecond

// A question is what one caller wants: a dispatch of one task, or an end.
type question struct {
	party    party
	dispatch *db.TaskDispatchParams
	end      *end
}

// Those of one party may go together.
type party struct {
	holder pgtype.UUID // of immediate tasks
	end    bool
}

// An answer is to the one or the other.
type answer struct {
	placed
	ended
}

// A combiner sends what many goroutines ask for in few statements. While one is under way, those who come
// wait in a queue, and leave it together with the next. An idle one sends at once. What concerns one caller
// alone is left to that one: a call that ends early takes nothing from the others, and what fails with
// several is sent again one by one.
type combiner struct {
	// connect waits for a connection to send on; it may be nil.
	connect func(context.Context) (*pgxpool.Conn, error)
	// fit answers how many of these of one party, counted from the first, go together; 1 at least.
	fit func([]question) int
	// send sends one statement, again until its outcome is known. It uses the connection first, if there
	// is one, and gives it back. The answers are in the order of the questions.
	send func(context.Context, *pgxpool.Conn, []question) ([]answer, error)

	mu      sync.Mutex
	queue   []*call
	sending bool               // there is a sender that will look at the queue
	forgo   context.CancelFunc // ends its wait for a connection
}

// A call is one caller's.
type call struct {
	ctx    context.Context // for its values
	since  time.Time
	asks   question
	flight *flight // once it was sent
	gone   bool    // nobody waits for it any more

	done   chan struct{} // closed when what follows is known
	answer answer
	err    error
}

// A flight is what is sent together.
type flight struct {
	ctx     context.Context // ends when nobody waits for it any more
	cancel  context.CancelFunc
	waiting int
}

// do asks, and waits for the answer. Until it is sent the call ends with ctx, and nothing happens; from then
// on with held, and nobody knows what happened.
func (c *combiner) do(ctx, held context.Context, asks question) (answer, error) {
	if err := ctx.Err(); err != nil {
		return answer{}, err
	}
	r := &call{ctx: ctx, since: time.Now(), asks: asks, done: make(chan struct{})}
	c.mu.Lock()
	c.queue = append(c.queue, r)
	if !c.sending {
		c.sending = true
		go c.sendQueue()
	}
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.answer, r.err
	case <-ctx.Done():
		if c.leave(r) {
			return answer{}, ctx.Err()
		}
	}
	select {
	case <-r.done:
		return r.answer, r.err
	case <-held.Done():
		c.abandon(r)
		return answer{}, held.Err()
	}
}

// leave takes a call out of the queue, unless it was sent.
func (c *combiner) leave(r *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.queue, r)
	if i < 0 {
		return false
	}
	c.drop(i)
	return true
}

// drop takes a call out of the queue, under the lock. If it was the last, nobody needs a connection.
func (c *combiner) drop(i int) {
	c.queue = slices.Delete(c.queue, i, i+1)
	if len(c.queue) == 0 && c.forgo != nil {
		c.forgo()
	}
}

// abandon ends the wait for a call that was sent. The statement goes on for others.
func (c *combiner) abandon(r *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.gone = true
	if r.flight != nil {
		if r.flight.waiting--; r.flight.waiting == 0 {
			r.flight.cancel()
		}
	}
}

// sendQueue sends what is in the queue until it is empty, or until a statement is overdue, and so another
// sender goes on.
func (c *combiner) sendQueue() {
	for {
		// Those whom the last answers have woken may be about to come: they run first.
		runtime.Gosched()
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.sending = false
			c.mu.Unlock()
			return
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(c.queue[0].ctx))
		c.forgo = cancel
		c.mu.Unlock()

		conn := c.connection(ctx)
		f := &flight{ctx: ctx, cancel: cancel}
		if calls := c.board(f); len(calls) > 0 {
			late := time.AfterFunc(overdue, c.pass)
			c.fly(f, conn, calls)
			if !late.Stop() {
				return
			}
			continue
		}
		cancel()
		if conn != nil {
			conn.Release()
		}
	}
}

// pass makes another sender go on, because a statement takes long.
func (c *combiner) pass() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sending = len(c.queue) > 0; c.sending {
		go c.sendQueue()
	}
}

// connection waits for a connection as long as somebody waits in the queue; without one it is nil, and the queue
// was empty. It is waited for before calls are taken out of the queue: the pool may be full of those who
// wait here, and what is not sent its caller may still end.
func (c *combiner) connection(ctx context.Context) (conn *pgxpool.Conn) {
	_ = resend.Do(ctx, 0, statementTimeout, func(attempt context.Context) (err error) {
		if conn, err = c.connect(attempt); err != nil {
			c.refuse(ctx, err)
		}
		return err
	})
	return conn
}

// refuse tells those of the queue who get no connection in time, or ever.
func (c *combiner) refuse(ctx context.Context, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return // that is why
	}
	for i, r := range slices.Backward(c.queue) {
		if !resend.Passing(err) || (r.asks.end == nil && time.Since(r.since) > resendLimit) {
			c.drop(i)
			r.err = fmt.Errorf("connect: %w", err)
			close(r.done)
		}
	}
}

// board takes calls out of the queue that may go together.
func (c *combiner) board(f *flight) []*call {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgo = nil
	if len(c.queue) == 0 || f.ctx.Err() != nil {
		return nil
	}
	var calls []*call
	for _, r := range c.queue {
		if r.asks.party == c.queue[0].asks.party && len(calls) < mostTogether {
			calls = append(calls, r)
		}
	}
	calls = calls[:c.fit(questions(calls))]
	f.waiting = len(calls)
	for _, r := range calls {
		r.flight = f
	}
	c.queue = slices.DeleteFunc(c.queue, func(r *call) bool { return r.flight != nil })
	return calls
}

// fly sends calls together and hands out the answers.
func (c *combiner) fly(f *flight, conn *pgxpool.Conn, calls []*call) {
	answers, err := c.send(f.ctx, conn, questions(calls))
	ended := f.ctx.Err() != nil
	f.cancel()
	if err != nil && len(calls) > 1 && !ended && !resend.Passing(err) {
		c.part(calls)
		return
	}
	for i, r := range calls {
		if r.err = err; err == nil {
			r.answer = answers[i]
		}
		close(r.done)
	}
}

// part sends calls one by one, each in its own time: nothing was done, because of one of them.
func (c *combiner) part(calls []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range calls {
		if r.gone {
			continue
		}
		alone, cancel := context.WithCancel(context.WithoutCancel(r.ctx))
		r.flight = &flight{ctx: alone, cancel: cancel, waiting: 1}
		go c.fly(r.flight, nil, []*call{r})
	}
}

func questions(calls []*call) []question {
	out := make([]question, len(calls))
	for i, r := range calls {
		out[i] = r.asks
	}
	return out
}

// fit answers how many questions of one party go together.
func fit(qs []question) int {
	if qs[0].party.end {
		return endFit(qs)
	}
	return dispatchFit(qs)
}

// sendTogether sends questions of one party.
func (c *Client) sendTogether(ctx context.Context, conn *pgxpool.Conn, qs []question) ([]answer, error) {
	if qs[0].party.end {
		return c.endTogether(ctx, conn, qs)
	}
	return c.dispatchTogether(ctx, conn, qs)
}
