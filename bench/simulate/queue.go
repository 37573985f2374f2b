package simulate

import "time"

// An event is what happens at a time to a worker, or to nobody.
type event struct {
	at   time.Duration
	nth  uint64 // events of one moment happen in the order of their making
	who  *worker
	life int
	what func(*fleet, *worker)
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.nth < o.nth }

// A queue is a binary heap of events.
type queue struct {
	heap []event
	made uint64
}

func (q *queue) len() int { return len(q.heap) }

func (q *queue) push(e event) {
	q.made++
	e.nth = q.made
	q.heap = append(q.heap, e)
	for i := len(q.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.heap[i].before(q.heap[up]) {
			return
		}
		q.heap[i], q.heap[up] = q.heap[up], q.heap[i]
		i = up
	}
}

func (q *queue) pop() event {
	top := q.heap[0]
	last := len(q.heap) - 1
	q.heap[0] = q.heap[last]
	q.heap[last] = event{}
	q.heap = q.heap[:last]
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < last && q.heap[child].before(q.heap[least]) {
				least = child
			}
		}
		if least == i {
			return top
		}
		q.heap[i], q.heap[least] = q.heap[least], q.heap[i]
		i = least
	}
}
