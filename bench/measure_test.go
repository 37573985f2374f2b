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
)

func TestFigures(t *testing.T) {
	t.Parallel()
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1)*time.Millisecond)
	}
	for _, test := range []struct {
		got  any
		want string
	}{
		{percentile(hundred, 50), "50"},
		{percentile(hundred, 95), "95"},
		{percentile(hundred, 99), "99"},
		{percentile(hundred[:1], 99), "1"},
		{percentile(hundred[:3], 50), "2"},
		{percentile(nil, 50), "0"},
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
	} {
		if got := fmt.Sprint(test.got); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

func TestWindowIsWhatHappenedInBetween(t *testing.T) {
	t.Parallel()
	var r run
	for i := range 30 {
		r.took(time.Duration(i) * time.Millisecond)
		r.done()
	}
	start := time.Now()
	from := reading{at: start, tasks: 10, latencies: 10, statements: 5, database: time.Second, allCPUs: 10 * time.Second, busyCPUs: 5 * time.Second, wal: 1000, conns: 1}
	to := reading{at: start.Add(2 * time.Second), tasks: 20, latencies: 20, statements: 25, database: 2 * time.Second, pooler: time.Millisecond, allCPUs: 14 * time.Second, busyCPUs: 7001 * time.Millisecond, wal: 6000, conns: 3}
	want := Sample{Tasks: 5, P50: 14, P95: 19, P99: 19, DatabaseCPU: 100_000, PoolerCPU: 100, Statements: 2, WAL: 500, ServerConns: 3, Others: 25}
	if got := from.until(to, &r); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTurnsAlternate(t *testing.T) {
	t.Parallel()
	var got []int
	for i := range 8 {
		got = append(got, turn(i))
	}
	if diff := cmp.Diff([]int{0, 1, 1, 0, 0, 1, 1, 0}, got); diff != "" {
		t.Error(diff)
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

func TestMarkIsReachedByItsTask(t *testing.T) {
	t.Parallel()
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	var r run
	two, three := r.mark(2), r.mark(3)
	r.done()
	if closed(two) {
		t.Error("one task has reached two")
	}
	r.done()
	if !closed(two) || closed(three) {
		t.Error("the second task has not reached two, or has reached three")
	}
	if !closed(r.mark(2)) {
		t.Error("what was reached before is not reached")
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
