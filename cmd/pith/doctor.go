package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/pithworks/pith/internal/doctor"
)

type doctorCmd struct {
	ProbeStatements bool          `name:"probe-statements" help:"Try named statements on the pooler, even if --statements is unnamed. Behind Amazon RDS Proxy that may pin connections for a moment; behind a busy pooler that does not track them it may leave one on a server connection."`
	CheckTimeout    time.Duration `name:"check-timeout" default:"10s" help:"How long each check may take."`
}

// Help is shown below the usage.
func (doctorCmd) Help() string {
	return "It only reads. The exit status is 0 if all is well or worth a note at most, 3 if the worst finding is a warning, " +
		"and 1 if there is an error or the database cannot be used at all."
}

// Run runs the command.
func (c doctorCmd) Run(ctx context.Context, s *session) error {
	if c.CheckTimeout <= 0 {
		return usage("--check-timeout must be positive")
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	p, err := s.open(ctx)
	if err != nil {
		return err
	}
	p.Close() // the last connection that there is may be the one that the doctor needs
	d, err := doctor.New(p, doctor.Config{ProbeStatements: c.ProbeStatements, Timeout: c.CheckTimeout})
	if err != nil {
		return usage("%v", err)
	}
	report, err := d.Run(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted")
	case errors.Is(err, doctor.ErrNoAnswer):
		return fmt.Errorf("database %s at %s cannot be used: no answer within %s", p.Config().ConnConfig.Database, address(p), c.CheckTimeout)
	case err != nil:
		return unreachable(p, err)
	}
	if err := s.print(report, func(w io.Writer) { s.report(w, report) }); err != nil {
		return err
	}
	switch report.Severity {
	case doctor.Error:
		return statusError(exitFailure)
	case doctor.Warning:
		return statusError(exitWarnings)
	default:
		return nil
	}
}

var severityColors = map[doctor.Severity]int{doctor.OK: 32, doctor.Note: 36, doctor.Warning: 33, doctor.Error: 31}

// betweens are for people.
var betweens = map[doctor.Connection]string{
	doctor.Direct:      "direct",
	doctor.Session:     "through something that answers in its place",
	doctor.Transaction: "through a pooler that multiplexes",
}

func (s *session) report(w io.Writer, r doctor.Report) {
	fmt.Fprintf(w, "database %s at %s, role %s, PostgreSQL %s, %s\n\n",
		r.Target.Database, r.Target.Address, r.Target.Role, cmp.Or(r.Target.Version, "of an unknown version"), betweens[r.Target.Connection])
	count := map[doctor.Severity]int{}
	for _, f := range r.Findings {
		count[f.Severity]++
		row(w, s.colored(severityColors[f.Severity], string(f.Severity)), f.Check, f.Message)
		if f.Remedy != "" {
			row(w, s.colored(plainColor, ""), "", "  "+f.Remedy)
		}
	}
	var parts []string
	for _, severity := range []doctor.Severity{doctor.Error, doctor.Warning, doctor.Note} {
		switch n := count[severity]; n {
		case 0:
		case 1:
			parts = append(parts, "1 "+string(severity))
		default:
			parts = append(parts, fmt.Sprintf("%d %ss", n, severity))
		}
	}
	if len(parts) == 0 {
		parts = []string{"all is well"}
	}
	fmt.Fprintf(w, "\n%s\n", strings.Join(parts, ", "))
}
