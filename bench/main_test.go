package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if args := os.Args[1:]; len(args) > 0 && args[0] == standInCommand {
		os.Exit(start(context.Background(), args, os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

func TestStatementsAreMeasuredAsTheyAreSent(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "out.json")
	cfg, err := parse([]string{"-scenario", "statements", "-runs", "1", "-out", out}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	cfg.pace = pace{warmUp: time.Millisecond, window: 20 * time.Millisecond, backlog: 8000}
	cfg.settings = map[string]string{"fsync": "off", "shared_buffers": "32MB"} // nobody reads the figures
	if err := measureAll(t.Context(), cfg, t.Output(), t.Output()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var reports []Report
	if err := json.Unmarshal(text, &reports); err != nil || len(reports) != 1 {
		t.Fatalf("%d reports (%v)", len(reports), err)
	}
	r := reports[0]
	if n := 3 * 5 * 2; len(r.Lines) != n { // paths, loads, variants
		t.Errorf("%d lines, want %d", len(r.Lines), n)
	}
	for _, l := range r.Lines {
		if l.Note != "" {
			if l.Path == "direct" || len(l.Samples) > 0 {
				t.Errorf("%s, %s, %s: %q, with %d samples", l.Path, l.Load, l.Variant, l.Note, len(l.Samples))
			}
			continue
		}
		if len(l.Samples) != cfg.runs {
			t.Errorf("%s, %s, %s: %d samples", l.Path, l.Load, l.Variant, len(l.Samples))
		}
		for _, s := range l.Samples {
			if (s.Prepared > 0) != (l.Variant == named) {
				t.Errorf("%s, %s, %s: %v statements were prepared", l.Path, l.Load, l.Variant, s.Prepared)
			}
			// CPU times may be below a tick.
			for name, v := range map[string]float64{
				"tasks": s.Tasks, "p50": s.P50, "statements": s.Statements, "transactions": s.Transactions,
				"wal": s.WAL, "connections": s.ServerConns,
			} {
				if v <= 0 {
					t.Errorf("%s, %s, %s: %s is %v", l.Path, l.Load, l.Variant, name, v)
				}
			}
			if s.P50 > s.P95 || s.P95 > s.P99 {
				t.Errorf("%s, %s, %s: latencies %v, %v, %v", l.Path, l.Load, l.Variant, s.P50, s.P95, s.P99)
			}
		}
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args    string
		command string
		runs    int
		err     string
	}{
		{args: "", command: "go -C bench run .", runs: 5},
		{args: "-quick", command: "go -C bench run . -quick", runs: 1},
		{args: "-quick -runs 3", command: "go -C bench run . -quick -runs 3", runs: 3},
		{args: "-scenario statements -out x.json -pgbouncer /x/y", command: "go -C bench run . -pgbouncer PATH -scenario statements", runs: 5},
		{args: "-others 15", command: "go -C bench run . -others 15", runs: 5},
		{args: "-others 0", err: "use a percentage"},
		{args: "-others NaN", err: "use a percentage"},
		{args: "-runs 0", err: "use at least 1"},
		{args: "-scenario nothing", err: `unknown scenario "nothing"`},
		{args: "more", err: `unknown argument "more"`},
		{args: "-what", err: "not defined"},
	} {
		cfg, err := parse(strings.Fields(test.args), t.Output())
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: got %v, want %q", test.args, err, test.err)
			}
			continue
		}
		if err != nil || cfg.command != test.command || cfg.runs != test.runs || len(cfg.scenarios) != 1 {
			t.Errorf("%s: %q, %d runs, %d scenarios (%v)", test.args, cfg.command, cfg.runs, len(cfg.scenarios), err)
		}
	}
}

func TestInterruptEndsIt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var out interrupter
	out.interrupt = cancel
	if code := start(ctx, []string{"-quick"}, strings.NewReader(""), t.Output(), &out); code != exitFailure {
		t.Errorf("exit status %d", code)
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); lines[len(lines)-1] != "bench: interrupted" {
		t.Errorf("it said:\n%s", &out)
	}
}

// An interrupter interrupts at the first sign of progress.
type interrupter struct {
	strings.Builder
	interrupt context.CancelFunc
}

func (i *interrupter) Write(p []byte) (int, error) {
	if strings.HasPrefix(string(p), "[1/") {
		i.interrupt()
	}
	return i.Builder.Write(p)
}

func TestExitStatusTellsWhatWentWrong(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]int{"-h": exitOK, "-runs x": exitUsage, "-quick -pgbouncer missing": exitFailure} {
		if got := start(t.Context(), strings.Fields(args), strings.NewReader(""), t.Output(), t.Output()); got != want {
			t.Errorf("%s: exit status %d, want %d", args, got, want)
		}
	}
}

func TestReportPairsNeighbors(t *testing.T) {
	t.Parallel()
	line := func(path, variant string, tasks ...float64) Line {
		l := Line{Path: path, Load: "work", Variant: variant, Latency: "task"}
		for _, v := range tasks {
			l.Samples = append(l.Samples, Sample{Tasks: v, DatabaseCPU: 1e6 / v, ServerConns: 2, Others: v / 100})
		}
		return l
	}
	none := line("pooler", "new")
	none.Note = "needs a newer one"
	r := Report{
		What: "Which?", Variants: [2]string{"old", "new"}, Date: time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC),
		Command: "run", Versions: []string{"A 1", "B 2"}, Setup: "so", Machine: Machine{CPU: "X", CPUs: 2, Memory: "1 GiB", Kernel: "6", Load: "0.1"},
		Lines: []Line{line("direct", "old", 100, 200, 400), line("direct", "new", 110, 180, 800), line("pooler", "old", 50, 40), none},
	}
	want := `Which? 3 runs each, medians.

| path | load | old tasks/s | new tasks/s | new ÷ old | lowest and highest pair | database CPU, new ÷ old |
|---|---|---|---|---|---|---|
| direct | work | 200 (100–400) | 180 (110–800) | 0.90 | 0.90–2.00 | 1.11 |
| pooler | work | 45 (40–50) | needs a newer one | – | – | – |

Per task, medians:

| path | load | variant | latency of | tasks/s | p50 ms | p95 ms | p99 ms | database CPU µs | pooler CPU µs | client CPU µs | statements | transactions | WAL bytes | server connections |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
| direct | work | old | task | 200 | 0 | 0 | 0 | 5000 | 0 | 0 | 0 | 0 | 0 | 2 |
| direct | work | new | task | 180 | 0 | 0 | 0 | 5556 | 0 | 0 | 0 | 0 | 0 | 2 |
| pooler | work | old | task | 45 | 0 | 0 | 0 | 22500 | 0 | 0 | 0 | 0 | 0 | 2 |

Measured on 2026-01-02 with ` + "`run`" + `.

- 2 × X, 1 GiB of memory, Linux 6; load average before the start: 0.1
- A 1, B 2
- so
- Of the machine's CPU time 1.45 % went elsewhere in the median of all runs, at most 8 %
`
	if diff := cmp.Diff(want, r.markdown()); diff != "" {
		t.Error(diff)
	}
}

func TestSectionIsReplacedInPlace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	begin, end := marks("one")
	if err := os.WriteFile(path, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Report{Scenario: "one", What: "Which?"}
	if err := updateDocument(path, []Report{r}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("before\n"+begin+r.markdown()+end+"after\n", string(got)); diff != "" {
		t.Error(diff)
	}
	r.Scenario = "two"
	if err := updateDocument(path, []Report{r}); err == nil || !strings.Contains(err.Error(), "no section two") {
		t.Errorf("got %v", err)
	}
}

func TestEveryScenarioHasItsSection(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios {
		if _, err := replaceSection(string(text), s.name, ""); err != nil {
			t.Error(err)
		}
	}
}
