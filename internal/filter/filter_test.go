package filter_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/internal/filter"
	"github.com/pithworks/pith/internal/pinning"
)

// tasks is a set with every kind of field.
func tasks() *filter.Set {
	return &filter.Set{
		Fields: []filter.Field{
			{Name: "pulp_id", Column: "id", Kind: filter.UUID, Lookups: []string{"in"}},
			{Name: "name", Column: "t.name", Kind: filter.Text},
			{Name: "cid", Column: "cid", Kind: filter.Text, Lookups: []string{"ne", "contains"}},
			{Name: "state", Column: "state::text", Kind: filter.Choice, Choices: []string{"waiting", "running"}},
			{Name: "pulp_created", Column: "created_at", Kind: filter.Time},
			{Name: "number", Column: "number", Kind: filter.Int},
			{Name: "retain", Column: "retain", Kind: filter.Int, Lookups: []string{"", "isnull"}},
			{Name: "online", Column: "online", Kind: filter.Bool},
			{Name: "labels", Column: "labels", Kind: filter.Array},
			{Name: "pulp_label_select", Column: "t.pulp_labels", Kind: filter.Labels},
			{
				Name: "parent", Column: "parent", Kind: filter.UUID, Parse: reference,
				ByType: "parent IN (SELECT id FROM thing WHERE type = ANY (%s))",
			},
			{Name: "worker", Kind: filter.Text, Condition: "false"},
			{
				Name: "created", Kind: filter.Text,
				Condition: "id IN (SELECT task_id FROM created_resource WHERE resource = %s)",
			},
			{
				Name: "created", Kind: filter.Text, Lookups: []string{"in"},
				Condition: "id IN (SELECT task_id FROM created_resource WHERE resource = ANY (%s))",
			},
			{
				Name: "reserved", Kind: filter.Array,
				Condition: "NOT EXISTS (SELECT FROM unnest(%s) v WHERE NOT (v = ANY (reserved) OR 'shared:' || v = ANY (reserved)))",
			},
		},
		Orders: map[string]string{"name": "t.name", "pulp_created": "created_at"},
		Key:    "id",
		Newest: "created_at DESC, id DESC",
	}
}

// reference reads hrefs such as /things/<id>/ and /things/, and null.
func reference(text string) (any, error) {
	if text == "null" {
		return filter.Null{}, nil
	}
	rest, ok := strings.CutPrefix(text, "/things/")
	if !ok {
		return nil, filter.ListError("URI not valid")
	}
	if rest == "" {
		return filter.OfType("thing"), nil
	}
	id, err := uuid.Parse(strings.TrimSuffix(rest, "/"))
	if err != nil {
		return nil, errors.New("Enter a valid UUID.") //nolint:revive // Django's text
	}
	return id, nil
}

const (
	one = "01890a5d-ac96-774b-bcce-b302099a8057"
	two = "01890a5d-ac96-774b-bcce-b302099a8058"
)

// ignored is what the tests leave to others.
var ignored = []string{"limit", "offset", "fields"}

func parse(t *testing.T, query string, args ...any) (filter.Query, error) {
	t.Helper()
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	return tasks().Parse(values, ignored, args...)
}

// body is the answer to a query that is refused, or the condition if it is not.
func body(t *testing.T, query string) string {
	t.Helper()
	q, err := parse(t, query)
	if err == nil {
		return "no error: " + q.Where
	}
	refused, ok := errors.AsType[*filter.Error](err)
	if !ok {
		t.Fatalf("%s: %v", query, err)
	}
	text, err := json.Marshal(refused)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}

func TestEachParameterIsACondition(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]filter.Query{
		"":                     {Where: "true"},
		"limit=5&offset=x":     {Where: "true"},
		"name=&state=&number=": {Where: "true"},
		"name=%20&number__in=": {Where: "true"},
		"q=&ordering=":         {Where: "true"},
		"name=a%25b":           {Where: "t.name = $1::text", Args: []any{"a%b"}},
		"name=a&name=b":        {Where: "t.name = $1::text", Args: []any{"b"}},
		"name=%20a%20":         {Where: "t.name = $1::text", Args: []any{"a"}},
		"name=%ff":             {Where: "t.name = $1::text", Args: []any{"\uFFFD"}},
		"name__iexact=A":       {Where: "upper(t.name) = upper($1::text)", Args: []any{"A"}},
		"name__in=a,b":         {Where: "t.name = ANY ($1::text[])", Args: []any{[]string{"a", "b"}}},
		"name__in=a,":          {Where: "t.name = ANY ($1::text[])", Args: []any{[]string{"a", ""}}},
		"name__contains=_":     {Where: "strpos(t.name, $1::text) > 0", Args: []any{"_"}},
		"name__icontains=a":    {Where: "strpos(upper(t.name), upper($1::text)) > 0", Args: []any{"a"}},
		"name__startswith=a":   {Where: "starts_with(t.name, $1::text)", Args: []any{"a"}},
		"name__istartswith=a":  {Where: "starts_with(upper(t.name), upper($1::text))", Args: []any{"a"}},
		"name__regex=a.b":      {Where: "t.name ~ $1::text", Args: []any{"a.b"}},
		"name__iregex=^a":      {Where: "t.name ~* $1::text", Args: []any{"^a"}},
		"cid__ne=a":            {Where: "cid <> $1::text", Args: []any{"a"}},
		"state=waiting":        {Where: "state::text = $1::text", Args: []any{"waiting"}},
		"state__ne=waiting":    {Where: "state::text <> $1::text", Args: []any{"waiting"}},
		"state__in=waiting,x":  {Where: "state::text = ANY ($1::text[])", Args: []any{[]string{"waiting", "x"}}},
		"number=-3":            {Where: "number = $1::bigint", Args: []any{int64(-3)}},
		"number__ne=3":         {Where: "number <> $1::bigint", Args: []any{int64(3)}},
		"number__range=1,3":    {Where: "number BETWEEN $1::bigint AND $2::bigint", Args: []any{int64(1), int64(3)}},
		"number__in=1,,3":      {Where: "number = ANY ($1::bigint[])", Args: []any{[]int64{1, 3}}},
		"retain__isnull=True":  {Where: "retain IS NULL"},
		"retain__isnull=0":     {Where: "retain IS NOT NULL"},
		"online=TRUE":          {Where: "online = $1::boolean", Args: []any{true}},
		"pulp_created__lt=2024-05-01": {
			Where: "created_at < $1::timestamptz", Args: []any{at("2024-05-01T00:00:00Z")},
		},
		"pulp_created__range=2024-05-01,2024-05-02": {
			Where: "created_at BETWEEN $1::timestamptz AND $2::timestamptz",
			Args:  []any{at("2024-05-01T00:00:00Z"), at("2024-05-02T00:00:00Z")},
		},
		"labels=a,b":     {Where: "labels @> $1::text[]", Args: []any{[]string{"a,b"}}},
		"labels__in=a,b": {Where: "labels @> $1::text[]", Args: []any{[]string{"a", "b"}}},
		"pulp_id__in=" + one + "," + strings.ReplaceAll(two, "-", ""): {
			Where: "(id = ANY ($1::uuid[]))", Args: []any{[]string{one, two}},
		},
		"parent=/things/" + one + "/": {Where: "(parent = $1::uuid)", Args: []any{one}},
		"parent=null":                 {Where: "(parent IS NULL)"},
		"parent=/things/": {
			Where: "(parent IN (SELECT id FROM thing WHERE type = ANY ($1::text[])))", Args: []any{[]string{"thing"}},
		},
		"parent__in=null,/things/,/things/" + one: {
			Where: "(parent = ANY ($1::uuid[]) OR parent IS NULL OR parent IN (SELECT id FROM thing WHERE type = ANY ($2::text[])))",
			Args:  []any{[]string{one}, []string{"thing"}},
		},
		"worker=x":  {Where: "(false)"},
		"created=x": {Where: "(id IN (SELECT task_id FROM created_resource WHERE resource = $1::text))", Args: []any{"x"}},
		"created__in=x,y": {
			Where: "(id IN (SELECT task_id FROM created_resource WHERE resource = ANY ($1::text[])))", Args: []any{[]string{"x", "y"}},
		},
		"reserved=x": {
			Where: "(NOT EXISTS (SELECT FROM unnest($1::text[]) v WHERE NOT (v = ANY (reserved) OR 'shared:' || v = ANY (reserved))))",
			Args:  []any{[]string{"x"}},
		},
		"state=waiting&name=x&number__gt=4": {
			Where: "t.name = $1::text AND number > $2::bigint AND state::text = $3::text", Args: []any{"x", int64(4), "waiting"},
		},
	} {
		got, err := parse(t, query)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		if got.Where != want.Where || !cmp.Equal(got.Args, want.Args) {
			t.Errorf("%s:\n got %s %v\nwant %s %v", query, got.Where, got.Args, want.Where, want.Args)
		}
		if got.Order != tasks().Newest {
			t.Errorf("%s: order %s", query, got.Order)
		}
	}
}

func TestRareWordsAreFoundInAWayOfTheirOwn(t *testing.T) {
	t.Parallel()
	set := &filter.Set{
		Key: "id", Newest: "id DESC",
		Fields: []filter.Field{{
			Name: "state", Column: "state", Enum: "task_state", Kind: filter.Choice, Choices: []string{"waiting", "running", "completed"},
			Rare: []string{"waiting", "running"}, ByRare: "id IN (SELECT r.id FROM rare r WHERE r.state = ANY (%s))",
		}},
	}
	if err := set.Validate(); err != nil {
		t.Fatal(err)
	}
	const rare, other = "id IN (SELECT r.id FROM rare r WHERE r.state = ANY ($1::text[]))", "state = ANY ($1::text[]::task_state[])"
	for query, want := range map[string]string{
		"state=waiting":                     "(" + rare + ")",
		"state=completed":                   "(" + other + ")",
		"state__in=waiting,running,waiting": "(" + rare + ")",
		"state__in=completed,waiting,x":     "(" + rare + " OR state = ANY ($2::text[]::task_state[]))",
		"state__in=x":                       "(" + other + ")",
		"state__ne=waiting":                 "state <> $1::text::task_state",
		"q=NOT state=running":               "((" + rare + ")) IS NOT TRUE",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		q, err := set.Parse(values, nil)
		if err != nil || q.Where != want {
			t.Errorf("%s: %s %v, want %s", query, q.Where, err, want)
		}
	}
}

func TestEmptyListOfReferencesMatchesNothing(t *testing.T) {
	t.Parallel()
	for _, query := range []string{"pulp_id__in=", "pulp_id__in=,", "q=pulp_id__in%3D''"} {
		got, err := parse(t, query)
		if err != nil {
			t.Fatal(err)
		}
		if got.Where != "(id = ANY ($1::uuid[]))" || !cmp.Equal(got.Args, []any{[]string{}}) {
			t.Errorf("%s: %s %#v", query, got.Where, got.Args)
		}
	}
}

func TestPlaceholdersFollowTheCallersArguments(t *testing.T) {
	t.Parallel()
	args := make([]any, 2, 10)
	got, err := parse(t, "name=x&number=1", args...)
	if err != nil {
		t.Fatal(err)
	}
	if got.Where != "t.name = $3::text AND number = $4::bigint" || len(got.Args) != 4 || args[:3][2] != nil {
		t.Errorf("got %s %v, caller's %v", got.Where, got.Args, args[:3])
	}
}

func TestWrongParametersAreNamedInTheBody(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"foo=1":                     `{"errors":["Invalid Filter: 'foo'"]}`,
		"foo=1&bar=":                `{"errors":["Invalid Filter: 'bar'","Invalid Filter: 'foo'"]}`,
		"cid=x":                     `{"errors":["Invalid Filter: 'cid'"]}`,
		"name__exact=x":             `{"errors":["Invalid Filter: 'name__exact'"]}`,
		"pulp_id=" + one:            `{"errors":["Invalid Filter: 'pulp_id'"]}`,
		"state=bogus":               `{"state":["Select a valid choice. bogus is not one of the available choices."]}`,
		"state__ne=bogus":           `{"state__ne":["Select a valid choice. bogus is not one of the available choices."]}`,
		"pulp_created__gte=x":       `{"pulp_created__gte":["Enter a valid date/time."]}`,
		"pulp_id__in=hello":         `{"pulp_id__in":["Enter a valid UUID."]}`,
		"pulp_id__in=x" + one + "y": `{"pulp_id__in":["Enter a valid UUID."]}`,
		"number=1.5":                `{"number":["Enter a number."]}`,
		"number__in=1,x":            `{"number__in":["Enter a number."]}`,
		"number__range=1":           `{"number__range":["Range query expects two values."]}`,
		"number__range=1,":          `{"number__range":["Range query expects two values."]}`,
		"number__range=1,2,":        `{"number__range":["Range query expects two values."]}`,
		"number__range=1,2,3":       `{"number__range":["Range query expects two values."]}`,
		"online=yes":                `{"online":["Must be a valid boolean."]}`,
		"retain__isnull=2":          `{"retain__isnull":["Must be a valid boolean."]}`,
		"ordering=-foo":             `{"ordering":["Select a valid choice. -foo is not one of the available choices."]}`,
		"ordering=--name":           `{"ordering":["Select a valid choice. --name is not one of the available choices."]}`,
		"name=a%00b":                `{"name":["Null characters are not allowed."]}`,
		"q=a%00b":                   `{"q":["Null characters are not allowed."]}`,
		"ordering=%00":              `{"ordering":["Null characters are not allowed."]}`,
		"name__regex=(":             `{"name__regex":["Enter a valid regular expression."]}`,
		`name__regex=(a)\1`:         `{"name__regex":["Enter a valid regular expression."]}`,
		"name__regex=***:a":         `{"name__regex":["Enter a valid regular expression."]}`,
		"name__regex=" + strings.Repeat("a", 1001): `{"name__regex":["A regular expression may have 1000 bytes."]}`,
		"name__in=" + strings.Repeat(",", 1000):    `{"name__in":["A list may have 1000 values."]}`,
		"parent=/other/":                           `["URI not valid"]`,
		"parent=/things/x/":                        `{"parent":["Enter a valid UUID."]}`,
		"parent=/other/&number=x&q=x&foo=1&name=a": `{"errors":["Invalid Filter: 'foo'"],"number":["Enter a number."],` +
			`"q":["Syntax error in expression: expected = at character 2."]}`,
	} {
		if got := body(t, query); got != want {
			t.Errorf("%.60s:\n got %s\nwant %s", query, got, want)
		}
	}
}

func TestOrderEndsWithTheTieBreak(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, want string }{
		{"name", "t.name, created_at DESC, id DESC"},
		{"-name,pk", "t.name DESC, id, created_at DESC, id DESC"},
		{"name,-name,name,-pk", "t.name, id DESC, created_at DESC, id DESC"},
		{" name , ,", "t.name, created_at DESC, id DESC"},
	} {
		got, err := tasks().Parse(url.Values{"ordering": {tt.text}}, nil)
		if err != nil || got.Order != tt.want {
			t.Errorf("%s: %s, %v", tt.text, got.Order, err)
		}
	}
}

func TestTextThatWouldBeTooLongIsRefused(t *testing.T) {
	t.Parallel()
	s, values := &filter.Set{Key: "id", Newest: "id"}, url.Values{}
	for i := range 500 {
		s.Fields = append(s.Fields, filter.Field{Name: fmt.Sprint("f", i), Column: "a_column", Kind: filter.Text})
		values.Set(fmt.Sprint("f", i), "x")
	}
	_, err := s.Parse(values, nil)
	if refused, ok := errors.AsType[*filter.Error](err); !ok || !cmp.Equal(refused.Fields["errors"], []string{"Too many filters."}) {
		t.Errorf("got %v", err)
	}
}

func TestWrongParseFunctionIsNoErrorOfTheClient(t *testing.T) {
	t.Parallel()
	for _, gives := range []any{1, nil, []string{"x"}, filter.Null{}, filter.OfType("x"), uuid.Nil} {
		s := &filter.Set{Fields: []filter.Field{{Name: "a", Column: "a", Parse: func(string) (any, error) { return gives, nil }}}}
		for _, values := range []url.Values{{"a": {"x"}}, {"q": {"NOT a=x OR a=y"}}} {
			_, err := s.Parse(values, nil)
			if _, ok := errors.AsType[*filter.Error](err); ok || err == nil {
				t.Errorf("%v: %v", gives, err)
			}
		}
	}
	for _, gives := range []any{filter.Null{}, filter.OfType("x")} {
		s := &filter.Set{Fields: []filter.Field{{Name: "a", Kind: filter.UUID, Condition: "%s = b", Parse: func(string) (any, error) { return gives, nil }}}}
		if q, err := s.Parse(url.Values{"a": {"x"}}, nil); err == nil {
			t.Errorf("%v: %s", gives, q.Where)
		}
	}
}

func TestValidateFindsMisdeclaredSets(t *testing.T) {
	t.Parallel()
	if err := tasks().Validate(); err != nil {
		t.Error(err)
	}
	for name, f := range map[string]filter.Field{
		"no column":             {Name: "a"},
		"no name":               {Column: "a"},
		"unknown kind":          {Name: "a", Column: "a", Kind: 99},
		"lookup of another":     {Name: "a", Column: "a", Kind: filter.Bool, Lookups: []string{"in"}},
		"unknown lookup":        {Name: "a", Column: "a", Lookups: []string{"endswith"}},
		"lookup of a condition": {Name: "a", Condition: "b = %s", Lookups: []string{"contains"}},
		"two placeholders":      {Name: "a", Condition: "%s = %s"},
		"no choices":            {Name: "a", Column: "a", Kind: filter.Choice},
		"type of a text":        {Name: "a", Column: "a", ByType: "%s"},
		"enum of texts":         {Name: "a", Column: "a", Enum: "x"},
		"rare texts":            {Name: "a", Column: "a", Rare: []string{"x"}, ByRare: "%s"},
		"no way to rare words":  {Name: "a", Column: "a", Kind: filter.Choice, Choices: []string{"x"}, Rare: []string{"x"}},
		"labels by a condition": {Name: "a", Condition: "b = %s", Kind: filter.Labels},
		"labels read otherwise": {Name: "a", Column: "a", Kind: filter.Labels, Parse: reference},
		"labels in a list":      {Name: "a", Column: "a", Kind: filter.Labels, Lookups: []string{"in"}},
		"twice":                 {Name: "b", Column: "b"},
		"twice by its suffix":   {Name: "b__in", Column: "b", Lookups: []string{""}},
		"the name of another":   {Name: "q", Column: "q"},
	} {
		s := filter.Set{Key: "id", Newest: "id", Fields: []filter.Field{{Name: "b", Column: "b"}, f}}
		if s.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if (&filter.Set{}).Validate() == nil {
		t.Error("no key: no error")
	}
}

func TestEveryParameterIsDescribed(t *testing.T) {
	t.Parallel()
	described := map[string]filter.Parameter{}
	for _, p := range tasks().Parameters() {
		if strings.HasSuffix(p.Description, p.Name+".") || p.Description == "" {
			t.Errorf("%s has no description", p.Name)
		}
		described[p.Name] = p
		if got := body(t, p.Name+"=~"); strings.Contains(got, "Invalid Filter") {
			t.Errorf("%s is not known to Parse", p.Name)
		}
	}
	for _, want := range []filter.Parameter{
		{Name: "name", Type: "string", Description: "Results whose name is this value."},
		{Name: "number__in", Type: "integer", List: true, Description: "Results whose number is one of these."},
		{Name: "pulp_created__range", Type: "string", Format: "date-time", List: true, Description: "Results whose pulp_created is one of these two or between them."},
		{Name: "pulp_created__isnull", Type: "boolean", Description: "Results whose pulp_created is null, or with false: is not."},
		{Name: "state", Type: "string", Enum: []string{"waiting", "running"}, Description: "Results whose state is this value."},
		{Name: "state__in", Type: "string", List: true, Description: "Results whose state is one of these."},
		{Name: "pulp_id__in", Type: "string", Format: "uuid", List: true, Description: "Results whose pulp_id is one of these."},
		{Name: "parent", Type: "string", Description: "Results whose parent is this value."},
		{
			Name: "pulp_label_select", Type: "string",
			Description: "Results whose labels meet all these terms, with commas between: key, !key, key=value, key!=value, key~part.",
		},
		{Name: "labels__in", Type: "string", List: true, Description: "Results whose labels have all these elements."},
		{
			Name: "ordering", Type: "string", List: true, Enum: []string{"name", "-name", "pulp_created", "-pulp_created", "pk", "-pk"},
			Description: "Fields to order by; a - before one turns it around.",
		},
	} {
		if diff := cmp.Diff(want, described[want.Name]); diff != "" {
			t.Error(diff)
		}
	}
}

// everything asks by each parameter at once.
const everything = "pulp_id__in=" + one + "&name=a&name__iexact=a&name__in=a&name__contains=a&name__icontains=a&name__startswith=a" +
	"&name__istartswith=a&name__regex=a&name__iregex=a&cid__ne=a&state=waiting&state__ne=waiting&state__in=a" +
	"&pulp_created=2024-05-01&pulp_created__lt=2024-05-01&pulp_created__lte=2024-05-01&pulp_created__gt=2024-05-01" +
	"&pulp_created__gte=2024-05-01&pulp_created__range=2024-05-01,2024-05-01&pulp_created__isnull=1&retain__isnull=0" +
	"&number__in=1&online=1&labels=a&parent__in=null,/things/,/things/" + one + "&worker=a&created=a&created__in=a&reserved=a" +
	"&pulp_label_select=a,!b,c%3Dd,e!%3Df,g~h" +
	"&ordering=-name,pulp_created&q=NOT+(name%3Da+AND+number__range%3D1,2)+OR+name%3D''+OR+NOT+name%3Da"

func TestTextIsPlainSQL(t *testing.T) {
	t.Parallel()
	q, err := parse(t, everything)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pinning.Inspect("SELECT FROM task t WHERE " + q.Where + " ORDER BY " + q.Order + " LIMIT 1")
	if err != nil || len(found) > 0 {
		t.Errorf("%v %v\n%s", found, err, q.Where)
	}
}

func TestArgumentsNeedNoTypesOfTheServer(t *testing.T) {
	t.Parallel()
	q, err := parse(t, everything)
	if err != nil {
		t.Fatal(err)
	}
	m := pgtype.NewMap()
	for _, arg := range q.Args {
		if text, err := m.Encode(0, pgtype.TextFormatCode, arg, nil); err != nil || text == nil {
			t.Errorf("%T: %s %v", arg, text, err)
		}
	}
}

// labelTexts begins a condition on the texts of labels.
const labelTexts = `NOT EXISTS \(SELECT FROM unnest\(\$\d+::text\[\], \$\d+::text\[\]\) AS l \(label_key, label_text\) WHERE `

// trusted is all that may be in a text for tasks.
var trusted = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`\$\d+::(?:text|uuid|bigint|boolean|timestamptz)(?:\[\])?`, `state::text`, `t\.name`,
	`\b(?:id|cid|created_at|number|retain|online|labels|parent|reserved)\b`, `\b(?:AND|OR|IS|NOT|NULL|TRUE|BETWEEN|ANY|DESC|true|false)\b`,
	`t\.pulp_labels (?:@> \$\d+::jsonb|\?[&|] \$\d+::text\[\])`, labelTexts + `t\.pulp_labels ->> label_key = label_text\)`,
	labelTexts + regexp.QuoteMeta(`(strpos(upper(t.pulp_labels ->> label_key), upper(label_text)) > 0) IS NOT TRUE)`),
	`\b(?:upper|strpos|starts_with)\(`, ` > 0`, ` (?:=|<>|<|<=|>|>=|~|~\*|@>) `, `[ (),]`,
	regexp.QuoteMeta(`IN (SELECT id FROM thing WHERE type = `), regexp.QuoteMeta(`IN (SELECT task_id FROM created_resource WHERE resource = `),
	`EXISTS \(SELECT FROM unnest\(\$\d+::text\[\]\) v WHERE NOT \(v = ANY \(reserved\) OR 'shared:' \|\| v = ANY \(reserved\)\)\)`,
}, "|") + `)*$`)

var placeholder = regexp.MustCompile(`\$\d+`)

// check fails if a query that was parsed is not what Parse promises.
func check(t *testing.T, q filter.Query, err error) {
	t.Helper()
	if err != nil {
		refused, ok := errors.AsType[*filter.Error](err)
		if !ok {
			t.Fatal(err)
		}
		if _, err := json.Marshal(refused); err != nil || len(refused.Fields)+len(refused.List) == 0 {
			t.Fatalf("%v: %v", refused, err)
		}
		return
	}
	if len(q.Where)+len(q.Order) > filter.MaxText {
		t.Fatalf("text of %d bytes", len(q.Where)+len(q.Order))
	}
	if !trusted.MatchString(q.Where) || !trusted.MatchString(q.Order) {
		t.Fatalf("text of a client in %s ORDER BY %s", q.Where, q.Order)
	}
	if strings.Count(q.Where, "(") != strings.Count(q.Where, ")") {
		t.Fatalf("unbalanced: %s", q.Where)
	}
	found := placeholder.FindAllString(q.Where, -1)
	if len(found) != len(q.Args) {
		t.Fatalf("%d placeholders, %d arguments: %s", len(found), len(q.Args), q.Where)
	}
	seen := map[string]bool{}
	for _, p := range found {
		seen[p] = true
	}
	for i := range q.Args {
		if !seen[fmt.Sprint("$", i+1)] {
			t.Fatalf("no $%d: %s", i+1, q.Where)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		everything, "name=';--", "foo=1&number=x", "number__range=1,2,3", "ordering=name,-name,pk&limit=3", "state=a&name=%00%ff",
		"pulp_created=2024-05-01T10:11:12 02:00", "pulp_created__range=2024-5-1,2024-5-1T1:2:3,5 -0130", "parent__in=,", "name__regex=(?i)[a-z]{2}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := tasks().Parse(values, ignored)
		check(t, q, err)
	})
}

func FuzzExpression(f *testing.F) {
	for _, seed := range []string{
		`name=a AND (state__in="waiting,running" OR NOT number__range=1,2)`, `not not name='\''`, `((((`, `name="" or q=x`, `name=a;`,
		`pulp_id__in='' AND parent__in="null,/things/"`, strings.Repeat("(", 40), "NOT NOT NOT", `name="`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := tasks().Parse(url.Values{"q": {text}}, nil)
		check(t, q, err)
	})
}
