package rdsproxy

import (
	"errors"
	"slices"
)

// The server answers in order. For each message that was sent to it and not
// answered yet there is an entry in a queue, so that an answer is known to belong
// to a client's message, to one that the proxy added, or to the Sync that ends a
// transaction.

// endOfData is the kind of an entry for CopyDone or CopyFail: no answer comes, but
// a Sync before it is swallowed by the COPY, and one after it is not.
const endOfData = 'c'

// An answer is one that the server owes.
type answer struct {
	seq   int  // counts what was sent to this server connection
	kind  byte // the type of the message: P, B, D, E, C, Q, F, S, or endOfData
	quiet bool // the proxy sent it: the client must not see the answer
	size  int  // bytes of a Parse message, which are kept meanwhile

	optional bool // an error is not the client's either

	unnamed *stmt // what a Parse of the client makes, or a Bind or Describe uses

	// For a message that changes what a statement's name stands for: what it stood
	// for before, for the client and on the server.
	changes           bool
	name              string
	oldView, oldOwned *stmt
}

// answers is the queue.
type answers struct {
	list []answer
	head int
	size int // bytes of the Parse messages in it
}

func (q *answers) len() int { return len(q.list) - q.head }

func (q *answers) push(a answer) {
	q.list = append(q.list, a)
	q.size += a.size
}

func (q *answers) first() *answer { return &q.list[q.head] }

func (q *answers) last() *answer { return &q.list[len(q.list)-1] }

func (q *answers) pop() answer {
	a := q.list[q.head]
	q.list[q.head] = answer{}
	q.head++
	q.size -= a.size
	switch {
	case q.head == len(q.list):
		q.list, q.head = q.list[:0], 0
		if cap(q.list) > 1024 {
			q.list = nil
		}
	case q.head >= 1024 && q.head > len(q.list)/2:
		q.list = append([]answer(nil), q.list[q.head:]...)
		q.head = 0
	}
	return a
}

// waiting returns the entries, oldest first.
func (q *answers) waiting() []answer { return q.list[q.head:] }

// executes tells whether a statement is being executed, or will be.
func (q *answers) executes() bool {
	return slices.ContainsFunc(q.waiting(), func(a answer) bool { return a.kind == 'E' || a.kind == 'Q' })
}

// replace makes list the entries.
func (q *answers) replace(list []answer) {
	q.list, q.head, q.size = list, 0, 0
	for i := range list {
		q.size += list[i].size
	}
}

// extended tells whether a message of this type is skipped after an error, up to a
// Sync.
func extended(kind byte) bool {
	switch kind {
	case 'P', 'B', 'D', 'E', 'C':
		return true
	}
	return false
}

// ends tells whether a message of this type is answered by ReadyForQuery.
func ends(kind byte) bool { return kind == 'S' || kind == 'Q' || kind == 'F' }

// pending tells whether a message that changes what a name stands for has not been
// answered.
func (sc *serverConn) pending(name string) bool {
	seq, ok := sc.changed[name]
	return ok && sc.owed.len() > 0 && seq >= sc.owed.first().seq
}

// unsettled tells whether what a name stands for hangs on a message before the last
// Sync, which may fail yet while what is sent now is executed.
func (sc *serverConn) unsettled(name string) bool {
	return sc.pending(name) && sc.changed[name] < sc.lastSync
}

// earlier tells whether something before the last Sync has not been answered.
func (sc *serverConn) earlier() bool {
	return sc.owed.len() > 0 && sc.owed.first().seq <= sc.lastSync
}

// owe notes that a message goes to the server. The caller holds mu.
func (sc *serverConn) owe(a answer) {
	switch {
	case sc.uncertain:
		return
	case a.kind == 'S':
		sc.skipping, sc.unsynced = false, false
	case sc.skipping:
		return
	case a.kind == endOfData:
		if n := sc.owed.len(); n == 0 || sc.owed.waiting()[n-1].kind == endOfData {
			return
		}
	default:
		sc.unsynced = extended(a.kind)
	}
	switch a.kind {
	case 'E', 'Q':
		sc.fed = false
	case 'S':
		sc.lastSync = sc.seq
	}
	a.seq = sc.seq
	sc.seq++
	if a.changes {
		if sc.owed.len() == 0 {
			clear(sc.changed)
		}
		sc.changed[a.name] = a.seq
	}
	sc.owed.push(a)
}

// errOutOfStep means that the server answered what it was not asked.
var errOutOfStep = errors.New("the server's answers are out of step")

// answered notes a message of the server that is no error, and returns what it
// completes, if it completes anything. The caller holds mu.
func (sc *serverConn) answered(typ byte) (completed answer, err error) {
	if sc.uncertain {
		return answer{}, nil
	}
	for sc.owed.len() > 0 && sc.owed.first().kind == endOfData {
		sc.owed.pop()
	}
	var kind byte
	if sc.owed.len() > 0 {
		kind = sc.owed.first().kind
	}
	var want bool
	switch typ {
	case '1':
		want = kind == 'P'
	case '2':
		want = kind == 'B'
	case '3':
		want = kind == 'C'
	case 'n':
		want = kind == 'D'
	case 'Z':
		want = ends(kind)
	case 'T':
		if kind == 'Q' {
			return answer{}, nil
		}
		want = kind == 'D'
	case 'C', 'I', 's':
		if sc.copyIn {
			sc.copyDone()
		}
		if kind == 'Q' {
			return answer{}, nil
		}
		want = kind == 'E'
	case 'G':
		if kind != 'Q' && kind != 'E' {
			return answer{}, errOutOfStep
		}
		sc.copyIn = true
		return answer{}, nil
	default:
		return answer{}, nil
	}
	if !want {
		return answer{}, errOutOfStep
	}
	return sc.owed.pop(), nil
}

// late returns the unnamed statement that a Bind or Describe has used, if an earlier
// transaction of the client parsed it.
func (a *answer) late(s *session) *stmt {
	switch {
	case a.unnamed == nil || s == nil:
	case a.kind == 'P':
		a.unnamed.transaction = s.transactions
	case a.unnamed.transaction != s.transactions:
		return a.unnamed
	}
	return nil
}

// stuck tells whether the server waits for the client: a COPY is open, and nothing
// that ends or breaks it was sent. The caller holds mu.
func (sc *serverConn) stuck() bool {
	for i, a := range sc.owed.waiting() {
		if i > 0 && a.kind != 'S' {
			return false
		}
	}
	return sc.copyIn
}

// lostCopy is the construct of the finding that goes with lose.
const lostCopy = "COPY that failed with a Sync among its data"

// lose gives up counting answers: the client keeps the connection. The caller holds
// mu.
func (sc *serverConn) lose() {
	sc.uncertain, sc.pinned, sc.copyIn = true, true, false
	sc.owed.replace(nil)
}

// copyDone removes the Syncs that a COPY from the client has swallowed: those
// between its start and the end of its data.
func (sc *serverConn) copyDone() {
	sc.copyIn = false
	list := sc.owed.waiting()
	kept := []answer{list[0]}
	ended, synced, unsynced := false, false, extended(list[0].kind)
	for _, a := range list[1:] {
		if !ended && (a.kind == 'S' || a.kind == endOfData) {
			ended = a.kind == endOfData
			continue
		}
		synced = synced || ends(a.kind)
		unsynced = unsynced || extended(a.kind)
		kept = append(kept, a)
	}
	if len(kept) < len(list) {
		if !synced {
			sc.unsynced = unsynced
		}
		sc.owed.replace(kept)
	}
}

// failed notes an error that the server reported, and tells whether the client
// must not see it. The caller holds mu.
func (sc *serverConn) failed() (quiet bool) {
	for sc.owed.len() > 0 && sc.owed.first().kind == endOfData {
		sc.owed.pop()
	}
	if sc.uncertain || sc.owed.len() == 0 {
		return false
	}
	list := sc.owed.waiting()
	if sc.copyIn {
		sc.copyIn = false
		for _, a := range list[1:] {
			if a.kind == endOfData {
				break
			}
			if a.kind == 'S' {
				// Whether the COPY swallowed it before it failed, nobody can tell.
				sc.lose()
				return false
			}
		}
	}
	first := list[0]
	if !extended(first.kind) {
		return false
	}
	// The server skips what comes before the next Sync.
	n := 0
	for n < len(list) && list[n].kind != 'S' {
		n++
	}
	skipped, rest := list[:n], append([]answer(nil), list[n:]...)
	if first.kind == 'P' && first.name == "" {
		// A Parse drops the unnamed statement before it fails.
		skipped[0].oldView, skipped[0].oldOwned = nil, nil
	}
	sc.undo(skipped, rest)
	sc.skipping = len(rest) == 0
	sc.owed.replace(rest)
	return first.optional
}
