package filter_test

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/internal/filter"
)

// selected is the query that a selection of labels makes.
func selected(text string) (filter.Query, error) {
	return tasks().Parse(url.Values{"pulp_label_select": {text}}, nil)
}

func TestSelectionOfLabelsIsOneCondition(t *testing.T) {
	t.Parallel()
	const texts = "(t.pulp_labels ?& $1::text[] AND NOT EXISTS (SELECT FROM unnest($2::text[], $3::text[]) AS l (label_key, label_text) WHERE "
	one := func(list ...string) []string { return list }
	for text, want := range map[string]filter.Query{
		"":             {Where: "true"},
		"a":            {Where: "(t.pulp_labels ?& $1::text[])", Args: []any{one("a")}},
		"!a":           {Where: "(NOT (t.pulp_labels ?| $1::text[]))", Args: []any{one("a")}},
		"a=b":          {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":"b"}`}},
		"a=":           {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":""}`}},
		"a~":           {Where: texts + "(strpos(upper(t.pulp_labels ->> label_key), upper(label_text)) > 0) IS NOT TRUE))", Args: []any{one("a"), one("a"), one("")}},
		"a==b":         {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":"=b"}`}},
		`a="b"`:        {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":"\"b\""}`}},
		"a= b!~c":      {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":" b!~c"}`}},
		"a=\n":         {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":""}`}},
		"a=b\nc":       {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":"b\nc"}`}},
		`a=b\,c,d`:     {Where: "(t.pulp_labels @> $1::jsonb AND t.pulp_labels ?& $2::text[])", Args: []any{`{"a":"b,c"}`, one("d")}},
		`a=b\c\,`:      {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":"b\\c,"}`}},
		"a=b,a=b":      {Where: "(t.pulp_labels @> $1::jsonb)", Args: []any{`{"a":"b"}`}},
		"a=b,a=c":      {Where: "(t.pulp_labels @> $1::jsonb AND false)", Args: []any{`{"a":"c"}`}},
		"a, b b ,-._":  {Where: "(t.pulp_labels ?& $1::text[])", Args: []any{one("a", "b b", "-._")}},
		"naïve9,!a,!b": {Where: "(t.pulp_labels ?& $1::text[] AND NOT (t.pulp_labels ?| $2::text[]))", Args: []any{one("naïve9"), one("a", "b")}},
		"a!=b,a!=c":    {Where: texts + "t.pulp_labels ->> label_key = label_text))", Args: []any{one("a", "a"), one("a", "a"), one("b", "c")}},
	} {
		got, err := selected(text)
		if err != nil || got.Where != want.Where || !cmp.Equal(got.Args, want.Args) {
			t.Errorf("%q:\n got %s %q %v\nwant %s %q", text, got.Where, got.Args, err, want.Where, want.Args)
		}
	}
	many, err := selected(strings.TrimSuffix(strings.Repeat(`a,!b,c=d,e!=f,g~h\,`+"i,", filter.MaxValues/5), ","))
	if few, _ := selected("a,!b,c=d,e!=f,g~h"); err != nil || many.Where != few.Where {
		t.Errorf("many terms make another text than few: %v\n%s\n%s", err, many.Where, few.Where)
	}
}

func TestWrongSelectionsOfLabelsAreRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"=a": `["Invalid search term: '=a'."]`, "a,,b": `["Invalid search term: ''."]`, "a,": `["Invalid search term: ''."]`, "!": `["Invalid search term: '!'."]`,
		"!!a": `["Invalid search term: '!!a'."]`, "a/b": `["Invalid search term: 'a/b'."]`, "a>1": `["Invalid search term: 'a\u003e1'."]`, "a!b": `["Invalid search term: 'a!b'."]`,
		`a\,b`: `["Invalid search term: 'a\\,b'."]`, "(a)": `["Invalid search term: '(a)'."]`, "a\nb": `["Invalid search term: 'a\nb'."]`, "a&,b": `["Invalid search term: 'a\u0026'."]`,
		"!a=b": `["Cannot use an operator with '!a'."]`, "b,!a~": `["Cannot use an operator with '!a'."]`, "!a!=b": `["Cannot use an operator with '!a'."]`,
		"a\x00": `{"pulp_label_select":["Null characters are not allowed."]}`, strings.Repeat("a,", 1000): `{"pulp_label_select":["A list may have 1000 values."]}`,
	} {
		if got := body(t, url.Values{"pulp_label_select": {text}}.Encode()); got != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got, want)
		}
	}
	for text, want := range map[string]string{
		`pulp_label_select="a/b"`: `{"q":["pulp_label_select: Invalid search term: 'a/b'."]}`, "pulp_label_select=a=b": `{"q":["Syntax error in expression: expected AND, OR or the end at character 20."]}`,
	} {
		if got := body(t, url.Values{"q": {text}}.Encode()); got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}

func FuzzLabels(f *testing.F) {
	for _, seed := range []string{"a,!b,c=d,e!=f,g~h", `a=\,\\,,b`, "a=b,a=c", "!a=b", "naïve = \"x\" ", "a=\x00", "\xff=a", `a=');--`, "a\n,b", strings.Repeat("a!=b,", 9)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := selected(text)
		check(t, q, err)
		if refused, ok := errors.AsType[*filter.Error](err); ok && len(refused.List)+len(refused.Fields["pulp_label_select"]) != 1 {
			t.Fatalf("%q: %v", text, refused)
		}
		for _, arg := range q.Args {
			switch arg := arg.(type) {
			case string:
				var pairs map[string]string
				if err := json.Unmarshal([]byte(arg), &pairs); err != nil {
					t.Fatalf("%q: %s: %v", text, arg, err)
				}
				for key := range pairs {
					if !filter.IsLabelKey(key) {
						t.Fatalf("%q has the key %q", text, key)
					}
				}
			case []string:
				if len(arg) > strings.Count(text, ",")+1 {
					t.Fatalf("%q has the terms %q", text, arg)
				}
			}
		}
	})
}
