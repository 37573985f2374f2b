package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/pithworks/pith/api"
	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/builtin"
	"github.com/pithworks/pith/tasking"
)

// apiConns bounds the pool of a process of the API where the URL does not: as many requests ask the database at a time.
const apiConns = 10

type apiCmd struct {
	Listen        string        `default:"127.0.0.1:24817" help:"Address and port to serve on; a path with a slash is a Unix socket."`
	Root          string        `name:"api-root" default:"/pulp/" help:"Path below which everything is served."`
	ContentOrigin string        `name:"content-origin" placeholder:"URL" help:"Where the content app can be reached, for status."`
	AdminPassword string        `name:"admin-password" placeholder:"PASSWORD" help:"Create the user admin with this password, unless there is one. Better given in the environment."`
	TrustProxy    bool          `name:"trust-proxy" help:"Take the scheme of links from the proxy's X-Forwarded-Proto."`
	NameTemplate  string        `default:"{pid}@{hostname}" help:"Name of the process; {fqdn} is known too."`
	TTL           time.Duration `name:"ttl" default:"120s" help:"How long after a beat the process counts as online."`

	metricsFlags
}

// Run runs the command.
func (c apiCmd) Run(ctx context.Context, s *session) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	meter, pushed, err := s.meter(ctx, c.metricsFlags, "pulp-api")
	if err != nil {
		return err
	}
	defer pushed()
	s.conns = apiConns
	p, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	server, err := api.New(p, func(app *appstatus.App) (*tasking.Client, error) {
		return s.newClient(p, tasking.Config{App: app})
	}, api.Config{
		Root: c.Root, ContentOrigin: c.ContentOrigin, TrustProxy: c.TrustProxy, NameTemplate: c.NameTemplate, TTL: c.TTL,
		Version: builtin.Version, Meter: meter, Log: s.log,
	})
	if err != nil {
		return usage("%v", err)
	}
	if c.AdminPassword != "" {
		switch created, err := api.AddUser(ctx, p, "admin", c.AdminPassword, true); {
		case err != nil:
			return err
		case created:
			s.log.Info("user created", "username", "admin")
		}
	}
	listener, err := listen(ctx, c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.log.Info("api listens", "address", listener.Addr().String())
	return server.Run(ctx, listener)
}

// listen listens at an address and port, or at a Unix socket. One that a killed process has left is taken over.
func listen(ctx context.Context, at string) (net.Listener, error) {
	if !strings.Contains(at, "/") {
		return (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	}
	if info, err := os.Stat(at); err == nil && info.Mode()&os.ModeSocket != 0 {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", at)
		if err == nil {
			_ = conn.Close() // somebody listens: say so below
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(at)
		}
	}
	return (&net.ListenConfig{}).Listen(ctx, "unix", at)
}

type userCmd struct {
	Add      userAddCmd      `cmd:"" help:"Add a user of the REST API."`
	Password userPasswordCmd `cmd:"" help:"Change a user's password."`
}

type userAddCmd struct {
	Name      string `arg:"" help:"The user's name."`
	Superuser bool   `help:"Let the user do everything."`
}

// Run runs the command.
func (c userAddCmd) Run(ctx context.Context, s *session) error {
	password, err := s.readPassword(c.Name)
	if err != nil {
		return err
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		created, err := api.AddUser(ctx, client.Pool(), c.Name, password, c.Superuser)
		if err == nil && !created {
			err = fmt.Errorf("there is a user %s already: `pith user password` changes the password", c.Name)
		}
		return err
	})
}

type userPasswordCmd struct {
	Name string `arg:"" help:"The user's name."`
}

// Run runs the command.
func (c userPasswordCmd) Run(ctx context.Context, s *session) error {
	password, err := s.readPassword(c.Name)
	if err != nil {
		return err
	}
	return s.withClient(ctx, func(ctx context.Context, client *tasking.Client) error {
		return api.SetPassword(ctx, client.Pool(), c.Name, password)
	})
}

// readPassword reads a line from standard input, which a terminal does not show.
func (s *session) readPassword(name string) (string, error) {
	var line string
	var err error
	if in, ok := s.in.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		fmt.Fprintf(s.err, "Password of %s: ", name)
		var text []byte
		text, err = term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(s.err)
		line = string(text)
	} else {
		line, err = bufio.NewReader(s.in).ReadString('\n')
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the password: %w", err)
		}
		return "", usage("a password is needed on standard input")
	}
	return line, nil
}

type collectstaticCmd struct {
	Dir string `arg:"" help:"Directory to write to; it is made if it is not there."`
}

// Run runs the command.
func (c collectstaticCmd) Run(context.Context) error { return api.CollectStatic(c.Dir) }
