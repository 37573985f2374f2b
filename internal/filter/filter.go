// Package filter makes the query parameters of a REST list call into one SQL condition and one ORDER BY.
//
// A resource's author declares a [Set]: what clients may ask for, and the columns that answer it.
// [Set.Parse] reads the parameters by Pulp's conventions: lookups by suffix such as name__contains, the
// expression language of q, and ordering.
//
// The text it makes holds what the author wrote, SQL of this package's own and placeholders; whatever comes
// from a client travels as a parameter, a list as one array. Each placeholder has a cast, so that unnamed
// statements can go out without parameter types. The text is never longer than [MaxText].
//
// It never reads a database: a value that no object has is a condition that matches nothing, unless the
// author's [Field.Parse] knows better.
package filter

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	// MaxText bounds Where and Order together, in bytes. It leaves 4 KiB for the rest of the statement,
	// where a pooler takes texts up to 16 KiB.
	MaxText = 12 << 10

	// MaxValues is how many values one list may have.
	MaxValues = 1000

	// InvalidRegex is the SQLSTATE with which PostgreSQL refuses a regular expression; see
	// [Query.RegexError].
	InvalidRegex = "2201B"
)

// Set is what clients may ask of one resource's list. Every set also knows the parameters q and ordering.
type Set struct {
	// Fields may share a name if their lookups differ.
	Fields []Field
	// Orders has what clients may order by, besides pk, and the SQL expression of each.
	Orders map[string]string
	// Key is the column of the primary key, such as "id".
	Key string
	// Newest is the ORDER BY of a list whose order nobody asked for, such as "id DESC". It also comes last
	// in any other order, so it has to be total.
	Newest string
}

// Query is the part of a statement that [Set.Parse] makes.
type Query struct {
	// Where is an SQL condition; "true" if nothing is asked. It needs no parentheses between ANDs.
	Where string
	// Args are the parameters: the caller's, then those of Where. The latter are string, []string, int64,
	// []int64, bool and time.Time only.
	Args []any
	// Order is what follows ORDER BY.
	Order string

	regexes []string // the parameters that hold regular expressions
}

// RegexError is the *[Error] for a query that PostgreSQL failed with [InvalidRegex]: its dialect is not quite
// the one that Parse checks. It names all parameters that hold a regular expression, for PostgreSQL does not
// say which one it was; nil if there is none.
func (q Query) RegexError() error {
	if q.regexes == nil {
		return nil
	}
	e := &Error{}
	for _, name := range q.regexes {
		e.add(name, errRegex)
	}
	return e
}

// Parse reads the parameters of a list call. It skips the ones that are ignored: those belong to somebody
// else, such as limit. Of a parameter that was given twice the last value counts, and an empty value asks for
// nothing, as in Django; only an empty list of references matches nothing.
//
// Placeholders are numbered after args, which begin the Args of the result.
//
// An *[Error] tells of everything that is wrong with the parameters. Any other error tells of the set: what a
// Parse of its fields gave is not of the field's kind.
func (s *Set) Parse(values url.Values, ignored []string, args ...any) (Query, error) {
	b := &builder{args: slices.Clone(args)}
	refused := &Error{}
	var conditions []string
	order := s.Newest
	for _, name := range slices.Sorted(maps.Keys(values)) {
		given := values[name]
		if len(given) == 0 {
			continue
		}
		field, lookup := s.find(name)
		if field == nil && name != "q" && name != "ordering" {
			if !slices.Contains(ignored, name) {
				refused.add("errors", clientError("Invalid Filter: '"+name+"'"))
			}
			continue
		}
		text, err := clean(given[len(given)-1])
		condition := ""
		b.parameter = name
		switch {
		case err != nil: // said below
		case name == "q":
			condition, err = s.expression(b, text)
		case name == "ordering":
			order, err = s.order(text)
		default:
			condition, err = field.condition(b, lookup, text)
		}
		if errors.Is(err, errMisdeclared) {
			return Query{}, err
		}
		if err != nil {
			refused.add(name, err)
		} else if condition != "" {
			conditions = append(conditions, condition)
		}
	}
	q := Query{Where: "true", Args: b.args, Order: order, regexes: slices.Compact(b.regexes)}
	if len(conditions) > 0 {
		q.Where = strings.Join(conditions, " AND ")
	}
	if refused.empty() && len(q.Where)+len(q.Order) > MaxText {
		refused.add("errors", clientError("Too many filters."))
	}
	if !refused.empty() {
		return Query{}, refused
	}
	return q, nil
}

// find returns the field and the lookup that a parameter names, or nil.
func (s *Set) find(parameter string) (field *Field, lookup string) {
	for i := range s.Fields {
		f := &s.Fields[i]
		for _, lookup := range f.lookups() {
			if parameter == f.parameter(lookup) {
				return f, lookup
			}
		}
	}
	return nil, ""
}

// order reads a value of ordering. A name that comes again is passed over: it would decide nothing.
func (s *Set) order(text string) (string, error) {
	names, err := split(text)
	if err != nil {
		return "", err
	}
	var terms, seen []string
	for _, term := range names {
		if term == "" {
			continue
		}
		name, descending := strings.CutPrefix(term, "-")
		column, ok := s.Orders[name]
		if name == "pk" {
			column, ok = s.Key, true
		}
		if !ok {
			return "", noChoice(term)
		}
		if slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		if descending {
			column += " DESC"
		}
		terms = append(terms, column)
	}
	return strings.Join(append(terms, s.Newest), ", "), nil
}

// Validate says what is wrong with the set itself. It is for the tests of who declares one.
func (s *Set) Validate() error {
	if s.Key == "" || s.Newest == "" {
		return errors.New("filter: a set needs Key and Newest")
	}
	seen := []string{"q", "ordering"}
	for i := range s.Fields {
		f := &s.Fields[i]
		if err := f.validate(); err != nil {
			return fmt.Errorf("filter: field %q: %w", f.Name, err)
		}
		for _, lookup := range f.lookups() {
			name := f.parameter(lookup)
			if slices.Contains(seen, name) {
				return fmt.Errorf("filter: parameter %q exists twice", name)
			}
			seen = append(seen, name)
		}
	}
	return nil
}

// builder collects the parameters of a query.
type builder struct {
	args      []any
	regexes   []string
	parameter string // the query parameter that is read
}

// add takes in a value and returns its placeholder.
func (b *builder) add(value any, sqlType string) string {
	b.args = append(b.args, value)
	return "$" + strconv.Itoa(len(b.args)) + "::" + sqlType
}
