package filter

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Kind says what values a field has and which lookups are possible.
type Kind int

// The kinds. In parentheses what is possible only if [Field.Lookups] names it.
const (
	// Text has exact, iexact, in, contains, icontains, startswith, istartswith, regex, iregex (ne). Case is
	// folded as PostgreSQL's upper() does it.
	Text Kind = iota
	// Choice has exact, ne and in. Another word than the field's choices is refused, but not in a list: there
	// it matches nothing. The column is a text, or of [Field.Enum].
	Choice
	// Time has exact, lt, lte, gt, gte, range and isnull. The column is a timestamptz.
	Time
	// Int has exact, ne, lt, lte, gt, gte, range and in (isnull).
	Int
	// UUID is a reference to an object: exact and in.
	UUID
	// Bool has exact.
	Bool
	// Array is a text[]: exact asks for one element, in for several that must all be there.
	Array
	// Labels is a jsonb that holds an object of texts and nulls, never null itself. It has exact, which asks by Pulp's terms:
	// key, !key, key=value, key!=value, key~part.
	Labels
)

// kinds has what is general about each kind. The lookup more is one that has to be named.
var kinds = [...]struct {
	sqlType      string
	goType       reflect.Type
	parse        func(string) (any, error)
	json, format string
	lookups      []string
	more         string
}{
	Text: {
		"text", reflect.TypeFor[string](), verbatim, "string", "",
		[]string{"", "iexact", "in", "contains", "icontains", "startswith", "istartswith", "regex", "iregex"},
		"ne",
	},
	Choice: {"text", reflect.TypeFor[string](), verbatim, "string", "", []string{"", "ne", "in"}, ""},
	Time: {
		"timestamptz", reflect.TypeFor[time.Time](), parseTime, "string", "date-time",
		[]string{"", "lt", "lte", "gt", "gte", "range", "isnull"},
		"",
	},
	Int: {
		"bigint", reflect.TypeFor[int64](), parseInt, "integer", "",
		[]string{"", "ne", "lt", "lte", "gt", "gte", "range", "in"},
		"isnull",
	},
	UUID:   {"uuid", reflect.TypeFor[uuid.UUID](), parseUUID, "string", "uuid", []string{"", "in"}, ""},
	Bool:   {"boolean", reflect.TypeFor[bool](), parseBool, "boolean", "", []string{""}, ""},
	Array:  {"text", reflect.TypeFor[string](), verbatim, "string", "", []string{"", "in"}, ""},
	Labels: {"jsonb", reflect.TypeFor[string](), verbatim, "string", "", []string{""}, ""},
}

// lookups has the SQL of each one, of a column and a placeholder, and what to say of the field in a
// description. LIKE is in none: its wildcards would work in a client's text.
var lookups = map[string]struct{ sql, says string }{
	"":            {"%s = %s", " is this value"},
	"ne":          {"%s <> %s", " is another value"},
	"lt":          {"%s < %s", " is less than this"},
	"lte":         {"%s <= %s", " is this or less"},
	"gt":          {"%s > %s", " is greater than this"},
	"gte":         {"%s >= %s", " is this or greater"},
	"in":          {"%s = ANY (%s)", " is one of these"},
	"range":       {"", " is one of these two or between them"},
	"isnull":      {"", " is null, or with false: is not"},
	"iexact":      {"upper(%s) = upper(%s)", " is this value, whatever the case"},
	"contains":    {"strpos(%s, %s) > 0", " contains this text"},
	"icontains":   {"strpos(upper(%s), upper(%s)) > 0", " contains this text, whatever the case"},
	"startswith":  {"starts_with(%s, %s)", " starts with this text"},
	"istartswith": {"starts_with(upper(%s), upper(%s))", " starts with this text, whatever the case"},
	"regex":       {"%s ~ %s", " matches this regular expression"},
	"iregex":      {"%s ~* %s", " matches this regular expression, whatever the case"},
}

// Field is something that clients may filter by, with one parameter for each lookup: "name", "name__in".
type Field struct {
	// Name is what clients write, such as "name".
	Name string
	// Column is an SQL expression over the list's relation, such as "t.created_at". Put more than a name or
	// a cast in parentheses.
	Column string
	// Kind says what values the field has.
	Kind Kind
	// Lookups are the suffixes that are possible, with "" for exact. Default: those of the kind; with a
	// Condition only exact, and of an Array both.
	Lookups []string
	// Choices are the words of Kind Choice.
	Choices []string
	// Enum is the type of a Column of Kind Choice that is no text: the Choices are of its values. (PostgreSQL keeps no
	// statistics of state::text, and would plan as if hardly any object had a state.) Default: text.
	Enum string
	// Parse makes a client's text, which may be empty in a list, into the value to compare: a string,
	// time.Time, int64, bool or uuid.UUID as the kind has it; of a reference also [Null] or [OfType]. Its
	// error is what the client is told; see [ListError]. Default: the kind's own.
	Parse func(string) (any, error)
	// Condition, if set, is the SQL for exact and in, such as
	// "id IN (SELECT task_id FROM created_resource WHERE resource = %s)". A placeholder takes the place of
	// its %s; the parameter is an array for in and for Kind Array, else one value. Without %s the value is
	// only checked.
	Condition string
	// Rare are words of Kind Choice that few objects have, and ByRare the SQL that finds those by an index, such
	// as "id IN (SELECT id FROM rare WHERE state = ANY (%s))". With exact and in it takes the place of the Column.
	Rare   []string
	ByRare string
	// ByType is the SQL for [OfType] of a reference. The parameter in the place of %s is a text[].
	ByType string
}

// Null is a result of Parse: the reference points nowhere.
type Null struct{}

// OfType is a result of Parse: the reference points to any object of a type, such as what a collection's href
// asks for. The text is for the field's ByType.
type OfType string

func (f *Field) lookups() []string {
	switch {
	case f.Lookups != nil:
		return f.Lookups
	case f.Condition != "" && f.Kind != Array:
		return []string{""}
	}
	return kinds[f.Kind].lookups
}

// parameter is the name of the query parameter for a lookup.
func (f *Field) parameter(lookup string) string {
	if lookup == "" {
		return f.Name
	}
	return f.Name + "__" + lookup
}

func (f *Field) validate() error {
	switch {
	case f.Kind < 0 || int(f.Kind) >= len(kinds):
		return errors.New("unknown Kind")
	case f.Name == "" || f.Column == "" && f.Condition == "":
		return errors.New("needs Name, and Column or Condition")
	case strings.Count(f.Condition, "%s") > 1:
		return errors.New("more than one %s in Condition")
	case f.ByType != "" && (f.Kind != UUID || strings.Count(f.ByType, "%s") != 1):
		return errors.New("ByType is for references and has one %s")
	case f.Kind == Choice && f.Parse == nil && len(f.Choices) == 0:
		return errors.New("needs Choices")
	case f.Enum != "" && (f.Kind != Choice || f.Condition != "" || len(f.Choices) == 0):
		return errors.New("an Enum is for words and a Column")
	case f.Kind == Labels && (f.Condition != "" || f.Parse != nil):
		return errors.New("labels have a Column, no Condition and no Parse")
	case f.Rare != nil && (f.Kind != Choice || f.Condition != "" || strings.Count(f.ByRare, "%s") != 1):
		return errors.New("a Rare is for words and a Column, and ByRare has one %s")
	}
	for _, lookup := range f.lookups() {
		k := kinds[f.Kind]
		possible := slices.Contains(k.lookups, lookup) || lookup == k.more
		if !possible || f.Condition != "" && lookup != "" && lookup != "in" {
			return fmt.Errorf("lookup %q is not possible", lookup)
		}
	}
	return nil
}

// condition makes the SQL for one parameter, or "" if the text asks for nothing. A reference's list may be
// empty, as in Pulp: who got no ids from somewhere wants none of the objects, not all.
func (f *Field) condition(b *builder, lookup, text string) (string, error) {
	if text == "" && (f.Kind != UUID || lookup != "in") {
		return "", nil
	}
	if lookup == "isnull" {
		null, err := parseBool(text)
		if err != nil {
			return "", err
		}
		if null == true {
			return f.Column + " IS NULL", nil
		}
		return f.Column + " IS NOT NULL", nil
	}
	if f.Kind == Labels {
		return f.labels(b, text)
	}
	values, err := f.values(lookup, text)
	if err != nil {
		return "", err
	}
	if lookup == "regex" || lookup == "iregex" {
		b.regexes = append(b.regexes, b.parameter)
	}
	sqlType := kinds[f.Kind].sqlType
	switch {
	case f.Rare != nil && (lookup == "" || lookup == "in"):
		return f.byRare(b, values), nil
	case lookup == "range":
		return f.Column + " BETWEEN " + b.add(values[0], sqlType) + " AND " + b.add(values[1], sqlType), nil
	case f.Kind == UUID:
		return f.reference(b, lookup, values)
	case f.Kind == Int && lookup == "in":
		return f.compare(b, lookup, slice[int64](values), sqlType+"[]"), nil
	case f.Kind == Array || lookup == "in":
		return f.compare(b, lookup, slice[string](values), sqlType+"[]"), nil
	}
	return f.compare(b, lookup, values[0], sqlType), nil
}

// byRare makes the SQL for words, of which some are rare.
func (f *Field) byRare(b *builder, values []any) string {
	var rare, other, either []string
	for _, v := range values {
		if word, _ := v.(string); slices.Contains(f.Rare, word) {
			rare = append(rare, word)
		} else {
			other = append(other, word)
		}
	}
	if rare != nil {
		either = append(either, strings.Replace(f.ByRare, "%s", b.add(rare, "text[]"), 1))
	}
	if other != nil || rare == nil {
		either = append(either, f.compare(b, "in", append([]string{}, other...), "text[]"))
	}
	return "(" + strings.Join(either, " OR ") + ")"
}

// compare makes the SQL that compares with one parameter.
func (f *Field) compare(b *builder, lookup string, value any, sqlType string) string {
	switch {
	case f.Condition != "" && !strings.Contains(f.Condition, "%s"):
		return "(" + f.Condition + ")"
	case f.Condition != "":
		return "(" + strings.Replace(f.Condition, "%s", b.add(value, sqlType), 1) + ")"
	case f.Kind == Array:
		return f.Column + " @> " + b.add(value, sqlType)
	}
	placeholder := b.add(value, sqlType)
	if f.Enum != "" {
		placeholder += "::" + f.Enum + strings.TrimPrefix(sqlType, "text")
	}
	return fmt.Sprintf(lookups[lookup].sql, f.Column, placeholder)
}

// reference makes the SQL for objects, types and null, of which a list may have several.
func (f *Field) reference(b *builder, lookup string, values []any) (string, error) {
	var ids, types, either []string
	null := false
	for _, v := range values {
		switch v := v.(type) {
		case uuid.UUID:
			ids = append(ids, v.String())
		case OfType:
			types = append(types, string(v))
		case Null:
			null = true
		}
	}
	switch {
	case null && f.Column == "":
		return "", fmt.Errorf("%w: %s has no Column that may be null", errMisdeclared, f.Name)
	case types != nil && f.ByType == "":
		return "", fmt.Errorf("%w: %s has no ByType", errMisdeclared, f.Name)
	case lookup == "" && ids != nil:
		either = append(either, f.compare(b, lookup, ids[0], "uuid"))
	case ids != nil || len(values) == 0:
		either = append(either, f.compare(b, lookup, append([]string{}, ids...), "uuid[]"))
	}
	if null {
		either = append(either, f.Column+" IS NULL")
	}
	if types != nil {
		either = append(either, strings.Replace(f.ByType, "%s", b.add(types, "text[]"), 1))
	}
	return "(" + strings.Join(either, " OR ") + ")", nil
}

// values reads the text of a parameter: one value, or the list that its lookup takes. An empty value in a
// list is one only where values are words.
func (f *Field) values(lookup, text string) ([]any, error) {
	texts := []string{text}
	if lookup == "in" || lookup == "range" {
		var err error
		if texts, err = split(text); err != nil {
			return nil, err
		}
	}
	values := make([]any, 0, len(texts))
	for _, t := range texts {
		if t == "" && kinds[f.Kind].sqlType != "text" {
			continue
		}
		v, err := f.parse(lookup, t)
		if err != nil {
			return nil, err
		}
		if word, _ := v.(string); f.Enum != "" && !slices.Contains(f.Choices, word) {
			continue
		}
		values = append(values, v)
	}
	if lookup == "range" && (len(texts) != 2 || len(values) != 2) {
		return nil, errRange
	}
	return values, nil
}

// parse reads one value, of the kind's type or a [Null] or [OfType].
func (f *Field) parse(lookup, text string) (any, error) {
	switch {
	case f.Kind == Choice && f.Parse == nil && lookup != "in" && !slices.Contains(f.Choices, text):
		return nil, noChoice(text)
	case lookup == "regex" || lookup == "iregex":
		if err := checkRegex(text); err != nil {
			return nil, err
		}
	}
	if f.Parse == nil {
		return kinds[f.Kind].parse(text)
	}
	v, err := f.Parse(text)
	if err != nil {
		return nil, err
	}
	special := v == Null{} || reflect.TypeOf(v) == reflect.TypeFor[OfType]()
	if reflect.TypeOf(v) != kinds[f.Kind].goType && (!special || f.Kind != UUID) {
		return nil, fmt.Errorf("%w: Parse of %s gave a %T", errMisdeclared, f.Name, v)
	}
	return v, nil
}
