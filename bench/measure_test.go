package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/internal/workload"
)

func TestFigures(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		got  any
		want string
	}{
		{middle([]float64{3, 1, 2}), "2"},
		{middle([]float64{4, 1, 2, 3}), "2.5"},
		{middle(nil), "0"},
		{figure(0), "0"},
		{figure(1), "1"},
		{figure(1.234), "1.23"},
		{figure(9.999), "10.0"},
		{figure(99.94), "99.9"},
		{figure(99.96), "100"},
		{figure(12345.6), "12346"},
		{figure(0.001234), "0.0012"},
	} {
		if got := fmt.Sprint(test.got); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

func TestWindowIsWhatHappenedInBetween(t *testing.T) {
	t.Parallel()
	var r trial
	for i := range 30 {
		r.Took(time.Duration(i) * time.Millisecond)
		r.Done(1)
	}
	start := time.Now()
	from := reading{
		Counts: workload.Counts{Tasks: 10, Latencies: 10, Statements: 5}, at: start,
		database: time.Second, allCPUs: 10 * time.Second, busyCPUs: 5 * time.Second, wal: 1000, conns: 1,
	}
	to := reading{
		Counts: workload.Counts{Tasks: 20, Latencies: 20, Statements: 25}, at: start.Add(2 * time.Second),
		database: 2 * time.Second, pooler: time.Millisecond, allCPUs: 14 * time.Second, busyCPUs: 7001 * time.Millisecond, wal: 6000, conns: 3,
	}
	want := Sample{
		Tasks: 5, P50: 14, P95: 19, P99: 19, DatabaseCPU: 100_000, PoolerCPU: 100, Statements: 2, WAL: 500, ServerConns: 3, Others: 25,
		StatementRate: 10, DatabaseShare: 50, PoolerShare: 0.05,
	}
	if diff := cmp.Diff(want, from.until(to, &r)); diff != "" {
		t.Error(diff)
	}
	// Without tasks there is nothing to share among.
	to.Tasks, to.Latencies = 10, 10
	want = Sample{ServerConns: 3, Others: 25, StatementRate: 10, DatabaseShare: 50, PoolerShare: 0.05}
	if diff := cmp.Diff(want, from.until(to, &r)); diff != "" {
		t.Error(diff)
	}
}

func TestTurnsAlternate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		n    int
		want []int
	}{
		{1, []int{0, 0, 0}},
		{2, []int{0, 1, 1, 0, 0, 1, 1, 0}},
		{3, []int{0, 1, 2, 2, 1, 0, 0, 1, 2}},
	} {
		var got []int
		for i := range test.want {
			got = append(got, turn(i, test.n))
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestPlanTellsWhatIsLeft(t *testing.T) {
	t.Parallel()
	c := contest{name: "c", contestants: []contestant{{name: "a"}, {name: "b"}}}
	var p plan
	p.add("s", []contest{c}, pace{warmUp: time.Second, window: 7 * time.Second}, 3) // with what is around it, ten seconds each
	step := func(name string) planned { return planned{"s", c.key(), name} }
	for _, test := range []struct {
		after string
		took  time.Duration
		want  time.Duration
	}{
		{"", 0, 60 * time.Second},
		{"a", 20 * time.Second, (2*20 + 3*20) * time.Second}, // the other one may take twice as long, too
		{"b", 5 * time.Second, (2*20 + 2*5) * time.Second},
		{"b", 6 * time.Second, (2*20 + 6) * time.Second},
		{"a", 0, (20 + 6) * time.Second}, // left out
	} {
		if test.after != "" {
			p.took(step(test.after), test.took)
		}
		if got := p.left(); got != test.want {
			t.Errorf("after %q: %s, want %s", test.after, got, test.want)
		}
	}
	if got := p.String(); got != "[4/6, about 26s left]" {
		t.Error(got)
	}
}

func TestDisturbedRunsAreMeasuredAgain(t *testing.T) {
	t.Parallel()
	failure := errors.New("failure")
	for _, test := range []struct {
		name   string
		others []float64 // of the runs, the last one's on and on
		err    error     // of the last one
		tries  int
		want   string
	}{
		{name: "quiet", others: []float64{10}, tries: 1},
		{name: "quiet later", others: []float64{11, 80, 9}, tries: 3},
		{name: "never quiet", others: []float64{50}, tries: mostTries, want: "wait for a quiet machine"},
		{name: "failed", others: []float64{50, 50}, err: failure, tries: 2, want: "failure"},
	} {
		tries := 0
		s, err := undisturbed(t.Context(), 10, 0, func() (Sample, error) {
			tries++
			last := tries >= len(test.others)
			s := Sample{Others: test.others[min(tries, len(test.others))-1]}
			if last && test.err != nil {
				return s, test.err
			}
			return s, nil
		})
		if tries != test.tries {
			t.Errorf("%s: %d tries, want %d", test.name, tries, test.tries)
		}
		switch {
		case test.want == "" && (err != nil || s.Others > 10):
			t.Errorf("%s: %v, %v", test.name, s.Others, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := undisturbed(ctx, 10, time.Hour, func() (Sample, error) {
		cancel()
		return Sample{Others: 50}, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: got %v", err)
	}
}

func TestProcessStatus(t *testing.T) {
	t.Parallel()
	const after = " S 7 1 1 0 -1 0 0 0 0 0 100 20 3 4 20 0 1 0 5"
	want := procStat{parent: 7, own: 1200 * time.Millisecond, waited: 70 * time.Millisecond}
	for _, name := range []string{"(sh)", "(a b) S 9 (c)", "()"} {
		if got, err := parseStat("42 " + name + after); err != nil || got != want {
			t.Errorf("%s: got %+v (%v), want %+v", name, got, err, want)
		}
	}
	for _, line := range []string{"", "42", "42 (sh) S 7", "42 (sh) S x 1 1 0 -1 0 0 0 0 0 100 20 3 4 20"} {
		if got, err := parseStat(line); err == nil {
			t.Errorf("%q: got %+v, want an error", line, got)
		}
	}
	if d, err := processTime(0); d != 0 || err != nil {
		t.Errorf("no process: %v (%v)", d, err)
	}
}

func TestCPUTimes(t *testing.T) {
	t.Parallel()
	all, busy, err := parseCPU("cpu  1 2 3 400 50 6 7 8 9 10")
	if err != nil || all != 477*tick || busy != 27*tick {
		t.Errorf("%v, of which %v (%v)", all, busy, err)
	}
	for _, line := range []string{"", "cpu", "cpu  1 2 3", "cpu  1 2 3 4 5 6 7 x", "cpu0 1 2 3 4 5 6 7 8"} {
		if _, _, err := parseCPU(line); err == nil {
			t.Errorf("%q: no error", line)
		}
	}
}

func TestFamilyHasThoseThatAreGone(t *testing.T) {
	t.Parallel()
	before, err := familyTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	busy := exec.CommandContext(t.Context(), "sh", "-c", "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done")
	if err := busy.Run(); err != nil {
		t.Fatal(err)
	}
	spent := busy.ProcessState.UserTime() + busy.ProcessState.SystemTime()
	after, err := familyTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if spent < 2*tick || after-before < spent-2*tick {
		t.Errorf("a child took %v, the family %v", spent, after-before)
	}
}

func TestPgBouncerVersions(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"PgBouncer 1.18.0": "false", "PgBouncer 1.20.1": "false", "PgBouncer 1.21.0": "true", "PgBouncer 1.24.1": "true",
		"PgBouncer 2.0.0": "true", "Odyssey 1.4": "error",
	} {
		tracks, err := tracksNamed(version)
		got := fmt.Sprint(tracks)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", version, got, want)
		}
	}
}
