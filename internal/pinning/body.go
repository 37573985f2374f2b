package pinning

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/wasilibs/go-pgquery/parser"
)

// InspectAll is [Inspect], and also looks into the bodies of functions and DO blocks,
// in SQL and in PL/pgSQL. It is for our own texts, and strict with them: LOCK, COPY
// and transaction commands are findings too, and in a body cursors and dynamic SQL.
//
// A finding in a body names its function and never pins: a proxy sees no bodies. A
// body in another language, or one that cannot be read, is an error.
func InspectAll(text string) ([]Finding, error) {
	if len(text) > MaxText {
		return Inspect(text)
	}
	r := reader{bodies: true}
	err := r.read(text)
	return r.inOrder(), err
}

// bodyStatements are what PL/pgSQL has of its own that we keep out of bodies.
var bodyStatements = map[string]string{
	"PLpgSQL_stmt_dynexecute": "dynamic SQL",
	"PLpgSQL_stmt_dynfors":    "dynamic SQL",
	"dynquery":                "dynamic SQL", // of RETURN QUERY and OPEN
	"PLpgSQL_stmt_open":       "cursor",
	"PLpgSQL_stmt_fetch":      "cursor",
	"PLpgSQL_stmt_close":      "cursor",
	"PLpgSQL_stmt_forc":       "cursor",
	"cursor_explicit_expr":    "cursor",
	"PLpgSQL_stmt_commit":     "COMMIT",
	"PLpgSQL_stmt_rollback":   "ROLLBACK",
}

// body adds what the body holds that a statement makes or runs, if it does.
func (r *reader) body(text string, statement node, at int) error {
	where, language := "DO", "plpgsql"
	n, ok := statement["DoStmt"].(node)
	options := n["args"]
	if !ok {
		n, ok = statement["CreateFunctionStmt"].(node)
		if !ok || n["sql_body"] != nil { // that one is in the tree
			return nil
		}
		names, _ := n["funcname"].([]any)
		if len(names) == 0 {
			return errors.New("the parser names no function")
		}
		where, language = nameIn(names[len(names)-1])+"()", "sql"
		options = n["options"]
	}
	var source string
	list, _ := options.([]any)
	for _, o := range list {
		wrapped, _ := o.(node)
		option, _ := wrapped["DefElem"].(node)
		switch option["defname"] {
		case "language":
			language = nameIn(option["arg"])
		case "as":
			source, at = sourceIn(option["arg"]), place(option, at)
		}
	}
	inner := reader{bodies: true}
	var err error
	switch language {
	case "sql":
		err = inner.read(source)
	case "plpgsql":
		err = inner.readBlock(text, source)
	default:
		err = fmt.Errorf("a body in the language %s", language)
	}
	for _, f := range inner.inOrder() {
		r.add(Finding{f.Construct + " in " + where, false}, at)
	}
	if err != nil {
		return fmt.Errorf("read the body of %s: %w", where, err)
	}
	return nil
}

// readBlock adds what a body in PL/pgSQL holds. The statement around it is given too.
func (r *reader) readBlock(statement, body string) error {
	if err := shallow(body); err != nil {
		return err
	}
	answer, err := parse(statement, parser.ParsePlPgSqlToJSON)
	if err != nil {
		return err
	}
	var functions []node
	if err := json.Unmarshal([]byte(answer), &functions); err != nil {
		return fmt.Errorf("read the parser's answer: %w", err)
	}
	if len(functions) == 0 || functions[0]["PLpgSQL_function"] == nil {
		return errors.New("the parser sees no body")
	}
	return r.walkBlock(functions)
}

// walkBlock adds what a part of the tree of a body holds.
func (r *reader) walkBlock(part any) error {
	var errs []error
	switch part := part.(type) {
	case []node:
		for _, p := range part {
			errs = append(errs, r.walkBlock(p))
		}
	case []any:
		for _, p := range part {
			errs = append(errs, r.walkBlock(p))
		}
	case node:
		for _, kind := range slices.Sorted(maps.Keys(part)) {
			if name, ok := bodyStatements[kind]; ok {
				r.add(Finding{name, false}, 0)
			}
			if name, ok := part[kind].(string); ok && kind == "typname" && strings.HasSuffix(strings.TrimSpace(name), "refcursor") {
				r.add(Finding{"cursor", false}, 0)
			}
			if child, ok := part[kind].(node); ok && kind == "PLpgSQL_expr" {
				errs = append(errs, r.readExpression(child))
				continue
			}
			errs = append(errs, r.walkBlock(part[kind]))
		}
	}
	return errors.Join(errs...)
}

// The forms in which PL/pgSQL hands a text to the grammar: PostgreSQL's RawParseMode.
const (
	asStatements = 0
	asExpression = 2 // what follows SELECT
	asAssignment = 3 // this one and those behind it: a target, := or =, an expression
)

// readExpression adds what a PLpgSQL_expr holds.
func (r *reader) readExpression(n node) error {
	query, _ := n["query"].(string)
	mode, _ := n["parseMode"].(float64)
	parts := []string{query}
	switch {
	case mode == asExpression:
		parts = []string{"SELECT " + query}
	case mode >= asAssignment:
		target, value, err := splitAssignment(query)
		if err != nil {
			return err
		}
		parts = []string{"SELECT " + target, "SELECT " + value} // a subscript may hold a call
	case mode != asStatements:
		return fmt.Errorf("no statement or expression: %s", query)
	}
	for _, p := range parts {
		inner := reader{bodies: true}
		if err := inner.read(p); err != nil {
			return err
		}
		for _, f := range inner.inOrder() {
			r.add(f, 0)
		}
	}
	return nil
}

// sourceIn returns the text of a body; empty if it is a library's.
func sourceIn(arg any) string {
	wrapped, _ := arg.(node)
	if list, ok := wrapped["List"].(node); ok {
		items, _ := list["items"].([]any)
		if len(items) != 1 {
			return ""
		}
		wrapped, _ = items[0].(node)
	}
	s, _ := wrapped["String"].(node)
	source, _ := s["sval"].(string)
	return source
}
