package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// A Report is what one scenario found.
type Report struct {
	Scenario string    `json:"scenario"`
	What     string    `json:"what"`
	Date     time.Time `json:"date"`
	Command  string    `json:"command"`
	Machine  Machine   `json:"machine"`
	Versions []string  `json:"versions"`
	Setup    string    `json:"setup,omitempty"`
	Contests []Contest `json:"contests,omitempty"`
	// Text is what a scenario that holds no contests says, as markdown.
	Text string `json:"text,omitempty"`

	variants [2]string
	columns  []column
	plots    []string // paths as the document has them
}

// A Contest is what was measured of one.
type Contest struct {
	Name string `json:"name"`
	// Latency says what the latencies are of.
	Latency   string    `json:"latency"`
	Reference string    `json:"reference,omitempty"`
	Lines     []Line    `json:"lines"`
	Targets   []Verdict `json:"targets,omitempty"`
}

// A Line holds what was measured of one contestant.
type Line struct {
	Contestant string `json:"contestant"`
	Path       string `json:"path,omitempty"`
	// When says when in a run was measured.
	When string `json:"measured,omitempty"`
	// Samples are in the order of the runs; those of two contestants with the same index are neighbors
	// in time.
	Samples []Sample `json:"samples,omitempty"`
	// Note says why there are no samples.
	Note string `json:"note,omitempty"`
}

// middle is the median of values; it leaves them as they are.
func middle(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// figure shows three significant digits, and no fewer than the integer ones.
func figure(v float64) string {
	switch {
	case v >= 99.95 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// spread shows the lowest and the highest value.
func spread(values []float64, format func(float64) string) string {
	return format(slices.Min(values)) + "–" + format(slices.Max(values))
}

func ratio(v float64) string { return fmt.Sprintf("%.2f", v) }

// markdown is the section of a report.
func (r Report) markdown() string {
	var b strings.Builder
	if r.Text != "" {
		fmt.Fprintf(&b, "%s\n\n%s\n", r.What, strings.TrimSpace(r.Text))
	} else {
		fmt.Fprintf(&b, "%s %s\n\n", r.What, strings.TrimSpace(r.runs()+" "+r.when()))
		if r.variants[1] != "" {
			r.sideBySide(&b)
		} else {
			r.targets(&b)
			r.compared(&b)
		}
		for _, plot := range r.plots {
			fmt.Fprintf(&b, "\n![%s](%s)\n", r.Scenario, plot)
		}
		if len(r.columns) == 0 {
			b.WriteString("\nPer task, medians:\n\n")
		} else {
			b.WriteString("\nMedians:\n\n")
		}
		r.detailed(&b)
	}
	fmt.Fprintf(&b, "\nMeasured on %s with `%s`.\n\n", r.Date.UTC().Format(time.DateOnly), r.Command)
	fmt.Fprintf(&b, "- %s\n- %s\n", r.Machine, strings.Join(r.Versions, ", "))
	if r.Setup != "" {
		fmt.Fprintf(&b, "- %s\n", r.Setup)
	}
	if others := r.others(); len(others) > 0 {
		fmt.Fprintf(&b, "- Of the machine's CPU time %s %% went elsewhere in the median of all runs, at most %s %%\n", figure(middle(others)), figure(slices.Max(others)))
	}
	return b.String()
}

// others are the percentages of all samples.
func (r Report) others() (out []float64) {
	for _, c := range r.Contests {
		for _, l := range c.Lines {
			for _, s := range l.Samples {
				out = append(out, s.Others)
			}
		}
	}
	return out
}

// runs says how often everything was measured.
func (r Report) runs() string {
	least, most := 0, 0
	for _, c := range r.Contests {
		for _, l := range c.Lines {
			n := len(l.Samples)
			if n > 0 && (least == 0 || n < least) {
				least = n
			}
			most = max(most, n)
		}
	}
	switch {
	case most == 1:
		return "One run each."
	case least < most:
		return fmt.Sprintf("%d to %d runs each, medians.", least, most)
	}
	return fmt.Sprintf("%d runs each, medians.", most)
}

// when says when in a run was measured: once for all where that was the same.
func (r Report) when() string {
	var whens []string
	of := map[string][]string{}
	for _, c := range r.Contests {
		one := c.Lines[0].When
		alike := !slices.ContainsFunc(c.Lines, func(l Line) bool { return l.When != one })
		for _, l := range c.Lines {
			name := c.Name
			if !alike {
				name = l.Contestant
				if len(r.Contests) > 1 {
					name += ", " + c.Name
				}
			}
			if of[l.When] == nil {
				whens = append(whens, l.When)
			}
			if !slices.Contains(of[l.When], name) {
				of[l.When] = append(of[l.When], name)
			}
		}
	}
	if len(whens) == 1 {
		if whens[0] == "" {
			return ""
		}
		return "Measured " + whens[0] + "."
	}
	for i, w := range whens {
		whens[i] = fmt.Sprintf("%s (%s)", w, strings.Join(of[w], "; "))
	}
	return "Measured " + strings.Join(whens, "; ") + "."
}

// line finds a contestant's.
func (c Contest) line(name string) Line {
	i := slices.IndexFunc(c.Lines, func(l Line) bool { return l.Contestant == name })
	if i < 0 {
		return Line{}
	}
	return c.Lines[i]
}

// table writes the head of one.
func table(b *strings.Builder, titles ...string) {
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(titles, " | "), strings.Repeat("---|", len(titles)))
}

func tableRow(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

// shown is the median of a column, with the lowest and the highest run, or why there is none.
func (l Line) shown(c column) string {
	if len(l.Samples) == 0 {
		return l.Note
	}
	values := c.values(l.Samples)
	if len(values) == 1 {
		return figure(values[0])
	}
	return fmt.Sprintf("%s (%s)", figure(middle(values)), spread(values, figure))
}

// ratioOr shows the median of ratios.
func ratioOr(values []float64) string {
	if len(values) == 0 {
		return "–"
	}
	return ratio(middle(values))
}

func spreadOr(values []float64) string {
	if len(values) == 0 {
		return "–"
	}
	return spread(values, ratio)
}

// targets writes what was to be reached, and what was.
func (r Report) targets(b *strings.Builder) {
	var rows [][]string
	for _, c := range r.Contests {
		for _, v := range c.Targets {
			reached, runs, met := "–", "–", "not met"
			if v.Note != "" {
				met = v.Note
			} else {
				show := figure
				if v.ratio { // to three digits, so that one just below a limit does not look like it
					show = func(v float64) string { return fmt.Sprintf("%.3g", v) }
				}
				reached, runs = show(v.Reached), show(v.Lowest)+"–"+show(v.Highest)
				if v.Met {
					met = "met"
				}
			}
			rows = append(rows, []string{c.Name, v.Of, v.Target, reached, runs, met})
		}
	}
	if len(rows) == 0 {
		return
	}
	table(b, "line", "of", "target", "reached", "lowest and highest run", "")
	for _, cells := range rows {
		tableRow(b, cells...)
	}
	b.WriteString("\n")
}

// compared writes how the contestants of each contest compare with its reference: a row for each.
func (r Report) compared(b *strings.Builder) {
	first := r.shownColumns()[0]
	table(b, "line", "", "by", first.title, "÷ reference", "lowest and highest pair", "database CPU ÷", "WAL ÷")
	for _, c := range r.Contests {
		reference := c.line(c.Reference).Samples
		for _, l := range c.Lines {
			name := l.Contestant
			ratios := func(of column) []float64 { return of.ratios(l.Samples, reference) }
			if name == c.Reference {
				name += " (reference)"
				ratios = func(column) []float64 { return nil }
			}
			tableRow(b, c.Name, name, l.Path, l.shown(first), ratioOr(ratios(first)), spreadOr(ratios(first)),
				ratioOr(ratios(databaseCPU)), ratioOr(ratios(walBytes)))
		}
	}
}

// sideBySide writes how two variants compare: a row for each contest.
func (r Report) sideBySide(b *strings.Builder) {
	base, other := r.variants[0], r.variants[1]
	table(b, "path", "load", base+" tasks/s", other+" tasks/s", other+" ÷ "+base, "lowest and highest pair",
		fmt.Sprintf("database CPU, %s ÷ %s", other, base))
	for _, c := range r.Contests {
		from, to := c.line(base), c.line(other)
		tasks := tasksPerSecond.ratios(to.Samples, from.Samples)
		tableRow(b, from.Path, c.Name, from.shown(tasksPerSecond), to.shown(tasksPerSecond), ratioOr(tasks), spreadOr(tasks),
			ratioOr(databaseCPU.ratios(to.Samples, from.Samples)))
	}
}

func (r Report) shownColumns() []column { return scenario{columns: r.columns}.shownColumns() }

// detailed writes all figures: a row for each contestant.
func (r Report) detailed(b *strings.Builder) {
	titles := []string{"line", "by", "", "latency of"}
	for _, f := range r.shownColumns() {
		titles = append(titles, f.title)
	}
	table(b, titles...)
	for _, c := range r.Contests {
		for _, l := range c.Lines {
			if len(l.Samples) == 0 {
				continue
			}
			cells := []string{c.Name, l.Path, l.Contestant, c.Latency}
			for _, f := range r.shownColumns() {
				cells = append(cells, figure(f.median(l.Samples)))
			}
			tableRow(b, cells...)
		}
	}
}

// marks enclose the section of a scenario in a document.
func marks(scenario string) (begin, end string) {
	return "<!-- bench " + scenario + " -->\n", "<!-- end of bench " + scenario + " -->\n"
}

// replaceSection puts text between the marks of a scenario.
func replaceSection(document, scenario, text string) (string, error) {
	begin, end := marks(scenario)
	head, rest, ok := strings.Cut(document, begin)
	_, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("no section %s: add the lines %q and %q", scenario, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return head + begin + text + end + tail, nil
}

// updateDocument replaces the section of a report in a file.
func updateDocument(path string, r Report) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	document, err := replaceSection(string(text), r.Scenario, r.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(document), 0o644); err != nil {
		return fmt.Errorf("write document: %w", err)
	}
	return nil
}
