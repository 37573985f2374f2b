package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// sample is a body with fields of all kinds.
type sample struct {
	sampleInner
	Name   string             `json:"name" api:"required" max:"5"`
	Title  *string            `json:"title" api:"null"`
	Secret *string            `json:"secret" api:"blank null secret"`
	State  finalState         `json:"state"`
	States []finalState       `json:"states"`
	Names  []string           `json:"names"`
	On     *bool              `json:"on"`
	Count  *int               `json:"count"`
	At     *Time              `json:"at"`
	Any    json.RawMessage    `json:"any"`
	Map    map[string]string  `json:"map"`
	Labels map[string]*string `json:"labels"`
	Ratio  *float64           `json:"ratio"`
	Share  Float              `json:"share"`
	Hidden string             `json:"-"`
}

type sampleInner struct {
	Big int64 `json:"big"`
}

// lenientSample is a body that ignores what it does not know.
type lenientSample struct {
	IgnoreUnknown
	Name string `json:"name" api:"required"`
}

const (
	asJSON = "application/json"
	asForm = "application/x-www-form-urlencoded"
	asPart = "multipart/form-data; boundary=b"
)

// decodeAs reads a body of a content type.
func decodeAs[T any](kind, body string) (*T, error) {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", kind)
	in, err := readBody(r)
	if err != nil {
		return nil, err
	}
	out, err := decode(reflect.TypeFor[T](), in)
	if err != nil {
		return nil, err
	}
	return out.(*T), nil
}

// formPart is a value in a multipart form.
func formPart(name, value string) string {
	return fmt.Sprintf("--b\r\nContent-Disposition: form-data; name=%q\r\n\r\n%s\r\n", name, value)
}

func TestBodiesAreDecoded(t *testing.T) {
	t.Parallel()
	at := func(text string) *Time {
		v, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return &Time{v.UTC()}
	}
	named := func(change func(*sample)) sample {
		s := sample{Name: "a"}
		change(&s)
		return s
	}
	for _, tt := range []struct {
		kind, body string
		want       sample
	}{
		{asJSON, `{"name": "a"}`, sample{Name: "a"}},
		{asJSON, `{"name": " ab\t"}`, sample{Name: "ab"}},
		{asJSON, `{"name": "üüüüü"}`, sample{Name: "üüüüü"}},
		{asJSON, `{"name": 5}`, sample{Name: "5"}},
		{asJSON, `{"name": 1.50}`, sample{Name: "1.50"}},
		{asJSON, `{"name": "x", "name": "\u0061"}`, sample{Name: "a"}},
		{asJSON, `{"name": "a", "title": null, "secret": null}`, sample{Name: "a"}},
		{asJSON, `{"name": "a", "title": " t "}`, named(func(s *sample) { s.Title = new("t") })},
		{asJSON, `{"name": "a", "secret": "  "}`, named(func(s *sample) { s.Secret = new("  ") })},
		{asJSON, `{"name": "a", "secret": ""}`, named(func(s *sample) { s.Secret = new("") })},
		{asJSON, `{"name": "a", "state": "failed", "states": ["skipped", "failed"]}`, named(func(s *sample) { s.State, s.States = "failed", []finalState{"skipped", "failed"} })},
		{asJSON, `{"name": "a", "states": [], "names": [" x ", 1]}`, named(func(s *sample) { s.States, s.Names = []finalState{}, []string{"x", "1"} })},
		{asJSON, `{"name": "a", "on": true}`, named(func(s *sample) { s.On = new(true) })},
		{asJSON, `{"name": "a", "on": "No"}`, named(func(s *sample) { s.On = new(false) })},
		{asJSON, `{"name": "a", "on": 1}`, named(func(s *sample) { s.On = new(true) })},
		{asJSON, `{"name": "a", "big": 9223372036854775807, "count": "-3"}`, named(func(s *sample) { s.Big, s.Count = 9223372036854775807, new(-3) })},
		{asJSON, `{"name": "a", "at": "2024-05-01T10:11:12.123456Z"}`, named(func(s *sample) { s.At = at("2024-05-01T10:11:12.123456Z") })},
		{asJSON, `{"name": "a", "at": "2024-05-01T10:11:12+05:45"}`, named(func(s *sample) { s.At = at("2024-05-01T04:26:12Z") })},
		{asJSON, `{"name": "a", "at": "2024-05-01T10:11"}`, named(func(s *sample) { s.At = at("2024-05-01T10:11:00Z") })},
		{asJSON, `{"name": "a", "at": "2024-05-01T10:11-01:00"}`, named(func(s *sample) { s.At = at("2024-05-01T11:11:00Z") })},
		{asJSON, `{"name": "a", "at": "2024-05-01 10:11:12.5"}`, named(func(s *sample) { s.At = at("2024-05-01T10:11:12.5Z") })},
		{asJSON, `{"name": "a", "at": "2020-01-01T00:00:00+0100"}`, named(func(s *sample) { s.At = at("2019-12-31T23:00:00Z") })},
		{asJSON, `{"name": "a", "at": "2020-01-01T00:00:00 +01"}`, named(func(s *sample) { s.At = at("2019-12-31T23:00:00Z") })},
		{asJSON, `{"name": "a", "at": "2020-1-1"}`, named(func(s *sample) { s.At = at("2020-01-01T00:00:00Z") })},
		{asForm, "name=a&at=2020-1-1T1:2:3.5+01:00", named(func(s *sample) { s.At = at("2020-01-01T00:02:03.5Z") })},
		{asJSON, `{"name": "a", "at": "2024-05-01"}`, named(func(s *sample) { s.At = at("2024-05-01T00:00:00Z") })},
		{asJSON, `{"name": "a", "any": {"a": [1, null]}}`, named(func(s *sample) { s.Any = json.RawMessage(`{"a": [1, null]}`) })},
		{asJSON, `{"name": "a", "any": null}`, named(func(s *sample) { s.Any = json.RawMessage(`null`) })},
		{asJSON, `{"name": "a", "any": "\\u0000"}`, named(func(s *sample) { s.Any = json.RawMessage(`"\\u0000"`) })}, // a backslash, and letters
		{asJSON, `{"name": "a", "map": {"x": "y", "": " "}}`, named(func(s *sample) { s.Map = map[string]string{"x": "y", "": " "} })},
		{asJSON, `{"name": "a", "map": {"a": 1}}`, named(func(s *sample) { s.Map = map[string]string{"a": "1"} })},
		{asJSON, `{"name": "a", "map": {}, "labels": {"a": null, "b": "", "c": " c"}}`, named(func(s *sample) {
			s.Map, s.Labels = map[string]string{}, map[string]*string{"a": nil, "b": new(""), "c": new(" c")}
		})},
		{asJSON, `{"name": "a", "ratio": 32, "share": "-2.5e1"}`, named(func(s *sample) { s.Ratio, s.Share = new(32.0), -25 })},
		{asForm, `name=a&ratio=+0.5+&share=1&labels={"a":+null}`, named(func(s *sample) { s.Ratio, s.Share, s.Labels = new(0.5), 1, map[string]*string{"a": nil} })},
		{"Application/JSON; charset=utf-8", `{"name": "a"}`, sample{Name: "a"}},
		{asForm, "name=+a+b+", sample{Name: "a b"}},
		{asForm, "name=b&name=a", sample{Name: "a"}},
		{asForm, "name=%ff", sample{Name: "\uFFFD"}},
		{asForm, "name=a&title=&secret=&on=&count=&at=&state=failed", named(func(s *sample) { s.State = "failed" })},
		{asForm, "name=a&names=x&names=y", named(func(s *sample) { s.Names = []string{"x", "y"} })},
		{asForm, `name=a&names=+["x",+"y"]`, named(func(s *sample) { s.Names = []string{"x", "y"} })},
		{asForm, `name=a&names=[x`, named(func(s *sample) { s.Names = []string{"[x"} })},
		{asForm, `name=a&any={"a":+1}`, named(func(s *sample) { s.Any = json.RawMessage(`{"a": 1}`) })},
		{asForm, `name=a&any=text`, named(func(s *sample) { s.Any = json.RawMessage(`"text"`) })},
		{asForm, `name=a&map={"a":+"b"}&on=on&count=7&big=8`, named(func(s *sample) {
			s.Map, s.On, s.Count, s.Big = map[string]string{"a": "b"}, new(true), new(7), 8
		})},
		{asPart, formPart("name", " a ") + formPart("names", "x") + formPart("names", "y") + formPart("at", "2024-05-01T00:00") + "--b--", named(func(s *sample) {
			s.Names, s.At = []string{"x", "y"}, at("2024-05-01T00:00:00Z")
		})},
	} {
		got, err := decodeAs[sample](tt.kind, tt.body)
		if err != nil {
			t.Errorf("%s: %v", tt.body, err)
			continue
		}
		if diff := cmp.Diff(&tt.want, got, cmp.AllowUnexported(sample{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.body, diff)
		}
	}
}

func TestWrongBodiesAreExplainedFieldByField(t *testing.T) {
	t.Parallel()
	const (
		notBoolean = "Must be a valid boolean."
		notInteger = "A valid integer is required."
		notNumber  = "A valid number is required."
		notText    = "Not a valid string."
		zero       = "Null characters are not allowed."
		blank      = "This field may not be blank."
	)
	for _, tt := range []struct{ kind, body, field, want string }{
		{asJSON, `{"name": "abcdef"}`, "name", "Ensure this field has no more than 5 characters."},
		{asJSON, `{"name": " "}`, "name", blank},
		{asJSON, `{"name": true}`, "name", notText},
		{asJSON, `{"name": {}}`, "name", notText},
		{asJSON, `{"name": "a\u0000"}`, "name", zero},
		{asJSON, `{"name": "a", "title": ""}`, "title", blank},
		{asJSON, `{"name": "a", "secret": "\u0000"}`, "secret", zero},
		{asJSON, `{"name": "a", "state": null}`, "state", "This field may not be null."},
		{asJSON, `{"name": "a", "state": true}`, "state", notText},
		{asJSON, `{"name": "a", "on": "maybe"}`, "on", notBoolean},
		{asJSON, `{"name": "a", "on": []}`, "on", notBoolean},
		{asJSON, `{"name": "a", "on": null}`, "on", "This field may not be null."},
		{asJSON, `{"name": "a", "big": 9223372036854775808}`, "big", notInteger},
		{asJSON, `{"name": "a", "big": 1.5}`, "big", notInteger},
		{asJSON, `{"name": "a", "count": "x"}`, "count", notInteger},
		{asJSON, `{"name": "a", "count": true}`, "count", notInteger},
		{asJSON, `{"name": "a", "any": "\u0000"}`, "any", zero},
		{asJSON, `{"name": "a", "any": {"\\\u0000": 1}}`, "any", zero},
		{asJSON, `{"name": "a", "map": []}`, "map", `Expected a dictionary of items but got type "list".`},
		{asJSON, `{"name": "a", "map": {"a": [], "b": "b"}}`, "map", "a: " + notText},
		{asJSON, `{"name": "a", "map": {"a": null}}`, "map", "a: This field may not be null."},
		{asJSON, `{"name": "a", "map": {"a": "\u0000"}}`, "map", "a: " + zero},
		{asJSON, `{"name": "a", "labels": {"a\u0000": "b"}}`, "labels", "a\u0000: " + zero},
		{asJSON, `{"name": "a", "labels": null}`, "labels", "This field may not be null."},
		{asJSON, `{"name": "a", "ratio": true}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "ratio": "NaN"}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "ratio": "-inf"}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "ratio": "0x10"}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "ratio": "1_0"}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "ratio": 1e999}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "ratio": ""}`, "ratio", notNumber},
		{asJSON, `{"name": "a", "share": null}`, "share", "This field may not be null."},
		{asForm, "name=a&share=x", "share", notNumber},
		{asJSON, `{"name": "a", "Hidden": "x"}`, "Hidden", "Unexpected field"},
		{asJSON, `{"name": "a", "-": "x"}`, "-", "Unexpected field"},
		{asJSON, `{"name": "a", "BIG": 1}`, "BIG", "Unexpected field"},
		{asJSON, `{"name": "a", "states": ["failed", "foo", "bar"]}`, "states", `"foo" is not a valid choice.`},
		{asJSON, `{"name": "a", "states": [null]}`, "states", "This field may not be null."},
		{asForm, "name=a&states=foo", "states", `"foo" is not a valid choice.`},
		{asForm, "big=1", "name", "This field is required."},
		{asForm, "name=", "name", blank},
		{asForm, "name=%00", "name", zero},
		{asForm, "name=a&names=&names=x", "names", ""},
		{asForm, "name=a&map=x", "map", `Expected a dictionary of items but got type "str".`},
		{asForm, "name=a&big=x", "big", notInteger},
		{asPart, formPart("name", "abcdef") + "--b--", "name", "Ensure this field has no more than 5 characters."},
	} {
		_, err := decodeAs[sample](tt.kind, tt.body)
		got, ok := errors.AsType[FieldErrors](err)
		want := FieldErrors{tt.field: []string{tt.want}}
		if tt.field == "names" {
			want = FieldErrors{"names": map[string]any{"0": []string{blank}}}
		}
		if key, text, ok := strings.Cut(tt.want, ": "); ok {
			want = FieldErrors{tt.field: map[string]any{key: []string{text}}}
		}
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.body, err, diff)
		}
	}
}

func TestEmailIsAnAddressOrNothing(t *testing.T) {
	t.Parallel()
	for _, good := range []userEmail{
		"", "a@b.org", "a.b+c@localhost", "o'hara@x-1.example.museum", `"a\ b"@example.org`, "a@[127.0.0.1]", "a@[::1]", "a@bücher.example", "a@b.xn--p1ai",
	} {
		if got := good.Problem(); got != "" {
			t.Errorf("%q: %s", good, got)
		}
	}
	for _, bad := range []userEmail{
		"notanemail", "a@b", "@b.org", "a@", "a@@b.org", "a b@c.org", ".a@b.org", "a.@b.org", "ü@b.org", "a@b..org", "a@-b.org", "a@b.org-", "a@b.o",
		"a@b_c.org", "a@b.org\n", `"a"b"@c.org`, "a@[b.org]",
	} {
		if got := bad.Problem(); got != "Enter a valid email address." {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

func TestLenientBodiesIgnoreWhatTheyDoNotKnow(t *testing.T) {
	t.Parallel()
	for kind, body := range map[string]string{asJSON: `{"name": "a", "x": 1, "": null}`, asForm: "name=a&x=1&=", asPart: formPart("name", "a") + formPart("x", "") + "--b--"} {
		if got, err := decodeAs[lenientSample](kind, body); err != nil || got.Name != "a" {
			t.Errorf("%s: %v %v", kind, got, err)
		}
	}
	if _, err := decodeAs[lenientSample](asJSON, `{"x": 1}`); err == nil {
		t.Error("it does not need what is required")
	}
}

func TestBodyThatFitsIsRead(t *testing.T) {
	t.Parallel()
	body := `{"name": "a"}`
	if _, err := decodeAs[sample](asJSON, body+strings.Repeat(" ", maxBody-len(body))); err != nil {
		t.Error(err)
	}
	_, err := decodeAs[sample](asJSON, body+strings.Repeat(" ", maxBody-len(body)+1))
	if p, ok := errors.AsType[*ResponseError](err); !ok || p.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("one byte more: %v", err)
	}
}

func TestNumbersAreWrittenAsPythonDoes(t *testing.T) {
	t.Parallel()
	for n, want := range map[Float]string{
		32: "32.0", 0: "0.0", Float(math.Copysign(0, -1)): "-0.0", 0.1: "0.1", -2.5: "-2.5", 1e15: "1000000000000000.0", 9999999999999998: "9999999999999998.0",
		1e16: "1e+16", 1.5e16: "1.5e+16", 1e22: "1e+22", 1e-4: "0.0001", 0.00012: "0.00012", 1e-5: "1e-05", 1.5e-7: "1.5e-07", 5e-324: "5e-324",
		math.MaxFloat64: "1.7976931348623157e+308", 123456789012345680: "1.2345678901234568e+17",
	} {
		if got, err := marshal(struct{ N *Float }{&n}); err != nil || string(got) != `{"N":`+want+`}` {
			t.Errorf("%s %v, want %s", got, err, want)
		}
	}
	for _, n := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		if got, err := marshal(Float(n)); err == nil {
			t.Errorf("%v is written %s", n, got)
		}
	}
}

// FuzzBody decodes anything: what comes out is as the fields promise, or the client is told what is wrong.
func FuzzBody(f *testing.F) {
	for i, seed := range []string{
		`{"name": "a", "title": null, "secret": "", "state": "failed", "states": ["skipped"], "names": ["x"], "on": true, "count": 1, "at": "2024-05-01", "any": {}, "map": {"a": "b"}, "big": 2}`,
		`name=a&names=["x"]&any={&map={}&on=off&at=2024-05-01+10:11&x=%00`, formPart("name", "a") + formPart("any", "[") + "--b--",
		`{"name": "\ud800", "any": "\\\u0000", "map": {"a": null}}`, "name=%ff&state=%22&names=", formPart("name", "\xff") + "--b",
		`[`, "%", "--b", ` null `, `{"name": "a", "labels": {"a": null, "\u0000": ""}, "ratio": 1e3, "share": "0.1"}`, "&;=", "--b--", `{"count": 1e5, "at": "0000-01-01", "states": [[]]}`, `{"at": "2024-5-1 1:2:3,5 -0130"}`, "", "\r\n",
	} {
		f.Add(i%3, seed)
	}
	f.Fuzz(func(t *testing.T, kind int, body string) {
		kinds := []string{asJSON, asForm, asPart}
		got, err := decodeAs[sample](kinds[uint(kind)%3], body)
		if err != nil {
			p, ok := problem(err)
			if !ok || p.Status < 400 || p.Status > 499 {
				t.Fatalf("%v", err)
			}
			if text, err := encode(p.Body, selection{}); err != nil || !json.Valid(text) || !utf8.Valid(text) {
				t.Fatalf("%s %v", text, err)
			}
			return
		}
		clean := func(name, text string) {
			if text == "" || strings.TrimSpace(text) != text || strings.ContainsRune(text, 0) || !utf8.ValidString(text) {
				t.Errorf("%s is %q", name, text)
			}
		}
		clean("name", got.Name)
		if utf8.RuneCountInString(got.Name) > 5 {
			t.Errorf("name is %q", got.Name)
		}
		if got.Title != nil {
			clean("title", *got.Title)
		}
		for _, name := range got.Names {
			clean("names", name)
		}
		for _, state := range append(got.States, got.State) {
			if state != "" && !slices.Contains(state.Choices(), string(state)) {
				t.Errorf("state is %q", state)
			}
		}
		if got.Any != nil {
			var v any
			if err := json.Unmarshal(got.Any, &v); err != nil || zeroIn(v) {
				t.Errorf("any is %s: %v", got.Any, err)
			}
		}
		for key, text := range got.Map {
			if strings.ContainsRune(key+text, 0) {
				t.Errorf("map has %q: %q", key, text)
			}
		}
		for key, text := range got.Labels {
			if strings.ContainsRune(key, 0) || text != nil && strings.ContainsRune(*text, 0) {
				t.Errorf("labels have %q: %q", key, *text)
			}
		}
		if share, err := marshal(got.Share); err != nil || !json.Valid(share) || !bytes.ContainsAny(share, ".e") {
			t.Errorf("share is %s: %v", share, err)
		}
		if got.At != nil {
			if _, err := got.At.Time.MarshalJSON(); err != nil || got.At.Year() < 1 || got.At.Location() != time.UTC {
				t.Errorf("at is %s: %v", got.At.Time, err)
			}
		}
	})
}

// zeroIn reports whether a text in a value of JSON has a zero byte.
func zeroIn(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.ContainsRune(v, 0)
	case []any:
		return slices.ContainsFunc(v, zeroIn)
	case map[string]any:
		for key, inner := range v {
			if strings.ContainsRune(key, 0) || zeroIn(inner) {
				return true
			}
		}
	}
	return false
}
