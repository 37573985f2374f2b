package pinning

import (
	"maps"
	"slices"
	"strings"
)

// statements are the nodes that are forbidden whatever they hold.
var statements = map[string]Finding{
	"ConstraintsSetStmt": {"SET CONSTRAINTS", true},
	"PrepareStmt":        {"PREPARE", true},
	"ExecuteStmt":        {"EXECUTE", true},
	"DeallocateStmt":     {"DEALLOCATE", true},
	"DiscardStmt":        {"DISCARD", true},
	"DeclareCursorStmt":  {"DECLARE CURSOR", true},
	"ClosePortalStmt":    {"CLOSE", true},
	"CurrentOfExpr":      {"WHERE CURRENT OF", true},
	"LoadStmt":           {"LOAD", true},
	"ListenStmt":         {"LISTEN", true},
	"UnlistenStmt":       {"UNLISTEN", true},
	"NotifyStmt":         {"NOTIFY", false},
}

// ours are the nodes that we keep out of our own texts besides: they hold locks or a
// connection for longer than a statement takes.
var ours = map[string]string{"LockStmt": "LOCK", "CopyStmt": "COPY"}

// transactions are the kinds of a transaction statement, as a user would name them.
var transactions = map[string]string{
	"TRANS_STMT_BEGIN": "BEGIN", "TRANS_STMT_START": "START TRANSACTION",
	"TRANS_STMT_COMMIT": "COMMIT", "TRANS_STMT_ROLLBACK": "ROLLBACK",
	"TRANS_STMT_SAVEPOINT": "SAVEPOINT", "TRANS_STMT_RELEASE": "RELEASE", "TRANS_STMT_ROLLBACK_TO": "ROLLBACK TO",
	"TRANS_STMT_COMMIT_PREPARED": "COMMIT PREPARED", "TRANS_STMT_ROLLBACK_PREPARED": "ROLLBACK PREPARED",
}

// functions are forbidden by name.
var functions = map[string]Finding{
	"nextval":    {"nextval()", true},
	"setval":     {"setval()", true},
	"currval":    {"currval()", true},
	"lastval":    {"lastval()", true},
	"set_config": {"set_config()", true},
	"pg_notify":  {"pg_notify()", false},

	"pg_advisory_xact_lock":            {"pg_advisory_xact_lock()", false},
	"pg_advisory_xact_lock_shared":     {"pg_advisory_xact_lock_shared()", false},
	"pg_try_advisory_xact_lock":        {"pg_try_advisory_xact_lock()", false},
	"pg_try_advisory_xact_lock_shared": {"pg_try_advisory_xact_lock_shared()", false},
}

// plain are the fields whose lists hold names side by side or, from a column on, those
// of its parts. In the other lists the first name is the schema of the last.
var plain = map[string]bool{
	"fields": true, "indirection": true, "usingClause": true,
	"keys": true, "including": true, "fk_attrs": true, "pk_attrs": true, "fk_del_set_cols": true,
	"colnames": true, "colNames": true, "aliases": true, "aliascolnames": true, "search_col_list": true, "cycle_col_list": true,
	"attlist": true, "va_cols": true, "cols": true, "columns": true,
	"objects": true, "publication": true, // a list of qualified names has a list for each
}

// A node is one of the tree: names of fields, or the name of its own kind, and values.
type node = map[string]any

func (r *reader) add(f Finding, at int) { r.found = append(r.found, located{f, at}) }

// walk adds what a part of a tree holds. It stands in the given field, and begins at
// the given place or behind it.
func (r *reader) walk(part any, field string, at int) {
	switch part := part.(type) {
	case []any:
		if temporary(qualifier(part)) && !plain[field] {
			r.add(Finding{"schema pg_temp", true}, at)
		}
		for _, p := range part {
			r.walk(p, field, at)
		}
	case node:
		at = place(part, at)
		r.relation(part, field, at)
		for _, name := range slices.Sorted(maps.Keys(part)) {
			if child, ok := part[name].(node); ok {
				r.node(name, child, field, place(child, at))
			}
			r.walk(part[name], name, at)
		}
	}
}

// place returns where a node begins, or the given place if it does not tell.
func place(n node, at int) int {
	if location, ok := n["location"].(float64); ok && location > 0 {
		return int(location)
	}
	return at
}

// node adds what a node of this kind is by itself.
func (r *reader) node(kind string, n node, field string, at int) {
	if f, ok := statements[kind]; ok {
		r.add(f, at)
	}
	if name, ok := ours[kind]; ok && r.bodies {
		r.add(Finding{name, false}, at)
	}
	switch kind {
	case "VariableSetStmt":
		if field != "arg" { // there it is an option that is stored with a function
			r.add(Finding{setting(n), true}, at)
		}
	case "FetchStmt":
		name := "FETCH"
		if n["ismove"] == true {
			name = "MOVE"
		}
		r.add(Finding{name, true}, at)
	case "TransactionStmt":
		if n["kind"] == "TRANS_STMT_PREPARE" {
			r.add(Finding{"PREPARE TRANSACTION", true}, at)
		} else if k, ok := n["kind"].(string); ok && r.bodies {
			r.add(Finding{transactions[k], false}, at)
		}
	case "DropStmt":
		names, _ := n["objects"].([]any)
		if n["removeType"] == "OBJECT_SCHEMA" && slices.ContainsFunc(names, func(n any) bool { return temporary(nameIn(n)) }) {
			r.add(Finding{"schema pg_temp", true}, at)
		}
	case "FuncCall":
		names, _ := n["funcname"].([]any)
		if len(names) == 0 {
			return
		}
		name := nameIn(names[len(names)-1])
		if f, ok := functions[name]; ok {
			r.add(f, at)
		} else if strings.HasPrefix(name, "pg_") && strings.Contains(name, "advisory") {
			r.add(Finding{name + "()", true}, at)
		}
	}
}

// setting names the command that a VariableSetStmt is.
func setting(n node) string {
	name, _ := n["name"].(string)
	switch kind := n["kind"]; {
	case kind == "VAR_RESET", kind == "VAR_RESET_ALL":
		return "RESET"
	case kind == "VAR_SET_MULTI":
		return "SET " + name // TRANSACTION, SESSION CHARACTERISTICS
	case n["is_local"] == true:
		return "SET LOCAL"
	default:
		return "SET"
	}
}

// relation adds a node that names a temporary relation.
func (r *reader) relation(n node, field string, at int) {
	schema, _ := n["schemaname"].(string)
	if schema == "" {
		schema, _ = n["newschema"].(string) // where it is to go
	}
	switch {
	case n["relpersistence"] == "t" && field == "sequence":
		r.add(Finding{"temporary sequence", true}, at)
	case n["relpersistence"] == "t" && field == "view":
		r.add(Finding{"temporary view", true}, at)
	case n["relpersistence"] == "t":
		r.add(Finding{"temporary table", true}, at)
	case temporary(schema):
		r.add(Finding{"schema pg_temp", true}, at)
	}
}

// temporary tells whether a schema holds a session's temporary objects.
func temporary(schema string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(schema), "pg_temp")
	return ok && (rest == "" || rest[0] == '_' && strings.Trim(rest[1:], "0123456789") == "")
}

// qualifier returns the first part of a qualified name, in lower case.
func qualifier(names []any) string {
	if len(names) < 2 {
		return ""
	}
	return nameIn(names[0])
}

// nameIn returns the name that a node holds, in lower case.
func nameIn(n any) string {
	wrapped, _ := n.(node)
	s, _ := wrapped["String"].(node)
	value, _ := s["sval"].(string)
	return strings.ToLower(value)
}
