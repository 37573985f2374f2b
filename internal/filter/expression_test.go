package filter_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExpressionsBindAsTheyShould(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`number=1`:                          "number = $1::bigint",
		`((number = "1"))`:                  "number = $1::bigint",
		`name=""`:                           "true",
		`number=1 OR number=2 AND number=3`: "(number = $1::bigint OR (number = $2::bigint AND number = $3::bigint))",
		`(number=1 or number=2)and number=3`: "((number = $1::bigint OR number = $2::bigint) " +
			"AND number = $3::bigint)",
		`NOT number=1 AND number=2`:                                    "((number = $1::bigint) IS NOT TRUE AND number = $2::bigint)",
		`NOT(number=1 AND number=2)`:                                   "((number = $1::bigint AND number = $2::bigint)) IS NOT TRUE",
		`not not number__range=1,2`:                                    "((number BETWEEN $1::bigint AND $2::bigint) IS NOT TRUE) IS NOT TRUE",
		`name=and AND state__in=waiting,x`:                             "(t.name = $1::text AND state::text = ANY ($2::text[]))",
		strings.Repeat("(", 31) + "number=1" + strings.Repeat(")", 31): "number = $1::bigint",
	} {
		got, err := tasks().Parse(url.Values{"q": {text}}, nil)
		if err != nil || got.Where != want {
			t.Errorf("%s:\n got %s %v\nwant %s", text, got.Where, err, want)
		}
	}
}

func TestValuesInExpressionsAreBareOrQuoted(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`name=a-b_c.d:e/f,g+h%i~j*`: "a-b_c.d:e/f,g+h%i~j*",
		`name=naïve`:                "naïve",
		`name="a b) OR (c='d'"`:     "a b) OR (c='d'",
		`name='a "b"'`:              `a "b"`,
		`name="a\"b\\c\'d"`:         `a"b\c'd`,
		`name__regex="\d+\."`:       `\d+\.`,
		`name='\\'`:                 `\`,
	} {
		got, err := tasks().Parse(url.Values{"q": {text}}, nil)
		if err != nil || !cmp.Equal(got.Args, []any{want}) {
			t.Errorf("%s: %v %v", text, got.Args, err)
		}
	}
}

func TestWrongExpressionsAreExplained(t *testing.T) {
	t.Parallel()
	terms := func(n int) string { return strings.TrimSuffix(strings.Repeat("name=x OR ", n), " OR ") }
	for text, want := range map[string]string{
		`name="test" AND`:                       "Syntax error in expression: expected a filter, NOT or ( at character 16.",
		`naïve="ü" AND or`:                      "Filter 'naïve' does not exist.",
		`name="ü" AND or`:                       "Syntax error in expression: expected a filter, NOT or ( at character 14.",
		`name=x state=y`:                        "Syntax error in expression: expected AND, OR or the end at character 8.",
		`(name=x`:                               "Syntax error in expression: expected AND, OR or ) at character 8.",
		`name=x)`:                               "Syntax error in expression: expected AND, OR or the end at character 7.",
		`name`:                                  "Syntax error in expression: expected = at character 5.",
		`name=`:                                 "Syntax error in expression: expected a value at character 6.",
		`name=(x)`:                              "Syntax error in expression: expected a value at character 6.",
		`"name"=x`:                              "Syntax error in expression: expected a filter, NOT or ( at character 1.",
		`name="x`:                               "Syntax error in expression: unclosed quote at character 6.",
		`name="x\"`:                             "Syntax error in expression: unclosed quote at character 6.",
		`name=x;`:                               "Syntax error in expression: unexpected character at character 7.",
		`q=x`:                                   "You cannot use 'q' in complex filtering.",
		`ordering=name`:                         "An ordering filter cannot be used in complex filtering.",
		`limit=1`:                               "Filter 'limit' does not exist.",
		`state=bogus`:                           "state: Select a valid choice. bogus is not one of the available choices.",
		`parent="/other/"`:                      "parent: URI not valid",
		terms(8):                                "Filter expression exceeds allowed complexity.",
		`(name=x OR name=x) OR ` + terms(5):     "Filter expression exceeds allowed complexity.",
		`(name=x OR NOT name=x) OR ` + terms(4): "Filter expression exceeds allowed complexity.",
		strings.Repeat("NOT ", 8) + "name=x":    "Filter expression exceeds allowed complexity.",
		strings.Repeat("(", 32) + "name=x":      "Syntax error in expression: nested too deeply at character 33.",
		strings.Repeat("(", 4096):               "Syntax error in expression: nested too deeply at character 33.",
		strings.Repeat("NOT ", 1024) + ".":      "A filter expression may have 4096 bytes.",
	} {
		wanted, err := json.Marshal(map[string][]string{"q": {want}})
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, url.Values{"q": {text}}.Encode()); got != string(wanted) {
			t.Errorf("%.60s:\n got %s\nwant %s", text, got, wanted)
		}
	}
	for _, text := range []string{terms(7), strings.Repeat("NOT ", 7) + "name=x", `(name=x OR name=x) OR ` + terms(4)} {
		if _, err := tasks().Parse(url.Values{"q": {text}}, nil); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRegexErrorNamesEachParameterWithARegex(t *testing.T) {
	t.Parallel()
	q, err := parse(t, `name__regex=a&name__iregex=b&name=c&q=name__regex%3Dx+OR+name__iregex%3Dy`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(q.RegexError())
	if err != nil {
		t.Fatal(err)
	}
	if q, err = parse(t, "name=x"); err != nil || q.RegexError() != nil {
		t.Errorf("without a regex: %v %v", err, q.RegexError())
	}
	const wrong = `["Enter a valid regular expression."]`
	if want := `{"name__iregex":` + wrong + `,"name__regex":` + wrong + `,"q":` + wrong + `}`; string(got) != want {
		t.Errorf("got %s", got)
	}
}
