package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// drawn makes the plots of a report in a directory, and returns their paths as a document next to it
// has them.
func (r Report) drawn(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	files, err := drawBars(r, dir)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(files))
	for i, file := range files {
		paths[i] = filepath.Base(dir) + "/" + file
	}
	return paths, nil
}

// apartFrom is how many times as high one group of bars may be as another in the same plot.
const apartFrom = 5

// drawBars shows the first column of each contestant, in a group for each contest: all in one plot, or
// each in its own where one would dwarf another.
func drawBars(r Report, dir string) ([]string, error) {
	if err := removePlots(r.Scenario, dir); err != nil {
		return nil, err
	}
	first := r.shownColumns()[0]
	var groups []barGroup
	var highest []float64
	for _, c := range r.Contests {
		if group := r.bars(c, first); len(group.bars) > 0 {
			groups = append(groups, group)
			highest = append(highest, slices.MaxFunc(group.bars, func(a, b bar) int { return cmp.Compare(a.median, b.median) }).median)
		}
	}
	if len(groups) == 0 {
		return nil, nil
	}
	if slices.Max(highest) <= apartFrom*slices.Min(highest) {
		file := r.Scenario + ".svg"
		return []string{file}, plotBars(filepath.Join(dir, file), r.What, first.title, groups)
	}
	var files []string
	for i, group := range groups {
		file := fmt.Sprintf("%s-%d.svg", r.Scenario, i+1)
		if err := plotBars(filepath.Join(dir, file), r.What, first.title, []barGroup{group}); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// bars are those of a contest.
func (r Report) bars(c Contest, of column) barGroup {
	group := barGroup{name: c.Name}
	for _, l := range c.Lines {
		if len(l.Samples) == 0 {
			continue
		}
		if len(group.bars) == 0 && r.variants[1] != "" {
			group.name = l.Path + ", " + c.Name
		}
		values := of.values(l.Samples)
		group.bars = append(group.bars, bar{label: l.Contestant, median: middle(values), low: slices.Min(values), high: slices.Max(values)})
	}
	return group
}

// removePlots removes those of an earlier run, which may have been more.
func removePlots(scenario, dir string) error {
	for _, pattern := range []string{scenario + ".svg", scenario + "-[0-9].svg", scenario + "-[0-9][0-9].svg"} {
		old, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("find plots: %w", err)
		}
		for _, file := range old {
			if err := os.Remove(file); err != nil {
				return fmt.Errorf("remove plot: %w", err)
			}
		}
	}
	return nil
}
