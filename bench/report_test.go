package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// lineOf makes a line whose runs had so many tasks per second, at a second of CPU time each.
func lineOf(path, name string, tasks ...float64) Line {
	l := Line{Path: path, Contestant: name}
	for _, v := range tasks {
		l.Samples = append(l.Samples, Sample{Tasks: v, DatabaseCPU: 1e6 / v, WAL: 100, ServerConns: 2, Others: v / 100})
	}
	return l
}

func reportOf(contests ...Contest) Report {
	return Report{
		Scenario: "which", What: "Which?", Date: time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC), Command: "run", Versions: []string{"A 1", "B 2"}, Setup: "so",
		Machine: Machine{CPU: "X", CPUs: 2, Memory: "1 GiB", Kernel: "6", Load: "0.1"}, Contests: contests,
	}
}

const measuredOn = `
Measured on 2026-01-02 with ` + "`run`" + `.

- 2 × X, 1 GiB of memory, Linux 6; load average before the start: 0.1
- A 1, B 2
- so
- Of the machine's CPU time 1.45 % went elsewhere in the median of all runs, at most 8 %
`

func TestReportPairsNeighbors(t *testing.T) {
	t.Parallel()
	none := Line{Path: "pooler", Contestant: "new", Note: "needs a newer one"}
	contests := []Contest{
		{Name: "work", Latency: "task", Reference: "old", Lines: []Line{lineOf("direct", "old", 100, 200, 400), lineOf("direct", "new", 110, 180, 800)}},
		{Name: "work", Latency: "task", Reference: "old", Lines: []Line{lineOf("pooler", "old", 50, 40), none}},
	}
	detailed := `
Per task, medians:

| line | by |  | latency of | tasks/s | p50 ms | p95 ms | p99 ms | database CPU µs | pooler CPU µs | client CPU µs | statements | transactions | WAL bytes | server connections |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
| work | direct | old | task | 200 | 0 | 0 | 0 | 5000 | 0 | 0 | 0 | 0 | 100 | 2 |
| work | direct | new | task | 180 | 0 | 0 | 0 | 5556 | 0 | 0 | 0 | 0 | 100 | 2 |
| work | pooler | old | task | 45 | 0 | 0 | 0 | 22500 | 0 | 0 | 0 | 0 | 100 | 2 |
` + measuredOn
	r := reportOf(contests...)
	r.variants = [2]string{"old", "new"}
	want := `Which? 2 to 3 runs each, medians.

| path | load | old tasks/s | new tasks/s | new ÷ old | lowest and highest pair | database CPU, new ÷ old |
|---|---|---|---|---|---|---|
| direct | work | 200 (100–400) | 180 (110–800) | 1.10 | 0.90–2.00 | 0.91 |
| pooler | work | 45 (40–50) | needs a newer one | – | – | – |
` + detailed
	if diff := cmp.Diff(want, r.markdown()); diff != "" {
		t.Error(diff)
	}
	r.variants = [2]string{}
	r.Contests[0].Targets = []Verdict{
		target{of: "new", figure: tasksPerSecond, against: "old", least: 1.5}.judge(contests[0].Lines),
		target{of: "new", figure: databaseCPU, most: 6000}.judge(contests[0].Lines),
	}
	r.Contests[1].Targets = []Verdict{target{of: "new", figure: tasksPerSecond, against: "old", least: 1.5}.judge(contests[1].Lines)}
	r.plots = []string{"dir/which.svg"}
	want = `Which? 2 to 3 runs each, medians.

| line | of | target | reached | lowest and highest run |  |
|---|---|---|---|---|---|
| work | new | tasks/s ≥ 1.5 × old | 1.1 | 0.9–2 | not met |
| work | new | database CPU µs ≤ 6000 | 5556 | 1250–9091 | met |
| work | new | tasks/s ≥ 1.5 × old | – | – | needs a newer one |

| line |  | by | tasks/s | ÷ reference | lowest and highest pair | database CPU ÷ | WAL ÷ |
|---|---|---|---|---|---|---|---|
| work | old (reference) | direct | 200 (100–400) | – | – | – | – |
| work | new | direct | 180 (110–800) | 1.10 | 0.90–2.00 | 0.91 | 1.00 |
| work | old (reference) | pooler | 45 (40–50) | – | – | – | – |
| work | new | pooler | needs a newer one | – | – | – | – |

![which](dir/which.svg)
` + detailed
	if diff := cmp.Diff(want, r.markdown()); diff != "" {
		t.Error(diff)
	}
}

func TestReportSaysWhenWasMeasured(t *testing.T) {
	t.Parallel()
	line := func(name, when string) Line { return Line{Contestant: name, When: when} }
	for _, test := range []struct {
		contests []Contest
		want     string
	}{
		{[]Contest{{Lines: []Line{line("a", ""), line("b", "")}}}, ""},
		{[]Contest{{Lines: []Line{line("a", "now"), line("b", "now")}}, {Lines: []Line{line("a", "now")}}}, "Measured now."},
		{[]Contest{{Name: "x", Lines: []Line{line("a", "now"), line("b", "then")}}}, "Measured now (a); then (b)."},
		{
			[]Contest{{Name: "x", Lines: []Line{line("a", "now"), line("b", "now")}}, {Name: "y", Lines: []Line{line("a", "now"), line("b", "then")}}},
			"Measured now (x; a, y); then (b, y).",
		},
	} {
		if got := reportOf(test.contests...).when(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestFiguresThatCannotBeAreFound(t *testing.T) {
	t.Parallel()
	c := contest{latency: "task", targets: []target{{of: "new", figure: own("lost"), none: true}, {of: "new", figure: tasksPerSecond, against: "old"}}}
	silent := contest{latency: noLatency}
	columns := []column{tasksPerSecond, p50, p99, databaseCPU, own("lost")}
	good := Sample{Tasks: 1, P50: 1, P95: 2, P99: 3, More: map[string]float64{"lost": 0}}
	for _, test := range []struct {
		what       string
		contest    contest
		contestant string
		change     func(*Sample)
		want       string
	}{
		{"nothing", c, "new", func(*Sample) {}, ""},
		{"no tasks", c, "new", func(s *Sample) { s.Tasks = 0 }, "tasks/s cannot be 0"},
		{"no latencies", c, "new", func(s *Sample) { s.P50, s.P95, s.P99 = 0, 0, 0 }, "p99 ms cannot be 0"},
		{"no latencies, and none wanted", silent, "new", func(s *Sample) { s.P50, s.P95, s.P99 = 0, 0, 0 }, ""},
		{"disorder", c, "new", func(s *Sample) { s.P95 = 4 }, "percentiles cannot be 1, 4, 3"},
		{"no figure for a target", c, "new", func(s *Sample) { s.More = nil }, "lost was not measured"},
		{"no figure, and no target", c, "old", func(s *Sample) { s.More = nil }, ""},
	} {
		s := good
		test.change(&s)
		got := ""
		if err := test.contest.verify(test.contestant, columns, s); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.what, got, test.want)
		}
	}
}

func TestTargetsAreJudgedByTheMedianOfTheRuns(t *testing.T) {
	t.Parallel()
	lines := []Line{
		lineOf("direct", "old", 100, 100, 100), lineOf("direct", "new", 90, 200, 150), lineOf("direct", "zero"),
		{Contestant: "none", Note: "needs something"},
	}
	for _, test := range []struct {
		target target
		text   string
		want   Verdict
	}{
		{
			target{of: "new", figure: tasksPerSecond, against: "old", least: 1.5},
			"tasks/s ≥ 1.5 × old",
			Verdict{Reached: 1.5, Lowest: 0.9, Highest: 2, Met: true, ratio: true},
		},
		{
			target{of: "new", figure: tasksPerSecond, against: "old", least: 1.6},
			"tasks/s ≥ 1.6 × old",
			Verdict{Reached: 1.5, Lowest: 0.9, Highest: 2, ratio: true},
		},
		{
			target{of: "old", figure: timePerTask, against: "new", most: 1.4},
			"time per task ≤ 1.4 × new",
			Verdict{Reached: 1.5, Lowest: 0.9, Highest: 2, ratio: true},
		},
		{
			target{of: "new", figure: tasksPerSecond, least: 60_000},
			"tasks/s ≥ 60000",
			Verdict{Reached: 150, Lowest: 90, Highest: 200},
		},
		{target{of: "new", figure: walBytes, most: 100}, "WAL bytes ≤ 100", Verdict{Reached: 100, Lowest: 100, Highest: 100, Met: true}},
		{target{of: "new", figure: own("missing"), most: 0.5}, "missing ≤ 0.50", Verdict{Met: true}},
		{target{of: "new", figure: tasksPerSecond, against: "none", least: 1}, "tasks/s ≥ 1 × none", Verdict{Note: "needs something", ratio: true}},
		{target{of: "zero", figure: tasksPerSecond, least: 1}, "tasks/s ≥ 1", Verdict{Note: "not measured"}},
		// There is nothing to divide by.
		{target{of: "new", figure: walBytes, against: "old", most: 1}, "WAL bytes ≤ 1 × old", Verdict{Reached: 1, Lowest: 1, Highest: 1, Met: true, ratio: true}},
		{target{of: "new", figure: p99, against: "old", most: 1}, "p99 ms ≤ 1 × old", Verdict{Note: "not measured", ratio: true}},
	} {
		test.want.Of, test.want.Target = test.target.of, test.text
		if diff := cmp.Diff(test.want, test.target.judge(lines), cmp.AllowUnexported(Verdict{})); diff != "" {
			t.Errorf("%s: %s", test.text, diff)
		}
	}
}

func TestScenariosNameContestantsThatExist(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, s := range scenarios {
		if names[s.name] || s.name == "" || !strings.HasSuffix(s.what, "?") {
			t.Errorf("scenario %q asks %q", s.name, s.what)
		}
		names[s.name] = true
		if (s.contests == nil) == (s.custom == nil) {
			t.Errorf("%s: contests or custom", s.name)
		}
		if s.contests == nil {
			continue
		}
		for _, p := range []pace{fullPace, quickPace} {
			for _, c := range s.contests(p) {
				if err := c.check(); err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			}
		}
	}
	broken := contest{contestants: []contestant{{name: "a"}}, reference: "b"}
	if err := broken.check(); err == nil {
		t.Error("a reference that is not there goes unnoticed")
	}
	broken = contest{contestants: []contestant{{name: "a"}}, targets: []target{{of: "a", against: "b"}}}
	if err := broken.check(); err == nil {
		t.Error("a target that is not there goes unnoticed")
	}
}

func TestPlotsAreMadeAnewAndKeptApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := func() (names []string) {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			names = append(names, f.Name())
		}
		return names
	}
	similar := reportOf(
		Contest{Name: "a", Lines: []Line{lineOf("", "x", 10, 20), {Contestant: "none", Note: "why"}}},
		Contest{Name: "b", Lines: []Line{lineOf("", "x", 30)}},
	)
	far := reportOf(similar.Contests[0], Contest{Name: "c", Lines: []Line{lineOf("", "x", 300)}})
	for _, test := range []struct {
		report Report
		want   []string
	}{
		{far, []string{"which-1.svg", "which-2.svg"}},
		{similar, []string{"which.svg"}},
		{reportOf(Contest{Name: "a", Lines: []Line{{Contestant: "none", Note: "why"}}}), nil},
	} {
		paths, err := test.report.drawn(dir)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, name := range test.want {
			want = append(want, filepath.Base(dir)+"/"+name)
		}
		if diff := cmp.Diff(want, paths, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(test.want, files()); diff != "" {
			t.Error(diff)
		}
	}
}
