package simulate

import (
	"slices"
	"time"

	"github.com/pithworks/pith/internal/workload"
)

// All are the kinds of statements that a fleet sends unasked; turns are the work itself.
var All = []Kind{Poll, Look, Beat, Register, House}

// Per is how many statements of some kinds were sent per second from a time until another.
func (r Result) Per(from, to time.Duration, of ...Kind) float64 {
	sum := 0
	for _, k := range of {
		for _, n := range r.Sent[k][from/Bucket : to/Bucket] {
			sum += n
		}
	}
	return float64(sum) / (to - from).Seconds()
}

// Series is the rate per second of some kinds, in consecutive windows.
func (r Result) Series(window time.Duration, of ...Kind) []float64 {
	var out []float64
	for from := time.Duration(0); int((from+window)/Bucket) <= len(r.Sent[Poll]); from += window {
		out = append(out, r.Per(from, from+window, of...))
	}
	return out
}

// Peak is the highest rate per second of some kinds in any window from a time until another.
func (r Result) Peak(window, from, to time.Duration, of ...Kind) float64 {
	most := 0.0
	for ; from+window <= to; from += Bucket {
		most = max(most, r.Per(from, from+window, of...))
	}
	return most
}

// Waited is the p-th percentile (0 to 100) of the waits of the tasks that came in a time, and how many
// there were.
func (r Result) Waited(p int, from, to time.Duration) (wait time.Duration, tasks int) {
	var waits []time.Duration
	for _, w := range r.Waits {
		if w.Came >= from && w.Came < to {
			waits = append(waits, w.Waited)
		}
	}
	if len(waits) == 0 {
		return 0, 0
	}
	slices.Sort(waits)
	return workload.Percentile(waits, p), len(waits)
}
