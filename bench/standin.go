package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"

	"github.com/pithworks/pith/internal/rdsproxy"
)

// standInCommand makes this program the stand-in for RDS Proxy, so that its CPU time is its own.
//
//	bench stand-in URL
//
// It prints the host and port that it serves, and ends with its standard input.
const standInCommand = "stand-in"

// The user of the stand-in's clients, and its secret, which the server does not ask for.
const (
	standInUser   = "pith"
	standInSecret = "not a secret"
)

// serveStandIn is what a standInProcess runs.
func serveStandIn(ctx context.Context, upstream string, stdin io.Reader, stdout io.Writer) error {
	proxy, err := rdsproxy.Start(ctx, "", rdsproxy.Config{
		Upstream: upstream, Users: map[string]string{standInUser: standInSecret}, PoolSize: serverConns,
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, proxy.Addr())
	_, err = io.Copy(io.Discard, stdin)
	return errors.Join(err, proxy.Stop())
}

// A standInProcess is this program as the stand-in for RDS Proxy.
type standInProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
	addr  string
}

// startStandIn runs it before a server.
func startStandIn(upstream string, stderr io.Writer) (_ *standInProcess, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start stand-in: %w", err)
	}
	s := &standInProcess{cmd: exec.Command(self, standInCommand, upstream)}
	s.cmd.Stderr = stderr
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start stand-in: %w", err)
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start stand-in: %w", err)
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start stand-in: %w", err)
	}
	line := bufio.NewScanner(stdout)
	if !line.Scan() {
		return nil, fmt.Errorf("start stand-in: no address: %w", errors.Join(line.Err(), s.stop()))
	}
	s.addr = line.Text()
	return s, nil
}

func (s *standInProcess) path() path {
	return path{name: viaStandIn, pid: s.cmd.Process.Pid, url: func(database string) string {
		return (&url.URL{
			Scheme: "postgres", User: url.UserPassword(standInUser, standInSecret), Host: s.addr, Path: "/" + database, RawQuery: "sslmode=disable",
		}).String()
	}}
}

// stop ends it and waits.
func (s *standInProcess) stop() error {
	_ = s.stdin.Close()
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("stop stand-in: %w", err)
	}
	return nil
}
