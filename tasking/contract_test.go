package tasking_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/pithworks/pith/sql/schema"
	"github.com/pithworks/pith/tasking"
)

// statementTexts returns the text of every query in package db.
func statementTexts(t *testing.T) (texts []string) {
	t.Helper()
	files, err := filepath.Glob("../db/*.sql.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Error(err)
			}
			texts = append(texts, text)
			return true
		})
	}
	if len(texts) < 20 {
		t.Errorf("only %d texts were found", len(texts))
	}
	return texts
}

// place is where a piece of SQL stands.
type place int

const (
	inQuery     place = iota // sent by a program
	inMigration              // sent by a migration, outside of the functions that it makes
	inBody                   // between dollar quotes: PL/pgSQL or SQL
)

// lexeme is one of SQL's: space, a comment, literals, a quoted name, a parameter, a dollar quote, a
// word, a number, any other character. No quotation mark is such another one: it was not closed.
var lexeme = regexp.MustCompile(`(?is)^(?:\s+|--[^\n]*|/\*.*?\*/|e'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|` +
	`\$\d+|\$(?:[a-z_]\w*)?\$|[\pL_][\pL\w$]*|\d[\w.]*|[^'"])`)

// What would act on the server connection beyond its transaction, or needs the same one next time.
var (
	notAsWord = regexp.MustCompile(`^(?:LISTEN|NOTIFY|UNLISTEN|RESET|PREPARE|EXECUTE|DEALLOCATE|DISCARD|TEMP|TEMPORARY|` +
		`CURSOR|REFCURSOR|LOAD|COPY|LOCK|COMMIT|ROLLBACK|ABORT|SAVEPOINT|TRANSACTION)$`)
	notAsName = regexp.MustCompile(`^"?(?:PG_NOTIFY|PG_\w*ADVISORY\w*|SET_CONFIG|NEXTVAL|SETVAL|CURRVAL|LASTVAL|PG_TEMP)"?$`)
)

// keepsContract returns an error that names the first thing that the pooler contract forbids.
func keepsContract(text string, where place) error {
	var first, before, last string // words: the statement's first one, and those before this one
	updating := false              // an UPDATE has not come to its SET
	for text != "" {
		l := lexeme.FindString(text)
		text = text[len(l):]
		switch {
		case l == "":
			return fmt.Errorf("not closed: %.40s", text)
		case strings.HasPrefix(l, "/*") && strings.Contains(l[2:], "/*"):
			return fmt.Errorf("a comment in a comment: %.40s", l)
		case strings.HasSuffix(l, "'") && (last == "AS" || last == "DO"):
			return fmt.Errorf("code in a literal; put it between dollar quotes: %.40s", l)
		case strings.TrimSpace(l) == "", strings.HasPrefix(l, "--"), strings.HasPrefix(l, "/*"), strings.HasSuffix(l, "'"):
			continue
		case len(l) > 1 && l[0] == '$' && l[len(l)-1] == '$':
			body, rest, closed := strings.Cut(text, l)
			if !closed {
				return fmt.Errorf("not closed: %s%.40s", l, text)
			}
			if err := keepsContract(body, inBody); err != nil {
				return err
			}
			text = rest
			continue
		case l == ";":
			first, before, last, updating = "", "", "", false
			continue
		}
		w := strings.ToUpper(l)
		switch {
		case notAsWord.MatchString(w), notAsName.MatchString(w), where != inBody && (w == "BEGIN" || w == "DECLARE"):
			return errors.New(w)
		case w == "UPDATE":
			updating = last != "FOR" && last != "KEY" // as in FOR NO KEY UPDATE
		case w == "SET":
			// Rows, what a foreign key does, and what is stored with a function or a table.
			stored := where == inMigration && (first == "CREATE" || first == "ALTER")
			if !updating && !stored && (before != "ON" || last != "DELETE") {
				return errors.New(w)
			}
			updating = false
		}
		if first == "" {
			first = w
		}
		before, last = last, w
	}
	return nil
}

func TestStatementsKeepToThePoolerContract(t *testing.T) {
	t.Parallel()
	for _, text := range statementTexts(t) {
		if err := keepsContract(text, inQuery); err != nil {
			t.Errorf("%.60s: %v", text, err)
		}
	}
	files, err := fs.Glob(schema.FS, "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		text, err := fs.ReadFile(schema.FS, file)
		if err != nil {
			t.Fatal(err)
		}
		up, _, _ := strings.Cut(string(text), "-- +goose Down")
		if err := keepsContract(up, inMigration); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestContractCheckTellsBreachesFromNearMisses(t *testing.T) {
	t.Parallel()
	body := func(text string) string {
		return "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql SET jit = off AS $x$ DECLARE n int; BEGIN " + text + "; END $x$;"
	}
	for _, bad := range []string{
		"LISTEN a", "notify a, 'b'", "UNLISTEN *", "SELECT pg_notify('a', 'b')", "SELECT pg_catalog.\"pg_notify\"('a', 'b')",
		"SELECT pg_advisory_lock(1)", "SELECT pg_advisory_xact_lock_shared(1)", "SELECT pg_try_advisory_xact_lock(1)", "SELECT pg_advisory_unlock_all()",
		"SET a = 1", "set local a = 1", "SET SESSION a = 1", "SELECT 1; SET a = 1", "UPDATE t SET a = 1; SET b = 1", "SELECT 1 FROM t FOR NO KEY UPDATE; SET a = 1",
		"/* x */ SET -- x\n a = 1", "SELECT 'it''s'; SET a = 1", `SELECT E'\'--'; SET a = 1`, "RESET ALL", "SELECT set_config('a', 'b', true)",
		"PREPARE p AS SELECT 1", "PREPARE TRANSACTION 'a'", "EXECUTE p", "DEALLOCATE p", "DISCARD ALL",
		"CREATE TEMP TABLE t ()", "CREATE TEMPORARY VIEW v AS SELECT 1", "CREATE LOCAL TEMP TABLE t ()", "SELECT 1 INTO TEMP t", "CREATE TABLE pg_temp.t ()",
		"DECLARE c CURSOR FOR SELECT 1", "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT 1", "LOAD 'auto_explain'",
		"SELECT nextval('s')", "SELECT setval('s', 1)", "SELECT currval('s')", "SELECT lastval()", "COPY t FROM STDIN", "LOCK TABLE t", "LOCK t",
		"SELECT 1; COMMIT", "ROLLBACK", "SAVEPOINT a", "START TRANSACTION",
		"SELECT 'open", "SELECT \"open", "SELECT $$open", "/* /* */ ' */ LISTEN a; SELECT '",
	} {
		inside := body("UPDATE t SET a = 1; IF n > 0 THEN " + bad + "; END IF")
		if keepsContract(bad, inQuery) == nil || keepsContract(bad, inMigration) == nil || keepsContract(inside, inMigration) == nil {
			t.Errorf("not seen: %s", bad)
		}
	}
	for _, bad := range []string{"BEGIN", "BEGIN; SELECT 1", "DECLARE x CURSOR FOR SELECT 1", "ALTER ROLE r SET a = 1", "DO 'BEGIN SET a = 1; END'", "DO $$ BEGIN SET a = 1; END $$"} {
		if keepsContract(bad, inQuery) == nil {
			t.Errorf("not seen: %s", bad)
		}
	}
	for _, good := range []string{
		"", "SELECT 1", "SELECT nextval_x, listened, locked, pg_advisor FROM t", "SELECT 'LISTEN', 'it''s; SET a = 1', E'\\'; SET a = 1', \"LISTEN\" FROM t",
		"-- SET a = 1\nSELECT 1 /* NOTIFY */", "UPDATE t SET a = 1 WHERE b", "WITH x AS (UPDATE t AS u SET (a, b) = (1, 2) RETURNING a) UPDATE v SET a = 1",
		"INSERT INTO t VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET a = excluded.a", "SELECT a FROM t ORDER BY a FOR UPDATE SKIP LOCKED", "SELECT a$b$c FROM t",
	} {
		if err := errors.Join(keepsContract(good, inQuery), keepsContract(good, inMigration), keepsContract(body(good), inMigration)); err != nil {
			t.Errorf("%v in %s", err, good)
		}
	}
	for _, good := range []string{
		"CREATE TABLE t (a int REFERENCES u ON DELETE SET NULL ON UPDATE SET DEFAULT, b int GENERATED ALWAYS AS IDENTITY)",
		"ALTER TABLE t ALTER a SET NOT NULL, ALTER a SET DEFAULT 0", "ALTER TABLE t SET (fillfactor = 50)", "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET jit = off AS $$ SELECT 1 $$",
	} {
		if err := keepsContract(good, inMigration); err != nil {
			t.Errorf("%v in %s", err, good)
		}
	}
}

func TestStatementTextsAreShortAndGrowWithNothing(t *testing.T) {
	t.Parallel()
	const limit = 16 << 10
	t.Run("as written", func(t *testing.T) {
		for _, text := range statementTexts(t) {
			if len(text) >= limit {
				t.Errorf("%d bytes: %.60s", len(text), text)
			}
		}
	})
	t.Run("as sent", func(t *testing.T) {
		h := newHarness(t)
		pool, faults := h.faulty(h.Pool)
		c := h.client(pool, tasking.Config{})
		huge := strings.Repeat("x", 1<<20)
		d, err := c.Dispatch(t.Context(), plain.Request(huge, tasking.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		requests := make([]tasking.Request, 3000)
		for i := range requests {
			requests[i] = plain.Request(huge[:100], tasking.Options{Shared: []string{huge[:500], strconv.Itoa(i)}})
		}
		if _, err := c.DispatchMany(t.Context(), requests); err != nil {
			t.Fatal(err)
		}
		if got := faults.longestText(); got == 0 || got >= limit {
			t.Errorf("the longest text has %d bytes", got)
		}
		got := h.claim(h.worker(), 1)
		if len(got) != 1 || got[0].ID != d.ID || string(got[0].Args) != `"`+huge+`"` {
			t.Errorf("the arguments of %d bytes came back as %d claims", len(huge), len(got))
		}
	})
}
