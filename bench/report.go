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
	Variants [2]string `json:"variants"`
	Date     time.Time `json:"date"`
	Command  string    `json:"command"`
	Machine  Machine   `json:"machine"`
	Versions []string  `json:"versions"`
	Setup    string    `json:"setup"`
	Lines    []Line    `json:"lines"`
}

// fields are the figures of a sample, in the order of the table.
var fields = []struct {
	title string
	of    func(*Sample) *float64
}{
	{"tasks/s", func(s *Sample) *float64 { return &s.Tasks }},
	{"p50 ms", func(s *Sample) *float64 { return &s.P50 }},
	{"p95 ms", func(s *Sample) *float64 { return &s.P95 }},
	{"p99 ms", func(s *Sample) *float64 { return &s.P99 }},
	{"database CPU µs", func(s *Sample) *float64 { return &s.DatabaseCPU }},
	{"pooler CPU µs", func(s *Sample) *float64 { return &s.PoolerCPU }},
	{"client CPU µs", func(s *Sample) *float64 { return &s.ClientCPU }},
	{"statements", func(s *Sample) *float64 { return &s.Statements }},
	{"transactions", func(s *Sample) *float64 { return &s.Transactions }},
	{"WAL bytes", func(s *Sample) *float64 { return &s.WAL }},
	{"server connections", func(s *Sample) *float64 { return &s.ServerConns }},
}

// median is the sample of the medians, each figure on its own.
func median(samples []Sample) Sample {
	var m Sample
	for _, f := range fields {
		values := make([]float64, len(samples))
		for i := range samples {
			values[i] = *f.of(&samples[i])
		}
		*f.of(&m) = middle(values)
	}
	return m
}

// middle is the median of values; it sorts them.
func middle(values []float64) float64 {
	slices.Sort(values)
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
	}
	return fmt.Sprintf("%.2f", v)
}

// spread shows the lowest and the highest value.
func spread(values []float64, format func(float64) string) string {
	return format(slices.Min(values)) + "–" + format(slices.Max(values))
}

func ratio(v float64) string { return fmt.Sprintf("%.2f", v) }

// markdown is the section of a report.
func (r Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d runs each, medians.\n\n", r.What, r.runs())
	r.compared(&b)
	b.WriteString("\nPer task, medians:\n\n")
	r.detailed(&b)
	fmt.Fprintf(&b, "\nMeasured on %s with `%s`.\n\n", r.Date.UTC().Format(time.DateOnly), r.Command)
	fmt.Fprintf(&b, "- %s\n- %s\n- %s\n", r.Machine, strings.Join(r.Versions, ", "), r.Setup)
	if others := r.others(); len(others) > 0 {
		fmt.Fprintf(&b, "- Of the machine's CPU time %s %% went elsewhere in the median of all runs, at most %s %%\n", figure(middle(others)), figure(slices.Max(others)))
	}
	return b.String()
}

// others are the percentages of all samples.
func (r Report) others() (out []float64) {
	for _, l := range r.Lines {
		for _, s := range l.Samples {
			out = append(out, s.Others)
		}
	}
	return out
}

func (r Report) runs() (n int) {
	for _, l := range r.Lines {
		n = max(n, len(l.Samples))
	}
	return n
}

// tasks are the tasks/s of each sample.
func (l Line) tasks() []float64 {
	out := make([]float64, len(l.Samples))
	for i, s := range l.Samples {
		out[i] = s.Tasks
	}
	return out
}

// compared writes how the variants compare: a row for each pair of lines.
func (r Report) compared(b *strings.Builder) {
	base, other := r.Variants[0], r.Variants[1]
	fmt.Fprintf(b, "| path | load | %s tasks/s | %s tasks/s | %[2]s ÷ %[1]s | lowest and highest pair | database CPU, %[2]s ÷ %[1]s |\n", base, other)
	b.WriteString("|---|---|---|---|---|---|---|\n")
	shown := func(l Line) string {
		if len(l.Samples) == 0 {
			return l.Note
		}
		return fmt.Sprintf("%s (%s)", figure(median(l.Samples).Tasks), spread(l.tasks(), figure))
	}
	for pair := range slices.Chunk(r.Lines, 2) {
		from, to := pair[0], pair[1]
		fmt.Fprintf(b, "| %s | %s | %s | %s |", from.Path, from.Load, shown(from), shown(to))
		if len(from.Samples) == 0 || len(to.Samples) == 0 {
			b.WriteString(" – | – | – |\n")
			continue
		}
		pairs := make([]float64, len(from.Samples))
		for i := range pairs {
			pairs[i] = to.Samples[i].Tasks / from.Samples[i].Tasks
		}
		m, n := median(from.Samples), median(to.Samples)
		cpu := "–"
		if m.DatabaseCPU > 0 {
			cpu = ratio(n.DatabaseCPU / m.DatabaseCPU)
		}
		fmt.Fprintf(b, " %s | %s | %s |\n", ratio(n.Tasks/m.Tasks), spread(pairs, ratio), cpu)
	}
}

// detailed writes all figures: a row for each line.
func (r Report) detailed(b *strings.Builder) {
	b.WriteString("| path | load | variant | latency of |")
	for _, f := range fields {
		fmt.Fprintf(b, " %s |", f.title)
	}
	b.WriteString("\n|" + strings.Repeat("---|", 4+len(fields)) + "\n")
	for _, l := range r.Lines {
		if len(l.Samples) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s |", l.Path, l.Load, l.Variant, l.Latency)
		m := median(l.Samples)
		for _, f := range fields {
			fmt.Fprintf(b, " %s |", figure(*f.of(&m)))
		}
		b.WriteString("\n")
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

// updateDocument replaces the sections of the reports in a file.
func updateDocument(path string, reports []Report) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read document: %w", err)
	}
	document := string(text)
	for _, r := range reports {
		if document, err = replaceSection(document, r.Scenario, r.markdown()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := os.WriteFile(path, []byte(document), 0o644); err != nil {
		return fmt.Errorf("write document: %w", err)
	}
	return nil
}
