package pinning

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/wasilibs/go-pgquery/parser"
)

// nesting are texts of the form before, n times open, the leaf, n times close. Each
// repetition puts at least one node above the leaf or above what stands before it.
var nesting = []struct{ before, open, leaf, close string }{
	{"SELECT ", "NOT ", "nextval('s')", ""},
	{"SELECT ", "- ", "nextval('s')", ""},
	{"SELECT ", "@ ", "nextval('s')", ""},
	{"SELECT ", "1 OPERATOR(pg_catalog.+) ", "nextval('s')", ""},
	{"SELECT ", "", "nextval('s')", "+1"},
	{"SELECT ", "", "nextval('s')", "::a"},
	{"SELECT ", "", "nextval('s')", " IS NULL"},
	{"SELECT ", "", "nextval('s')", " COLLATE a"},
	{"SELECT ", "", "nextval('s')", " AT TIME ZONE a"},
	{"SELECT ", "", "nextval('s')", " || (1)"},
	{"SELECT ", "f(", "nextval('s')", ")"},
	{"SELECT ", "f(a => ", "nextval('s')", ")"},
	{"SELECT ", "coalesce(1, ", "nextval('s')", ")"},
	{"SELECT ", "ROW(", "nextval('s')", ")"},
	{"SELECT ", "ARRAY[", "nextval('s')", "]"},
	{"SELECT ", "a[", "nextval('s')", "]"},
	{"SELECT ", "(a)[1:", "nextval('s')", "].b"},
	{"SELECT ", "(a AND b OR ", "nextval('s')", ")"},
	{"SELECT ", "CASE 1 WHEN 1 THEN ", "nextval('s')", " END"},
	{"SELECT ", "CASE WHEN ", "nextval('s')", " THEN 1 END"},
	{"SELECT ", "a IN (1, ", "nextval('s')", ")"},
	{"SELECT ", "1 = ANY (", "nextval('s')", ")"},
	{"SELECT ", "f() FILTER (WHERE ", "nextval('s')", ")"},
	{"SELECT ", "f() OVER (ORDER BY ", "nextval('s')", ")"},
	{"SELECT ", "EXISTS (SELECT WHERE ", "nextval('s')", ")"},
	{"SELECT ", "(SELECT ", "nextval('s')", ")"},
	{"SELECT ", "(SELECT 1 WINDOW w AS (ORDER BY ", "nextval('s')", "))"},
	{"SELECT ", "(SELECT FROM ROWS FROM (f(", "nextval('s')", ")))"},
	{"SELECT ", "json_object('a':", "nextval('s')", ")"},
	{"SELECT ", "xmlforest(", "nextval('s')", " AS a)"},
	{"SELECT 1 GROUP BY ", "GROUPING SETS (", "nextval('s')", ")"},
	{"SELECT * FROM ", "(SELECT * FROM ", "nextval('s')", ") AS x"},
	{"SELECT FROM ", "(", "nextval('s')", " JOIN b ON c)"},
	{"SELECT FROM ", "", "nextval('s')", " JOIN b ON c"},
	{"SELECT a, b FROM ", "a JOIN ", "nextval('s')", " ON c"},
	{"", "", "SELECT nextval('s')", " UNION SELECT 1, 2"},
	{"", "SELECT a, b UNION (", "SELECT nextval('s')", ")"},
	{"", "WITH a AS (", "SELECT nextval('s')", ") SELECT 1"},
	{"", "WITH x AS (INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = (", "SELECT nextval('s')", ")) SELECT 1"},
	{"", "WITH x AS (MERGE INTO t USING u ON a WHEN MATCHED THEN UPDATE SET a = (", "SELECT nextval('s')", ") RETURNING 1) SELECT 1"},
	{"", "VALUES ((", "SELECT nextval('s')", "))"},
}

// A tree of more depth than the parser bears would spoil it for the texts that follow.
func TestDeepTextsAreReadToALimitAndHarmNothing(t *testing.T) {
	t.Parallel()
	for _, c := range nesting {
		text := func(n int) string {
			return c.before + strings.Repeat(c.open, n) + c.leaf + strings.Repeat(c.close, n)
		}
		n := 15
		for depthOf(t, text(n+1)) <= maxDepth {
			n++
		}
		for _, c := range []struct {
			n    int
			want error
		}{{n, nil}, {n + 1, errDeep}, {1000, errDeep}, {3000, errDeep}, {9000, errDeep}} {
			if len(text(c.n)) > MaxText {
				continue
			}
			if got, err := Inspect(text(c.n)); !errors.Is(err, c.want) || len(got) != 1 || !got[0].Pins {
				t.Errorf("%.60s, %d times: %v, %v", text(1), c.n, got, err)
			}
		}
		sound := fmt.Sprintf("SELECT nextval('s'), $x$ %s %s $x$", c.open, c.close)
		if got, err := Inspect(sound); err != nil || len(got) != 1 {
			t.Fatalf("after %s … %s: %v, %v", c.open, c.close, got, err)
		}
	}
}

// The tree has a row once for each column that is set to it: it grows with their product.
func TestRowsThatAreSetAreReadToALimit(t *testing.T) {
	t.Parallel()
	set := func(columns int, row string) string {
		return "UPDATE t SET b = 1 /* ( */, (a" + strings.Repeat(", a", columns-1) + ") /* ) */ = " + row
	}
	row := func(size int) string { return "ROW(nextval('s')" + strings.Repeat(",1", size-1) + ")" }
	within := func(n int) string {
		text := "SELECT nextval('s')"
		for range n {
			text = "WITH x AS (" + set(16, "("+text+")") + ") SELECT 1"
		}
		return text
	}
	for _, c := range []struct {
		name, text string
		want       error
	}{
		{"each column its parameter", set(178, row(178)), nil},
		{"a large row for few columns", set(3, row(7000)), nil},
		{"as much again in each column", set(50, row(50)) + strings.Repeat(", b = (1, 2)", 600), nil},
		{"as much again in each statement", strings.Repeat(set(20, row(20))+";", 60), nil},
		{"a large row for many columns", set(126, row(7001)), errDeep},
		{"a small row for many columns", set(4000, row(10)), errDeep},
		{"many columns in MERGE", "MERGE INTO t USING u ON a WHEN MATCHED THEN " + strings.Replace(set(126, row(7001)), "UPDATE t", "UPDATE", 1), errDeep},
		{"many columns in ON CONFLICT", "INSERT INTO t VALUES (1) ON CONFLICT (a) DO " + strings.Replace(set(126, row(7001)), "UPDATE t", "UPDATE", 1), errDeep},
		{"no row", set(126, "nextval('s')"+strings.Repeat(" AND a", 2600)), errDeep},
		{"within each other, once", within(1), nil},
		{"within each other, twice", within(2), nil},
		{"within each other, 20 times", within(20), errDeep},
	} {
		if _, err := Inspect(c.text); len(c.text) > MaxText || !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v", c.name, len(c.text), err)
		}
		if got, _ := Inspect(c.text); len(got) == 0 || !got[0].Pins {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// growing are texts of the form before, n times again, after, whose trees are large.
var growing = []struct{ before, again, after string }{
	{"SELECT 1", ",1", ""},
	{"SELECT *", ",*", ""},
	{"SELECT a", ".a", ""},
	{"SELECT a", "[1]", ""},
	{"SELECT ''::a", "[]", ""},
	{"SELECT a", " AND a", ""},
	{"SELECT '", "\x01", "'"},
	{"", "SELECT;", ""},
	{"VALUES (1)", ",(1)", ""},
	{"CREATE TABLE t (a a", ",a a", ")"},
	{"CREATE TABLE t (a a", " NULL", ")"},
	{"CREATE RECURSIVE VIEW v (a", ",a", ") AS SELECT 1"},
	{"CREATE FUNCTION f(a", ",a", ") RETURNS a AS ''"},
	{"CREATE FUNCTION f() RETURNS TABLE (a t(1", ",1", ")) AS ''"},
	{"CREATE PUBLICATION p FOR TABLE a", ",a", ""},
	{"ALTER TABLE t DROP a", ",DROP a", ""},
	{"DROP TABLE a", ".a", ""},
	{"DROP FUNCTION f(a", ",a", ")"},
	{"DROP AGGREGATE f(a", ",a", ")"},
	{"UPDATE t SET (a", ",a", ") = ROW(1)"},
	{"UPDATE t SET (a,a,a) = ROW(1", ",1", ")"},
	{"UPDATE t SET a = 1", ",(a,a) = (1,1)", ""},
}

func TestTreesAreBoundedBySize(t *testing.T) {
	t.Parallel()
	for _, c := range growing {
		n := (MaxText - len(c.before) - len(c.after)) / len(c.again)
		answer, err := parse(c.before+strings.Repeat(c.again, n)+c.after, parser.ParseToJSON)
		if err != nil || len(answer) > 128*MaxText {
			t.Errorf("%s, %d times %s: %d bytes, %v", c.before, n, c.again, len(answer), err)
		}
	}
}

// A scanner reads these again and again from each of their characters on.
func TestLongRunsOfOperatorsAreNotScanned(t *testing.T) {
	t.Parallel()
	for _, run := range []string{"+", "+-", "/*", "//*", "<+"} {
		got, err := Inspect("SELECT " + strings.Repeat(run, 4000/len(run)) + "1")
		if !errors.Is(err, errDeep) || len(got) != 1 || !got[0].Pins {
			t.Errorf("%s: %v, %v", run, got, err)
		}
	}
	for _, text := range []string{
		"SELECT 1 --" + strings.Repeat("-", 500) + "\n" + strings.Repeat("+1", 20),
		"/*" + strings.Repeat("*", 500) + "/ SELECT '" + strings.Repeat("+ ", 4000) + "'",
	} {
		if got, err := Inspect(text); err != nil || len(got) > 0 {
			t.Errorf("%.30s: %v, %v", text, got, err)
		}
	}
}

func depthOf(t *testing.T, text string) int {
	t.Helper()
	parsing.Lock()
	defer parsing.Unlock()
	lexemes, err := scan(text)
	if err != nil {
		t.Fatal(err)
	}
	d, _ := measure(text, lexemes)
	return d
}

func TestWideTextsAreNotDeep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ before, again, after string }{
		{"INSERT INTO t VALUES (1, 2)", ", (a + 1, f(2))", " RETURNING a"},
		{"SELECT a", " AND b", ""},
		{"SELECT a IN (1", ", 2 + 2", ")"},
		{"SELECT CASE WHEN a THEN b", " WHEN a THEN b", " END"},
		{"SELECT 1", "; SELECT 1 FROM a JOIN b ON a + 1 = b UNION SELECT 2", ""},
		{"SELECT 1 FROM a", ", (SELECT 1 FROM a) x", ""},
	} {
		text := c.before + strings.Repeat(c.again, 200) + c.after
		if got, err := Inspect(text); err != nil || len(got) > 0 {
			t.Errorf("%.60s: %v, %v", text, got, err)
		}
	}
}
