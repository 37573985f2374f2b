package tasking

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
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
	for ended := ctx.Done(); ; {
		select {
		case <-r.done:
			return r.answer, r.err
		case <-ended:
			if c.leave(r) {
				return answer{}, ctx.Err()
			}
			ended = nil // it was sent
		case <-held.Done():
			if !c.leave(r) {
				c.abandon(r)
			}
			return answer{}, held.Err()
		}
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

// dispatchTogether sends dispatches of one task each.
func (c *Client) dispatchTogether(ctx context.Context, conn *pgxpool.Conn, qs []question) ([]answer, error) {
	limit := resendLimit
	if qs[0].party.holder.Valid {
		limit = 0
	}
	tasks, ours, err := c.sendDispatch(ctx, limit, conn, merged(qs))
	if err != nil {
		return nil, err
	}
	out := make([]answer, len(tasks))
	for i, d := range tasks {
		out[i].placed = placed{d, ours[d.ID]}
	}
	return out, nil
}

// dispatchFit answers how many of these dispatches of one task each go together.
func dispatchFit(qs []question) int {
	weight := 0
	fickle := map[string]bool{} // resources of tasks that may be canceled at once
	for n, q := range qs {
		p := q.dispatch
		weight += 1 + len(p.Resources) + len(p.Arguments[0])>>10
		owner := false // of a domain: everybody waits for it
		for i, r := range p.Resources {
			owner = owner || p.Exclusives[i] && strings.HasPrefix(r, domainPrefix)
		}
		switch {
		case n == 0 && owner:
			return 1
		case n > 0 && (owner || weight > mostTogether):
			return n
		// A task that enters a queue behind one that is canceled by the same statement would wait for it forever.
		case slices.ContainsFunc(p.Resources, func(r string) bool { return fickle[r] }):
			return n
		}
		if !p.Deferreds[0] {
			for _, r := range p.Resources {
				fickle[r] = true
			}
		}
	}
	return len(qs)
}

// merged lays out dispatches of one task each as one of all of them. What concerns the whole statement is alike.
func merged(qs []question) db.TaskDispatchParams {
	all := *qs[0].dispatch
	all.Impatient = len(qs) > 1
	for i, q := range qs[1:] {
		p := q.dispatch
		kind := 0
		for kind < len(all.KindNames) && (all.KindNames[kind] != p.KindNames[0] || all.KindVersions[kind] != p.KindVersions[0]) {
			kind++
		}
		if kind == len(all.KindNames) {
			all.KindNames = append(all.KindNames, p.KindNames...)
			all.KindVersions = append(all.KindVersions, p.KindVersions...)
			all.KindAttempts = append(all.KindAttempts, p.KindAttempts...)
			all.KindBackoffs = append(all.KindBackoffs, p.KindBackoffs...)
		}
		all.Kinds = append(all.Kinds, int32(kind+1))
		all.IDs = append(all.IDs, p.IDs...)
		all.Arguments = append(all.Arguments, p.Arguments...)
		if p.Owners != nil && all.Owners == nil {
			all.Owners = make([]int32, i+1) // nobody
		}
		if all.Owners != nil {
			all.Owners = append(all.Owners, ownerOf(p))
		}
		all.Cids = append(all.Cids, p.Cids...)
		all.Groups = append(all.Groups, p.Groups...)
		all.Priorities = append(all.Priorities, p.Priorities...)
		all.Immediates = append(all.Immediates, p.Immediates...)
		all.Deferreds = append(all.Deferreds, p.Deferreds...)
		all.NotBefores = append(all.NotBefores, p.NotBefores...)
		for range p.Resources {
			all.Reserving = append(all.Reserving, int32(i+2))
		}
		all.Resources = append(all.Resources, p.Resources...)
		all.Exclusives = append(all.Exclusives, p.Exclusives...)
	}
	return all
}

// ownerOf is the owner of the one task of a dispatch, 0 if it has none.
func ownerOf(p *db.TaskDispatchParams) int32 {
	if p.Owners == nil {
		return 0
	}
	return p.Owners[0]
}

// An end is that of an attempt.
type end struct {
	claim   Claim
	outcome Outcome
	failed  string // its error, encoded
}

// ended is what became of it.
type ended struct {
	state State
	err   error
}

// endFit answers how many of these ends go together.
func endFit(qs []question) int {
	weight := 0
	for n, q := range qs {
		if weight += 1 + (len(q.end.outcome.Result)+len(q.end.failed))>>10; n > 0 && weight > mostTogether {
			return n
		}
	}
	return len(qs)
}

// endTogether sends the ends of attempts of one holder.
func (c *Client) endTogether(ctx context.Context, conn *pgxpool.Conn, qs []question) ([]answer, error) {
	n := len(qs)
	p := db.TaskTurnParams{Worker: qs[0].party.holder, Quick: true}
	for _, q := range slices.SortedFunc(slices.Values(qs), func(a, b question) int { return bytes.Compare(a.end.claim.ID[:], b.end.claim.ID[:]) }) {
		AddEnd(&p, q.end.claim, q.end.outcome, q.end.failed)
	}
	// Where nothing is reserved, they wait for nothing but a domain's owner, for whom everybody waits.
	p.Impatient = n > 1 && !p.Sole.Valid
	rows, err := sendVia(ctx, 0, c.db, conn, func(ctx context.Context, via db.DBTX) ([]TurnEvent, error) {
		rows, err := Turn(ctx, via, p)
		if p.Impatient {
			err = impatient(err)
		}
		return rows, err
	})
	if err != nil {
		return nil, err
	}
	out := make([]answer, n)
	for i, q := range qs {
		out[i].state = q.end.outcome.State
		for _, r := range rows {
			if r.Event != "finish" || r.ID.Bytes != q.end.claim.ID {
				continue
			}
			out[i].state = State(r.State)
			if !r.Recorded {
				out[i].ended = ended{err: fmt.Errorf("task %s is %s: %w", q.end.claim.ID, r.State, ErrLockLost)}
			}
		}
	}
	return out, nil
}
