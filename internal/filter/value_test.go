package filter_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pithworks/pith/internal/filter"
)

func TestTimesAreReadAsDjangoDoes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2024-05-01":                       "2024-05-01T00:00:00Z",
		"2024-05-01 10:11":                 "2024-05-01T10:11:00Z",
		"2024-05-01T10:11:12":              "2024-05-01T10:11:12Z",
		"2024-05-01t10:11:12z":             "2024-05-01T10:11:12Z",
		"2024-05-01 10:11:12.123456":       "2024-05-01T10:11:12.123456Z",
		"2024-05-01T10:11:12.123456789Z":   "2024-05-01T10:11:12.123456Z",
		"2024-05-01T10:11:12+02:00":        "2024-05-01T08:11:12Z",
		"2024-05-01T10:11:12 02:00":        "2024-05-01T08:11:12Z",
		"2024-05-01 10:11:12.5 +0200":      "2024-05-01T08:11:12.5Z",
		"2024-05-01 10:11-02":              "2024-05-01T12:11:00Z",
		"2020-01-01T00:00:00+0100":         "2019-12-31T23:00:00Z",
		"2020-01-01T00:00:00+01":           "2019-12-31T23:00:00Z",
		"2020-01-01T00:00:00  -0130":       "2020-01-01T01:30:00Z",
		"2020-01-01 00:00 Z":               "2020-01-01T00:00:00Z",
		"2020-1-1":                         "2020-01-01T00:00:00Z",
		"2020-1-1T1:2:3,5":                 "2020-01-01T01:02:03.5Z",
		"2020-1-1 1:2+01":                  "2020-01-01T00:02:00Z",
		"2020-1":                           "",
		"20-1-1":                           "",
		"2020-001-1":                       "",
		"2020-1-1T":                        "",
		"2020-01-01T1":                     "",
		"0001-01-01":                       "0001-01-01T00:00:00Z",
		"9999-12-31T23:59:59.999999Z":      "9999-12-31T23:59:59.999999Z",
		"9999-12-31T23:59:59-01:00":        "",
		"0001-01-01T00:00:00+01:00":        "",
		"0000-12-31":                       "",
		"10000-01-01":                      "",
		"2024-02-30":                       "",
		"2024-05-01T":                      "",
		"2024-05-01 25:00":                 "",
		"2024-05-01T10:11:60":              "",
		"2024-05-01T10:11:12 Europe/Paris": "",
		"yesterday":                        "",
		"1714557600":                       "",
	} {
		got, err := tasks().Parse(url.Values{"pulp_created": {text}}, nil)
		switch {
		case want == "" && err == nil:
			t.Errorf("%s: got %v", text, got.Args)
		case want != "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && !cmp.Equal(got.Args, []any{at(want)}):
			t.Errorf("%s: got %v", text, got.Args)
		}
	}
}

// FuzzParseTime reads anything: what is a time is one that PostgreSQL and JSON have, and is read again as it is written.
func FuzzParseTime(f *testing.F) {
	for _, seed := range []string{"2024-05-01", "2024-5-1t1:2:3,5 -0130", "2024-05-01 10:11:12  02", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.9999999Z"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, err := filter.ParseTime(text)
		if err != nil {
			return
		}
		again, err := filter.ParseTime(at.Format(time.RFC3339Nano))
		if err != nil || !again.Equal(at) || at.Location() != time.UTC || at.Nanosecond()%1000 != 0 {
			t.Errorf("%s is %s, and again %s, %v", text, at, again, err)
		}
	})
}
