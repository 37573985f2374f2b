package tasking_test

import (
	"os"
	"strings"
	"testing"
)

// between returns the lines of text between two lines that contain these markers, without the
// indentation of the first one.
func between(t *testing.T, text, begin, end string) string {
	t.Helper()
	_, text, ok := strings.Cut(text, begin)
	text, _, ended := strings.Cut(text, end)
	if !ok || !ended {
		t.Fatalf("no text between %q and %q", begin, end)
	}
	_, text, _ = strings.Cut(text, "\n")
	lines := strings.Split(text[:strings.LastIndex(text, "\n")], "\n")
	indent := len(lines[0]) - len(strings.TrimLeft(lines[0], "\t"))
	for i := range lines {
		lines[i] = lines[i][min(indent, len(lines[i])):]
	}
	return strings.Join(lines, "\n")
}

func TestREADMEShowsTheExampleThatIsCompiled(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	shown := between(t, between(t, string(readme), "<!-- example:", "<!-- end of example"), "```go", "```")
	if compiled := between(t, string(example), "// README begins", "// README ends"); shown != compiled {
		t.Errorf("the README shows\n%s\nand example_test.go has\n%s", shown, compiled)
	}
}
