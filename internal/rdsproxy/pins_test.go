package rdsproxy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pithworks/pith/internal/pinning"
)

// sized is a query of n bytes.
func sized(n int) string {
	const head, tail = "SELECT '", "'"
	return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
}

// pinningTexts are of what the original says that it pins.
var pinningTexts = map[string]string{
	"set":                   "SET work_mem = '1MB'",
	"set in lower case":     "set time zone 'utc'",
	"set local":             "BEGIN; SET LOCAL work_mem = '1MB'; COMMIT",
	"set among others":      "SELECT 1; SET work_mem = '1MB'",
	"reset":                 "RESET work_mem",
	"set_config":            "SELECT set_config('work_mem', '1MB', false)",
	"set_config, qualified": "SELECT pg_catalog.set_config('work_mem', '1MB', true)",
	"set_config, quoted":    `SELECT "set_config"('work_mem', '1MB', true)`,
	"set_config, inside":    "WITH a AS (SELECT 1 WHERE set_config('work_mem', '1MB', true) <> '') SELECT * FROM a",
	"prepare":               "PREPARE pinned_p AS SELECT 1",
	"execute":               "EXECUTE pinned_p",
	"deallocate":            "DEALLOCATE ALL",
	"discard":               "DISCARD PLANS",
	"temporary table":       "CREATE TEMPORARY TABLE pinned_t (id int)",
	"temporary table as":    "CREATE TEMP TABLE pinned_t AS SELECT 1",
	"select into temporary": "SELECT 1 INTO TEMP pinned_t",
	"temporary sequence":    "CREATE TEMP SEQUENCE pinned_s",
	"temporary view":        "CREATE TEMP VIEW pinned_v AS SELECT 1",
	"cursor":                "BEGIN; DECLARE c CURSOR FOR SELECT 1; COMMIT",
	"fetch":                 "FETCH c",
	"load":                  "LOAD 'plpgsql'",
	"nextval":               "SELECT nextval('seq')",
	"nextval in a default":  "CREATE TABLE with_default (id int DEFAULT nextval('seq'))",
	"setval":                "SELECT setval('seq', 5)",
	"currval":               "SELECT currval('seq')",
	"lastval":               "SELECT lastval()",
	"advisory lock":         "SELECT pg_advisory_lock(1)",
	"advisory lock, try":    "SELECT pg_try_advisory_lock_shared(1, 2)",
	"advisory unlock":       "SELECT pg_advisory_unlock_all()",
	"listen":                "LISTEN c",
	"unlisten":              "UNLISTEN *",
	"16385 bytes":           sized(pinning.MaxText + 1),
	"17000 bytes":           sized(17000),
}

// harmlessTexts come near to the ones above.
var harmlessTexts = map[string]string{
	"column called nextval":   "SELECT nextval FROM (VALUES (1)) AS t (nextval)",
	"alias called setval":     "SELECT 1 AS setval",
	"table called listen":     `SELECT * FROM "listen"`,
	"string with listen":      "SELECT 'LISTEN c; SET x = 1'",
	"string with nextval":     "SELECT 'nextval(''seq'')'",
	"dollars around set":      "SELECT $$SET work_mem = '1MB'$$",
	"comment with set":        "SELECT 1 /* SET work_mem = '1MB' */ -- LISTEN c",
	"identity":                "INSERT INTO with_identity DEFAULT VALUES RETURNING id",
	"identity column":         "CREATE TABLE other (id int GENERATED ALWAYS AS IDENTITY)",
	"serial column":           "CREATE TABLE another (id serial)",
	"update set":              "UPDATE with_identity SET name = 'x'",
	"on delete set null":      "CREATE TABLE child (id int REFERENCES with_identity ON DELETE SET NULL)",
	"alter column set":        "ALTER TABLE with_identity ALTER name SET DEFAULT 'y'",
	"function that sets":      "CREATE FUNCTION sets() RETURNS int LANGUAGE sql SET work_mem = '1MB' AS 'SELECT 1'",
	"function that draws":     "SELECT draws()",
	"body that draws":         "CREATE FUNCTION draws2() RETURNS bigint LANGUAGE sql AS $$SELECT nextval('seq')$$",
	"transaction":             "BEGIN ISOLATION LEVEL SERIALIZABLE; COMMIT",
	"current_setting":         "SELECT current_setting('work_mem')",
	"show":                    "SHOW work_mem",
	"explain":                 "EXPLAIN SELECT 1",
	"not SQL":                 "SET is what this begins with, but no more",
	"16383 bytes":             sized(pinning.MaxText - 1),
	"16384 bytes":             sized(pinning.MaxText),
	"notify":                  "NOTIFY c",
	"transaction-level locks": "SELECT pg_advisory_xact_lock(1)",
}

// TestWhatPins sends each text as a simple query and as an unnamed statement. A
// second client, with the only server connection there is, tells whether the first
// one has given it back.
func TestWhatPins(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), `
		CREATE SEQUENCE seq;
		CREATE TABLE listen (id int);
		CREATE TABLE with_identity (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
		CREATE FUNCTION draws() RETURNS bigint LANGUAGE sql AS $$SELECT nextval('seq')$$;`)
	second := p.wire(t)
	check := func(t *testing.T, text string, pins bool, messages ...pgproto3.FrontendMessage) {
		before := p.FindingCount()
		first := p.wire(t)
		first.send(messages...)
		first.answer('Z', 1)
		found := p.Findings()[before:]
		pinned := slices.ContainsFunc(found, func(f Finding) bool { return f.Pinned })
		if pinned != pins {
			t.Errorf("%.100s: findings %+v, want pinned %v", text, found, pins)
		}
		for _, f := range found {
			if !strings.HasPrefix(text, strings.TrimSuffix(f.Statement, "…")) || f.User != "pith" || f.Database != p.database || f.Construct == "" {
				t.Errorf("finding %+v is not about %q", f, text)
			}
		}
		if n := p.Metrics().DatabaseConnectionsCurrentlySessionPinned; pins != (n == 1) {
			t.Errorf("%.100s: %d sessions are pinned", text, n)
		}
		if pins {
			_ = first.conn.Close()
		}
		second.wantOne("SELECT 1")
		_ = first.conn.Close()
	}
	for _, group := range []struct {
		texts map[string]string
		pins  bool
	}{{pinningTexts, true}, {harmlessTexts, false}} {
		for name, text := range group.texts {
			t.Run(name, func(t *testing.T) {
				check(t, text, group.pins, &pgproto3.Query{String: text})
				check(t, text, group.pins, append(run(text), syncMsg)...)
			})
		}
	}
}

func TestFunctionCallPins(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	w.send(&pgproto3.FunctionCall{Function: 1397, ArgFormatCodes: []uint16{0}, Arguments: [][]byte{[]byte("-5")}})
	w.answer('Z', 1)
	want := []Finding{{Pinned: true, Construct: "function call message", User: "pith", Database: p.database}}
	if diff := cmp.Diff(want, p.Findings()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if n := p.Metrics().DatabaseConnectionsCurrentlySessionPinned; n != 1 {
		t.Errorf("%d sessions are pinned", n)
	}
}

func TestWhatNobodyPromisesIsRecordedAndDoesNotPin(t *testing.T) {
	t.Parallel()
	calls := make(chan string, 10)
	p := startProxy(t, Config{PoolSize: 1, OnFinding: func(f Finding) { calls <- f.Construct + ": " + f.Statement }})
	w, other := p.wire(t), p.wire(t)
	w.send(prep("name", "SELECT 1"), bind("name"), do(), syncMsg)
	w.answer('Z', 1)
	w.send(prep("", "SELECT 2"), portal("portal", ""), rows("portal", 0), syncMsg)
	w.answer('Z', 1)
	w.send(bind(""), do(), syncMsg)
	w.answer('Z', 1)
	other.wantOne("SELECT 1")
	want := []string{"named statement: SELECT 1", "named portal: ", "unnamed statement of an earlier transaction: SELECT 2"}
	var called []string
	for range want {
		called = append(called, <-calls)
	}
	if diff := cmp.Diff(want, called); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	var kept []string
	for _, f := range p.Findings() {
		kept = append(kept, f.Construct+": "+f.Statement)
		if f.Pinned {
			t.Errorf("%+v pins", f)
		}
	}
	if diff := cmp.Diff(called, kept); diff != "" {
		t.Errorf("findings kept (-called +kept):\n%s", diff)
	}
}

func TestTextOutsideTheGrammarIsFound(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	w.sql("SET is no SQL if it goes on so")
	w.sql("SELECT 1")
	w.send(prep("", "SELEC"), syncMsg)
	w.answer('Z', 1)
	var texts []string
	for _, f := range p.Findings() {
		if f.Pinned || f.Construct != "text outside PostgreSQL's grammar" {
			t.Errorf("found %+v", f)
		}
		texts = append(texts, f.Statement)
	}
	if want := []string{"SET is no SQL if it goes on so", "SELEC"}; !slices.Equal(texts, want) {
		t.Errorf("found %q, want %q", texts, want)
	}
}

func TestFindingsAreBounded(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	const n = maxFindings + 10
	w.send(slices.Repeat(msgs(prep("n", "SELECT 'ä"+strings.Repeat("ä", maxStatement)+"'"), shut('S', "n")), n)...)
	w.send(syncMsg)
	w.answer('Z', 1)
	if got := p.FindingCount(); got != n {
		t.Errorf("%d findings, want %d", got, n)
	}
	list := p.Findings()
	if len(list) != maxFindings {
		t.Errorf("%d are kept, want %d", len(list), maxFindings)
	}
	if s := list[0].Statement; len(s) > maxStatement+len("…") || !strings.HasSuffix(s, "ä…") {
		t.Errorf("statement is shown as %q", s)
	}
}
