package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/worker"
)

// The scenario profile tells what the time of Pith's own loads goes into.

// statistics is PostgreSQL's own extension that keeps the times of statements.
const statistics = "pg_stat_statements"

// How much the tables show.
const (
	mostStatements = 10
	mostPackages   = 8
	longestName    = 100 // characters of a statement
)

// profiled are Pith's contestants whose time is looked at, under the names of their contests.
func profiled(pace pace) []contestant {
	noop, resource, dispatch := noops(pace)[0], withResources(pace)[0], dispatching(pace)
	single := contest{name: "one worker of one slot, empty tasks", contestants: []contestant{{
		fill: emptyTasks, backlog: pace.size(5_000, 100), recorded: pithCompleted, drive: pithWorks(clientConns, worker.Config{Concurrency: 1}),
	}}}
	var out []contestant
	for _, load := range []struct {
		name string
		of   contest
		by   int
	}{
		{"empty tasks in one process, " + noop.name, noop, 0},
		{resource.contestants[1].name + ", " + resource.name, resource, 1},
		{"chain, " + chain(pace)[0].name, chain(pace)[0], 0},
		{single.name, single, 0},
		{"dispatch, " + dispatch[0].name, dispatch[0], 0},
		{"dispatch, " + dispatch[1].name, dispatch[1], 0},
	} {
		one := load.of.contestants[load.by]
		one.name = load.name
		out = append(out, one)
	}
	return out
}

// profiles runs each load once, and shows the statements and the packages that it spends most time in.
func profiles(ctx context.Context, b *bench) (string, error) {
	if none := b.stage.path(viaPooler).none; none != "" {
		return none, nil
	}
	switch installed, err := b.stage.preload(ctx, statistics); {
	case err != nil:
		return "", err
	case !installed:
		return statistics + " is not installed here.", nil
	}
	var out strings.Builder
	fmt.Fprintf(&out, "One run each, on a server of its own that keeps the times of all statements with `%s`: what that costs is in "+
		"all figures, and so is what the client's profile costs. A statement's time is the one that passed while it was executed, "+
		"waits for locks included. That of one which calls a function contains that of the function's own statements, with their "+
		"planning; so only those by the client add up. To parse and plan what the client sends and to commit it is in none. "+
		"The client's CPU time is that of its profile, which samples it every 10 ms, by the package whose code ran, the benchmark's own "+
		"included.\n", statistics)
	for _, c := range profiled(b.pace) {
		p, s, err := b.profile(ctx, c)
		if err == nil {
			err = p.show(&out, c.name, s)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(b.progress, "profiled %s: %s tasks/s; others took %.0f %% of the CPUs\n", c.name, figure(s.Tasks), s.Others)
	}
	return out.String(), nil
}

// profile runs a load.
func (b *bench) profile(ctx context.Context, c contestant) (p *profiler, s Sample, err error) {
	defer func() { err = b.stage.forget(ctx, err) }()
	s, err = undisturbed(ctx, b.others, retryPause, func() (Sample, error) {
		p = &profiler{admin: b.stage.admin}
		defer pprof.StopCPUProfile() // the window may not have ended
		c.observe = p.observe
		return b.stage.measure(ctx, b.pace, c)
	})
	return p, s, err
}

// A profiler looks at a window from its first reading to its second.
type profiler struct {
	admin      *pgx.Conn
	client     bytes.Buffer // the profile
	begun      bool
	first      int // tasks at the first reading
	tasks      float64
	statements []statementTime
}

// A statementTime is what a statement has cost.
type statementTime struct {
	Text        string
	Sent        bool // by the client, else by a function
	Micros      float64
	Calls, Rows float64
}

func (p *profiler) observe(ctx context.Context, t *trial, now reading) error {
	if !p.begun {
		p.begun, p.first = true, now.Tasks
		_, err := p.admin.Exec(ctx, "SELECT pg_stat_statements_reset(0, oid, 0) FROM pg_database WHERE datname = $1", t.database)
		if err != nil {
			return fmt.Errorf("forget statements: %w", err)
		}
		return pprof.StartCPUProfile(&p.client)
	}
	pprof.StopCPUProfile()
	p.tasks = float64(now.Tasks - p.first)
	rows, err := p.admin.Query(ctx, `SELECT query, toplevel, sum(total_exec_time) * 1000, sum(calls)::float8, sum(rows)::float8
		FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1)
		GROUP BY query, toplevel ORDER BY 3 DESC LIMIT $2`, t.database, mostStatements)
	if err == nil {
		p.statements, err = pgx.CollectRows(rows, pgx.RowToStructByPos[statementTime])
	}
	if err != nil {
		return fmt.Errorf("read the times of statements: %w", err)
	}
	return nil
}

// show writes what was found.
func (p *profiler) show(out *strings.Builder, name string, s Sample) error {
	client, err := profile.Parse(&p.client)
	if err != nil {
		return fmt.Errorf("read the client's profile: %w", err)
	}
	packages, all := byPackage(client)
	if p.tasks == 0 || len(p.statements) == 0 {
		return errors.New("there is nothing to show")
	}
	fmt.Fprintf(out, "\n**%s**: %s tasks/s; CPU µs per task: database %s, pooler %s, client %s; %s %% of the machine's CPU time went elsewhere.\n\n",
		name, figure(s.Tasks), figure(s.DatabaseCPU), figure(s.PoolerCPU), figure(s.ClientCPU), figure(s.Others))
	table(out, "µs per task", "calls per task", "rows per task", "by", "statement")
	for _, one := range p.statements {
		by := "function"
		if one.Sent {
			by = "client"
		}
		tableRow(out, figure(one.Micros/p.tasks), figure(one.Calls/p.tasks), figure(one.Rows/p.tasks), by, shortName(one.Text))
	}
	out.WriteString("\n")
	table(out, "client's CPU µs per task", "%", "package")
	for _, one := range packages[:min(len(packages), mostPackages)] {
		tableRow(out, figure(float64(one.flat.Microseconds())/p.tasks), figure(100*per(one.flat.Seconds(), all.Seconds())), one.name)
	}
	tableRow(out, figure(float64(all.Microseconds())/p.tasks), "100", "all")
	return nil
}

// A packageTime is the CPU time in the functions of a package, without what they call.
type packageTime struct {
	name string
	flat time.Duration
}

// byPackage adds up a CPU profile, the most first.
func byPackage(p *profile.Profile) (packages []packageTime, all time.Duration) {
	times := map[string]time.Duration{}
	for _, s := range p.Sample {
		name := "unknown"
		// The first line of the first location is the innermost function, which may have been inlined.
		if len(s.Location) > 0 && len(s.Location[0].Line) > 0 && s.Location[0].Line[0].Function != nil {
			name = packageOf(s.Location[0].Line[0].Function.Name)
		}
		spent := time.Duration(s.Value[len(s.Value)-1]) // the others count samples
		times[name] += spent
		all += spent
	}
	for name, flat := range times {
		packages = append(packages, packageTime{name, flat})
	}
	slices.SortFunc(packages, func(a, b packageTime) int { return cmp.Or(cmp.Compare(b.flat, a.flat), cmp.Compare(a.name, b.name)) })
	return packages, all
}

// packageOf is the path of the package that a function is in.
func packageOf(function string) string {
	function, _, _ = strings.Cut(function, "[") // type arguments have paths, too
	dir := strings.LastIndexByte(function, '/') + 1
	name, _, ok := strings.Cut(function[dir:], ".")
	if !ok {
		return "runtime" // assembly without a package, such as memeqbody
	}
	return function[:dir] + strings.ReplaceAll(name, "%2e", ".")
}

// shortName is the beginning of a statement, as the cell of a table.
func shortName(sql string) string {
	text := []rune(strings.Join(strings.Fields(sql), " "))
	if len(text) > longestName {
		text = append(text[:longestName-1], '…')
	}
	return "`" + strings.NewReplacer("`", "'", "|", `\|`).Replace(string(text)) + "`"
}
