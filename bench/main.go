// Command bench measures Pith: what it manages, and what that costs.
//
//	bench [-scenario NAME,…] [-runs N] [-quick] [-others PERCENT] [-pgbouncer PATH] [-out FILE]
//
// It starts a PostgreSQL and the poolers itself, runs the scenarios one after the other, shows
// progress on standard error, and writes tables: to standard output, or into FILE, where a name that
// ends in .json gets all samples, and any other must be a document with a section for each scenario.
//
// The exit status is 0 for success, 1 for a failure and 2 for a wrong command line. It reads CPU times
// from /proc, so it needs Linux.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := start(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// start runs the command line and returns the exit status.
func start(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[0] == standInCommand {
		if err := serveStandIn(ctx, args[1], stdin, stdout); err != nil {
			fmt.Fprintln(stderr, "bench: stand-in:", err)
			return exitFailure
		}
		return exitOK
	}
	if len(args) == 3 && args[0] == apiCommand {
		resources, err := strconv.Atoi(args[2])
		if err == nil {
			err = serveAPI(ctx, args[1], resources, stdin, stdout)
		}
		if err != nil {
			fmt.Fprintf(stderr, "bench: %s: %v\n", apiCommand, err)
			return exitFailure
		}
		return exitOK
	}
	cfg, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return exitUsage
	}
	switch err := measureAll(ctx, cfg, stdout, stderr); {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(stderr, "bench: interrupted")
		return exitFailure
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailure
	}
	return exitOK
}

// config is the command line.
type config struct {
	scenarios []scenario
	runs      int
	pace      pace
	others    float64
	settings  map[string]string // of PostgreSQL; else its defaults
	bouncer   string
	out       string
	command   string
}

// defaultSettings are all that differs from PostgreSQL's defaults.
var defaultSettings = map[string]string{"shared_buffers": "512MB", "max_connections": "200"}

// paces: a full run is long enough for thousands of tasks, a quick one shows that it works.
var (
	fullPace  = pace{warmUp: time.Second, window: 3 * time.Second, longest: 10 * time.Second, share: 1}
	quickPace = pace{warmUp: 100 * time.Millisecond, window: 300 * time.Millisecond, longest: 10 * time.Second, share: 0.05, quick: true}
)

func parse(args []string, stderr io.Writer) (config, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	wanted := flags.String("scenario", "", "run only these, separated by commas: "+strings.Join(names, ", "))
	runs := flags.Int("runs", 5, "runs of each variant")
	quick := flags.Bool("quick", false, "make each run short and run once, unless -runs is given: the figures mean little")
	others := flags.Float64("others", 100, "measure a run again if other processes took more than this `percentage` of the CPUs")
	bouncer := flags.String("pgbouncer", "", "path of the PgBouncer to use; default: the system's")
	out := flags.String("out", "", "file for the results: .json, or a document with a section for each scenario; default: standard output")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	cfg := config{runs: *runs, pace: fullPace, others: *others, settings: defaultSettings, bouncer: *bouncer, out: *out, command: "go -C bench run ."}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) {
		given[f.Name] = true
		switch f.Name {
		case "quick":
			cfg.command += " -quick"
		case "pgbouncer":
			cfg.command += " -pgbouncer PATH" // a place on this machine
		case "out": // changes no figure
		default:
			cfg.command += fmt.Sprintf(" -%s %s", f.Name, f.Value)
		}
	})
	if *quick {
		cfg.pace = quickPace
		if !given["runs"] {
			cfg.runs = 1
		}
	}
	switch {
	case flags.NArg() > 0:
		return config{}, fmt.Errorf("unknown argument %q", flags.Arg(0))
	case cfg.runs < 1:
		return config{}, fmt.Errorf("-runs %d: use at least 1", cfg.runs)
	case !(cfg.others > 0 && cfg.others <= 100):
		return config{}, fmt.Errorf("-others %v: use a percentage above 0", cfg.others)
	case *wanted == "":
		cfg.scenarios = scenarios
		return cfg, nil
	}
	for name := range strings.SplitSeq(*wanted, ",") {
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return config{}, fmt.Errorf("unknown scenario %q: there are %s", name, strings.Join(names, ", "))
		}
		cfg.scenarios = append(cfg.scenarios, scenarios[i])
	}
	return cfg, nil
}

// measureAll runs the scenarios and writes what they found. What is written to a file is there as soon
// as its scenario has ended.
func measureAll(ctx context.Context, cfg config, stdout, progress io.Writer) (err error) {
	machine := thisMachine()
	todo := &plan{}
	contests := make([][]contest, len(cfg.scenarios))
	for i, s := range cfg.scenarios {
		if s.custom != nil {
			continue
		}
		contests[i] = s.contests(cfg.pace)
		for _, c := range contests[i] {
			if err := c.check(); err != nil {
				return fmt.Errorf("scenario %s: %w", s.name, err)
			}
		}
		todo.add(s.name, contests[i], cfg.pace, cfg.runs)
	}
	fmt.Fprintf(progress, "%d runs, about %s\n", todo.steps, todo.left().Round(time.Minute))
	b := &bench{runs: cfg.runs, pace: cfg.pace, others: cfg.others, progress: progress, plan: todo, plots: cfg.plots()}
	if slices.ContainsFunc(cfg.scenarios, scenario.sharesServers) {
		if b.stage, err = openStage(ctx, cfg.settings, cfg.bouncer, progress); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.stage.close(ctx)) }()
	}
	var reports []Report
	for i, s := range cfg.scenarios {
		r, err := cfg.measure(ctx, b, s, contests[i], machine)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", s.name, err)
		}
		reports = append(reports, r)
		if err := cfg.write(reports, stdout); err != nil {
			return err
		}
	}
	return nil
}

// write writes the last report, or all of them into a JSON file.
func (cfg config) write(reports []Report, stdout io.Writer) error {
	last := reports[len(reports)-1]
	switch {
	case cfg.out == "":
		fmt.Fprintln(stdout, last.markdown())
		return nil
	case strings.HasSuffix(cfg.out, ".json"):
		text, err := json.MarshalIndent(reports, "", "  ")
		if err != nil {
			return fmt.Errorf("encode results: %w", err)
		}
		if err := os.WriteFile(cfg.out, append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("write results: %w", err)
		}
		return nil
	}
	if dir := cfg.plots(); dir != "" && last.Contests != nil {
		var err error
		if last.plots, err = last.drawn(dir); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
	}
	return updateDocument(cfg.out, last)
}

// plots is the directory of the document's plots, next to it and by its name: "" without a document.
func (cfg config) plots() string {
	if cfg.out == "" || strings.HasSuffix(cfg.out, ".json") {
		return ""
	}
	return strings.TrimSuffix(cfg.out, filepath.Ext(cfg.out))
}

// measure runs a scenario.
func (cfg config) measure(ctx context.Context, b *bench, s scenario, contests []contest, machine Machine) (_ Report, err error) {
	r := Report{
		Scenario: s.name, What: s.what, Date: time.Now(), Command: cfg.command, Machine: machine, variants: s.variants, columns: s.columns,
	}
	settings := cfg.settings
	if s.settings != nil {
		settings = maps.Clone(cfg.settings)
		maps.Copy(settings, s.settings)
		apart := *b
		if apart.stage, err = openStage(ctx, settings, cfg.bouncer, b.progress); err != nil {
			return Report{}, err
		}
		defer func() { err = errors.Join(err, apart.stage.close(ctx)) }()
		b = &apart
	}
	if s.needsServers() {
		r.Versions = append(r.Versions, b.stage.versions...)
		r.Setup = fmt.Sprintf("PostgreSQL's defaults, fsync on, but for %s; poolers in transaction mode with %d server connections; everything on this one machine",
			listed(settings), serverConns)
		r.Versions = append(r.Versions, "pgx "+moduleVersion("github.com/jackc/pgx/v5"))
	}
	if slices.ContainsFunc(contests, contest.withRiver) {
		r.Versions = append(r.Versions, "River "+moduleVersion("github.com/riverqueue/river"))
	}
	r.Versions = append(r.Versions, runtime.Version())
	if s.custom != nil {
		r.Text, err = s.custom(ctx, b)
		return r, err
	}
	for _, c := range contests {
		held, err := b.hold(ctx, s, c)
		if err != nil {
			return Report{}, err
		}
		r.Contests = append(r.Contests, held)
	}
	return r, nil
}

// withRiver reports whether River takes part.
func (c contest) withRiver() bool {
	return slices.ContainsFunc(c.contestants, func(one contestant) bool { return one.base == baseRiver })
}

// listed shows settings in the order of their names.
func listed(settings map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		out = append(out, name+" = "+settings[name])
	}
	return strings.Join(out, ", ")
}
