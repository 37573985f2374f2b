package api_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/api"
)

// labeled has a thing made with these labels, and answers its href.
func (h *harness) labeled(name string, labels api.Labels) string {
	h.t.Helper()
	var made thingReply
	h.want(post(thingsPath, map[string]any{"name": name, "pulp_labels": labels}), http.StatusCreated, &made)
	return made.PulpHref
}

// labels are those of a thing.
func (h *harness) labels(thing string) any {
	h.t.Helper()
	return h.object(thing)["pulp_labels"]
}

func TestThingsAreSelectedByTheirLabels(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	h.labeled("a", api.Labels{"env": new("Prod"), "two words": new("x, y"), "é-1.0": new("100%")})
	h.labeled("b", api.Labels{"env": new("dev"), "none": nil, "tier": new("")})
	h.labeled("c", api.Labels{"env": nil, "path": new(`C:\,"d"`)})
	h.createThing("d")
	for selection, want := range map[string]string{
		"":                        "abcd",
		"env":                     "abc",
		"!env":                    "d",
		"env,!none":               "ac",
		"!env,!none,!x":           "d",
		"env=dev":                 "b",
		"env=DEV":                 "",
		"env=":                    "",
		"tier=":                   "b",
		"none=":                   "",
		"env!=dev":                "ac",
		"env!=dev,env!=Prod":      "c",
		"env!=x":                  "abc",
		"x!=y":                    "",
		"env~D":                   "ab",
		"env~D,env~V":             "b",
		"env~":                    "ab",
		"none~":                   "",
		"é-1.0~0%":                "a",
		"env~_":                   "",
		`two words=x\, y`:         "a",
		`two words~\,`:            "a",
		`path=C:\\,"d"`:           "c",
		"env=dev,env=Prod":        "",
		"env=Prod, two words":     "a",
		"env=Prod,!two words":     "",
		"tier,env=dev,none,!path": "b",
	} {
		query := "?ordering=name&fields=name&pulp_label_select="
		got := h.want(get(thingsPath+query+url.QueryEscape(selection)), http.StatusOK, nil)
		if got := strings.Join(names(t, got.body, "name"), ""); got != want {
			t.Errorf("%q selects %q, want %q", selection, got, want)
		}
	}
	for expression, want := range map[string]string{
		"pulp_label_select=env": "abc", "pulp_label_select=env,none": "b", "pulp_label_select='env=dev'": "b", "NOT pulp_label_select=env~d": "cd",
		`pulp_label_select="!env" OR pulp_label_select="two words=x\, y"`: "ad", "name__in=a,b AND NOT pulp_label_select='env!=dev'": "b",
	} {
		got := h.want(get(thingsPath+"?ordering=name&q="+url.QueryEscape(expression)), http.StatusOK, nil)
		if got := strings.Join(names(t, got.body, "name"), ""); got != want {
			t.Errorf("%s finds %q, want %q", expression, got, want)
		}
	}
	for query, want := range map[string]string{
		"pulp_label_select==x": `["Invalid search term: '=x'."]`, "pulp_label_select=a,": `["Invalid search term: ''."]`, "pulp_label_select=a/b": `["Invalid search term: 'a/b'."]`,
		"pulp_label_select=!a%3Db": `["Cannot use an operator with '!a'."]`, "pulp_label_select__in=a": `{"errors": ["Invalid Filter: 'pulp_label_select__in'"]}`,
		"q=" + url.QueryEscape("pulp_label_select='!a=b'"): about("q", "pulp_label_select: Cannot use an operator with '!a'."),
		"pulp_label_select=a/b&name__range=x":              `{"errors": ["Invalid Filter: 'name__range'"]}`,
	} {
		h.answers(get(thingsPath+"?"+query), http.StatusBadRequest, want)
	}
}

func TestLabelsInBodiesAreChecked(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	const only = " contains invalid characters. Only alphanumerics, underscores, spaces, hyphens, and dots are allowed."
	for labels, want := range map[string]string{
		`{"a/b": "c"}`:                       about("pulp_labels", "Key 'a/b'"+only),
		`{"": null}`:                         about("pulp_labels", "Key ''"+only),
		`{"a": "(b"}`:                        about("pulp_labels", "Key 'a' contains value with parenthesis."),
		`{"b=": ")", "a": "b)", "c": "(no"}`: about("pulp_labels", "Key 'a' contains value with parenthesis.", "Key 'b='"+only, "Key 'c' contains value with parenthesis."),
		`{"a/b": []}`:                        `{"pulp_labels": {"a/b": ["Not a valid string."]}}`,
	} {
		h.answers(post(thingsPath, `{"name": "n", "pulp_labels": `+labels+`}`), http.StatusBadRequest, want)
	}
	thing := h.labeled("n", api.Labels{"A_é 9.-": new("  x, [y] "), "b": new(" "), "c": nil})
	if diff := cmp.Diff(map[string]any{"A_é 9.-": "x, [y]", "b": "", "c": nil}, h.labels(thing)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

func TestLabelsAreSetAndUnset(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	thing, other := h.createThing("one"), h.labeled("other", api.Labels{"a": new("b")})
	set, unset := thing+"set_label/", thing+"unset_label/"
	for _, tt := range []struct {
		path, body, want string
		labels           map[string]any
	}{
		{set, `{"key": "a", "value": "b"}`, `{"key": "a", "value": "b"}`, map[string]any{"a": "b"}},
		{set, `{"key": " two words ", "value": " x, y ", "more": 1}`, `{"key": "two words", "value": "x, y"}`, map[string]any{"a": "b", "two words": "x, y"}},
		{set, `{"key": "a", "value": null}`, `{"key": "a", "value": null}`, map[string]any{"a": nil, "two words": "x, y"}},
		{unset, `{"key": "two words", "value": "z"}`, `{"key": "two words", "value": "x, y"}`, map[string]any{"a": nil}},
		{unset, `{"key": "a"}`, `{"key": "a", "value": null}`, map[string]any{}},
		{set, `{"key": "a", "value": ""}`, `{"key": "a", "value": ""}`, map[string]any{"a": ""}},
		{unset, `{"key": "a"}`, `{"key": "a", "value": ""}`, map[string]any{}},
	} {
		h.answers(post(tt.path, tt.body), http.StatusCreated, tt.want)
		if diff := cmp.Diff(tt.labels, h.labels(thing)); diff != "" {
			t.Errorf("labels after %s (-want +got):\n%s", tt.body, diff)
		}
	}
	for body, want := range map[string]string{"key=a&value=b+c": `{"key": "a", "value": "b c"}`, "key=a&value=": `{"key": "a", "value": ""}`} {
		h.answers(post(set, body).with("Content-Type", "application/x-www-form-urlencoded"), http.StatusCreated, want)
	}
	const only = " contains invalid characters. Only alphanumerics, underscores, spaces, hyphens, and dots are allowed."
	for body, want := range map[string]string{
		`{}`:                            `{"key": ["This field is required."], "value": ["This field is required."]}`,
		`{"key": "", "value": "x"}`:     about("key", "This field may not be blank."),
		`{"key": null, "value": 1}`:     about("key", "This field may not be null."),
		`{"key": "a", "value": ["x"]}`:  about("value", "Not a valid string."),
		`{"key": "a/b", "value": "x"}`:  about("non_field_errors", "Key 'a/b'"+only),
		`{"key": "a,b", "value": null}`: about("non_field_errors", "Key 'a,b'"+only),
		`{"key": "a", "value": "(x)"}`:  about("non_field_errors", "Key 'a' contains value with parenthesis."),
	} {
		h.answers(post(set, body), http.StatusBadRequest, want)
	}
	for body, want := range map[string]string{
		`{}`: about("key", "This field is required."), `{"key": "b"}`: about("key", "Label 'b' is not set on the object."), `{"key": "'/"}`: about("key", "Label ''/' is not set on the object."),
	} {
		h.answers(post(unset, body), http.StatusBadRequest, want)
	}
	if diff := cmp.Diff(map[string]any{"a": "b"}, h.labels(other)); diff != "" {
		t.Errorf("another thing's labels (-want +got):\n%s", diff)
	}
	h.answers(get(set), http.StatusMethodNotAllowed, `{"detail": "Method \"GET\" not allowed."}`)
	for _, path := range []string{set, unset} {
		gone := strings.Replace(path, keyIn(thing), nowhere, 1)
		h.answers(post(gone, `{"key": "a", "value": "b"}`), http.StatusNotFound, `{"detail": "No Thing matches the given query."}`)
	}
}

func TestLabelsAreChangedByWhoMayChangeTheObject(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	h.newUser("max", "things.thing_creator")
	h.newUser("vera", "things.thing_viewer")
	h.newUser("otto", "things.thing_owner")
	thing := h.labeled("one", api.Labels{"a": new("b")})
	for _, operation := range []string{"set_label/", "unset_label/"} {
		// Who may not is told so whatever the body is.
		for _, body := range []string{`{"key": "a", "value": "x"}`, `{"key": "a/"}`, `[`} {
			h.answers(post(thing+operation, body).by("max"), http.StatusNotFound, `{"detail": "No Thing matches the given query."}`)
			h.answers(post(thing+operation, body).by("vera"), http.StatusForbidden, `{"detail": "You do not have permission to perform this action."}`)
			h.answers(post(thing+operation, body).by("-"), http.StatusUnauthorized, `{"detail": "Authentication credentials were not provided."}`)
		}
	}
	h.sees(thingsPath+"?pulp_label_select=a%3Db", "max")
	h.sees(thingsPath+"?pulp_label_select=a%3Db", "vera", thing)
	h.answers(post(thing+"set_label/", `{"key": "c", "value": "d"}`).by("otto"), http.StatusCreated, `{"key": "c", "value": "d"}`)
	h.answers(post(thing+"unset_label/", `{"key": "a"}`).by("otto"), http.StatusCreated, `{"key": "a", "value": "b"}`)
	h.sees(thingsPath+"?pulp_label_select=c,!a", "vera", thing)
}

func TestLabelsThatAreChangedAtOnceAreAllKept(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	thing := h.labeled("one", api.Labels{"old": new("1")})
	tx := h.begin(`UPDATE thing SET labels = labels || '{"rival": "2", "old": "3"}'`)
	if got := h.whileOpen(tx, post(thing+"set_label/", `{"key": "a", "value": "b"}`)); got.status != http.StatusCreated {
		t.Errorf("set: %d %s", got.status, got.body)
	}
	tx = h.begin(`UPDATE thing SET labels = labels || '{"old": "4", "more": "5"}'`)
	got := h.whileOpen(tx, post(thing+"unset_label/", `{"key": "old"}`))
	if got.status != http.StatusCreated || string(got.body) != `{"key":"old","value":"4"}` {
		t.Errorf("unset: %d %s", got.status, got.body)
	}
	if diff := cmp.Diff(map[string]any{"a": "b", "rival": "2", "more": "5"}, h.labels(thing)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	tx = h.begin(`UPDATE thing SET labels = labels - 'more'`)
	if got := h.whileOpen(tx, post(thing+"unset_label/", `{"key": "more"}`)); got.status != http.StatusBadRequest {
		t.Errorf("unset of what somebody else has unset: %d %s", got.status, got.body)
	}
	tx = h.begin(`DELETE FROM thing`)
	if got := h.whileOpen(tx, post(thing+"set_label/", `{"key": "a", "value": "c"}`)); got.status != http.StatusNotFound {
		t.Errorf("set on what is gone: %d %s", got.status, got.body)
	}
}

func TestManyLabelsAreSetAtOnce(t *testing.T) {
	t.Parallel()
	h := newThingsHarness(t)
	thing, want := h.createThing("one"), map[string]any{}
	replies := make([]reply, 12)
	var all sync.WaitGroup
	for i := range replies {
		want[fmt.Sprint("label ", i)] = fmt.Sprint(i)
		all.Go(func() {
			replies[i] = h.send(post(thing+"set_label/", map[string]string{"key": fmt.Sprint("label ", i), "value": fmt.Sprint(i)}))
		})
	}
	all.Wait()
	if i := slices.IndexFunc(replies, func(r reply) bool { return r.status != http.StatusCreated }); i >= 0 {
		t.Errorf("label %d: %d %s", i, replies[i].status, replies[i].body)
	}
	if diff := cmp.Diff(want, h.labels(thing)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}
