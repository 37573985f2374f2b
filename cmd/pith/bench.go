package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/schollz/progressbar/v3"

	"github.com/pithworks/pith/internal/workload"
	"github.com/pithworks/pith/pool"
)

type benchCmd struct {
	Scenario    string        `arg:"" enum:"noop,dispatch,chain,resources,pickup" help:"What to measure: ${enum}."`
	Tasks       int           `default:"${benchTasks}" help:"Tasks that wait to be run; where there is no backlog, the most that are dispatched."`
	Duration    time.Duration `default:"${benchDuration}" help:"How long to measure at most."`
	Slots       int           `default:"0" help:"Slots of the worker; for dispatch, goroutines that dispatch. 0: ${benchSlots} slots, ${benchGoroutines} goroutines."`
	Connections int32         `default:"${connections}" help:"Connections to the database, or the pooler."`
}

// benchVars are what its tags name.
var benchVars = kong.Vars{
	"benchTasks": strconv.Itoa(workload.DefaultTasks), "benchDuration": workload.DefaultDuration.String(),
	"benchSlots": strconv.Itoa(workload.DefaultSlots), "benchGoroutines": strconv.Itoa(workload.DefaultGoroutines),
	"connections": strconv.Itoa(maxConns),
}

// Help is what the command's own --help says besides the flags.
func (benchCmd) Help() string {
	var b strings.Builder
	for _, s := range workload.Scenarios {
		fmt.Fprintf(&b, "%s: %s\n\n", s.Name, s.What)
	}
	fmt.Fprintf(&b, "The load is real, beside whatever else uses the database. Its tasks are of the type %s, which no other worker runs. "+
		"They are deleted at the end, those that wait too, also after an interrupt; a run that was killed leaves them to the next one. "+
		"Let there be one at a time: it is refused while another one's worker is online, but one that only dispatches, or has yet to fill its backlog, "+
		"is not seen, and loses its tasks. "+
		"What stays is one row of task_kind, and dead rows until the next vacuum.", workload.TaskName)
	return b.String()
}

// Run runs the command.
func (c benchCmd) Run(ctx context.Context, s *session) error {
	switch {
	case c.Tasks < 1 || c.Tasks > 10_000_000:
		return usage("--tasks %d: use 1 to 10000000", c.Tasks)
	case c.Duration <= 0:
		return usage("--duration %s: use a time above 0", c.Duration)
	case c.Slots < 0 || c.Slots > 100_000:
		return usage("--slots %d: use 0 to 100000", c.Slots)
	case c.Connections < 1:
		return usage("--connections %d: use at least 1", c.Connections)
	}
	scenario, err := workload.Find(c.Scenario)
	if err != nil {
		return usage("%v", err)
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	var meter workload.Meter
	p, err := s.metered(ctx, &meter, scenario.Timed(), c.Connections)
	if err != nil {
		return err
	}
	defer p.Close()
	shown := &benchProgress{out: s.err, live: isTerminal(s.err)}
	result, err := scenario.Run(ctx, p, &meter, workload.Config{
		Tasks: c.Tasks, Duration: c.Duration, Slots: c.Slots, Progress: shown.show,
	})
	shown.end()
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled):
		if left, ok := errors.AsType[*workload.CleanError](err); ok {
			return fmt.Errorf("interrupted; %d tasks were deleted; %w", result.Deleted, left)
		}
		return fmt.Errorf("interrupted; %d tasks were deleted", result.Deleted)
	case err != nil:
		return err
	}
	return s.print(result, func(w io.Writer) {
		row(w, "SCENARIO", "TASKS", "SECONDS", "TASKS/S", "STATEMENTS PER TASK", "P50 MS", "P95 MS", "P99 MS", "LATENCY OF")
		row(w, result.Scenario, fmt.Sprint(result.Tasks), fmt.Sprintf("%.1f", result.Seconds), fmt.Sprintf("%.0f", result.Rate),
			fmt.Sprintf("%.4f", result.Statements), fmt.Sprintf("%.2f", result.P50), fmt.Sprintf("%.2f", result.P95),
			fmt.Sprintf("%.2f", result.P99), result.Latency)
	})
}

// metered is connect with a pool of so many connections whose statements are counted.
func (s *session) metered(ctx context.Context, m *workload.Meter, timed bool, conns int32) (*pgxpool.Pool, error) {
	checked, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer checked.Close()
	cfg := checked.Config()
	cfg.MaxConns = conns
	cfg.ConnConfig.Tracer = m.Tracer(timed)
	return pool.OpenConfig(ctx, cfg)
}

// benchProgress shows how far a benchmark is: a bar on a terminal, else a line for each step.
type benchProgress struct {
	out  io.Writer
	live bool
	what string
	bar  *progressbar.ProgressBar
}

func (b *benchProgress) show(what string, done, total int) {
	if what != b.what {
		b.end()
		b.what = what
		switch {
		case !b.live:
			fmt.Fprintf(b.out, "%s\n", what)
		case total > 0:
			b.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(b.out), progressbar.OptionSetDescription(what),
				progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false))
		}
	}
	if b.bar != nil {
		_ = b.bar.Set(min(done, total))
	}
}

func (b *benchProgress) end() {
	if b.bar != nil {
		_ = b.bar.Exit()
		b.bar = nil
		fmt.Fprintln(b.out)
	}
}
