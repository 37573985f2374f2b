package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// A scenario is one line of the benchmark's table of questions.
type scenario struct {
	name string
	// what is the question that it answers.
	what string
	// variants are what is compared, the base first.
	variants [2]string
	run      func(ctx context.Context, b *bench) ([]Line, error)
}

var scenarios = []scenario{
	{
		name:     "statements",
		what:     "What are named prepared statements worth, where the pooler tracks them?",
		variants: [2]string{unnamed, named},
		run:      statements,
	},
}

// A Line holds what was measured of one variant under one load, by one path.
type Line struct {
	Path    string `json:"path"`
	Load    string `json:"load"`
	Variant string `json:"variant"`
	// Latency says what the latencies are of.
	Latency string `json:"latency"`
	// Samples are in the order of the runs; those of two variants with the same index are neighbors
	// in time.
	Samples []Sample `json:"samples,omitempty"`
	// Note says why there are no samples.
	Note string `json:"note,omitempty"`
}

// A bench is what a scenario runs on.
type bench struct {
	stage    *stage
	runs     int
	pace     pace
	others   float64 // percent of the CPUs that others may take
	progress io.Writer

	steps, taken int
}

// step tells what was measured, and how far we are.
func (b *bench) step(what string, s Sample) {
	b.taken++
	fmt.Fprintf(b.progress, "[%d/%d] %s: %s tasks/s; others took %.0f %% of the CPUs\n", b.taken, b.steps, what, figure(s.Tasks), s.Others)
}

// turn tells which of two is measured as number i: A B, B A, A B and so on, so that what drifts hits
// both.
func turn(i int) int { return (i + i/2) % 2 }

// How often one run is tried on a machine that others use, and how long they are waited for.
const (
	mostTries  = 30
	retryPause = 10 * time.Second
)

// undisturbed measures until others take no more than most percent of the CPUs. Runs are chosen by that
// alone, whatever came of them.
func undisturbed(ctx context.Context, most float64, pause time.Duration, measure func() (Sample, error)) (Sample, error) {
	for try := 1; ; try++ {
		s, err := measure()
		if err != nil || s.Others <= most {
			return s, err
		}
		if try == mostTries {
			return s, fmt.Errorf("others took %.0f %% of the CPUs, and too much in %d tries: wait for a quiet machine, or allow more by -others", s.Others, try)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return s, context.Cause(ctx)
		}
	}
}

// compare measures loads by paths with named statements and without, in turns. What cannot be measured
// has a note.
func (b *bench) compare(ctx context.Context, paths []path, loads []load) ([]Line, error) {
	variants := []string{unnamed, named}
	var lines []Line
	for _, p := range paths {
		if p.none == "" {
			n := len(loads) * b.runs
			if b.steps += n; p.noNamed == "" {
				b.steps += n
			}
		}
	}
	for _, p := range paths {
		for _, l := range loads {
			pair := make([]Line, len(variants))
			for i, v := range variants {
				pair[i] = Line{Path: p.name, Load: l.name, Variant: v, Latency: l.latency, Note: p.none}
				if v == named && p.noNamed != "" {
					pair[i].Note = p.noNamed
				}
			}
			for i := range b.runs * len(pair) {
				line := &pair[turn(i)]
				if line.Note != "" {
					continue
				}
				what := fmt.Sprintf("%s, %s, %s", p.name, l.name, line.Variant)
				s, err := undisturbed(ctx, b.others, retryPause, func() (Sample, error) {
					s, err := b.stage.measure(ctx, b.pace, p, l, line.Variant == named)
					if err == nil && s.Others > b.others {
						fmt.Fprintf(b.progress, "%s: others took %.0f %% of the CPUs, once more\n", what, s.Others)
					}
					return s, err
				})
				if err != nil {
					return nil, fmt.Errorf("%s: %w", what, err)
				}
				line.Samples = append(line.Samples, s)
				b.step(what, s)
			}
			lines = append(lines, pair...)
		}
	}
	return lines, nil
}
