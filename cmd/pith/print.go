package main

import (
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

// print prints what a command found out: for people, or as JSON.
func (s *session) print(v any, text func(io.Writer)) error {
	if s.cli.Output == "json" {
		return s.printJSON(v)
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

func (s *session) printJSON(v any) error {
	enc := json.NewEncoder(s.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// row prints the cells of a table's row.
func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		// A tab or a line break would spoil the table.
		cells[i] = strings.Map(func(r rune) rune {
			if r == '\t' || r == '\n' || r == '\r' || r == '\f' || r == '\v' {
				return ' '
			}
			return r
		}, c)
	}
	fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

// stateColors are escape codes of equal length, so that a column of them stays aligned.
var stateColors = map[tasking.State]int{
	tasking.Completed: 32, tasking.Failed: 31, tasking.Canceled: 33, tasking.Canceling: 33, tasking.Running: 36,
}

const plainColor = 39

func (s *session) state(state tasking.State) string {
	color, ok := stateColors[state]
	if !ok {
		color = plainColor
	}
	return s.colored(color, string(state))
}

// colored must be used for all cells of a column, the heading included, or none.
func (s *session) colored(color int, text string) string {
	if !s.color {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, text)
}

// span is a duration for people: two units at most.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(d, 0); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

func ago(t time.Time) string { return span(time.Since(t)) + " ago" }

// between is the time from one moment to another, as far as both are known.
func between(from, to *time.Time) string {
	switch {
	case from == nil:
		return "-"
	case to == nil:
		return span(time.Since(*from))
	}
	return span(to.Sub(*from))
}

// when is a moment to the second, in the zone of the machine, with how far it is.
func when(t *time.Time) string {
	if t == nil {
		return "-"
	}
	far := "in " + span(time.Until(*t))
	if t.Before(time.Now()) {
		far = ago(*t)
	}
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05"), far)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// objectID is the id of a task or a group: a UUID, or an href or PRN that ends in it.
type objectID uuid.UUID

var _ encoding.TextUnmarshaler = (*objectID)(nil)

// UnmarshalText reads it.
func (id *objectID) UnmarshalText(text []byte) error {
	last := path.Base(string(text))
	last = last[strings.LastIndex(last, ":")+1:]
	parsed, err := uuid.Parse(last)
	if err != nil || len(last) != 36 {
		return fmt.Errorf("%q is neither a UUID nor an href that ends in one", text)
	}
	*id = objectID(parsed)
	return nil
}

// moment is a time, or a distance from now.
type moment struct {
	at   time.Time
	span time.Duration
}

var _ encoding.TextUnmarshaler = (*moment)(nil)

// UnmarshalText reads an RFC 3339 time or a duration.
func (m *moment) UnmarshalText(text []byte) error {
	var err error
	if m.span, err = time.ParseDuration(string(text)); err == nil {
		if m.span < 0 {
			return fmt.Errorf("%q is negative", text)
		}
		return nil
	}
	if m.at, err = time.Parse(time.RFC3339, string(text)); err != nil {
		return fmt.Errorf("%q is neither a time such as 2026-01-31T04:30:00Z nor a duration such as 90s or 12h", text)
	}
	return nil
}
