package pinning

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func function(language, declarations, statements string) string {
	if language == "sql" {
		return "CREATE FUNCTION f(a int) RETURNS void LANGUAGE sql SET jit = off AS $x$ " + statements + " $x$"
	}
	return "CREATE FUNCTION f(a int[], b text) RETURNS TABLE (x int) LANGUAGE plpgsql SET jit = off AS $x$ DECLARE n int; q record; " +
		declarations + " BEGIN " + statements + "; END $x$"
}

func TestBodiesAreSearchedInAllTheirParts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want []string
	}{
		// A call in each place that takes an expression.
		{function("plpgsql", "m int := nextval('s');", "NULL"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "n := nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "n = nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "a[nextval('s')] := 1"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "a[(SELECT 1 WHERE 1 = 1)] := lastval()"), []string{"lastval() in f()"}},
		{function("plpgsql", "", "q.x := nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "PERFORM nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "SELECT nextval('s') INTO n"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "INSERT INTO t VALUES (nextval('s')) RETURNING a INTO STRICT n"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "IF nextval('s') > 1 THEN NULL; END IF"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "IF false THEN NULL; ELSIF nextval('s') > 1 THEN NULL; ELSE PERFORM lastval(); END IF"), []string{"lastval() in f()", "nextval() in f()"}},
		{function("plpgsql", "", "CASE nextval('s') WHEN 1 THEN NULL; END CASE"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "CASE n WHEN nextval('s') THEN NULL; ELSE NULL; END CASE"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "CASE WHEN true THEN PERFORM nextval('s'); ELSE PERFORM lastval(); END CASE"), []string{"nextval() in f()", "lastval() in f()"}},
		{function("plpgsql", "", "WHILE nextval('s') > 1 LOOP NULL; END LOOP"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "LOOP EXIT WHEN nextval('s') > 1; END LOOP"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "LOOP PERFORM nextval('s'); CONTINUE; END LOOP"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "FOR i IN nextval('s')..2 BY 2 LOOP NULL; END LOOP"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "FOR i IN 1..2 BY nextval('s') LOOP NULL; END LOOP"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "FOR q IN SELECT nextval('s') LOOP PERFORM lastval(); END LOOP"), []string{"lastval() in f()", "nextval() in f()"}},
		{function("plpgsql", "", "FOREACH n IN ARRAY ARRAY[nextval('s')] LOOP NULL; END LOOP"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "RETURN QUERY SELECT nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "RAISE NOTICE '%', nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "RAISE EXCEPTION 'x' USING DETAIL = nextval('s')"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "ASSERT nextval('s') > 1, lastval()"), []string{"nextval() in f()", "lastval() in f()"}},
		{function("plpgsql", "", "CALL p(nextval('s'))"), []string{"nextval() in f()"}},
		{function("plpgsql", "", "BEGIN NULL; EXCEPTION WHEN others THEN PERFORM nextval('s'); END"), []string{"nextval() in f()"}},
		{"CREATE FUNCTION f() RETURNS bigint LANGUAGE plpgsql AS $x$ BEGIN RETURN nextval('s'); END $x$", []string{"nextval() in f()"}},
		{"CREATE PROCEDURE public.P() LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''s''); END'", []string{"nextval() in p()"}},
		{"CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE 'plpgsql' AS $x$ BEGIN NEW.a := nextval('s'); RETURN NEW; END $x$", []string{"nextval() in f()"}},
		{function("sql", "", "SELECT 1; SELECT nextval('s')"), []string{"nextval() in f()"}},
		{"CREATE FUNCTION f() RETURNS bigint AS $$ SELECT nextval('s') $$", []string{"nextval() in f()"}},
		{"DO $$ BEGIN PERFORM nextval('s'); END $$", []string{"nextval() in DO"}},
		{"DO LANGUAGE plpgsql 'BEGIN SET a = 1; END'", []string{"SET in DO"}},
		{"CREATE FUNCTION f(a int DEFAULT nextval('s')) RETURNS int LANGUAGE sql AS 'SELECT lastval()'", []string{"!nextval()", "lastval() in f()"}},
		{
			"SELECT nextval('s'); DO $$ BEGIN PERFORM lastval(); END $$; SELECT 1; DO $$ BEGIN PERFORM currval('s'); END $$; LISTEN a",
			[]string{"!nextval()", "lastval() in DO", "currval() in DO", "!LISTEN"},
		},
		{"DO $$ BEGIN DO 'BEGIN PERFORM nextval(''s''); END'; END $$", []string{"nextval() in DO in DO"}},

		// PL/pgSQL's own.
		{function("plpgsql", "", "EXECUTE 'SELECT 1' USING n"), []string{"dynamic SQL in f()"}},
		{function("plpgsql", "", "FOR q IN EXECUTE 'SELECT 1' LOOP NULL; END LOOP"), []string{"dynamic SQL in f()"}},
		{function("plpgsql", "", "RETURN QUERY EXECUTE 'SELECT 1' USING n"), []string{"dynamic SQL in f()"}},
		{function("plpgsql", "r refcursor;", "NULL"), []string{"cursor in f()"}},
		{function("plpgsql", "r refcursor;", "OPEN r FOR SELECT 1"), []string{"cursor in f()"}},
		{function("plpgsql", "c CURSOR (k int) FOR SELECT k;", "NULL"), []string{"cursor in f()"}},
		{function("plpgsql", "c CURSOR FOR SELECT 1;", "FOR q IN c LOOP NULL; END LOOP"), []string{"cursor in f()"}},
		{function("plpgsql", "", "COMMIT"), []string{"COMMIT in f()"}},
		{function("plpgsql", "", "COMMIT AND CHAIN"), []string{"COMMIT in f()"}},
		{function("plpgsql", "", "IF true THEN ROLLBACK; END IF"), []string{"ROLLBACK in f()"}},

		// What is kept out of all our texts.
		{"LOCK TABLE t", []string{"LOCK"}},
		{"COPY t FROM STDIN", []string{"COPY"}},
		{"BEGIN; SAVEPOINT a; RELEASE a; ROLLBACK TO a; COMMIT", []string{"BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "COMMIT"}},
		{"START TRANSACTION; ABORT", []string{"START TRANSACTION", "ROLLBACK"}},
		{"PREPARE TRANSACTION 'a'; COMMIT PREPARED 'a'; ROLLBACK PREPARED 'a'", []string{"!PREPARE TRANSACTION", "COMMIT PREPARED", "ROLLBACK PREPARED"}},
	} {
		got, err := InspectAll(c.text)
		if diff := cmp.Diff(c.want, marked(got)); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", c.text, err, diff)
		}
	}
}

func TestWhatIsForbiddenIsForbiddenInBodies(t *testing.T) {
	t.Parallel()
	for _, c := range forbidden {
		if got, err := InspectAll(c.text); err != nil || len(got) < len(c.want) {
			t.Errorf("%s: %v, %v", c.text, got, err)
		}
		if strings.Contains(c.text, "$x$") || strings.Contains(c.text, "BEGIN") {
			continue
		}
		if got, err := InspectAll(function("sql", "", c.text)); err != nil || len(got) < len(c.want) {
			t.Errorf("in SQL, %s: %v, %v", c.text, got, err)
		}
		// Some are other commands in PL/pgSQL, or none.
		got, err := InspectAll(function("plpgsql", "", "UPDATE t SET a = 1; IF n > 0 THEN "+c.text+"; END IF"))
		if err == nil && len(got) == 0 {
			t.Errorf("in PL/pgSQL, %s: nothing", c.text)
		}
	}
}

func TestNearMissesInBodiesAreNotFound(t *testing.T) {
	t.Parallel()
	for _, statements := range []string{
		"NULL", "UPDATE t SET a = 1 WHERE b", "RETURN", "RETURN QUERY SELECT 1", "RETURN NEXT", "n := 1; n := n + 1", "a[1] := n", "a[1 + n] = n",
		"FOR q IN SELECT nextval FROM t LOOP n := q.nextval; END LOOP", "RAISE NOTICE 'SET a = 1; LISTEN % %', n, 'nextval(1)'", "-- EXECUTE 'x'; COMMIT\n NULL",
		"SELECT count(*) INTO n FROM t FOR UPDATE", "GET DIAGNOSTICS n = ROW_COUNT", "PERFORM 1 FROM t ORDER BY a FOR SHARE",
	} {
		text := function("plpgsql", "c CONSTANT int := 1;", statements)
		if got, err := InspectAll(text); err != nil || len(got) > 0 {
			t.Errorf("%s: %v, %v", statements, got, err)
		}
	}
}

func TestABodyThatCannotBeReadIsAnError(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		function("plpgsql", "", "SELEC 1"), function("plpgsql", "", "n := "), function("plpgsql", "", "PERFORM 1 +"), function("plpgsql", "", "IF true THEN NULL"),
		function("plpgsql", "", "n := "+strings.Repeat("f(", 500)+"1"+strings.Repeat(")", 500)),
		function("sql", "", "SELEC 1"), function("sql", "", "SELECT "+strings.Repeat("- ", 5000)+"a"),
		"CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS 'return 1'", "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'lib', 'f'",
		"DO LANGUAGE plperl 'x'", "SELEC 1",
	} {
		if got, err := InspectAll(text); err == nil {
			t.Errorf("%.120s: no error, %v", text, got)
		}
	}
	if got, err := InspectAll(function("plpgsql", "", "PERFORM nextval('s')")); err != nil || len(got) != 1 {
		t.Errorf("afterwards: %v, %v", got, err)
	}
	if got, err := InspectAll("SELECT '" + strings.Repeat("x", MaxText) + "'"); err != nil || len(got) != 1 {
		t.Errorf("a long text: %v, %v", got, err)
	}
}
