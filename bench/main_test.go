package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if args := os.Args[1:]; len(args) > 0 && (args[0] == standInCommand || args[0] == apiCommand) {
		os.Exit(start(context.Background(), args, os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

// testConfig is the command line's, with servers that save time: nobody reads the figures.
func testConfig(t *testing.T, args ...string) config {
	t.Helper()
	cfg, err := parse(append([]string{"-quick"}, args...), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	cfg.pace = pace{warmUp: time.Millisecond, window: 20 * time.Millisecond, longest: time.Minute, share: 0.001, quick: true}
	cfg.settings = map[string]string{"fsync": "off", "shared_buffers": "32MB", "max_connections": "100"}
	return cfg
}

// measured runs a configuration and reads what it writes.
func measured(t *testing.T, cfg config) []Report {
	t.Helper()
	cfg.out = filepath.Join(t.TempDir(), "out.json")
	if err := measureAll(t.Context(), cfg, t.Output(), t.Output()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(cfg.out)
	if err != nil {
		t.Fatal(err)
	}
	var reports []Report
	if err := json.Unmarshal(text, &reports); err != nil {
		t.Fatal(err)
	}
	return reports
}

func TestStatementsAreMeasuredAsTheyAreSent(t *testing.T) {
	t.Parallel()
	reports := measured(t, testConfig(t, "-scenario", "statements"))
	if len(reports) != 1 {
		t.Fatalf("%d reports", len(reports))
	}
	r := reports[0]
	if n := 3 * 5; len(r.Contests) != n { // paths, loads
		t.Errorf("%d contests, want %d", len(r.Contests), n)
	}
	for _, c := range r.Contests {
		for _, l := range c.Lines {
			what := fmt.Sprintf("%s, %s, %s", l.Path, c.Name, l.Contestant)
			if l.Note != "" {
				if l.Path == direct || len(l.Samples) > 0 {
					t.Errorf("%s: %q, with %d samples", what, l.Note, len(l.Samples))
				}
				continue
			}
			if len(l.Samples) != 1 {
				t.Errorf("%s: %d samples", what, len(l.Samples))
			}
			for _, s := range l.Samples {
				if (s.Prepared > 0) != (l.Contestant == named) {
					t.Errorf("%s: %v statements were prepared", what, s.Prepared)
				}
			}
		}
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	all := len(scenarios)
	for _, test := range []struct {
		args      string
		command   string
		runs      int
		scenarios int
		err       string
	}{
		{args: "", command: "go -C bench run .", runs: 5, scenarios: all},
		{args: "-quick", command: "go -C bench run . -quick", runs: 1, scenarios: all},
		{args: "-quick -runs 3", command: "go -C bench run . -quick -runs 3", runs: 3, scenarios: all},
		{args: "-scenario statements -out x.json -pgbouncer /x/y", command: "go -C bench run . -pgbouncer PATH -scenario statements", runs: 5, scenarios: 1},
		{args: "-others 15", command: "go -C bench run . -others 15", runs: 5, scenarios: all},
		{args: "-others 0", err: "use a percentage"},
		{args: "-others NaN", err: "use a percentage"},
		{args: "-scenario chain,noop", command: "go -C bench run . -scenario chain,noop", runs: 5, scenarios: 2},
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
		if err != nil || cfg.command != test.command || cfg.runs != test.runs || len(cfg.scenarios) != test.scenarios {
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

func TestSectionIsReplacedInPlace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	begin, end := marks("one")
	if err := os.WriteFile(path, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Report{Scenario: "one", What: "Which?"}
	if err := updateDocument(path, r); err != nil {
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
	if err := updateDocument(path, r); err == nil || !strings.Contains(err.Error(), "no section two") {
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
