package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pithworks/pith/internal/demo"
	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/migrate"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// child makes commands that run this program again, with its settings. They go through the
// environment: a command line is for everyone to see.
func (s *session) child(url string, level slog.Level, args ...string) (func() *exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	env := append([]string{}, s.environ...)
	for flag, value := range map[string]string{
		"database-url": url, "log-level": level.String(), "args-keys": strings.Join(s.cli.ArgsKeys, ","), "statements": s.cli.Statements,
		"password-command": s.cli.PasswordCommand, "password-lifetime": s.cli.PasswordLifetime.String(),
	} {
		env = append(env, variable(flag)+"="+value)
	}
	return func() *exec.Cmd {
		cmd := exec.Command(self, args...)
		cmd.Env, cmd.Stderr = env, s.err
		return cmd
	}, nil
}

type devCmd struct {
	Workers int    `default:"2" help:"Worker processes to start."`
	API     string `name:"api" default:"127.0.0.1:24817" help:"Where to serve the REST API; an empty text serves none."`
	DataDir string `name:"data-dir" placeholder:"DIR" help:"Where the database is kept. Default: a cache directory."`
	Pooler  string `enum:",pgbouncer,rdsproxy,none" default:"" placeholder:"NAME" help:"What stands before the database: pgbouncer, rdsproxy (a stand-in for Amazon RDS Proxy that logs what would pin) or none. Default: pgbouncer, if it can be had."`
}

// places are the addresses of what dev has started.
type places struct {
	Pooled string `json:"database_url"`
	Direct string `json:"direct_database_url"`
	API    string `json:"api_url,omitempty"`
}

// devPassword is the password of the user admin in a database of pith dev. It is for development only.
const devPassword = "password"

// through says what stands before the database of pith dev.
var through = map[string]string{
	demo.PgBouncer: "through PgBouncer", demo.RDSProxy: "through the stand-in for RDS Proxy", demo.NoPooler: "without a pooler",
}

// Run runs the command.
func (c devCmd) Run(ctx context.Context, s *session) (err error) {
	ctx, stop := interruptible(ctx)
	defer stop()
	if c.DataDir == "" {
		cache, err := localpg.CacheDir()
		if err != nil {
			return err
		}
		c.DataDir = filepath.Join(cache, "dev")
	}
	services, err := demo.StartServices(ctx, demo.ServicesConfig{DataDir: c.DataDir, Pooler: c.Pooler, OnFinding: s.finding(newTally()), Log: s.log, Progress: s.err})
	switch {
	case errors.Is(err, localpg.ErrInUse):
		return fmt.Errorf("pith dev runs already, with %s", c.DataDir)
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted")
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, services.Stop()) }()
	if c.API != "" { // rather now than again and again
		probe, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.API)
		if err != nil {
			return fmt.Errorf("the REST API cannot be served at %s: %w; --api takes another address", c.API, err)
		}
		c.API = probe.Addr().String() // of port 0: a free one
		if err := probe.Close(); err != nil {
			return err
		}
	}
	s.cli.PasswordCommand = "" // it is for another database; ours asks for none
	command, err := s.child(services.URL, s.cli.LogLevel, "worker", "--diagnostics", strings.Join(tasking.Profiles, ","))
	if err != nil {
		return err
	}
	fleet, err := demo.NewFleet(demo.FleetConfig{Size: c.Workers, Command: command, Log: s.log})
	if err != nil {
		return usage("%v", err)
	}
	at := places{Pooled: services.URL, Direct: services.DirectURL}
	fleets := []*demo.Fleet{fleet}
	if c.API != "" {
		at.API = "http://" + c.API
		serve, err := s.child(services.URL, s.cli.LogLevel, "api", "--listen", c.API)
		if err != nil {
			return err
		}
		server, err := demo.NewFleet(demo.FleetConfig{Size: 1, Log: s.log, Command: func() *exec.Cmd {
			cmd := serve()
			cmd.Env = append(cmd.Env, variable("admin-password")+"="+devPassword)
			return cmd
		}})
		if err != nil {
			return err
		}
		fleets = append(fleets, server)
	}
	err = s.print(at, func(w io.Writer) {
		fmt.Fprintf(w, "# PostgreSQL %s with %d workers; the data are kept in %s\n", services.Version, c.Workers, c.DataDir)
		fmt.Fprintf(w, "# %s, as the workers are connected:\nexport PITH_DATABASE_URL='%s'\n", through[services.Pooler], at.Pooled)
		fmt.Fprintf(w, "# directly, for psql and the like:\nexport PITH_DIRECT_DATABASE_URL='%s'\n", at.Direct)
		if at.API != "" {
			fmt.Fprintf(w, "# the REST API, with a password for development only:\npulp config create --overwrite --base-url %s --username admin --password %s\n", at.API, devPassword)
		}
		fmt.Fprintln(w, "# Ctrl-C stops everything. A worker that is killed is replaced.")
	})
	if err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	for _, f := range fleets {
		parts.Go(func() error { return f.Run(ctx) })
	}
	parts.Go(func() error {
		select {
		case <-services.Done():
			return errors.New("PostgreSQL has ended")
		case <-ctx.Done():
			return nil
		}
	})
	return parts.Wait()
}

// demoCmd starts a database of its own unless the command line itself names one.
type demoCmd struct {
	Directory   string        `arg:"" optional:"" help:"Directory of files. Default: /usr/share/doc."`
	Dir         string        `default:"/usr/share/doc" help:"The same as a flag."`
	Out         string        `default:"PULP_MANIFEST" help:"The manifest to write."`
	Workers     int           `default:"4" help:"Worker processes to start."`
	KillAWorker bool          `name:"kill-a-worker" help:"Kill a worker with SIGKILL in the middle."`
	Direct      bool          `help:"Do without the pooler."`
	TTL         time.Duration `name:"ttl" default:"5s" help:"How long after a beat a worker counts as online."`
}

// Run runs the command.
func (c demoCmd) Run(ctx context.Context, s *session) (err error) {
	ctx, stop := interruptible(ctx)
	defer stop()
	sum, err := c.run(ctx, s)
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted: everything is stopped, and no manifest was written")
	case err != nil:
		return err
	}
	if s.cli.Output == "json" {
		err = s.printJSON(sum)
	} else {
		err = sum.Write(s.out)
	}
	if err == nil && !sum.OK() {
		err = fmt.Errorf("the manifest does not match the disk in %d places", len(sum.Check.Problems))
	}
	return err
}

func (c demoCmd) run(ctx context.Context, s *session) (sum demo.Summary, err error) {
	cfg := demo.Config{Dir: cmp.Or(c.Directory, c.Dir), Out: c.Out, Workers: c.Workers, KillAWorker: c.KillAWorker, Progress: s.err}
	if isTerminal(s.err) {
		cfg.Bar = s.err
	}
	var command func() *exec.Cmd
	if c.TTL < time.Second {
		return sum, usage("--ttl %s: at least a second is needed", c.TTL)
	}
	if err := cfg.CheckPaths(); err != nil {
		return sum, usage("%v", err)
	}
	// What is normal here, such as the start of a server, is told in the demo's own words.
	level, log := slog.LevelError, slog.New(slog.DiscardHandler)
	if s.cli.LogLevel < slog.LevelInfo {
		level, log = s.cli.LogLevel, s.log
	}
	cfg.Fleet, err = demo.NewFleet(demo.FleetConfig{Size: c.Workers, Command: func() *exec.Cmd { return command() }, Log: log})
	if err != nil {
		return sum, usage("%v", err)
	}
	// A shell's variable may well name a database in use, so only the command line is taken as a wish.
	url, admin := "", ""
	if s.given["database-url"] {
		url = s.cli.DatabaseURL
	}
	if url == "" {
		if s.cli.DatabaseURL != "" {
			fmt.Fprintln(s.err, "leaving the database of PITH_DATABASE_URL alone; --database-url would use one")
		}
		pooler := ""
		if c.Direct {
			pooler = demo.NoPooler
		}
		services, err := demo.StartServices(ctx, demo.ServicesConfig{Pooler: pooler, Log: log, Progress: s.err})
		if err != nil {
			return sum, err
		}
		defer func() { err = errors.Join(err, services.Stop()) }()
		url, admin = services.URL, services.AdminURL
		s.cli.PasswordCommand = "" // it is for another database; ours asks for none
	} else {
		p, err := s.open(ctx)
		if err != nil {
			return sum, err
		}
		defer p.Close()
		at := p.Config().ConnConfig
		fmt.Fprintf(s.err, "migrating and using database %s at %s as %s\n", at.Database, address(p), at.User)
		if err := migrate.Up(ctx, p, log); err != nil {
			return sum, err
		}
	}
	s.cli.DatabaseURL = url
	p, err := s.connect(ctx)
	if err != nil {
		return sum, err
	}
	defer p.Close()
	registry, err := tasking.NewRegistry(demo.Types()...)
	if err != nil {
		return sum, err
	}
	if cfg.Client, err = s.newClient(p, tasking.Config{Registry: registry}); err != nil {
		return sum, err
	}
	if command, err = s.child(url, level, "demo-worker", "--ttl", c.TTL.String()); err != nil {
		return sum, err
	}
	cfg.AdminURL = admin
	d, err := demo.New(cfg)
	if err != nil {
		return sum, usage("%v", err)
	}
	return d.Run(ctx)
}

// demoWorkerCmd is a worker that knows the demo's task types only.
type demoWorkerCmd struct {
	TTL time.Duration `name:"ttl" default:"5s"`
}

// Run runs the command.
func (c demoWorkerCmd) Run(ctx context.Context, s *session) error {
	registry, err := tasking.NewRegistry(demo.Types()...)
	if err != nil {
		return err
	}
	return s.work(ctx, tasking.Config{Registry: registry, ProgressInterval: 200 * time.Millisecond}, worker.Config{TTL: c.TTL})
}
