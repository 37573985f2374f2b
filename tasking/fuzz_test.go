package tasking

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/adhocore/gronx"
	"github.com/google/go-cmp/cmp"
)

// FuzzRequest: a request that can be read is the same after it was written and read again.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"name": "a"}`, `{"name": "a", "args": null}`, `{"name": "a", "args": {"b": [1]}}`,
		`{"name": "a", "immediate": true, "deferred": false}`, `{"deferred": true, "not_deferred": true}`,
		`{"exclusive_resources": ["a", "", "\u0000"], "shared_resources": null, "priority": -5, "not_before": "2100-01-01T00:00:00+13:45"}`,
		`{"task_group": "018f0000-0000-7000-8000-000000000001", "versions": {"core": "3"}, "correlation_id": "c"}`,
		`{"task_group": "x"}`, `{"Name": "a"}`, `{"unknown": 1}`, `{"name": "a"} {`, `{"args": 1e999}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var first Request
		if json.Unmarshal(data, &first) != nil {
			return
		}
		written, err := json.Marshal(first)
		if err != nil {
			t.Fatalf("%q was read as %+v, which cannot be written: %v", data, first, err)
		}
		var second Request
		if err := json.Unmarshal(written, &second); err != nil {
			t.Fatalf("%q was written as %q, which cannot be read: %v", data, written, err)
		}
		again, err := json.Marshal(second)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(written), string(again)); diff != "" {
			t.Errorf("%q:\n%s", data, diff)
		}
	})
}

// FuzzKeyringOpen: what is not sealed is left as it is, what is forged is refused, what is sealed opens.
func FuzzKeyringOpen(f *testing.F) {
	key := func(b string) string { return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(b, 32))) }
	ring, err := newKeyring([]string{key("a"), key("b")})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		`null`, `{}`, `{"$encrypted": ""}`, `{"$encrypted": "x"}`, `{"$encrypted": 1}`, `{"$encrypted": null}`, `{"$Encrypted": "x"}`,
		`{"$encrypted": "gAAAAABk", "x": 1}`, `{"$encrypted": "a", "$encrypted": "b"}`, `"text"`, `{oops`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, args []byte) {
		for _, k := range []keyring{ring, nil} {
			got, err := k.open(args)
			if _, sealed := asSealed(args); sealed != (err != nil) {
				t.Errorf("%d keys: %q looks sealed: %t; opened: %v", len(k), args, sealed, err)
			} else if err == nil && string(got) != string(args) {
				t.Errorf("%d keys: %q became %q", len(k), args, got)
			}
		}
		closed, err := ring.seal(args)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.open(closed); err != nil || string(got) != string(args) {
			t.Errorf("%q was sealed and opened as %q, %v", args, got, err)
		}
	})
}

// FuzzCron: an expression has a next time, at which it is due, or is invalid.
func FuzzCron(f *testing.F) {
	for _, seed := range []string{
		"* * * * *", "30 4 * * *", "*/7 1-5 1,15 * MON", "0 0 30 2 *", "0 0 29 2 *", "61 4 * * *", "0 0 31 2,4 *", "* * * * 8", "",
		"@daily", "* * *", "* * * * * *", "0 0 L * *", "0 0 1W * *", "0 0 * * 5#3", "0 0 * * 5L", "1-0 * * * *", "*/0 * * * *", "-1 * * * *", "0 0 ? * ?",
	} {
		f.Add(seed, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, expr string, unix int64) {
		if unix < 0 || unix > 4_000_000_000 {
			return
		}
		after := time.Unix(unix, 0)
		next, err := cronNext(expr, after)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %v", expr, err)
			}
			return
		}
		if !next.After(after) || next.Location() != time.UTC || next.Second() != 0 {
			t.Errorf("%q: next after %s is %s", expr, after.UTC(), next)
		}
		if due, err := gronx.New().IsDue(expr, next); err != nil || !due {
			t.Errorf("%q: next after %s is %s, when it is not due: %v", expr, after.UTC(), next, err)
		}
	})
}

// FuzzRequestValidate: what is let through is fit for the queues.
func FuzzRequestValidate(f *testing.F) {
	f.Add("a", "b", "c", 0, int64(0), "core", "3.117.0", byte(0))
	f.Add("a", "a", "", 10001, int64(1), "", "x", byte(3))
	f.Add("shared:a", Domain, "\xff", -10001, int64(-1), "core", "", byte(2))
	f.Fuzz(func(t *testing.T, a, b, cid string, priority int, notBefore int64, label, version string, flags byte) {
		r := Request{Name: "test", Options: Options{
			Exclusive: []string{a, b}, Shared: []string{b, a, Domain}, Immediate: flags&1 != 0, NotDeferred: flags&2 != 0, Priority: priority,
			CorrelationID: cid, Versions: map[string]string{label: version},
		}}
		if notBefore != 0 {
			r.NotBefore = time.Unix(notBefore, 0)
		}
		err := r.validate()
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v", r, err)
			}
			return
		}
		if r.NotDeferred && (!r.Immediate || notBefore != 0) {
			t.Errorf("%+v could never run", r)
		}
		if priority < -10000 || priority > 10000 {
			t.Errorf("priority %d", priority)
		}
		seen := map[string]bool{}
		exclusive := true
		for _, res := range r.reservations() {
			name := res.resource
			if seen[name] || name == "" || len(name) > MaxResourceName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) || strings.HasPrefix(name, "shared:") {
				t.Errorf("reserves %q among %v", name, r.reservations())
			}
			if res.exclusive && !exclusive {
				t.Errorf("exclusive after shared: %v", r.reservations())
			}
			if name == Domain && !res.exclusive {
				t.Error("shares the domain twice")
			}
			seen[name], exclusive = true, res.exclusive
		}
	})
}
