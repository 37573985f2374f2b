package textwire_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/textwire"
)

// What the database writes as a record is read as the same values.
func TestRecordsReadWhatTheDatabaseWrites(t *testing.T) {
	t.Parallel()
	d := dbtest.Empty(t)
	type record struct {
		text  string
		id    pgtype.UUID
		n     int32
		yes   bool
		texts []string
		at    pgtype.Timestamptz
		f     float64
	}
	var records textwire.Records
	for _, text := range []string{"", "plain", " ", `a,b(c)"d"\e\\"`, "\t\n", `{"a": "b\"c"}`, "NULL", "ü"} {
		var row string
		var want record
		err := d.Pool.QueryRow(t.Context(), `SELECT (r)::text, r.* FROM (SELECT $1::text, NULL::uuid, -7, $1 = '', ARRAY[$1, 'x'], '2026-01-31 12:00:00.5Z'::timestamptz, 0.25::float8) r`, text).
			Scan(&row, &want.text, &want.id, &want.n, &want.yes, &want.texts, &want.at, &want.f)
		if err != nil {
			t.Fatal(err)
		}
		want.at.Time = want.at.Time.UTC()
		var got record
		if err := records.Scan(row, &got.text, &got.id, &got.n, &got.yes, &got.texts, &got.at, &got.f); err != nil {
			t.Errorf("%s: %v", row, err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(record{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row, diff)
		}
	}
}

func TestBrokenRecordsAreRefused(t *testing.T) {
	t.Parallel()
	for _, row := range []string{"", "(", "()", "(1", "(1,", "(1,2", "(1,2,3)", "(1)", `("1,2)`, `("1"x,2)`, `(1,"2`, "(1,2))", "(1,x)", "(1,)", `(1,"\`} {
		var records textwire.Records
		var a string
		var b int32
		if err := records.Scan(row, &a, &b); err == nil {
			t.Errorf("%q is read as %q, %d", row, a, b)
		}
	}
}
