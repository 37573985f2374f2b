package pinning

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/wasilibs/go-pgquery/parser"

	"github.com/pithworks/pith/sql/schema"
)

// firstRelease is the last migration that made a database that nobody used yet. All after it run while work goes on.
const firstRelease = "00002_transitions.sql"

// TestEachMigrationLetsTheWorkGoOn holds the migrations to docs/upgrades.md.
func TestEachMigrationLetsTheWorkGoOn(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(schema.FS, "*.sql")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	l := newLedger()
	for _, file := range files {
		text, err := fs.ReadFile(schema.FS, file)
		if err != nil {
			t.Fatal(err)
		}
		found, err := l.read(string(text))
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, breach := range found {
			if file > firstRelease {
				t.Errorf("%s: %s: see docs/upgrades.md", file, breach)
			}
		}
	}
}

// A ledger knows what the migrations before one have made.
type ledger struct {
	tables map[string]bool
	// refers are the tables that the foreign keys of each refer to.
	refers map[string][]string
}

func newLedger() *ledger { return &ledger{map[string]bool{}, map[string][]string{}} }

// A section is one direction of a migration.
type section struct {
	*ledger
	up         bool
	apart      bool            // without a transaction
	takesAway  bool            // it says which binaries do without what it takes away
	own        map[string]bool // tables that the migration makes
	strong     map[string]bool // tables of others that are locked against writers
	scans      []string        // what reads a whole table
	rebuilding map[string]bool // indexes that were dropped, if they were there
	found      []string
}

// read returns what breaks a rule in a migration, and takes in what it makes.
func (l *ledger) read(text string) ([]string, error) {
	up, down, _ := strings.Cut(text, "-- +goose Down")
	own := map[string]bool{}
	var found []string
	for i, part := range []string{up, down} {
		s := &section{
			ledger: l, up: i == 0, apart: strings.Contains(up, "-- +goose NO TRANSACTION"), takesAway: strings.Contains(up, "\n-- +pith Oldest "),
			own: own, strong: map[string]bool{}, rebuilding: map[string]bool{},
		}
		list, err := trees(part)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			for kind := range n {
				statement, _ := n[kind].(node)
				s.statement(kind, statement)
			}
		}
		if tables := slices.Sorted(maps.Keys(s.strong)); len(tables) > 1 {
			s.breach("locks %s, and keeps the first while it waits for the others: one migration for each", strings.Join(tables, " and "))
		}
		if len(s.scans) > 0 && len(s.strong) > 0 {
			s.breach("%s while a table is locked: another migration", strings.Join(s.scans, ", "))
		}
		found = append(found, s.found...)
	}
	maps.Copy(l.tables, own)
	return found, nil
}

// trees returns the statements of a text.
func trees(text string) (list []node, err error) {
	answer, err := parse(text, parser.ParseToJSON)
	if err != nil {
		return nil, err
	}
	var root struct {
		Statements []struct {
			Statement node `json:"stmt"`
		} `json:"stmts"`
	}
	err = json.Unmarshal([]byte(answer), &root)
	for _, s := range root.Statements {
		list = append(list, s.Statement)
	}
	return list, err
}

func (s *section) breach(format string, args ...any) {
	direction := "down"
	if s.up {
		direction = "up"
	}
	s.found = append(s.found, direction+": "+fmt.Sprintf(format, args...))
}

// lock notes that a table is locked against writers.
func (s *section) lock(table string) {
	if !s.own[table] {
		s.strong[table] = true
	}
}

// harmless statements lock no table against writers.
var harmless = map[string]bool{
	"CreateFunctionStmt": true, "AlterFunctionStmt": true, "CommentStmt": true, "CreateEnumStmt": true, "CompositeTypeStmt": true,
	"AlterEnumStmt": true, "CreateSeqStmt": true, "CreateStatsStmt": true, "GrantStmt": true, "AlterDefaultPrivilegesStmt": true, "ViewStmt": true,
}

func (s *section) statement(kind string, n node) {
	table := tableIn(n["relation"])
	if s.apart && kind != "IndexStmt" && kind != "DropStmt" {
		s.breach("%s outside of a transaction: indexes only", kind)
	}
	switch {
	case kind == "CreateStmt":
		if n["inhRelations"] != nil {
			s.breach("table %s is a part of another one", table)
		}
		s.own[table] = true
		for _, c := range constraints(n["tableElts"]) {
			if to := tableIn(c["pktable"]); to != "" {
				s.refers[table] = append(s.refers[table], to)
				s.lock(to)
			}
		}
	case kind == "IndexStmt":
		s.index(n, table)
	case kind == "CreateTrigStmt":
		s.trigger(n, table)
	case kind == "DropStmt":
		s.drop(n)
	case kind == "AlterTableStmt":
		for _, c := range listIn(n["cmds"], "AlterTableCmd") {
			s.alter(table, c)
		}
	case kind == "InsertStmt":
		for _, from := range tablesIn(n["selectStmt"]) {
			if !s.own[from] {
				s.breach("INSERT reads %s: fill tables from the program, in batches", from)
			}
		}
	case kind == "UpdateStmt" || kind == "DeleteStmt":
		if !s.own[table] {
			s.breach("%s of rows of %s: change them from the program, in batches", strings.ToUpper(strings.TrimSuffix(kind, "Stmt")), table)
		}
	case kind == "RenameStmt" && (n["renameType"] == "OBJECT_INDEX" || n["renameType"] == "OBJECT_TABCONSTRAINT"):
		s.lock(table)
	case kind == "RenameStmt":
		s.breach("a new name for what others use by the old one")
	case !harmless[kind]:
		s.breach("%s is not on the list", kind)
	}
}

// index checks that an index that takes long to build locks out no writers, and that the migration may be run again
// where it was broken off.
func (s *section) index(n node, table string) {
	name, _ := n["idxname"].(string)
	switch {
	case s.own[table]:
	case n["concurrent"] != true || !s.apart:
		s.breach("index on %s: CREATE INDEX CONCURRENTLY, in a migration with NO TRANSACTION", table)
	case !s.rebuilding[name] || n["if_not_exists"] == true:
		s.breach("index %s: a broken one may be there, DROP INDEX CONCURRENTLY IF EXISTS before", name)
	}
}

// trigger checks that a trigger only takes along what belongs to a row: what binaries write stays as they write it.
func (s *section) trigger(n node, table string) {
	const onUpdate, onDelete = 16, 8 // as pg_trigger.h has them
	timing, _ := n["timing"].(float64)
	events, _ := n["events"].(float64)
	columns := n["columns"] != nil
	if on := int(events); int(timing) != 0 || on&^(onUpdate|onDelete) != 0 || on&onUpdate != 0 && !columns {
		s.breach("trigger on %s: one after DELETE, or UPDATE OF columns", table)
	}
	s.lock(table)
}

func (s *section) drop(n node) {
	what, _ := n["removeType"].(string)
	objects, _ := n["objects"].([]any)
	for _, o := range objects {
		name := lastName(o)
		switch what {
		case "OBJECT_INDEX":
			if n["concurrent"] != true || n["missing_ok"] != true || !s.apart {
				s.breach("DROP INDEX %s: DROP INDEX CONCURRENTLY IF EXISTS, in a migration with NO TRANSACTION", name)
			}
			s.rebuilding[name] = true
			continue
		case "OBJECT_TABLE":
			s.lock(name)
			for _, to := range s.refers[name] {
				s.lock(to)
			}
		case "OBJECT_TRIGGER":
			s.lock(tableOfTrigger(o))
		case "OBJECT_FUNCTION", "OBJECT_TYPE", "OBJECT_VIEW", "OBJECT_SEQUENCE":
		default:
			s.breach("DROP of %s is not on the list", what)
			continue
		}
		s.contracts("%s", name)
	}
}

// contracts notes that what binaries may use is taken away.
func (s *section) contracts(format string, args ...any) {
	if s.up && !s.takesAway {
		s.breach("takes away "+format+": say which binaries do without, with +pith Oldest", args...)
	}
}

// weak forms of ALTER TABLE leave writers alone.
var weak = map[string]bool{"AT_SetRelOptions": true, "AT_ResetRelOptions": true, "AT_SetStatistics": true, "AT_SetOptions": true, "AT_ResetOptions": true}

// brief forms of ALTER TABLE change the catalog only.
var brief = map[string]bool{"AT_ColumnDefault": true, "AT_DropNotNull": true, "AT_DropConstraint": true, "AT_SetStorage": true, "AT_SetCompression": true}

func (s *section) alter(table string, n node) {
	form, _ := n["subtype"].(string)
	if weak[form] || s.own[table] && s.up {
		return
	}
	if form == "AT_ValidateConstraint" {
		s.scans = append(s.scans, "VALIDATE CONSTRAINT reads "+table)
		return
	}
	s.lock(table)
	def, _ := n["def"].(node)
	switch {
	case brief[form]:
	case form == "AT_DropColumn":
		s.contracts("column %s.%s", table, n["name"])
	case form == "AT_AddColumn":
		s.addColumn(table, def)
	case form == "AT_AddConstraint":
		c, _ := def["Constraint"].(node)
		if to := tableIn(c["pktable"]); to != "" {
			s.lock(to)
			s.refers[table] = append(s.refers[table], to)
		}
		if c["skip_validation"] != true && c["indexname"] == nil {
			s.breach("constraint on %s reads it all: NOT VALID, and VALIDATE in another migration; or USING INDEX", table)
		}
	default:
		s.breach("ALTER TABLE %s: %s is not on the list", table, form)
	}
}

// addColumn checks that a column is added without a look at the rows, and that binaries that do not know it may insert.
func (s *section) addColumn(table string, def node) {
	column, _ := def["ColumnDef"].(node)
	constant, required := false, false
	for _, c := range listIn(column["constraints"], "Constraint") {
		switch c["contype"] {
		case "CONSTR_NULL":
		case "CONSTR_NOTNULL":
			required = true
		case "CONSTR_DEFAULT":
			if constant = isConstant(c["raw_expr"]); !constant {
				s.breach("column %s.%s: a default that is no constant rewrites the table", table, column["colname"])
			}
		default:
			s.breach("column %s.%s: %s reads or rewrites the table", table, column["colname"], c["contype"])
		}
	}
	if required && !constant {
		s.breach("column %s.%s: NOT NULL without a constant default: those who do not know it cannot insert", table, column["colname"])
	}
}

func isConstant(expression any) bool {
	n, _ := expression.(node)
	if cast, ok := n["TypeCast"].(node); ok {
		return isConstant(cast["arg"])
	}
	return n["A_Const"] != nil
}

// tableIn returns the table that a node names.
func tableIn(part any) string {
	n, _ := part.(node)
	name, _ := n["relname"].(string)
	return name
}

// tablesIn returns the tables that are read somewhere in a part of a tree.
func tablesIn(part any) (tables []string) {
	switch part := part.(type) {
	case []any:
		for _, p := range part {
			tables = append(tables, tablesIn(p)...)
		}
	case node:
		for _, name := range slices.Sorted(maps.Keys(part)) {
			if name == "RangeVar" {
				tables = append(tables, tableIn(part[name]))
			}
			tables = append(tables, tablesIn(part[name])...)
		}
	}
	return tables
}

// listIn returns the nodes of one kind in a list.
func listIn(part any, kind string) (list []node) {
	items, _ := part.([]any)
	for _, i := range items {
		wrapped, _ := i.(node)
		if n, ok := wrapped[kind].(node); ok {
			list = append(list, n)
		}
	}
	return list
}

// constraints returns those of a table and of its columns.
func constraints(elements any) []node {
	list := listIn(elements, "Constraint")
	for _, column := range listIn(elements, "ColumnDef") {
		list = append(list, listIn(column["constraints"], "Constraint")...)
	}
	return list
}

// lastName returns the name of an object without its schema.
func lastName(object any) string {
	n, _ := object.(node)
	for kind, field := range map[string]string{"List": "items", "ObjectWithArgs": "objname", "TypeName": "names"} {
		if of, ok := n[kind].(node); ok {
			if names, _ := of[field].([]any); len(names) > 0 {
				return nameIn(names[len(names)-1])
			}
		}
	}
	return nameIn(object)
}

// tableOfTrigger is the table in the name of a trigger that is dropped.
func tableOfTrigger(object any) string {
	n, _ := object.(node)
	list, _ := n["List"].(node)
	names, _ := list["items"].([]any)
	if len(names) < 2 {
		return ""
	}
	return nameIn(names[len(names)-2])
}

func TestMigrationsThatHoldWorkUpAreFound(t *testing.T) {
	t.Parallel()
	const apart, oldest = "-- +goose NO TRANSACTION\n", "\n-- +pith Oldest 7\n"
	for _, tt := range []struct {
		up, down string
		want     []string // in part
	}{
		{up: "CREATE TABLE n (a int); CREATE INDEX i ON n (a); UPDATE n SET a = 1; INSERT INTO n SELECT 1; ALTER TABLE n ALTER a TYPE text", down: "DROP TABLE n"},
		{up: "CREATE TABLE n (a int REFERENCES task)", down: "DROP TABLE n"},
		{up: "CREATE TABLE n (a int REFERENCES task, b int, FOREIGN KEY (b) REFERENCES app)", down: "DROP TABLE n", want: []string{"up: locks app and task", "down: locks app and task"}},
		{up: "CREATE TABLE n () INHERITS (task)", want: []string{"up: table n is a part"}},
		{up: "ALTER TABLE task ADD a int, ADD b text NOT NULL DEFAULT 'x'::text, ADD c int NULL DEFAULT -1", down: "ALTER TABLE task DROP a, DROP b, DROP c"},
		{up: "ALTER TABLE task ADD a int NOT NULL", want: []string{"up: column task.a: NOT NULL without"}},
		{up: "ALTER TABLE task ADD a timestamptz DEFAULT now()", want: []string{"up: column task.a: a default that is no constant"}},
		{up: "ALTER TABLE task ADD a int GENERATED ALWAYS AS IDENTITY", want: []string{"CONSTR_IDENTITY reads or rewrites"}},
		{up: "ALTER TABLE task ADD a int CHECK (a > 0)", want: []string{"CONSTR_CHECK reads or rewrites"}},
		{up: "ALTER TABLE task ADD a int REFERENCES app", want: []string{"CONSTR_FOREIGN reads or rewrites"}},
		{up: "ALTER TABLE task ADD a int UNIQUE", want: []string{"CONSTR_UNIQUE reads or rewrites"}},
		{up: "ALTER TABLE task DROP a", want: []string{"up: takes away column task.a"}},
		{up: oldest + "ALTER TABLE task DROP a"},
		{up: "ALTER TABLE task ALTER a TYPE bigint", want: []string{"AT_AlterColumnType is not on the list"}},
		{up: "ALTER TABLE task ALTER a SET NOT NULL", want: []string{"AT_SetNotNull is not on the list"}},
		{down: "ALTER TABLE task ALTER a SET NOT NULL", want: []string{"down: ALTER TABLE task: AT_SetNotNull"}},
		{up: "ALTER TABLE task ALTER a SET DEFAULT 3, ALTER a DROP NOT NULL, DROP CONSTRAINT c"},
		{up: "ALTER TABLE task SET (fillfactor = 70); ALTER TABLE app SET (fillfactor = 70)"},
		{up: "ALTER TABLE task ADD a int; ALTER TABLE app ADD a int", want: []string{"up: locks app and task"}},
		{up: "ALTER TABLE task ADD CHECK (a > 0)", want: []string{"up: constraint on task reads it all"}},
		{up: "ALTER TABLE task ADD CHECK (a > 0) NOT VALID"},
		{up: "ALTER TABLE task ADD CONSTRAINT c CHECK (a > 0) NOT VALID; ALTER TABLE task VALIDATE CONSTRAINT c", want: []string{"VALIDATE CONSTRAINT reads task while"}},
		{up: "ALTER TABLE task VALIDATE CONSTRAINT c"},
		{up: "ALTER TABLE task ADD UNIQUE (a)", want: []string{"up: constraint on task reads it all"}},
		{up: "ALTER TABLE task ADD CONSTRAINT c UNIQUE USING INDEX i"},
		{up: "ALTER TABLE task ADD FOREIGN KEY (a) REFERENCES app NOT VALID", want: []string{"up: locks app and task"}},
		{up: "CREATE INDEX i ON task (a)", want: []string{"up: index on task"}},
		{up: "CREATE INDEX CONCURRENTLY i ON task (a)", want: []string{"up: index on task"}},
		{up: apart + "CREATE INDEX CONCURRENTLY i ON task (a)", want: []string{"up: index i: a broken one"}},
		{up: apart + "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON task (a)", want: []string{"up: index i: a broken one"}},
		{up: apart + "DROP INDEX CONCURRENTLY IF EXISTS i; CREATE INDEX CONCURRENTLY i ON task (a)", down: "DROP INDEX CONCURRENTLY IF EXISTS i"},
		{up: apart + "ALTER TABLE task ADD a int", want: []string{"up: AlterTableStmt outside of a transaction"}},
		{up: "DROP INDEX i", want: []string{"up: DROP INDEX i"}},
		{down: "DROP INDEX i", want: []string{"down: DROP INDEX i"}},
		{up: "DROP FUNCTION f", want: []string{"up: takes away f"}},
		{up: "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; COMMENT ON FUNCTION f IS 'x'", down: "DROP FUNCTION f"},
		{up: "DROP TABLE task", want: []string{"up: takes away task"}},
		{up: "DROP TRIGGER a ON task", want: []string{"up: takes away a"}},
		{up: "UPDATE task SET a = 1 WHERE a IS NULL", want: []string{"up: UPDATE of rows of task"}},
		{up: "DELETE FROM task", want: []string{"up: DELETE of rows of task"}},
		{up: "INSERT INTO app VALUES (1)"},
		{up: "CREATE TABLE n (a int); INSERT INTO n SELECT a FROM (SELECT a FROM task) t", want: []string{"up: INSERT reads task"}},
		{up: "ALTER TABLE task RENAME a TO b", want: []string{"up: a new name"}},
		{up: "ALTER INDEX i RENAME TO j"},
		{up: "ALTER TYPE state ADD VALUE 'x'"},
		{up: "TRUNCATE task", want: []string{"up: TruncateStmt is not on the list"}},
		{up: "DO 'BEGIN END'", want: []string{"up: DoStmt is not on the list"}},
		{up: "SELECT f()", want: []string{"up: SelectStmt is not on the list"}},
		{up: "CREATE TRIGGER t AFTER DELETE OR UPDATE OF id ON task FOR EACH ROW EXECUTE FUNCTION f()", down: "DROP TRIGGER t ON task"},
		{up: "CREATE TRIGGER t BEFORE DELETE ON task EXECUTE FUNCTION f()", want: []string{"up: trigger on task: one after DELETE"}},
		{up: "CREATE TRIGGER t AFTER DELETE OR INSERT ON task EXECUTE FUNCTION f()", want: []string{"up: trigger on task: one after DELETE"}},
		{up: "CREATE TRIGGER t AFTER UPDATE ON task EXECUTE FUNCTION f()", want: []string{"up: trigger on task: one after DELETE"}},
		{
			up:   "CREATE TRIGGER t AFTER DELETE ON task EXECUTE FUNCTION f(); CREATE TRIGGER t AFTER DELETE ON app EXECUTE FUNCTION f()",
			down: "DROP TRIGGER t ON task; DROP TRIGGER t ON app", want: []string{"up: locks app and task", "down: locks app and task"},
		},
	} {
		l := newLedger()
		if _, err := l.read("CREATE TABLE task (a int); CREATE TABLE app (a int)"); err != nil {
			t.Fatal(err)
		}
		found, err := l.read("-- +goose Up\n" + tt.up + ";\n-- +goose Down\n" + tt.down)
		if err != nil {
			t.Errorf("%s: %v", tt.up, err)
		}
		diff := cmp.Diff(tt.want, found, cmp.Comparer(func(a, b string) bool { return strings.Contains(a, b) || strings.Contains(b, a) }))
		if diff != "" {
			t.Errorf("%s; %s (-want +got):\n%s", tt.up, tt.down, diff)
		}
	}
}
