package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
)

// Summary tells how a run went.
type Summary struct {
	Manifest string `json:"manifest"`
	Files    int    `json:"files"`
	Bytes    int64  `json:"bytes"`
	// Skipped files are not in the manifest.
	Skipped []Skipped `json:"skipped"`
	// Group holds the tasks.
	Group     uuid.UUID `json:"task_group"`
	Tasks     int       `json:"tasks"`
	Completed int       `json:"completed"`
	Failed    int       `json:"failed"`
	Workers   int       `json:"workers"`
	// Killed workers were replaced; Lost are the digest tasks that failed with them.
	Killed int         `json:"killed_workers"`
	Lost   []uuid.UUID `json:"lost_tasks,omitempty"`
	// Elapsed is from the first dispatch to the manifest.
	Elapsed time.Duration `json:"-"`
	// Waited is how long digest tasks waited for a free worker, PickUp how long the manifest task did,
	// for which all workers were free.
	Waited Latencies `json:"waited"`
	PickUp Latencies `json:"pick_up"`
	// Pooler is nil without one.
	Pooler *Pooler `json:"pooler"`
	Check  Check   `json:"check"`
}

// MarshalJSON adds what follows from the fields.
func (s Summary) MarshalJSON() ([]byte, error) {
	type plain Summary
	return json.Marshal(struct {
		plain
		Elapsed  float64 `json:"elapsed_seconds"`
		TaskRate float64 `json:"tasks_per_second"`
		ByteRate float64 `json:"bytes_per_second"`
	}{plain(s), s.Elapsed.Seconds(), s.rate(float64(s.Tasks)), s.rate(float64(s.Bytes))})
}

func (s Summary) rate(n float64) float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return n / s.Elapsed.Seconds()
}

// OK reports whether the manifest is right.
func (s Summary) OK() bool { return len(s.Check.Problems) == 0 }

// shown is how many of a kind are listed in the text.
const shown = 10

// Write writes the summary for people.
func (s Summary) Write(out io.Writer) error {
	for i, skipped := range s.Skipped {
		if i == shown {
			fmt.Fprintf(out, "… and %d more\n", len(s.Skipped)-shown)
			break
		}
		fmt.Fprintf(out, "skipped %q: %s\n", skipped.Path, skipped.Reason)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{name}, args...)...)
	}
	fmt.Fprintln(w)
	line("manifest", "%s", s.Manifest)
	line("files", "%d, %s, %d skipped", s.Files, bytesText(s.Bytes), len(s.Skipped))
	line("tasks", "%d completed, %d failed", s.Completed, s.Failed)
	if s.Killed > 0 {
		line("workers", "%d processes, %d killed and replaced", s.Workers, s.Killed)
	} else {
		line("workers", "%d processes", s.Workers)
	}
	line("time", "%s, %.1f tasks/s, %s/s", s.Elapsed.Round(time.Millisecond), s.rate(float64(s.Tasks)), bytesText(int64(s.rate(float64(s.Bytes)))))
	line("pick-up latency", "%s by a free worker; while all were busy %s", s.PickUp, s.Waited)
	if p := s.Pooler; p != nil {
		line("connections", "%d from clients shared %d to the server, through PgBouncer", p.Clients, p.Servers)
		line("transactions", "%d, %.1f for each task", p.Transactions, float64(p.Transactions)/float64(max(s.Tasks, 1)))
	} else {
		line("connections", "without a pooler of the demo's own")
	}
	hashed := "all"
	if !s.Check.All {
		hashed = "a random sample of"
	}
	verdict := "the manifest is right"
	if n := len(s.Check.Problems); n > 0 {
		verdict = fmt.Sprintf("%d PROBLEMS", n)
	}
	line("check", "%s: %d sizes compared, %s %d files (%s) digested again", verdict, s.Check.Lines, hashed, s.Check.Hashed, bytesText(s.Check.HashedBytes))
	if s.Check.Changed > 0 {
		line("", "%d files changed meanwhile and were left out of the check", s.Check.Changed)
	}
	for i, p := range s.Check.Problems {
		if i == shown {
			line("", "… and %d more", len(s.Check.Problems)-shown)
			break
		}
		line("", "%s", p)
	}
	return w.Flush()
}

// Latencies are quantiles.
type Latencies struct {
	Count         int
	P50, P95, Max time.Duration
}

// MarshalJSON gives seconds.
func (l Latencies) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"count": l.Count, "p50_seconds": l.P50.Seconds(), "p95_seconds": l.P95.Seconds(), "max_seconds": l.Max.Seconds(),
	})
}

// String is for people.
func (l Latencies) String() string {
	switch l.Count {
	case 0:
		return "-"
	case 1:
		return durationText(l.Max)
	}
	return fmt.Sprintf("p50 %s, p95 %s, max %s", durationText(l.P50), durationText(l.P95), durationText(l.Max))
}

func latencies(all []time.Duration) Latencies {
	if len(all) == 0 {
		return Latencies{}
	}
	slices.Sort(all)
	at := func(percent int) time.Duration { return all[(len(all)-1)*percent/100] }
	return Latencies{Count: len(all), P50: at(50), P95: at(95), Max: at(100)}
}

func durationText(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, name := float64(n)/unit, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, name = value/unit, next
	}
	return fmt.Sprintf("%.1f %s", value, name)
}
