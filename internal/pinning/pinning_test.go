package pinning

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// forbidden are texts and what they hold; ! marks what pins.
var forbidden = []struct {
	text string
	want []string
}{
	{"SET a = 1", []string{"!SET"}},
	{"set session a to 1", []string{"!SET"}},
	{"SET a TO DEFAULT", []string{"!SET"}},
	{"SET LOCAL a = 1", []string{"!SET LOCAL"}},
	{"SET TIME ZONE 'UTC'", []string{"!SET"}},
	{"SET ROLE r", []string{"!SET"}},
	{"SET SESSION AUTHORIZATION r", []string{"!SET"}},
	{"SET NAMES 'UTF8'", []string{"!SET"}},
	{"SET search_path TO a, b", []string{"!SET"}},
	{"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", []string{"!SET TRANSACTION"}},
	{"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", []string{"!SET SESSION CHARACTERISTICS"}},
	{"SET CONSTRAINTS ALL DEFERRED", []string{"!SET CONSTRAINTS"}},
	{"/* x */ SET -- x\n a = 1", []string{"!SET"}},
	{"SELECT 1; SET a = 1; RESET a", []string{"!SET", "!RESET"}},
	{"UPDATE t SET a = 1; SET b = 1", []string{"!SET"}},
	{"SELECT 1 FROM t FOR NO KEY UPDATE; SET a = 1", []string{"!SET"}},
	{"RESET ALL", []string{"!RESET"}},
	{"RESET ROLE", []string{"!RESET"}},
	{"SELECT set_config('a', 'b', true)", []string{"!set_config()"}},
	{`SELECT pg_catalog."set_config"('a', 'b', false)`, []string{"!set_config()"}},

	{"PREPARE p AS SELECT 1", []string{"!PREPARE"}},
	{"PREPARE p (int) AS SELECT nextval('s')", []string{"!PREPARE", "!nextval()"}},
	{"PREPARE TRANSACTION 'a'", []string{"!PREPARE TRANSACTION"}},
	{"EXECUTE p (1)", []string{"!EXECUTE"}},
	{"EXPLAIN ANALYZE EXECUTE p", []string{"!EXECUTE"}},
	{"CREATE TABLE t AS EXECUTE p", []string{"!EXECUTE"}},
	{"DEALLOCATE ALL", []string{"!DEALLOCATE"}},
	{"DEALLOCATE PREPARE p", []string{"!DEALLOCATE"}},
	{"DISCARD ALL", []string{"!DISCARD"}},
	{"discard sequences", []string{"!DISCARD"}},

	{"CREATE TEMP TABLE t ()", []string{"!temporary table"}},
	{"CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS t (a int) ON COMMIT DROP", []string{"!temporary table"}},
	{"CREATE GLOBAL TEMP TABLE t ()", []string{"!temporary table"}},
	{"CREATE TEMP TABLE t AS SELECT 1", []string{"!temporary table"}},
	{"EXPLAIN CREATE TEMP TABLE t AS SELECT 1", []string{"!temporary table"}},
	{"SELECT 1 INTO TEMP t", []string{"!temporary table"}},
	{"WITH a AS (SELECT 1) SELECT * INTO TEMPORARY TABLE t FROM a", []string{"!temporary table"}},
	{"CREATE TEMP VIEW v AS SELECT 1", []string{"!temporary view"}},
	{"CREATE OR REPLACE TEMPORARY RECURSIVE VIEW v (a) AS SELECT 1", []string{"!temporary view"}},
	{"CREATE TEMP SEQUENCE s", []string{"!temporary sequence"}},
	{"CREATE TABLE pg_temp.t ()", []string{"!schema pg_temp"}},
	{"SELECT * FROM PG_TEMP.t", []string{"!schema pg_temp"}},
	{`INSERT INTO "pg_temp".t VALUES (1)`, []string{"!schema pg_temp"}},
	{"DROP TABLE pg_temp_12.t", []string{"!schema pg_temp"}},
	{"CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", []string{"!schema pg_temp"}},
	{"SELECT pg_temp.f()", []string{"!schema pg_temp"}},
	{"CREATE TYPE pg_temp.e AS ENUM ('a')", []string{"!schema pg_temp"}},
	{"DROP TYPE a, pg_temp.e", []string{"!schema pg_temp"}},
	{"DROP FUNCTION pg_temp.f(int)", []string{"!schema pg_temp"}},
	{"DROP TRIGGER g ON pg_temp.t", []string{"!schema pg_temp"}},
	{"COMMENT ON COLUMN pg_temp.t.a IS 'x'", []string{"!schema pg_temp"}},
	{"CREATE TRIGGER g AFTER UPDATE ON t EXECUTE FUNCTION pg_temp.f()", []string{"!schema pg_temp"}},
	{"CREATE SEQUENCE s OWNED BY pg_temp.t.a", []string{"!schema pg_temp"}},
	{"CREATE INDEX i ON t (a COLLATE pg_temp.c)", []string{"!schema pg_temp"}},
	{"SELECT 1 OPERATOR(pg_temp.+) 2", []string{"!schema pg_temp"}},
	{"SELECT NULL::pg_temp.e", []string{"!schema pg_temp"}},
	{"DROP SCHEMA pg_temp_3", []string{"!schema pg_temp"}},
	{"DROP SCHEMA IF EXISTS pg_temp_3, a CASCADE", []string{"!schema pg_temp"}},
	{`DROP SCHEMA a, "pg_temp"`, []string{"!schema pg_temp"}},
	{"ALTER TABLE t SET SCHEMA pg_temp", []string{"!schema pg_temp"}},

	{"DECLARE c CURSOR FOR SELECT 1", []string{"!DECLARE CURSOR"}},
	{"DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT lastval()", []string{"!DECLARE CURSOR", "!lastval()"}},
	{"FETCH NEXT FROM c", []string{"!FETCH"}},
	{"MOVE ALL IN c", []string{"!MOVE"}},
	{"CLOSE c", []string{"!CLOSE"}},
	{"DELETE FROM t WHERE CURRENT OF c", []string{"!WHERE CURRENT OF"}},

	{"LOAD 'auto_explain'", []string{"!LOAD"}},
	{"LISTEN a", []string{"!LISTEN"}},
	{"UNLISTEN *", []string{"!UNLISTEN"}},
	{"notify a, 'b'", []string{"NOTIFY"}},
	{"CREATE RULE r AS ON INSERT TO t DO ALSO NOTIFY a", []string{"NOTIFY"}},
	{"SELECT pg_notify('a', 'b')", []string{"pg_notify()"}},
	{`SELECT pg_catalog."pg_notify"('a', 'b')`, []string{"pg_notify()"}},

	{"SELECT nextval('s')", []string{"!nextval()"}},
	{"SELECT NextVal ('s')", []string{"!nextval()"}},
	{`SELECT "nextval"('s')`, []string{"!nextval()"}},
	{`SELECT "NEXTVAL"('s')`, []string{"!nextval()"}},
	{"SELECT pg_catalog . nextval('s')", []string{"!nextval()"}},
	{"SELECT mine.nextval('s')", []string{"!nextval()"}},
	{"SELECT a.b.nextval('s')", []string{"!nextval()"}},
	{`SELECT U&"next\0076al"('s')`, []string{"!nextval()"}},
	{"SELECT nextval/* x */('s')", []string{"!nextval()"}},
	{"SELECT setval('s', 1), currval('s'), lastval()", []string{"!setval()", "!currval()", "!lastval()"}},
	{"SELECT lastval(), setval('s', 1); SELECT currval('s')", []string{"!lastval()", "!setval()", "!currval()"}},
	{"SELECT nextval('s') FROM pg_temp.t WHERE nextval('s') > 1", []string{"!nextval()", "!schema pg_temp", "!nextval()"}},
	{"SELECT * FROM nextval('s') WITH ORDINALITY", []string{"!nextval()"}},
	{"SELECT FROM ROWS FROM (generate_series(1, 2), nextval('s'))", []string{"!nextval()"}},
	{"WITH a AS (INSERT INTO t VALUES (nextval('s')) RETURNING a) SELECT 1", []string{"!nextval()"}},
	{"INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = nextval('s')", []string{"!nextval()"}},
	{"UPDATE t SET (a, b) = (1, nextval('s'))", []string{"!nextval()"}},
	{"MERGE INTO t USING u ON true WHEN NOT MATCHED THEN INSERT VALUES (nextval('s'))", []string{"!nextval()"}},
	{"SELECT 1 ORDER BY CASE WHEN true THEN 1 ELSE nextval('s') END LIMIT lastval()", []string{"!nextval()", "!lastval()"}},
	{"VALUES (1, ARRAY[nextval('s')]::text[])", []string{"!nextval()"}},
	{"SELECT (SELECT 1 FROM t WINDOW w AS (ORDER BY nextval('s')))", []string{"!nextval()"}},
	{"CREATE TABLE t (a int DEFAULT nextval('s'))", []string{"!nextval()"}},
	{"CREATE TABLE t (a int CHECK (a < currval('s')))", []string{"!currval()"}},
	{"ALTER TABLE t ALTER a SET DEFAULT nextval('s')", []string{"!nextval()"}},
	{"CREATE VIEW v AS SELECT nextval('s')", []string{"!nextval()"}},
	{"CREATE RULE r AS ON INSERT TO t DO ALSO SELECT nextval('s')", []string{"!nextval()"}},
	{"CREATE FUNCTION f(a int DEFAULT nextval('s')) RETURNS int LANGUAGE sql AS 'SELECT 1'", []string{"!nextval()"}},
	{"CREATE FUNCTION f() RETURNS bigint LANGUAGE sql RETURN nextval('s')", []string{"!nextval()"}},
	{"CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT nextval('s'); END", []string{"!nextval()"}},
	{"CREATE INDEX i ON t ((nextval('s')))", []string{"!nextval()"}},
	{"CREATE POLICY p ON t USING (nextval('s') > 1)", []string{"!nextval()"}},
	{"CREATE TRIGGER g AFTER UPDATE ON t WHEN (nextval('s') > 1) EXECUTE FUNCTION f()", []string{"!nextval()"}},
	{"CREATE DOMAIN d AS int DEFAULT nextval('s')", []string{"!nextval()"}},
	{"COPY (SELECT nextval('s')) TO STDOUT", []string{"!nextval()"}},
	{"COPY t FROM STDIN WHERE nextval('s') > 1", []string{"!nextval()"}},
	{"EXPLAIN SELECT nextval('s')", []string{"!nextval()"}},
	{"CALL p(nextval('s'))", []string{"!nextval()"}},
	{"CREATE SCHEMA x CREATE TABLE t (a int DEFAULT nextval('s'))", []string{"!nextval()"}},

	{"SELECT pg_advisory_lock(1)", []string{"!pg_advisory_lock()"}},
	{"SELECT PG_CATALOG.PG_ADVISORY_LOCK(1, 2)", []string{"!pg_advisory_lock()"}},
	{"SELECT pg_advisory_lock_shared(1)", []string{"!pg_advisory_lock_shared()"}},
	{"SELECT pg_try_advisory_lock(1)", []string{"!pg_try_advisory_lock()"}},
	{"SELECT pg_try_advisory_lock_shared(1)", []string{"!pg_try_advisory_lock_shared()"}},
	{"SELECT pg_advisory_unlock(1)", []string{"!pg_advisory_unlock()"}},
	{"SELECT pg_advisory_unlock_shared(1)", []string{"!pg_advisory_unlock_shared()"}},
	{"SELECT pg_advisory_unlock_all()", []string{"!pg_advisory_unlock_all()"}},
	{"SELECT pg_advisory_xact_lock(1)", []string{"pg_advisory_xact_lock()"}},
	{"SELECT pg_advisory_xact_lock_shared(1)", []string{"pg_advisory_xact_lock_shared()"}},
	{"SELECT pg_try_advisory_xact_lock(1)", []string{"pg_try_advisory_xact_lock()"}},
	{"SELECT pg_try_advisory_xact_lock_shared(1, 2)", []string{"pg_try_advisory_xact_lock_shared()"}},

	{"BEGIN; SET LOCAL a = 1; SELECT nextval('s'); NOTIFY a; COMMIT", []string{"!SET LOCAL", "!nextval()", "NOTIFY"}},
	{"SELECT 'it''s'; SET a = 1", []string{"!SET"}},
	{`SELECT E'\'--'; SET a = 1`, []string{"!SET"}},
	{"/* /* */ ' */ LISTEN a; SELECT ''", []string{"!LISTEN"}},
	{"SELECT $$x$$; LISTEN a; SELECT $$y$$", []string{"!LISTEN"}},
}

// allowed are texts in which nothing is to be found.
var allowed = []string{
	"", ";", "-- SET a = 1", "SELECT 1", "-- SET a = 1\nSELECT 1 /* NOTIFY /* a */ LISTEN */",
	"SELECT nextval, t.currval, setval.x, nextval AS lastval FROM set_config AS setval JOIN nextval t ON true",
	"SELECT nextval_x(1), my_pg_notify(), pg_advisor(), listen(), notify(), load()",
	`SELECT 'LISTEN a', 'it''s; SET a = 1', E'\'; SET a = 1', $$nextval('s')$$, $a$ $$ ; LISTEN a; $a$, "LISTEN" FROM "SET"`,
	"SELECT a$b$c FROM t", "SELECT pg_temp FROM t AS pg_temp", "SELECT pg_temp.a FROM t AS pg_temp", "SELECT * FROM pg_temperature.t, pg_temp_x.t",
	"CREATE TABLE t (PRIMARY KEY (pg_temp, a) INCLUDE (pg_temp, b), UNIQUE (pg_temp, a))",
	"CREATE TABLE t (FOREIGN KEY (pg_temp, a) REFERENCES u (pg_temp, b) ON DELETE SET NULL (pg_temp, a))",
	"SELECT FROM t JOIN u USING (pg_temp, c) AS x", "SELECT FROM t AS x (pg_temp, c)", "SELECT (a).pg_temp.b, c[1].pg_temp.d",
	"CREATE VIEW v (pg_temp, a) AS SELECT 1, 2", "CREATE RECURSIVE VIEW v (pg_temp, a) AS SELECT 1, 2", "CREATE TABLE t (pg_temp, a) AS SELECT 1, 2",
	"WITH RECURSIVE x (pg_temp, a) AS (SELECT 1) SEARCH DEPTH FIRST BY pg_temp, a SET o CYCLE pg_temp, a SET c USING p SELECT 1",
	"COPY t (pg_temp, a) FROM STDIN", "ANALYZE t (pg_temp, a)", "INSERT INTO t (a.pg_temp.b, pg_temp, c) VALUES (1)", "UPDATE t SET a.pg_temp.b = 1, (pg_temp, c) = (1, 2)",
	"CREATE TRIGGER g AFTER UPDATE OF pg_temp, a ON t EXECUTE FUNCTION f()", "GRANT SELECT (pg_temp, a) ON t TO r", "CREATE PUBLICATION p FOR TABLE t (pg_temp, a)",
	"CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION pg_temp, a", "DROP EXTENSION pg_temp, a", "DROP SERVER pg_temp_1, a", "DROP SCHEMA pg_temp_x, a",
	"UPDATE t SET a = 1 WHERE b", "WITH x AS (UPDATE t AS u SET (a, b) = (1, 2) RETURNING a) UPDATE v SET a = 1",
	"INSERT INTO t VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET a = excluded.a", "INSERT INTO t DEFAULT VALUES",
	"SELECT a FROM t ORDER BY a FOR UPDATE SKIP LOCKED", "SHOW ALL", "SELECT current_setting('a')",
	"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "START TRANSACTION", "COMMIT", "ROLLBACK TO SAVEPOINT a", "LOCK TABLE t", "COPY t FROM STDIN",
	"CREATE TABLE t (a bigserial, b int GENERATED ALWAYS AS IDENTITY (START 5), c int REFERENCES u ON DELETE SET NULL ON UPDATE SET DEFAULT)",
	"CREATE SEQUENCE s", "ALTER SEQUENCE s RESTART", "TRUNCATE t RESTART IDENTITY", "CREATE UNLOGGED TABLE temp (temporary int)",
	"ALTER TABLE t ALTER a SET NOT NULL, ALTER a SET DEFAULT 0", "ALTER TABLE t SET (fillfactor = 50)", "ALTER TABLE t SET SCHEMA u", "ALTER TABLE t RESET (fillfactor)",
	"ALTER ROLE r SET a = 1", "ALTER ROLE r RESET ALL", "ALTER DATABASE d SET a = 1", "ALTER SYSTEM SET a = 1", "ALTER FUNCTION f() SET a = 1",
	"CREATE FUNCTION f() RETURNS int LANGUAGE sql SET jit = off SET b FROM CURRENT AS $$ SELECT nextval('s') $$",
	"DO $$ BEGIN PERFORM nextval('s'); SET a = 1; END $$", "DO 'LISTEN a'", "CALL setval_later()",
	"CREATE TRIGGER g AFTER UPDATE ON t EXECUTE FUNCTION nextval()", "COMMENT ON FUNCTION nextval(regclass) IS 'SET a = 1'", "GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO r",
}

// marked writes findings as the table of forbidden texts does.
func marked(found []Finding) (marks []string) {
	for _, f := range found {
		mark := f.Construct
		if f.Pins {
			mark = "!" + mark
		}
		marks = append(marks, mark)
	}
	return marks
}

func TestEachForbiddenConstructIsFoundInOrder(t *testing.T) {
	t.Parallel()
	for _, c := range forbidden {
		for _, text := range []string{c.text, "SELECT 1;" + c.text + ";;", "\n\t" + c.text + " -- SET a = 1"} {
			got, err := Inspect(text)
			if diff := cmp.Diff(c.want, marked(got)); diff != "" || err != nil {
				t.Errorf("%s: %v\n%s", text, err, diff)
			}
		}
	}
}

func TestNearMissesAreNotFound(t *testing.T) {
	t.Parallel()
	for _, text := range allowed {
		if got, err := Inspect(text); err != nil || len(got) > 0 {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

func TestTextsOutOfTheGrammarAreErrors(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"SELEC 1", "SELECT 'open", `SELECT "open`, "SELECT $$open", "SELECT /* open", "SELECT 1)", "(((", "SET", "LISTEN", "SELECT nextval('s') garbage garbage",
		"SELECT 1\x00; SET a = 1", "\x00", "SELECT \xff", "\xff\xfe\xfd", "SELECT E'\\xff' \xc3",
	} {
		for range 2 { // parsed, and remembered
			if got, err := Inspect(text); err == nil && !strings.Contains(text, "\xff") && !strings.Contains(text, "\xc3") {
				t.Errorf("%q: no error, %v", text, got)
			}
		}
	}
	if got, err := Inspect("SELECT '\xff', nextval('s')"); err != nil || len(got) != 1 {
		t.Errorf("a literal that is not UTF-8: %v, %v", got, err)
	}
}

func TestOnlyATextOverTheLimitPinsForItsSize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bytes int
		want  []string
	}{
		{MaxText - 1, nil},
		{MaxText, nil},
		{MaxText + 1, []string{"!text of 16385 bytes"}},
		{1 << 24, []string{"!text of 16777216 bytes"}},
	} {
		for _, text := range []string{
			"SELECT '" + strings.Repeat("x", c.bytes-9) + "'",
			"SELECT 1" + strings.Repeat(" ", c.bytes-8),
			"SELECT ARRAY[1" + strings.Repeat(",1", (c.bytes-15)/2) + strings.Repeat(" ", (c.bytes-15)%2) + "]",
		} {
			if len(text) != c.bytes {
				t.Fatalf("%d bytes", len(text))
			}
			got, err := Inspect(text)
			if diff := cmp.Diff(c.want, marked(got)); diff != "" || err != nil {
				t.Errorf("%d bytes: %v\n%s", c.bytes, err, diff)
			}
		}
	}
}

func TestFindingsAreTheCallersOwn(t *testing.T) {
	t.Parallel()
	const text = "SELECT nextval('own'), lastval()"
	first, err := Inspect(text)
	if err != nil || len(first) != 2 {
		t.Fatal(first, err)
	}
	first[0] = Finding{}
	if second, _ := Inspect(text); second[0].Construct != "nextval()" {
		t.Error(second)
	}
}

func TestManyTextsAtOnceAreReadAlikeAndForgotten(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 600 {
				if got, err := Inspect(fmt.Sprintf("SELECT nextval('%d')", g%2*600+i)); err != nil || len(got) != 1 {
					t.Error(got, err)
				}
			}
		})
	}
	wg.Wait()
	remembered.Lock()
	defer remembered.Unlock()
	if n := len(remembered.of); n > maxRemembered {
		t.Errorf("%d texts are remembered", n)
	}
}

func FuzzInspect(f *testing.F) {
	for _, c := range forbidden {
		f.Add(c.text)
	}
	for _, text := range allowed {
		f.Add(text)
	}
	for _, c := range nesting {
		f.Add(c.before + strings.Repeat(c.open, 30) + c.leaf + strings.Repeat(c.close, 30))
	}
	// The parser takes longer to start than one input may take.
	if _, err := Inspect("SELECT 1"); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Inspect(text)
		if len(text) > MaxText {
			if len(got) != 1 || !got[0].Pins || err != nil {
				t.Fatalf("%v, %v", got, err)
			}
			return
		}
		var again reader // nothing is remembered here
		errAgain := again.read(text)
		if !slices.Equal(got, again.inOrder()) || (err == nil) != (errAgain == nil) {
			t.Errorf("%v, %v; then %v, %v", got, err, again.inOrder(), errAgain)
		}
		if sound, err := Inspect("SELECT nextval('sound')"); err != nil || len(sound) != 1 {
			t.Fatalf("afterwards: %v, %v", sound, err)
		}
		again = reader{}
		if err := again.read("SELECT nextval('sound')"); err != nil || len(again.found) != 1 {
			t.Fatalf("afterwards: %v, %v", again.found, err)
		}
	})
}
