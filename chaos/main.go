// Command chaos breaks Pith for a while, and judges whether it has kept its promises.
//
//	chaos [-duration D] [-seed N] [-ttl D] [-workers N] [-dir DIR]
//	chaos -judge DIR
//
// It starts PostgreSQL, PgBouncer and the stand-in for Amazon RDS Proxy, and a fleet of workers, dispatchers and
// API processes that go through one or the other, each on a network of its own. Then it does to them what happens
// to such things, drawn at random from the seed, while tasks are dispatched, run, canceled and scheduled. When the
// time is over it heals everything, waits until all is quiet, and judges by what the processes have told the
// witness meanwhile and by what the database holds. The last line has the figures.
//
// The same seed does the same things at the same times; what the processes make of it is their own.
//
// What it was judged by stands in a directory, where -judge judges it again. The exit status is 0 if nothing was
// violated, 1 if something was, or the run failed, and 2 for a wrong command line.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pithworks/pith/chaos/judge"
	"github.com/pithworks/pith/chaos/witness"
	"github.com/pithworks/pith/tasking"
)

func main() {
	known, err := registry()
	if err != nil {
		panic(err) // the types are the program's own
	}
	tasking.RunChild(known)
	if os.Getenv(processVariable) != "" {
		s, err := self()
		if err == nil {
			err = runProcess(s, os.Stdin)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(start(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

type config struct {
	duration time.Duration
	seed     uint64
	ttl      time.Duration
	workers  int
	dir      string
}

// Exit statuses.
const (
	exitOK       = 0
	exitViolated = 1
	exitUsage    = 2
)

func start(ctx context.Context, args []string, out, progress io.Writer) int {
	var cfg config
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.DurationVar(&cfg.duration, "duration", 2*time.Minute, "how `long` to break things")
	flags.Uint64Var(&cfg.seed, "seed", 0, "`number` that decides what is broken when; 0: draw one")
	flags.DurationVar(&cfg.ttl, "ttl", 4*time.Second, "TTL of the leases")
	flags.IntVar(&cfg.workers, "workers", 10, "`number` of worker processes")
	flags.StringVar(&cfg.dir, "dir", "", "new `directory` for the logs; default: one for temporary files, removed if nothing was violated")
	again := flags.String("judge", "", "judge the run in this `directory` again, and do nothing else")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(progress, "chaos: %q: there are no arguments, only flags\n", flags.Arg(0))
		return exitUsage
	case cfg.duration <= 0 || cfg.ttl < time.Second || cfg.workers < 1 || cfg.workers > 200:
		fmt.Fprintln(progress, "chaos: use a -duration above 0, a -ttl of a second or more, and 1 to 200 -workers")
		return exitUsage
	}
	if *again != "" {
		r, err := readRun(*again)
		if err != nil {
			fmt.Fprintln(progress, "chaos:", err)
			return exitUsage
		}
		return conclude(r, "chaos: judged again", out)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if cfg.seed == 0 {
		cfg.seed = rand.Uint64N(1e6) + 1
	}
	keep := cfg.dir != ""
	if err := cfg.makeDir(); err != nil {
		fmt.Fprintln(progress, "chaos:", err)
		return exitUsage
	}
	fmt.Fprintf(progress, "chaos: seed %d, %s, logs in %s\n", cfg.seed, cfg.duration, cfg.dir)
	r, err := breakThings(ctx, cfg, progress)
	if err != nil {
		fmt.Fprintf(progress, "chaos: seed %d: %v\n", cfg.seed, err)
		return exitViolated
	}
	if err := writeRun(cfg.dir, r); err != nil {
		fmt.Fprintln(progress, "chaos:", err)
		return exitViolated
	}
	code := conclude(r, fmt.Sprintf("chaos: seed %d, %s", cfg.seed, cfg.duration), out)
	if code == exitOK && !keep {
		if err := os.RemoveAll(cfg.dir); err != nil {
			fmt.Fprintln(progress, "chaos:", err)
		}
	}
	return code
}

func (c *config) makeDir() (err error) {
	if c.dir == "" {
		c.dir, err = os.MkdirTemp("", "pith-chaos-")
		return err
	}
	if c.dir, err = filepath.Abs(c.dir); err != nil {
		return err
	}
	return os.Mkdir(c.dir, 0o755)
}

// conclude judges, and prints what was violated, how long recoveries took, and the line of figures.
func conclude(r judge.Run, what string, out io.Writer) int {
	violations := judge.Judge(r)
	const most = 50
	for i, v := range violations {
		if i == most {
			fmt.Fprintf(out, "and %d more violations\n", len(violations)-most)
			break
		}
		fmt.Fprintln(out, "VIOLATION", v)
	}
	faults := map[string]int{}
	dispatched, fenced, effects := 0, 0, 0
	for _, e := range r.Events {
		switch {
		case e.Kind == witness.Fault:
			faults[e.Name]++
		case e.Kind == witness.Dispatched:
			dispatched++
		case e.Refused:
			fenced++
		case e.Kind == witness.Effect:
			effects++
		}
	}
	var times []time.Duration
	fmt.Fprintf(out, "%-28s %6s %10s %10s\n", "fault", "times", "recovered", "at worst")
	recoveries := judge.Recoveries(r)
	for _, name := range sorted(faults) {
		median, worst := "-", "-"
		if i := slices.IndexFunc(recoveries, func(x judge.Recovery) bool { return x.Fault == name }); i >= 0 {
			median, worst = seconds(recoveries[i].Median), seconds(recoveries[i].Worst)
			times = append(times, recoveries[i].Times...)
		}
		fmt.Fprintf(out, "%-28s %6d %10s %10s\n", name, faults[name], median, worst)
	}
	for _, x := range recoveries {
		if faults[x.Fault] == 0 {
			fmt.Fprintf(out, "%-28s %6d %10s %10s\n", x.Fault, len(x.Times), seconds(x.Median), seconds(x.Worst))
		}
	}
	slices.Sort(times)
	median, worst, total := "-", "-", 0
	if len(times) > 0 {
		median, worst = seconds(times[len(times)/2]), seconds(times[len(times)-1])
	}
	for _, n := range faults {
		total += n
	}
	fmt.Fprintf(out, "%s: %d tasks, %d dispatches acknowledged, %d effects, %d faults of %d kinds, %d late effects fenced, %d violations, recovery %s in the median, %s at worst\n",
		what, len(r.Tasks), dispatched, effects, total, len(faults), fenced, len(violations), median, worst)
	if len(violations) > 0 {
		return exitViolated
	}
	return exitOK
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func sorted(m map[string]int) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	return names
}

// The files of a run: the witness's log, and what else there is to judge by.
const (
	eventsFile = "events.jsonl"
	runFile    = "database.json"
)

func writeRun(dir string, r judge.Run) error {
	r.Events = nil // they have a file of their own
	raw, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, runFile), raw, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write what was found: %w", err)
	}
	return nil
}

func readRun(dir string) (r judge.Run, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, runFile))
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read what was found: %w", err)
	}
	f, err := os.Open(filepath.Join(dir, eventsFile))
	if err != nil {
		return r, err
	}
	defer f.Close()
	r.Events, err = witness.Read(f)
	return r, err
}
