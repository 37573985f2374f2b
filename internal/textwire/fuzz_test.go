package textwire

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"
)

// What is read here, the driver reads alike.

func FuzzTexts(f *testing.F) {
	for _, s := range []string{"{}", "{a}", `{"a\"b\\",c,"NULL"}`, "{NULL}", "{{a}}", `{"`, "{a,}", `{"a"b}`, "[0:1]={a,b}", "{ a , b }"} {
		f.Add(s)
	}
	m := pgtype.NewMap()
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseTexts([]byte(s))
		if !ok || !utf8.ValidString(s) {
			return
		}
		// As PostgreSQL writes it, spaces are a part of an element only in quotes; the driver drops others.
		if strings.IndexFunc(s, unicode.IsSpace) < 0 {
			var want []string
			if err := m.Scan(pgtype.TextArrayOID, pgtype.TextFormatCode, []byte(s), &want); err != nil || !slices.Equal(got, want) {
				t.Errorf("%q is read as %q, by the driver as %q, %v", s, got, want, err)
			}
		}
		var text []byte
		for i, g := range got {
			if i > 0 {
				text = append(text, ',')
			}
			text = appendText(text, g)
		}
		var want []string
		if err := m.Scan(pgtype.TextArrayOID, pgtype.TextFormatCode, []byte("{"+string(text)+"}"), &want); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is read as %q; written and read by the driver it is %q, %v", s, got, want, err)
		}
	})
}

func FuzzRecords(f *testing.F) {
	for _, s := range []string{`(a,b)`, `("a ""b\\",)`, `(,"")`, `("a`, `(a,b,c)`, `(a)`, `("\)`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var records Records
		var a string
		var b []string
		if err := records.Scan(s, &a, &b); err != nil {
			return
		}
		// What was read is read again from what PostgreSQL would write of it.
		quoted := func(s string) string {
			return `"` + strings.NewReplacer(`"`, `""`, `\`, `\\`).Replace(s) + `"`
		}
		text := []byte("{")
		for i, e := range b {
			if i > 0 {
				text = append(text, ',')
			}
			text = appendText(text, e)
		}
		again := "(" + quoted(a) + "," + quoted(string(text)+"}") + ")"
		if b == nil {
			again = "(" + quoted(a) + ",)"
		}
		var a2 string
		var b2 []string
		if err := records.Scan(again, &a2, &b2); err != nil || a2 != a || !slices.Equal(b2, b) {
			t.Errorf("%q is read as %q and %q; written as %q it is %q and %q, %v", s, a, b, again, a2, b2, err)
		}
	})
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{
		"2026-01-31 12:00:00.123456+05:45", "2026-01-31 12:00:00+00", "1850-01-01 00:00:00.1-00:01:15",
		"infinity", "0044-03-15 12:00:00+00 BC", "12026-01-01 00:00:00+00", "2026-02-31 24:00:00+99",
	} {
		f.Add(s)
	}
	m := pgtype.NewMap()
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseTime([]byte(s))
		if !ok {
			return
		}
		var want pgtype.Timestamptz
		if err := m.Scan(pgtype.TimestamptzOID, pgtype.TextFormatCode, []byte(s), &want); err != nil {
			t.Skip() // PostgreSQL writes no such time
		}
		if !got.Time.Equal(want.Time) || got.Time.Location() != time.UTC {
			t.Errorf("%q is %s, not %s", s, got.Time, want.Time)
		}
	})
}

func FuzzUUID(f *testing.F) {
	f.Add("01234567-89ab-cdef-fedc-ba9876543210")
	f.Add("01234567-89AB-cdef-fedc-ba987654321")
	m := pgtype.NewMap()
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseUUID([]byte(s))
		if !ok {
			return
		}
		var want pgtype.UUID
		if err := m.Scan(pgtype.UUIDOID, pgtype.TextFormatCode, []byte(s), &want); err != nil || got != want {
			t.Errorf("%q is %v, not %v, %v", s, got, want, err)
		}
		if text := string(appendUUID(nil, got.Bytes)); text != want.String() {
			t.Errorf("written as %q, not %q", text, want)
		}
	})
}
