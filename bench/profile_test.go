package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/pprof/profile"
)

func TestProfileIsOfTheInnermostFunctions(t *testing.T) {
	t.Parallel()
	at := func(functions ...string) *profile.Location {
		l := &profile.Location{}
		for _, name := range functions {
			l.Line = append(l.Line, profile.Line{Function: &profile.Function{Name: name}})
		}
		return l
	}
	spent := func(d time.Duration, stack ...*profile.Location) *profile.Sample {
		return &profile.Sample{Location: stack, Value: []int64{1, d.Nanoseconds()}}
	}
	packages, all := byPackage(&profile.Profile{Sample: []*profile.Sample{
		spent(10*time.Millisecond, at("github.com/jackc/pgx/v5/pgconn.(*PgConn).peek"), at("main.main")),
		spent(20*time.Millisecond, at("github.com/jackc/pgx/v5.(*Conn).Query", "github.com/jackc/pgx/v5/pgconn.(*PgConn).exec")), // inlined
		spent(30*time.Millisecond, at("github.com/jackc/pgx/v5/pgconn.connect.func1")),
		spent(20*time.Millisecond, at("runtime.mallocgc"), at("github.com/jackc/pgx/v5.(*Conn).Query")),
		spent(10*time.Millisecond, at()),
		spent(10 * time.Millisecond),
	}})
	want := []packageTime{
		{"github.com/jackc/pgx/v5/pgconn", 40 * time.Millisecond},
		{"github.com/jackc/pgx/v5", 20 * time.Millisecond},
		{"runtime", 20 * time.Millisecond},
		{"unknown", 20 * time.Millisecond},
	}
	if diff := cmp.Diff(want, packages, cmp.AllowUnexported(packageTime{})); diff != "" || all != 100*time.Millisecond {
		t.Errorf("of %s:\n%s", all, diff)
	}
}

func TestFunctionsTellTheirPackage(t *testing.T) {
	t.Parallel()
	for function, want := range map[string]string{
		"main.main":                                        "main",
		"runtime/internal/atomic.(*Uint32).Load":           "runtime/internal/atomic",
		"slices.SortFunc[go.shape.[]github.com/a/b.T,...]": "slices",
		"a.b/c.(*T[go.shape.struct { d/e.F }]).M.func1":    "a.b/c",
		"gopkg.in/yaml%2ev3.Unmarshal":                     "gopkg.in/yaml.v3",
		"memeqbody":                                        "runtime",
	} {
		if got := packageOf(function); got != want {
			t.Errorf("%s: %s, want %s", function, got, want)
		}
	}
}

func TestStatementsAreNamedInACell(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		"SELECT\n\t1  ":                     "`SELECT 1`",
		"SELECT 'a' || \"b`c\"":             "`SELECT 'a' \\|\\| \"b'c\"`",
		strings.Repeat("é", longestName):    "`" + strings.Repeat("é", longestName) + "`",
		strings.Repeat("é", longestName+1):  "`" + strings.Repeat("é", longestName-1) + "…`",
		strings.Repeat(" x\n", longestName): "`" + strings.Repeat("x ", longestName/2-1) + "x…`",
	} {
		if got := shortName(sql); got != want {
			t.Errorf("%q: %s, want %s", sql, got, want)
		}
	}
}

func TestProfileShowsTheStatementsOfEveryLoad(t *testing.T) {
	t.Parallel()
	r := measured(t, testConfig(t, "-scenario", "profile"))[0]
	if !strings.Contains(r.Text, "\n") { // it says what is missing here
		t.Skip(r.Text)
	}
	loads := strings.Split(r.Text, "\n**")[1:]
	if len(loads) != len(profiled(quickPace)) {
		t.Fatalf("%d loads in\n%s", len(loads), r.Text)
	}
	for _, load := range loads {
		statement := "TaskTurn"
		if strings.HasPrefix(load, "dispatch") {
			statement = "TaskDispatch"
		}
		if !strings.Contains(load, " | client | `-- name: "+statement) || !strings.Contains(load, " | function | `") || !strings.Contains(load, " | 100 | all |") {
			t.Errorf("no %s, no function, or no profile in\n%s", statement, load)
		}
	}
	if !strings.Contains(r.Setup, statistics+".track = all") {
		t.Errorf("the setup is %q", r.Setup)
	}
}
