package pinning

import (
	"encoding/json"
	"fmt"
	"go/ast"
	goparser "go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/wasilibs/go-pgquery/parser"

	"github.com/pithworks/pith/sql/schema"
)

const module = "../.." // this module's directory

// A statement is one of a text.
type statement struct {
	text string
	kind string // the grammar's name
}

// statementsOf parts a text of any length.
func statementsOf(text string) ([]statement, error) {
	answer, err := parse(text, parser.ParseToJSON)
	if err != nil {
		return nil, err
	}
	var root struct {
		Statements []struct {
			Statement map[string]json.RawMessage `json:"stmt"`
			Location  int                        `json:"stmt_location"`
			Length    int                        `json:"stmt_len"`
		} `json:"stmts"`
	}
	if err := json.Unmarshal([]byte(answer), &root); err != nil {
		return nil, err
	}
	var list []statement
	for _, s := range root.Statements {
		rest := text[s.Location:]
		if s.Length > 0 {
			rest = rest[:s.Length]
		}
		for kind := range s.Statement {
			list = append(list, statement{rest, kind})
		}
	}
	return list, nil
}

// queryKinds are the statements that a query may be. Each leaves nothing on a connection.
var queryKinds = map[string]bool{"SelectStmt": true, "InsertStmt": true, "UpdateStmt": true, "DeleteStmt": true, "MergeStmt": true}

// checkQuery returns an error unless a text is one query that keeps to the contract.
func checkQuery(text string) error {
	found, err := InspectAll(text)
	switch {
	case err != nil:
		return err
	case len(found) > 0:
		return fmt.Errorf("%v", found)
	}
	list, err := statementsOf(text)
	if err != nil {
		return err
	}
	if len(list) != 1 || !queryKinds[list[0].kind] {
		return fmt.Errorf("not one query: %v", list)
	}
	return nil
}

func TestEachQueryKeepsToThePoolerContract(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(module, "db", "*.sql.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	n := 0
	for _, file := range files {
		for _, lit := range literals(t, file) {
			n++
			if err := checkQuery(lit.text); err != nil {
				t.Errorf("%s: %.60q: %v", lit.at, lit.text, err)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d queries were found", n)
	}
}

func TestWhatIsNotAQueryIsNoneOfOurs(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "-- x", "SELECT 1; SELECT 2", "BEGIN", "BEGIN; SELECT 1", "ALTER ROLE r SET a = 1", "CREATE TABLE t ()", "DO 'BEGIN END'", "CALL p()", "VACUUM t",
		"EXPLAIN SELECT 1", "LOCK t", "COPY t TO STDOUT", "SELECT nextval('s')", "SELEC 1", "SELECT '" + strings.Repeat("x", MaxText) + "'",
	} {
		if checkQuery(text) == nil {
			t.Errorf("passes: %.80q", text)
		}
	}
	if err := checkQuery("WITH a AS (DELETE FROM t RETURNING b) INSERT INTO u SELECT b FROM a"); err != nil {
		t.Error(err)
	}
}

func TestEachStatementOfTheMigrationsKeepsToThePoolerContract(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(schema.FS, "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		text, err := fs.ReadFile(schema.FS, file)
		if err != nil {
			t.Fatal(err)
		}
		up, _, ok := strings.Cut(string(text), "-- +goose Down")
		if !ok {
			t.Errorf("%s: no way down", file)
		}
		bodies := 0
		// goose sends what stands between its marks as one text, all else statement by statement.
		for part := range strings.SplitSeq(up, "-- +goose StatementEnd") {
			outside, marked, _ := strings.Cut(part, "-- +goose StatementBegin")
			for i, text := range []string{outside, marked} {
				list, err := statementsOf(text)
				if err != nil {
					t.Errorf("%s: %.60q: %v", file, text, err)
				}
				if i == 1 && len(list) > 1 {
					t.Errorf("%s: %d statements in one text: %.60q", file, len(list), text)
				}
				for _, s := range list {
					if found, err := InspectAll(s.text); err != nil || len(found) > 0 {
						t.Errorf("%s: %.60q: %v, %v", file, strings.TrimSpace(s.text), found, err)
					}
					if s.kind == "CreateFunctionStmt" {
						bodies++
					}
				}
			}
		}
		if strings.Contains(up, "LANGUAGE plpgsql") && bodies == 0 {
			t.Errorf("%s: no function was seen", file)
		}
	}
}

// senders are the methods that send a text, of pgx, pgconn and database/sql, and which
// argument it is.
var senders = map[string]int{
	"Exec": 1, "Query": 1, "QueryRow": 1, "Queue": 0, "Prepare": 2,
	"ExecContext": 1, "QueryContext": 1, "QueryRowContext": 1, "PrepareContext": 1,
	"ExecParams": 1, "ExecBatch": 1, "SendQuery": 0, "SendQueryParams": 0, "SendPrepare": 1,
	"CopyFrom": 1, "CopyTo": 2,
}

// senderFiles are the files outside of package db that have SQL of their own, and why.
var senderFiles = map[string]string{
	"api/list.go":                   "lists by the conditions that package filter makes of trusted parts",
	"internal/dbtest/dbtest.go":     "makes and drops the tests' databases, and tells who waits there",
	"internal/dbtest/invariants.go": "checks the tests' databases",
	"internal/demo/pooler.go":       "asks PgBouncer's console",
	"internal/localpg/bouncer.go":   "asks PgBouncer's console",
	"internal/localpg/server.go":    "makes databases, on a server of its own",
	"internal/migrate/lock.go":      "asks the server and goose's table who is in the way",
	"internal/migrate/version.go":   "reads goose's table, which sqlc does not know",
	"internal/textwire/textwire.go": "hands on what package db sends",
}

// advisers are the files that have SQL to show, which nothing sends.
var advisers = map[string]bool{
	"internal/doctor/schema.go": true,
}

func TestOnlyPackageDBHasSQL(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, file := range sources(t) {
		f, set := parsed(t, file)
		name, err := filepath.Rel(module, file)
		if err != nil {
			t.Fatal(err)
		}
		name = filepath.ToSlash(name)
		_, listed := senderFiles[name]
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			i, ok := senders[method.Sel.Name]
			if !ok || len(call.Args) <= i || isQuery(call.Args[i]) {
				return true
			}
			used[name] = true
			if !listed {
				t.Errorf("%s: %s of what is not in package db", set.Position(call.Pos()), method.Sel.Name)
			}
			return true
		})
		for _, lit := range literals(t, file) {
			if len(strings.Fields(lit.text)) < 2 { // SELECT alone is a query, too
				continue
			}
			list, err := statementsOf(lit.text)
			if err != nil || !slices.ContainsFunc(list, func(s statement) bool { return queryKinds[s.kind] }) {
				continue
			}
			used[name] = true
			if !listed && !advisers[name] {
				t.Errorf("%s: SQL out of package db: %.60q", lit.at, lit.text)
			} else if found, err := InspectAll(lit.text); err != nil || len(found) > 0 {
				t.Errorf("%s: %.60q: %v, %v", lit.at, lit.text, found, err)
			}
		}
	}
	for _, name := range slices.Concat(slices.Sorted(maps.Keys(senderFiles)), slices.Sorted(maps.Keys(advisers))) {
		if !used[name] {
			t.Errorf("%s is listed and has no SQL", name)
		}
	}
}

// isQuery tells whether an expression is one of package db's texts.
func isQuery(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "db" && s.Sel.IsExported()
}

// sources returns this module's Go files, without tests and package db.
func sources(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir(module, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				files = append(files, path)
			}
			return nil
		case path == module:
			return nil
		}
		name := d.Name()
		if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil || name == "testdata" || name[0] == '.' || path == filepath.Join(module, "db") {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Errorf("only %d files were found", len(files))
	}
	return files
}

func parsed(t *testing.T, file string) (*ast.File, *token.FileSet) {
	t.Helper()
	set := token.NewFileSet()
	f, err := goparser.ParseFile(set, file, nil, goparser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f, set
}

type literal struct {
	text string
	at   token.Position
}

// literals returns the strings in a Go file.
func literals(t *testing.T, file string) (list []literal) {
	t.Helper()
	f, set := parsed(t, file)
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field:
			return n.Tag == nil
		case *ast.BasicLit:
			if n.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(n.Value)
			if err != nil {
				t.Error(err)
			}
			list = append(list, literal{text, set.Position(n.Pos())})
		}
		return true
	})
	return list
}
