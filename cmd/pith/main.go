// Command pith is Pith's one program: it migrates the database, runs workers, hands out tasks and
// looks at them, and starts everything on one machine for development and demonstration.
//
// Each flag can be given in the environment too, as PITH_ and its name in capitals. The exit status
// is 0 for success, 1 for a failure, 2 for bad input, and 3 if the worst that pith doctor found is a
// warning.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/internal/demo"
	"github.com/pithworks/pith/tasking"
)

func main() {
	runChild()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// runChild runs isolated tasks if a worker has started this process for that.
func runChild() {
	registry, err := builtin.Registry(demo.Types()...)
	if err != nil {
		panic(err) // the types are the program's own
	}
	tasking.RunChild(registry)
}

// Exit statuses.
const (
	exitOK       = 0
	exitFailure  = 1
	exitUsage    = 2
	exitWarnings = 3
)

// cli is the command line.
type cli struct {
	DatabaseURL      string        `name:"database-url" placeholder:"URL" help:"PostgreSQL's address: postgres://user@host:port/database. The pooler's, if there is one."`
	Statements       string        `enum:"unnamed,named" default:"unnamed" help:"named lets the driver prepare statements: for a direct connection, or a pooler that tracks them."`
	PasswordCommand  string        `name:"password-command" placeholder:"COMMAND" help:"A shell command that prints the database's password. It gets PGHOST, PGPORT and PGUSER in its environment, and runs for new connections."`
	PasswordLifetime time.Duration `name:"password-lifetime" default:"10m" help:"How long a password that the command has printed may be used; 0 asks for each connection."`
	ArgsKeys         []string      `name:"args-keys" aliases:"args-key" placeholder:"KEY" help:"Keys that encrypt arguments at rest, in base64: the first encrypts, all decrypt. Better given in the environment."`
	Output           string        `short:"o" enum:"text,json" default:"text" help:"How to print: text or json."`
	LogLevel         slog.Level    `name:"log-level" default:"info" help:"Least level to log: debug, info, warn or error."`

	Migrate    migrateCmd       `cmd:"" help:"Bring the database's schema up to date, or look at it."`
	Worker     workerCmd        `cmd:"" help:"Run tasks."`
	API        apiCmd           `cmd:"" name:"api" help:"Serve Pulp's REST API."`
	User       userCmd          `cmd:"" help:"Add users of the REST API, or change their passwords."`
	Task       taskCmd          `cmd:"" help:"Hand out tasks and look at them."`
	Group      groupCmd         `cmd:"" help:"Make groups of tasks and look at them."`
	Schedule   scheduleCmd      `cmd:"" help:"Have tasks dispatched by the clock."`
	Workers    workersCmd       `cmd:"" help:"List the workers and other processes."`
	Doctor     doctorCmd        `cmd:"" help:"Look at the database, what stands before it and the fleet, and say what is wrong and what helps."`
	Bench      benchCmd         `cmd:"" help:"Measure the database, what stands before it and this machine with loads of their own."`
	Dev        devCmd           `cmd:"" help:"Run everything on this machine: database, pooler and workers."`
	Demo       demoCmd          `cmd:"" help:"Make the manifest of a directory with the tasking system."`
	RDSProxy   rdsproxyCmd      `cmd:"" name:"rdsproxy" help:"Run a stand-in for Amazon RDS Proxy and report what would pin."`
	Static     collectstaticCmd `cmd:"" name:"collectstatic" help:"Write the static files of the REST API's pages, for a web server."`
	DemoWorker demoWorkerCmd    `cmd:"" hidden:""`
	Version    versionCmd       `cmd:"" help:"Print the versions."`
}

// session is what the commands have of the outside.
type session struct {
	cli *cli
	// given are the flags on the command line itself.
	given    map[string]bool
	in       io.Reader
	out, err io.Writer
	environ  []string
	color    bool
	log      *slog.Logger
	// conns bounds the pool where the database URL does not. Default: maxConns.
	conns int32
}

// errUsage is wrapped by errors about the command line.
var errUsage = errors.New("usage")

type usageError struct{ msg string }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func (e *usageError) Error() string        { return e.msg }
func (e *usageError) Is(target error) bool { return target == errUsage }

// statusError ends a command that has said all there is to say.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// exited is how kong's help leaves the parser.
type exited int

// run is the program: args without its name, environ as os.Environ has it.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer, environ []string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			status, ok := p.(exited)
			if !ok {
				panic(p)
			}
			code = int(status)
		}
	}()
	if _, ok := errOut.(*os.File); !ok {
		errOut = &lockedWriter{w: errOut} // several processes may write to it
	}
	var c cli
	s := &session{cli: &c, in: in, out: out, err: errOut, environ: environ}
	parser, err := kong.New(&c,
		kong.Name("pith"),
		benchVars,
		kong.Description("Pulp's server side on PostgreSQL alone. Start with `pith demo` or `pith dev`."),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.ValueFormatter(formatHelp),
		kong.Writers(out, errOut),
		kong.Exit(func(status int) { panic(exited(status)) }),
		kong.WithHyphenPrefixedParameters(true),
		kong.Resolvers(kong.ResolverFunc(s.fromEnvironment)),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(s),
	)
	if err != nil {
		return s.fail(err)
	}
	chosen, err := parser.Parse(args)
	if err != nil {
		return s.fail(err)
	}
	s.given = map[string]bool{}
	for _, step := range chosen.Path {
		if step.Flag != nil && !step.Resolved {
			s.given[step.Flag.Name] = true
		}
	}
	s.color = isTerminal(out) && s.env("NO_COLOR") == ""
	s.log = newLog(errOut, c.LogLevel, s.env("NO_COLOR") != "")
	if err := chosen.Run(); err != nil {
		return s.fail(err)
	}
	return exitOK
}

// lockedWriter may be written to by many at once.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// fail prints an error in one line and answers the exit status.
func (s *session) fail(err error) int {
	if status, ok := errors.AsType[statusError](err); ok {
		return int(status)
	}
	var parse *kong.ParseError
	usage := errors.As(err, &parse) || errors.Is(err, errUsage) || errors.Is(err, tasking.ErrInvalid)
	hint := ""
	if parse != nil {
		hint = " (see pith --help)"
	}
	fmt.Fprintf(s.err, "pith: %s%s\n", oneLine(err.Error()), hint)
	if usage {
		return exitUsage
	}
	return exitFailure
}

func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// variable is the environment's name of a flag.
func variable(flag string) string {
	return "PITH_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func (s *session) env(name string) string {
	for _, e := range slices.Backward(s.environ) { // the last one counts
		if key, value, _ := strings.Cut(e, "="); key == name {
			return value
		}
	}
	return ""
}

// fromEnvironment resolves flags that are not on the command line.
func (s *session) fromEnvironment(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if v := s.env(variable(flag.Name)); v != "" && flag.Name != "help" {
		return v, nil
	}
	return nil, nil // kong's way to say that there is no value
}

func formatHelp(value *kong.Value) string {
	if value.Flag == nil || value.Name == "help" {
		return kong.DefaultHelpValueFormatter(value)
	}
	return fmt.Sprintf("%s ($%s)", kong.DefaultHelpValueFormatter(value), variable(value.Name))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func newLog(w io.Writer, level slog.Level, noColor bool) *slog.Logger {
	if isTerminal(w) {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: noColor}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

// interruptible returns a context that ends at the first signal to stop. A second one ends the
// program.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
