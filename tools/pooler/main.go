// Command pooler runs the image of deploy/pgbouncer as a container for one test binary, which
// starts it as a child and speaks with it in lines.
//
//	pooler --build [--image NAME] [--context DIR] [--debian RELEASE]
//	pooler --upstream-port PORT [--image NAME] [--pool-size N] [--pool-mode MODE]
//
// The first form builds the image, from deploy/pgbouncer of the working directory unless another
// one is given, and ends. The second starts a container on the host's network and prints
// "ready PORT" once clients can connect to 127.0.0.1:PORT as pith, without a password. They reach
// every database of the PostgreSQL at 127.0.0.1:UPSTREAM-PORT, which must trust pith, and the
// pooler's console, the database pgbouncer.
//
// Then it reads commands from standard input, and answers each one with a line:
//
//   - kill ends PgBouncer with SIGKILL: "killed";
//   - restart stops it, if it runs, and starts it on the same port: "ready PORT";
//   - stop removes the container and ends the program: "stopped".
//
// At the end of the input, which means that the parent died, and at SIGTERM or SIGINT the
// container is removed too. Only where the program itself is killed it stays behind, with the
// label org.pithworks.pith=pooler.
//
// The exit status is 0 for success, 1 for a failure, which one line on standard error tells, and
// 2 for a wrong command line. DOCKER_HOST says which engine to use. It must be on this machine,
// and must have the host's network: Linux.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// config is the command line.
type config struct {
	image        string
	build        bool   // only make the image
	context      string // directory with the Dockerfile
	debian       string
	upstreamPort int
	poolSize     int
	poolMode     string
}

// errParentGone is why the program ends where its input does.
var errParentGone = errors.New("end of input")

// run is the program: args without its name.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	cfg, err := parse(args, errOut)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(errOut, "pooler: %v\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	quiet()
	if cfg.build {
		err = build(ctx, cfg, errOut)
	} else {
		err = serve(ctx, cfg, in, out)
	}
	if err != nil {
		fmt.Fprintf(errOut, "pooler: %s\n", oneLine(err.Error()))
		return exitFailure
	}
	return exitOK
}

func parse(args []string, errOut io.Writer) (config, error) {
	var cfg config
	flags := flag.NewFlagSet("pooler", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.BoolVar(&cfg.build, "build", false, "build the image, and end")
	flags.StringVar(&cfg.context, "context", "deploy/pgbouncer", "with --build, the `directory` of the Dockerfile")
	flags.StringVar(&cfg.image, "image", "pith-pgbouncer:test", "`name` of the image")
	flags.StringVar(&cfg.debian, "debian", "trixie", "with --build, the `release` of Debian")
	flags.IntVar(&cfg.upstreamPort, "upstream-port", 0, "`port` of PostgreSQL on 127.0.0.1")
	flags.IntVar(&cfg.poolSize, "pool-size", 20, "server connections for each database")
	flags.StringVar(&cfg.poolMode, "pool-mode", "transaction", "transaction, session or statement")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(errOut)
		flags.Usage()
		return cfg, err
	case err != nil:
		return cfg, err
	case flags.NArg() > 0:
		return cfg, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case !strings.Contains(cfg.image, ":"):
		return cfg, fmt.Errorf("--image %s: name a tag, too", cfg.image)
	case !cfg.build && (cfg.upstreamPort < 1 || cfg.upstreamPort > 65535):
		return cfg, errors.New("--upstream-port must be a port")
	}
	return cfg, nil
}

// serve runs a container until the input says so or ends.
func serve(ctx context.Context, cfg config, in io.Reader, out io.Writer) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	commands := make(chan string)
	// A read of the input cannot be interrupted: this goroutine ends with the program, or its input.
	go func() {
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			select {
			case commands <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
		cancel(errParentGone)
	}()

	p, err := launch(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil // it was to end while it started
		}
		return err
	}
	removed := false
	defer func() {
		if !removed {
			err = errors.Join(err, p.remove(ctx))
		}
	}()
	if err := answer(out, "ready %d", p.port); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case command := <-commands:
			var err error
			switch command {
			case "kill":
				if err = p.kill(ctx); err == nil {
					err = answer(out, "killed")
				}
			case "restart":
				if err = p.restart(ctx); err == nil {
					err = answer(out, "ready %d", p.port)
				}
			case "stop":
				removed = true
				if err := p.remove(ctx); err != nil {
					return err
				}
				return answer(out, "stopped")
			default:
				err = fmt.Errorf("unknown command %q", command)
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

func answer(out io.Writer, format string, args ...any) error {
	if _, err := fmt.Fprintf(out, format+"\n", args...); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
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
